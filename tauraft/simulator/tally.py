"""A plugin for the workload: sums that show at once when a command took effect twice, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

from tauraft.fsm import FSM, Command, Context, Table, applies

NAME = "simulator.tally"


@dataclass(frozen=True, slots=True)
class Add(Command[int], fsm=NAME):
    """Answers the sum after it."""

    name: str
    amount: int


class Tally(FSM, name=NAME, version=1):
    sums: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        total = self.sums.get(command.name, 0) + command.amount
        self.sums[command.name] = total
        return total
