"""Random runs of a small cluster, seeded: the safety properties of the Raft paper hold whatever happens.

Messages are lost, doubled and overtake each other; disks write late and several Readies at once, and applying lags;
replicas crash and lose what was not written; snapshots cut the log; voters and learners come and go, one by one and
through joint memberships; leadership is handed over. A seed also chooses what happens most (``PROFILES``).

After each step:

    election safety         at most one leader a term
    leader completeness     what was ever committed is in every later leader's log
    durability              what a leader commits is on the disks of a quorum of its membership, and not only on its way
    state machine safety    nobody applies another entry at an index, nor one twice, out of order, or before its disk has it
    reads                   none is served from before it was asked
and now and then log matching (same index and term: same entries up to there), and that no honest disk is taken for a
restored one.
Afterwards, once all is well again, the cluster must elect a leader and commit.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from tauraft.core.membership import MembershipChange, Step, StepKind, Transition
from tauraft.core.messages import Entry, Index, Member, Message, Role
from tauraft.core.quorum import VoteResult, joint_vote_result
from tauraft.core.raft import MembershipChangeRefused, ProposalDropped, TransferRefused
from tests.core.network import Disk, Replica, member, voters

_NAMES = "abcde"

# How often what happens, of a thousand; what a profile does not name is as in "all".
PROFILES = {
    "all": {
        "deliver": 500, "write": 200, "tick": 120, "propose": 100, "read": 30, "crash": 10, "compact": 10, "report": 10,
        "transfer": 5, "lose_leader": 5, "campaign": 3, "change": 7, "apply": 100, "isolate": 0,
    },
    "disks": {"write": 80, "crash": 25, "apply": 60, "propose": 200},
    "members": {"change": 60, "apply": 60, "campaign": 6},
    "transfers": {"transfer": 40, "campaign": 10, "lose_leader": 10},
    "snapshots": {"compact": 60, "report": 20, "crash": 15, "propose": 150},
    "partitions": {"isolate": 12, "tick": 250, "read": 60},
}  # fmt: skip


class Chaos:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        profile = sorted(PROFILES)[seed % len(PROFILES)]
        chances = {**PROFILES["all"], **PROFILES[profile]}
        self.kinds = sorted(chances)
        self.weights = [chances[kind] for kind in self.kinds]
        self.names = _NAMES[: self.random.choice((3, 5))]
        options = {
            "election_ticks": 5,
            "pre_vote": self.random.random() < 0.7,
            "check_quorum": self.random.random() < 0.7,
            "max_append_bytes": self.random.choice((4, 100, 10_000)),
            "max_inflight": self.random.choice((1, 2, 256)),
            "max_uncommitted_bytes": self.random.choice((20, 1 << 20)),
            "max_committed_bytes_per_ready": self.random.choice((1, 1 << 20)),
        }
        if options["check_quorum"]:
            options["lease_reads"] = self.random.random() < 0.3
        # Some of those that are there are no members yet, or only listen.
        founders = self.random.choice((self.names, self.names, self.names[:3], self.names[:1]))
        learners = self.random.choice(("", self.names[len(founders) :]))
        membership = voters(founders, learners)
        self.replicas = {
            name: Replica(member(name), Disk(membership), seed * 10 + number, **options)
            for number, name in enumerate(self.names)
        }
        for replica in self.replicas.values():
            replica.is_writing_at_once = False
            replica.is_applying_at_once = self.random.random() < 0.5
        self.wire: list[Message] = []
        self.isolated = ""
        self.leader_of_term: dict[int, str] = {}
        self.decided: dict[Index, Entry] = {}
        self.decided_last = 0
        self.known_commit: dict[tuple[str, int], Index] = {}
        self.known_membership = dict.fromkeys(self.names, membership)
        self.proposed = 0
        self.read_floor: dict[tuple[str, int, int], int] = {}
        self.reads_asked = 0
        self.loss = self.random.choice((0.0, 0.05, 0.2))

    def act(self) -> None:
        name = self.random.choice(self.names)
        replica = self.replicas[name]
        (kind,) = self.random.choices(self.kinds, self.weights)
        happen: Callable[[str, Replica], None] = getattr(self, "_" + kind)
        happen(name, replica)
        self.send(replica)
        self.check(name)

    def send(self, replica: Replica) -> None:
        self.wire.extend(replica.turn())

    # What may happen to one of them.

    def _deliver(self, name: str, replica: Replica) -> None:
        for _ in range(self.random.randrange(4)):
            self._deliver_one()

    def _deliver_one(self) -> None:
        if not self.wire:
            return
        # Mostly in order, sometimes not at all, sometimes twice.
        position = 0 if self.random.random() < 0.7 else self.random.randrange(len(self.wire))
        message = self.wire.pop(position)
        names = message.sender.peer_id, message.to.peer_id
        if self.random.random() < self.loss or self.isolated in names:
            return
        if self.random.random() < 0.05:
            self.wire.append(message)
        receiver = self.replicas[message.to.peer_id]
        receiver.raft.step(message)
        self.send(receiver)
        self.check(message.to.peer_id)

    def _write(self, name: str, replica: Replica) -> None:
        if replica.unwritten:
            self.wire.extend(replica.finish_write())

    def _apply(self, name: str, replica: Replica) -> None:
        if replica.unapplied:
            replica.apply_one()

    def _tick(self, name: str, replica: Replica) -> None:
        replica.raft.tick()

    def _propose(self, name: str, replica: Replica) -> None:
        try:
            self.proposed += 1
            replica.raft.propose(b"%d" % self.proposed)
        except ProposalDropped:
            pass

    def _read(self, name: str, replica: Replica) -> None:
        self.reads_asked += 1
        self.read_floor[name, replica.starts, self.reads_asked] = self.decided_last
        replica.raft.read_index(self.reads_asked)

    def _crash(self, name: str, replica: Replica) -> None:
        replica.crash()

    def _compact(self, name: str, replica: Replica) -> None:
        applied = replica.raft.log.applied
        # Only what is on disk, applied, and not about to be replaced by a snapshot under way.
        if applied > replica.disk.base[0] and not replica.unwritten:
            replica.disk.take_snapshot(applied, replica.raft.membership, keep=self.random.randrange(3))

    def _report(self, name: str, replica: Replica) -> None:
        replica.raft.report_unreachable(self._anyone())
        replica.raft.report_snapshot(self._anyone(), self.random.random() < 0.5)

    def _transfer(self, name: str, replica: Replica) -> None:
        try:
            replica.raft.transfer(self._anyone())
        except TransferRefused:
            pass

    def _lose_leader(self, name: str, replica: Replica) -> None:
        replica.raft.leader_connection_lost()

    def _campaign(self, name: str, replica: Replica) -> None:
        replica.raft.campaign()

    def _isolate(self, name: str, replica: Replica) -> None:
        self.isolated = self.random.choice((name, ""))

    def _change(self, name: str, replica: Replica) -> None:
        steps = tuple(
            Step(self.random.choice(tuple(StepKind)), self._anyone())
            for _ in range(self.random.choice((0, 1, 1, 2, 3)))
        )
        try:
            replica.raft.change_membership(MembershipChange(steps, self.random.choice(tuple(Transition))))
        except MembershipChangeRefused:
            pass

    def _anyone(self) -> Member:
        return member(self.random.choice(self.names))

    # What must hold.

    def check(self, name: str) -> None:
        replica = self.replicas[name]
        raft = replica.raft
        life = name, replica.starts
        assert raft.commit >= self.known_commit.get(life, 0), f"{name} takes a commit back"
        if raft.role is Role.LEADER:
            assert self.leader_of_term.setdefault(raft.term, name) == name, "two leaders in one term"
            if raft.commit > self.known_commit.get(life, 0) and raft.commit > self.decided_last:
                self._check_is_durable(replica)
        self.known_commit[life] = raft.commit
        self.known_membership[name] = raft.membership
        for entry in replica.applied:
            known = self.decided.setdefault(entry.index, entry)
            assert known == entry, f"{name} applied another entry {entry.index}"
        replica.applied.clear()
        self.decided_last = max(self.decided_last, raft.commit)
        if raft.role is Role.LEADER:
            self._check_leader_is_complete(replica)
        for read in replica.reads:
            floor = self.read_floor.pop((name, replica.starts, read.context), None)
            assert floor is None or read.index >= floor, f"{name} would serve a read of the past"
        replica.reads.clear()

    def _check_is_durable(self, replica: Replica) -> None:
        index, term = replica.raft.commit, replica.raft.log.term(replica.raft.commit)
        holding = {
            one.me: True
            for one in self.replicas.values()
            if one.disk.base[0] >= index or (one.disk.last_index() >= index and one.disk.term(index) == term)
        }
        # What was committed last may be the change that made the membership what it is.
        memberships = self.known_membership[replica.me.peer_id], replica.raft.membership
        assert VoteResult.WON in (joint_vote_result(one, holding) for one in memberships), "committed, not on the disks"

    def _check_leader_is_complete(self, replica: Replica) -> None:
        log = replica.raft.log
        # Others may have deposed it already: then it need not have what they decided.
        if replica.raft.term != max(self.leader_of_term):
            return
        assert log.last_index >= self.decided_last, "a leader lacks what was committed"
        for index in range(max(log.first_index, self.decided_last - 3), self.decided_last + 1):
            if index in self.decided:
                assert log.term(index) == self.decided[index].term, "a leader has another entry than was committed"

    def check_trust(self) -> None:
        for replica in self.replicas.values():
            progress = replica.raft.status().progress.values()
            assert not any(one.is_distrusted for one in progress), "an honest disk is taken for a restored one"

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
        self.isolated = ""
        goal, goal_term = 0, 0
        for _ in range(400):
            for name, replica in self.replicas.items():
                replica.is_applying_at_once = True
                while replica.unapplied:
                    replica.apply_one()
                replica.raft.tick()
                self.send(replica)
                while replica.unwritten:
                    self.wire.extend(replica.finish_write())
                    self.send(replica)
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


@pytest.mark.parametrize("seed", range(48))
def test_whatever_happens_nothing_committed_is_lost_or_changed(seed: int) -> None:
    chaos = Chaos(seed)
    for step in range(4000):
        chaos.act()
        if step % 200 == 0:
            chaos.check_logs_match()
            chaos.check_trust()
    chaos.recover()
    chaos.check_logs_match()
