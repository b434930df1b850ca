"""A dead voter's place goes to a learner that has caught up, one at a time (SAFETY 26)."""

from __future__ import annotations

import pytest

from tauraft.core.membership import MembershipChange, Step, StepKind
from tauraft.core.messages import Member
from tauraft.node.local_replica import LocalReplica, Whereabouts
from tauraft.node.replacement import DEAD_AFTER_NS, DeadVoters, Replacement
from tests.node.cluster import TIMING, Cluster

A, B, C, D, E = (Member(letter, 1) for letter in "abcde")
DEAD_AFTER = int(DEAD_AFTER_NS / 1e9 / TIMING.heartbeat_s)  # in heartbeats


def with_learners(*learners: Member, voters: str = "abc") -> tuple[Cluster, LocalReplica]:
    cluster = Cluster(voters, "".join(member.peer_id for member in learners)).start()
    for node in cluster.nodes.values():
        node.replica._max_voters = len(voters)
    leader = cluster.elect("a")
    cluster.tick(3)
    leader.driver.propose_change(MembershipChange(tuple(Step(StepKind.ADD_LEARNER, one) for one in learners)))
    cluster.tick(20)
    assert leader.driver.raft.membership.learners == frozenset(learners)
    return cluster, leader


def without(cluster: Cluster, *letters: str) -> None:
    cluster.drops = lambda sender, to, frame: sender in letters or to in letters


def test_a_learner_votes_in_the_place_of_a_dead_voter_which_comes_back_as_a_learner() -> None:
    cluster, leader = with_learners(D)
    without(cluster, "c")
    cluster.tick(DEAD_AFTER - 30)
    assert leader.driver.raft.membership.voters == {A, B, C}, "it may be back any moment"
    cluster.tick(60)
    membership = leader.driver.raft.membership
    assert (membership.voters, membership.learners, membership.is_joint) == ({A, B, D}, {C}, False)
    without(cluster)
    cluster.tick(30)
    assert leader.is_leader, "who comes back disturbs nobody"
    assert cluster["c"].applied_index == leader.applied_index
    assert cluster["c"].driver.raft.membership.voters == {A, B, D}


def test_a_voter_that_is_heard_now_and_then_stays_one() -> None:
    cluster, leader = with_learners(D)
    for _ in range(6):
        without(cluster, "c")
        cluster.tick(DEAD_AFTER // 2)
        without(cluster)
        cluster.tick(2)
    assert leader.driver.raft.membership.voters == {A, B, C}


def test_a_learner_that_is_away_or_behind_takes_nobodys_place() -> None:
    cluster, leader = with_learners(D)
    without(cluster, "c", "d")
    cluster.tick(2 * DEAD_AFTER)
    assert leader.driver.raft.membership.voters == {A, B, C}


def test_of_two_dead_voters_the_second_is_replaced_half_a_minute_after_the_first() -> None:
    voters = "abcfg"
    cluster, leader = with_learners(D, E, voters=voters)
    without(cluster, "f", "g")
    cluster.tick(DEAD_AFTER + 30)
    assert len(leader.driver.raft.membership.voters & {Member("f", 1), Member("g", 1)}) == 1
    cluster.tick(DEAD_AFTER - 60)
    assert len(leader.driver.raft.membership.voters & {Member("f", 1), Member("g", 1)}) == 1
    cluster.tick(120)
    assert leader.driver.raft.membership.voters == {A, B, C, D, E}


def test_who_shares_no_disk_with_the_other_voters_is_preferred() -> None:
    cluster, leader = with_learners(D, E)
    for letter, disk in (("a", "x"), ("b", "y"), ("c", "z"), ("d", "x"), ("e", "w")):
        cluster[letter].whereabouts = Whereabouts((), letter, f"machine of {disk}", disk)
    cluster.tick(30)
    without(cluster, "c")
    cluster.tick(DEAD_AFTER + 30)
    assert leader.driver.raft.membership.voters == {A, B, E}


@pytest.mark.parametrize(("heard", "is_replaced"), [((B, C), True), ((B,), False)])
def test_without_a_live_majority_nothing_is_changed(heard: tuple[Member, ...], is_replaced: bool) -> None:
    voters = [A, B, C, Member("f", 1), Member("g", 1)]
    dead = DeadVoters(0)
    for member in heard:
        dead.heard(member, DEAD_AFTER_NS)
    found = dead.choose(DEAD_AFTER_NS, A, voters, [D], lambda member: (member.peer_id, ""))
    assert found == (Replacement(Member("f", 1), D) if is_replaced else None)
