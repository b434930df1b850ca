"""The tables behind ``fsm.Table``: ordered maps in memory that the engine can undo, watch, copy and compare.

A plugin sees a mapping.  The engine sees, on the ``TableSet`` that holds all tables of a replica:

- *scopes*: ``begin`` ... ``commit`` or ``rollback``; every change inside is undone by rollback, and listed by commit
  as (table, key, old or ABSENT, new or ABSENT), one a key;
- *views*: ``freeze`` is a copy-on-write view of all rows at that moment; starting it costs nothing, a row that changes while it
  is open is kept in it, and the walk is cut into slices so that the loop never waits for it;
- a *digest*: the sum of a hash a row, so it does not depend on order, and a change costs only its own row.
  Hashing is put off until ``digest`` is asked for.

Keys and rows are checked when written: they are immutable codec values, so nothing can change behind the engine's back.
Not thread-safe: all of it belongs to the engine's loop.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, Final, Generic, TypeVar, overload

from sortedcontainers import SortedDict

from tauraft.codec import ValueCodec, compile_codec

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

DIGEST_BITS: Final = 128
ROWS_A_FREEZE: Final = 50_000
_MODULUS = 1 << DIGEST_BITS


class Absent:
    """No row."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()
Change = tuple[str, Any, Any, Any]


class Table(MutableMapping[K, V], Generic[K, V]):
    """An ordered map of immutable keys to immutable rows; a plugin's state.

    Ordered by key: ``range``, ``count``, ``first`` and ``last`` are O(log n), ``len`` is O(1). Writing needs a command under way.
    Adding or removing keys while iterating raises ``RuntimeError``; wrong types raise ``TypeError``.
    """

    __slots__ = ("_check_key", "_check_row", "_rows", "_set", "_shape", "key_codec", "name", "owner", "row_codec")

    def __init__(self, owner: str, name: str, key_hint: Any, row_hint: Any) -> None:
        self.owner = owner
        self.name = f"{owner}/{name}"
        self.key_codec: ValueCodec = compile_codec(key_hint)
        self.row_codec: ValueCodec = compile_codec(row_hint)
        self._check_key = self.key_codec.pack
        self._check_row = self.row_codec.pack
        self._rows: Any = SortedDict()
        self._set: TableSet | None = None
        self._shape = 0  # changes whenever a key comes or goes

    def __getitem__(self, key: K) -> V:
        row: V = self._rows[key]
        return row

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V) -> V: ...
    @overload
    def get(self, key: K, /, default: D) -> V | D: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        return self._rows.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[K]:
        return self._guarded(iter(self._rows))

    def __setitem__(self, key: K, row: V) -> None:
        self._check_key(key)
        self._check_row(row)
        old = self._rows.get(key, ABSENT)
        self._record(key, old)
        if old is ABSENT:
            self._shape += 1
        self._rows[key] = row

    def __delitem__(self, key: K) -> None:
        old = self._rows[key]
        self._record(key, old)
        self._shape += 1
        self._remove(key)

    def range(self, low: K | None = None, high: K | None = None, *, reverse: bool = False) -> Iterator[tuple[K, V]]:
        """(key, row) with low <= key < high, in order; None is no bound."""
        keys = self._rows.irange(low, high, inclusive=(True, False), reverse=reverse)
        rows = self._rows
        return ((key, rows[key]) for key in self._guarded(keys))

    def count(self, low: K | None = None, high: K | None = None) -> int:
        """How many keys there are with low <= key < high, in O(log n)."""
        rows = self._rows
        start = 0 if low is None else rows.bisect_left(low)
        return max(0, (len(rows) if high is None else rows.bisect_left(high)) - start)

    def first(self) -> tuple[K, V] | None:
        return self._rows.peekitem(0) if self._rows else None

    def last(self) -> tuple[K, V] | None:
        return self._rows.peekitem(-1) if self._rows else None

    def _guarded(self, keys: Iterator[K]) -> Iterator[K]:
        shape = self._shape
        for key in keys:
            yield key
            if self._shape != shape:
                raise RuntimeError(f"table {self.name} was changed while it was iterated: take list(...) of it first")

    def _record(self, key: Any, old: Any) -> None:
        tables = self._set
        if tables is None or not tables.in_scope:
            raise RuntimeError(f"table {self.name} can only be changed by a command")
        if tables.writer != self.owner:
            raise RuntimeError(f"{tables.writer} may read {self.owner}, not change it")
        tables.record(self, key, old)

    def _remove(self, key: Any) -> None:
        if key is None:
            self._rows.clear()  # a table of one row; looking for None among sorted keys would compare it
        else:
            del self._rows[key]

    # For TableSet: no checks, no record.

    def restore_row(self, key: Any, row: Any) -> None:
        if row is ABSENT:
            self._shape += 1
            self._remove(key)
        else:
            if key not in self._rows:
                self._shape += 1
            self._rows[key] = row

    @property
    def rows(self) -> Any:
        """The SortedDict itself, to read from."""
        return self._rows

    def adopt(self, rows: Any) -> Any:
        """Stand on these rows (a SortedDict) instead of its own, which are returned."""
        before, self._rows = self._rows, rows
        self._shape += 1
        return before


