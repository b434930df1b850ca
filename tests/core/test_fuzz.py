"""Random runs of a small cluster, seeded: the four safety properties of the Raft paper hold whatever happens.

Messages are lost, doubled and overtake each other; disks write late and several Readies at once;
replicas crash and lose what was not written; snapshots cut the log; members come and go; leadership is handed over.

    election safety         at most one leader a term
    log matching            same index and term: same entries up to there
    leader completeness     what was ever committed is in every later leader's log
    state machine safety    nobody applies another entry at an index
Afterwards, once all is well again, the cluster must elect a leader and commit.
"""

from __future__ import annotations

from random import Random

import pytest

from tauraft.core.membership import MembershipChange, Step, StepKind, Transition
from tauraft.core.messages import Entry, Message, Role
from tauraft.core.raft import MembershipChangeRefused, ProposalDropped, TransferRefused
from tests.core.network import Disk, Replica, member, voters

_NAMES = "abcde"


class Chaos:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.names = _NAMES[: self.random.choice((3, 5))]
        options = {
            "election_ticks": 5,
            "pre_vote": self.random.random() < 0.7,
            "check_quorum": self.random.random() < 0.7,
            "max_append_bytes": self.random.choice((4, 100, 10_000)),
            "max_inflight": self.random.choice((1, 2, 256)),
        }
        membership = voters(self.names)
        self.replicas = {
            name: Replica(member(name), Disk(membership), seed * 10 + number, **options)
            for number, name in enumerate(self.names)
        }
        for replica in self.replicas.values():
            replica.is_writing_at_once = False
        self.wire: list[Message] = []
        self.leader_of_term: dict[int, str] = {}
        self.decided: dict[int, Entry] = {}
        self.decided_last = 0
        self.proposed = 0
        self.read_floor: dict[tuple[str, int, int], int] = {}
        self.reads_asked = 0
        self.loss = self.random.choice((0.0, 0.05, 0.2))

    def act(self) -> None:
        random = self.random
        name = random.choice(self.names)
        replica = self.replicas[name]
        raft = replica.raft
        roll = random.random()
        if roll < 0.50:
            for _ in range(random.randrange(4)):
                self._deliver_one()
        elif roll < 0.70:
            if replica.unwritten:
                self.wire.extend(replica.finish_write())
        elif roll < 0.82:
            raft.tick()
        elif roll < 0.92:
            try:
                self.proposed += 1
                raft.propose(b"%d" % self.proposed)
            except ProposalDropped:
                pass
        elif roll < 0.95:
            self.reads_asked += 1
            self.read_floor[name, replica.starts, self.reads_asked] = self.decided_last
            raft.read_index(self.reads_asked)
        elif roll < 0.96:
            replica.crash()
        elif roll < 0.97:
            applied = raft.log.applied
            # Only what is on disk, applied, and not about to be replaced by a snapshot under way.
            if applied > replica.disk.base[0] and not replica.unwritten:
                replica.disk.take_snapshot(applied, raft.membership, keep=random.randrange(3))
        elif roll < 0.98:
            raft.report_unreachable(member(random.choice(self.names)))
            raft.report_snapshot(member(random.choice(self.names)), random.random() < 0.5)
        elif roll < 0.985:
            try:
                raft.transfer(member(random.choice(self.names)))
            except TransferRefused:
                pass
        elif roll < 0.99:
            raft.leader_connection_lost()
        elif roll < 0.993:
            raft.campaign()
        else:
            self._change_membership(replica)
        self.wire.extend(replica.turn())
        self.check(name)

    def _deliver_one(self) -> None:
        if not self.wire:
            return
        # Mostly in order, sometimes not at all, sometimes twice.
        position = 0 if self.random.random() < 0.7 else self.random.randrange(len(self.wire))
        message = self.wire.pop(position)
        if self.random.random() < self.loss:
            return
        if self.random.random() < 0.05:
            self.wire.append(message)
        receiver = self.replicas[message.to.peer_id]
        receiver.raft.step(message)
        self.wire.extend(receiver.turn())
        self.check(message.to.peer_id)

    def _change_membership(self, replica: Replica) -> None:
        steps = tuple(
            Step(self.random.choice(tuple(StepKind)), member(self.random.choice(self.names)))
            for _ in range(self.random.choice((0, 1, 1, 2)))
        )
        try:
            replica.raft.change_membership(MembershipChange(steps, self.random.choice(tuple(Transition))))
        except MembershipChangeRefused:
            pass

    def check(self, name: str) -> None:
        replica = self.replicas[name]
        raft = replica.raft
        if raft.role is Role.LEADER:
            assert self.leader_of_term.setdefault(raft.term, name) == name, "two leaders in one term"
        for entry in replica.applied:
            known = self.decided.setdefault(entry.index, entry)
            assert known == entry, f"{name} applied another entry {entry.index}"
        replica.applied.clear()
        if raft.commit > self.decided_last:
            self.decided_last = raft.commit
        if raft.role is Role.LEADER:
            self._check_leader_is_complete(replica)
        for read in replica.reads:
            floor = self.read_floor.pop((name, replica.starts, read.context), None)
            assert floor is None or read.index >= floor, f"{name} would serve a read of the past"
        replica.reads.clear()

    def _check_leader_is_complete(self, replica: Replica) -> None:
        log = replica.raft.log
        # Others may have deposed it already: then it need not have what they decided.
        if replica.raft.term != max(self.leader_of_term):
            return
        assert log.last_index >= self.decided_last, "a leader lacks what was committed"
        for index in range(max(log.first_index, self.decided_last - 3), self.decided_last + 1):
            if index in self.decided:
                assert log.term(index) == self.decided[index].term, "a leader has another entry than was committed"

    def check_logs_match(self) -> None:
        logs = [{entry.index: entry for entry in replica.disk.log} for replica in self.replicas.values()]
        for number, one in enumerate(logs):
            for other in logs[:number]:
                common = sorted(one.keys() & other.keys())
                agreed = [index for index in common if one[index].term == other[index].term]
                if agreed:
                    upto = [index for index in common if index <= agreed[-1]]
                    assert all(one[index] == other[index] for index in upto), "logs agree, and not before"

    def recover(self) -> None:
        """All is well: within a bounded time there is a leader, and all of its members have what it committed."""
        self.loss = 0.0
        goal, goal_term = 0, 0
        for _ in range(400):
            for name, replica in self.replicas.items():
                replica.raft.tick()
                self.wire.extend(replica.turn())
                while replica.unwritten:
                    self.wire.extend(replica.finish_write())
                    self.wire.extend(replica.turn())
                self.check(name)
            wire, self.wire = self.wire, []
            for message in wire:
                receiver = self.replicas[message.to.peer_id]
                receiver.raft.step(message)
                if receiver.raft.log.pending_snapshot is None:
                    self.check(message.to.peer_id)
            leader = max(self.replicas.values(), key=lambda replica: (replica.raft.is_leader, replica.raft.term))
            if not leader.raft.is_leader:
                continue
            if goal_term != leader.raft.term:
                try:
                    goal, goal_term = leader.raft.propose(b"last")
                except ProposalDropped:
                    continue
            members = [self.replicas[one.peer_id].raft for one in sorted(leader.raft.membership.all_members())]
            if all(one.log.applied >= goal for one in members):
                return
        raise AssertionError("no progress, though nothing fails any more")


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_nothing_committed_is_lost_or_changed(seed: int) -> None:
    chaos = Chaos(seed)
    for step in range(4000):
        chaos.act()
        if step % 200 == 0:
            chaos.check_logs_match()
    chaos.recover()
    chaos.check_logs_match()
