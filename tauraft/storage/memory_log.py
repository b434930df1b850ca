"""A log in memory, for tests and ``storage="memory"``: the contract of ``LogStore`` without a disk.

A closed one may be opened again and still has everything, as a disk would; nothing survives the process.
"""

from __future__ import annotations

from collections.abc import Sequence

from tauraft.core.messages import Entry, HardState, Index, SnapshotMeta, Term
from tauraft.storage.log_store import (
    Compacted,
    Recovered,
    check_consecutive,
    check_range,
)


class MemoryLog:
    def __init__(self) -> None:
        self._base: Index = 0
        self._base_term: Term = 0
        self._entries: list[Entry] = []
        self._hard_state = HardState()
        self._snapshot: SnapshotMeta | None = None

    def open(self) -> Recovered:
        return Recovered(self.first_index, self.last_index, self._hard_state, self._snapshot, False)

    @property
    def first_index(self) -> Index:
        return self._base + 1

    @property
    def last_index(self) -> Index:
        return self._base + len(self._entries)

    def append(self, entries: Sequence[Entry], hard_state: HardState | None = None) -> None:
        check_consecutive(entries, self._base, self.last_index)
        if entries:
            self._entries[entries[0].index - self._base - 1 :] = entries
        if hard_state is not None:
            self._hard_state = hard_state

    def save_hard_state(self, hard_state: HardState) -> None:
        self._hard_state = hard_state

    def read(self, low: Index, high: Index, max_bytes: int) -> list[Entry]:
        check_range(low, high, self.first_index, self.last_index)
        return limit_bytes(self._entries[low - self._base - 1 : high - self._base - 1], max_bytes)

    def term(self, index: Index) -> Term:
        if index == self._base:
            return self._base_term
        check_range(index, index + 1, self.first_index, self.last_index)
        return self._entries[index - self._base - 1].term

    def truncate_suffix(self, keep_to: Index) -> None:
        if keep_to < self._base:
            raise Compacted(keep_to, self.first_index)
        del self._entries[keep_to - self._base :]

    def reset_at(self, meta: SnapshotMeta, hard_state: HardState | None = None) -> None:
        self._base, self._base_term, self._snapshot = meta.index, meta.term, meta
        self._entries.clear()
        if hard_state is not None:
            self._hard_state = hard_state

    def compact_prefix(self, up_to: Index) -> None:
        if up_to <= self._base:
            return
        term = self.term(up_to)
        del self._entries[: up_to - self._base]
        self._base, self._base_term, self._snapshot = up_to, term, None

    def confirm_tail(self) -> None:
        """Memory has no tail to suspect."""

    def close(self) -> None:
        """Nothing to free."""


def limit_bytes(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """The longest beginning of ``entries`` with at most ``max_bytes`` of data, and at least one entry."""
    total = 0
    for count, entry in enumerate(entries):
        total += len(entry.data)
        if total > max_bytes and count:
            return entries[:count]
    return entries
