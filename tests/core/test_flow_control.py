"""How much a leader sends: probing, windows, limits, snapshots (thesis 10.2; the log's back-off of 5.3)."""

from __future__ import annotations

from typing import Any

import pytest

from tauraft.core.messages import Append, AppendReply, Entry, EntryKind, InstallSnapshot, SnapshotMeta
from tauraft.core.progress import ProgressState
from tauraft.core.raft import ProposalDropped
from tests.core.network import CLUSTER, Disk, Network, Replica, members, voters

A, B, C = members("abc")


def appends(messages: object, to: object = B) -> list[Append]:
    return [one for one in messages if isinstance(one, Append) and one.to == to]  # type: ignore[attr-defined]


def test_proposals_between_two_readies_leave_as_one_append() -> None:
    network = Network("abc")
    leader = network.elect("a")
    for _ in range(50):
        leader.propose(b"x")
    (append,) = appends(leader.ready().messages_now)
    assert len(append.entries) == 50


def test_an_append_carries_no_more_bytes_than_allowed_but_always_one_entry() -> None:
    network = Network("abc", max_append_bytes=10)
    leader = network.elect("a")
    for size in (4, 4, 4, 100, 4):
        leader.propose(b"x" * size)
    sizes = [[len(one.data) for one in append.entries] for append in appends(leader.ready().messages_now)]
    assert sizes == [[4, 4], [4], [100], [4]]


@pytest.mark.parametrize(
    ("option", "limit"), [("max_inflight", 3), ("max_inflight_bytes", 3)], ids=["messages", "bytes"]
)
def test_a_full_window_holds_back_until_something_is_acknowledged(option: str, limit: int) -> None:
    options: dict[str, Any] = {option: limit}
    network = Network("abc", **options)
    leader = network.elect("a")
    for _ in range(5):
        leader.propose(b"x")
        network.replicas["a"].turn()
    progress = leader.status().progress[B]
    assert (progress.inflight, progress.is_paused, progress.next_index) == (3, True, 5)
    leader.step(AppendReply(B, A, 1, CLUSTER, True, 2))
    (append,) = appends(network.replicas["a"].turn())
    assert append.prev_index == 4


def test_a_full_window_whose_messages_were_all_lost_recovers_by_heartbeats() -> None:
    network = Network("abc", max_inflight=2)
    leader = network.elect("a")
    network.isolate("b")
    for _ in range(6):
        leader.propose(b"x")
        network.settle()
    network.heal()
    network.tick(3)
    assert leader.status().progress[B].match == leader.log.last_index


def test_while_probing_one_append_at_a_time_is_under_way() -> None:
    network = Network("abc")
    leader = network.elect("a")
    leader.report_unreachable(B)
    assert leader.status().progress[B].state is ProgressState.PROBE
    sent = 0
    for _ in range(5):
        leader.propose(b"x")
        sent += len(appends(network.replicas["a"].turn()))
    assert sent == 1
    network.tick(2)
    assert leader.status().progress[B].state is ProgressState.REPLICATE


def test_a_caught_up_member_that_was_unreachable_returns_to_replication_by_a_heartbeat() -> None:
    network = Network("abc")
    leader = network.elect("a")
    leader.report_unreachable(B)
    network.tick(1)
    assert leader.status().progress[B].state is ProgressState.REPLICATE


def test_too_much_uncommitted_is_refused_until_it_commits_but_one_of_any_size_fits() -> None:
    network = Network("abc", max_uncommitted_bytes=100)
    leader = network.elect("a")
    leader.propose(b"x" * 1000)
    with pytest.raises(ProposalDropped) as dropped:
        leader.propose(b"x")
    assert dropped.value.reason == "overloaded"
    leader.propose(b"")
    network.settle()
    leader.propose(b"x" * 1000)


def test_a_follower_takes_no_proposals() -> None:
    network = Network("abc")
    network.elect("a")
    with pytest.raises(ProposalDropped) as dropped:
        network["b"].propose(b"x")
    assert dropped.value.reason == "not-leader"


def test_logs_that_part_are_brought_in_line_with_at_most_one_probe_a_term() -> None:
    network = Network(
        "abc", logs={"a": (1, *([3] * 300), 5), "b": (1, *([2] * 400)), "c": (1, *([3] * 300), 5)}, pre_vote=False
    )
    for name in "abc":
        network[name].become_follower(6, None)
    network.elect("a")
    refusals = [one for one in network.delivered if isinstance(one, AppendReply) and not one.ok]
    assert len(refusals) <= 3
    assert network.logs()[1] == network.logs()[0]


def test_old_refusals_change_nothing() -> None:
    network = Network("abc")
    leader = network.elect("a")
    leader.propose(b"x")
    network.settle()
    before = leader.status()
    leader.step(AppendReply(B, A, 1, CLUSTER, False, 0, 0, 0))
    leader.step(AppendReply(B, A, 1, CLUSTER, True, 1))
    leader.step(AppendReply(B, A, 1, CLUSTER, True, 99))
    assert leader.status() == before


