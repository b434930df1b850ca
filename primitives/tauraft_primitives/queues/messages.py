"""What the queue handle sends. Names, ids and groups: UTF-8, 1 to 512 bytes; bodies: up to 1 MiB.

A claim is known by its token alone: whoever has it may acknowledge, extend or give up the claim.  What ends a claim is
refused with ``StaleClaim`` once the item is somebody else's, or nobody's.  Limits are checked when a message is made, in
the caller's frame, and once more where it is decoded.

``Due``, ``Expire`` and ``Forget`` are sent by timers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from tauraft.errors import InvalidArgument, TooLarge
from tauraft.fsm import Command, Query, TableName
from tauraft.types import Enqueued, Item, QueueStats

QUEUES: Final = "tauraft.queues"
MAX_NAME_BYTES: Final = 512
MAX_BODY_BYTES: Final = 1 << 20
MAX_HEADERS_BYTES: Final = 16 << 10
MAX_REASON_BYTES: Final = 512
MAX_PRIORITY: Final = (1 << 31) - 1
MAX_SECONDS: Final = 1e9
MAX_CLAIMED_AT_ONCE: Final = 1_000
MAX_GROUPS: Final = 100
# A claimer counts itself out 0.1 s before the cluster does, or 3 % of a long visibility.
MIN_VISIBILITY_S: Final = 0.2


def check_text(value: str, option: str, limit: int = MAX_NAME_BYTES) -> None:
    """Raises ``TypeError``, ``InvalidArgument``, ``TooLarge``."""
    if type(value) is not str:
        raise TypeError(f"{option} is a str, not {type(value).__name__}")
    if not value:
        raise InvalidArgument(f"{option} cannot be empty; nothing was sent", option=option)
    if len(value) > limit // 4:
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"{option} cannot be encoded as UTF-8; nothing was sent", option=option) from error
        if size > limit:
            raise TooLarge(f"{option} has {size} bytes: the limit is {limit}; nothing was sent", option=option)


def check_body(body: bytes) -> None:
    """Raises ``TypeError``, ``TooLarge``."""
    if type(body) is not bytes:
        raise TypeError(f"a body is bytes or str, not {type(body).__name__}")
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge(f"a body of {len(body)} bytes: the limit is {MAX_BODY_BYTES}; nothing was sent", option="body")


def check_seconds(value: float, option: str, least: float) -> None:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{option} is seconds, not {type(value).__name__}")
    if not least <= value <= MAX_SECONDS:
        raise InvalidArgument(
            f"{option}={value}: at least {least:g} and at most {MAX_SECONDS:g} seconds; nothing was sent", option=option
        )


def check_count(value: int, option: str, most: int) -> None:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if type(value) is not int:
        raise TypeError(f"{option} is an int, not {type(value).__name__}")
    if not 1 <= value <= most:
        raise InvalidArgument(f"{option}={value}: at least 1 and at most {most}; nothing was sent", option=option)


@dataclass(frozen=True, slots=True)
class Enqueue(Command[Enqueued], fsm=QUEUES):
    """Puts one item. An ``id`` that is in the queue already puts nothing; None: the queue makes one up."""

    queue: str
    body: bytes
    id: str | None = None
    delay: float = 0.0
    priority: int = 0
    group: str | None = None
    dedupe_for: float | None = None
    ttl: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")
        check_body(self.body)
        if self.id is not None:
            check_text(self.id, "id")
        check_seconds(self.delay, "delay", 0)
        if type(self.priority) is not int:
            raise TypeError(f"priority is an int, not {type(self.priority).__name__}")
        if abs(self.priority) > MAX_PRIORITY:
            raise InvalidArgument(
                f"priority={self.priority}: at most {MAX_PRIORITY} either way; nothing was sent", option="priority"
            )
        if self.group is not None:
            check_text(self.group, "group")
        if self.dedupe_for is not None:
            check_seconds(self.dedupe_for, "dedupe_for", 0)
        if self.ttl is not None:
            check_seconds(self.ttl, "ttl", 1e-3)
        _check_headers(self.headers)


def _check_headers(headers: Mapping[str, str]) -> None:
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers is a mapping of str to str, not {type(headers).__name__}")
    size = 0
    for name, value in headers.items():
        if type(name) is not str or type(value) is not str:
            raise TypeError(f"headers is a mapping of str to str, not of {type(name).__name__}, {type(value).__name__}")
        size += len(name.encode()) + len(value.encode())
    if size > MAX_HEADERS_BYTES:
        raise TooLarge(f"headers of {size} bytes: the limit is {MAX_HEADERS_BYTES}; nothing was sent", option="headers")


@dataclass(frozen=True, slots=True)
class Claimed:
    """An item under ``token``, which fences; ``attempts`` counts this one."""

    token: int
    id: str
    body: bytes
    headers: Mapping[str, str]
    group: str | None
    attempts: int


@dataclass(frozen=True, slots=True)
class TakeItems(Command[tuple[Claimed, ...]], fsm=QUEUES):
    """Claims up to ``count`` items for ``visibility`` seconds. Where there are none it waits, if it is to ``wait``."""

    queue: str
    visibility: float = 30.0
    count: int = 1
    groups: tuple[str, ...] | None = None
    wait: bool = False

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")
        check_seconds(self.visibility, "visibility", MIN_VISIBILITY_S)
        check_count(self.count, "n", MAX_CLAIMED_AT_ONCE)
        if self.groups is not None:
            check_count(len(self.groups), "groups", MAX_GROUPS)
            for group in self.groups:
                check_text(group, "groups")


@dataclass(frozen=True, slots=True)
class Ack(Command[None], fsm=QUEUES):
    """The item is done with. In a transaction: what was made of it and its end are one step."""

    token: int


@dataclass(frozen=True, slots=True)
class Nack(Command[None], fsm=QUEUES):
    """The item returns to its place, after ``delay``."""

    token: int
    delay: float = 0.0
    reason: str | None = None

    def __post_init__(self) -> None:
        check_seconds(self.delay, "delay", 0)
        if self.reason is not None:
            check_text(self.reason, "reason", MAX_REASON_BYTES)


@dataclass(frozen=True, slots=True)
class GiveBack(Command[None], fsm=QUEUES):
    """The claim never reached whoever asked for it: as if it had not been made, its attempt does not count."""

    token: int


@dataclass(frozen=True, slots=True)
class Extend(Command[tuple[int, ...]], fsm=QUEUES):
    """The claims run out ``seconds`` from now. Answers which of them are in force; the others cannot be extended."""

    tokens: tuple[int, ...]
    seconds: float

    def __post_init__(self) -> None:
        check_count(len(self.tokens), "tokens", MAX_CLAIMED_AT_ONCE)
        check_seconds(self.seconds, "seconds", MIN_VISIBILITY_S)


@dataclass(frozen=True, slots=True)
class Bury(Command[None], fsm=QUEUES):
    """The item is dead: it is kept, and not claimed again before ``Redrive``."""

    token: int
    reason: str

    def __post_init__(self) -> None:
        check_text(self.reason, "reason", MAX_REASON_BYTES)


@dataclass(frozen=True, slots=True)
class Pop(Command[Item | None], fsm=QUEUES):
    """Claims and acknowledges in one step. None: there is nothing."""

    queue: str

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")


@dataclass(frozen=True, slots=True)
class Declare(Command[None], fsm=QUEUES):
    """Settings of a queue. The last declaration holds; saying it again changes nothing."""

    queue: str
    max_attempts: int

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")
        check_count(self.max_attempts, "max_attempts", MAX_PRIORITY)


@dataclass(frozen=True, slots=True)
class Pause(Command[None], fsm=QUEUES):
    """While ``paused`` nothing is claimed; puts and what is claimed already go on."""

    queue: str
    paused: bool

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")


@dataclass(frozen=True, slots=True)
class Swept:
    """One step through a queue did ``count`` items. ``after``: go on there, no further than ``up_to``; None: done."""

    count: int
    after: int | None
    up_to: int


@dataclass(frozen=True, slots=True)
class Redrive(Command[Swept], fsm=QUEUES):
    """Puts at most ``limit`` dead items again, in steps, of those put until revision ``up_to`` (None: until now)."""

    queue: str
    limit: int
    after: int = 0
    up_to: int | None = None

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")
        check_count(self.limit, "n", MAX_PRIORITY)


@dataclass(frozen=True, slots=True)
class Purge(Command[Swept], fsm=QUEUES):
    """Drops ready and delayed items (``dead``: dead ones instead), in steps, of those put until ``up_to`` (None: until now)."""

    queue: str
    dead: bool = False
    after: int = 0
    up_to: int | None = None

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")


@dataclass(frozen=True, slots=True)
class Stats(Command[QueueStats], fsm=QUEUES):
    """A command, because only an entry of the log has a time to tell ages by."""

    queue: str

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")


@dataclass(frozen=True, slots=True)
class Peek(Query[Item | None], fsm=QUEUES):
    """What would be claimed next."""

    queue: str

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")


@dataclass(frozen=True, slots=True)
class Length(Query[int], fsm=QUEUES):
    """Ready, delayed and claimed items."""

    queue: str

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")


@dataclass(frozen=True, slots=True)
class DeadItems:
    """Some of the dead, in the order they were put. ``after``: go on there; None: that was all."""

    items: tuple[Item, ...]
    after: int | None


@dataclass(frozen=True, slots=True)
class Dead(Query[DeadItems], fsm=QUEUES):
    """At most ``limit`` dead items; fewer where their bodies are large."""

    queue: str
    limit: int
    after: int = 0

    def __post_init__(self) -> None:
        check_text(self.queue, "queue")
        check_count(self.limit, "limit", MAX_PRIORITY)


@dataclass(frozen=True, slots=True)
class Due(Command[None], fsm=QUEUES):
    """Sent by a timer: the delay or the visibility of that item is over."""

    queue: str
    id: str
    order: int


@dataclass(frozen=True, slots=True)
class Expire(Command[None], fsm=QUEUES):
    """Sent by a timer: the ttl of that item is over."""

    queue: str
    id: str
    order: int


@dataclass(frozen=True, slots=True)
class Forget(Command[None], fsm=QUEUES):
    """Sent by a timer: the id of that acknowledged item may be put again."""

    queue: str
    id: str
    order: int


# ---- the rows of the items, for those who watch them ----

ItemState: TypeAlias = Literal["ready", "delayed", "claimed", "dead", "acked", "expired", "purged"]


@dataclass(frozen=True, slots=True)
class ItemRow:
    """One item, without its body.

    ``order``: the revision of its put.  ``due_ns``: when its delay or its claim is over.  ``token``, ``session`` and
    ``sequence`` (of the command that claimed it) are those of its claim.  ``ended``: the revision at which it went to the
    ledger; None: its id is taken, by an item that is present or by one whose ``dedupe_for`` still runs.
    """

    state: ItemState
    order: int
    priority: int
    group: str | None
    put_ns: int
    expires_ns: int | None
    dedupe_ns: int
    attempts: int = 0
    due_ns: int | None = None
    token: int | None = None
    session: int | None = None
    sequence: int = 0
    reason: str | None = None
    history: tuple[str, ...] = ()
    ended: int | None = None


ITEMS: Final = TableName(QUEUES, "items", tuple[str, str], ItemRow)  # (queue, id)


def items_of(queue: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The bounds, low and high, of a watch on ``ITEMS`` that sees one queue."""
    return (queue, ""), (queue + "\0", "")
