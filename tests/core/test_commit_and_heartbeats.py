"""What a leader commits, by tables of matches and terms; what heartbeats say, and what their answers set going."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tauraft.core.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Role,
    VoteReply,
)
from tauraft.core.raft import Raft
from tests.core.network import CLUSTER, Disk, Network, Replica, member, members, voters

A, B, C, D, E = members("abcde")


def leader_of(names: str, terms: Sequence[int], term: int) -> Raft:
    """a leads ``term`` with a log of these terms, and the first entry of its own after them."""
    one = Replica(A, Disk(voters(names), terms), pre_vote=False, check_quorum=False)
    one.raft.become_follower(term - 1, None)
    one.raft.campaign()
    one.turn()
    for name in names[1:]:
        one.raft.step(VoteReply(member(name), A, term, CLUSTER, True))
    one.turn()
    assert one.raft.role is Role.LEADER
    return one.raft


@pytest.mark.parametrize(
    ("terms", "term", "matches", "commit"),
    [
        # a alone commits by its own disk.
        ((1,), 2, (), 2),
        # Three: the other's match is what counts, if it reaches the leader's own term.
        ((1, 1), 2, (3, 0), 3),
        ((1, 1), 2, (2, 0), 0),
        ((1, 1), 2, (2, 2), 0),
        ((1, 1), 2, (2, 3), 3),
        # Five: the third of them.
        ((1, 2), 3, (3, 0, 0, 0), 0),
        ((1, 2), 3, (3, 3, 0, 0), 3),
        ((1, 2), 3, (2, 2, 2, 2), 0),
        ((1, 2), 3, (3, 2, 3, 1), 3),
        # Four: three are needed.
        ((1,), 2, (2, 0, 0), 0),
        ((1,), 2, (2, 2, 0), 2),
        ((1,), 2, (1, 2, 1), 0),
    ],
)
def test_a_leader_commits_by_these_matches(
    terms: Sequence[int], term: int, matches: Sequence[int], commit: int
) -> None:
    names = "abcde"[: len(matches) + 1]
    raft = leader_of(names, terms, term)
    for name, match in zip(names[1:], matches, strict=True):
        if match:
            raft.step(AppendReply(member(name), A, term, CLUSTER, True, match))
    assert raft.commit == commit


def test_learners_do_not_count_for_a_commit() -> None:
    network = Network("abc", learners="de")
    leader = network.elect("a")
    network.isolate("b")
    network.isolate("c")
    index, _ = leader.propose(b"x")
    network.settle()
    assert leader.status().progress[D].match == leader.status().progress[E].match == index
    assert leader.commit < index


def test_a_heartbeat_names_no_more_than_what_is_committed_and_its_receiver_acknowledged() -> None:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    index, _ = leader.propose(b"x")
    network.settle()
    leader.tick()
    beats = {one.to: one.commit for one in leader.ready().messages_now if isinstance(one, Heartbeat)}
    assert beats == {B: index, C: index - 1}


@pytest.mark.parametrize(("commit", "wanted"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_a_heartbeat_moves_the_commit_index_forwards_only(commit: int, wanted: int) -> None:
    one = Replica(A, Disk(voters("abc")))
    entries = tuple(Entry(index, 1, EntryKind.BATCH, b"x") for index in (1, 2, 3))
    one.raft.step(Append(B, A, 1, CLUSTER, 0, 0, entries, 1))
    one.turn()
    one.raft.step(Heartbeat(B, A, 1, CLUSTER, commit))
    assert one.raft.commit == wanted
    assert [type(reply) for reply in one.turn()] == [HeartbeatReply]


def test_the_answer_to_a_heartbeat_of_one_that_lags_is_followed_by_an_append_and_of_one_that_does_not_by_nothing() -> (
    None
):
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    leader.propose(b"x")
    network.settle()
    one = network.replicas["a"]
    for who, wanted in ((C, [Append]), (B, [])):
        leader.step(HeartbeatReply(who, A, 1, CLUSTER))
        assert [type(message) for message in one.turn()] == wanted


def test_what_a_leader_sent_before_it_was_deposed_and_what_answers_it_change_nothing_after() -> None:
    network = Network("abc", check_quorum=False)
    network.elect("a").propose(b"x")
    late = network.replicas["a"].turn()
    network.isolate("a")
    network.elect("b")
    network.heal()
    network.tick(2)
    before = network["c"].status()
    network.deliver(late)
    network.settle()
    assert network["c"].status() == before
    assert network.leaders() == ["b"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2), (2, 0, 1), (0, 2, 1)])
def test_appends_that_arrive_in_any_order_end_in_one_log(order: Sequence[int]) -> None:
    network = Network("abc")
    leader = network.elect("a")
    sent: list[Append] = []
    for data in (b"x", b"y", b"z"):
        leader.propose(data)
        turned = network.replicas["a"].turn()
        sent += [one for one in turned if isinstance(one, Append) and one.to == B]
        network.deliver([one for one in turned if one.to == C])
    for place in order:
        network.deliver([sent[place]])
    network.settle()
    network.tick(2)
    assert network.replicas["b"].data == [b"x", b"y", b"z"]
    assert network.logs() == [[1, 1, 1, 1]] * 3
