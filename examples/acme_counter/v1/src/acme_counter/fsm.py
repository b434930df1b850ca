"""What is decided, by every replica alike, in the order of the log."""

from __future__ import annotations

from typing import Final

from acme_counter.messages import FSM_NAME, Add, Get
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


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [AcmeCounterFSM]
