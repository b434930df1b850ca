"""What the handle of ``once`` sends. Names: UTF-8, 1 to 512 bytes; results: up to 1 MiB.

``attempt`` is the handle's own number of one try, so that a turn whose caller was interrupted can be given back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.fsm import Command, Query
from tauraft.types import OnceInfo, Owner
from tauraft_primitives.checks import check_name, check_value

ONCE: Final = "tauraft.once"
NOBODY: Final = Owner(0, "", "", 0)


@dataclass(frozen=True, slots=True)
class Begun:
    """``token`` is not 0: it is this caller's turn to run it. Else it is done, with ``result``."""

    token: int
    result: bytes = b""


@dataclass(frozen=True, slots=True)
class Begin(Command[Begun], fsm=ONCE):
    """Waits until it is done, or this caller's turn to do it. ``patience`` 0: refused (``WouldWait``) instead of waiting."""

    name: str
    who: Owner = NOBODY
    patience: float | None = None
    attempt: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)


@dataclass(frozen=True, slots=True)
class Finish(Command[None], fsm=ONCE):
    """It is done, for good: everyone who waits is told the result. Refuses with ``NotHolder`` when it is not that token's turn."""

    name: str
    token: int
    result: bytes = b""

    def __post_init__(self) -> None:
        check_value(self.result, "result")


@dataclass(frozen=True, slots=True)
class GiveUpTurn(Command[None], fsm=ONCE):
    """It was not done: the next who waits has its turn. Refuses with ``NotHolder``."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class GiveBackTurn(Command[None], fsm=ONCE):
    """Gives up the turn of that attempt of the session, if it has it: its caller was interrupted."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ForgetOnce(Command[bool], fsm=ONCE):
    """What was done may be done again. False: it was not done."""

    name: str


@dataclass(frozen=True, slots=True)
class HasTurn(Query[bool], fsm=ONCE):
    name: str
    token: int


@dataclass(frozen=True, slots=True)
class AskOnce(Query[OnceInfo], fsm=ONCE):
    name: str
