"""Pre-vote, check-quorum, learners and forgetting: elections that disturb nobody (thesis 4.2.3, 6.2, 9.6)."""

from __future__ import annotations

from tauraft.core.messages import Append, AppendReply, Entry, EntryKind, Heartbeat, Role, VoteReply, VoteRequest
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
