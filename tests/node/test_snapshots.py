"""Snapshots beside a loop that must keep its beat: read ahead, adopted at once, verified as they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from tauraft.core.messages import InstallSnapshot, Member, Membership, SnapshotMeta
from tauraft.node import snapshots
from tauraft.node.apply import Machine
from tauraft.node.snapshots import PlainRows, SnapshotMover
from tauraft.storage.file_system import MemoryFileSystem
from tauraft.storage.log_store import StorageFull
from tauraft.storage.snapshot_store import SnapshotCorrupt, SnapshotReceiver, SnapshotStore
from tauraft.tables import ABSENT, FrozenView
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_plugins.locks.fsm import Locks
from tauraft_primitives.kv.messages import Delete, Put
from tests.node.cluster import ManualClock
from tests.primitives.harness import Harness


async def inline(work: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return work()


@pytest.fixture
def mover() -> SnapshotMover:
    return new_mover()


def filled(rows: int) -> Harness:
    replica = Harness(KeyValue, Locks)
    session = replica.open()
    for number in range(rows):
        session.run(Put(f"k{number:04}", b"%d" % number))
    return replica


def always() -> bool:
    return True


def state(machine: Machine) -> list[tuple[str, Any, Any]]:
    return [(table.name, key, row) for table in machine.tables for key, row in table.items()]


def test_a_snapshot_read_ahead_is_adopted_at_once(mover: SnapshotMover) -> None:
    replica = filled(300)
    meta = trio.run(mover.take, replica.machine, always)
    fresh = Machine(replica.registry)
    trio.run(mover.read_ahead, Machine(replica.registry))
    mover._read = None  # type: ignore[assignment,method-assign]  # whoever reads now, reads in the loop
    assert mover.restore_newest(fresh, 0) == meta
    assert state(fresh) == state(replica.machine)
    assert fresh.tables.digest() == replica.machine.tables.digest()
    assert (fresh.revision, fresh.applied_index) == (replica.machine.revision, replica.machine.applied_index)
    assert fresh.generation == 1


def test_what_was_read_ahead_and_does_not_reach_the_log_is_not_used(mover: SnapshotMover) -> None:
    replica = filled(10)
    meta = trio.run(mover.take, replica.machine, always)
    trio.run(mover.read_ahead, Machine(replica.registry))
    assert mover.restore_newest(Machine(replica.registry), meta.index + 1) is None


def test_a_walk_that_loses_a_row_is_no_snapshot(mover: SnapshotMover, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = filled(20)

    def forgetful(view: FrozenView, table: Any, key: Any, old: Any) -> None:
        view._kept[id(table)].setdefault(key, ABSENT)

    monkeypatch.setattr(FrozenView, "preserve", forgetful)
    monkeypatch.setattr(snapshots, "ROWS_A_SLICE", 2)
    session = replica.open()

    def write() -> bool:
        session.run(Delete("k0015"))
        return True

    with pytest.raises(SnapshotCorrupt):
        trio.run(mover.take, replica.machine, write)


def test_the_digest_is_folded_up_before_the_view_is_taken(
    mover: SnapshotMover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "ROWS_A_FOLD", 50)
    replica = filled(1)
    tables, table = replica.machine.tables, replica.fsm(KeyValue).kv
    tables.begin()
    tables.writer = KeyValue.fsm_name
    for number in range(1_000):
        table[f"k{number}"] = table["k0000"]
    tables.commit()
    assert tables.stale_rows >= 1_000
    left = []
    freeze = Machine.freeze

    def look(machine: Machine) -> Any:
        left.append(machine.tables.stale_rows)
        return freeze(machine)

    monkeypatch.setattr(Machine, "freeze", look)
    trio.run(mover.take, replica.machine, always)
    assert left[0] <= 50


def fetched(there: SnapshotMover, here: SnapshotMover, meta: SnapshotMeta, machine: Machine) -> list[InstallSnapshot]:
    """``here`` gets the snapshot from ``there``, frame by frame; returns what the core was told of."""
    told: list[InstallSnapshot] = []
    frames: list[tuple[SnapshotMover, bytes]] = []
    there.send = lambda peer_id, frame, bulk: not frames.append((here, frame))
    here.send = lambda peer_id, frame, bulk: not frames.append((there, frame))
    there.offered_id = lambda: meta.id
    a, b = Member("a", 1), Member("b", 2)
    here.fetch(InstallSnapshot(a, b, 1, b"c", meta), told.append, machine)
    while frames:
        to, frame = frames.pop(0)
        to.take_frame("b" if to is there else "a", frame)
    return told


def new_mover() -> SnapshotMover:
    files = MemoryFileSystem()
    files.make_directory("/snapshots")
    return SnapshotMover(SnapshotStore("/snapshots", files=files), PlainRows(), ManualClock(), inline)


def test_a_fetched_snapshot_is_read_before_the_core_is_told(mover: SnapshotMover) -> None:
    replica = filled(200)
    meta = trio.run(mover.take, replica.machine, always)
    here, fresh = new_mover(), Machine(replica.registry)
    waiting: list[Callable[[], Any]] = []
    here.spawn = waiting.append
    told = fetched(mover, here, meta, fresh)
    assert told == []  # its bytes are here; the rows are read by somebody else
    trio.run(waiting.pop())
    assert here._ready is not None
    here._read = None  # type: ignore[assignment,method-assign]
    here.restore(meta, fresh)
    assert state(fresh) == state(replica.machine)
    trio.run(waiting.pop())  # the old rows are taken apart


def test_a_disk_that_is_full_when_a_snapshot_has_arrived_drops_it(
    mover: SnapshotMover, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replica = filled(20)
    meta = trio.run(mover.take, replica.machine, always)

    def full(receiver: SnapshotReceiver) -> None:
        raise StorageFull("/snapshots: no space left")

    monkeypatch.setattr(SnapshotReceiver, "commit", full)
    here = new_mover()
    waiting: list[Callable[[], Any]] = []
    here.spawn = waiting.append
    assert fetched(mover, here, meta, Machine(replica.registry)) == []
    trio.run(waiting.pop())
    assert "no space left" in caplog.text
    assert here._ready is None
    monkeypatch.undo()
    assert len(fetched(mover, new_mover(), meta, Machine(replica.registry))) == 1


def test_a_machine_that_changes_over_leaves_its_old_rows_to_others() -> None:
    replica = filled(50)
    other = filled(3)
    view = other.machine.freeze()
    rows = [row for piece in view.slices(10) for row in piece]
    view.close()
    meta = SnapshotMeta(view.index, view.term, Membership())
    prepared = replica.machine.prepare(meta, view.extra, rows)
    assert len(replica.fsm(KeyValue).kv) == 50  # nothing has changed yet
    before = replica.machine.adopt(prepared)
    assert len(replica.fsm(KeyValue).kv) == 3
    assert sum(map(len, before)) > 50
    replica.now_ns = other.now_ns
    replica.open().run(Put("new", b""))
    assert len(replica.fsm(KeyValue).kv) == 4
