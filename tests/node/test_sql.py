"""The projection over a real machine: state, history and the past in SQL, and all that may be wrong with its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from tauraft.errors import Compacted, Refused, TooLarge, Unavailable
from tauraft.fsm import FSM, Command, Context, Table, applies
from tauraft.node import sql
from tauraft.node.replica import Item
from tauraft.node.sql import Projection
from tauraft.sql_values import unpack_rows
from tauraft.storage.file_system import RealFileSystem
from tauraft.storage.history import HistoryFiles
from tauraft.storage.projection import Question, Told, seal_lines
from tauraft.system.messages import Activate
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_plugins.locks.fsm import Locks
from tauraft_primitives.kv.messages import Delete, Put, Write, WriteBatch
from tauraft_primitives.locks.messages import Acquire, Release
from tests.primitives.harness import WALL_START_NS, Harness

WALL_START = datetime.fromtimestamp(WALL_START_NS / 1e9, UTC)


async def inline(work: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return work()


@dataclass(frozen=True, slots=True)
class Stock(Command[None], fsm="acme.store"):
    name: str
    count: int


class StoreV1(FSM, name="acme.store", version=1):
    items: Table[str, int]

    @applies(Stock)
    def stock(self, command: Stock, context: Context) -> None:
        self.items[command.name] = command.count


@dataclass(frozen=True, slots=True)
class ItemV2:
    count: int
    shelf: str = "?"


class StoreV2(FSM, name="acme.store", version=2):
    items: Table[str, int]
    shelves: Table[str, ItemV2]
    sql_views: ClassVar[dict[str, str]] = {
        "stock": "SELECT key AS name, shelf FROM acme_store_shelves",
        "kv": "SELECT 1",  # taken by another plugin, active before
        "broken": "SELECT nothing FROM nowhere",
    }

    @applies(Stock)
    def stock(self, command: Stock, context: Context) -> None:
        self.items[command.name] = command.count
        self.shelves[command.name] = ItemV2(command.count, "new")

    def upgrade(self, from_version: int, context: Context) -> None:
        for name, count in self.items.items():
            self.shelves[name] = ItemV2(count)


class Desk:
    """A machine and its projection; ``with desk.asking() as ask``."""

    def __init__(self, directory: Path | None, *, replica: Harness | None = None, max_bytes: int = 1 << 20) -> None:
        self.replica = replica or Harness(KeyValue, Locks)
        self.directory = directory
        self.max_bytes = max_bytes
        self.projection = self.make()

    def make(self) -> Projection:
        if self.directory is None:
            return Projection(self.replica.machine, inline)
        files = HistoryFiles(
            str(self.directory), b"c", files=RealFileSystem(), max_bytes=self.max_bytes, seal=seal_lines
        )
        return Projection(self.replica.machine, inline, files, directory=str(self.directory))

    def restart(self) -> None:
        self.projection.close()
        self.projection = self.make()
        trio.run(self.projection.open)

    def ask(self, query: str, *parameters: Any, as_of: int | datetime | None = None) -> list[tuple[Any, ...]]:
        told = trio.run(self.projection.ask, Question(query, parameters, as_of), 30.0)
        return rows(told)


def rows(told: Told) -> list[tuple[Any, ...]]:
    return [row for chunk in told.chunks for row in unpack_rows(chunk)]


@contextmanager
def desk_at(directory: Path | None, **options: Any) -> Iterator[Desk]:
    desk = Desk(directory, **options)
    trio.run(desk.projection.open)
    try:
        yield desk
    finally:
        desk.projection.close()


@pytest.fixture(params=["disk", "memory"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    with desk_at(tmp_path if request.param == "disk" else None) as desk:
        yield desk


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Desk]:
    with desk_at(tmp_path) as desk:
        yield desk


def test_every_table_is_a_view_and_the_state_follows(desk: Desk) -> None:
    session = desk.replica.open()
    session.run(Put("a", b"1"))
    assert desk.ask("SELECT key, value, version FROM tauraft_kv_kv") == [("a", b"1", 1)]
    first = session.run(Acquire("x")).value
    session.run(Put("a", b"\xff"))
    session.run(Put("b", b"2"))
    assert desk.ask("SELECT key, value FROM kv ORDER BY key") == [("a", b"\xff"), ("b", b"2")]
    assert desk.ask("SELECT name, token, session FROM locks") == [("x", first.token, session.id)]
    session.run(Delete("a"))
    session.run(Release("x", first.token))
    assert desk.ask("SELECT key FROM kv") == [("b",)]
    assert desk.ask("SELECT count(*) FROM locks") == [(0,)]


def test_a_query_says_up_to_where_it_saw(desk: Desk) -> None:
    desk.replica.open().run(Put("a", b"1"))
    for _ in range(2):
        told = trio.run(desk.projection.ask, Question("SELECT 1 AS one"), 30.0)
        assert told.index == desk.replica.machine.applied_index
        assert told.columns == ("one",)
        desk.replica.open()


def test_history_has_every_change_once(on_disk: Desk) -> None:
    session = on_disk.replica.open()
    put = session.run(Put("a", b"1")).value
    session.run(WriteBatch((Write("a", b"2"), Write("b", b"3"), Write("a", b"4"))))
    session.run(Delete("b"))
    found = on_disk.ask(
        "SELECT key, value ->> 'value', at FROM history WHERE view = 'tauraft_kv_kv' AND revision >= ? ORDER BY revision, key",
        put,
    )
    assert [row[:2] for row in found] == [("a", "1"), ("a", "4"), ("b", "3"), ("b", None)]
    assert found[0][2] == WALL_START


def test_the_past_is_the_present_undone(on_disk: Desk) -> None:
    """At every revision there was, the state in SQL is what it was then."""
    session = on_disk.replica.open()
    seen: dict[int, list[tuple[str, bytes]]] = {}
    commands: list[Command[Any]] = [
        Put("a", b"1"), Put("b", b"1"), Put("a", b"2"), Delete("b"), Put("c", b"1"), Put("b", b"2"), Delete("a"), Delete("c"),
    ]  # fmt: skip
    for command in commands:
        session.run(command)
        table = on_disk.replica.fsm(KeyValue).kv
        seen[on_disk.replica.machine.revision] = [(key, row.value) for key, row in table.items()]
    for revision, state in seen.items():
        assert on_disk.ask("SELECT key, value FROM kv ORDER BY key", as_of=revision) == state, revision
        assert on_disk.ask("SELECT max(revision) FROM history", as_of=revision) == [(revision,)]
    assert on_disk.ask("SELECT key, value FROM kv ORDER BY key") == [("b", b"2")]
    with pytest.raises(Refused, match="not reached"):
        on_disk.ask("SELECT 1", as_of=on_disk.replica.machine.revision + 1)


def test_a_moment_is_the_last_revision_before_it(on_disk: Desk) -> None:
    session = on_disk.replica.open()
    for minute in range(3):
        session.run(Put("k", b"%d" % minute))
        on_disk.replica.advance(60)
    for seconds, value in ((0, b"0"), (59, b"0"), (60, b"1"), (150, b"2"), (1e6, b"2")):
        at = WALL_START + timedelta(seconds=seconds)
        assert on_disk.ask("SELECT value FROM kv", as_of=at) == [(value,)], seconds
    with pytest.raises(Compacted):
        on_disk.ask("SELECT 1", as_of=WALL_START - timedelta(seconds=1))


def test_in_memory_history_begins_with_the_first_query() -> None:
    with desk_at(None) as desk:
        session = desk.replica.open()
        session.run(Put("a", b"1"))
        assert not desk.projection.is_recording
        assert desk.ask("SELECT count(*) FROM history") == [(0,)]
        asked = desk.replica.machine.revision
        session.run(Put("a", b"2"))
        assert desk.ask("SELECT value FROM kv", as_of=asked) == [(b"1",)]
        with pytest.raises(Compacted) as caught:
            desk.ask("SELECT 1", as_of=asked - 1)
        assert caught.value.oldest == asked


def test_in_memory_history_stays_bounded() -> None:
    with desk_at(None) as desk:
        desk.projection._memory_bytes = 2_000
        session = desk.replica.open()
        for number in range(50):
            session.run(Put("k", b"%d" % number))
            assert desk.ask("SELECT value FROM kv WHERE key = 'k'") == [(b"%d" % number,)]
        (kept,) = desk.ask("SELECT count(*) FROM history")
        assert 0 < kept[0] < 40
        with pytest.raises(Compacted):
            desk.ask("SELECT 1", as_of=5)


def test_a_restart_goes_on_without_a_gap(on_disk: Desk) -> None:
    session = on_disk.replica.open()
    first = session.run(Put("k", b"1")).value
    trio.run(on_disk.projection.flush)
    on_disk.restart()
    session.run(Put("k", b"2"))
    assert on_disk.ask("SELECT value FROM kv", as_of=first) == [(b"1",)]
    assert on_disk.projection.gaps == 0


def test_entries_applied_again_are_recorded_once(tmp_path: Path) -> None:
    """After a crash the log is applied from the snapshot on: history has had a part of it."""

    def commands(desk: Desk, numbers: range) -> None:
        session = desk.replica.open()
        for number in numbers:
            session.run(Put("k", b"%d" % number))

    with desk_at(tmp_path) as desk:
        commands(desk, range(20))
        trio.run(desk.projection.flush)
    with desk_at(tmp_path) as desk:
        commands(desk, range(20))  # the same commands, as the log has them
        desk.replica.open().run(Put("k", b"last"))
        found = desk.ask("SELECT count(*), count(DISTINCT revision) FROM history WHERE view = 'tauraft_kv_kv'")
        assert found == [(21, 21)]
        assert desk.projection.gaps == 0


@pytest.mark.parametrize("block", [1, 4_096])
def test_an_entry_of_which_a_crash_left_a_part_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(sql, "FLUSH_CHANGES", 1)

    def commit(desk: Desk) -> None:
        """Three commands in one entry."""
        session, registry = desk.replica.open(), desk.replica.registry
        puts = [Put("k", b"%d" % number) for number in range(3)]
        items = [Item(session.id, 1 + n, 0, 0, registry.encode(put), None) for n, put in enumerate(puts)]
        desk.replica.commit(items)

    with desk_at(tmp_path) as desk:
        commit(desk)
        trio.run(desk.projection.flush)
    (live,) = tmp_path.glob("*.tsv")
    content = live.read_bytes()
    lines = content.splitlines(keepends=True)
    heads = [place for place, one in enumerate(lines) if one.split(b"\t")[2] == b"#"]
    live.write_bytes(b"".join(lines[: heads[-1]]))  # the last block of the entry never came to the disk
    monkeypatch.setattr(sql, "FLUSH_CHANGES", block)
    with desk_at(tmp_path) as desk:
        commit(desk)
        found = desk.ask(
            "SELECT value ->> 'value', count(*) FROM history WHERE view = 'tauraft_kv_kv' GROUP BY 1 ORDER BY 1"
        )
        assert found == [("0", 1), ("1", 1), ("2", 1)]
        assert desk.projection.gaps == 0


def test_history_behind_the_snapshot_has_a_gap(on_disk: Desk) -> None:
    session = on_disk.replica.open()
    old = session.run(Put("k", b"1")).value
    trio.run(on_disk.projection.flush)
    on_disk.projection.close()
    lost = session.run(Put("k", b"2")).value  # nobody recorded it, and the log below is gone
    on_disk.projection = on_disk.make()
    trio.run(on_disk.projection.open)
    session.run(Put("k", b"3"))
    assert on_disk.ask("SELECT revision FROM history WHERE view = 'tauraft_kv_kv' ORDER BY 1") == [(old,), (lost + 1,)]
    assert on_disk.ask("SELECT value FROM kv", as_of=lost) == [(b"2",)]
    with pytest.raises(Compacted) as caught:
        on_disk.ask("SELECT 1", as_of=old)
    assert caught.value.oldest == lost


@pytest.mark.parametrize("damage", ["deleted", "garbage", "empty", "directory"])
def test_whatever_is_done_to_its_files_is_harmless(on_disk: Desk, tmp_path: Path, damage: str) -> None:
    session = on_disk.replica.open()
    session.run(Put("k", b"1"))
    trio.run(on_disk.projection.flush)
    on_disk.projection.close()
    for path in tmp_path.iterdir():
        if damage == "deleted" or damage == "directory":
            path.unlink()
        else:
            path.write_bytes(b"" if damage == "empty" else os.urandom(3_000))
        if damage == "directory":
            path.mkdir()
    on_disk.projection = on_disk.make()
    trio.run(on_disk.projection.open)
    session.run(Put("k", b"2"))
    assert on_disk.ask("SELECT value FROM kv") == [(b"2",)]


def test_a_disk_that_fails_costs_history_not_the_node(
    on_disk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = on_disk.replica.open()
    session.run(Put("k", b"1"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HistoryFiles, "append", full)
    trio.run(on_disk.projection.flush)
    session.run(Put("k", b"2"))
    assert on_disk.ask("SELECT value FROM kv") == [(b"2",)]
    assert "No space left" in caplog.text


def test_a_revision_is_never_cut_in_two(on_disk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grant at a hand-over is a frame of its own, of the same revision."""
    monkeypatch.setattr(sql, "FLUSH_CHANGES", 1)
    alice, bob = on_disk.replica.open(), on_disk.replica.open()
    first = alice.run(Acquire("x", reason="a" * 10)).value
    bob.run(Acquire("x"))
    alice.end()
    assert first.token < on_disk.replica.machine.revision
    found = on_disk.ask(
        "SELECT count(*), count(DISTINCT (view, key)) FROM history WHERE revision = ?", on_disk.replica.machine.revision
    )
    assert found[0][0] == found[0][1] > 3
    assert len(on_disk.ask("SELECT * FROM locks")) == 1


