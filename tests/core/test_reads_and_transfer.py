"""Linearizable reads (thesis 6.4) and handing leadership over (3.10)."""

from __future__ import annotations

import pytest

from tauraft.core.membership import MembershipChange, Step, StepKind
from tauraft.core.messages import (
    Append,
    Heartbeat,
    HeartbeatReply,
    ReadIndexReply,
    ReadState,
    TimeoutNow,
    VoteRequest,
)
from tauraft.core.raft import ProposalDropped, TransferRefused
from tests.core.network import CLUSTER, Network, member

A, B, C = member("a"), member("b"), member("c")


def test_a_leader_answers_a_read_once_a_majority_confirmed_it() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("a")
    leader.read_index(7)
    network.settle()
    assert network.replicas["a"].reads == []
    network.heal()
    network.tick()
    assert network.replicas["a"].reads == [ReadState(7, leader.commit)]


def test_a_follower_asks_its_leader_and_gets_its_own_number_back() -> None:
    network = Network("abc")
    leader = network.elect("a")
    leader.propose(b"x")
    network.settle()
    network["b"].read_index(3)
    network["b"].read_index(4)
    network.settle()
    assert network.replicas["b"].reads == [ReadState(3, leader.commit), ReadState(4, leader.commit)]


def test_a_deposed_leader_answers_no_read() -> None:
    network = Network("abc", check_quorum=False)
    network.elect("a")
    network.isolate("a")
    network.elect("b")
    network["b"].propose(b"newer")
    network.settle()
    network["a"].read_index(1)
    network.settle()
    network.heal()
    network.tick(2)
    assert network.replicas["a"].reads == []
    assert not network["a"].is_leader


def test_a_new_leader_answers_reads_only_after_its_first_commit() -> None:
    network = Network("abc")
    network.drops = lambda message: isinstance(message, Append)
    leader = network.elect("a")
    leader.read_index(1)
    network.tick()
    assert network.replicas["a"].reads == []
    network.drops = lambda message: False
    network.tick(3)
    assert network.replicas["a"].reads == [ReadState(1, 1)]


def test_a_single_voter_answers_at_once() -> None:
    network = Network("a")
    network.elect("a").read_index(1)
    assert network["a"].ready().reads == (ReadState(1, 1),)


def test_a_learner_reads_through_the_leader_but_confirms_nothing() -> None:
    network = Network("ab", learners="c")
    network.elect("a")
    network["c"].read_index(9)
    network.settle()
    assert network.replicas["c"].reads == [ReadState(9, 1)]
    network.isolate("b")
    network["a"].read_index(1)
    network.settle()
    assert network.replicas["a"].reads == []


def test_a_late_answer_to_an_earlier_process_answers_no_read_of_this_one() -> None:
    network = Network("abc")
    network.elect("a")
    late: list[ReadIndexReply] = []

    def keep(message: object) -> bool:
        if isinstance(message, ReadIndexReply):
            late.append(message)
            return True
        return False

    network.drops = keep
    network["b"].read_index(1)
    network.settle()
    network.replicas["b"].crash()
    network.drops = lambda message: False
    network.tick()
    network.isolate("a")
    network["b"].read_index(1)
    network.settle()
    network["b"].step(late[0])
    network.settle()
    assert network.replicas["b"].reads == []


def test_many_reads_share_a_round() -> None:
    network = Network("abc")
    leader = network.elect("a")
    for context in range(1, 100):
        leader.read_index(context)
    network.delivered.clear()
    network.settle()
    assert len(network.replicas["a"].reads) == 99
    assert sum(isinstance(message, Heartbeat) for message in network.delivered) == 4


def test_a_doubled_or_older_heartbeat_reply_confirms_nothing_new() -> None:
    network = Network("abcde")
    leader = network.elect("a")
    leader.read_index(1)
    network.replicas["a"].turn()
    for _ in range(3):
        leader.step(HeartbeatReply(B, A, leader.term, CLUSTER, 1))
    leader.step(HeartbeatReply(C, A, leader.term, CLUSTER, 0))
    assert leader.ready().reads == ()
    leader.step(HeartbeatReply(C, A, leader.term, CLUSTER, 1))
    assert leader.ready().reads == (ReadState(1, 1),)


def test_without_a_leader_a_read_is_dropped() -> None:
    network = Network("abc")
    network["a"].read_index(1)
    assert not network["a"].has_ready()


def test_a_lease_index_is_given_only_where_leases_are_on_and_nothing_voids_them() -> None:
    network = Network("abc")
    assert network.elect("a").lease_index() is None
    network = Network("abc", lease_reads=True)
    leader = network.elect("a")
    assert leader.lease_index() == leader.commit
    leader.transfer(B)
    assert leader.lease_index() is None
    leader.tick()
    for _ in range(10):
        leader.tick()
    assert leader.lease_index() is None, "the TimeoutNow may still be under way"


