"""The log in DuckDB files, for people who want it open to SQL: the contract of ``LogStore``, at several times the cost.

A directory holds ``<number>.duckdb`` files with their WALs.  Each has two tables::

    entries(record, "index", term, kind, data)     a row for each entry ever appended, also those replaced later
    states(record, last_index, state)              after a change of anything else; ``state`` as in ``state_codec``

Each call of the store is one transaction with a ``record`` number of its own, one more than the last: a number that
is missing is a lost write.  COMMIT returns after the WAL's fdatasync.  The files are **only ever a WAL**: no
checkpoint happens (it would rewrite metadata in place, and a torn one makes the file unopenable); when a WAL reaches
``segment_bytes`` the log goes on in a new file, whose first state says where the one before ended; compaction
unlinks whole files.

DuckDB takes a WAL record with a damaged length for the torn end and drops it and all behind it without a word (1
flipped byte in 25 of a small log). So ``<number>.duckdb.check`` has the size and CRC32C of what was acknowledged of
the WAL, synced after each COMMIT, in two slots written in turn; ``open`` compares before DuckDB sees the file, and
refuses (``LogCorrupt``) what differs. Behind that point lies at most the one call that was never answered, so a tail
is never suspect; whole, it is made durable before it counts. It needs the real file system. DuckDB is imported when the log is opened.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from struct import Struct
from typing import TYPE_CHECKING, Any

from crc32c import crc32c

from tauraft.core.messages import Entry, EntryKind, HardState, Index, SnapshotMeta, Term
from tauraft.storage.entry_index import EntryIndex, RecentEntries, runs_of
from tauraft.storage.file_system import SECTOR_BYTES, File, RealFileSystem
from tauraft.storage.log_store import (
    Compacted,
    LogCorrupt,
    Recovered,
    StorageFailed,
    StorageFull,
    check_consecutive,
    check_range,
    failure_of,
)
from tauraft.storage.memory_log import limit_bytes
from tauraft.storage.state_codec import LogState, log_state_from_plain, log_state_to_plain, pack, unpack

if TYPE_CHECKING:
    import duckdb

_SUFFIX = ".duckdb"
_NEW_SUFFIX = ".new"
_TABLES = """
    CREATE TABLE format(number INTEGER, previous_record UBIGINT);
    CREATE TABLE entries(record UBIGINT, "index" UBIGINT, term UBIGINT, kind UTINYINT, data BLOB);
    CREATE TABLE states(record UBIGINT, last_index UBIGINT, state BLOB);
