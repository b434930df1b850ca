"""The rate limit state machine: token buckets in cluster time.

A bucket is one number, the instant at which it is full again (``full_ns``): at ``now`` so many tokens are missing as ``period_ns``
goes into what is left until then.  Taking ``n`` moves the instant by ``n`` periods; it may be taken when that leaves it no more than
``burst`` periods away.  All in whole nanoseconds, so no replica rounds otherwise than another.

Waiters are served in the order in which they came; one timer, at the instant at which the first of them can be served.
A full bucket that nobody waits for says nothing that a new one would not, so it is forgotten (two with each command, in the
order in which they became full): a limit a user costs nothing while the user is idle.  One that was retuned stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

from tauraft.errors import InvalidCommand, Mismatch
from tauraft.fsm import FSM, Context, QueryContext, Table, Ticket, answers, applies, withdraws
from tauraft.types import Owner, RateInfo
from tauraft_primitives.locks.messages import WouldWait
from tauraft_primitives.rates.messages import RATES, AskRate, Retune, TakeTokens, TokensDue, TryTokens

NANOSECONDS = 1_000_000_000
MAX_FORGOTTEN = 2  # with each command


@dataclass(frozen=True, slots=True)
class Bucket:
    """``made_with``: before it was retuned. ``born``: the revision at which it was made."""

    rate: float
    burst: int
    made_with: tuple[float, int]
    full_ns: int
    born: int

    @property
    def period_ns(self) -> int:
        return max(1, round(NANOSECONDS / self.rate))


@dataclass(frozen=True, slots=True)
class Waiter:
    ticket: Ticket[None]
    owner: Owner
    n: int


class Rates(FSM, name=RATES, version=1):
    sql_views: ClassVar[Mapping[str, str]] = {
        "rate_limits": "SELECT key AS name, rate, burst, full_ns FROM tauraft_rates_buckets"
    }
    buckets: Table[str, Bucket]
    full: Table[tuple[int, str], None]  # (full_ns, name): who is forgotten first
    waiters: Table[tuple[str, int], Waiter]  # (name, revision)

    @applies(TakeTokens)
    def take(self, command: TakeTokens, context: Context) -> Ticket[None] | None:
        name = command.name
        self._forget_some(context)
        bucket = self._bucket(command, context)
        if self._first(name) is None and self._take(name, bucket, command.n, context):
            return None
        if command.patience == 0:
            raise WouldWait("would-wait", "the tokens are not there; nothing was taken, nobody waits")
        ticket = context.wait(TakeTokens)
        owner = replace(command.who, session=ticket.session)
        self.waiters[name, ticket.revision] = Waiter(ticket, owner, command.n)
        self._set(name, bucket)
        self._advance(name, context)
        return ticket

    @applies(TryTokens)
    def try_(self, command: TryTokens, context: Context) -> bool:
        self._forget_some(context)
        bucket = self._bucket(command, context)
        return self._first(command.name) is None and self._take(command.name, bucket, command.n, context)

    @withdraws(TakeTokens)
    def withdraw(self, command: TakeTokens, ticket: Ticket[None], context: Context) -> None:
        name = command.name
        waiting = self.waiters.get((name, ticket.revision))
        bucket = self.buckets.get(name)
        if waiting is not None and waiting.ticket == ticket:
            del self.waiters[name, ticket.revision]
        elif context.session is None or bucket is None or bucket.born > ticket.revision:
            return  # it may have used them, or they would be full by now all the same
        else:
            self._set(name, replace(bucket, full_ns=bucket.full_ns - command.n * bucket.period_ns))
        self._advance(name, context)

    @applies(Retune)
    def retune(self, command: Retune, context: Context) -> None:
        name = command.name
        old = (command.old_rate, command.old_burst)
        before = self.buckets.get(name) or Bucket(*old, old, 0, context.revision)
        after = replace(before, rate=command.rate, burst=command.burst)
        missing_ns = max(0, before.full_ns - context.now_ns) * after.period_ns // before.period_ns
        full_ns = context.now_ns + min(missing_ns, after.burst * after.period_ns)
        self._set(name, replace(after, full_ns=full_ns))
        for key, waiter in list(self.waiters.range((name, 0), (name + "\0", 0))):
            if waiter.n > command.burst:
                del self.waiters[key]
                context.answer(
                    waiter.ticket,
                    Mismatch(
                        f"the rate limit {name!r} was retuned to a burst of {command.burst}: {waiter.n} can never be had"
                    ),
                )
        self._advance(name, context)

    @applies(TokensDue)
    def due(self, command: TokensDue, context: Context) -> None:
        if context.session is not None:
            raise InvalidCommand("tokens come by their own timers; nothing changed")
        self._advance(command.name, context)

    @answers(AskRate)
    def info(self, query: AskRate, context: QueryContext) -> RateInfo | None:
        bucket = self.buckets.get(query.name)
        if bucket is None:
            return None
        missing_ns = max(0, bucket.full_ns - context.now_ns)
        available = max(0, bucket.burst - -(-missing_ns // bucket.period_ns))
        waiters = self.waiters.count((query.name, 0), (query.name + "\0", 0))
        return RateInfo(query.name, bucket.rate, bucket.burst, available, missing_ns / NANOSECONDS, waiters)

    # ---- the story of a bucket ----

    def _bucket(self, command: TakeTokens | TryTokens, context: Context) -> Bucket:
        wanted = (command.rate, command.burst)
        bucket = self.buckets.get(command.name)
        if bucket is None:
            return Bucket(*wanted, wanted, 0, context.revision)
        if wanted not in ((bucket.rate, bucket.burst), bucket.made_with):
            raise Mismatch(
                f"the rate limit {command.name!r} has rate={bucket.rate:g} and burst={bucket.burst}, not "
                f"{command.rate:g} and {command.burst}; nothing was taken"
            )
        if command.n > bucket.burst:
            raise Mismatch(f"the rate limit {command.name!r} holds {bucket.burst}: {command.n} can never be had")
        return bucket

    def _take(self, name: str, bucket: Bucket, n: int, context: Context) -> bool:
        full_ns = max(bucket.full_ns, context.now_ns) + n * bucket.period_ns
        if full_ns > context.now_ns + bucket.burst * bucket.period_ns:
            return False
        self._set(name, replace(bucket, full_ns=full_ns))
        return True

    def _advance(self, name: str, context: Context) -> None:
        while (first := self._first(name)) is not None:
            key, waiter = first
            bucket = self.buckets[name]
            if not self._take(name, bucket, waiter.n, context):
                at_ns = bucket.full_ns + (waiter.n - bucket.burst) * bucket.period_ns
                context.schedule(f"bucket/{name}", at_ns, TokensDue(name))
                return
            del self.waiters[key]
            context.answer(waiter.ticket, None)
        context.cancel(f"bucket/{name}")

    def _first(self, name: str) -> tuple[tuple[str, int], Waiter] | None:
        return next(self.waiters.range((name, 0), (name + "\0", 0)), None)

    def _set(self, name: str, bucket: Bucket) -> None:
        before = self.buckets.get(name)
        if before is not None:
            self.full.pop((before.full_ns, name), None)
        self.buckets[name] = bucket
        if (bucket.rate, bucket.burst) == bucket.made_with:
            self.full[bucket.full_ns, name] = None

    def _forget_some(self, context: Context) -> None:
        for key, _ in list(islice(self.full.range(None, (context.now_ns + 1, "")), MAX_FORGOTTEN)):
            if self._first(key[1]) is None:
                del self.full[key]
                del self.buckets[key[1]]
