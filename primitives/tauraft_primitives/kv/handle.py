"""The key-value store as a caller holds it: ``AsyncKV``, one command or query a call.

Keys are str, values bytes; a str value is stored as UTF-8.  Whatever a call is given is checked here, before anything is
sent.  A page of ``keys`` or ``items`` is of one revision, and so are the pages that its cursor leads to.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from types import TracebackType
from typing import Literal, overload

from tauraft import errors
from tauraft.handle import AsyncSubmitter, as_bytes, check_timeout
from tauraft.types import Bytes, Consistency, Entry, Page, PutResult, Revision
from tauraft_primitives.kv.messages import (
    CompareAndSet,
    Count,
    Delete,
    DeleteRange,
    Get,
    Items,
    Keys,
    Put,
    PutIf,
    Write,
    WriteBatch,
    check_key,
)

LAST_CODE_POINT = 0x10FFFF


class AsyncKV:
    """Made without I/O; may be shared by tasks and threads. Every method takes ``timeout``: None is the cluster's own."""

    def __init__(self, cluster: AsyncSubmitter) -> None:
        self._cluster = cluster

    @overload
    async def put(
        self,
        key: str,
        value: Bytes,
        *,
        ttl: float | None = None,
        if_revision: Revision | None = None,
        if_absent: bool = False,
        return_previous: Literal[False] = False,
        timeout: float | None = None,
    ) -> Revision: ...
    @overload
    async def put(
        self,
        key: str,
        value: Bytes,
        *,
        ttl: float | None = None,
        if_revision: Revision | None = None,
        if_absent: bool = False,
        return_previous: Literal[True],
        timeout: float | None = None,
    ) -> PutResult: ...

    async def put(
        self,
        key: str,
        value: Bytes,
        *,
        ttl: float | None = None,
        if_revision: Revision | None = None,
        if_absent: bool = False,
        return_previous: bool = False,
        timeout: float | None = None,
    ) -> Revision | PutResult:
        """Store ``value`` and return the revision of this write.

        ``if_revision`` (0: absent) and ``if_absent`` raise ``CompareFailed`` when what is there differs; ``ttl`` in seconds.
        """
        patience = check_timeout(timeout)
        data = as_bytes(value)
        if if_revision is None and not if_absent and not return_previous:
            return await self._cluster.submit(Put(key, data, ttl), timeout=patience)
        _check_revision(if_revision)
        result = await self._cluster.submit(PutIf(key, data, ttl, if_revision, bool(if_absent)), timeout=patience)
        return result if return_previous else result.revision

    async def get(
        self, key: str, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> Entry | None:
        """The entry, or None when there is none."""
        return await self._cluster.query(Get(key), consistency=consistency, timeout=check_timeout(timeout))

    async def delete(
        self,
        key: str | None = None,
        *,
        prefix: str | None = None,
        range: tuple[str, str] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Delete one key, all that start with ``prefix`` ("": everything), or ``low <= key < high``. Returns how many went."""
        patience = check_timeout(timeout)
        if [key, prefix, range].count(None) != 2:
            raise errors.InvalidArgument("give one of key, prefix and range; nothing was sent", option="key")
        if key is not None:
            return await self._cluster.submit(Delete(key), timeout=patience)
        if prefix is not None:
            low, high = _check_prefix(prefix), after_prefix(prefix)
        else:
            low, high = _check_range(range)
        return await self._cluster.submit(DeleteRange(low, high), timeout=patience)

    async def keys(
        self, prefix: str = "", *, limit: int | None = None, cursor: str | None = None, timeout: float | None = None
    ) -> Page[str]:
        """Sorted. ``cursor``: of the page before."""
        query = Keys(_check_prefix(prefix), _check_limit(limit), _check_cursor(cursor))
        return await self._cluster.query(query, timeout=check_timeout(timeout))

    async def items(
        self, prefix: str = "", *, limit: int | None = None, cursor: str | None = None, timeout: float | None = None
    ) -> Page[Entry]:
        """Sorted by key. ``cursor``: of the page before."""
        query = Items(_check_prefix(prefix), _check_limit(limit), _check_cursor(cursor))
        return await self._cluster.query(query, timeout=check_timeout(timeout))

    async def count(self, prefix: str = "", *, timeout: float | None = None) -> int:
        return await self._cluster.query(Count(_check_prefix(prefix)), timeout=check_timeout(timeout))

    async def cas(
        self, key: str, expected: Bytes | None, new: Bytes, *, timeout: float | None = None
    ) -> Revision | None:
        """Store ``new`` if the value is ``expected`` (None: absent). Returns the revision, or None when it differs."""
        was = None if expected is None else as_bytes(expected, "expected")
        return await self._cluster.submit(CompareAndSet(key, was, as_bytes(new, "new")), timeout=check_timeout(timeout))

    def batch(self, *, timeout: float | None = None) -> AsyncBatching:
        """``async with kv.batch() as b:`` one command at its end, at one revision; none when the body raises."""
        return AsyncBatching(self._cluster, check_timeout(timeout))


class Batch:
    """The writes of one batch, in order; of several to one key the last counts."""

    revision: Revision  # of the batch, after its end

    def __init__(self) -> None:
        self._writes: list[Write] = []
        self._is_over = False

    def put(self, key: str, value: Bytes, *, ttl: float | None = None) -> None:
        self._add(Write(key, as_bytes(value), ttl))

    def delete(self, key: str) -> None:
        self._add(Write(key, None))

    def _add(self, write: Write) -> None:
        check_key(write.key)
        if self._is_over:
            raise errors.InvalidArgument("this batch has ended; nothing was added", option="batch")
        self._writes.append(write)


class AsyncBatching:
    """What ``kv.batch()`` gives: entering it gives the ``Batch``."""

    def __init__(self, cluster: AsyncSubmitter, timeout: float | None) -> None:
        self._cluster = cluster
        self._timeout = timeout
        self._batch = Batch()
        self._is_entered = False

    async def __aenter__(self) -> Batch:
        if self._is_entered:
            raise errors.InvalidArgument("a batch can be entered once; nothing was sent", option="batch")
        self._is_entered = True
        return self._batch

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batch._is_over = True
        if kind is None:
            writes = WriteBatch(tuple(self._batch._writes))
            self._batch.revision = await self._cluster.submit(writes, timeout=self._timeout)


def after_prefix(prefix: str) -> str | None:
    """The first key after all that start with ``prefix``; None: there is none."""
    while prefix:
        last = ord(prefix[-1])
        if last < LAST_CODE_POINT:
            # 0xD800 to 0xDFFF are no characters: UTF-8 cannot say them.
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
        prefix = prefix[:-1]
    return None


def _check_prefix(prefix: object) -> str:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be str, not {type(prefix).__name__}")
    return prefix


def _check_range(found: object) -> tuple[str, str]:
    if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(end, str) for end in found):
        raise TypeError("range must be a tuple of two keys, (low, high); high is not in it")
    if found[0] >= found[1]:
        raise errors.InvalidArgument("range must be (low, high) with low < high; nothing was sent", option="range")
    return found


def _check_limit(limit: object) -> int | None:
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be int, not {type(limit).__name__}")
    if limit < 1:
        raise errors.InvalidArgument(f"limit is {limit}; it must be at least 1; nothing was sent", option="limit")
    return limit


def _check_cursor(cursor: object) -> str | None:
    if cursor is not None and not isinstance(cursor, str):
        raise TypeError(f"cursor must be str, not {type(cursor).__name__}")
    return cursor


def _check_revision(revision: object) -> None:
    if revision is None:
        return
    if isinstance(revision, bool) or not isinstance(revision, int):
        raise TypeError(f"if_revision must be int, not {type(revision).__name__}")
    if revision < 0:
        raise errors.InvalidArgument(
            f"if_revision is {revision}; it must be at least 0; nothing was sent", option="if_revision"
        )
