"""What is decided, by every replica alike, in the order of the log: by version 1 until every voter has this package, then by version 2.

Version 1 stays as it was: what it did with a command is what the log means.
"""

from __future__ import annotations

from typing import Final

from acme_counter.messages import FSM_NAME, Add, Additions, Get
from tauraft import hookimpl
from tauraft.errors import Refused
from tauraft.fsm import FSM, Context, Table, answers, applies

MOST: Final = 2**53


class AcmeCounterFSM(FSM, name=FSM_NAME, version=1):
    """Snapshots, undo, SQL, history and watches come with the tables."""

    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        total = self.counts.get(command.name, 0) + command.amount
        if abs(total) > MOST:
            # An answer: nothing has changed. Any other exception is a bug, undone on every replica.
            raise Refused("too-large", f"{command.name} would be {total}; nothing changed")
        self.counts[command.name] = total
        return total

    @answers(Get)
    def get(self, query: Get) -> int:
        return self.counts.get(query.name, 0)


class AcmeCounterFSM2(FSM, name=FSM_NAME, version=2):
    """Also counts how often something was added."""

    counts: Table[str, int]
    additions: Table[str, int]

    def upgrade(self, from_version: int, context: Context) -> None:
        """Runs once, in the entry that activates this version; ``counts`` has its rows already."""
        for name, _ in self.counts.items():
            self.additions[name] = 1  # at least once, or it would not be there

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        total = self.counts.get(command.name, 0) + command.amount
        if abs(total) > MOST:
            raise Refused("too-large", f"{command.name} would be {total}; nothing changed")
        self.counts[command.name] = total
        self.additions[command.name] = self.additions.get(command.name, 0) + 1
        return total

    @answers(Get)
    def get(self, query: Get) -> int:
        return self.counts.get(query.name, 0)

    @answers(Additions)
    def count_additions(self, query: Additions) -> int:
        return self.additions.get(query.name, 0)


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [AcmeCounterFSM, AcmeCounterFSM2]
