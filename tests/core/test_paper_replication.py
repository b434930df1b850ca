"""The Raft paper's rules about the log (sections 5.3 and 5.4.2), one test a rule."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tauraft.core.messages import Append, AppendReply, Entry, EntryKind, HardState, VoteReply
from tests.core.network import CLUSTER, Disk, Network, Replica, members, voters

A, B, C = members("abc")


def entry(index: int, term: int, data: bytes = b"x") -> Entry:
    return Entry(index, term, EntryKind.BATCH, data)


def follower(terms: Sequence[int] = (), commit: int = 0) -> Replica:
    disk = Disk(voters("abc"), terms)
    disk.hard_state = HardState(terms[-1] if terms else 0, None, commit)
    one = Replica(A, disk, pre_vote=False)
    one.turn()
    return one


def leader_of(names: str) -> tuple[Network, Replica]:
    network = Network(names, pre_vote=False)
    network.elect("a")
    return network, network.replicas["a"]


def test_a_leader_sends_a_proposal_to_all_others_and_writes_it_itself() -> None:
    _, one = leader_of("abc")
    index, term = one.raft.propose(b"some data")
    ready = one.raft.ready()
    wanted = (Entry(index, term, EntryKind.BATCH, b"some data"),)
    assert ready.entries == wanted
    appends = [message for message in ready.messages_now if isinstance(message, Append)]
    assert [append.to for append in appends] == [B, C]
    for append in appends:
        assert (append.prev_index, append.prev_term, append.entries) == (index - 1, term, wanted)
        assert append.commit == index - 1


def test_a_leader_commits_what_a_majority_has() -> None:
    network, one = leader_of("abc")
    index, _ = one.raft.propose(b"some data")
    network.settle()
    assert one.raft.commit == index
    assert one.data == [b"some data"]


@pytest.mark.parametrize(
    ("names", "acknowledging", "is_committed"),
    [
        ("a", "", True),
        ("abc", "", False),
        ("abc", "b", True),
        ("abc", "bc", True),
        ("abcde", "", False),
        ("abcde", "b", False),
        ("abcde", "bc", True),
        ("abcde", "bcd", True),
        ("abcde", "bcde", True),
    ],
)
def test_an_entry_is_committed_once_a_majority_acknowledged_it(
    names: str, acknowledging: str, is_committed: bool
) -> None:
    network, one = leader_of(names)
    index, _ = one.raft.propose(b"some data")
    network.deliver([message for message in one.turn() if message.to.peer_id in acknowledging])
    network.deliver([message for name in acknowledging for message in network.replicas[name].turn()])
    assert (one.raft.commit >= index) is is_committed


@pytest.mark.parametrize("terms", [(), (2,), (1, 2), (1,)])
def test_committing_an_entry_commits_all_before_it_also_those_of_earlier_leaders(terms: Sequence[int]) -> None:
    network = Network("abc", logs={"a": terms}, pre_vote=False)
    network.elect("a")
    network["a"].propose(b"some data")
    network.settle()
    for replica in network.replicas.values():
        assert [one.index for one in replica.applied] == list(range(1, len(terms) + 3))
        assert replica.data[-1] == b"some data"


@pytest.mark.parametrize("commit", [1, 2, 3, 4])
def test_a_follower_commits_what_the_leader_says_is_committed(commit: int) -> None:
    one = follower()
    entries = tuple(entry(index, 1, b"%d" % index) for index in range(1, 5))
    one.raft.step(Append(B, A, 1, CLUSTER, 0, 0, entries, commit))
    one.turn()
    assert one.applied == list(entries[:commit])


@pytest.mark.parametrize(
    ("prev_term", "prev_index", "is_accepted"),
    [(0, 0, True), (1, 1, True), (2, 2, True), (1, 2, False), (3, 3, False), (2, 3, False)],
)
def test_a_follower_accepts_an_append_only_where_its_log_agrees(
    prev_term: int, prev_index: int, is_accepted: bool
) -> None:
    one = follower((1, 2), commit=0)
    one.raft.step(Append(B, A, 3, CLUSTER, prev_index, prev_term, (), 0))
    (reply,) = one.turn()
    assert isinstance(reply, AppendReply)
    assert reply.ok is is_accepted
    assert reply.match == prev_index


@pytest.mark.parametrize(
    ("prev_index", "prev_term", "entries", "terms", "written"),
    [
        (2, 2, ((3, 3),), (1, 2, 3), (3,)),
        (1, 1, ((2, 3), (3, 4)), (1, 3, 4), (3, 4)),
        (0, 0, ((1, 1),), (1, 2), ()),
        (0, 0, ((1, 3),), (3,), (3,)),
    ],
)
def test_a_follower_replaces_what_disagrees_and_keeps_what_agrees(
    prev_index: int,
    prev_term: int,
    entries: Sequence[tuple[int, int]],
    terms: Sequence[int],
    written: Sequence[int],
) -> None:
    one = follower((1, 2))
    sent = tuple(entry(index, term, b"%d" % index) for index, term in entries)
    one.raft.step(Append(B, A, 4, CLUSTER, prev_index, prev_term, sent, 0))
    ready = one.raft.ready()
    one.disk.write(ready)
    assert one.disk.terms()[: len(terms)] == list(terms)
    assert [one.term for one in ready.entries] == list(written)


_LEADER = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)


@pytest.mark.parametrize(
    "terms",
    [
        (1, 1, 1, 4, 4, 5, 5, 6, 6),
        (1, 1, 1, 4),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
        (1, 1, 1, 4, 4, 4, 4),
        (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
    ],
    ids="abcdef",
)
def test_a_leader_brings_every_log_of_figure_7_in_line(terms: Sequence[int]) -> None:
    network = Network("abc", logs={"a": _LEADER, "b": terms}, pre_vote=False)
    for name in "abc":
        network[name].become_follower(7, None)
    network.elect("a")
    network["a"].propose(b"more")
    network.settle()
    assert network.logs() == [[*_LEADER, 8, 8]] * 3
    assert network.replicas["a"].disk.log == network.replicas["b"].disk.log


@pytest.mark.parametrize(("acknowledged", "commit"), [(1, 0), (2, 0), (3, 3)])
def test_only_entries_of_the_own_term_are_committed_by_counting(acknowledged: int, commit: int) -> None:
    disk = Disk(voters("abc"), (1, 2))
    one = Replica(A, disk, pre_vote=False)
    one.raft.become_follower(2, None)
    one.raft.campaign()
    one.turn()
    one.raft.step(VoteReply(B, A, 3, CLUSTER, True))
    one.turn()
    one.raft.step(AppendReply(B, A, 3, CLUSTER, True, acknowledged))
    assert one.raft.commit == commit


def test_an_acknowledgement_leaves_only_after_the_entries_are_on_disk() -> None:
    one = follower()
    one.raft.step(Append(B, A, 1, CLUSTER, 0, 0, (entry(1, 1),), 1))
    ready = one.raft.ready()
    assert ready.messages_now == ()
    assert [type(message) for message in ready.messages_after_persist] == [AppendReply]
    assert ready.committed == (), "committed, but not on disk here yet (SAFETY 12)"
    one.raft.persisted(ready.number)
    assert one.raft.ready().committed == (entry(1, 1),)


def test_the_commit_index_of_an_append_is_saved_with_its_entries() -> None:
    one = follower()
    one.raft.step(Append(B, A, 1, CLUSTER, 0, 0, (entry(1, 1),), 1))
    ready = one.raft.ready()
    assert ready.entries == (entry(1, 1),)
    assert ready.hard_state == HardState(1, None, 1)


def test_a_leaders_own_disk_counts_only_once_it_has_written() -> None:
    network, one = leader_of("abc")
    one.is_writing_at_once = False
    index, _ = one.raft.propose(b"some data")
    network.isolate("c")
    network.settle()
    assert one.raft.commit == index - 1, "b has it, and the leader not yet"
    network.heal()
    one.finish_write()
    assert one.raft.commit == index


def test_a_leader_whose_disk_is_slow_commits_by_the_others_but_does_not_apply() -> None:
    network, one = leader_of("abc")
    one.is_writing_at_once = False
    index, _ = one.raft.propose(b"some data")
    network.settle()
    assert one.raft.commit == index
    assert one.data == []
    while one.unwritten:
        one.finish_write()
    network.settle()
    assert one.data == [b"some data"]