def test_who_falls_behind_gets_a_gap_not_a_growing_queue(on_disk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MAX_CHANGES", 50)
    session = on_disk.replica.open()
    session.run(Put("k", b"before"))
    assert on_disk.ask("SELECT value FROM kv") == [(b"before",)]
    for number in range(60):  # no worker runs in between
        session.run(Put("k", b"%d" % number))
    assert on_disk.projection.gaps >= 1
    assert on_disk.projection._changes <= 50
    assert on_disk.ask("SELECT value FROM kv") == [(b"59",)]
    with pytest.raises(Compacted):
        on_disk.ask("SELECT 1", as_of=3)


def test_large_values_count_too(on_disk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MAX_BYTES", 100_000)
    session = on_disk.replica.open()
    for _ in range(5):
        session.run(Put("k", b"x" * 30_000))
    assert on_disk.projection.gaps >= 1


def test_an_upgrade_adds_its_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    replica = Harness(KeyValue, StoreV1, StoreV2, activate=False)
    digests = {(name, version): digest for name, version, digest in replica.registry.supported()}
    for name, version in (("tauraft.kv", 1), ("acme.store", 1)):
        replica.system(Activate(name, version, digests[name, version]))
    with desk_at(tmp_path, replica=replica) as desk:
        session = desk.replica.open()
        session.run(Stock("bolts", 3))
        before = desk.replica.machine.revision
        assert desk.ask("SELECT key, value FROM acme_store_items") == [("bolts", 3)]
        replica.system(Activate("acme.store", 2, digests["acme.store", 2]))
        session.run(Stock("nuts", 5))
        assert desk.ask("SELECT key, count, shelf FROM acme_store_shelves ORDER BY 1") == [
            ("bolts", 3, "?"),
            ("nuts", 5, "new"),
        ]
        assert desk.ask("SELECT name FROM stock ORDER BY 1") == [("bolts",), ("nuts",)]
        assert desk.ask("SELECT count(*) FROM kv") == [(0,)]
        assert "broken" in caplog.text
        assert desk.ask("SELECT value FROM history WHERE view = 'acme_store_items' AND revision <= ?", before) == [
            ("3",)
        ]
        with pytest.raises(Compacted):
            desk.ask("SELECT 1", as_of=before)


def test_retention_drops_the_oldest_files(tmp_path: Path) -> None:
    with desk_at(tmp_path, max_bytes=1 << 16) as desk:
        session = desk.replica.open()
        for number in range(300):
            session.run(Put("k", os.urandom(1_000)))
            if number % 20 == 0:
                trio.run(desk.projection.flush)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 << 16
        (first, last) = desk.ask("SELECT min(revision), max(revision) FROM history WHERE view = 'tauraft_kv_kv'")[0]
        assert 5 < first < last == desk.replica.machine.revision
        assert len(desk.ask("SELECT value FROM kv", as_of=last - 5)) == 1
        with pytest.raises(Compacted):
            desk.ask("SELECT 1", as_of=4)


def test_sealed_files_count_once(tmp_path: Path) -> None:
    """While a query's database is there, and when it is filled anew."""
    with desk_at(tmp_path, max_bytes=8 << 20) as desk:
        desk.projection._files._file_bytes = 4_000  # type: ignore[union-attr]
        session = desk.replica.open()
        for number in range(1, 101):
            session.run(Put("k", b"%d" % number))
            if number % 10 == 0:
                assert desk.ask("SELECT count(*) FROM history WHERE view = 'tauraft_kv_kv'") == [(number,)]
        assert any(path.suffix == ".parquet" for path in tmp_path.iterdir())
        desk.restart()
        assert desk.ask("SELECT count(*), count(DISTINCT revision) FROM history WHERE view = 'tauraft_kv_kv'") == [
            (100, 100)
        ]
        assert desk.ask("SELECT value FROM kv", as_of=desk.replica.machine.revision - 50) == [(b"50",)]


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO internal.state VALUES ('a', 'b', 'c')",
        "DELETE FROM internal.recent",
        "CREATE TABLE mine (x INT)",
        "DROP VIEW kv",
        "EXPLAIN ANALYZE DELETE FROM internal.state",
        "COPY (SELECT 1) TO '/tmp/stolen.csv'",
        "ATTACH '/tmp/other.duckdb'",
        "INSTALL httpfs",
        "SET threads = 8",
        "SET enable_external_access = true",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "SELECT 1; SELECT 2",
        "",
        "selec 1",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM secret",
        "SELECT nothing FROM kv",
        "SELECT ?",
    ],
)
def test_sql_only_looks_and_only_here(on_disk: Desk, query: str) -> None:
    secret = {"a": 1}
    assert secret
    on_disk.ask("SELECT 1")
    with pytest.raises(Refused) as caught:
        on_disk.ask(query)
    assert caught.value.code == "sql"
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/stolen.csv").exists()