def test_with_leases_a_restarted_voter_grants_no_vote_for_the_longest_time_out() -> None:
    network = Network("abc", lease_reads=True, pre_vote=False)
    network.elect("a")
    network.replicas["b"].crash()
    raft = network["b"]
    request = VoteRequest(C, B, 9, CLUSTER, 99, 9)
    for _ in range(10):
        raft.tick()
        raft.step(request)
        assert raft.vote != C


# Transfer.


def test_leadership_goes_to_a_voter_that_has_everything() -> None:
    network = Network("abc")
    network.elect("a").transfer(B)
    network.settle()
    assert network.leaders() == ["b"]
    assert network["a"].leader == B


def test_leadership_goes_to_a_lagging_voter_after_it_caught_up() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    for _ in range(5):
        leader.propose(b"x")
        network.settle()
    network.heal()
    leader.transfer(C)
    network.tick(2)
    assert network.leaders() == ["c"]
    assert network["c"].log.last_index >= 6


def test_proposals_are_refused_during_a_transfer_and_taken_again_after_it_was_given_up() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    leader.propose(b"x")
    network.settle()
    leader.transfer(C)
    with pytest.raises(ProposalDropped) as dropped:
        leader.propose(b"y")
    assert dropped.value.reason == "transferring"
    network.tick(10)
    assert leader.is_leader
    leader.propose(b"z")


def test_a_later_transfer_replaces_an_earlier_one() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    leader.propose(b"x")
    network.settle()
    leader.transfer(C)
    leader.transfer(B)
    network.settle()
    assert network.leaders() == ["b"]


def test_leadership_is_not_offered_to_learners_strangers_or_by_followers() -> None:
    network = Network("ab", learners="c")
    leader = network.elect("a")
    for to in (C, member("x"), member("b", 2)):
        with pytest.raises(TransferRefused):
            leader.transfer(to)
    with pytest.raises(TransferRefused):
        network["b"].transfer(A)
    leader.transfer(A)
    network.settle()
    assert network.leaders() == ["a"]


def test_a_transfer_passes_voters_that_still_hear_the_old_leader() -> None:
    network = Network("abc", check_quorum=True, pre_vote=True)
    network.elect("a")
    network.tick(2)
    network["a"].transfer(C)
    network.settle()
    assert network.leaders() == ["c"]


def test_a_learner_told_to_campaign_does_not() -> None:
    network = Network("ab", learners="c")
    network.elect("a")
    network["c"].step(TimeoutNow(A, C, network["a"].term, CLUSTER))
    network.settle()
    assert network.leaders() == ["a"]


def test_leadership_goes_to_a_voter_that_needs_a_snapshot_after_it_has_it() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    for _ in range(3):
        leader.propose(b"x")
        network.settle()
    one = network.replicas["a"]
    one.disk.take_snapshot(leader.log.applied, leader.membership)
    one.crash()
    network["b"].forget_leader()
    leader = network.elect("a")
    network.heal()
    network.tick(2)
    network["a"].transfer(C)
    network.tick(3)
    assert network.leaders() == ["c"]
    assert network.replicas["c"].disk.base[0] > 0


def test_a_newer_term_ends_a_transfer() -> None:
    network = Network("abc", check_quorum=False, pre_vote=False)
    leader = network.elect("a")
    network.isolate("c")
    leader.propose(b"x")
    network.settle()
    leader.transfer(C)
    leader.step(VoteRequest(B, A, 2, CLUSTER, 9, 1))
    network.settle()
    assert not leader.is_leader
    assert leader.status().transferee is None


def test_leadership_goes_there_and_back() -> None:
    network = Network("abc")
    network.elect("a").transfer(B)
    network.settle()
    network["b"].transfer(A)
    network.settle()
    assert network.leaders() == ["a"]
    assert network["a"].term == 3


def test_a_transfer_asked_for_twice_is_given_up_when_the_first_is() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    leader.propose(b"x")
    network.settle()
    leader.transfer(C)
    network.tick(6)
    leader.transfer(C)
    network.tick(4)
    assert leader.status().transferee is None


def test_a_transfer_to_one_that_becomes_a_learner_is_forgotten() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    leader.change_membership(MembershipChange((Step(StepKind.ADD_LEARNER, C),)))
    leader.transfer(C)
    network.settle()
    assert leader.membership.learners == {C}
    assert leader.status().transferee is None
    leader.propose(b"y")


def test_who_was_offered_leadership_and_fails_to_win_leaves_the_cluster_able_to_elect() -> None:
    network = Network("abc")
    network.elect("a")
    network.cut |= {("b", "a"), ("b", "c")}
    network["a"].transfer(B)
    network.settle()
    network.heal()
    network.tick(60)
    assert len(network.leaders()) == 1
