"""The state machine of ``once``: what was done is done for the life of the cluster.

Nobody has begun it, or somebody runs it under a token, or it is done and its result is kept.  Others who want it done wait, in
order; they are all told the result by the commit that ends it.  A runner that gives up, is lost, or never learned that it
was its turn makes way for the next of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from tauraft.errors import NotHolder
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import OnceInfo, Owner, instant
from tauraft_primitives.locks.messages import WouldWait
from tauraft_primitives.once.messages import (
    ONCE,
    AskOnce,
    Begin,
    Begun,
    Finish,
    ForgetOnce,
    GiveBackTurn,
    GiveUpTurn,
    HasTurn,
)


@dataclass(frozen=True, slots=True)
class Waiter:
    ticket: Ticket[Begun]
    owner: Owner
    attempt: int


@dataclass(frozen=True, slots=True)
class Run:
    """Instants are of the wall clock."""

    state: Literal["running", "done"]
    token: int
    owner: Owner
    sequence: int
    attempt: int
    since_ns: int
    finished_ns: int = 0
    result: bytes = b""


class Once(FSM, name=ONCE, version=1):
    teardown: ClassVar[int] = 20  # a turn is a claim
    sql_views: ClassVar[Mapping[str, str]] = {"once": "SELECT key AS name, state, token, result FROM tauraft_once_runs"}
    runs: Table[str, Run]
    waiters: Table[tuple[str, int], Waiter]  # (name, revision)
    tokens: Table[int, str]  # of those that run
    by_session: Table[tuple[int, str], int]  # (session, name) -> token, of those that run

    @applies(Begin)
    def begin(self, command: Begin, context: Context) -> Begun | Ticket[Begun]:
        ticket = context.wait(Begin)
        run = self.runs.get(command.name)
        if run is not None and run.state == "done":
            return Begun(0, run.result)
        waiter = Waiter(ticket, replace(command.who, session=ticket.session), command.attempt)
        if run is None:
            return self._grant(command.name, waiter, context)
        if command.patience == 0:
            raise WouldWait("would-wait", "somebody runs it; nobody waits")
        self.waiters[command.name, ticket.revision] = waiter
        return ticket

    @withdraws(Begin)
    def withdraw(self, command: Begin, ticket: Ticket[Begun], context: Context) -> None:
        waiting = self.waiters.get((command.name, ticket.revision))
        if waiting is not None and waiting.ticket == ticket:
            del self.waiters[command.name, ticket.revision]
            return
        run = self.runs.get(command.name)
        caller = ticket.session, ticket.sequence
        if run is not None and run.state == "running" and (run.owner.session, run.sequence) == caller:
            self._make_way(command.name, run, context)

    @applies(Finish)
    def finish(self, command: Finish, context: Context) -> None:
        run = self._running(command.name, command.token)
        self._end_turn(command.name, run)
        done = replace(run, state="done", finished_ns=context.wall_ns, result=command.result)
        self.runs[command.name] = done
        for key, waiter in list(self.waiters.range((command.name, 0), (command.name + "\0", 0))):
            del self.waiters[key]
            context.answer(waiter.ticket, Begun(0, command.result))

    @applies(GiveUpTurn)
    def give_up(self, command: GiveUpTurn, context: Context) -> None:
        self._make_way(command.name, self._running(command.name, command.token), context)

    @applies(GiveBackTurn)
    def give_back(self, command: GiveBackTurn, context: Context) -> None:
        run = self.runs.get(command.name)
        caller = context.session, command.attempt
        if run is not None and run.state == "running" and (run.owner.session, run.attempt) == caller:
            self._make_way(command.name, run, context)

    @applies(ForgetOnce)
    def forget(self, command: ForgetOnce, context: Context) -> bool:
        run = self.runs.get(command.name)
        if run is None or run.state != "done":
            return False
        del self.runs[command.name]
        return True

    @session_ended
    def make_way(self, session: int, context: Context) -> None:
        for (_, name), _ in list(self.by_session.range((session, ""), (session + 1, ""))):
            self._make_way(name, self.runs[name], context)

    # ---- looking ----

    def is_held(self, token: int) -> bool:
        """For ``tauraft.fencing``: whether it is still the turn of that token."""
        return token in self.tokens

    @answers(HasTurn)
    def has_turn(self, query: HasTurn) -> bool:
        return self.tokens.get(query.token) == query.name

    @answers(AskOnce)
    def info(self, query: AskOnce) -> OnceInfo:
        run = self.runs.get(query.name)
        waiters = tuple(waiter.owner for _, waiter in self.waiters.range((query.name, 0), (query.name + "\0", 0)))
        if run is None:
            return OnceInfo(query.name, "idle", None, None, None, None, None, waiters)
        since = instant(run.since_ns)
        if run.state == "running":
            return OnceInfo(query.name, "running", run.owner, run.token, since, None, None, waiters)
        return OnceInfo(query.name, "done", run.owner, run.token, since, instant(run.finished_ns), run.result, waiters)

    # ---- the story of a turn ----

    def _grant(self, name: str, waiter: Waiter, context: Context) -> Begun:
        token = context.new_revision()
        self.runs[name] = Run("running", token, waiter.owner, waiter.ticket.sequence, waiter.attempt, context.wall_ns)
        self.tokens[token] = name
        self.by_session[waiter.owner.session, name] = token
        return Begun(token)

    def _make_way(self, name: str, run: Run, context: Context) -> None:
        self._end_turn(name, run)
        first = next(self.waiters.range((name, 0), (name + "\0", 0)), None)
        if first is None:
            del self.runs[name]
            return
        key, waiter = first
        del self.waiters[key]
        context.answer(waiter.ticket, self._grant(name, waiter, context))

    def _end_turn(self, name: str, run: Run) -> None:
        del self.tokens[run.token]
        del self.by_session[run.owner.session, name]

    def _running(self, name: str, token: int) -> Run:
        run = self.runs.get(name)
        if run is None or run.state != "running" or run.token != token:
            raise NotHolder(f"token {token} does not run {name!r} (any more); nothing changed")
        return run
