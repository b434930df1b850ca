# Generated from tauraft_primitives.kv.handle by `python -m tauraft.twin`; change that file, not this one.
"""The key-value store as a caller holds it: ``KV``, one command or query a call.

Keys are str, values bytes; a str value is stored as UTF-8.  Whatever a call is given is checked here, before anything is
sent.  A page of ``keys`` or ``items`` is of one revision, and so are the pages that its cursor leads to; without a
``limit`` all of them are fetched.  ``watch`` makes events of the changed rows (``tauraft.events``).

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from tauraft import errors, events
from tauraft.fsm import Command, Query
from tauraft.handle import (
    Submitter,
    Watch,
    Frame,
    State,
    as_bytes,
    check_timeout,
)
from tauraft.types import Bytes, Compare, Consistency, Entry, Page, PutResult, Revision, TransactionResult
from tauraft_primitives.checks import check_value
from tauraft_primitives.kv.messages import (
    KEYS,
    MAX_BATCH_BYTES,
    MAX_BATCH_WRITES,
    CompareAndSet,
    Count,
    Delete,
    DeleteRange,
    Get,
    Items,
    Keys,
    Put,
    PutIf,
    Row,
    Write,
    WriteBatch,
    check_key,
)
from tauraft_primitives.kv.transaction import Transaction
from tauraft_primitives.leases._blocking import Lease

R = TypeVar("R")
LAST_CODE_POINT = 0x10FFFF


class KV:
    """Made without I/O; may be shared by tasks and threads. Every method takes ``timeout``: None is the cluster's own."""

    def __init__(self, cluster: Submitter) -> None:
        self._cluster = cluster

    @overload
    def put(
        self,
        key: str,
        value: Bytes,
        *,
        ttl: float | None = None,
        attach: Lease | Literal["session"] | None = None,
        if_revision: Revision | None = None,
        if_absent: bool = False,
        return_previous: Literal[False] = False,
        timeout: float | None = None,
    ) -> Revision: ...
    @overload
    def put(
        self,
        key: str,
        value: Bytes,
        *,
        ttl: float | None = None,
        attach: Lease | Literal["session"] | None = None,
        if_revision: Revision | None = None,
        if_absent: bool = False,
        return_previous: Literal[True],
        timeout: float | None = None,
    ) -> PutResult: ...

    def put(
        self,
        key: str,
        value: Bytes,
        *,
        ttl: float | None = None,
        attach: Lease | Literal["session"] | None = None,
        if_revision: Revision | None = None,
        if_absent: bool = False,
        return_previous: bool = False,
        timeout: float | None = None,
    ) -> Revision | PutResult:
        """Store ``value`` and return the revision of this write.

        ``if_revision`` (0: absent) and ``if_absent`` raise ``CompareFailed`` when what is there differs; ``ttl`` in seconds.
        ``attach``: the key goes when that lease, or this session, ends; ``NotHolder`` or ``LockLost`` when it has already.
        Written again without, it is attached to nothing.
        """
        patience = check_timeout(timeout)
        data = as_bytes(value)
        if if_revision is None and attach is None and not if_absent and not return_previous:
            return self._cluster.submit(Put(key, data, ttl), timeout=patience)
        _check_revision(if_revision, "if_revision")
        command = PutIf(key, data, ttl, if_revision, bool(if_absent), _attached_to(attach))
        try:
            result = self._cluster.submit(command, timeout=patience)
        except errors.CompareFailed as error:
            if isinstance(error.entry, dict):  # as errors cross the wire: plain
                error.entry = Entry(**error.entry)
            raise
        return result if return_previous else result.revision

    def get(
        self,
        key: str,
        *,
        consistency: Consistency = "linearizable",
        at_revision: Revision | None = None,
        timeout: float | None = None,
    ) -> Entry | None:
        """The entry, or None when there is none. ``at_revision``: as it was then; ``Compacted`` when that is not remembered."""
        _check_revision(at_revision, "at_revision")
        return self._cluster.query(Get(key, at_revision), consistency=consistency, timeout=check_timeout(timeout))

    def delete(
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
            return self._cluster.submit(Delete(key), timeout=patience)
        if prefix is not None:
            low, high = _check_prefix(prefix), after_prefix(prefix)
        else:
            low, high = _check_range(range)
        return self._cluster.submit(DeleteRange(low, high), timeout=patience)

    def keys(
        self, prefix: str = "", *, limit: int | None = None, cursor: str | None = None, timeout: float | None = None
    ) -> Page[str]:
        """Sorted, all at one revision. ``limit``: at most so many; ``cursor``: of the page before. ``Compacted``: start again."""
        patience, prefix = check_timeout(timeout), _check_prefix(prefix)
        left, page = _check_limit(limit), Page[str]((), 0, _check_cursor(cursor))
        while True:
            part = self._cluster.query(Keys(prefix, left, page.cursor), timeout=patience)
            page = Page(page.items + part.items, part.revision, part.cursor)
            left = None if left is None else left - len(part.items)
            if page.cursor is None or left == 0:
                return page

    def items(
        self, prefix: str = "", *, limit: int | None = None, cursor: str | None = None, timeout: float | None = None
    ) -> Page[Entry]:
        """As ``keys``, with their entries."""
        patience, prefix = check_timeout(timeout), _check_prefix(prefix)
        left, page = _check_limit(limit), Page[Entry]((), 0, _check_cursor(cursor))
        while True:
            part = self._cluster.query(Items(prefix, left, page.cursor), timeout=patience)
            page = Page(page.items + part.items, part.revision, part.cursor)
            left = None if left is None else left - len(part.items)
            if page.cursor is None or left == 0:
                return page

    def count(self, prefix: str = "", *, timeout: float | None = None) -> int:
        return self._cluster.query(Count(_check_prefix(prefix)), timeout=check_timeout(timeout))

    def cas(
        self, key: str, expected: Bytes | None, new: Bytes, *, timeout: float | None = None
    ) -> Revision | None:
        """Store ``new`` if the value is ``expected`` (None: absent). Returns the revision, or None when it differs."""
        was = None if expected is None else as_bytes(expected, "expected")
        return self._cluster.submit(CompareAndSet(key, was, as_bytes(new, "new")), timeout=check_timeout(timeout))

    def transaction(
        self,
        when: Sequence[Compare] = (),
        then: Sequence[Command[Any] | Query[Any] | Transaction] = (),
        otherwise: Sequence[Command[Any] | Query[Any] | Transaction] = (),
        *,
        timeout: float | None = None,
    ) -> TransactionResult:
        """Where all of ``when`` holds run ``then``, else ``otherwise``: all of it or nothing, in one command.

        Commands and queries of any plugin (``tauraft.commands``), also another ``Transaction``. One that is refused undoes
        and refuses all; one that may wait is ``InvalidCommand``.
        """
        patience = check_timeout(timeout)
        whole = Transaction(when, then, otherwise)
        return whole.result_of(self._cluster.submit(whole.command, timeout=patience))

    def watch(
        self, key: str | None = None, *, prefix: str | None = None, since_revision: Revision | None = None
    ) -> Watch[events.Event]:
        """``with kv.watch(prefix="a/") as watch: for event in watch``; of all keys where neither is given.

        From entering it on, or after ``since_revision``. Nothing is skipped or told twice, whatever reconnects; where
        events are gone already, or the watcher is slower than the cluster remembers, one ``Resync``.
        """
        if key is not None and prefix is not None:
            raise errors.InvalidArgument("give a key or a prefix; nothing was sent", option="key")
        if key is not None:
            check_key(key)
            return self._cluster.watch(KEYS, key=key, since_revision=since_revision).map(_events_of)
        start = _check_prefix("" if prefix is None else prefix)
        return self._cluster.watch(
            KEYS, low=start or None, high=after_prefix(start), since_revision=since_revision
        ).map(_events_of)

    def batch(self, *, timeout: float | None = None) -> Batching:
        """``with kv.batch() as b:`` one command at its end, at one revision; none when the body raises."""
        return Batching(self._cluster, check_timeout(timeout))


class Batch:
    """The writes of one batch, in order; of several to one key the last counts."""

    revision: Revision  # of the batch, after its end

    def __init__(self) -> None:
        self._writes: list[Write] = []
        self._bytes = 0
        self._is_over = False

    def put(self, key: str, value: Bytes, *, ttl: float | None = None) -> None:
        self._add(Write(key, as_bytes(value), ttl))

    def delete(self, key: str) -> None:
        self._add(Write(key, None))

    def _add(self, write: Write) -> None:
        check_key(write.key)
        if write.value is not None:
            check_value(write.value)
        if self._is_over:
            raise errors.InvalidArgument("this batch has ended; nothing was added", option="batch")
        size = self._bytes + len(write.value or b"")
        if len(self._writes) == MAX_BATCH_WRITES or size > MAX_BATCH_BYTES:
            raise errors.TooLarge(
                f"a batch takes {MAX_BATCH_WRITES} writes and {MAX_BATCH_BYTES} bytes; this write was not added",
                option="batch",
            )
        self._bytes = size
        self._writes.append(write)


class Batching:
    """What ``kv.batch()`` gives: entering it gives the ``Batch``."""

    def __init__(self, cluster: Submitter, timeout: float | None) -> None:
        self._cluster = cluster
        self._timeout = timeout
        self._batch = Batch()
        self._is_entered = False

    def __enter__(self) -> Batch:
        if self._is_entered:
            raise errors.InvalidArgument("a batch can be entered once; nothing was sent", option="batch")
        self._is_entered = True
        return self._batch

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batch._is_over = True
        if kind is None:
            writes = WriteBatch(tuple(self._batch._writes))
            self._batch.revision = self._cluster.submit(writes, timeout=self._timeout)


def after_prefix(prefix: str) -> str | None:
    """The first key after all that start with ``prefix``; None: there is none."""
    while prefix:
        last = ord(prefix[-1])
        if last < LAST_CODE_POINT:
            # 0xD800 to 0xDFFF are no characters: UTF-8 cannot say them.
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
        prefix = prefix[:-1]
    return None


def _events_of(found: Frame[str, Row] | State[str, Row]) -> Iterator[events.Event]:
    now_ns, revision = found.now_ns, found.revision
    if isinstance(found, State):
        yield events.Resync(revision, tuple(row.entry(key, now_ns) for key, row in found.rows))
        return
    for change in found.changes:
        key = change.key
        previous = None if change.old is None else change.old.entry(key, now_ns)
        if change.new is not None:
            yield events.Put(key, revision, change.new.entry(key, now_ns), previous)
        elif previous is not None:
            # Whom nobody's command deleted was deleted by a timer or with its session.
            yield (events.Expire if found.session is None else events.Delete)(key, revision, previous)


def _attached_to(attach: object) -> int | None:
    if attach is None:
        return None
    if attach == "session":
        return 0
    if not isinstance(attach, Lease):
        raise TypeError(f'attach must be a lease or "session", not {type(attach).__name__}')
    attach.check()
    return attach.id


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


def _check_revision(revision: object, option: str) -> None:
    if revision is None:
        return
    if isinstance(revision, bool) or not isinstance(revision, int):
        raise TypeError(f"{option} must be int, not {type(revision).__name__}")
    if revision < 0:
        raise errors.InvalidArgument(f"{option} is {revision}; it must be at least 0; nothing was sent", option=option)
