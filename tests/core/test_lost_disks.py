"""Disks that are not what they were: hard state lost, an older copy restored (SAFETY 14); and elections that learn of a change (25)."""

from __future__ import annotations

import pytest

from tauraft.core.log import AcknowledgedEntriesLost, HardStateLost
from tauraft.core.membership import MembershipChange, Step, StepKind, encode_change
from tauraft.core.messages import Append, Entry, EntryKind, HardState, Heartbeat, Role, VoteReply
from tests.core.network import CLUSTER, Disk, Network, Replica, members, voters

A, B, C, D, E = members("abcde")


def restored(network: Network, name: str, keep: int) -> Network:
    """``name`` comes back with an older copy of its disk."""
    disk = network.replicas[name].disk
    del disk.log[keep:]
    disk.hard_state = HardState(disk.hard_state.term, disk.hard_state.vote, min(disk.hard_state.commit, keep))
    network.replicas[name].crash()
    return network


def with_restored_b() -> Network:
    network = Network("abc")
    leader = network.elect("a")
    leader.propose(b"x")
    network.settle()
    leader.propose(b"y")
    network.settle()
    return restored(network, "b", 2)


def test_a_log_of_a_term_the_hard_state_does_not_know_is_refused() -> None:
    disk = Disk(voters("abc"), (1, 2))
    disk.hard_state = HardState(1, B, 0)
    with pytest.raises(HardStateLost):
        Replica(A, disk)


def test_a_member_that_refuses_what_it_acknowledged_counts_for_nothing_from_then_on() -> None:
    network = with_restored_b()
    leader = network["a"]
    network.isolate("c")
    index, _ = leader.propose(b"z")
    network.settle()
    assert leader.status().progress[B].is_distrusted
    assert leader.commit < index, "a's disk alone has it"
    leader.read_index(1)
    network.deliver([one for one in network.replicas["a"].turn() if one.to == C])
    assert network.replicas["a"].reads == []
    for _ in range(20):
        leader.tick()
    assert leader.role is not Role.LEADER, "it hears from no majority that it can trust"


def test_a_member_that_lost_what_it_acknowledged_stops_at_the_leaders_next_heartbeat() -> None:
    network = with_restored_b()
    network["a"].tick()
    with pytest.raises(AcknowledgedEntriesLost) as lost:
        network.settle()
    assert (lost.value.index, lost.value.last_index) == (3, 2)


def test_an_old_refusal_casts_no_doubt_on_who_has_acknowledged_since() -> None:
    network = Network("abc")
    leader = network.elect("a")
    held: list[Append] = []

    def hold(message: Append) -> bool:
        held.append(message)
        return True

    network.drops = lambda message: isinstance(message, Append) and message.to == B and hold(message)
    for _ in range(2):
        leader.propose(b"x")
        network.settle()
    network.drops = lambda message: False
    # The second overtakes the first, and is refused; the first is accepted, and its answer is the earlier to arrive.
    appends = [message for message in held if message.entries]
    network["b"].step(appends[1])
    refusal = network.replicas["b"].turn()
    network["b"].step(appends[0])
    network.deliver(network.replicas["b"].turn())
    network.deliver(refusal)
    network.settle()
    network.tick(2)
    assert not leader.status().progress[B].is_distrusted
    assert leader.status().progress[B].match == leader.log.last_index


def test_a_candidate_that_learns_of_a_committed_change_wins_by_no_vote_of_before() -> None:
    change = encode_change(MembershipChange((Step(StepKind.REMOVE, E),)))
    disk = Disk(voters("abcde"))
    disk.log = [Entry(1, 1, EntryKind.CONFIG, change)]
    disk.hard_state = HardState(1)
    one = Replica(A, disk)
    one.raft.campaign()
    one.turn()
    one.raft.step(VoteReply(B, A, 1, CLUSTER, False, True, commit=1, commit_term=1))
    one.raft.step(VoteReply(C, A, 2, CLUSTER, True, True))
    one.raft.step(VoteReply(D, A, 2, CLUSTER, True, True))
    assert one.raft.role is Role.FOLLOWER
    one.turn()
    assert one.raft.membership == voters("abcd")


def test_a_heartbeat_names_no_more_than_its_receiver_has() -> None:
    one = Replica(A, Disk(voters("abc"), (1, 1)))
    one.raft.step(Heartbeat(B, A, 1, CLUSTER, 2))
    assert one.raft.commit == 2