def test_values_come_back_as_python_knows_them(desk: Desk) -> None:
    now = datetime(2026, 1, 27, 14, 3, tzinfo=UTC)
    ((row),) = desk.ask(
        "SELECT $1, CAST('2026-01-27' AS DATE), 1.50, 170141183460469231731687303715884105727::HUGEINT, [1, NULL], "
        "{'a': TIMESTAMPTZ '2026-01-27 14:03:00+00'}, INTERVAL 3 HOURS, $2, NULL, MAP {'k': 1}, TIME '10:00'",
        now, b"\0\xff",
    )  # fmt: skip
    from datetime import date, time
    from decimal import Decimal

    assert row == (
        now, date(2026, 1, 27), Decimal("1.50"), 2**127 - 1, [1, None], {"a": now}, timedelta(hours=3), b"\0\xff", None,
        {"k": 1}, time(10),
    )  # fmt: skip


@pytest.mark.parametrize(
    "query",
    ["SELECT at FROM history", "SELECT max(at) AS at FROM history WHERE at < now()", "SELECT history.at, at::DATE FROM history",
     "SELECT 'at', \"at\" FROM history -- at\nORDER BY at", "SELECT at AT TIME ZONE 'UTC' FROM history"],
)  # fmt: skip
def test_at_is_a_name_like_any_other(desk: Desk, query: str) -> None:
    desk.ask(query)


