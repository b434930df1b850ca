"""What a replica needs of a log on disk: the contract that every store keeps.

The caller is one replica's driver, inline in the engine or on a disk thread of its own: **one thread at a time**,
every method synchronous, *durable when it returns*.  A method that raises changed nothing the caller may
rely on: the log in memory is as before, and on disk it is as before or as if the call had
succeeded (nobody was told, so both are right).

The log is the *base* (a boundary index with its term: 0, a snapshot or the last compacted entry) and the entries
after it, without holes.  ``tauraft.testing.check_log_store`` checks a store against all of this.

SAFETY 23, 25 and 32 bind here: the hard state goes to disk in the same sync as the entries; a torn last record
is cut off in silence, one that may be a flipped bit makes the tail *suspect*; a failed sync is final.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from tauraft.core.messages import Entry, HardState, Index, SnapshotMeta, Term
from tauraft.errors import DataDirectoryError


class StorageError(Exception):
    """Base of what a log store raises besides ``ValueError`` for a caller's mistake."""


class LogCorrupt(StorageError, DataDirectoryError):
    """What is on disk is not what was written.

    Raised by ``open``, or by a ``read`` that meets it; nothing was changed.
    """

    def __init__(self, path: str, offset: int, what: str) -> None:
        super().__init__(
            f"{path}: {what} at byte {offset}. Nothing was changed. If other members of the cluster hold the log, "
            "move the namespace's folder away and start again: the node rejoins as a new member; if this was the last "
            "one, `tauraft recover` saves what can be read."
        )
        self.path = path
        self.offset = offset
        self.what = what


class StorageFull(StorageError):
    """No space: nothing of the call took effect. The log is sound, and takes the call again once there is space."""


class StorageFailed(StorageError):
    """A sync or write failed, so that what is on disk is unknown.

    Final: each later call raises it too; stop the node.
    """


@contextmanager
def final_failures(path: str) -> Iterator[None]:
    """Around writes: no space is ``StorageFull``, any other failure ``StorageFailed``."""
    try:
        yield
    except OSError as error:
        raise failure(path, error) from error


def failure(path: str, error: OSError) -> StorageFull | StorageFailed:
    """What a write that failed raises."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{path}: no space left. Nothing of this took effect; it works again when there is space.")
    return StorageFailed(failure_of(path, error))


def failure_of(path: str, error: OSError) -> str:
    """The text of ``StorageFailed``."""
    return (
        f"{path}: writing failed ({error}). What is on disk is unknown, so this node must stop; "
        "restart it once the disk is sound: it goes on with what can be verified."
    )


class Compacted(StorageError):
    """The entry asked for is no longer in the log; a snapshot covers it."""

    def __init__(self, index: Index, first_index: Index) -> None:
        super().__init__(f"entry {index} is compacted; the first one in the log is {first_index}")
        self.index = index
        self.first_index = first_index


@dataclass(frozen=True, slots=True)
class Recovered:
    """What ``open`` found.

    ``first_index`` is ``last_index + 1`` where there are no entries; ``first_index - 1`` is the base.
    ``snapshot``: the point the log was last reset at, as long as the base is still there.
    ``is_tail_suspect``: the last record was lost, and may have been acknowledged (SAFETY 23). Start as a non-voter
    until a leader has sent what was there, then call ``confirm_tail``; it stays so over restarts until then.
    """

    first_index: Index
    last_index: Index
    hard_state: HardState
    snapshot: SnapshotMeta | None
    is_tail_suspect: bool


class LogStore(Protocol):
    def open(self) -> Recovered:
        """Called once, first. Raises ``LogCorrupt``."""

    @property
    def first_index(self) -> Index: ...

    @property
    def last_index(self) -> Index: ...

    def append(self, entries: Sequence[Entry], hard_state: HardState | None = None) -> None:
        """Write ``entries``, consecutive, and the hard state in one sync.

        They start at most at ``last_index + 1``; when they start lower, what was there from their first index on is
        replaced, in the same sync. Raises ``StorageFull``, ``StorageFailed``; ``ValueError`` for a hole, or an index
        at or below the base.
        """

    def save_hard_state(self, hard_state: HardState) -> None:
        """As ``append`` without entries."""

    def read(self, low: Index, high: Index, max_bytes: int) -> list[Entry]:
        """Entries ``low <= index < high``, as many as fit ``max_bytes`` of data, but at least one.

        Recent entries come from memory. Raises ``Compacted``, ``LogCorrupt``; ``ValueError`` beyond the end.
        """

    def term(self, index: Index) -> Term:
        """The term of an entry, or of the base. Raises ``Compacted`` below it, ``ValueError`` beyond the end."""

    def truncate_suffix(self, keep_to: Index) -> None:
        """Drop all entries after ``keep_to``, which is at least the base."""

    def reset_at(self, meta: SnapshotMeta, hard_state: HardState | None = None) -> None:
        """Drop everything: the log now starts after the snapshot, whose files are durable already (SAFETY 24)."""

    def compact_prefix(self, up_to: Index) -> None:
        """Forget the entries up to ``up_to``, which becomes the base. Lower than the base: nothing to do."""

    def confirm_tail(self) -> None:
        """The log holds again what a leader says it acknowledged: the tail is no longer suspect."""

    def close(self) -> None:
        """Free descriptors. Twice is fine. Nothing is written: all that was acknowledged is durable already."""


def check_consecutive(entries: Sequence[Entry], base: Index, last: Index) -> None:
    """Raise ``ValueError`` unless ``entries`` may be appended to a log with this base and end."""
    if not entries:
        return
    first = entries[0].index
    if not base < first <= last + 1:
        raise ValueError(f"an append at {first} does not fit a log with base {base} and last entry {last}")
    if entries[-1].index - first != len(entries) - 1 or any(
        entry.index != index for index, entry in enumerate(entries, first)
    ):
        raise ValueError(f"the entries appended at {first} are not consecutive")


def check_range(low: Index, high: Index, first: Index, last: Index) -> None:
    if low < first:
        raise Compacted(low, first)
    if not low <= high <= last + 1:
        raise ValueError(f"entries {low} to {high} were asked of a log that ends at {last}")
