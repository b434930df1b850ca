"""What waits to become a log entry: one queue, emptied whole into one batch.

Bounded by count and by bytes; a full queue refuses with ``Overloaded`` before anything is taken, so nothing accepted is
ever dropped.  The leader checks here that each command decodes (SAFETY 29): nothing undecodable enters the
log.  The decoded messages are kept beside the entry, so that the leader's own apply does not decode twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from tauraft.errors import Overloaded
from tauraft.node.replica import Item
from tauraft.system.messages import KeepAlive

MAX_QUEUED_ITEMS = 20_000
MAX_QUEUED_BYTES = 32 << 20
MAX_BATCH_ITEMS = 1_024
MAX_BATCH_BYTES = 512 << 10


class ProposalQueue:
    """First in, first out; ``take`` gives the next batch."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, items: Sequence[Item]) -> None:
        """All of them or, with ``Overloaded``, none."""
        size = sum(len(item.payload) for item in items)
        if len(self._items) + len(items) > MAX_QUEUED_ITEMS or self._bytes + size > MAX_QUEUED_BYTES:
            error = Overloaded(
                "the replica's queue of commands is full; nothing was taken: try again shortly, or send less at once"
            )
            error.retry_after = 0.1
            raise error
        self._items.extend(items)
        self._bytes += size

    def add_first(self, item: Item) -> None:
        """Of the system itself: never refused, and before the others."""
        self._items.appendleft(item)
        self._bytes += len(item.payload)

    def may_wait(self, time_ns: int) -> bool:
        """Keepalives may, as long as their ``wait_ns`` says. Looks no further than the first that may not."""
        return all(item.wait_ns >= time_ns and type(item.message) is KeepAlive for item in self._items)

    def take_only(self, wanted: Callable[[Item], bool]) -> list[Item]:
        """Those that may not wait, wherever they stand; the others keep their order."""
        taken = [item for item in self._items if wanted(item)]
        if taken:
            self._items = deque(item for item in self._items if not wanted(item))
            self._bytes -= sum(len(item.payload) for item in taken)
        return taken

    def take(self) -> list[Item]:
        batch: list[Item] = []
        size = 0
        items = self._items
        while items and len(batch) < MAX_BATCH_ITEMS:
            size += len(items[0].payload)
            if batch and size > MAX_BATCH_BYTES:
                break
            item = items.popleft()
            self._bytes -= len(item.payload)
            batch.append(item)
        return batch

    def clear(self) -> list[Item]:
        """Leadership is gone: what waited, for the caller to forward."""
        waiting = list(self._items)
        self._items.clear()
        self._bytes = 0
        return waiting
