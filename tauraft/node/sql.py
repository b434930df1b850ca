"""SQL over one replica: what its loop owes to ``storage.history`` and ``storage.projection``.

History is recorded always, and cheaply: each entry's changes are kept by reference (rows are immutable) until there are
``FLUSH_CHANGES``, a snapshot is taken or somebody asks; then a worker turns them into lines and appends them to the history's
file.  No DuckDB, and no sync: what a crash takes is applied again from the log, so it is recorded again.
DuckDB is loaded by the first query.  It is filled from a copy-on-write view of the tables, and follows history from then on.

The loop never waits for any of it.  When a worker falls so far behind that ``MAX_CHANGES`` are pending they are dropped and
history gets a *gap*, as it does when a snapshot from the leader replaces the state or an upgrade gives rows another shape: what is
older stays readable in ``history``, ``as_of`` ends at the gap, and DuckDB is filled anew by the next query.
A disk that fails here costs history, never the node: it goes on in memory, with a warning.

Not here: what SQL may do (``projection``), the files (``history``), how values look (``sql_types``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from tauraft.errors import Unavailable
from tauraft.node.apply import Machine
from tauraft.node.change_log import RevisionChanges
from tauraft.sql_values import from_wire
from tauraft.storage.history import HistoryFiles, Stand
from tauraft.storage.sql_types import TableShape, any_to_json, describe_table, view_name
from tauraft.system.messages import SYSTEM
from tauraft.tables import ABSENT

if TYPE_CHECKING:
    from tauraft.storage.projection import Database, Question, Told

FLUSH_CHANGES: Final = 4_096
FLUSH_BYTES: Final = 4 << 20
MAX_CHANGES: Final = 100_000
MAX_BYTES: Final = 64 << 20
ROWS_A_SLICE: Final = 500  # walked in about 0.5 ms
ROWS_A_LOAD: Final = 4_000
DEFAULT_TIMEOUT_S: Final = 10.0
DEFAULT_HISTORY_BYTES: Final = 256 << 20  # on disk; sealed files are about a tenth of what they hold
MAX_MEMORY_BYTES: Final = 64 << 20  # of a history in memory
MANIFEST: Final = f"{SYSTEM}/manifest"

RunInWorker = Callable[[Callable[[], Any]], Awaitable[Any]]
_log = logging.getLogger("tauraft.sql")


@dataclass(slots=True)
class _Segment:
    """Frames that follow each other without a gap. ``start``: they begin a new file there; None: they go on."""

    start: Stand | None = None
    frames: list[RevisionChanges] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one visit of a worker writes: history is complete up to ``stand`` afterwards."""

    segments: Sequence[_Segment]
    stand: Stand
    shapes: dict[str, TableShape]
    short_names: dict[str, str]


