"""What is sent. Data only: whoever only sends these needs no state machine.

A message's class name is its name on the wire and on disk (``tag=`` keeps it when you rename the class). New fields get defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.fsm import Command, Query, TableName

FSM_NAME: Final = "acme.counter"
COUNTS: Final = TableName(FSM_NAME, "counts", str, int)


@dataclass(frozen=True, slots=True)
class Add(Command[int], fsm=FSM_NAME):
    """Answered with the sum."""

    name: str
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Get(Query[int], fsm=FSM_NAME):
    """0 where nobody has added anything."""

    name: str