"""
_FORMAT = 1
_SPARE_BYTES = 4 << 20  # left free on the disk: DuckDB must never meet its end in the middle of a COMMIT
_ROW_BYTES = 64  # of the WAL, beside an entry's data, roughly
_KINDS = tuple(EntryKind)
_SLOT = Struct("<QQI")
_SLOT_STEP = SECTOR_BYTES


class _AcknowledgedWal:
    """What of a WAL was acknowledged: how many bytes, with which CRC, up to which record."""

    def __init__(self, wal: str, check: str) -> None:
        files = RealFileSystem()
        self.record = self.size_bytes = self._crc = 0
        self._wal_path = wal
        self._check_path = check
        self._wal: File = files.open(wal)
        self._check: File = files.open(check, create=True)

    def verify(self) -> None:
        """Raises ``LogCorrupt`` unless the WAL still begins with what was acknowledged of it."""
        for slot in (0, 1):
            packed = self._check.read(slot * _SLOT_STEP, _SLOT.size + 4)
            if len(packed) == _SLOT.size + 4 and crc32c(packed[:-4]) == int.from_bytes(packed[-4:], "little"):
                record, size, crc = _SLOT.unpack(packed[:-4])
                if size > self.size_bytes:
                    self.record, self.size_bytes, self._crc = record, size, crc
        if not self.size_bytes:
            raise LogCorrupt(self._check_path, 0, "it does not say what was acknowledged")
        wal = self._wal.read(0, self.size_bytes)
        if len(wal) != self.size_bytes or crc32c(wal) != self._crc:
            raise LogCorrupt(
                self._wal_path, 0, f"the {self.size_bytes} bytes that were acknowledged are damaged or gone"
            )

    def is_exceeded(self) -> bool:
        """Whether there is more in the WAL: a call that was never answered, whole or torn."""
        return self._wal.size() > self.size_bytes

    def make_durable(self) -> None:
        """What exceeds, before it counts: its process may have died before the sync, or because that failed.

        It is written again, as a page whose sync has failed once may be held to be clean.
        """
        exceeding = self._wal.read(self.size_bytes, self._wal.size() - self.size_bytes)
        self._wal.write(self.size_bytes, exceeding)
        self._wal.sync_data()

    def acknowledge(self, record: int) -> None:
        """All that is in the WAL now counts; durable on return."""
        added = self._wal.read(self.size_bytes, self._wal.size() - self.size_bytes)
        crc, size = crc32c(added, self._crc), self.size_bytes + len(added)
        packed = _SLOT.pack(record, size, crc)
        self._check.write(record % 2 * _SLOT_STEP, packed + crc32c(packed).to_bytes(4, "little"))
        self._check.sync_data()
        self.record, self.size_bytes, self._crc = record, size, crc

    def close(self) -> None:
        self._wal.close()
        self._check.close()


class DuckDBLog:
    """A ``LogStore`` in ``directory``, which exists. One thread at a time."""

    def __init__(
        self,
        directory: str,
        *,
        segment_bytes: int = 16 << 20,
        cache_bytes: int = 8 << 20,
        must_exist: bool = False,
        free_bytes: Callable[[str], int] | None = None,
    ) -> None:
        self._directory = directory
        self._files = RealFileSystem()
        self._free_bytes = self._files.free_bytes if free_bytes is None else free_bytes
        self._segment_bytes = segment_bytes
        self._must_exist = must_exist
        self._index = EntryIndex(1)
        self._recent = RecentEntries(cache_bytes)
        self._state = LogState()  # its last_index is not kept up: the index knows
        self._record = 0
        self._first_records: dict[int, int] = {}  # of each file, oldest first: the record before its first one
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._reader: tuple[int, duckdb.DuckDBPyConnection] | None = None
        self._acknowledged: _AcknowledgedWal | None = None  # of the file written to
        self._is_tail_unclean = False
        self._failure: str | None = None

    # -- LogStore

    def open(self) -> Recovered:
        numbers = self._numbers()
        if not numbers and self._must_exist:
            raise LogCorrupt(self._directory, 0, "the log that this member had is gone")
        # The names too: the process that gave them may have died before they were durable.
        self._files.sync_directory(self._directory)
        try:
            self._replay(numbers)
        except BaseException:
            self.close()
            raise
        self._sweep()
        if not numbers or self._is_tail_unclean:
            # DuckDB passes over a torn end, and would write behind it what it then never reads.
            self._start_file(max(numbers, default=0) + 1)
        self._drop_unneeded()
        state = self._state
        return Recovered(self.first_index, self.last_index, state.hard_state, state.snapshot, state.is_tail_suspect)

    @property
    def first_index(self) -> Index:
        return self._index.first

    @property
    def last_index(self) -> Index:
        return self._index.last

    def append(self, entries: Sequence[Entry], hard_state: HardState | None = None) -> None:
        check_consecutive(entries, self._state.base, self._index.last)
        if not entries and hard_state is None:
            return
        last = entries[-1].index if entries else self._index.last
        state = None if hard_state is None else replace(self._state, hard_state=hard_state, last_index=last)
        place = self._write(entries, state)
        if entries:
            self._index.cut_to(entries[0].index - 1)
            self._index.extend(array("Q", [place]) * len(entries), runs_of(entries))
            self._recent.append(entries)

    def save_hard_state(self, hard_state: HardState) -> None:
        self.append((), hard_state)

    def read(self, low: Index, high: Index, max_bytes: int) -> list[Entry]:
        check_range(low, high, self._index.first, self._index.last)
        self._check_usable()
        if low == high:
            return []
        entries = self._recent.read(low, high, max_bytes)
        return limit_bytes(self._read_from_disk(low, high, max_bytes), max_bytes) if entries is None else entries

    def term(self, index: Index) -> Term:
        if index == self._state.base:
            return self._state.base_term
        check_range(index, index + 1, self._index.first, self._index.last)
        return self._index.term(index)

    def truncate_suffix(self, keep_to: Index) -> None:
        if keep_to < self._state.base:
            raise Compacted(keep_to, self._index.first)
        if keep_to < self._index.last:
            self._write((), replace(self._state, last_index=keep_to))
            self._index.cut_to(keep_to)
            self._recent.cut_to(keep_to)

    def reset_at(self, meta: SnapshotMeta, hard_state: HardState | None = None) -> None:
        kept = self._state.hard_state if hard_state is None else hard_state
        self._write((), LogState(meta.index, meta.index, meta.term, kept, meta))
        self._index.restart(meta.index + 1)
        self._recent.clear()
        self._drop_unneeded()

    def compact_prefix(self, up_to: Index) -> None:
        if up_to <= self._state.base:
            return
        term = self.term(up_to)
        self._write((), replace(self._state, last_index=self._index.last, base=up_to, base_term=term, snapshot=None))
        self._index.drop_to(up_to)
        self._drop_unneeded()

    def confirm_tail(self) -> None:
        """This store never suspects a tail: it refuses."""

    def close(self) -> None:
        self._close_reader()
        self._close_connection()

    # -- writing

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise StorageFailed(self._failure)
        if self._connection is None:
            raise ValueError("this log is not open")

    def _write(self, entries: Sequence[Entry], state: LogState | None) -> int:
        """One transaction; returns the place of its entries. Nothing is changed in memory if it raises."""
        self._check_usable()
        size = sum([len(entry.data) + _ROW_BYTES for entry in entries]) + 1024
        if self._free_bytes(self._directory) < 2 * size + _SPARE_BYTES:
            raise StorageFull(f"{self._directory}: no space left. Nothing of this write took effect.")
        assert self._acknowledged is not None
        if self._acknowledged.record > self._first_records[max(self._first_records)] and (
            self._acknowledged.size_bytes + size > self._segment_bytes
        ):
            self._start_file(max(self._first_records) + 1)
        record = self._record + 1
        self._transact(lambda connection: _insert(connection, record, entries, state))
        try:
            assert self._acknowledged is not None
            self._acknowledged.acknowledge(record)
        except OSError as error:
            self._failure = failure_of(self._directory, error)
            raise StorageFailed(self._failure) from error
        self._record = record
        if state is not None:
            self._state = state
        number = max(self._first_records)
        return number << 32 | (record - self._first_records[number])

    def _transact(self, change: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        import duckdb

        connection = self._connection
        assert connection is not None
        try:
            connection.execute("BEGIN")
            change(connection)
            connection.execute("COMMIT")
        except duckdb.Error as error:
            # It may be on disk all the same: only opening the log again can tell.
            self._failure = (
                f"{self._directory}: writing the log failed ({error}). Restart this node once the disk is sound."
            )
            raise StorageFailed(self._failure) from error

    def _start_file(self, number: int) -> None:
        """Go on in a new file, which begins with the log's state.

        It gets its name when that is in its WAL, so that a file without is always a loss, never a beginning.
        """
        import duckdb

        path = self._path(number)
        new = path + _NEW_SUFFIX
        state = replace(self._state, last_index=self._index.last)
        try:
            self._close_connection()
            self._connection = _connect(new)
            self._transact(lambda connection: _begin_file(connection, self._record, state))
            self._close_connection()
            self._files.rename(new + ".wal", path + ".wal")
            acknowledged = self._acknowledged = _AcknowledgedWal(path + ".wal", path + ".check")
            acknowledged.acknowledge(self._record)
            self._files.rename(new, path)
            self._files.sync_directory(self._directory)
            self._connection = _connect(path)
        except (duckdb.Error, OSError) as error:
            self._failure = f"{path}: cannot be made ({error}). Restart this node once the disk is sound."
            raise StorageFailed(self._failure) from error
        self._first_records[number] = self._record

    def _close_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._acknowledged is not None:
            self._acknowledged.close()
            self._acknowledged = None

    def _drop_unneeded(self) -> None:
        first = self._index.first
        current = max(self._first_records)
        oldest = self._index.place(first) >> 32 if first <= self._index.last else current
        for number in [number for number in self._first_records if number < oldest]:
            self._close_reader()
            del self._first_records[number]
            # The file itself first: a WAL without it is swept, a file without its WAL would look like a loss.
            for suffix in ("", ".wal", ".check"):
                self._files.unlink(self._path(number) + suffix)

    # -- reading

    def _read_from_disk(self, low: Index, high: Index, max_bytes: int) -> list[Entry]:
        entries: list[Entry] = []
        size = 0
        while low < high and size <= max_bytes:
            number = self._index.place(low) >> 32
            end = min(high, self._index.first_in(number + 1), low + 256)
            first_record = self._first_records[number]
            rows = self._rows(
                number,
                'SELECT record, "index", term, kind, data FROM entries WHERE "index" BETWEEN ? AND ? ORDER BY record',
                [low, end - 1],
            )
            found = {
                index: Entry(index, term, _KINDS[kind], data)
                for record, index, term, kind, data in rows
                if self._index.place(index) & 0xFFFFFFFF == record - first_record
            }
            if len(found) != end - low:
                raise LogCorrupt(self._path(number), 0, f"entries {low} to {end - 1} are not all there")
            entries += [found[index] for index in range(low, end)]
            size += sum([len(entry.data) for entry in found.values()])
            low = end
        return entries

    def _rows(self, number: int, query: str, parameters: Sequence[Any]) -> list[Any]:
        import duckdb

        try:
            if number == max(self._first_records):
                assert self._connection is not None
                return list(self._connection.execute(query, parameters).fetchall())
            if self._reader is None or self._reader[0] != number:
                self._close_reader()
                self._reader = (number, _connect(self._path(number)))
            return list(self._reader[1].execute(query, parameters).fetchall())
        except duckdb.Error as error:
            raise LogCorrupt(self._path(number), 0, f"DuckDB cannot read it ({error})") from error

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader[1].close()
            self._reader = None

    # -- opening

    def _path(self, number: int) -> str:
        return os.path.join(self._directory, f"{number:010d}{_SUFFIX}")

    def _numbers(self) -> list[int]:
        names = self._files.list_directory(self._directory)
        return sorted(int(name[: -len(_SUFFIX)]) for name in names if name.endswith(_SUFFIX))

    def _replay(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._close_connection()
            self._connection = self._replay_file(number)
        if self._index.first != self._state.base + 1:
            raise LogCorrupt(self._path(numbers[0]), 0, f"entries after {self._state.base} are gone: a file is missing")

    def _replay_file(self, number: int) -> duckdb.DuckDBPyConnection:
        import duckdb

        path = self._path(number)
        for needed in (path + ".wal", path + ".check"):
            if not os.path.exists(needed):
                raise LogCorrupt(needed, 0, "the file, which its neighbours need, is gone")
        acknowledged = self._acknowledged = _AcknowledgedWal(path + ".wal", path + ".check")
        acknowledged.verify()
        self._is_tail_unclean = acknowledged.is_exceeded()
        if self._is_tail_unclean:
            acknowledged.make_durable()
        try:
            connection = _connect(path)
            try:
                self._replay_tables(number, connection)
            except BaseException:
                connection.close()
                raise
        except duckdb.Error as error:
            raise LogCorrupt(path, 0, f"DuckDB cannot read it ({error})") from error
        if self._record < acknowledged.record:
            connection.close()
            raise LogCorrupt(path, 0, f"writes {self._record + 1} to {acknowledged.record} are lost")
        acknowledged.acknowledge(self._record)
        return connection

    def _sweep(self) -> None:
        """Remove what a crash left of files on their way to be, or to be gone."""
        names = set(self._files.list_directory(self._directory))
        for name in names:
            is_new = _SUFFIX + _NEW_SUFFIX in name
            owner = name.removesuffix(".wal").removesuffix(".check")
            if is_new or (owner.endswith(_SUFFIX) and owner not in names):
                self._files.unlink(os.path.join(self._directory, name))

    def _replay_tables(self, number: int, connection: duckdb.DuckDBPyConnection) -> None:
        path = self._path(number)
        ((form, previous_record),) = connection.execute("SELECT * FROM format").fetchall()
        if form != _FORMAT:
            raise LogCorrupt(path, 0, f"format {form}, this program knows {_FORMAT};")
        if self._first_records and previous_record != self._record:
            raise LogCorrupt(path, 0, f"writes {self._record + 1} to {previous_record} before it are lost")
        states = dict(connection.execute("SELECT record, state FROM states").fetchall())
        if not self._first_records:
            self._index.restart(log_state_from_plain(unpack(states[previous_record])).last_index + 1)
        self._first_records[number] = self._record = previous_record
        self._take_state(states.pop(previous_record))
        rows = connection.execute('SELECT record, "index", term FROM entries ORDER BY record, "index"').fetchall()
        batches: dict[int, list[tuple[Index, Term]]] = {}
        for record, index, term in rows:
            batches.setdefault(record, []).append((index, term))
        for record in sorted(batches.keys() | states.keys()):
            if record != self._record + 1:
                raise LogCorrupt(path, 0, f"write {self._record + 1} is missing")
            self._record = record
            if batch := batches.get(record):
                self._index.cut_to(batch[0][0] - 1)
                place = number << 32 | (record - previous_record)
                self._index.extend(array("Q", [place]) * len(batch), batch)
            if record in states:
                self._take_state(states[record])

    def _take_state(self, packed: bytes) -> None:
        state = self._state = log_state_from_plain(unpack(packed))
        if state.last_index < self._index.last:
            self._index.cut_to(state.last_index)
        if state.base >= self._index.first:
            self._index.drop_to(state.base)


def _connect(path: str) -> duckdb.DuckDBPyConnection:
    import duckdb

    config = {
        "threads": 1,
        "checkpoint_threshold": "1TB",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    connection = duckdb.connect(path, config=config)  # type: ignore[arg-type, unused-ignore]
    connection.execute("PRAGMA disable_checkpoint_on_shutdown")
    return connection


def _begin_file(connection: duckdb.DuckDBPyConnection, previous_record: int, state: LogState) -> None:
    connection.execute(_TABLES)
    connection.execute("INSERT INTO format VALUES (?, ?)", [_FORMAT, previous_record])
    _insert(connection, previous_record, (), state)


def _insert(
    connection: duckdb.DuckDBPyConnection, record: int, entries: Sequence[Entry], state: LogState | None
) -> None:
    if len(entries) == 1:
        entry = entries[0]
        row = [record, entry.index, entry.term, int(entry.kind), entry.data]
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
    elif entries:
        # One statement for all: a statement for each costs 40 ms for 100.
        columns = [
            [entry.index for entry in entries],
            [entry.term for entry in entries],
            [int(entry.kind) for entry in entries],
            [entry.data for entry in entries],
        ]
        connection.execute(
            "INSERT INTO entries SELECT ?, unnest(?::UBIGINT[]), unnest(?::UBIGINT[]), unnest(?::UTINYINT[]), "
            "unnest(?::BLOB[])",
            [record, *columns],
        )
    if state is not None:
        connection.execute(
            "INSERT INTO states VALUES (?, ?, ?)", [record, state.last_index, pack(log_state_to_plain(state))]
        )
