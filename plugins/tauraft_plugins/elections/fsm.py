"""The election state machine: at most one leader a name, the others in order behind it.

An election has a leader, or candidates that wait for ``min_tenure`` to pass, or neither.  Candidates are ordered by priority
(higher first), then by revision; when the leader goes, the first of them is elected in the same command, so a change of
leader is one commit.  Each term has a token of its own, greater than all before.

A term ends by ``Resign``, by ``Transfer`` to a candidate, with its session, or by the withdrawal of a caller that never learned that it
was elected.  If its ``min_tenure`` has not passed then, the next election waits for it: leadership changes no faster than that,
however fast processes come and go.  A transfer does not wait, since it names who comes next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tauraft.errors import InvalidCommand, NoCandidate, NotHolder
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import ElectionInfo, Leader, Owner, instant
from tauraft_primitives.elections.messages import (
    ELECTIONS,
    MAX_LISTED,
    MAX_LISTED_BYTES,
    AskElection,
    Campaign,
    CampaignStanding,
    ElectionsPage,
    GetLeader,
    GiveBackTerm,
    Leads,
    ListElections,
    Proclaim,
    Resign,
    TenureEnds,
    TermRow,
    Transfer,
)
from tauraft_primitives.locks.messages import Grant, Standing, WouldWait

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Candidate:
    ticket: Ticket[Grant]
    owner: Owner
    value: bytes
    priority: int
    min_tenure_ns: int
    attempt: int


class Elections(FSM, name=ELECTIONS, version=1):
    teardown: ClassVar[int] = 30
    sql_views: ClassVar[Mapping[str, str]] = {
        "elections": "SELECT key AS name, token, session, value FROM tauraft_elections_terms"
    }
    terms: Table[str, TermRow]
    candidates: Table[tuple[str, int, int], Candidate]  # (name, -priority, revision)
    standing_by: Table[tuple[str, int, int, int], None]  # (name, session, -priority, revision): who a transfer finds
    tokens: Table[int, str]  # of the terms there are
    by_session: Table[tuple[int, str], int]  # (session, name) -> token
    cooling: Table[str, int]  # until when, in cluster time

    # ---- standing ----

    @applies(Campaign)
    def campaign(self, command: Campaign, context: Context) -> Grant | Ticket[Grant]:
        ticket = context.wait(Campaign)
        owner = Owner(ticket.session, command.peer_id, command.host, command.pid, command.label)
        tenure_ns = int(command.min_tenure * NANOSECONDS)
        candidate = Candidate(ticket, owner, command.value, command.priority, tenure_ns, command.attempt)
        name = command.name
        if name not in self.terms and name not in self.cooling:
            return self._elect(name, candidate, context)
        if command.patience == 0:
            raise WouldWait("would-wait", "somebody leads, or the last term was too short; nobody stands")
        place = -command.priority, ticket.revision
        self.candidates[name, *place] = candidate
        self.standing_by[name, ticket.session, *place] = None
        return ticket

    @withdraws(Campaign)
    def withdraw(self, command: Campaign, ticket: Ticket[Grant], context: Context) -> None:
        name = command.name
        waiting = self.candidates.get((name, -command.priority, ticket.revision))
        if waiting is not None and waiting.ticket == ticket:
            self._stand_down(name, waiting)
            return
        term = self.terms.get(name)
        if term is not None and (term.session, term.sequence) == (ticket.session, ticket.sequence):
            self._end(name, term, context)

    # ---- leading ----

    @applies(Resign)
    def resign(self, command: Resign, context: Context) -> None:
        self._end(command.name, self._led_by(command.name, command.token), context)

    @applies(GiveBackTerm)
    def give_back(self, command: GiveBackTerm, context: Context) -> None:
        term = self.terms.get(command.name)
        if term is not None and (term.session, term.attempt) == (context.session, command.attempt):
            self._end(command.name, term, context)

    @applies(Transfer)
    def transfer(self, command: Transfer, context: Context) -> None:
        name = command.name
        term = self._led_by(name, command.token)
        found = next(self.standing_by.range((name, command.to, _LOW, 0), (name, command.to + 1, _LOW, 0)), None)
        if found is None:
            raise NoCandidate(f"session {command.to} is no candidate of {name!r}; nothing changed")
        _, _, priority, revision = found[0]
        candidate = self.candidates[name, priority, revision]
        self._stand_down(name, candidate)
        self._forget(name, term)
        context.answer(candidate.ticket, self._elect(name, candidate, context, waited=True))

    @applies(Proclaim)
    def proclaim(self, command: Proclaim, context: Context) -> None:
        self.terms[command.name] = replace(self._led_by(command.name, command.token), value=command.value)

    @applies(TenureEnds)
    def tenure_ends(self, command: TenureEnds, context: Context) -> None:
        if context.session is not None:
            raise InvalidCommand("elections wait for their own timers; nothing changed")
        if self.cooling.pop(command.name, None) is not None:
            self._elect_next(command.name, context)

    @session_ended
    def give_way(self, session: int, context: Context) -> None:
        for (_, name), _ in list(self.by_session.range((session, ""), (session + 1, ""))):
            self._end(name, self.terms[name], context)

    # ---- looking ----

    def is_held(self, token: int) -> bool:
        """For ``tauraft.fencing``: whether the term of that token goes on."""
        return token in self.tokens

    @answers(GetLeader)
    def leader(self, query: GetLeader) -> Leader | None:
        term = self.terms.get(query.name)
        return None if term is None else Leader(term.owner, term.value, term.token, instant(term.since_ns))

    @answers(AskElection)
    def info(self, query: AskElection) -> ElectionInfo:
        return self._info(query.name)

    @answers(ListElections)
    def elections(self, query: ListElections) -> ElectionsPage:
        found: list[ElectionInfo] = []
        size = 0
        for name, term in self.terms.range(query.after + "\0" if query.after else None):
            size += len(term.value)
            if found and (size > MAX_LISTED_BYTES or len(found) >= min(query.limit, MAX_LISTED)):
                return ElectionsPage(tuple(found), found[-1].name)
            found.append(self._info(name))
        return ElectionsPage(tuple(found), None)

    @answers(Leads)
    def leads(self, query: Leads) -> bool:
        return self.tokens.get(query.token) == query.name

    @answers(CampaignStanding)
    def standing(self, query: CampaignStanding) -> Standing | None:
        for ahead, (_, candidate) in enumerate(self.candidates.range(*_of(query.name))):
            if (candidate.ticket.session, candidate.attempt) == (query.session, query.attempt):
                term = self.terms.get(query.name)
                if term is None:
                    return Standing(None, None, None, ahead)
                return Standing(term.owner, None, instant(term.since_ns), ahead)
        return None

    def _info(self, name: str) -> ElectionInfo:
        candidates = tuple(candidate.owner for _, candidate in self.candidates.range(*_of(name)))
        return ElectionInfo(name, self.leader(GetLeader(name)), candidates)

    # ---- the story of a term ----

    def _elect(self, name: str, candidate: Candidate, context: Context, *, waited: bool = False) -> Grant:
        token, session = context.new_revision(), candidate.ticket.session
        self.terms[name] = TermRow(
            token, session, candidate.value, context.wall_ns, context.now_ns, candidate.min_tenure_ns,
            candidate.owner, candidate.ticket.sequence, candidate.attempt,
        )  # fmt: skip
        self.tokens[token] = name
        self.by_session[session, name] = token
        return Grant((token,), waited)

    def _end(self, name: str, term: TermRow, context: Context) -> None:
        self._forget(name, term)
        may_change_ns = term.elected_ns + term.min_tenure_ns
        if may_change_ns > context.now_ns:
            self.cooling[name] = may_change_ns
            context.schedule(f"tenure/{name}", may_change_ns, TenureEnds(name))
        else:
            self._elect_next(name, context)

    def _forget(self, name: str, term: TermRow) -> None:
        del self.terms[name]
        del self.tokens[term.token]
        del self.by_session[term.session, name]

    def _elect_next(self, name: str, context: Context) -> None:
        first = next(self.candidates.range(*_of(name)), None)
        if first is not None:
            candidate = first[1]
            self._stand_down(name, candidate)
            context.answer(candidate.ticket, self._elect(name, candidate, context, waited=True))

    def _stand_down(self, name: str, candidate: Candidate) -> None:
        place = -candidate.priority, candidate.ticket.revision
        del self.candidates[name, *place]
        del self.standing_by[name, candidate.ticket.session, *place]

    def _led_by(self, name: str, token: int) -> TermRow:
        term = self.terms.get(name)
        if term is None or term.token != token:
            raise NotHolder(f"token {token} does not lead {name!r} (any more); nothing changed")
        return term


_LOW = -(1 << 62)  # below every priority


def _of(name: str) -> tuple[Any, Any]:
    return (name, _LOW, 0), (name + "\0", _LOW, 0)
