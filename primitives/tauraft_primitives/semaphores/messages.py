"""What the semaphore handle sends. ``party`` and ``attempt`` as in ``tauraft_primitives.locks.messages``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.errors import InvalidArgument
from tauraft.fsm import Command, Query
from tauraft.types import SemaphoreInfo
from tauraft_primitives.locks.messages import Grant, Standing, check_name

SEMAPHORES: Final = "tauraft.semaphores"
MAX_PERMITS: Final = 1_000_000


def check_permits(permits: int, option: str = "permits", most: int = MAX_PERMITS) -> int:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if type(permits) is not int:
        raise TypeError(f"{option} must be int, not {type(permits).__name__}")
    if not 1 <= permits <= most:
        raise InvalidArgument(f"{option} is {permits}: 1 to {most} are allowed; nothing was sent", option=option)
    return permits


@dataclass(frozen=True, slots=True)
class AcquirePermits(Command[Grant], fsm=SEMAPHORES):
    """Waits for its turn. ``permits``: what the caller believes the semaphore has in all; ``Mismatch`` if it has not."""

    name: str
    permits: int
    count: int = 1
    peer_id: str = ""
    host: str = ""
    pid: int = 0
    label: str | None = None
    patience: float | None = None
    attempt: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        check_permits(self.permits)
        check_permits(self.count, "count")


@dataclass(frozen=True, slots=True)
class ReleasePermits(Command[None], fsm=SEMAPHORES):
    """Refuses with ``NotHolder`` unless ``token`` holds permits of it."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class GiveBackPermits(Command[None], fsm=SEMAPHORES):
    """Frees what that attempt of the session was granted, if anything."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Resize(Command[None], fsm=SEMAPHORES):
    """From now on there are ``permits``. Takes none from its holder: with fewer, new ones are given when enough came back."""

    name: str
    permits: int

    def __post_init__(self) -> None:
        check_name(self.name)
        check_permits(self.permits)


@dataclass(frozen=True, slots=True)
class PermitsInfo(Query[SemaphoreInfo | None], fsm=SEMAPHORES):
    """None: nobody has used it yet."""

    name: str


@dataclass(frozen=True, slots=True)
class HoldsPermits(Query[bool], fsm=SEMAPHORES):
    name: str
    token: int


@dataclass(frozen=True, slots=True)
class PermitsStanding(Query[Standing | None], fsm=SEMAPHORES):
    """Of an acquire that waits; ``holder``: who has held permits the longest."""

    name: str
    session: int
    attempt: int
