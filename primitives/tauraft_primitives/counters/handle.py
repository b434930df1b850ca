"""Counters and ids as a caller holds them: ``AsyncCounter``, ``AsyncIds``.

An id is nobody else's for ever.  ``next`` takes from a block of this handle's own, so that an id costs no commit; what is left
of a block when its process ends is never handed out: blocks have no gap between them, but may have one at their end.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from collections import deque

from tauraft import errors
from tauraft.handle import AsyncHolder, AsyncSubmitter, check_name, check_timeout
from tauraft_primitives.counters.messages import Add, Count, Reserve, Reset, check_number

MAX_BLOCK = 100_000


class AsyncCounter:
    """A number by name, 0 at first. Made without I/O; may be shared by tasks and threads."""

    def __init__(self, cluster: AsyncSubmitter, name: str) -> None:
        self.name = check_name(name)
        self._cluster = cluster

    async def add(self, n: int = 1, *, timeout: float | None = None) -> int:
        """Add ``n``, which may be negative, and return the sum. Raises ``Refused`` (``overflow``), nothing changed."""
        return await self._cluster.submit(Add(self.name, n), timeout=check_timeout(timeout))

    async def get(self, *, timeout: float | None = None) -> int:
        return await self._cluster.query(Count(self.name), timeout=check_timeout(timeout))

    async def reset(self, value: int = 0) -> int:
        """Set it, and return what it was."""
        return await self._cluster.submit(Reset(self.name, value))


class AsyncIds:
    """Unique ids by name, from 1. Made without I/O; may be shared by tasks and threads. ``block``: how many ``next`` fetches."""

    def __init__(self, holder: AsyncHolder, name: str, *, block: int = 100) -> None:
        self.name = check_name(name)
        check_number(block, "block", 1)
        if block > MAX_BLOCK:
            raise errors.InvalidArgument(f"block={block}: at most {MAX_BLOCK}; nothing was sent", option="block")
        self._holder = holder
        self._block = block
        self._own: deque[int] = deque()

    async def reserve(self, n: int, *, timeout: float | None = None) -> range:
        """``n`` ids in a row that nobody else gets, right after the block reserved before. Raises ``Refused`` (``overflow``)."""
        first = await self._holder.submit(Reserve(self.name, n), timeout=check_timeout(timeout))
        return range(first, first + n)

    async def next(self, *, timeout: float | None = None) -> int:
        """The next id of this handle's block; a new block is reserved when that is used up."""
        check_timeout(timeout)
        # A forked child has its parent's block: it must not take from it.
        self._holder.whoami()
        while True:
            try:
                return self._own.popleft()
            except IndexError:
                self._own.extend(await self.reserve(self._block, timeout=timeout))
