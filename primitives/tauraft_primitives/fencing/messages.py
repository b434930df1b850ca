"""A question asked inside other commands: does this hold still hold?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.errors import InvalidArgument
from tauraft.fsm import Command

FENCING: Final = "tauraft.fencing"


def check_token(token: int) -> int:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if type(token) is not int:
        raise TypeError(f"token must be int, not {type(token).__name__}")
    if not 0 < token < 1 << 63:
        raise InvalidArgument(f"{token} is no token: they are above 0; nothing was sent", option="token")
    return token


@dataclass(frozen=True, slots=True)
class CheckHold(Command[None], fsm=FENCING):
    """Refuses (``NotHolder``) the whole transaction it is part of unless that hold still holds."""

    token: int

    def __post_init__(self) -> None:
        check_token(self.token)
