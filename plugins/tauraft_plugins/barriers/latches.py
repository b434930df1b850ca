"""The latch state machine: counts down to zero, once, and is open from then on.

It belongs to nobody: who counted and went has counted.  One that is open stays, as a row of two numbers, until it is
reset; one that nobody has counted and nobody waits for is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from tauraft.errors import Mismatch
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, withdraws
from tauraft.types import LatchInfo
from tauraft_plugins.barriers.waiting import Waiter, broken, owner_of, waiters_of
from tauraft_primitives.barriers.messages import LATCHES, AskLatch, AwaitLatch, CountDown, LatchRow, ResetLatch
from tauraft_primitives.locks.messages import WouldWait


class Latches(FSM, name=LATCHES, version=1):
    teardown: ClassVar[int] = 40
    sql_views: ClassVar[Mapping[str, str]] = {
        "latches": 'SELECT key AS name, "count", "left" FROM tauraft_latches_latches'
    }
    latches: Table[str, LatchRow]
    waiters: Table[tuple[str, int], Waiter]  # (name, revision)

    @applies(CountDown)
    def count_down(self, command: CountDown, context: Context) -> int:
        latch = self._latch(command.name, command.count)
        left = max(0, latch.left - command.n)
        self.latches[command.name] = replace(latch, left=left)
        if left == 0:
            for key, waiter in list(waiters_of(self.waiters, command.name)):
                del self.waiters[key]
                context.answer(waiter.ticket, None)
        return left

    @applies(AwaitLatch)
    def wait(self, command: AwaitLatch, context: Context) -> Ticket[None] | None:
        latch = self._latch(command.name, command.count)
        if latch.left == 0:
            return None
        if command.patience == 0:
            raise WouldWait("would-wait", f"{latch.left} are left to count; nobody waits")
        ticket = context.wait(AwaitLatch)
        self.latches[command.name] = latch
        self.waiters[command.name, ticket.revision] = Waiter(ticket, owner_of(command.who, ticket))
        return ticket

    @withdraws(AwaitLatch)
    def withdraw(self, command: AwaitLatch, ticket: Ticket[None], context: Context) -> None:
        if self.waiters.pop((command.name, ticket.revision), None) is None:
            return
        latch = self.latches[command.name]
        if latch.left == latch.count and next(waiters_of(self.waiters, command.name), None) is None:
            del self.latches[command.name]

    @applies(ResetLatch)
    def reset(self, command: ResetLatch, context: Context) -> bool:
        for key, waiter in list(waiters_of(self.waiters, command.name)):
            del self.waiters[key]
            context.answer(waiter.ticket, broken(command.name, None))
        return self.latches.pop(command.name, None) is not None

    @answers(AskLatch)
    def info(self, query: AskLatch) -> LatchInfo | None:
        latch = self.latches.get(query.name)
        if latch is None:
            return None
        waiters = tuple(waiter.owner for _, waiter in waiters_of(self.waiters, query.name))
        return LatchInfo(query.name, latch.count, latch.left, waiters)

    def _latch(self, name: str, count: int) -> LatchRow:
        latch = self.latches.get(name) or LatchRow(count, count)
        if latch.count != count:
            raise Mismatch(f"the latch {name!r} counts from {latch.count}, not {count}; nothing changed")
        return latch
