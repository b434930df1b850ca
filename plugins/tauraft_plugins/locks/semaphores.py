"""The semaphore state machine: a number of permits, given out first come, first served.

A pool comes to be when it is first used, with the permits that its user names; from then on others must name the same
number, or the one that it was resized to (``Mismatch``).  Who asks for more than is left waits, and those behind wait too, so
that a large request does not starve.  Permits come back by release, with their holder's session, or by the withdrawal
of a caller that never learned of its grant.

The pool stays when it is idle, since its size is state; of those that are idle the ``MAX_IDLE`` used last are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from tauraft.errors import Mismatch, NotHolder
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import Owner, SemaphoreInfo, instant
from tauraft_primitives.locks.messages import Grant, Standing, WouldWait
from tauraft_primitives.semaphores.messages import (
    SEMAPHORES,
    AcquirePermits,
    GiveBackPermits,
    HoldsPermits,
    PermitsInfo,
    PermitsStanding,
    ReleasePermits,
    Resize,
)

MAX_IDLE = 10_000


@dataclass(frozen=True, slots=True)
class Pool:
    """``made_with``: before it was resized. ``used``: given out. ``idle_since``: a revision, 0 while it is in use."""

    permits: int
    made_with: int
    used: int = 0
    idle_since: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    ticket: Ticket[Grant]
    owner: Owner
    count: int
    attempt: int


@dataclass(frozen=True, slots=True)
class PermitHold:
    token: int
    session: int
    since_ns: int
    asked: Asked


class Semaphores(FSM, name=SEMAPHORES, version=1):
    teardown: ClassVar[int] = 10
    pools: Table[str, Pool]
    holds: Table[tuple[str, int], PermitHold]  # (name, token)
    waiters: Table[tuple[str, int], Asked]  # (name, revision)
    tokens: Table[int, str]
    by_session: Table[tuple[int, int], str]  # (session, token) -> name
    idle: Table[int, str]  # by the revision since when

    @applies(AcquirePermits)
    def acquire(self, command: AcquirePermits, context: Context) -> Grant | Ticket[Grant]:
        ticket = context.wait(AcquirePermits)
        pool = self.pools.get(command.name) or Pool(command.permits, command.permits)
        if command.permits not in (pool.permits, pool.made_with):
            raise Mismatch(
                f"the semaphore {command.name!r} has {pool.permits} permits, not {command.permits}; nothing is held"
            )
        if command.count > pool.permits:
            raise Mismatch(
                f"the semaphore {command.name!r} has {pool.permits} permits, {command.count} can never be had; nothing is held"
            )
        owner = Owner(ticket.session, command.peer_id, command.host, command.pid, command.label)
        asked = Asked(ticket, owner, command.count, command.attempt)
        if self._first(command.name) is None and pool.used + command.count <= pool.permits:
            return self._grant(command.name, pool, asked, context)
        if command.patience == 0:
            raise WouldWait("would-wait", "the permits are not free; nothing is held, nobody waits")
        self.waiters[command.name, context.revision] = asked
        return ticket

    @withdraws(AcquirePermits)
    def withdraw(self, command: AcquirePermits, ticket: Ticket[Grant], context: Context) -> None:
        asked = self.waiters.get((command.name, ticket.revision))
        if asked is not None and asked.ticket == ticket:
            del self.waiters[command.name, ticket.revision]
            self._advance(command.name, context)
            return
        self._free_where(
            ticket.session, command.name, lambda hold: hold.asked.ticket.sequence == ticket.sequence, context
        )

    @applies(ReleasePermits)
    def release(self, command: ReleasePermits, context: Context) -> None:
        hold = self.holds.get((command.name, command.token))
        if hold is None:
            raise NotHolder(f"token {command.token} holds no permit of {command.name!r} (any more); nothing changed")
        self._free(command.name, hold, context)

    @applies(GiveBackPermits)
    def give_back(self, command: GiveBackPermits, context: Context) -> None:
        if context.session is not None:
            self._free_where(context.session, command.name, lambda hold: hold.asked.attempt == command.attempt, context)

    @applies(Resize)
    def resize(self, command: Resize, context: Context) -> None:
        pool = self.pools.get(command.name)
        if pool is None:
            self._rest(command.name, Pool(command.permits, command.permits), context)
            return
        self.pools[command.name] = replace(pool, permits=command.permits)
        for key, asked in list(self.waiters.range((command.name, 0), (command.name + "\0", 0))):
            if asked.count > command.permits:
                del self.waiters[key]
                context.answer(
                    asked.ticket,
                    Mismatch(
                        f"the semaphore {command.name!r} was resized to {command.permits} permits, {asked.count} can "
                        "never be had; nothing is held"
                    ),
                )
        self._advance(command.name, context)

    @session_ended
    def give_all_back(self, session: int, context: Context) -> None:
        self._free_where(session, None, lambda hold: True, context)

    # ---- looking ----

    def is_held(self, token: int) -> bool:
        """For ``tauraft.fencing``: whether the hold of that token still holds."""
        return token in self.tokens

    @answers(PermitsInfo)
    def info(self, query: PermitsInfo) -> SemaphoreInfo | None:
        pool = self.pools.get(query.name)
        if pool is None:
            return None
        holders = tuple(hold.asked.owner for _, hold in self.holds.range((query.name, 0), (query.name + "\0", 0)))
        waiters = tuple(asked.owner for _, asked in self.waiters.range((query.name, 0), (query.name + "\0", 0)))
        return SemaphoreInfo(query.name, pool.permits, pool.permits - pool.used, holders, waiters)

    @answers(HoldsPermits)
    def holds_it(self, query: HoldsPermits) -> bool:
        return self.tokens.get(query.token) == query.name

    @answers(PermitsStanding)
    def standing(self, query: PermitsStanding) -> Standing | None:
        for ahead, (_, asked) in enumerate(self.waiters.range((query.name, 0), (query.name + "\0", 0))):
            if (asked.ticket.session, asked.attempt) == (query.session, query.attempt):
                oldest = next(self.holds.range((query.name, 0), (query.name + "\0", 0)), None)
                if oldest is None:
                    return Standing(None, None, None, ahead)
                since = instant(oldest[1].since_ns)
                return Standing(oldest[1].asked.owner, None, since, ahead)
        return None

    # ---- the story of a permit ----

    def _first(self, name: str) -> tuple[tuple[str, int], Asked] | None:
        return next(self.waiters.range((name, 0), (name + "\0", 0)), None)

    def _grant(self, name: str, pool: Pool, asked: Asked, context: Context, *, waited: bool = False) -> Grant:
        token = context.new_revision()
        if pool.idle_since:
            del self.idle[pool.idle_since]
        self.pools[name] = replace(pool, used=pool.used + asked.count, idle_since=0)
        self.holds[name, token] = PermitHold(token, asked.ticket.session, context.wall_ns, asked)
        self.tokens[token] = name
        self.by_session[asked.ticket.session, token] = name
        return Grant((token,), waited)

    def _free_where(
        self, session: int, name: str | None, is_it: Callable[[PermitHold], bool], context: Context
    ) -> None:
        for (_, token), of in list(self.by_session.range((session, 0), (session + 1, 0))):
            if name in (None, of) and is_it(self.holds[of, token]):
                self._free(of, self.holds[of, token], context)

    def _free(self, name: str, hold: PermitHold, context: Context) -> None:
        del self.holds[name, hold.token]
        del self.tokens[hold.token]
        del self.by_session[hold.session, hold.token]
        pool = self.pools[name]
        self.pools[name] = replace(pool, used=pool.used - hold.asked.count)
        self._advance(name, context)

    def _advance(self, name: str, context: Context) -> None:
        while (first := self._first(name)) is not None:
            key, asked = first
            pool = self.pools[name]
            if pool.used + asked.count > pool.permits:
                return
            del self.waiters[key]
            context.answer(asked.ticket, self._grant(name, pool, asked, context, waited=True))
        pool = self.pools[name]
        if pool.used == 0 and not pool.idle_since:
            self._rest(name, pool, context)

    def _rest(self, name: str, pool: Pool, context: Context) -> None:
        since = context.new_revision()
        self.pools[name] = replace(pool, idle_since=since)
        self.idle[since] = name
        if len(self.idle) > MAX_IDLE:
            oldest, forgotten = next(iter(self.idle.items()))
            del self.idle[oldest]
            del self.pools[forgotten]
