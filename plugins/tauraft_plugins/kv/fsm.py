"""The key-value state machine: an ordered map in which every write has a revision.

``created_revision`` is that of the put that made the key, ``version`` counts its puts since (as etcd has them).  A ttl is one
timer a key, named by it; the timer carries the revision it was set for, so a key written again outlives it.
A page names the revision it was read at in its cursor: the next page comes from the same revision or, when the
keys under it changed meanwhile, not at all (``Compacted``: start again).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tauraft.errors import Compacted, CompareFailed, InvalidCommand
from tauraft.fsm import FSM, Context, Table, answers, applies
from tauraft.types import Entry, Page, PutResult
from tauraft_primitives.kv.messages import (
    KV,
    NANOSECONDS,
    CompareAndSet,
    Count,
    Delete,
    DeleteRange,
    Expire,
    Get,
    Items,
    Keys,
    Put,
    PutIf,
    WriteBatch,
)

MAX_PAGE = 10_000
LAST = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Row:
    value: bytes
    revision: int
    created_revision: int
    version: int
    expires_ns: int | None = None


class KeyValue(FSM, name=KV, version=1):
    kv: Table[str, Row]
    changed: Table[None, int]  # one row: the revision of the last change of any key, and the clock then
    clock: Table[None, int]
    sql_views: ClassVar[Mapping[str, str]] = {"kv": "SELECT key, value, revision FROM tauraft_kv_kv"}

    @applies(Put)
    def put(self, command: Put, context: Context) -> int:
        self._put(command.key, command.value, command.ttl, context)
        return context.revision

    @applies(PutIf)
    def put_if(self, command: PutIf, context: Context) -> PutResult:
        row = self.kv.get(command.key)
        previous = None if row is None else self._entry(command.key, row, context.now_ns)
        if command.if_absent and previous is not None:
            raise CompareFailed(f"{command.key!r} is there already; nothing changed", entry=previous)
        if command.if_revision is not None and (previous.revision if previous else 0) != command.if_revision:
            raise CompareFailed(
                f"{command.key!r} has revision {previous.revision if previous else 0}, not {command.if_revision}; "
                "nothing changed",
                entry=previous,
            )
        self._put(command.key, command.value, command.ttl, context)
        return PutResult(context.revision, previous)

    @applies(CompareAndSet)
    def compare_and_set(self, command: CompareAndSet, context: Context) -> int | None:
        row = self.kv.get(command.key)
        if (None if row is None else row.value) != command.expected:
            return None
        self._put(command.key, command.new, None, context)
        return context.revision

    @applies(Delete)
    def delete(self, command: Delete, context: Context) -> int:
        return int(self._delete(command.key, context))

    @applies(DeleteRange)
    def delete_range(self, command: DeleteRange, context: Context) -> int:
        keys = [key for key, _ in self.kv.range(command.low, command.high)]
        for key in keys:
            self._delete(key, context)
        return len(keys)

    @applies(WriteBatch)
    def write_batch(self, command: WriteBatch, context: Context) -> int:
        for write in command.writes:
            if write.value is None:
                self._delete(write.key, context)
            else:
                self._put(write.key, write.value, write.ttl, context)
        return context.revision

    @applies(Expire)
    def expire(self, command: Expire, context: Context) -> None:
        if context.session is not None:
            raise InvalidCommand("keys expire by their own timers; nothing changed")
        row = self.kv.get(command.key)
        if row is not None and row.revision == command.revision:
            del self.kv[command.key]
            self._changed(context)

    @answers(Get)
    def get(self, query: Get) -> Entry | None:
        row = self.kv.get(query.key)
        return None if row is None else self._entry(query.key, row, self._now())

    @answers(Keys)
    def keys(self, query: Keys) -> Page[str]:
        rows, revision, cursor = self._page(query.prefix, query.limit, query.cursor)
        return Page(tuple(key for key, _ in rows), revision, cursor)

    @answers(Items)
    def items(self, query: Items) -> Page[Entry]:
        rows, revision, cursor = self._page(query.prefix, query.limit, query.cursor)
        now = self._now()
        return Page(tuple(self._entry(key, row, now) for key, row in rows), revision, cursor)

    @answers(Count)
    def count(self, query: Count) -> int:
        if not query.prefix:
            return len(self.kv)
        return sum(1 for _ in self.kv.range(query.prefix, after_prefix(query.prefix)))

    def _put(self, key: str, value: bytes, ttl: float | None, context: Context) -> None:
        old = self.kv.get(key)
        expires_ns = None if ttl is None else context.now_ns + int(ttl * NANOSECONDS)
        revision = context.revision
        self.kv[key] = Row(
            value,
            revision,
            revision if old is None else old.created_revision,
            1 if old is None else old.version + 1,
            expires_ns,
        )
        if expires_ns is not None:
            context.schedule(key, expires_ns, Expire(key, revision))
        elif old is not None and old.expires_ns is not None:
            context.cancel(key)
        self._changed(context)

    def _delete(self, key: str, context: Context) -> bool:
        row = self.kv.pop(key, None)
        if row is None:
            return False
        if row.expires_ns is not None:
            context.cancel(key)
        self._changed(context)
        return True

    def _changed(self, context: Context) -> None:
        self.changed[None] = context.revision
        self.clock[None] = context.now_ns

    def _now(self) -> int:
        """Queries have no clock: the time of the last change is the best that all replicas agree on."""
        return self.clock.get(None, 0)

    @staticmethod
    def _entry(key: str, row: Row, now_ns: int) -> Entry:
        expires_in = None if row.expires_ns is None else max(0, row.expires_ns - now_ns) / NANOSECONDS
        return Entry(key, row.value, row.revision, row.created_revision, row.version, None, expires_in)

    def _page(
        self, prefix: str, limit: int | None, cursor: str | None
    ) -> tuple[list[tuple[str, Row]], int, str | None]:
        revision = self.changed.get(None, 0)
        low = prefix
        if cursor is not None:
            number, _, low = cursor.partition(":")
            if not number.isdigit() or not low.startswith(prefix):
                raise InvalidCommand("the cursor does not belong to this listing; start again without it")
            if int(number) != revision:
                raise Compacted(
                    f"keys changed since the page at revision {number}; start again without the cursor", oldest=revision
                )
        size = min(limit, MAX_PAGE) if limit is not None else MAX_PAGE
        found: list[tuple[str, Row]] = []
        for key, row in self.kv.range(low, after_prefix(prefix)):
            if len(found) == size:
                return found, revision, f"{revision}:{key}"
            found.append((key, row))
        return found, revision, None


def after_prefix(prefix: str) -> str | None:
    """The least text above all that starts with ``prefix``; None: there is none."""
    while prefix and prefix[-1] == LAST:
        prefix = prefix[:-1]
    if not prefix:
        return None
    following = ord(prefix[-1]) + 1
    # Surrogates are no text: UTF-8 cannot say them.
    return prefix[:-1] + chr(0xE000 if following == 0xD800 else following)
