"""What the lock handle sends. Names: UTF-8, 1 to 512 bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.errors import InvalidArgument, TooLarge
from tauraft.fsm import Command, Query
from tauraft.types import LockInfo

LOCKS: Final = "tauraft.locks"
MAX_NAME_BYTES: Final = 512
MAX_REASON_BYTES: Final = 4_096
MIN_TTL_S: Final = 0.5


def check_name(name: str) -> None:
    """Raises ``TypeError``, ``InvalidArgument``, ``TooLarge``."""
    if type(name) is not str:
        raise TypeError(f"a lock's name is a str, not {type(name).__name__}")
    if not name:
        raise InvalidArgument("a lock's name cannot be empty; nothing was sent", option="name")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise TooLarge(f"a name of {len(name.encode())} bytes: the limit is {MAX_NAME_BYTES}", option="name")


def _check_seconds(option: str, seconds: float, least: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{option} is seconds, not {type(seconds).__name__}")
    if not least <= seconds <= 1e9:
        raise InvalidArgument(f"{option}={seconds}: at least {least} and at most 1e9 seconds", option=option)


@dataclass(frozen=True, slots=True)
class Grant:
    """``token`` fences; it is greater than that of every hold before."""

    token: int


@dataclass(frozen=True, slots=True)
class Acquire(Command[Grant], fsm=LOCKS):
    """Waits for its turn. ``ttl`` None: the hold lives with the session."""

    name: str
    ttl: float | None = None
    lock_delay: float = 0.0
    priority: int = 0
    reason: str | None = None
    peer_id: str = ""
    host: str = ""
    pid: int = 0
    label: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.ttl is not None:
            _check_seconds("ttl", self.ttl, MIN_TTL_S)
        _check_seconds("lock_delay", self.lock_delay, 0)
        if type(self.priority) is not int:
            raise TypeError(f"priority is an int, not {type(self.priority).__name__}")
        if self.reason is not None and len(self.reason.encode()) > MAX_REASON_BYTES:
            raise TooLarge(f"a reason longer than {MAX_REASON_BYTES} bytes; nothing was sent", option="reason")


@dataclass(frozen=True, slots=True)
class Release(Command[None], fsm=LOCKS):
    """Refuses with ``NotHolder`` unless ``token`` holds the lock."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class Renew(Command[None], fsm=LOCKS):
    """Gives a ttl hold its whole ttl again. Refuses with ``NotHolder`` when it is lost."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class Break(Command[bool], fsm=LOCKS):
    """An operator takes the lock from whoever holds it. False: nobody did."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class CheckHold(Command[None], fsm=LOCKS):
    """Refuses (``NotHolder``) the whole transaction it is part of unless that hold still holds."""

    token: int


@dataclass(frozen=True, slots=True)
class HoldEnds(Command[None], fsm=LOCKS):
    """Sent by a timer: the ttl of that hold is over."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class DelayEnds(Command[None], fsm=LOCKS):
    """Sent by a timer: the lock has cooled down after a lost hold."""

    name: str


@dataclass(frozen=True, slots=True)
class Info(Query[LockInfo], fsm=LOCKS):
    name: str


@dataclass(frozen=True, slots=True)
class Holds(Query[bool], fsm=LOCKS):
    """Whether ``token`` holds the lock."""

    name: str
    token: int
