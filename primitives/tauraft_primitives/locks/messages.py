"""What the lock handles send. Names: UTF-8, 1 to 512 bytes.

``party`` and ``attempt`` are the handle's own numbers.  A *party* is a task or thread of the session: who waits for whom is
asked between parties, since two threads of one process may well hold and wait without being in each other's way.
An *attempt* names one acquire of the session, so that one which was interrupted can be given back before its token is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tauraft.errors import InvalidArgument, Refused, TooLarge
from tauraft.fsm import Command, Query, TableName, Ticket
from tauraft.types import LockInfo, Owner
from tauraft_primitives.checks import utf8_size

LOCKS: Final = "tauraft.locks"
MAX_NAME_BYTES: Final = 512
MAX_NAMES: Final = 256  # of one lock_all
MAX_REASON_BYTES: Final = 4_096
MAX_PRIORITY: Final = 1 << 31
MIN_TTL_S: Final = 0.5


class WouldWait(Refused):
    """An acquire whose ``patience`` is 0 was not granted at once. Handles say ``WaitTimeout``."""


def check_name(name: str) -> None:
    """Raises ``TypeError``, ``InvalidArgument``, ``TooLarge``."""
    if type(name) is not str:
        raise TypeError(f"a lock's name is a str, not {type(name).__name__}")
    if not name:
        raise InvalidArgument("a lock's name cannot be empty; nothing was sent", option="name")
    size = utf8_size(name, "name")
    if size > MAX_NAME_BYTES:
        raise TooLarge(f"a name of {size} bytes: the limit is {MAX_NAME_BYTES}; nothing was sent", option="name")


def check_reason(reason: str) -> None:
    """Raises ``TypeError``, ``TooLarge``."""
    if type(reason) is not str:
        raise TypeError(f"reason must be str, not {type(reason).__name__}")
    if utf8_size(reason, "reason") > MAX_REASON_BYTES:
        raise TooLarge(f"a reason longer than {MAX_REASON_BYTES} bytes; nothing was sent", option="reason")


def check_seconds(option: str, seconds: float, least: float) -> float:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{option} is seconds, not {type(seconds).__name__}")
    if not least <= seconds <= 1e9:
        raise InvalidArgument(
            f"{option}={seconds}: at least {least} and at most 1e9 seconds; nothing was sent", option=option
        )
    return float(seconds)


def check_priority(priority: int) -> None:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if type(priority) is not int:
        raise TypeError(f"priority must be int, not {type(priority).__name__}")
    if abs(priority) > MAX_PRIORITY:
        raise InvalidArgument(
            f"priority={priority}: between -2^31 and 2^31 is allowed; nothing was sent", option="priority"
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """``tokens``: one for each name asked for, in their order. ``waited``: it was not granted at once."""

    tokens: tuple[int, ...]
    waited: bool = False

    @property
    def token(self) -> int:
        """It fences: it is greater than that of every hold before."""
        return self.tokens[0]


@dataclass(frozen=True, slots=True)
class Acquire(Command[Grant], fsm=LOCKS):
    """Waits for its turn. ``ttl`` None: the hold lives with the session. ``renews``: its holder renews it.

    ``patience``: seconds the caller will wait, None for ever; with 0 it is refused (``WouldWait``) instead of waiting.
    """

    name: str
    ttl: float | None = None
    lock_delay: float = 0.0
    priority: int = 0
    reason: str | None = None
    peer_id: str = ""
    host: str = ""
    pid: int = 0
    label: str | None = None
    renews: bool = False
    patience: float | None = None
    party: int = 0
    attempt: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.ttl is not None:
            check_seconds("ttl", self.ttl, MIN_TTL_S)
        check_seconds("lock_delay", self.lock_delay, 0)
        check_priority(self.priority)
        if self.reason is not None:
            check_reason(self.reason)


@dataclass(frozen=True, slots=True)
class AcquireAll(Command[Grant], fsm=LOCKS):
    """Waits until all the names can be had together; until then it has none of them. See ``Acquire``."""

    names: tuple[str, ...]
    ttl: float | None = None
    peer_id: str = ""
    host: str = ""
    pid: int = 0
    label: str | None = None
    renews: bool = False
    patience: float | None = None
    party: int = 0
    attempt: int = 0

    def __post_init__(self) -> None:
        if type(self.names) is not tuple:
            raise TypeError(f"names must be a tuple of str, not {type(self.names).__name__}")
        for name in self.names:
            check_name(name)
        if not self.names or len(set(self.names)) < len(self.names):
            raise InvalidArgument("names: at least one, and each only once; nothing was sent", option="names")
        if len(self.names) > MAX_NAMES:
            raise TooLarge(f"{len(self.names)} names: the limit is {MAX_NAMES}; nothing was sent", option="names")
        if self.ttl is not None:
            check_seconds("ttl", self.ttl, MIN_TTL_S)


@dataclass(frozen=True, slots=True)
class Release(Command[None], fsm=LOCKS):
    """Refuses with ``NotHolder`` unless ``token`` holds the lock."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class GiveBack(Command[None], fsm=LOCKS):
    """Frees what that attempt of the session was granted, if anything: its caller was interrupted before it had the token."""

    names: tuple[str, ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class Renew(Command[None], fsm=LOCKS):
    """Gives a ttl hold its whole ttl again. Refuses with ``NotHolder`` when it is lost."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class Break(Command[bool], fsm=LOCKS):
    """An operator takes the lock from whoever holds it; it stays on record who did, and why. False: nobody held it."""

    name: str
    reason: str
    peer_id: str = ""
    host: str = ""
    pid: int = 0
    label: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_reason(self.reason)
        if not self.reason:
            raise InvalidArgument("a reason is needed to break a lock; nothing was sent", option="reason")


@dataclass(frozen=True, slots=True)
class AwaitEnd(Command[None], fsm=LOCKS):
    """Waits until that hold has ended, in whatever way: the one wait by which a holder learns at once of a ``Break``."""

    name: str
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
class ListLocks(Query[tuple[LockInfo, ...]], fsm=LOCKS):
    """Locks that are held, after the name ``after``, in the order of their names."""

    after: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Holds(Query[bool], fsm=LOCKS):
    """Whether ``token`` holds the lock."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a wait stands. ``ahead``: how many are served before it."""

    holder: Owner | None
    reason: str | None
    since: datetime | None
    ahead: int


@dataclass(frozen=True, slots=True)
class AskStanding(Query[Standing | None], fsm=LOCKS):
    """Of an acquire that waits; None: it does not (any more)."""

    name: str
    session: int
    attempt: int


@dataclass(frozen=True, slots=True)
class WaitExplained:
    """``names``: more than one where all of them are wanted together."""

    owner: Owner
    since: datetime
    priority: int
    reason: str | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LockExplained:
    """``ends``: what will end the hold, or the present state, in words. Instants are of the cluster's wall clock."""

    info: LockInfo
    ttl: float | None
    renewed: datetime | None
    expires: datetime | None
    lock_delay: float
    cooling: bool
    ends: str
    waits: tuple[WaitExplained, ...]


@dataclass(frozen=True, slots=True)
class ExplainLock(Query[LockExplained], fsm=LOCKS):
    name: str


# ---- the rows of the locks that are held, for those who watch them ----


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants, and then holds. ``is_bounded``: the caller gives up by itself after a while."""

    ticket: Ticket[Grant]
    owner: Owner
    names: tuple[str, ...]
    party: int
    attempt: int
    priority: int
    asked_ns: int
    is_bounded: bool
    ttl_ns: int | None
    renews: bool
    delay_ns: int
    reason: str | None

    @property
    def lasts(self) -> bool:
        """Once granted, nothing but its holder ends it."""
        return self.ttl_ns is None or self.renews


@dataclass(frozen=True, slots=True)
class Hold:
    """``expires_ns`` None: lives with the session. Instants ending in ``_ns`` are of the wall clock, but for ``expires_ns``."""

    token: int
    session: int
    since_ns: int
    renewed_ns: int
    expires_ns: int | None
    request: Request


HOLDS: Final = TableName(LOCKS, "holds", str, Hold)
