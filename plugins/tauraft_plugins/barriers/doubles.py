"""The double barrier state machine: all enter together, all leave together.

A round: ``parties`` arrive and are let in by one commit; each of them leaves, and the last one's leaving lets all out by one
commit.  Whoever arrives meanwhile waits for the next round.  A place is known by the revision at which it was asked for.

Whoever does not come back counts as having left: withdrawn while leaving, interrupted, or never told that it was in.  A lost
session's places go as ``on_loss`` says: *break* tells all who wait (of the same side: arriving or in) who it was, and
those who are in and do not wait when they leave; *shrink* takes so many parties fewer; *ignore* leaves the place to
somebody else, or counts it as left.  The barrier is forgotten when nobody is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

from tauraft.errors import Mismatch, NotHolder
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import BarrierInfo, Owner
from tauraft_plugins.barriers.waiting import broken, owner_of, waiters_of
from tauraft_primitives.barriers.messages import (
    DOUBLES,
    AskDouble,
    Depart,
    DoubleRow,
    Enter,
    Entered,
    GiveBackPlace,
    Leave,
)
from tauraft_primitives.locks.messages import WouldWait


@dataclass(frozen=True, slots=True)
class Arrival:
    ticket: Ticket[Entered]
    owner: Owner
    attempt: int


@dataclass(frozen=True, slots=True)
class Inside:
    """``leaving``: it waits to get out."""

    owner: Owner
    sequence: int
    attempt: int
    leaving: Ticket[None] | None = None


class DoubleBarriers(FSM, name=DOUBLES, version=1):
    teardown: ClassVar[int] = 40
    sql_views: ClassVar[Mapping[str, str]] = {
        "double_barriers": "SELECT key AS name, parties, arrived, inside, leaving, generation, is_broken "
        "FROM tauraft_double_barriers_barriers"
    }
    barriers: Table[str, DoubleRow]
    arrivals: Table[tuple[str, int], Arrival]  # (name, place)
    places: Table[tuple[str, int], Inside]  # (name, place)
    by_session: Table[tuple[int, str, int], None]  # (session, name, place), of both

    # ---- in ----

    @applies(Enter)
    def enter(self, command: Enter, context: Context) -> Ticket[Entered]:
        name = command.name
        row = self.barriers.get(name) or DoubleRow(command.parties, command.parties, command.on_loss)
        if (row.made_with, row.on_loss) != (command.parties, command.on_loss):
            raise Mismatch(
                f"the double barrier {name!r} has {row.made_with} parties and on_loss={row.on_loss!r}, not "
                f"{command.parties} and {command.on_loss!r}; nobody entered"
            )
        if command.patience == 0 and (row.inside or row.arrived + 1 < row.parties):
            raise WouldWait("would-wait", "not all are there; nobody entered")
        ticket = context.wait(Enter)
        self.arrivals[name, ticket.revision] = Arrival(ticket, owner_of(command.who, ticket), command.attempt)
        self.by_session[ticket.session, name, ticket.revision] = None
        self.barriers[name] = replace(row, arrived=row.arrived + 1)
        self._settle(name, context)
        return ticket

    @withdraws(Enter)
    def withdraw_enter(self, command: Enter, ticket: Ticket[Entered], context: Context) -> None:
        if context.session is None:
            return  # lost: ``lose_places`` knows what that means
        name, place = command.name, ticket.revision
        waiting = self.arrivals.get((name, place))
        if waiting is not None and waiting.ticket == ticket:
            self._drop_arrival(name, place)
            self._settle(name, context)
            return
        # Let in, and never told: it does not come back.
        for _, _, place in self._of_session(ticket.session, name):
            inside = self.places.get((name, place))
            if inside is not None and inside.sequence == ticket.sequence:
                self._depart(name, place, context)

    # ---- out ----

    @applies(Leave)
    def leave(self, command: Leave, context: Context) -> Ticket[None]:
        name, place = command.name, command.place
        inside = self.places.get((name, place))
        if inside is None or inside.owner.session != context.session or inside.leaving is not None:
            raise NotHolder(f"place {place} is not in the double barrier {name!r} (any more); nothing changed")
        row = self.barriers[name]
        ticket = context.wait(Leave)
        if row.is_broken:
            context.answer(ticket, broken(name, row.broken_by))
            self._depart(name, place, context)
        elif command.patience == 0 and row.leaving + 1 < row.inside:
            context.answer(ticket, WouldWait("would-wait", "others are still in; this one has left"))
            self._depart(name, place, context)
        else:
            self.places[name, place] = replace(inside, leaving=ticket)
            self.barriers[name] = replace(row, leaving=row.leaving + 1)
            self._settle(name, context)
        return ticket

    @withdraws(Leave)
    def withdraw_leave(self, command: Leave, ticket: Ticket[None], context: Context) -> None:
        inside = self.places.get((command.name, command.place))
        if context.session is not None and inside is not None and inside.leaving == ticket:
            self._depart(command.name, command.place, context)

    @applies(Depart)
    def depart(self, command: Depart, context: Context) -> None:
        inside = self.places.get((command.name, command.place))
        if inside is not None and inside.owner.session == context.session:
            self._depart(command.name, command.place, context)

    @applies(GiveBackPlace)
    def give_back(self, command: GiveBackPlace, context: Context) -> None:
        if context.session is None:
            return
        for _, _, place in self._of_session(context.session, command.name):
            inside = self.places.get((command.name, place))
            if inside is not None and inside.attempt == command.attempt:
                self._depart(command.name, place, context)

    # ---- losses ----

    @session_ended
    def lose_places(self, session: int, context: Context) -> None:
        lost: dict[str, list[int]] = {}
        for (_, name, place), _ in self.by_session.range((session, "", 0), (session + 1, "", 0)):
            lost.setdefault(name, []).append(place)
        for name, places in lost.items():
            self._lose(name, places, context)

    def _lose(self, name: str, places: list[int], context: Context) -> None:
        arrived = [place for place in places if (name, place) in self.arrivals]
        inside = [place for place in places if (name, place) in self.places]
        owner = self.arrivals[name, arrived[0]].owner if arrived else self.places[name, inside[0]].owner
        for place in arrived:
            self._drop_arrival(name, place)
        for place in inside:
            self._drop_place(name, place)
        row = self.barriers[name]
        match row.on_loss:
            case "break":
                if arrived:
                    for (_, place), arrival in list(waiters_of(self.arrivals, name)):
                        self._drop_arrival(name, place)
                        context.answer(arrival.ticket, broken(name, owner))
                row = self.barriers[name]
                if inside and row.inside:
                    self.barriers[name] = replace(row, is_broken=True, broken_by=owner)
                    for (_, place), left in list(waiters_of(self.places, name)):
                        if left.leaving is not None:
                            self._drop_place(name, place)
                            context.answer(left.leaving, broken(name, owner))
            case "shrink":
                self.barriers[name] = replace(row, parties=max(1, row.parties - len(places)))
            case "ignore":
                pass
        self._settle(name, context)

    # ---- looking ----

    @answers(AskDouble)
    def info(self, query: AskDouble) -> BarrierInfo | None:
        row = self.barriers.get(query.name)
        if row is None:
            return None
        return BarrierInfo(query.name, row.parties, row.inside or row.arrived, row.generation, row.is_broken)

    # ---- the story of a round ----

    def _settle(self, name: str, context: Context) -> None:
        """Let out whom nobody holds up, then let in who is complete; forget a barrier where nobody is."""
        row = self.barriers[name]
        if row.inside and row.leaving == row.inside:
            for key, inside in list(waiters_of(self.places, name)):
                del self.places[key]
                del self.by_session[inside.owner.session, name, key[1]]
                assert inside.leaving is not None
                context.answer(inside.leaving, None)
            row = self.barriers[name] = replace(row, inside=0, leaving=0, is_broken=False, broken_by=None)
        if row.inside == 0 and row.arrived >= row.parties:
            row = self._let_in(name, row, context)
        if row.inside == 0 and row.arrived == 0:
            del self.barriers[name]

    def _let_in(self, name: str, row: DoubleRow, context: Context) -> DoubleRow:
        row = replace(
            row, generation=row.generation + 1, arrived=row.arrived - row.parties, inside=row.parties, leaving=0
        )
        self.barriers[name] = row
        for (_, place), arrival in list(islice(waiters_of(self.arrivals, name), row.parties)):
            del self.arrivals[name, place]
            self.places[name, place] = Inside(arrival.owner, arrival.ticket.sequence, arrival.attempt)
            context.answer(arrival.ticket, Entered(place, row.generation))
        return row

    def _depart(self, name: str, place: int, context: Context) -> None:
        self._drop_place(name, place)
        self._settle(name, context)

    def _drop_arrival(self, name: str, place: int) -> None:
        arrival = self.arrivals.pop((name, place))
        del self.by_session[arrival.ticket.session, name, place]
        row = self.barriers[name]
        self.barriers[name] = replace(row, arrived=row.arrived - 1)

    def _drop_place(self, name: str, place: int) -> None:
        inside = self.places.pop((name, place))
        del self.by_session[inside.owner.session, name, place]
        row = self.barriers[name]
        leaving = row.leaving - (inside.leaving is not None)
        if row.inside == 1:  # the round is over, and so is what broke it
            self.barriers[name] = replace(row, inside=0, leaving=0, is_broken=False, broken_by=None)
        else:
            self.barriers[name] = replace(row, inside=row.inside - 1, leaving=leaving)

    def _of_session(self, session: int, name: str) -> list[tuple[int, str, int]]:
        return [key for key, _ in self.by_session.range((session, name, 0), (session, name + "\0", 0))]
