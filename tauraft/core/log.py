"""The replicated log as the core sees it: what is on disk, and the tail that is on its way there.

``LogView`` is the disk, read only.  ``RaftLog`` lays the tail over it: entries appended here whose
write has not been reported yet, plus a few recent ones so that the hot path never asks the disk.

Four marks matter, and ``applied <= handed <= commit`` as well as ``handed <= stable`` hold always:

    stable    on disk here, and not overwritten since
    commit    decided by a majority (may be ahead of ``stable``: thesis 10.2.1)
    handed    given to the driver to apply
    applied   reported applied

Several writes may be under way.  A write whose entries were overwritten before it was reported must not
count for the entries that took their place, even where index and term agree again later (the ABA
race): so each write under way remembers how far it still speaks for this log, and cutting the
tail shortens all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from tauraft.core.messages import Entry, EntryKind, Index, SnapshotMeta, Term

_CACHED_ENTRIES = 512
_CACHED_BYTES = 8 << 20


class Compacted(Exception):
    """The entry is no longer in the log: a snapshot covers it."""

    def __init__(self, index: Index) -> None:
        super().__init__(f"entry {index} is compacted")
        self.index = index


class Unavailable(Exception):
    """The entry is beyond the end of the log."""

    def __init__(self, index: Index) -> None:
        super().__init__(f"entry {index} is beyond the end of the log")
        self.index = index


class CommittedEntryConflict(Exception):
    """A leader contradicts an entry that was committed: no run of Raft does this; stop the node."""

    def __init__(self, index: Index, commit: Index) -> None:
        super().__init__(f"a leader sent another entry {index}, though {commit} is committed here")
        self.index = index
        self.commit = commit


class AcknowledgedEntriesLost(Exception):
    """This disk lacks what this member had acknowledged: it is not the disk it was. Stop the node; it must be replaced (SAFETY 14)."""

    def __init__(self, index: Index, last_index: Index) -> None:
        super().__init__(f"entry {index} was acknowledged from here and is committed, but the log ends at {last_index}")
        self.index = index
        self.last_index = last_index


class HardStateLost(Exception):
    """The log has entries of a term that the hard state does not know: whom this member voted for is lost. Do not start it."""

    def __init__(self, log_term: Term, term: Term) -> None:
        super().__init__(f"the log ends with an entry of term {log_term}, but the hard state is of term {term}")
        self.log_term = log_term
        self.term = term


class LogView(Protocol):
    """What the core reads of the log on disk. Called only from within a call into ``Raft``."""

    def first_index(self) -> Index:
        """The first entry there is; one after the last where there is none."""

    def last_index(self) -> Index: ...

    def term(self, index: Index) -> Term:
        """Also of ``first_index() - 1``, the base. Raises ``Compacted`` below it."""

    def entries(self, low: Index, high: Index, max_bytes: int) -> Sequence[Entry]:
        """``low <= index < high``, cut to ``max_bytes`` of data but at least one. Raises ``Compacted``."""

    def snapshot_meta(self) -> SnapshotMeta:
        """The newest snapshot that can be sent to another member."""


class _Write:
    """One Ready under way to disk: ``stable_to`` is how far it still speaks for the log."""

    __slots__ = ("number", "snapshot", "stable_to")

    def __init__(self, number: int, stable_to: Index, snapshot: SnapshotMeta | None) -> None:
        self.number = number
        self.stable_to = stable_to
        self.snapshot = snapshot


class RaftLog:
    """Disk and tail as one log. Only ``Raft`` and its roles use it."""

    __slots__ = (
        "_given",
        "_is_snapshot_given",
        "_tail",
        "_tail_bytes",
        "_tail_first",
        "_view",
        "_writes",
        "applied",
        "commit",
        "handed",
        "last_index",
        "last_term",
        "pending_snapshot",
        "stable",
    )

    def __init__(self, view: LogView, commit: Index, applied: Index) -> None:
        first, last = view.first_index(), view.last_index()
        if not first - 1 <= applied <= last:
            raise ValueError(f"applied {applied} does not fit a log of entries {first} to {last}")
        if commit > last:
            raise ValueError(f"entry {commit} is committed, but the log ends at {last}")
        self._view = view
        self.last_index: Index = last
        self.last_term: Term = view.term(last)
        self.stable: Index = last
        self.applied: Index = applied
        self.handed: Index = applied
        self.commit: Index = max(commit, applied)
        self.pending_snapshot: SnapshotMeta | None = None
        self._is_snapshot_given = False
        self._given: Index = last
        self._tail: list[Entry] = []
        self._tail_first: Index = last + 1
        self._tail_bytes = 0
        self._writes: deque[_Write] = deque()

    # Reading.

    @property
    def first_index(self) -> Index:
        if self.pending_snapshot is not None:
            return self.pending_snapshot.index + 1
        return self._view.first_index()

    def snapshot_meta(self) -> SnapshotMeta:
        return self._view.snapshot_meta()

    def term(self, index: Index) -> Term:
        """Raises ``Compacted``, ``Unavailable``."""
        if index == self.last_index:
            return self.last_term
        if index > self.last_index:
            raise Unavailable(index)
        offset = index - self._tail_first
        if offset >= 0:
            return self._tail[offset].term
        if self.pending_snapshot is not None:
            if index == self.pending_snapshot.index:
                return self.pending_snapshot.term
            raise Compacted(index)
        if index < self._view.first_index() - 1:
            raise Compacted(index)
        return self._view.term(index)

    def matches(self, index: Index, term: Term) -> bool:
        try:
            return self.term(index) == term
        except (Compacted, Unavailable):
            return False

    def is_up_to_date(self, last_index: Index, last_term: Term) -> bool:
        """Thesis 3.6.1: may someone whose log ends so lead this one?"""
        return last_term > self.last_term or (last_term == self.last_term and last_index >= self.last_index)

    def entries(self, low: Index, high: Index, max_bytes: int) -> Sequence[Entry]:
        """``low <= index < high``, possibly fewer than asked for, at least one. Raises ``Compacted``."""
        offset = low - self._tail_first
        if offset >= 0:
            chunk = self._tail[offset : high - self._tail_first]
            if len(chunk) == 1:
                return chunk
            total = 0
            for count, entry in enumerate(chunk):
                total += len(entry.data)
                if total > max_bytes and count:
                    return chunk[:count]
            return chunk
        if low < self.first_index:
            raise Compacted(low)
        return self._view.entries(low, min(high, self._tail_first), max_bytes)

    def last_match_below(self, index: Index, term: Term) -> tuple[Index, Term]:
        """The last entry at or below ``index`` whose term is at most ``term``: nothing above it can match.

        The term is 0 where the log no longer knows it.
        """
        while index > 0:
            try:
                found = self.term(index)
            except (Compacted, Unavailable):
                return index, 0
            if found <= term:
                return index, found
            index -= 1
        return 0, 0

    def has_unapplied_config(self) -> bool:
        """Is there a membership change that is committed and not applied yet (SAFETY 25)?"""
        low = max(self.applied + 1, self.first_index)
        while low <= self.commit:
            chunk = self.entries(low, self.commit + 1, _CACHED_BYTES)
            if any(entry.kind is EntryKind.CONFIG for entry in chunk):
                return True
            low += len(chunk)
        return False

    # Growing.

    def append(self, entries: Sequence[Entry]) -> None:
        """As leader: entries that follow the last one."""
        self._tail.extend(entries)
        last = entries[-1]
        self.last_index = last.index
        self.last_term = last.term
        for entry in entries:
            self._tail_bytes += len(entry.data)

    def append_after(self, prev_index: Index, prev_term: Term, entries: Sequence[Entry]) -> Index | None:
        """As follower: the last index that now agrees with the leader; None where the log before it does not.

        Raises ``CommittedEntryConflict``.
        """
        if not self.matches(prev_index, prev_term):
            return None
        for position, entry in enumerate(entries):
            if entry.index > self.last_index:
                self.append(entries[position:])
                break
            # What agrees is left alone: a late, shorter Append must not cut off what a newer one brought.
            if not self.matches(entry.index, entry.term):
                if entry.index <= self.commit:
                    raise CommittedEntryConflict(entry.index, self.commit)
                self._cut(entry.index)
                self.append(entries[position:])
                break
        return prev_index + len(entries)

    def _cut(self, index: Index) -> None:
        keep = index - 1
        if index >= self._tail_first:
            dropped = self._tail[index - self._tail_first :]
            del self._tail[index - self._tail_first :]
            self._tail_bytes -= sum(len(entry.data) for entry in dropped)
        else:
            self._tail.clear()
            self._tail_bytes = 0
            self._tail_first = index
        self.stable = min(self.stable, keep)
        self._given = min(self._given, keep)
        for write in self._writes:
            write.stable_to = min(write.stable_to, keep)

    def commit_to(self, index: Index) -> bool:
        """True if the commit index moved."""
        index = min(index, self.last_index)
        if index <= self.commit:
            return False
        self.commit = index
        return True

    def restore(self, meta: SnapshotMeta) -> None:
        """Everything is replaced by the snapshot, once the driver has installed it."""
        self._tail.clear()
        self._tail_bytes = 0
        self._tail_first = meta.index + 1
        self.pending_snapshot = meta
        self._is_snapshot_given = False
        self.last_index, self.last_term = meta.index, meta.term
        self.commit = meta.index
        self._given = meta.index
        # Nothing of the old log speaks for the new one, neither what is on disk nor what is on the way.
        self.stable = min(self.stable, self.handed)
        for write in self._writes:
            write.stable_to = 0
            write.snapshot = None

    # Disk.

    def has_unwritten(self) -> bool:
        return self._given < self.last_index or (self.pending_snapshot is not None and not self._is_snapshot_given)

    def next_write(self, number: int) -> tuple[tuple[Entry, ...], SnapshotMeta | None]:
        """What the Ready of this number takes to disk."""
        snapshot = None
        if self.pending_snapshot is not None and not self._is_snapshot_given:
            snapshot = self.pending_snapshot
            self._is_snapshot_given = True
        entries: tuple[Entry, ...] = ()
        if self._given < self.last_index:
            entries = tuple(self._tail[self._given + 1 - self._tail_first :])
            self._given = self.last_index
        if entries or snapshot is not None:
            self._writes.append(_Write(number, self.last_index, snapshot))
        return entries, snapshot

    def persisted(self, number: int) -> None:
        """The Readies up to ``number`` are on disk."""
        writes = self._writes
        while writes and writes[0].number <= number:
            write = writes.popleft()
            if write.snapshot is not None:
                self.pending_snapshot = None
                self._is_snapshot_given = False
                self.applied = max(self.applied, write.snapshot.index)
                self.handed = max(self.handed, write.snapshot.index)
            if write.stable_to > self.stable:
                self.stable = write.stable_to
        self._trim()

    def _trim(self) -> None:
        """Forget what is on disk and handed out, in large strides."""
        if len(self._tail) <= _CACHED_ENTRIES and self._tail_bytes <= _CACHED_BYTES:
            return
        spare = min(self.stable, self.handed) + 1 - self._tail_first
        if spare * 2 > len(self._tail) or (spare > 0 and self._tail_bytes > _CACHED_BYTES):
            dropped = self._tail[:spare]
            del self._tail[:spare]
            self._tail_first += spare
            self._tail_bytes -= sum(len(entry.data) for entry in dropped)

    # Applying.

    def has_committed(self) -> bool:
        return self.handed < self.commit and self.handed < self.stable and self.pending_snapshot is None

    def next_committed(self, max_bytes: int) -> tuple[Entry, ...]:
        """Committed *and* persisted here (SAFETY 12), not handed out before."""
        if not self.has_committed():
            return ()
        entries = tuple(self.entries(self.handed + 1, min(self.commit, self.stable) + 1, max_bytes))
        self.handed = entries[-1].index
        return entries
