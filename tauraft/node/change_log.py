"""What changed lately, by revision: the memory from which watches are served and the recent past is read.

A *frame* is what one executed command changed (``RevisionChanges``): a whole transaction, a whole session's end.  The frames of
plugins' tables are kept, newest last, as long as they weigh at most ``max_bytes`` together; older ones go.  ``base``
is the revision up to which they are gone: a cursor or ``at`` below it is ``Compacted``.  The system's own tables are left out.

Fed by apply, so after a restart it is rebuilt by applying the log, from the snapshot's revision on.  ``restart`` empties it where
the frames no longer lead to the state: a snapshot was installed, or an FSM was upgraded and its rows have another shape.

*The past* (``at``): a row at revision r is what the first change of its key after r replaced, or else today's row.  Those
replaced rows are gathered once for each (table, revision) asked for and kept for the next pages; the last few of them.

Rows are immutable and shared with the tables, so a frame costs little until its rows are replaced; old and new rows are
both counted all the same, since at the latest then both live here alone.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from operator import attrgetter
from typing import Any, Final, NamedTuple

from sortedcontainers import SortedDict

from tauraft.codec import field_codecs
from tauraft.errors import Compacted, InvalidCommand
from tauraft.system.messages import SYSTEM
from tauraft.tables import ABSENT, Change, Table, TableSet

MAX_BYTES: Final = 24 << 20
FRAME_BYTES: Final = 150  # of a frame and its change, without what they hold
KEPT_PASTS: Final = 4

Weigh = Callable[[Any], int]


class RevisionChanges(NamedTuple):  # one a command: a frozen dataclass takes three times as long to make
    """What one executed command changed; rows of one revision are one frame of events.

    ``session``: whose command it was; None: a timer's, or it was done at a session's end. ``first``: the first revision in it.
    """

    revision: int
    now_ns: int
    wall_ns: int
    changes: Sequence[Change]
    session: int | None
    first: int


class ChangeLog:
    """See the module. Belongs to the engine's loop."""

    def __init__(self, tables: TableSet, max_bytes: int = MAX_BYTES) -> None:
        self.base = 0  # frames up to this revision are gone
        self.revision = 0  # of the state: frames up to here are in
        self.now_ns = 0
        self.total_bytes = 0  # ever recorded
        self.restarts = 0
        self._tables = tables
        self._max_bytes = max_bytes
        self._frames: list[RevisionChanges] = []
        self._entries: deque[tuple[int, int]] = deque()  # what was recorded together: how many frames, their weight
        self._gone = 0  # of the list's front: evicted, and not yet cut off
        self._cut = 0  # frames cut off before the list began: ``number`` of a frame = its place in the list + this
        self._bytes = 0
        self._weighers: dict[str, tuple[Weigh, Weigh] | None] = {}
        self._pasts: dict[tuple[str, int], _Past] = {}

    # ---- writing ----

    def record(self, frames: Sequence[RevisionChanges]) -> None:
        """Those of one entry, in the order of their revisions."""
        weighers = self._weighers
        weight, is_foreign = FRAME_BYTES * len(frames), False
        for frame in frames:
            for name, key, old, new in frame.changes:
                try:
                    weigher = weighers[name]
                except KeyError:
                    weigher = weighers[name] = self._weigher(name)
                if weigher is None:
                    is_foreign = True
                    continue
                weigh_key, weigh_row = weigher
                weight += weigh_key(key)
                if old is not ABSENT:
                    weight += weigh_row(old)
                if new is not ABSENT:
                    weight += weigh_row(new)
        if is_foreign:
            kept = (
                frame._replace(changes=[change for change in frame.changes if weighers[change[0]] is not None])
                for frame in frames
            )
            frames = [frame for frame in kept if frame.changes]
            if not frames:
                return
        self._frames += frames
        self._entries.append((len(frames), weight))
        self._bytes += weight
        self.total_bytes += weight
        if self._bytes > self._max_bytes:
            self._evict()

    def restart(self, revision: int, now_ns: int) -> None:
        """The state was replaced: nothing that was recorded leads to it."""
        self._cut += len(self._frames)
        self._frames, self._gone, self._bytes = [], 0, 0
        self._entries.clear()
        self._pasts.clear()
        self._weighers.clear()
        self.base = self.revision = revision
        self.now_ns = now_ns
        self.restarts += 1

    def _evict(self) -> None:
        while self._bytes > self._max_bytes:
            count, weight = self._entries.popleft()
            end = self._gone + count
            self.base = self._frames[end - 1].revision
            self._bytes -= weight
            # The frames themselves must go now; their places are cut off with many others at once.
            self._frames[self._gone : end] = [_EVICTED] * count
            self._gone = end
        if self._gone > 1024 and self._gone * 2 > len(self._frames):
            del self._frames[: self._gone]
            self._cut += self._gone
            self._gone = 0
        self._pasts = {place: past for place, past in self._pasts.items() if place[1] >= self.base}

    def _weigher(self, name: str) -> tuple[Weigh, Weigh] | None:
        if name.startswith(f"{SYSTEM}/"):
            return None
        table = self._tables[name]
        return _weigher(table.key_codec.hint) or _nothing, _weigher(table.row_codec.hint) or _nothing

    # ---- reading ----

    def table(self, name: str) -> Table[Any, Any] | None:
        """A plugin's table that is there now."""
        return None if name.startswith(f"{SYSTEM}/") else self._tables.find(name)

    @property
    def end(self) -> int:
        """The number that the next frame will have. Numbers run on over evictions and restarts."""
        return self._cut + len(self._frames)

    def number_after(self, revision: int) -> int:
        """The number of the first frame that ends after ``revision``, which is not below ``base``."""
        return self._cut + bisect_right(self._frames, revision, lo=self._gone, key=_last_revision)

    def frames(self, start: int, most: int | None = None) -> Sequence[RevisionChanges]:
        """Frames by number, from ``start`` on; it must not be below that of an evicted frame."""
        place = start - self._cut
        return self._frames[place : None if most is None else place + most]

    def at(self, table: Table[Any, Any], revision: int) -> Past:
        """The rows of ``table`` at ``revision``. Raises ``Compacted``, ``InvalidCommand``. Good until the next change."""
        if revision < self.base:
            raise Compacted(
                f"revision {revision} is not remembered any more; the oldest one is {self.base}", oldest=self.base
            )
        if revision > self.revision:
            raise InvalidCommand(f"revision {revision} is not reached yet: the newest one is {self.revision}")
        place = (table.name, revision)
        past = self._pasts.pop(place, None)
        if past is None:
            first = bisect_right(self._frames, revision, lo=self._gone, key=_first_revision)
            past = _Past(self._cut + first)
            while len(self._pasts) >= KEPT_PASTS:
                del self._pasts[next(iter(self._pasts))]
        self._pasts[place] = past
        past.take_back(table.name, self.frames(past.next))
        return Past(table, past.rows)


