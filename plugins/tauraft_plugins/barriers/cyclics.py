"""The cyclic barrier state machine: ``parties`` wait for each other, again and again.

A round: ``parties`` arrive; if one of them has an action the last that has is told to run it, and everyone else waits on; when it is done
(or at once) all go on, by one commit, each with its order of arrival. Whoever arrives meanwhile waits for the next round.

Broken, as ``threading.Barrier``: everyone who waits is told, and so is whoever comes, until it is reset. What breaks it: a wait
that is withdrawn, an action that fails, ``Abort``, and with ``on_loss="break"`` a party whose session is lost.

A party that is lost need not wait at that moment: it may be between two rounds. So who took part in the last round is
*expected* in this one, so often as it did (``members``, by session).  *shrink* takes the lost parties off, *ignore* leaves their place to
others.  Whoever is lost while it runs the action breaks the barrier in any case: nobody knows how far it got
(docs/decisions/0033).  A barrier that nobody waits for, and nobody is expected at, is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

from tauraft.errors import Mismatch
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import BarrierInfo, Owner
from tauraft_plugins.barriers.waiting import broken, owner_of, waiters_of
from tauraft_primitives.barriers.messages import (
    CYCLICS,
    Abort,
    Acted,
    Arrive,
    Arrived,
    AskCyclic,
    CyclicRow,
    GiveUp,
    Reset,
)
from tauraft_primitives.locks.messages import WouldWait


@dataclass(frozen=True, slots=True)
class Arrival:
    """``index``: its order of arrival, once its round is complete."""

    ticket: Ticket[Arrived]
    owner: Owner
    attempt: int
    has_action: bool
    index: int = 0


@dataclass(frozen=True, slots=True)
class Expected:
    """Who took part in the last round, and how often: so many of it are missed when it is lost."""

    count: int
    owner: Owner


class CyclicBarriers(FSM, name=CYCLICS, version=1):
    teardown: ClassVar[int] = 40
    sql_views: ClassVar[Mapping[str, str]] = {
        "cyclic_barriers": "SELECT key AS name, parties, arrived, generation, is_broken "
        "FROM tauraft_cyclic_barriers_barriers"
    }
    barriers: Table[str, CyclicRow]
    arrivals: Table[tuple[str, int], Arrival]  # (name, revision)
    by_session: Table[tuple[int, str, int], None]  # (session, name, revision)
    members: Table[tuple[str, int], Expected]  # (name, session)
    memberships: Table[tuple[int, str], None]  # (session, name), the same

    # ---- waiting ----

    @applies(Arrive)
    def arrive(self, command: Arrive, context: Context) -> Ticket[Arrived]:
        name = command.name
        row = self._row(name, command)
        if row.is_broken:
            raise broken(name, row.broken_by)
        if command.patience == 0 and (row.actor or row.arrived + 1 < row.parties):
            raise WouldWait("would-wait", "not all are there; this one has not arrived")
        ticket = context.wait(Arrive)
        owner = owner_of(command.who, ticket)
        self.arrivals[name, ticket.revision] = Arrival(ticket, owner, command.attempt, command.has_action)
        self.by_session[ticket.session, name, ticket.revision] = None
        self.barriers[name] = replace(row, arrived=row.arrived + 1)
        self._advance(name, context)
        return ticket

    @withdraws(Arrive)
    def withdraw(self, command: Arrive, ticket: Ticket[Arrived], context: Context) -> None:
        if context.session is None:
            return  # lost: ``lose_parties`` knows what that means
        for revision in self._of_session(ticket.session, command.name):
            arrival = self.arrivals[command.name, revision]
            if arrival.ticket.sequence == ticket.sequence:  # it waits, or was told to act and never learned it
                self._give_up(command.name, revision, context)
                return

    @applies(Acted)
    def acted(self, command: Acted, context: Context) -> None:
        row = self.barriers.get(command.name)
        if row is None or not row.actor or row.act != command.act:
            raise broken(command.name, None if row is None else row.broken_by)
        self._trip(command.name, row.round_size, context)
        self._advance(command.name, context)

    @applies(GiveUp)
    def give_up(self, command: GiveUp, context: Context) -> None:
        if context.session is None:
            return
        for revision in self._of_session(context.session, command.name):
            if self.arrivals[command.name, revision].attempt == command.attempt:
                self._give_up(command.name, revision, context)
                return

    # ---- breaking and mending ----

    @applies(Abort)
    def abort(self, command: Abort, context: Context) -> None:
        row = self.barriers.get(command.name) or CyclicRow(command.parties, command.parties, command.on_loss)
        self.barriers[command.name] = row
        if context.session is not None and (command.name, context.session) not in self.members:
            owner = Owner(context.session, "", "", 0)
            self._expect(command.name, Expected(0, owner))  # so that it is not there for ever
        self._break(command.name, None, context)

    @applies(Reset)
    def reset(self, command: Reset, context: Context) -> None:
        name = command.name
        if name not in self.barriers:
            return
        self._break(name, None, context)
        self._forget_members(name)
        del self.barriers[name]

    @session_ended
    def lose_parties(self, session: int, context: Context) -> None:
        lost: dict[str, list[int]] = {}
        for (_, name, revision), _ in self.by_session.range((session, "", 0), (session + 1, "", 0)):
            lost.setdefault(name, []).append(revision)
        for (_, name), _ in self.memberships.range((session, ""), (session + 1, "")):
            lost.setdefault(name, [])
        for name in sorted(lost):
            self._lose(name, session, lost[name], context)

    def _lose(self, name: str, session: int, revisions: list[int], context: Context) -> None:
        expected = self.members.pop((name, session), None)
        self.memberships.pop((session, name), None)
        row = self.barriers[name]
        owner = expected.owner if expected is not None else self.arrivals[name, revisions[0]].owner
        acted = row.actor in revisions
        in_round = sum(1 for revision in revisions if row.actor and self._is_in_round(name, revision, row))
        for revision in revisions:
            self._drop(name, revision)
        row = replace(self.barriers[name], round_size=row.round_size - in_round)
        count = max(0 if expected is None else expected.count, len(revisions))
        if row.on_loss == "shrink":
            row = replace(row, parties=max(1, row.parties - count))
        self.barriers[name] = row
        if not row.is_broken and (acted or (row.on_loss == "break" and count)):
            self._break(name, owner, context)
        self._advance(name, context)
        self._forget_if_idle(name)

    # ---- looking ----

    @answers(AskCyclic)
    def info(self, query: AskCyclic) -> BarrierInfo | None:
        row = self.barriers.get(query.name)
        if row is None:
            return None
        return BarrierInfo(query.name, row.parties, row.arrived, row.generation, row.is_broken)

    # ---- the story of a round ----

    def _advance(self, name: str, context: Context) -> None:
        while (row := self.barriers[name]).arrived >= row.parties and not row.actor and not row.is_broken:
            complete = list(islice(waiters_of(self.arrivals, name), row.parties))
            actor = next((place for place in reversed(range(len(complete))) if complete[place][1].has_action), None)
            if actor is None:
                self._trip(name, row.parties, context)
                continue
            for index, (key, arrival) in enumerate(complete):
                self.arrivals[key] = replace(arrival, index=index)  # some may be lost before they go on
            (_, revision), arrival = complete[actor]
            act = context.new_revision()
            self.barriers[name] = replace(row, actor=revision, act=act, round_size=row.parties)
            context.answer(arrival.ticket, Arrived(actor, act))

    def _trip(self, name: str, size: int, context: Context) -> None:
        """The first ``size`` go on, by one commit; they are who is expected next."""
        row = self.barriers[name]
        expected: dict[int, Expected] = {}
        for place, (key, arrival) in enumerate(list(islice(waiters_of(self.arrivals, name), size))):
            session = arrival.ticket.session
            del self.arrivals[key]
            del self.by_session[session, name, key[1]]
            known = expected.get(session)
            expected[session] = Expected(1 if known is None else known.count + 1, arrival.owner)
            if key[1] != row.actor:
                context.answer(arrival.ticket, Arrived(arrival.index if row.actor else place))
        self._expect_only(name, expected)
        self.barriers[name] = replace(
            row, generation=row.generation + 1, arrived=row.arrived - size, actor=0, act=0, round_size=0
        )

    def _give_up(self, name: str, revision: int, context: Context) -> None:
        self._break(name, self.arrivals[name, revision].owner, context, but=revision)

    def _break(self, name: str, who: Owner | None, context: Context, *, but: int = 0) -> None:
        """``but``: whose wait is withdrawn, and needs no answer."""
        row = self.barriers[name]
        told = list(waiters_of(self.arrivals, name))
        waited: dict[int, int] = {}
        for key, arrival in told:
            session = arrival.ticket.session
            waited[session] = waited.get(session, 0) + 1
            del self.arrivals[key]
            del self.by_session[session, name, key[1]]
            # They hear of it again if they wait again; when all of them are gone it is forgotten.
            known = self.members.get((name, session))
            if known is None or known.count < waited[session]:
                self._expect(name, Expected(waited[session], arrival.owner))
            if key[1] not in (row.actor, but):  # the actor is told when it has acted
                context.answer(arrival.ticket, broken(name, who))
        self.barriers[name] = replace(
            row, is_broken=True, broken_by=who, arrived=row.arrived - len(told), actor=0, act=0, round_size=0
        )

    # ---- small ones ----

    def _row(self, name: str, command: Arrive) -> CyclicRow:
        row = self.barriers.get(name) or CyclicRow(command.parties, command.parties, command.on_loss)
        if (row.made_with, row.on_loss) != (command.parties, command.on_loss):
            raise Mismatch(
                f"the cyclic barrier {name!r} has {row.made_with} parties and on_loss={row.on_loss!r}, not "
                f"{command.parties} and {command.on_loss!r}; this one has not arrived"
            )
        return row

    def _is_in_round(self, name: str, revision: int, row: CyclicRow) -> bool:
        return self.arrivals.count((name, 0), (name, revision)) < row.round_size

    def _drop(self, name: str, revision: int) -> None:
        arrival = self.arrivals.pop((name, revision))
        del self.by_session[arrival.ticket.session, name, revision]
        row = self.barriers[name]
        self.barriers[name] = replace(row, arrived=row.arrived - 1)

    def _expect_only(self, name: str, expected: dict[int, Expected]) -> None:
        """Writes what changes: round after round it is mostly the same."""
        for (_, session), known in self._members_of(name):
            if expected.get(session) == known:
                del expected[session]
            elif session not in expected:
                del self.members[name, session]
                del self.memberships[session, name]
        for left in expected.values():
            self._expect(name, left)

    def _expect(self, name: str, expected: Expected) -> None:
        self.members[name, expected.owner.session] = expected
        self.memberships[expected.owner.session, name] = None

    def _members_of(self, name: str) -> list[tuple[tuple[str, int], Expected]]:
        return list(self.members.range((name, 0), (name + "\0", 0)))

    def _forget_members(self, name: str) -> None:
        for (_, session), _ in self._members_of(name):
            del self.members[name, session]
            del self.memberships[session, name]

    def _forget_if_idle(self, name: str) -> None:
        if not self.barriers[name].arrived and not self.members.count((name, 0), (name + "\0", 0)):
            del self.barriers[name]

    def _of_session(self, session: int, name: str) -> list[int]:
        return [key[2] for key, _ in self.by_session.range((session, name, 0), (session, name + "\0", 0))]
