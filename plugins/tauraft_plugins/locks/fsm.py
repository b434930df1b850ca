"""The lock state machine.

A lock is free, held, or cooling down after a *lost* hold (``lock_delay``).  Whoever waits is a ticket in ``waiters``, ordered by
priority (higher first), then by revision; freeing a lock hands it to the first of them in the same command, so a hand-over
is one commit.  The token of a hold is the revision at which it was granted: it only grows.

A hold ends by release, by its ttl's timer, with its session, by ``Break``, or by the withdrawal of a caller that never
learned of its grant.  Only the ttl and the session's end count as lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tauraft.errors import InvalidCommand, NotHolder
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import LockInfo, Owner
from tauraft_primitives.locks.messages import (
    LOCKS,
    Acquire,
    Break,
    CheckHold,
    DelayEnds,
    Grant,
    HoldEnds,
    Holds,
    Info,
    Release,
    Renew,
)

NANOSECONDS = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Hold:
    """``sequence``: of the Acquire, to know a withdrawal of it. ``expires_ns`` None: lives with the session."""

    token: int
    session: int
    sequence: int
    owner: Owner
    since_ns: int
    ttl_ns: int | None
    expires_ns: int | None
    delay_ns: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Waiter:
    ticket: Ticket[Grant]
    owner: Owner
    ttl_ns: int | None
    delay_ns: int
    reason: str | None


class Locks(FSM, name=LOCKS, version=1):
    holds: Table[str, Hold]
    waiters: Table[tuple[str, int, int], Waiter]  # (name, -priority, revision)
    cooling: Table[str, int]  # until when
    tokens: Table[int, str]  # of the holds there are
    by_session: Table[tuple[int, str], int]  # (session, name) -> token

    @applies(Acquire)
    def acquire(self, command: Acquire, context: Context) -> Grant | Ticket[Grant]:
        ticket = context.wait(Acquire)
        owner = Owner(ticket.session, command.peer_id, command.host, command.pid, command.label)
        ttl_ns = None if command.ttl is None else int(command.ttl * NANOSECONDS)
        waiter = Waiter(ticket, owner, ttl_ns, int(command.lock_delay * NANOSECONDS), command.reason)
        if command.name not in self.holds and command.name not in self.cooling:
            return self._grant(command.name, waiter, context)
        self.waiters[command.name, -command.priority, context.revision] = waiter
        return ticket

    @withdraws(Acquire)
    def withdraw(self, command: Acquire, ticket: Ticket[Grant], context: Context) -> None:
        if self.waiters.pop((command.name, -command.priority, ticket.revision), None) is not None:
            return
        hold = self.holds.get(command.name)
        if hold is not None and (hold.session, hold.sequence) == (ticket.session, ticket.sequence):
            self._free(command.name, hold, context)

    @applies(Release)
    def release(self, command: Release, context: Context) -> None:
        self._free(command.name, self._held_by(command.name, command.token), context)

    @applies(Renew)
    def renew(self, command: Renew, context: Context) -> None:
        hold = self._held_by(command.name, command.token)
        if hold.ttl_ns is None:
            return
        expires_ns = context.now_ns + hold.ttl_ns
        self.holds[command.name] = Hold(
            hold.token, hold.session, hold.sequence, hold.owner, hold.since_ns, hold.ttl_ns, expires_ns,
            hold.delay_ns, hold.reason,
        )  # fmt: skip
        context.schedule(f"hold/{command.name}", expires_ns, HoldEnds(command.name, command.token))

    @applies(Break)
    def break_(self, command: Break, context: Context) -> bool:
        hold = self.holds.get(command.name)
        if hold is None:
            return False
        self._free(command.name, hold, context)
        return True

    @applies(CheckHold)
    def check_hold(self, command: CheckHold, context: Context) -> None:
        if command.token not in self.tokens:
            raise NotHolder(f"token {command.token} holds no lock any more; nothing changed")

    @applies(HoldEnds)
    def hold_ends(self, command: HoldEnds, context: Context) -> None:
        if context.session is not None:
            raise InvalidCommand("holds end by their own timers; nothing changed")
        hold = self.holds.get(command.name)
        if hold is not None and hold.token == command.token:
            self._free(command.name, hold, context, lost=True)

    @applies(DelayEnds)
    def delay_ends(self, command: DelayEnds, context: Context) -> None:
        if context.session is not None:
            raise InvalidCommand("locks cool down by their own timers; nothing changed")
        self.cooling.pop(command.name, None)
        if command.name not in self.holds:
            self._grant_next(command.name, context)

    @session_ended
    def give_back(self, session: int, context: Context) -> None:
        for (_, name), _ in list(self.by_session.range((session, ""), (session + 1, ""))):
            self._free(name, self.holds[name], context, lost=True)

    @answers(Info)
    def info(self, query: Info) -> LockInfo:
        hold = self.holds.get(query.name)
        waiters = tuple(waiter.owner for _, waiter in self._waiting(query.name))
        if hold is None:
            return LockInfo(query.name, None, None, None, None, waiters)
        since = EPOCH + timedelta(microseconds=hold.since_ns // 1_000)
        return LockInfo(query.name, hold.owner, hold.token, hold.reason, since, waiters)

    @answers(Holds)
    def holds_it(self, query: Holds) -> bool:
        hold = self.holds.get(query.name)
        return hold is not None and hold.token == query.token

    def _held_by(self, name: str, token: int) -> Hold:
        hold = self.holds.get(name)
        if hold is None or hold.token != token:
            raise NotHolder(f"token {token} does not hold the lock {name!r} (any more); nothing changed")
        return hold

    def _waiting(self, name: str) -> list[tuple[tuple[str, int, int], Waiter]]:
        return list(self.waiters.range((name, -(1 << 63), 0), (name + "\0", -(1 << 63), 0)))

    def _grant(self, name: str, waiter: Waiter, context: Context) -> Grant:
        token = context.revision
        expires_ns = None if waiter.ttl_ns is None else context.now_ns + waiter.ttl_ns
        ticket = waiter.ticket
        self.holds[name] = Hold(
            token, ticket.session, ticket.sequence, waiter.owner, context.wall_ns, waiter.ttl_ns, expires_ns,
            waiter.delay_ns, waiter.reason,
        )  # fmt: skip
        self.tokens[token] = name
        self.by_session[ticket.session, name] = token
        if expires_ns is not None:
            context.schedule(f"hold/{name}", expires_ns, HoldEnds(name, token))
        return Grant(token)

    def _free(self, name: str, hold: Hold, context: Context, *, lost: bool = False) -> None:
        del self.holds[name]
        del self.tokens[hold.token]
        del self.by_session[hold.session, name]
        if hold.expires_ns is not None:
            context.cancel(f"hold/{name}")
        if lost and hold.delay_ns:
            until = context.now_ns + hold.delay_ns
            self.cooling[name] = until
            context.schedule(f"delay/{name}", until, DelayEnds(name))
            return
        self._grant_next(name, context)

    def _grant_next(self, name: str, context: Context) -> None:
        first = next(self.waiters.range((name, -(1 << 63), 0), (name + "\0", -(1 << 63), 0)), None)
        if first is not None:
            key, waiter = first
            del self.waiters[key]
            context.answer(waiter.ticket, self._grant(name, waiter, context))