def test_a_result_is_bounded(desk: Desk) -> None:
    with pytest.raises(TooLarge):
        desk.ask("SELECT * FROM range(1000000)")
    with pytest.raises(TooLarge):
        desk.ask("SELECT repeat('x', 1000000) FROM range(100)")
    assert len(desk.ask("SELECT * FROM range(1000)")) == 1_000


def test_a_long_query_is_stopped(desk: Desk) -> None:
    desk.ask("SELECT 1")

    async def story() -> None:
        async def in_thread(work: Callable[[], Any]) -> Any:
            return await trio.to_thread.run_sync(work)

        desk.projection._run = in_thread
        with pytest.raises(Unavailable, match="time-out"):
            question = Question("SELECT count(*) FROM range(10000000000) a, range(1000) b WHERE a.range + b.range = -1")
            await desk.projection.ask(question, 0.2)
        assert rows(await desk.projection.ask(Question("SELECT 1"), 10)) == [(1,)]

    trio.run(story)


def test_writes_while_duckdb_is_filled_are_seen_once(on_disk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "ROWS_A_SLICE", 10)
    monkeypatch.setattr(sql, "ROWS_A_LOAD", 20)
    session = on_disk.replica.open()
    for number in range(500):
        session.run(Put(f"k{number:03}", b"old"))

    async def story() -> list[tuple[Any, ...]]:
        async def write() -> None:
            for number in range(0, 500, 7):
                session.run(Put(f"k{number:03}", b"new"))
                session.run(Delete(f"k{number + 1:03}"))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await on_disk.projection.ask(Question("SELECT 1"), 30)
        return rows(await on_disk.projection.ask(Question("SELECT key, value FROM kv ORDER BY key"), 30))

    table = on_disk.replica.fsm(KeyValue).kv
    assert trio.run(story) == [(key, row.value) for key, row in table.items()]
