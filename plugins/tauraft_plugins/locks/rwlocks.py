"""The state machine of locks for readers and writers.

Many readers, or one writer.  One queue, first come, first served: a reader that comes while a writer waits is behind it,
so that writers do not starve, and neither do readers behind writers.  When the queue moves, all the readers up to the next
writer get in together, in one command.

A party (a task or thread, see ``tauraft_primitives.locks.messages``) that reads already may read again, past those who
wait: they wait for it in any case.  If it asks to write it would wait for itself: ``UpgradeRefused``.  A writer that asks
again, for ever, would too: ``Deadlock``.  The way down, from writer to reader, is one command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from tauraft.errors import Deadlock, NotHolder, UpgradeRefused
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import Owner, RwLockInfo, instant
from tauraft_primitives.locks.messages import Grant, Standing, WouldWait
from tauraft_primitives.rwlocks.messages import (
    RWLOCKS,
    AcquireRw,
    Downgrade,
    GiveBackRw,
    HoldsRw,
    ReleaseRw,
    RwInfo,
    RwStanding,
)


@dataclass(frozen=True, slots=True)
class RwAsked:
    ticket: Ticket[Grant]
    owner: Owner
    mode: Literal["read", "write"]
    party: int
    attempt: int


@dataclass(frozen=True, slots=True)
class RwHold:
    token: int
    session: int
    since_ns: int
    mode: Literal["read", "write"]
    asked: RwAsked


class RwLocks(FSM, name=RWLOCKS, version=1):
    teardown: ClassVar[int] = 10
    holds: Table[tuple[str, int], RwHold]  # (name, token): readers, or one writer
    waiters: Table[tuple[str, int], RwAsked]  # (name, revision)
    tokens: Table[int, str]
    by_session: Table[tuple[int, int], str]  # (session, token) -> name
    by_party: Table[tuple[str, int, int, int], None]  # (name, session, party, token)

    @applies(AcquireRw)
    def acquire(self, command: AcquireRw, context: Context) -> Grant | Ticket[Grant]:
        ticket = context.wait(AcquireRw)
        owner = Owner(ticket.session, command.peer_id, command.host, command.pid, command.label)
        asked = RwAsked(ticket, owner, command.mode, command.party, command.attempt)
        own = self._own_mode(command.name, ticket.session, command.party)
        if own == "read" and command.mode == "read":
            return self._grant(command.name, asked, context)
        if own == "read":
            raise UpgradeRefused(
                f"{command.name!r} is held for reading here, and writing would wait for that to end: release it "
                "first, or take it for writing from the start; what is held stays held"
            )
        if own == "write" and command.patience is None:
            raise Deadlock(
                f"{command.name!r} is held for writing here, and this would wait for that to end, for ever: use "
                "downgrade() to read on; what is held stays held",
                cycle=(command.name,),
            )
        if self._first(command.name) is None and self._has_room(command.name, command.mode):
            return self._grant(command.name, asked, context)
        if command.patience == 0:
            raise WouldWait("would-wait", "the lock is not free; nothing is held, nobody waits")
        self.waiters[command.name, context.revision] = asked
        return ticket

    @withdraws(AcquireRw)
    def withdraw(self, command: AcquireRw, ticket: Ticket[Grant], context: Context) -> None:
        asked = self.waiters.get((command.name, ticket.revision))
        if asked is not None and asked.ticket == ticket:
            del self.waiters[command.name, ticket.revision]
            self._advance(command.name, context)
            return
        self._free_where(
            ticket.session, command.name, lambda hold: hold.asked.ticket.sequence == ticket.sequence, context
        )

    @applies(ReleaseRw)
    def release(self, command: ReleaseRw, context: Context) -> None:
        self._free(command.name, self._held_by(command.name, command.token), context)

    @applies(GiveBackRw)
    def give_back(self, command: GiveBackRw, context: Context) -> None:
        if context.session is not None:
            self._free_where(context.session, command.name, lambda hold: hold.asked.attempt == command.attempt, context)

    @applies(Downgrade)
    def downgrade(self, command: Downgrade, context: Context) -> None:
        hold = self._held_by(command.name, command.token)
        self.holds[command.name, command.token] = replace(hold, mode="read")
        self._advance(command.name, context)

    @session_ended
    def give_all_back(self, session: int, context: Context) -> None:
        self._free_where(session, None, lambda hold: True, context)

    # ---- looking ----

    def is_held(self, token: int) -> bool:
        """For ``tauraft.fencing``: whether the hold of that token still holds."""
        return token in self.tokens

    @answers(RwInfo)
    def info(self, query: RwInfo) -> RwLockInfo:
        low, high = (query.name, 0), (query.name + "\0", 0)
        holds = [hold for _, hold in self.holds.range(low, high)]
        readers = tuple(hold.asked.owner for hold in holds if hold.mode == "read")
        writer = next((hold.asked.owner for hold in holds if hold.mode == "write"), None)
        return RwLockInfo(query.name, readers, writer, tuple(asked.owner for _, asked in self.waiters.range(low, high)))

    @answers(HoldsRw)
    def holds_it(self, query: HoldsRw) -> bool:
        return self.tokens.get(query.token) == query.name

    @answers(RwStanding)
    def standing(self, query: RwStanding) -> Standing | None:
        for ahead, (_, asked) in enumerate(self.waiters.range((query.name, 0), (query.name + "\0", 0))):
            if (asked.ticket.session, asked.attempt) == (query.session, query.attempt):
                oldest = self._any_hold(query.name)
                if oldest is None:
                    return Standing(None, None, None, ahead)
                since = instant(oldest.since_ns)
                return Standing(oldest.asked.owner, None, since, ahead)
        return None

    # ---- the story of a hold ----

    def _first(self, name: str) -> tuple[tuple[str, int], RwAsked] | None:
        return next(self.waiters.range((name, 0), (name + "\0", 0)), None)

    def _any_hold(self, name: str) -> RwHold | None:
        return next((hold for _, hold in self.holds.range((name, 0), (name + "\0", 0))), None)

    def _has_room(self, name: str, mode: str) -> bool:
        held = self._any_hold(name)
        return held is None or (held.mode == "read" and mode == "read")

    def _own_mode(self, name: str, session: int, party: int) -> str | None:
        for (_, _, _, token), _ in self.by_party.range((name, session, party, 0), (name, session, party + 1, 0)):
            return self.holds[name, token].mode
        return None

    def _held_by(self, name: str, token: int) -> RwHold:
        hold = self.holds.get((name, token))
        if hold is None:
            raise NotHolder(f"token {token} does not hold {name!r} (any more); nothing changed")
        return hold

    def _grant(self, name: str, asked: RwAsked, context: Context, *, waited: bool = False) -> Grant:
        token = context.new_revision()
        session = asked.ticket.session
        self.holds[name, token] = RwHold(token, session, context.wall_ns, asked.mode, asked)
        self.tokens[token] = name
        self.by_session[session, token] = name
        self.by_party[name, session, asked.party, token] = None
        return Grant((token,), waited)

    def _free_where(self, session: int, name: str | None, is_it: Callable[[RwHold], bool], context: Context) -> None:
        for (_, token), of in list(self.by_session.range((session, 0), (session + 1, 0))):
            if name in (None, of) and is_it(self.holds[of, token]):
                self._free(of, self.holds[of, token], context)

    def _free(self, name: str, hold: RwHold, context: Context) -> None:
        del self.holds[name, hold.token]
        del self.tokens[hold.token]
        del self.by_session[hold.session, hold.token]
        del self.by_party[name, hold.session, hold.asked.party, hold.token]
        self._advance(name, context)

    def _advance(self, name: str, context: Context) -> None:
        while (first := self._first(name)) is not None:
            key, asked = first
            if not self._has_room(name, asked.mode):
                return
            del self.waiters[key]
            context.answer(asked.ticket, self._grant(name, asked, context, waited=True))
