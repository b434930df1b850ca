"""What the handle of a lock for readers and writers sends. ``party`` and ``attempt`` as in ``tauraft_primitives.locks.messages``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tauraft.errors import InvalidArgument
from tauraft.fsm import Command, Query
from tauraft.types import RwLockInfo
from tauraft_primitives.locks.messages import Grant, Standing, check_name

RWLOCKS: Final = "tauraft.rwlocks"


@dataclass(frozen=True, slots=True)
class AcquireRw(Command[Grant], fsm=RWLOCKS):
    """Waits for its turn: ``read`` together with other readers, ``write`` alone."""

    name: str
    mode: Literal["read", "write"]
    peer_id: str = ""
    host: str = ""
    pid: int = 0
    label: str | None = None
    patience: float | None = None
    party: int = 0
    attempt: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.mode not in ("read", "write"):
            raise InvalidArgument(f"mode is {self.mode!r}; it is read or write; nothing was sent", option="mode")


@dataclass(frozen=True, slots=True)
class ReleaseRw(Command[None], fsm=RWLOCKS):
    """Refuses with ``NotHolder`` unless ``token`` holds it."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class GiveBackRw(Command[None], fsm=RWLOCKS):
    """Frees what that attempt of the session was granted, if anything."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Downgrade(Command[None], fsm=RWLOCKS):
    """From writer to reader with nobody in between; the token stays. Of a reader: nothing changes."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class RwInfo(Query[RwLockInfo], fsm=RWLOCKS):
    name: str


@dataclass(frozen=True, slots=True)
class HoldsRw(Query[bool], fsm=RWLOCKS):
    name: str
    token: int


@dataclass(frozen=True, slots=True)
class RwStanding(Query[Standing | None], fsm=RWLOCKS):
    """Of an acquire that waits; ``holder``: who has held it the longest."""

    name: str
    session: int
    attempt: int
