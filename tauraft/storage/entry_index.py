"""What a log on disk keeps in memory: where each entry lies, its term, and the most recent entries themselves.

``EntryIndex``: 8 bytes an entry, and a run for each change of term; entries ``first..last`` without holes.  Where
the oldest segment found is not the oldest needed, ``first`` is above the log's base: the store takes that for a
missing segment. ``RecentEntries``: the end of the log up to a number of bytes, so that reading the tail does no I/O.
Both are plain data in memory; the stores keep them true to the disk.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence

from tauraft.core.messages import Entry, Index, Term

_ENTRY_BYTES = 100  # of an Entry object beside its data, roughly


class EntryIndex:
    """A place (a number of the store's own, its high half a segment) for each entry, and its term."""

    def __init__(self, first: Index) -> None:
        self.first = first
        self._places = array("Q")
        self._dropped = 0  # how many places at the beginning of the array no longer count
        self._run_starts: list[Index] = []
        self._run_terms: list[Term] = []

    @property
    def last(self) -> Index:
        return self.first + len(self._places) - self._dropped - 1

    def restart(self, first: Index) -> None:
        self.__init__(first)  # type: ignore[misc]

    def place(self, index: Index) -> int:
        return self._places[index - self.first + self._dropped]

    def term(self, index: Index) -> Term:
        return self._run_terms[bisect_right(self._run_starts, index) - 1]

    def extend(self, places: array[int], terms: Sequence[tuple[Index, Term]]) -> None:
        self._places.extend(places)
        for start, term in terms:
            if not self._run_terms or self._run_terms[-1] != term:
                self._run_starts.append(start)
                self._run_terms.append(term)

    def cut_to(self, last: Index) -> None:
        if last < self.first - 1:
            self.restart(last + 1)
        elif last < self.last:
            del self._places[last + 1 - self.first + self._dropped :]
            runs = bisect_right(self._run_starts, last)
            del self._run_starts[runs:], self._run_terms[runs:]

    def drop_to(self, base: Index) -> None:
        if base >= self.last:
            self.restart(base + 1)
        elif base >= self.first:
            self._dropped += base + 1 - self.first
            self.first = base + 1
            if self._dropped > len(self._places) // 2:
                del self._places[: self._dropped]
                self._dropped = 0
            runs = bisect_right(self._run_starts, self.first) - 1
            del self._run_starts[:runs], self._run_terms[:runs]

    def runs(self, first: Index) -> list[tuple[Index, Term]]:
        """The runs of terms from ``first`` on."""
        return [
            (max(start, first), term)
            for position, (start, term) in enumerate(zip(self._run_starts, self._run_terms, strict=True))
            if position + 1 == len(self._run_starts) or self._run_starts[position + 1] > first
        ]

    def first_in(self, segment: int) -> Index:
        """The first entry that lies in ``segment`` or a later one; ``last + 1`` if there is none."""
        low, high = self.first, self.last + 1
        while low < high:
            middle = (low + high) // 2
            if self.place(middle) >> 32 < segment:
                low = middle + 1
            else:
                high = middle
        return low

    def offsets(self, first: Index) -> array[int]:
        """The low halves of the places from ``first`` on."""
        places = self._places[first - self.first + self._dropped :]
        return array("I", (place & 0xFFFFFFFF for place in places))


class RecentEntries:
    """The end of the log, as much of it as fits a bound."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: list[Entry] = []
        self._size = 0

    def clear(self) -> None:
        self._entries.clear()
        self._size = 0

    def append(self, entries: Sequence[Entry]) -> None:
        self.cut_to(entries[0].index - 1)
        self._entries.extend(entries)
        self._size += sum([len(entry.data) for entry in entries]) + _ENTRY_BYTES * len(entries)
        if self._size > self._limit:
            # A quarter at a time: dropping one by one would move the whole list each time.
            dropped = 0
            while self._size > self._limit * 3 // 4:
                self._size -= len(self._entries[dropped].data) + _ENTRY_BYTES
                dropped += 1
            del self._entries[:dropped]

    def cut_to(self, last: Index) -> None:
        if self._entries and self._entries[-1].index > last:
            keep = max(0, last + 1 - self._entries[0].index)
            self._size -= sum([len(entry.data) + _ENTRY_BYTES for entry in self._entries[keep:]])
            del self._entries[keep:]

    def read(self, low: Index, high: Index, max_bytes: int) -> list[Entry] | None:
        """As much of the range as fits, at least one entry; None when it does not begin here.

        Only what is returned is touched: a leader asks for "all up to the end" for each follower.
        """
        if not self._entries or low < (first := self._entries[0].index):
            return None
        start = end = low - first
        size = 0
        while end < high - first:
            size += len(self._entries[end].data)
            if size > max_bytes and end > start:
                break
            end += 1
        return self._entries[start:end]


def runs_of(entries: Sequence[Entry]) -> list[tuple[Index, Term]]:
    runs: list[tuple[Index, Term]] = []
    term = -1
    for entry in entries:
        if entry.term != term:
            term = entry.term
            runs.append((entry.index, term))
    return runs
