"""Pre-vote, check-quorum, learners and forgetting: elections that disturb nobody (thesis 4.2.3, 6.2, 9.6)."""

from __future__ import annotations

import pytest

from tauraft.core.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    InstallSnapshot,
    Role,
    SnapshotMeta,
    VoteReply,
    VoteRequest,
)
from tests.core.network import CLUSTER, Disk, Network, Replica, member, members, voters

A, B, C = members("abc")


def test_a_cut_off_member_does_not_raise_its_term_and_comes_back_quietly() -> None:
    network = Network("abc")
    network.elect("a")
    network.isolate("c")
    network.tick(100)
    assert network["c"].term == 1
    network.heal()
    network.tick(20)
    assert network.leaders() == ["a"]
    assert network["a"].term == 1


def test_without_pre_vote_a_returning_member_forces_one_election() -> None:
    network = Network("abc", pre_vote=False)
    network.elect("a")
    network.isolate("c")
    network.tick(60)
    grown = network["c"].term
    assert grown > 1
    network.heal()
    network.tick(60)
    assert len(network.leaders()) == 1
    assert network[network.leaders()[0]].term >= grown


def test_a_leader_that_hears_from_no_majority_steps_down() -> None:
    network = Network("abc")
    network.elect("a")
    network.isolate("a")
    network.tick(20, "a")
    assert network["a"].role is not Role.LEADER


def test_a_leader_that_hears_from_a_majority_stays() -> None:
    network = Network("abcde")
    network.elect("a")
    network.isolate("d")
    network.isolate("e")
    network.tick(50)
    assert network.leaders() == ["a"]


def test_a_removed_member_does_not_disturb_the_others() -> None:
    network = Network("abc", pre_vote=False)
    network.elect("a")
    network.tick(1)
    stranger = member("z")
    network["b"].step(VoteRequest(stranger, B, 99, CLUSTER, 999, 98))
    network["a"].step(VoteRequest(stranger, A, 99, CLUSTER, 999, 98))
    network["a"].step(AppendReply(stranger, A, 99, CLUSTER, False, 0))
    network["a"].step(VoteReply(stranger, A, 99, CLUSTER, False))
    network.settle()
    assert network.leaders() == ["a"]
    assert network["b"].term == 1


def test_a_learner_never_campaigns() -> None:
    network = Network("a", learners="b")
    network.tick(100, "b")
    network["b"].campaign()
    assert network["b"].role is Role.FOLLOWER


def test_a_learner_that_is_asked_votes() -> None:
    network = Network("ac", learners="b")
    network["b"].step(VoteRequest(C, B, 1, CLUSTER, 0, 0))
    (reply,) = network.replicas["b"].turn()
    assert isinstance(reply, VoteReply)
    assert reply.granted


def test_no_campaign_with_a_committed_membership_change_not_yet_applied() -> None:
    disk = Disk(voters("abc"))
    one = Replica(A, disk)
    change = Entry(1, 1, EntryKind.CONFIG, b"")
    one.raft.step(Append(B, A, 1, CLUSTER, 0, 0, (change,), 1))
    ready = one.raft.ready()
    disk.write(ready)
    one.raft.persisted(ready.number)
    one.raft.ready()
    one.tick(40)
    assert one.raft.role is Role.FOLLOWER
    one.raft.applied(1)
    one.tick(40)
    role = one.raft.status().role
    assert role is Role.PRE_CANDIDATE


def test_who_lost_the_leaders_connection_asks_at_once_and_wins_only_if_the_others_lost_it_too() -> None:
    network = Network("abc")
    network.elect("a")
    network["b"].leader_connection_lost()
    network.settle()
    assert network.leaders() == ["a"], "c still hears it"
    network.isolate("a")
    network["b"].leader_connection_lost()
    network["c"].leader_connection_lost()
    network.settle()
    assert len(network.leaders()) == 2, "a has not noticed yet"
    assert network["b"].term == network["c"].term == 2


@pytest.mark.parametrize("first", ["b", "c"])
def test_who_noticed_first_and_has_the_longer_log_wins_without_waiting(first: str) -> None:
    network = Network("abc")
    network.elect("a")
    network.isolate("c")
    network["a"].propose(b"only b has it")
    network.settle()
    network.heal()
    network.isolate("a")
    second = "c" if first == "b" else "b"
    network[first].leader_connection_lost()
    network.settle()
    assert network.leaders() == ["a"], "the other one still counts on the leader"
    network[second].leader_connection_lost()
    network.settle()
    assert sorted(network.leaders()) == ["a", "b"]


def test_with_leases_a_closed_connection_means_nothing() -> None:
    network = Network("abc", lease_reads=True)
    network.elect("a")
    network["b"].leader_connection_lost()
    network["b"].forget_leader()
    assert network["b"].leader == A
    assert not network["b"].has_ready()


def test_who_forgot_its_leader_grants_a_pre_vote_and_finds_the_leader_again() -> None:
    network = Network("abc")
    network.elect("a")
    network["b"].forget_leader()
    network["b"].step(VoteRequest(C, B, 2, CLUSTER, 1, 1, True))
    (reply,) = network.replicas["b"].turn()
    assert isinstance(reply, VoteReply)
    assert reply.granted
    network.tick(1)
    assert network["b"].leader == A


def test_a_candidate_stuck_in_a_newer_term_is_heard_by_the_leader() -> None:
    network = Network("abc")
    network.elect("a")
    network["c"].become_follower(5, None)
    network["c"].step(Heartbeat(A, C, 1, CLUSTER, 0))
    network.settle()
    network.tick(60)
    assert len(network.leaders()) == 1
    assert network[network.leaders()[0]].term > 5


