"""The lock state machine.

A lock is free, held, or cooling down after a *lost* hold (``lock_delay``).  Whoever waits is a request, in the queue of each
lock that it wants, ordered by priority (higher first), then by revision; freeing a lock hands it to the first of
them in the same command, so a hand-over is one commit.  A request for several locks is granted when it is first in all
their queues and all are free; until then it holds nothing, and a free lock that it is first for is *reserved* for it, so
that it does not starve.  Each hold has a token of its own, greater than all before.

A hold ends by release, by its ttl's timer, with its session, by ``Break``, or by the withdrawal of a caller that never
learned of its grant.  Only the ttl and the session's end count as lost.

Deadlock (``deadlock.py``): whenever somebody starts to wait, or waits for something new, the waits are followed from
there.  In a cycle of holds the youngest wait is refused with its names.  A cycle that goes through a reservation needs
no victim: whoever waits for the reserved lock is let past, since the other can only get on after it.
A hold that runs out by itself (a ttl that nobody renews) keeps nobody for ever, so it is no part of a cycle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from tauraft.errors import Deadlock, InvalidCommand, NotHolder
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import LockBreak, LockInfo, Owner, instant
from tauraft_plugins.locks.deadlock import Edge, find_cycle
from tauraft_primitives.locks.messages import (
    LOCKS,
    Acquire,
    AcquireAll,
    AskStanding,
    AwaitEnd,
    Break,
    DelayEnds,
    ExplainLock,
    GiveBack,
    Grant,
    Hold,
    HoldEnds,
    Holds,
    Info,
    ListLocks,
    LockExplained,
    Release,
    Renew,
    Request,
    Standing,
    WaitExplained,
    WouldWait,
)

NANOSECONDS = 1_000_000_000
MAX_OTHER_WAITS = 16  # of one party, that are looked at when it was granted something
MAX_BREAKS = 1_000  # names whose last break is kept here; the history has them all


class Locks(FSM, name=LOCKS, version=1):
    teardown: ClassVar[int] = 10
    holds: Table[str, Hold]
    requests: Table[int, Request]  # that wait, by the revision of the command that waits
    queues: Table[tuple[str, int, int], None]  # (name, -priority, revision)
    waits: Table[tuple[int, int, int], None]  # (session, party, revision)
    cooling: Table[str, int]  # until when
    tokens: Table[int, str]  # of the holds there are
    by_session: Table[tuple[int, str], int]  # (session, name) -> token
    watchers: Table[tuple[int, int], Ticket[None]]  # (token, revision): who wants to know that it ended
    breaks: Table[str, LockBreak]  # the last one of each name
    broken: Table[int, str]  # the same names, by the revision of that break
    sql_views: ClassVar[Mapping[str, str]] = {"locks": "SELECT key AS name, token, session FROM tauraft_locks_holds"}

    # ---- taking ----

    @applies(Acquire)
    def acquire(self, command: Acquire, context: Context) -> Grant | Ticket[Grant]:
        ticket = context.wait(Acquire)
        request = Request(
            ticket, _owner(ticket, command), (command.name,), command.party, command.attempt, command.priority,
            context.wall_ns, command.patience is not None, _ns(command.ttl), command.renews,
            _ns(command.lock_delay) or 0, command.reason,
        )  # fmt: skip
        return self._ask(request, command.patience == 0, context)

    @applies(AcquireAll)
    def acquire_all(self, command: AcquireAll, context: Context) -> Grant | Ticket[Grant]:
        ticket = context.wait(AcquireAll)
        request = Request(
            ticket, _owner(ticket, command), command.names, command.party, command.attempt, 0,
            context.wall_ns, command.patience is not None, _ns(command.ttl), command.renews, 0, None,
        )  # fmt: skip
        return self._ask(request, command.patience == 0, context)

    @withdraws(Acquire)
    def withdraw(self, command: Acquire, ticket: Ticket[Grant], context: Context) -> None:
        self._withdraw((command.name,), ticket, context)

    @withdraws(AcquireAll)
    def withdraw_all(self, command: AcquireAll, ticket: Ticket[Grant], context: Context) -> None:
        self._withdraw(command.names, ticket, context)

    # ---- giving back ----

    @applies(Release)
    def release(self, command: Release, context: Context) -> None:
        self._free(command.name, self._held_by(command.name, command.token), context)

    @applies(GiveBack)
    def give_back(self, command: GiveBack, context: Context) -> None:
        for name in command.names:
            hold = self.holds.get(name)
            if hold is not None and (hold.session, hold.request.attempt) == (context.session, command.attempt):
                self._free(name, hold, context)

    @applies(Renew)
    def renew(self, command: Renew, context: Context) -> None:
        hold = self._held_by(command.name, command.token)
        if hold.request.ttl_ns is None:
            return
        expires_ns = context.now_ns + hold.request.ttl_ns
        self.holds[command.name] = replace(hold, renewed_ns=context.wall_ns, expires_ns=expires_ns)
        context.schedule(f"hold/{command.name}", expires_ns, HoldEnds(command.name, command.token))

    @applies(Break)
    def break_(self, command: Break, context: Context) -> bool:
        hold = self.holds.get(command.name)
        if hold is None:
            return False
        by = Owner(context.session or 0, command.peer_id, command.host, command.pid, command.label)
        at = instant(context.wall_ns)
        self.breaks[command.name] = LockBreak(by, at, command.reason, hold.request.owner, hold.token)
        self.broken[context.revision] = command.name
        if len(self.broken) > MAX_BREAKS:
            oldest, name = next(iter(self.broken.items()))
            del self.broken[oldest]
            if name not in self.broken.values():
                del self.breaks[name]
        self._free(command.name, hold, context)
        return True

    @applies(AwaitEnd)
    def await_end(self, command: AwaitEnd, context: Context) -> Ticket[None] | None:
        if self.tokens.get(command.token) != command.name:
            return None
        ticket = self.watchers[command.token, context.revision] = context.wait(AwaitEnd)
        return ticket

    @withdraws(AwaitEnd)
    def withdraw_await_end(self, command: AwaitEnd, ticket: Ticket[None], context: Context) -> None:
        self.watchers.pop((command.token, ticket.revision), None)

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
        self._settle(context, command.name)

    @session_ended
    def give_all_back(self, session: int, context: Context) -> None:
        for (_, name), _ in list(self.by_session.range((session, ""), (session + 1, ""))):
            self._free(name, self.holds[name], context, lost=True)

    # ---- looking ----

    def is_held(self, token: int) -> bool:
        """For ``tauraft.fencing``: whether the hold of that token still holds."""
        return token in self.tokens

    @answers(Info)
    def info(self, query: Info) -> LockInfo:
        hold = self.holds.get(query.name)
        waiters = tuple(request.owner for request in self._waiting(query.name))
        last = self.breaks.get(query.name)
        if hold is None:
            return LockInfo(query.name, None, None, None, None, waiters, last)
        request = hold.request
        return LockInfo(query.name, request.owner, hold.token, request.reason, instant(hold.since_ns), waiters, last)

    @answers(ListLocks)
    def list_locks(self, query: ListLocks) -> tuple[LockInfo, ...]:
        beyond = self.holds.range(query.after + "\0" if query.after else None)
        return tuple(self.info(Info(name)) for (name, _), _ in zip(beyond, range(query.limit), strict=False))

    @answers(Holds)
    def holds_it(self, query: Holds) -> bool:
        return self.tokens.get(query.token) == query.name

    @answers(AskStanding)
    def standing(self, query: AskStanding) -> Standing | None:
        for (_, _, revision), _ in self.waits.range((query.session,), (query.session + 1,)):  # type: ignore[arg-type]
            request = self.requests[revision]
            if request.attempt == query.attempt:
                hold = self.holds.get(query.name)
                place = (query.name, -request.priority, revision)
                ahead = self.queues.count(_first_of(query.name), place)
                if hold is None:
                    return Standing(None, None, None, ahead)
                return Standing(hold.request.owner, hold.request.reason, instant(hold.since_ns), ahead)
        return None

    @answers(ExplainLock)
    def explain(self, query: ExplainLock) -> LockExplained:
        waits = tuple(
            WaitExplained(request.owner, instant(request.asked_ns), request.priority, request.reason, request.names)
            for request in self._waiting(query.name)
        )
        cooling = query.name in self.cooling
        hold = self.holds.get(query.name)
        if hold is None:
            if cooling:
                ends = "it cools down (lock_delay): its last hold was lost, not released"
            elif waits:
                ends = "it is kept for the first who waits, who wants it together with locks that are not free"
            else:
                ends = "nobody holds it"
            return LockExplained(self.info(Info(query.name)), None, None, None, 0.0, cooling, ends, waits)
        request = hold.request
        ways = ["its release", "the end of its session", "`tauraft lock break`"]
        expires = None
        if request.ttl_ns is not None:
            expires = instant(hold.renewed_ns + request.ttl_ns)
            ways.insert(1, "its ttl, unless it is renewed before" if request.renews else "its ttl")
        return LockExplained(
            self.info(Info(query.name)),
            None if request.ttl_ns is None else request.ttl_ns / NANOSECONDS,
            None if request.ttl_ns is None else instant(hold.renewed_ns),
            expires,
            request.delay_ns / NANOSECONDS,
            cooling,
            "ended by " + ", ".join(ways[:-1]) + f" or {ways[-1]}",
            waits,
        )

    # ---- the story of a request ----

    def _ask(self, request: Request, is_a_try: bool, context: Context) -> Grant | Ticket[Grant]:
        if self._are_free(request.names) and all(self._head(name) is None for name in request.names):
            return self._grant(request, context)
        if is_a_try:
            raise WouldWait("would-wait", "the lock is not free; nothing is held, nobody waits")
        revision = request.ticket.revision
        self.requests[revision] = request
        for name in request.names:
            self.queues[name, -request.priority, revision] = None
        self.waits[request.ticket.session, request.party, revision] = None
        self._settle(context, revision)
        return request.ticket

    def _grant(self, request: Request, context: Context, *, waited: bool = False) -> Grant:
        tokens = []
        session = request.ticket.session
        expires_ns = None if request.ttl_ns is None else context.now_ns + request.ttl_ns
        for name in request.names:
            token = context.new_revision()
            self.holds[name] = Hold(token, session, context.wall_ns, context.wall_ns, expires_ns, request)
            self.tokens[token] = name
            self.by_session[session, name] = token
            if expires_ns is not None:
                context.schedule(f"hold/{name}", expires_ns, HoldEnds(name, token))
            tokens.append(token)
        return Grant(tuple(tokens), waited)

    def _dequeue(self, revision: int) -> Request:
        request = self.requests.pop(revision)
        for name in request.names:
            del self.queues[name, -request.priority, revision]
        del self.waits[request.ticket.session, request.party, revision]
        return request

    def _withdraw(self, names: tuple[str, ...], ticket: Ticket[Grant], context: Context) -> None:
        waiting = self.requests.get(ticket.revision)
        if waiting is not None and waiting.ticket == ticket:
            self._dequeue(ticket.revision)
            self._settle(context, *names)
            return
        for name in names:
            hold = self.holds.get(name)
            if hold is not None and (hold.session, hold.request.ticket.sequence) == (ticket.session, ticket.sequence):
                # With its session lost nobody knows whether the holder had learned of it, and used it.
                self._free(name, hold, context, lost=context.session is None)

    def _free(self, name: str, hold: Hold, context: Context, *, lost: bool = False) -> None:
        del self.holds[name]
        del self.tokens[hold.token]
        del self.by_session[hold.session, name]
        if hold.expires_ns is not None:
            context.cancel(f"hold/{name}")
        for key, ticket in list(self.watchers.range((hold.token, 0), (hold.token + 1, 0))):
            del self.watchers[key]
            context.answer(ticket, None)
        if lost and hold.request.delay_ns:
            until = context.now_ns + hold.request.delay_ns
            self.cooling[name] = until
            context.schedule(f"delay/{name}", until, DelayEnds(name))
            return
        self._settle(context, name)

    # ---- what follows from a change ----

    def _settle(self, context: Context, *changed: str | int) -> None:
        """Look at locks that may be had (by name) and at waits that may have closed a cycle (by revision), until all is quiet.

        A list of things to do, not calls within calls: however far it goes, it needs no more of Python's stack.
        """
        to_do = deque(changed)
        while to_do:
            item = to_do.popleft()
            if isinstance(item, str):
                self._advance(item, to_do, context)
            else:
                self._untangle(item, to_do, context)

    def _advance(self, name: str, to_do: deque[str | int], context: Context) -> None:
        """Whoever is first for ``name`` gets what it wants, if it can have all of it now."""
        first = self._head(name)
        if first is None or not self._are_free((name,)):
            return
        names = self.requests[first].names
        if self._are_free(names) and all(self._head(other) == first for other in names):
            self._grant_waiting(first, to_do, context)
        else:
            to_do.append(first)

    def _untangle(self, revision: int, to_do: deque[str | int], context: Context) -> None:
        """Break every cycle of waits that this wait is part of."""
        while revision in self.requests:
            cycle = find_cycle(revision, self._edges)
            if cycle is None:
                return
            let_past = [
                edge.waiter for edge in cycle if edge.is_reserved and self._are_free(self.requests[edge.waiter].names)
            ]
            if let_past:
                self._grant_waiting(min(let_past), to_do, context)
            else:
                self._refuse(max(edge.waiter for edge in cycle), tuple(edge.via for edge in cycle), to_do, context)

    def _grant_waiting(self, revision: int, to_do: deque[str | int], context: Context) -> None:
        request = self._dequeue(revision)
        context.answer(request.ticket, self._grant(request, context, waited=True))
        # A party that waits for several things at once holds something now that others wait for.
        others = self.waits.range(*_of_party(request.ticket.session, request.party))
        to_do.extend(other for ((_, _, other), _), _ in zip(others, range(MAX_OTHER_WAITS), strict=False))

    def _refuse(self, revision: int, cycle: tuple[str, ...], to_do: deque[str | int], context: Context) -> None:
        request = self._dequeue(revision)
        context.answer(
            request.ticket,
            Deadlock(
                f"deadlock: the holders of {', '.join(map(repr, cycle))} wait for each other, and this was the youngest "
                "wait; it holds nothing: release what you hold and begin again",
                cycle=cycle,
            ),
        )
        to_do.extend(request.names)

    def _edges(self, revision: int) -> Iterator[Edge]:
        request = self.requests[revision]
        for name in request.names:
            hold = self.holds.get(name)
            if hold is not None:
                holder = hold.session, hold.request.party
                is_own = holder == (request.ticket.session, request.party)
                if not hold.request.lasts or (is_own and request.is_bounded):
                    continue
                for (_, _, blocker), _ in self.waits.range(*_of_party(*holder)):
                    yield Edge(revision, blocker, name)
            elif name not in self.cooling:
                first = self._head(name)
                if first is not None and first != revision:
                    yield Edge(revision, first, name, is_reserved=True)

    # ---- small ones ----

    def _are_free(self, names: tuple[str, ...]) -> bool:
        return not any(name in self.holds or name in self.cooling for name in names)

    def _head(self, name: str) -> int | None:
        for (_, _, revision), _ in self.queues.range(_first_of(name), _beyond(name)):
            return revision
        return None

    def _waiting(self, name: str) -> list[Request]:
        return [self.requests[revision] for (_, _, revision), _ in self.queues.range(_first_of(name), _beyond(name))]

    def _held_by(self, name: str, token: int) -> Hold:
        hold = self.holds.get(name)
        if hold is None or hold.token != token:
            raise NotHolder(f"token {token} does not hold the lock {name!r} (any more); nothing changed")
        return hold


def _first_of(name: str) -> Any:
    return (name,)  # before every key that begins with it


def _beyond(name: str) -> Any:
    return (name + "\0",)  # no text is between a name and itself with a NUL


def _of_party(session: int, party: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    return (session, party, 0), (session, party + 1, 0)


def _owner(ticket: Ticket[Any], command: Acquire | AcquireAll) -> Owner:
    return Owner(ticket.session, command.peer_id, command.host, command.pid, command.label)


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * NANOSECONDS)