class Past:
    """See ``tauraft.fsm.PastTable``."""

    def __init__(self, table: Table[Any, Any], replaced: Any) -> None:
        self._table = table
        self._replaced = replaced

    def get(self, key: Any) -> Any:
        row = self._replaced.get(key, _UNCHANGED)
        if row is _UNCHANGED:
            return self._table.get(key)
        return None if row is ABSENT else row

    def range(self, low: Any = None, high: Any = None) -> Iterator[tuple[Any, Any]]:
        replaced = self._replaced
        if not replaced:
            yield from self._table.range(low, high)
            return
        rows = self._table.rows
        bounds = (True, False)
        last: Any = _UNCHANGED
        for key in merge(rows.irange(low, high, bounds), replaced.irange(low, high, bounds)):
            if key == last:
                continue
            last = key
            row = replaced[key] if key in replaced else rows[key]
            if row is not ABSENT:
                yield key, row


class _Past:
    """The rows that were replaced after a revision, by key; ABSENT where there was none."""

    def __init__(self, first: int) -> None:
        self.next = first  # number of the frame that is to be looked at next
        self.rows: Any = SortedDict()

    def take_back(self, name: str, frames: Sequence[RevisionChanges]) -> None:
        found: dict[Any, Any] = {}
        rows = self.rows
        for frame in frames:
            for table, key, old, _ in frame.changes:
                if table == name and key not in rows:
                    found.setdefault(key, old)
        rows.update(found)  # sorts once
        self.next += len(frames)


def _last_revision(frame: RevisionChanges) -> int:
    return frame.revision


def _first_revision(frame: RevisionChanges) -> int:
    return frame.first


def _nothing(value: Any) -> int:
    return 0


def _weigher(hint: Any) -> Weigh | None:
    """About how many bytes a value of that type holds; None: always few."""
    if hint in (bytes, str):
        return len
    if hint in (int, float, bool, None, type(None)):
        return None
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        heavy_members = {_weigher(member) for member in typing.get_args(hint)} - {None}
        if heavy_members == {len} and type(None) in typing.get_args(hint) and len(typing.get_args(hint)) == 2:
            return _weigh_text_or_none
        return _weigh_any if heavy_members else None
    if origin is tuple and typing.get_args(hint)[1:] == (...,) and _weigher(typing.get_args(hint)[0]) is len:
        return _weigh_texts
    if dataclasses.is_dataclass(origin):
        hint = origin  # ``Ticket[Grant]``: what it stands for is not in it
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        parts = [(field.name, _weigher(codec.hint)) for field, codec in field_codecs(hint)]
        heavy = [(name, weigh) for name, weigh in parts if weigh is not None]
        if not heavy:
            return None
        if len(heavy) == 1:
            name, weigh = heavy[0]
            return lambda row: weigh(getattr(row, name))
        values_of, weighers = attrgetter(*(name for name, _ in heavy)), [weigh for _, weigh in heavy]

        def weigh_row(row: Any) -> int:
            total = 0  # each row of each command comes here: a generator would cost as much as all the rest
            for value, weigh in zip(values_of(row), weighers, strict=True):
                total += weigh(value)
            return total

        return weigh_row
    return _weigh_any


def _weigh_text_or_none(value: Any) -> int:
    return 0 if value is None else len(value)


def _weigh_texts(values: tuple[Any, ...]) -> int:
    return 8 * len(values) + sum(map(len, values))


def _weigh_any(value: Any) -> int:
    kind = type(value)
    if kind is bytes or kind is str:
        return len(value)
    if kind is tuple:
        return 8 * len(value) + sum(map(_weigh_any, value))
    fields = getattr(kind, "__dataclass_fields__", None)
    return 8 if fields is None else sum(_weigh_any(getattr(value, name)) for name in fields)


_UNCHANGED: Final[Any] = object()
_EVICTED: Final = RevisionChanges(0, 0, 0, (), None, 0)