class Projection:
    """See the module. ``files`` None: history only from the first query on, and only in memory, ``memory_bytes`` of it."""

    def __init__(
        self,
        machine: Machine,
        run_in_worker: RunInWorker,
        files: HistoryFiles | None = None,
        *,
        directory: str | None = None,
        memory_bytes: int = MAX_MEMORY_BYTES,
    ) -> None:
        self._machine = machine
        self._run = run_in_worker
        self._files = files
        self._directory = directory
        self._memory_bytes = memory_bytes
        self._database: Database | None = None
        self._lock = anyio.Lock()
        self._segments = [_Segment()]
        self._changes = 0
        self._bytes_before = machine.applied_bytes
        self._known = 0  # history on disk is complete up to this revision
        self._generation = machine.generation
        self._wake = anyio.Event()
        self._shapes: dict[str, tuple[Any, TableShape]] = {}
        self._lines_kept: list[tuple[int, int]] = []  # of a history in memory: (revision, bytes)
        self.gaps = 0
        self.is_recording = files is not None
        machine.on_changes.append(self.record)

    # In the loop.

    async def open(self) -> None:
        """Before entries are applied: see what is on disk. Whatever is wrong with it, it begins anew."""
        files = self._files
        if files is None:
            return
        began_at = self._stand()

        def look() -> int:
            stand = files.open()
            if stand is None or stand.index < began_at.index:
                # Behind the snapshot: what lies between is not in the log any more.
                files.begin(began_at, continues=False)
            return files.stand.revision

        with self._costs_only_history():
            self._known = await self._run(look)

    async def run(self) -> None:
        """Writes what gathers, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            await self.flush()

    def record(self, frames: Sequence[RevisionChanges]) -> None:
        """Called by apply after each entry."""
        machine = self._machine
        if not self.is_recording or frames[-1].revision <= self._known:
            return
        if machine.generation != self._generation:
            self._gap(Stand(frames[0].revision - 1, machine.applied_index - 1, frames[0].wall_ns // 1_000))
        pending = self._segments[-1].frames
        for frame in frames:
            if _upgrades(frame):
                self._gap(Stand(frame.revision, machine.applied_index, frame.wall_ns // 1_000))
                pending = self._segments[-1].frames
                continue
            pending.append(frame)
            self._changes += len(frame.changes)
        size = machine.applied_bytes - self._bytes_before
        if self._changes > MAX_CHANGES or size > MAX_BYTES:
            self._segments = []
            self._gap(self._stand())
        elif self._changes >= FLUSH_CHANGES or size >= FLUSH_BYTES:
            self._wake.set()

    def _stand(self) -> Stand:
        machine = self._machine
        return Stand(machine.revision, machine.applied_index, machine.wall_ns // 1_000)

    def _gap(self, start: Stand) -> None:
        self.gaps += 1
        self._generation = self._machine.generation
        if not self._segments:
            self._changes, self._bytes_before = 0, self._machine.applied_bytes
        self._segments.append(_Segment(start))

    def _take(self) -> _Batch:
        """All that is pending, with no await since the machine was last looked at."""
        machine = self._machine
        stand = self._stand()
        if machine.generation != self._generation:
            self._gap(stand)
        segments, self._segments = self._segments, [_Segment()]
        self._changes, self._bytes_before = 0, machine.applied_bytes
        return _Batch(segments, stand, self._shapes_now(), self._short_names())

    def _shapes_now(self) -> dict[str, TableShape]:
        found: dict[str, tuple[Any, TableShape]] = {}
        for table in self._machine.tables:
            if table.owner != SYSTEM:
                known = self._shapes.get(table.name)
                if known is None or known[0] is not table:
                    shape = describe_table(table.name, table.key_codec.hint, table.row_codec.hint)
                    known = (table, shape)
                found[table.name] = known
        self._shapes = found
        return {name: shape for name, (_, shape) in found.items()}

    def _short_names(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for fsm in self._machine.active_fsms():
            for name, select in fsm.sql_views.items():
                names.setdefault(name, select)
        return names

    async def flush(self, *, durable: bool = False) -> None:
        """History is complete up to now; ``durable``: it would survive a power cut."""
        if not self.is_recording:
            return
        async with self._lock:
            await self._flush(durable=durable)

    async def _flush(self, *, durable: bool = False) -> None:
        if self._machine.revision < self._known:
            return  # the log is still being applied again
        batch = self._take()
        await self._run(lambda: self._write(batch, durable))

    async def ask(self, question: Question, timeout_s: float) -> Told:
        """Of the state as it is applied now, or later. Raises what ``Database.run`` raises."""
        async with self._lock:
            if self._database is None:
                await self._fill()
            else:
                await self._flush()
                if self._database is None:
                    await self._fill()  # there was a gap
            database = self._database
            assert database is not None
            cursor = await self._run(database.cursor)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_interrupt_after, timeout_s, cursor)
                outcome = await self._run(lambda: _outcome(lambda: database.run(cursor, question)))
                tasks.cancel_scope.cancel()
        finally:
            cursor.close()
        if isinstance(outcome, BaseException):
            raise outcome
        told: Told = outcome
        return told

    async def _fill(self) -> None:
        """DuckDB from the tables as they are now, while they change."""
        from tauraft.storage.projection import Database

        if not self.is_recording:
            self.is_recording = True
            self._segments, self._generation = [_Segment()], self._machine.generation
        batch = self._take()
        generation = self._machine.generation
        view = self._machine.tables.freeze()
        database: Database | None = None
        try:
            await self._run(lambda: self._write(batch, False))
            made: Database = await self._run(lambda: Database(self._directory if self._files is not None else None))
            database = made
            gathered: list[tuple[str, Any, Any]] = []
            for rows in view.rows(ROWS_A_SLICE):
                gathered += [row for row in rows if row[0] in batch.shapes]
                if len(gathered) >= ROWS_A_LOAD:
                    load, gathered = gathered, []
                    await self._run(lambda load=load: made.load_rows(_state_lines(load, batch.shapes)))  # type: ignore[misc]
                else:
                    await anyio.lowlevel.checkpoint()
                if self._machine.generation != generation:
                    raise Unavailable("the state was replaced while SQL was made ready: ask again")
            await self._run(lambda: made.load_rows(_state_lines(gathered, batch.shapes)))
            await self._run(lambda: self._finish(made, batch))
            self._database, database = made, None
        finally:
            view.close()
            if database is not None:
                database.close()

    def close(self) -> None:
        self._machine.on_changes.remove(self.record)
        if self._database is not None:
            self._database.close()
        if self._files is not None:
            self._files.close()

    # In a worker, one at a time.

    def _finish(self, database: Database, batch: _Batch) -> None:
        if self._files is not None:
            database.load_changes(self._files.live_lines())
            self._show_files(database)
        else:
            database.set_oldest(batch.stand.revision, batch.stand.at_us)
        database.add_changes(b"", batch.stand.revision, batch.stand.index)
        self._show_shapes(database, batch)

    def _show_shapes(self, database: Database, batch: _Batch) -> None:
        shapes = tuple(batch.shapes.values())
        if database.shapes != shapes:
            for problem in database.set_shapes(shapes, batch.short_names):
                _log.warning("a plugin's SQL view was left out: %s", problem)

    def _show_files(self, database: Database) -> None:
        assert self._files is not None
        *sealed, live = self._files.parts()
        database.set_sealed([part.path for part in sealed if part.is_sealed], sealed_up_to=live.start)
        database.set_oldest(*self._files.oldest())

    def _write(self, batch: _Batch, durable: bool) -> None:
        for place, segment in enumerate(batch.segments):
            if segment.start is not None:
                self._drop_database()
                with self._costs_only_history():
                    if self._files is not None:
                        self._files.begin(segment.start, continues=False)
            is_last = place == len(batch.segments) - 1
            self._write_frames(segment.frames, batch, batch.stand if is_last else None)
        self._known = batch.stand.revision
        if self._database is not None:
            self._show_shapes(self._database, batch)
        with self._costs_only_history():
            if self._files is not None and durable:
                self._files.sync()

    def _write_frames(self, frames: Sequence[RevisionChanges], batch: _Batch, stand: Stand | None) -> None:
        """``stand`` None: as far as the frames go."""
        blocks = list(_blocks(frames)) or ([()] if stand is not None else [])
        for block in blocks:
            reached = stand
            if reached is None or block is not blocks[-1]:
                # Where the index lies in between is not known; too low costs nothing: what comes again is left out.
                index = 0 if self._files is None else self._files.stand.index
                reached = Stand(block[-1].revision, index, block[-1].wall_ns // 1_000)
            self._write_block(block, batch, reached)

    def _write_block(self, frames: Sequence[RevisionChanges], batch: _Batch, stand: Stand) -> None:
        files, database = self._files, self._database
        known = 0 if files is None else files.stand.revision
        if stand.revision < known:
            return  # applied again, and recorded before: where history stands must not go back
        lines = change_lines([frame for frame in frames if frame.revision > known], batch.shapes)
        with self._costs_only_history():
            if files is not None and files.stand != stand:
                files.append(lines, stand)
        if database is not None:
            database.add_changes(lines, stand.revision, stand.index)
        with self._costs_only_history():
            if files is not None and self._files is not None and files.is_full:
                files.begin(files.stand, continues=True)
                if database is not None:
                    self._show_files(database)
        if self._files is None and database is not None:
            self._bound_memory(database, stand.revision, len(lines))

    def _bound_memory(self, database: Database, revision: int, size: int) -> None:
        """The older half goes when it is too much."""
        self._lines_kept.append((revision, size))
        if sum(size for _, size in self._lines_kept) > self._memory_bytes:
            half = len(self._lines_kept) // 2 + 1
            database.forget_recent(self._lines_kept[half - 1][0])
            del self._lines_kept[:half]

    def _drop_database(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
        self._lines_kept.clear()

    @contextmanager
    def _costs_only_history(self) -> Iterator[None]:
        """Around the files: whatever is wrong with them, the node goes on."""
        try:
            yield
        except OSError as error:
            _log.warning("history is not kept on disk any more, until the next start: %s", error)
            self.gaps += 1
            if self._files is not None:
                self._files.close()
            self._files = None


def _upgrades(frame: RevisionChanges) -> bool:
    """An active plugin changed its version: its rows have moved to other tables."""
    return any(table == MANIFEST and old is not ABSENT for table, _, old, _ in frame.changes)


def _blocks(frames: Sequence[RevisionChanges]) -> Iterator[Sequence[RevisionChanges]]:
    """Of about ``FLUSH_CHANGES``; one revision is in one block."""
    start = 0
    while start < len(frames):
        end = min(start + FLUSH_CHANGES, len(frames))
        while end < len(frames) and frames[end].revision == frames[end - 1].revision:
            end += 1
        yield frames[start:end]
        start = end


def change_lines(frames: Iterable[RevisionChanges], shapes: dict[str, TableShape]) -> bytes:
    """As ``history`` has them: one line a changed row of a plugin's table and revision."""
    lines = []
    merged: dict[tuple[int, str, Any], tuple[int, Any, Any]] = {}
    for frame in frames:
        for table, key, old, new in frame.changes:
            if not table.startswith(_SYSTEM_TABLES):
                # One revision may come in several frames: what a grant undoes, what an answer sets off.
                place = (frame.revision, table, key)
                first = merged.get(place)
                merged[place] = (frame.wall_ns // 1_000, old if first is None else first[1], new)
    for (revision, table, key), (at, old, new) in merged.items():
        shape = shapes.get(table)
        view = view_name(table) if shape is None else shape.view
        key_to_json, row_to_json = (
            (any_to_json, any_to_json) if shape is None else (shape.key_to_json, shape.row_to_json)
        )
        before = "" if old is ABSENT else _json(row_to_json, old)
        after = "" if new is ABSENT else _json(row_to_json, new)
        lines.append(f"{revision}\t{at}\t{view}\t{_json(key_to_json, key)}\t{before}\t{after}\n")
    return "".join(lines).encode()


def _json(to_json: Callable[[Any], str], value: Any) -> str:
    try:
        return to_json(value)
    except (AttributeError, TypeError, IndexError):
        return any_to_json(value)  # a row of an older version than the shape's


def _state_lines(rows: Iterable[tuple[str, Any, Any]], shapes: dict[str, TableShape]) -> bytes:
    lines = []
    for table, key, row in rows:
        shape = shapes[table]
        lines.append(f"{shape.view}\t{shape.key_to_json(key)}\t{shape.row_to_json(row)}\n")
    return "".join(lines).encode()


def as_of_from_wire(told: Any) -> int | datetime | None:
    value = from_wire(told)
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return None if value is None else int(value)


async def _interrupt_after(seconds: float, cursor: Any) -> None:
    try:
        await anyio.sleep(min(seconds, 3_600) if math.isfinite(seconds) else 3_600)
    finally:
        cursor.interrupt()


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        return error


_SYSTEM_TABLES = f"{SYSTEM}/"
