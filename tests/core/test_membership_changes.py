"""Membership changes seen from a running cluster (thesis 4): one at a time, in effect when applied, joint where needed."""

from __future__ import annotations

import pytest

from tauraft.core.membership import MembershipChange, Step, StepKind, Transition
from tauraft.core.messages import AppendReply
from tauraft.core.raft import MembershipChangeRefused, ProposalDropped
from tests.core.network import CLUSTER, Network, member, members, voters

A, B, C, D = members("abcd")


def add(who: str, kind: StepKind = StepKind.ADD_VOTER) -> MembershipChange:
    return MembershipChange((Step(kind, member(who)),))


def remove(who: str) -> MembershipChange:
    return MembershipChange((Step(StepKind.REMOVE, member(who)),))


def test_a_change_takes_effect_when_it_is_applied_not_when_it_is_appended() -> None:
    network = Network("abc")
    leader = network.elect("a")
    leader.change_membership(remove("c"))
    assert leader.membership == voters("abc")
    network.settle()
    assert leader.membership == voters("ab")
    assert network["b"].membership == voters("ab")


def test_a_new_member_learns_everything() -> None:
    network = Network("a")
    leader = network.elect("a")
    leader.propose(b"x")
    leader.change_membership(add("b"))
    network.settle()
    network.add("b", voters("a"))
    network.tick(3)
    assert network["b"].membership == voters("ab")
    assert network.replicas["b"].data == [b"x"]


def test_a_second_change_is_refused_until_the_first_is_applied() -> None:
    network = Network("abc")
    leader = network.elect("a")
    leader.change_membership(add("d", StepKind.ADD_LEARNER))
    with pytest.raises(MembershipChangeRefused) as refused:
        leader.change_membership(remove("c"))
    assert refused.value.reason == "pending"
    network.settle()
    leader.change_membership(remove("c"))


def test_a_new_leader_proposes_no_change_before_its_first_entry_is_applied() -> None:
    # The bug of 2015: a predecessor's change may be in the log, committed or not.
    network = Network("abc")
    network.elect("a").propose(b"x")
    network.settle()
    network.isolate("a")
    network["b"].forget_leader()
    network["c"].forget_leader()
    network.cut |= {("c", "b")}
    raft = network["b"]
    raft.become_follower(raft.term + 1, None)
    raft.become_leader()
    raft.log.applied -= 1
    with pytest.raises(MembershipChangeRefused) as refused:
        raft.change_membership(remove("c"))
    assert refused.value.reason == "pending"


def test_a_joint_change_leaves_by_itself() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.add("d", voters("abc"))
    leader.change_membership(MembershipChange((Step(StepKind.ADD_VOTER, D), Step(StepKind.REMOVE, C))))
    network.tick(5)
    assert leader.membership == voters("abd")
    assert network["d"].membership == voters("abd")


def test_an_explicit_joint_change_stays_until_told_to_leave() -> None:
    network = Network("abc")
    leader = network.elect("a")
    leader.change_membership(MembershipChange((Step(StepKind.REMOVE, C),), Transition.JOINT_EXPLICIT))
    network.tick(5)
    assert leader.membership.is_joint
    with pytest.raises(MembershipChangeRefused) as refused:
        leader.change_membership(remove("b"))
    assert refused.value.reason == "joint"
    leader.change_membership(MembershipChange())
    network.settle()
    assert leader.membership == voters("ab")
    with pytest.raises(MembershipChangeRefused) as refused:
        leader.change_membership(MembershipChange())
    assert refused.value.reason == "not-joint"


def test_a_removed_leader_hands_over_and_another_leads() -> None:
    network = Network("abc")
    network.elect("a").change_membership(remove("a"))
    network.settle()
    assert network.leaders() in (["b"], ["c"])
    assert network[network.leaders()[0]].membership == voters("bc")


def test_a_removed_leader_that_is_told_to_stay_takes_no_more_proposals() -> None:
    network = Network("abc", step_down_on_removal=False)
    leader = network.elect("a")
    leader.change_membership(remove("a"))
    network.settle()
    assert leader.is_leader
    with pytest.raises(ProposalDropped):
        leader.propose(b"x")


def test_only_a_leader_changes_the_membership() -> None:
    network = Network("abc")
    network.elect("a")
    with pytest.raises(MembershipChangeRefused) as refused:
        network["b"].change_membership(remove("c"))
    assert refused.value.reason == "not-leader"


def test_removing_a_dead_voter_commits_what_waited_for_it() -> None:
    network = Network("ab")
    leader = network.elect("a")
    leader.change_membership(remove("b"))
    index, _ = leader.propose(b"x")
    network.settle()
    assert leader.commit == index
    network.isolate("b")
    leader.propose(b"y")
    network.settle()
    assert leader.commit == index + 1


def test_a_change_that_makes_the_quorum_smaller_commits_what_a_majority_has_already() -> None:
    network = Network("abcd")
    leader = network.elect("a")
    network.isolate("c")
    network.isolate("d")
    change = leader.change_membership(remove("d"))
    index, _ = leader.propose(b"x")
    network.settle()
    assert leader.commit < change, "a and b are two of four"
    leader.step(AppendReply(C, A, leader.term, CLUSTER, True, change))
    network.settle()
    assert leader.commit == index, "and two of three"
