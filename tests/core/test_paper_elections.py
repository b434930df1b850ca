"""The Raft paper's rules about terms, leaders and votes (sections 5.1, 5.2, 5.4.1), one test a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest

from tauraft.core.messages import (
    Append,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    Role,
    VoteReply,
    VoteRequest,
)
from tauraft.core.raft import Raft, RaftConfig
from tests.core.network import CLUSTER, Disk, Network, Replica, member, members, voters

A, B, C, D, E = members("abcde")


def replica(names: str = "abc", terms: Sequence[int] = (), seed: int = 1) -> Replica:
    return Replica(A, Disk(voters(names), terms), seed, pre_vote=False, check_quorum=False)


def as_follower() -> Replica:
    one = replica()
    one.raft.step(Heartbeat(B, A, 1, CLUSTER, 0))
    return one


def as_candidate() -> Replica:
    one = replica()
    one.raft.campaign()
    return one


def as_leader() -> Replica:
    one = replica()
    one.raft.campaign()
    one.turn()
    one.raft.step(VoteReply(B, A, 1, CLUSTER, True))
    assert one.raft.is_leader
    one.turn()
    return one


Make = Callable[[], Replica]


@pytest.mark.parametrize("make", [as_follower, as_candidate, as_leader])
def test_a_newer_term_makes_anyone_a_follower_in_it(make: Make) -> None:
    one = make()
    one.raft.step(Append(C, A, 2, CLUSTER, 0, 0, (), 0))
    assert (one.raft.role, one.raft.term, one.raft.leader) == (Role.FOLLOWER, 2, C)


@pytest.mark.parametrize("make", [as_follower, as_candidate, as_leader])
def test_a_message_of_an_older_term_changes_nothing(make: Make) -> None:
    one = make()
    one.raft.step(Heartbeat(B, A, 5, CLUSTER, 0))
    one.turn()
    before = one.raft.status()
    entry = Entry(1, 4, EntryKind.BATCH, b"old")
    one.raft.step(Append(C, A, 4, CLUSTER, 0, 0, (entry,), 1))
    one.raft.step(VoteReply(C, A, 4, CLUSTER, True))
    assert one.turn() == []
    assert one.raft.status() == before


def test_everyone_starts_as_follower() -> None:
    assert replica().raft.role is Role.FOLLOWER


def test_a_leader_sends_heartbeats_to_all_others() -> None:
    one = as_leader()
    one.tick(1)
    beats = [message for message in one.turn() if isinstance(message, Heartbeat)]
    assert [(beat.to, beat.term) for beat in beats] == [(B, 1), (C, 1)]


@pytest.mark.parametrize("make", [as_follower, as_candidate])
def test_who_hears_from_no_leader_starts_an_election(make: Make) -> None:
    one = make()
    one.turn()
    one.tick(20)
    requests = [message for message in one.turn() if isinstance(message, VoteRequest)]
    assert one.raft.role is Role.CANDIDATE
    assert one.raft.term == 2
    assert one.raft.vote == A
    assert {request.to for request in requests} == {B, C}
    assert {request.term for request in requests} == {2}


@pytest.mark.parametrize(
    ("names", "granted", "refused", "role"),
    [
        ("a", "", "", Role.LEADER),
        ("abc", "bc", "", Role.LEADER),
        ("abc", "b", "", Role.LEADER),
        ("abc", "", "", Role.CANDIDATE),
        ("abc", "", "b", Role.CANDIDATE),
        ("abc", "", "bc", Role.FOLLOWER),
        ("abcde", "bcde", "", Role.LEADER),
        ("abcde", "bc", "de", Role.LEADER),
        ("abcde", "b", "", Role.CANDIDATE),
        ("abcde", "b", "cd", Role.CANDIDATE),
        ("abcde", "b", "cde", Role.FOLLOWER),
    ],
)
def test_a_majority_of_votes_decides_an_election_in_one_round(
    names: str, granted: str, refused: str, role: Role
) -> None:
    one = replica(names)
    one.raft.campaign()
    one.turn()
    for name in granted + refused:
        one.raft.step(VoteReply(member(name), A, 1, CLUSTER, name in granted))
    assert one.raft.role is role
    assert one.raft.term == 1


def test_one_voter_counts_once() -> None:
    one = replica("abcde")
    one.raft.campaign()
    one.turn()
    for _ in range(3):
        one.raft.step(VoteReply(B, A, 1, CLUSTER, True))
    assert one.raft.role is Role.CANDIDATE


@pytest.mark.parametrize(
    ("vote", "asker", "is_granted"),
    [(None, B, True), (None, C, True), (B, B, True), (C, C, True), (B, C, False), (C, B, False)],
)
def test_a_follower_votes_once_a_term(vote: object, asker: object, is_granted: bool) -> None:
    disk = Disk(voters("abc"))
    disk.hard_state = HardState(1, vote)  # type: ignore[arg-type]
    one = Replica(A, disk, pre_vote=False)
    one.raft.step(VoteRequest(asker, A, 1, CLUSTER, 0, 0))  # type: ignore[arg-type]
    (reply,) = one.turn()
    assert isinstance(reply, VoteReply)
    assert reply.granted is is_granted


@pytest.mark.parametrize("term", [1, 2])
def test_a_candidate_follows_a_leader_of_its_own_term_or_a_newer_one(term: int) -> None:
    one = as_candidate()
    one.raft.step(Append(C, A, term, CLUSTER, 0, 0, (), 0))
    assert (one.raft.role, one.raft.term, one.raft.leader) == (Role.FOLLOWER, term, C)


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_election_timeouts_take_every_value_between_one_and_two_times_the_shortest(role: Role) -> None:
    one = replica()
    seen: set[int] = set()
    for _ in range(500):
        if role is Role.FOLLOWER:
            one.raft.step(Heartbeat(B, A, one.raft.term + 1, CLUSTER, 0))
        before, ticks = one.raft.term, 0
        while one.raft.term == before:
            one.raft.tick()
            ticks += 1
        seen.add(ticks)
    assert seen == set(range(10, 20))


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_election_timeouts_of_several_replicas_rarely_conflict(role: Role) -> None:
    rafts = [
        Raft(
            RaftConfig(one, CLUSTER, pre_vote=False),
            HardState(),
            voters("abcde"),
            Disk(voters("abcde")),
            Random(seed),
        )
        for seed, one in enumerate(members("abcde"))
    ]
    rounds, conflicts = 1000, 0
    for _ in range(rounds):
        term = max(raft.term for raft in rafts) + 1
        for raft in rafts:
            raft.become_follower(term, None)
            if role is Role.CANDIDATE:
                raft.campaign()
        first = 0
        before = [raft.term for raft in rafts]
        while not first:
            for raft in rafts:
                raft.tick()
            first = sum(raft.term > known for raft, known in zip(rafts, before, strict=True))
        conflicts += first > 1
    assert conflicts / rounds < 0.4


@pytest.mark.parametrize("terms", [(1,), (1, 2)])
def test_a_vote_request_names_the_end_of_the_candidates_log(terms: Sequence[int]) -> None:
    one = replica(terms=terms)
    one.tick(20)
    requests = [message for message in one.turn() if isinstance(message, VoteRequest)]
    assert [request.to for request in requests] == [B, C]
    for request in requests:
        assert request.term == terms[-1] + 1
        assert (request.last_index, request.last_term) == (len(terms), terms[-1])


@pytest.mark.parametrize(
    ("terms", "last_term", "last_index", "is_granted"),
    [
        ((1,), 1, 1, True),
        ((1,), 1, 2, True),
        ((1, 1), 1, 1, False),
        ((1,), 2, 1, True),
        ((1,), 2, 2, True),
        ((1, 1), 2, 1, True),
        ((2,), 1, 1, False),
        ((2,), 1, 2, False),
        ((2, 1), 1, 1, False),
    ],
)
def test_a_voter_refuses_who_has_less_log_than_itself(
    terms: Sequence[int], last_term: int, last_index: int, is_granted: bool
) -> None:
    one = replica(terms=sorted(terms))
    one.raft.step(VoteRequest(B, A, 3, CLUSTER, last_index, last_term))
    (reply,) = one.turn()
    assert isinstance(reply, VoteReply)
    assert reply.granted is is_granted


def test_a_vote_leaves_only_after_it_is_on_disk() -> None:
    one = replica()
    one.raft.step(VoteRequest(B, A, 1, CLUSTER, 0, 0))
    ready = one.raft.ready()
    assert ready.messages_now == ()
    assert ready.hard_state == HardState(1, B, 0)
    assert ready.must_sync
    assert [type(message) for message in ready.messages_after_persist] == [VoteReply]


def test_a_candidates_own_vote_counts_only_once_it_is_on_disk() -> None:
    one = replica()
    one.is_writing_at_once = False
    one.raft.campaign()
    one.turn()
    one.raft.step(VoteReply(B, A, 1, CLUSTER, True))
    assert one.raft.role is Role.CANDIDATE
    one.finish_write()
    assert one.raft.role is not Role.CANDIDATE


def test_a_vote_survives_a_restart() -> None:
    one = replica()
    one.raft.step(VoteRequest(B, A, 1, CLUSTER, 0, 0))
    one.turn()
    one.crash()
    one.raft.step(VoteRequest(C, A, 1, CLUSTER, 9, 1))
    (reply,) = one.turn()
    assert isinstance(reply, VoteReply)
    assert not reply.granted


def test_of_two_candidates_of_one_term_at_most_one_wins() -> None:
    network = Network("abc", pre_vote=False)
    network["a"].campaign()
    network["b"].campaign()
    network.settle()
    assert len(network.leaders()) == 1


def test_messages_of_another_cluster_or_to_another_incarnation_are_dropped() -> None:
    one = replica()
    strays: list[Message] = [
        Heartbeat(B, A, 7, b"another", 0),
        Heartbeat(B, member("a", 2), 7, CLUSTER, 0),
        VoteRequest(B, A, 7, b"another", 0, 0),
    ]
    for stray in strays:
        one.raft.step(stray)
    assert one.raft.term == 0
    assert one.turn() == []


def test_the_answer_to_a_newer_terms_first_heartbeat_leaves_after_the_term_is_on_disk_and_later_ones_at_once() -> None:
    one = replica()
    one.raft.step(Heartbeat(B, A, 1, CLUSTER, 0))
    ready = one.raft.ready()
    assert ready.messages_now == ()
    assert [type(message) for message in ready.messages_after_persist] == [HeartbeatReply]
    one.raft.step(Heartbeat(B, A, 1, CLUSTER, 0))
    assert one.raft.ready().messages_now == (), "the write is under way"
    one.raft.persisted(2)
    one.raft.step(Heartbeat(B, A, 1, CLUSTER, 0))
    assert [type(message) for message in one.raft.ready().messages_now] == [HeartbeatReply]