def test_a_shorter_append_that_comes_late_cuts_nothing_off() -> None:
    network = Network("abc")
    leader = network.elect("a")
    for _ in range(3):
        leader.propose(b"x")
        network.settle()
    first: Entry = network.replicas["b"].disk.log[1]
    network["b"].step(Append(A, B, 1, CLUSTER, 1, 1, (first,), 1))
    assert network["b"].log.last_index == 4


def test_a_shorter_append_that_comes_late_cuts_off_nothing_that_is_not_committed_yet_either() -> None:
    one = Replica(B, Disk(voters("abc")))
    entries = tuple(Entry(index, 1, EntryKind.BATCH, b"x") for index in (1, 2, 3))
    for count in (3, 1):
        one.raft.step(Append(A, B, 1, CLUSTER, 0, 0, entries[:count], 0))
        one.turn()
    assert one.disk.terms() == [1, 1, 1]


# Snapshots.


def with_compacted_leader() -> Network:
    network = Network("abc")
    leader = network.elect("a")
    network.isolate("c")
    for _ in range(5):
        leader.propose(b"x")
        network.settle()
    one = network.replicas["a"]
    one.disk.take_snapshot(leader.log.applied, leader.membership)
    one.crash()  # or it would serve what it still has in memory
    network["b"].forget_leader()
    network.elect("a")
    network.heal()
    return network


def test_a_member_that_needs_what_is_compacted_gets_a_snapshot_then_the_log() -> None:
    network = with_compacted_leader()
    network["a"].propose(b"last")
    network.tick(3)
    assert any(isinstance(one, InstallSnapshot) for one in network.delivered)
    assert network.replicas["c"].disk.base == (6, 1)
    assert network["a"].status().progress[C].state is ProgressState.REPLICATE
    assert network["c"].commit == network["a"].log.last_index


def test_nothing_is_sent_while_a_snapshot_is_under_way_and_a_failed_one_is_tried_again() -> None:
    network = with_compacted_leader()
    leader = network["a"]
    network.drops = lambda message: isinstance(message, InstallSnapshot)
    network.tick(2)
    assert leader.status().progress[C].state is ProgressState.SNAPSHOT
    leader.propose(b"y")
    assert not appends(network.replicas["a"].turn(), C)
    leader.report_snapshot(C, False)
    assert leader.status().progress[C].state is ProgressState.PROBE
    network.drops = lambda message: False
    network.tick(4)
    assert leader.status().progress[C].match == leader.log.last_index


def test_a_lost_answer_to_a_snapshot_is_made_good_within_an_election_time_out() -> None:
    network = with_compacted_leader()
    network.drops = lambda message: isinstance(message, AppendReply) and message.ok and message.sender == C
    network.tick(3)
    network.drops = lambda message: False
    assert network["a"].status().progress[C].state is ProgressState.SNAPSHOT
    network.tick(12)
    assert network["a"].status().progress[C].state is ProgressState.REPLICATE


def test_a_member_whose_snapshot_arrives_after_the_log_was_compacted_again_gets_a_newer_one() -> None:
    """It stayed in SNAPSHOT for ever, and was offered again and again what it had."""
    network = with_compacted_leader()
    leader, disk = network["a"], network.replicas["a"].disk
    network.drops = lambda message: isinstance(message, AppendReply) and message.ok and message.sender == C
    network.tick(3)
    assert leader.status().progress[C].state is ProgressState.SNAPSHOT
    for _ in range(3):
        leader.propose(b"y")
        network.settle()
    disk.take_snapshot(leader.log.applied, leader.membership)
    network.drops = lambda message: False
    network.tick(15)
    assert network["c"].commit == leader.log.last_index
    assert leader.status().progress[C].state is ProgressState.REPLICATE


def test_a_snapshot_older_than_what_is_committed_is_ignored() -> None:
    network = with_compacted_leader()
    network.tick(3)
    meta = network.replicas["a"].disk.snapshot
    before = network["b"].status()
    network["b"].step(InstallSnapshot(A, B, network["a"].term, CLUSTER, meta))
    (reply,) = network.replicas["b"].turn()
    assert isinstance(reply, AppendReply)
    assert reply.match == before.commit
    assert network["b"].status() == before


def test_an_older_snapshot_does_not_take_a_member_back_that_has_compacted_what_it_ends_with() -> None:
    one = Replica(B, Disk(voters("abc")))
    for index in (9, 5):
        one.raft.step(InstallSnapshot(A, B, 1, CLUSTER, SnapshotMeta(index, 1, voters("abc"))))
        one.turn()
    assert one.disk.base == (9, 1)
    assert one.raft.commit == 9


def test_a_follower_with_the_snapshots_entries_keeps_its_longer_log() -> None:
    network = Network("abc")
    leader = network.elect("a")
    for _ in range(5):
        leader.propose(b"x")
    network.deliver(network.replicas["a"].turn())
    network.replicas["b"].turn()
    meta = network.replicas["a"].disk.snapshot
    meta = type(meta)(3, 1, voters("abc"))
    network["b"].step(InstallSnapshot(A, B, 1, CLUSTER, meta))
    assert network["b"].log.last_index == 6
    assert network["b"].commit == 3
    assert network["b"].log.pending_snapshot is None
