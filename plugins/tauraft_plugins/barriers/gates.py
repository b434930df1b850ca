"""The gate state machine: open or closed; closed where it is not named.

Opening wakes everyone who waits, in one commit. A gate belongs to nobody: it stays as it is when who opened it goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, withdraws
from tauraft.types import GateInfo
from tauraft_plugins.barriers.waiting import Waiter, owner_of, waiters_of
from tauraft_primitives.barriers.messages import GATES, AskGate, CloseGate, OpenGate, PassGate
from tauraft_primitives.locks.messages import WouldWait


class Gates(FSM, name=GATES, version=1):
    teardown: ClassVar[int] = 40
    sql_views: ClassVar[Mapping[str, str]] = {"gates": "SELECT key AS name, value AS opened FROM tauraft_gates_open"}
    open: Table[str, int]  # the revision at which it was opened
    waiters: Table[tuple[str, int], Waiter]  # (name, revision)

    @applies(OpenGate)
    def open_(self, command: OpenGate, context: Context) -> None:
        if command.name in self.open:
            return
        self.open[command.name] = context.revision
        for key, waiter in list(waiters_of(self.waiters, command.name)):
            del self.waiters[key]
            context.answer(waiter.ticket, None)

    @applies(CloseGate)
    def close(self, command: CloseGate, context: Context) -> None:
        self.open.pop(command.name, None)

    @applies(PassGate)
    def pass_(self, command: PassGate, context: Context) -> Ticket[None] | None:
        if command.name in self.open:
            return None
        if command.patience == 0:
            raise WouldWait("would-wait", "the gate is closed; nobody waits")
        ticket = context.wait(PassGate)
        self.waiters[command.name, ticket.revision] = Waiter(ticket, owner_of(command.who, ticket))
        return ticket

    @withdraws(PassGate)
    def withdraw(self, command: PassGate, ticket: Ticket[None], context: Context) -> None:
        self.waiters.pop((command.name, ticket.revision), None)

    @answers(AskGate)
    def info(self, query: AskGate) -> GateInfo:
        waiters = tuple(waiter.owner for _, waiter in waiters_of(self.waiters, query.name))
        return GateInfo(query.name, query.name in self.open, waiters)
