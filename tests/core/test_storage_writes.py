"""Several writes under way at once, and entries that are overwritten before they reached the disk."""

from __future__ import annotations

from tauraft.core.messages import Append, AppendReply, Entry, EntryKind, InstallSnapshot, SnapshotMeta
from tests.core.network import CLUSTER, Disk, Network, Replica, members, voters

A, B, C = members("abc")


def entry(index: int, term: int) -> Entry:
    return Entry(index, term, EntryKind.BATCH, b"%d@%d" % (index, term))


def slow_replica() -> Replica:
    one = Replica(A, Disk(voters("abc")), pre_vote=False)
    one.is_writing_at_once = False
    return one


def test_several_writes_are_reported_in_their_order() -> None:
    network = Network("abc")
    leader = network.elect("a")
    one = network.replicas["a"]
    one.is_writing_at_once = False
    for _ in range(3):
        leader.propose(b"x")
        one.turn()
    assert [len(ready.entries) for ready in one.unwritten] == [1, 1, 1]
    assert leader.log.stable == 1
    one.finish_write()
    assert leader.log.stable == 2


def test_a_write_that_was_overwritten_acknowledges_nothing_even_if_the_same_entry_comes_back() -> None:
    one = slow_replica()
    one.raft.step(Append(B, A, 1, CLUSTER, 0, 0, (entry(1, 1),), 0))
    one.turn()
    one.raft.step(Append(C, A, 2, CLUSTER, 0, 0, (entry(1, 2),), 0))
    one.turn()
    one.raft.step(Append(B, A, 3, CLUSTER, 0, 0, (entry(1, 1),), 1))
    one.turn()
    # Entry 1 of term 1 is written, but the overwriting by term 2 is under way: it will not be there for long.
    one.finish_write()
    assert one.raft.log.stable == 0
    assert not one.raft.ready().committed
    one.finish_write()
    assert one.raft.log.stable == 0
    one.finish_write()
    assert one.raft.log.stable == 1
    assert one.disk.log == [entry(1, 1)]


def test_the_answer_to_an_overwritten_append_is_of_its_own_term() -> None:
    one = slow_replica()
    one.raft.step(Append(B, A, 1, CLUSTER, 0, 0, (entry(1, 1),), 0))
    one.turn()
    one.raft.step(Append(C, A, 2, CLUSTER, 0, 0, (entry(1, 2),), 0))
    one.turn()
    replies = one.finish_write() + one.finish_write()
    assert [(reply.to, reply.term) for reply in replies if isinstance(reply, AppendReply)] == [(B, 1), (C, 2)]


def test_a_write_before_a_snapshot_does_not_count_for_the_log_after_it() -> None:
    one = slow_replica()
    one.raft.step(Append(B, A, 1, CLUSTER, 0, 0, (entry(1, 1),), 0))
    one.turn()
    one.raft.step(InstallSnapshot(B, A, 1, CLUSTER, SnapshotMeta(9, 1, voters("abc"))))
    one.turn()
    one.finish_write()
    assert one.raft.log.stable == 0
    assert one.raft.log.pending_snapshot is not None
    one.finish_write()
    assert one.raft.log.stable == 9
    assert one.raft.status().applied == 9


def test_a_crash_loses_what_was_not_written_and_nothing_else() -> None:
    network = Network("abc")
    leader = network.elect("a")
    leader.propose(b"kept")
    network.settle()
    one = network.replicas["b"]
    one.is_writing_at_once = False
    leader.propose(b"lost on b")
    network.settle()
    assert one.raft.log.last_index == 3
    one.crash()
    assert one.raft.log.last_index == 2
    one.is_writing_at_once = True
    network.tick(3)
    assert network.logs() == [[1, 1, 1]] * 3


def test_after_a_restart_what_was_committed_is_handed_out_again_from_applied_on() -> None:
    network = Network("abc")
    leader = network.elect("a")
    for data in (b"1", b"2", b"3"):
        leader.propose(data)
    network.settle()
    one = network.replicas["a"]
    one.disk.take_snapshot(2, leader.membership)
    one.crash()
    one.applied.clear()
    one.turn()
    network["b"].forget_leader()
    network["c"].forget_leader()
    network.elect("a")
    assert [entry.data for entry in one.applied if entry.data] == [b"2", b"3"]
