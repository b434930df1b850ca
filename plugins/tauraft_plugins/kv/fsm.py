"""The key-value state machine: an ordered map in which every write has a revision; and the leases that keys are attached to.

``created_revision`` is that of the put that made the key, ``version`` counts its puts since (as etcd has them).  A ttl is one
timer a key, named by it; the timer carries the revision it was set for, so a key written again outlives it.

A *lease* belongs to a session and has a ttl of its own.  Its id stays for its life, its token changes when it goes to another session,
so that the one who had it is fenced.  It ends by revocation, by its timer, or with its session, and takes the keys attached
to it along in the same revision.  A key may be attached to a session directly as well: ids of both are revisions, so they
never meet.  A key written again without ``attach`` is attached to nothing.

Pages of one listing are of one revision: the first one's, which is in the cursor (``context.at``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tauraft.errors import CompareFailed, InvalidCommand, NotHolder
from tauraft.fsm import FSM, Context, QueryContext, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import Compare, Entry, LeaseInfo, Page, PutResult
from tauraft_primitives.kv.messages import (
    KV,
    NANOSECONDS,
    AdoptLease,
    CompareAndSet,
    Count,
    Delete,
    DeleteRange,
    DescribeLease,
    Expire,
    Get,
    GrantLease,
    Items,
    Keys,
    LeaseEnds,
    LeaseGrant,
    Put,
    PutIf,
    RenewLease,
    RevokeLease,
    Row,
    Transact,
    Transacted,
    TransferLease,
    WriteBatch,
)

MAX_PAGE = 10_000
MAX_PAGE_BYTES = 4 << 20
LAST = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Lease:
    token: int
    session: int
    ttl_ns: int


class KeyValue(FSM, name=KV, version=1):
    teardown: ClassVar[int] = 90
    kv: Table[str, Row]
    attached: Table[tuple[int, str], None]  # (lease or session, key)
    leases: Table[int, Lease]
    tokens: Table[int, int]  # of the leases there are -> id
    session_leases: Table[tuple[int, int], None]  # (session, id)
    sql_views: ClassVar[Mapping[str, str]] = {"kv": "SELECT key, value, revision FROM tauraft_kv_kv"}

    # Keys.

    @applies(Put)
    def put(self, command: Put, context: Context) -> int:
        self._put(command.key, command.value, command.ttl, None, context)
        return context.revision

    @applies(PutIf)
    def put_if(self, command: PutIf, context: Context) -> PutResult:
        row = self.kv.get(command.key)
        previous = None if row is None else row.entry(command.key, context.now_ns)
        if command.if_absent and previous is not None:
            raise CompareFailed(f"{command.key!r} is there already; nothing changed", entry=previous)
        if command.if_revision is not None and (previous.revision if previous else 0) != command.if_revision:
            raise CompareFailed(
                f"{command.key!r} has revision {previous.revision if previous else 0}, not {command.if_revision}; "
                "nothing changed",
                entry=previous,
            )
        lease = command.attach
        if lease == 0:
            lease = context.session
        elif lease is not None and lease not in self.leases:
            raise NotHolder(f"lease {lease} has ended; nothing changed")
        self._put(command.key, command.value, command.ttl, lease, context)
        return PutResult(context.revision, previous)

    @applies(CompareAndSet)
    def compare_and_set(self, command: CompareAndSet, context: Context) -> int | None:
        row = self.kv.get(command.key)
        if (None if row is None else row.value) != command.expected:
            return None
        self._put(command.key, command.new, None, None, context)
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
                self._put(write.key, write.value, write.ttl, None, context)
        return context.revision

    @applies(Transact)
    def transact(self, command: Transact, context: Context) -> Transacted:
        succeeded = all(self._holds(compare) for compare in command.when)
        results = tuple([context.run(part) for part in (command.then if succeeded else command.otherwise)])
        return Transacted(succeeded, context.revision, results)

    @applies(Expire)
    def expire(self, command: Expire, context: Context) -> None:
        if context.session is not None:
            raise InvalidCommand("keys expire by their own timers; nothing changed")
        row = self.kv.get(command.key)
        if row is not None and row.revision == command.revision:
            self._delete(command.key, context)

    @answers(Get)
    def get(self, query: Get, context: QueryContext) -> Entry | None:
        if query.at_revision is None:
            row = self.kv.get(query.key)
        else:
            row = context.at(self.kv, query.at_revision).get(query.key)
        return None if row is None else row.entry(query.key, context.now_ns)

    @answers(Keys)
    def keys(self, query: Keys, context: QueryContext) -> Page[str]:
        rows, revision, cursor = self._page(query, context)
        return Page(tuple([key for key, _ in rows]), revision, cursor)

    @answers(Items)
    def items(self, query: Items, context: QueryContext) -> Page[Entry]:
        rows, revision, cursor = self._page(query, context)
        now_ns = context.now_ns
        return Page(tuple([row.entry(key, now_ns) for key, row in rows]), revision, cursor)

    @answers(Count)
    def count(self, query: Count) -> int:
        return self.kv.count(query.prefix, after_prefix(query.prefix))

    # Leases.

    @applies(GrantLease)
    def grant(self, command: GrantLease, context: Context) -> LeaseGrant:
        if context.session is None:
            raise InvalidCommand("a lease belongs to a session, and a timer has none; nothing changed")
        lease = Lease(context.revision, context.session, int(command.ttl * NANOSECONDS))
        self._hand_over(context.revision, lease, context)
        return LeaseGrant(context.revision, context.revision)

    @withdraws(GrantLease)
    def ungrant(self, command: GrantLease, ticket: Ticket[LeaseGrant], context: Context) -> None:
        lease = self.leases.get(ticket.revision)
        if lease is not None and lease.token == ticket.revision:  # else it is another session's by now
            self._end(ticket.revision, context)

    @applies(AdoptLease)
    def adopt(self, command: AdoptLease, context: Context) -> LeaseGrant:
        lease = self.leases.get(command.id)
        if lease is None or lease.session != context.session:
            raise NotHolder(f"lease {command.id} has ended, or is not this session's; nothing changed")
        self._hand_over(command.id, replace(lease, ttl_ns=int(command.ttl * NANOSECONDS)), context)
        return LeaseGrant(command.id, lease.token)

    @applies(RenewLease)
    def renew(self, command: RenewLease, context: Context) -> None:
        self._hand_over(command.id, self._held(command.id, command.token), context)

    @applies(TransferLease)
    def transfer(self, command: TransferLease, context: Context) -> None:
        lease = self._held(command.id, command.token)
        del self.tokens[lease.token]
        del self.session_leases[lease.session, command.id]
        self._hand_over(command.id, Lease(context.revision, command.session, lease.ttl_ns), context)

    @applies(RevokeLease)
    def revoke(self, command: RevokeLease, context: Context) -> None:
        self._held(command.id, command.token)
        self._end(command.id, context)

    @answers(DescribeLease)
    def describe_lease(self, query: DescribeLease) -> LeaseInfo | None:
        lease = self.leases.get(query.id)
        if lease is None:
            return None
        keys = sum(1 for _ in self.attached.range((query.id, ""), (query.id + 1, "")))
        return LeaseInfo(query.id, lease.token, lease.session, lease.ttl_ns / NANOSECONDS, keys)

    @applies(LeaseEnds)
    def lease_ends(self, command: LeaseEnds, context: Context) -> None:
        if context.session is not None:
            raise InvalidCommand("leases end by their own timers; nothing changed")
        lease = self.leases.get(command.id)
        if lease is not None and lease.token == command.token:
            self._end(command.id, context)

    @session_ended
    def leave(self, session: int, context: Context) -> None:
        for (_, lease), _ in list(self.session_leases.range((session, 0), (session + 1, 0))):
            self._end(lease, context)
        self._delete_attached(session, context)

    def is_held(self, token: int) -> bool:
        return token in self.tokens

    # Helpers.

    def _put(self, key: str, value: bytes, ttl: float | None, lease: int | None, context: Context) -> None:
        old = self.kv.get(key)
        revision = context.revision
        expires_ns = None if ttl is None else context.now_ns + int(ttl * NANOSECONDS)
        if old is None:
            self.kv[key] = Row(value, revision, revision, 1, expires_ns, lease)
        else:
            self.kv[key] = Row(value, revision, old.created_revision, old.version + 1, expires_ns, lease)
            if old.lease is not None and old.lease != lease:
                del self.attached[old.lease, key]
        if lease is not None:
            self.attached[lease, key] = None
        if expires_ns is not None:
            context.schedule(f"key/{key}", expires_ns, Expire(key, revision))
        elif old is not None and old.expires_ns is not None:
            context.cancel(f"key/{key}")

    def _delete(self, key: str, context: Context) -> bool:
        row = self.kv.pop(key, None)
        if row is None:
            return False
        if row.expires_ns is not None:
            context.cancel(f"key/{key}")
        if row.lease is not None:
            del self.attached[row.lease, key]
        return True

    def _holds(self, compare: Compare) -> bool:
        row = self.kv.get(compare.key)
        compared = _COMPARED[compare.op]
        match compare.field:
            case "exists":
                return compared(row is not None, compare.operand)
            case "value":
                return compare.op == "!=" if row is None else compared(row.value, compare.operand)
            case field:
                return compared(0 if row is None else getattr(row, field), compare.operand)

    def _held(self, lease_id: int, token: int) -> Lease:
        lease = self.leases.get(lease_id)
        if lease is None or lease.token != token:
            raise NotHolder(f"token {token} does not hold lease {lease_id} (any more); nothing changed")
        return lease

    def _hand_over(self, lease_id: int, lease: Lease, context: Context) -> None:
        """It is ``lease`` from now on, for its whole ttl."""
        self.leases[lease_id] = lease
        self.tokens[lease.token] = lease_id
        self.session_leases[lease.session, lease_id] = None
        context.schedule(f"lease/{lease_id}", context.now_ns + lease.ttl_ns, LeaseEnds(lease_id, lease.token))

    def _end(self, lease_id: int, context: Context) -> None:
        lease = self.leases.pop(lease_id)
        del self.tokens[lease.token]
        del self.session_leases[lease.session, lease_id]
        context.cancel(f"lease/{lease_id}")
        self._delete_attached(lease_id, context)

    def _delete_attached(self, owner: int, context: Context) -> None:
        for (_, key), _ in list(self.attached.range((owner, ""), (owner + 1, ""))):
            self._delete(key, context)

    def _page(self, query: Keys | Items, context: QueryContext) -> tuple[list[tuple[str, Row]], int, str | None]:
        high = after_prefix(query.prefix)
        if query.cursor is None:
            revision, rows = context.revision, self.kv.range(query.prefix, high)
        else:
            number, _, low = query.cursor.partition(":")
            if not number.isdigit() or len(number) > 18 or not low.startswith(query.prefix):
                raise InvalidCommand("the cursor does not belong to this listing; start again without it")
            revision = int(number)
            rows = context.at(self.kv, revision).range(low, high)
        found: list[tuple[str, Row]] = []
        most = MAX_PAGE if query.limit is None else min(query.limit, MAX_PAGE)
        with_values, size = isinstance(query, Items), 0
        for key, row in rows:
            weight = len(key) + (len(row.value) if with_values else 0)
            if len(found) == most or (size and size + weight > MAX_PAGE_BYTES):
                return found, revision, f"{revision}:{key}"
            found.append((key, row))
            size += weight
        return found, revision, None


_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def after_prefix(prefix: str) -> str | None:
    """The least text above all that starts with ``prefix``; None: there is none."""
    while prefix and prefix[-1] == LAST:
        prefix = prefix[:-1]
    if not prefix:
        return None
    following = ord(prefix[-1]) + 1
    # Surrogates are no text: UTF-8 cannot say them.
    return prefix[:-1] + chr(0xE000 if following == 0xD800 else following)