class TableSet:
    """All tables of one replica."""

    def __init__(self) -> None:
        self._tables: dict[str, Table[Any, Any]] = {}
        self._journal: list[tuple[Table[Any, Any], Any, Any]] = []
        self._marks: list[int] = []
        self._views: list[FrozenView] = []
        self._stale: dict[tuple[str, Any], Any] = {}  # row at the last digest, of rows changed since
        self._digest = 0
        self.writer = ""

    @property
    def in_scope(self) -> bool:
        return bool(self._marks)

    def __iter__(self) -> Iterator[Table[Any, Any]]:
        return iter(self._tables.values())

    def __getitem__(self, name: str) -> Table[Any, Any]:
        return self._tables[name]

    def find(self, name: str) -> Table[Any, Any] | None:
        return self._tables.get(name)

    def add(self, table: Table[Any, Any]) -> None:
        if table.name in self._tables:
            raise ValueError(f"there is a table {table.name} already")
        table._set = self
        self._tables[table.name] = table

    def remove(self, table: Table[Any, Any]) -> None:
        """With all its rows, outside any scope's undo: for upgrades, which are not undone."""
        for key, row in table.rows.items():
            self._note(table, key, row)
        del self._tables[table.name]
        table._set = None

    # Scopes.

    def begin(self) -> None:
        self._marks.append(len(self._journal))

    def record(self, table: Table[Any, Any], key: Any, old: Any) -> None:
        self._journal.append((table, key, old))
        if self._views:
            for view in self._views:
                view.preserve(table, key, old)

    def commit(self) -> list[Change]:
        """Close the innermost scope. The outermost one lists what changed; an inner one leaves that to it."""
        mark = self._marks.pop()
        if self._marks:
            return []
        journal = self._journal
        if not journal:
            return []
        first: dict[tuple[str, Any], tuple[Table[Any, Any], Any]] = {}
        for table, key, old in journal:
            first.setdefault((table.name, key), (table, old))
        del journal[mark:]
        changes = []
        for (name, key), (table, old) in first.items():
            new = table.rows.get(key, ABSENT)
            if new is not old:
                self._note(table, key, old)
                changes.append((name, key, old, new))
        return changes

    def rollback(self) -> None:
        """Close the innermost scope, and leave no trace of what it changed."""
        mark = self._marks.pop()
        journal = self._journal
        while len(journal) > mark:
            table, key, old = journal.pop()
            table.restore_row(key, old)

    # Digest.

    def _note(self, table: Table[Any, Any], key: Any, old: Any) -> None:
        self._stale.setdefault((table.name, key), old)

    def digest(self) -> int:
        """The sum over all rows of a 128-bit hash of table, key and row."""
        return self.fold(len(self._stale))

    @property
    def stale_rows(self) -> int:
        """How many rows ``digest`` would have to hash."""
        return len(self._stale)

    def fold(self, max_rows: int) -> int:
        """Hash some of the rows changed since the last time, so that ``digest`` has less to do."""
        total = self._digest
        stale = self._stale
        for _ in range(min(max_rows, len(stale))):
            (name, key), old = stale.popitem()
            table = self._tables.get(name)
            if old is not ABSENT:
                total -= self._row_hash(name, table, key, old)
            if table is not None:
                new = table.rows.get(key, ABSENT)
                if new is not ABSENT:
                    total += self._row_hash(name, table, key, new)
        self._digest = total % _MODULUS
        return self._digest

    def _row_hash(self, name: str, table: Table[Any, Any] | None, key: Any, row: Any) -> int:
        known = self._tables[name] if table is None else table
        # Both were accepted when the row was set.
        return row_hash(name, known.key_codec.encode_accepted(key), known.row_codec.encode_accepted(row))

    # Views and loading.

    def freeze(self) -> FrozenView:
        if self._marks:
            raise RuntimeError("a view is taken between entries, not inside a command")
        view = FrozenView(self._tables, self._views.remove)
        self._views.append(view)
        return view

    def load(self, rows: Iterator[tuple[str, bytes, bytes]]) -> None:
        """Replace all rows by encoded ones (table, key, row). Raises ``CodecError``; ``KeyError`` for an unknown table."""
        tables = list(self)
        self.adopt(tables, load_rows(tables, rows))

    def adopt(self, tables: Sequence[Table[Any, Any]], loaded: LoadedRows) -> list[Any]:
        """Consist of ``tables``, with the rows loaded for them. At once, however many; returns the rows there were."""
        if self._marks:
            raise RuntimeError("rows are replaced between entries, not inside a command")
        kept = {id(table) for table in tables}
        before = []
        for table in self._tables.values():
            if id(table) not in kept:
                before.append(table.adopt(SortedDict()))
                table._set = None
        self._tables = {table.name: table for table in tables}
        for table in tables:
            table._set = self
            before.append(table.adopt(loaded.rows[table.name]))
        self._stale = {}
        self._digest = loaded.digest
        return before


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """By table's name, as SortedDicts; and the digest of all."""

    rows: dict[str, Any]
    digest: int