def test_an_incarnation_that_may_not_vote_neither_votes_nor_campaigns() -> None:
    one = Replica(A, Disk(voters("abc")))
    one.raft.may_vote = False
    one.tick(40)
    one.raft.step(VoteRequest(B, A, 1, CLUSTER, 9, 9))
    assert one.turn() == []
    assert one.raft.role is Role.FOLLOWER
    assert one.raft.term == 0


def test_of_two_that_ask_at_the_same_instant_one_yields_and_one_leads_at_once() -> None:
    network = Network("abc")
    network.elect("a")
    network.isolate("a")
    network["b"].forget_leader()
    network["c"].forget_leader()
    network["b"].campaign()
    network["c"].campaign()
    network.settle()
    assert [name for name in network.leaders() if name != "a"] == ["b"]


# Dueling candidates, and clusters that change over to pre-vote.


def test_of_two_candidates_in_turn_the_one_with_less_log_gives_way_and_follows() -> None:
    network = Network("abc", pre_vote=False, check_quorum=False)
    network.cut |= {("a", "c"), ("c", "a")}
    network["a"].campaign()
    network["c"].campaign()
    network.settle()
    assert network["a"].role is Role.LEADER
    assert network["c"].role is Role.CANDIDATE, "b has voted, and a is out of reach"
    network.heal()
    # c asks in a newer term, with less log than both: a steps down, nobody votes for c.
    network["c"].campaign()
    network.settle()
    assert [network[name].role for name in "abc"] == [Role.FOLLOWER] * 3
    assert {network[name].term for name in "abc"} == {2}
    network.elect("a")
    assert network["c"].leader == A


def test_of_two_pre_candidates_in_turn_the_one_with_less_log_raises_no_term() -> None:
    network = Network("abc", check_quorum=False)
    network.cut |= {("a", "c"), ("c", "a")}
    network["a"].campaign()
    network.settle()
    network["c"].campaign()
    network.settle()
    assert network["c"].role is Role.FOLLOWER, "refused by b"
    network.heal()
    network["c"].campaign()
    network.settle()
    assert network.leaders() == ["a"]
    assert {network[name].term for name in "abc"} == {1}


def mixed() -> Network:
    """c has not been restarted with pre-vote yet, and is ahead in term from its time alone."""
    network = Network("abc")
    replica = network.replicas["c"]
    replica.options = {**replica.options, "pre_vote": False}
    replica.crash()
    network.elect("a")
    network.isolate("c")
    network["a"].propose(b"x")
    network.settle()
    network.tick(60)
    assert network["c"].role is Role.CANDIDATE
    assert network["c"].term > 2
    return network


def test_while_some_have_no_pre_vote_a_member_ahead_in_term_and_behind_in_log_stops_nobody() -> None:
    network = mixed()
    network.heal()
    network.tick(60)
    assert len(network.leaders()) == 1
    assert len({network[name].term for name in "abc"}) == 1
    assert network["c"].log.last_index == network["a"].log.last_index


def test_a_member_ahead_in_term_that_is_restarted_with_pre_vote_is_brought_in() -> None:
    network = mixed()
    replica = network.replicas["c"]
    replica.options = {**replica.options, "pre_vote": True}
    replica.crash()
    network.heal()
    network.tick(60)
    assert len(network.leaders()) == 1
    assert len({network[name].term for name in "abc"}) == 1


# Writes that end after the term they were for.


def test_a_vote_for_oneself_that_reaches_the_disk_after_the_term_has_passed_counts_for_nothing() -> None:
    one = Replica(A, Disk(voters("abc")), pre_vote=False)
    one.is_writing_at_once = False
    one.raft.campaign()
    one.turn()
    one.raft.campaign()
    one.turn()
    assert one.raft.term == 2
    one.raft.step(VoteReply(B, A, 2, CLUSTER, True))
    one.finish_write()
    assert one.raft.role is Role.CANDIDATE, "what is written is the vote in term 1"
    one.finish_write()
    role = one.raft.status().role
    assert role is Role.LEADER


def test_entries_that_reach_the_disk_after_the_leader_was_deposed_commit_nothing() -> None:
    network = Network("abc", check_quorum=False)
    network.elect("a")
    one = network.replicas["a"]
    one.is_writing_at_once = False
    one.raft.propose(b"x")
    one.turn()
    one.raft.become_follower(2, None)
    one.turn()
    while one.unwritten:
        one.finish_write()
    assert one.raft.log.stable == 2
    assert one.raft.commit == 1


# Who disrupts, and who does not.


def test_a_candidate_in_a_newer_term_that_a_leader_cannot_ignore_deposes_it_once_and_then_follows() -> None:
    network = Network("abc", pre_vote=False)
    network.elect("a")
    network["c"].become_follower(4, None)
    network.settle()
    network["a"].propose(b"x")
    network.settle()
    # c refuses what is of an older term: a hears of the newer one, and has to be elected in a still newer.
    assert network["a"].role is Role.FOLLOWER
    assert network["a"].term == 4
    network.tick(60)
    assert len(network.leaders()) == 1
    assert network["c"].log.last_index == network["a"].log.last_index


def test_a_snapshot_that_leaves_its_receiver_out_is_taken_and_makes_no_candidate_of_it() -> None:
    """It may be from before it was added; the log that follows says so."""
    one = Replica(member("d"), Disk(voters("abc")))
    meta = SnapshotMeta(5, 1, voters("abc"))
    one.raft.step(InstallSnapshot(A, member("d"), 1, CLUSTER, meta))
    one.turn()
    assert one.raft.commit == 5
    one.tick(60)
    assert one.raft.role is Role.FOLLOWER