def load_rows(tables: Iterable[Table[Any, Any]], rows: Iterable[tuple[str, bytes, bytes]]) -> LoadedRows:
    """Decode rows for ``TableSet.adopt``. Touches nothing but the tables' codecs, so any thread may do it.

    One by one, since rows come in order: building a map of a million at once would hold the GIL for a tenth of a second.
    """
    found: dict[str, tuple[Any, Callable[[bytes], Any], Callable[[bytes], Any]]] = {
        table.name: (SortedDict(), table.key_codec.decode, table.row_codec.decode) for table in tables
    }
    digest = 0
    for count, (name, key, row) in enumerate(rows, 1):
        loaded, decode_key, decode_row = found[name]
        loaded[decode_key(key)] = decode_row(row)
        digest += row_hash(name, key, row)
        if count % ROWS_A_FREEZE == 0:
            # Rows hold no cycles, and the collector looks at each of them in every full pass: with a million of them,
            # six passes of up to 0.4 s while they are read, all with the GIL (docs/decisions/0011).
            gc.freeze()
            # At exit it has to see them again: extension modules complain of what was never freed.
            atexit.unregister(gc.unfreeze)
            atexit.register(gc.unfreeze)
    return LoadedRows({name: loaded for name, (loaded, _, _) in found.items()}, digest % _MODULUS)


def row_hash(table: str, key: bytes, row: bytes) -> int:
    hasher = blake2b(digest_size=DIGEST_BITS // 8)
    hasher.update(b"%d:%d:" % (len(table), len(key)))
    hasher.update(table.encode())
    hasher.update(key)
    hasher.update(row)
    return int.from_bytes(hasher.digest(), "big")


class FrozenView:
    """All rows as they were when the view was taken; writes go on meanwhile. Close it.

    Kept is only what changes ahead of the walk: what was walked already, and tables made since, are none of its affair.
    """

    def __init__(self, tables: dict[str, Table[Any, Any]], closed: Callable[[FrozenView], None]) -> None:
        self._tables = list(tables.values())
        # By identity: an upgrade puts another table in the place of one.
        self._kept: dict[int, Any] = {id(table): SortedDict() for table in self._tables}
        self._walked: dict[int, Any] = {}  # up to and with this key
        self._closed = closed

    def preserve(self, table: Table[Any, Any], key: Any, old: Any) -> None:
        kept = self._kept.get(id(table))
        if kept is None or key in kept:
            return
        last = self._walked.get(id(table), ABSENT)
        if last is ABSENT or (last is not None and key > last):
            kept[key] = old

    def rows(self, max_rows: int) -> Iterator[list[tuple[str, Any, Any]]]:
        """(table, key, row), tables in order of addition, rows by key; at most ``max_rows`` a slice."""
        for table in self._tables:
            kept = self._kept[id(table)]
            name, now = table.name, table.rows
            last: Any = ABSENT
            while keys := self._next_keys(now, kept, last, max_rows):
                last = self._walked[id(table)] = keys[-1]
                found = []
                for key in keys:
                    row = kept[key] if key in kept else now[key]
                    if row is not ABSENT:
                        found.append((name, key, row))
                if found:
                    yield found
            del self._kept[id(table)]

    @staticmethod
    def _next_keys(now: Any, kept: Any, last: Any, count: int) -> list[Any]:
        """The next keys of the union of what is there now and what was there then."""
        if last is None:
            return []  # the key of a table of one row; for irange it would mean "from the start"
        if last is ABSENT:
            present, past = now.irange(), kept.irange()
        else:
            present = now.irange(last, None, inclusive=(False, True))
            past = kept.irange(last, None, inclusive=(False, True))
        keys = list(islice(present, count))
        if not kept:
            return keys
        gone = [key for key in islice(past, count) if key not in now]
        return sorted(keys + gone)[:count] if gone else keys

    def close(self) -> None:
        self._kept.clear()
        self._closed(self)
