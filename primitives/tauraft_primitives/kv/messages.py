"""What the KV handle sends. Keys: UTF-8, 1 to 512 bytes; values: up to 1 MiB.

Limits are checked when a message is made, in the caller's frame, so nothing too large reaches the log; the state machine
checks again, for those who write messages by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.errors import InvalidArgument, TooLarge
from tauraft.fsm import Command, Query
from tauraft.types import Entry, Page, PutResult

KV: Final = "tauraft.kv"
MAX_KEY_BYTES: Final = 512
MAX_VALUE_BYTES: Final = 1 << 20
MAX_BATCH_WRITES: Final = 1_000
MAX_BATCH_BYTES: Final = 4 << 20
NANOSECONDS: Final = 1_000_000_000


def check_key(key: str) -> None:
    """Raises ``TypeError``, ``InvalidArgument``, ``TooLarge``."""
    if type(key) is not str:
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    if not key:
        raise InvalidArgument("a key cannot be empty; nothing was sent", option="key")
    if len(key) > MAX_KEY_BYTES // 4 and len(key.encode()) > MAX_KEY_BYTES:
        raise TooLarge(
            f"a key of {len(key.encode())} bytes: the limit is {MAX_KEY_BYTES}; nothing was sent", option="key"
        )


def check_value(value: bytes) -> None:
    """Raises ``TypeError``, ``TooLarge``."""
    if type(value) is not bytes:
        raise TypeError(f"a value is bytes or str, not {type(value).__name__}")
    if len(value) > MAX_VALUE_BYTES:
        raise TooLarge(
            f"a value of {len(value)} bytes: the limit is {MAX_VALUE_BYTES}; nothing was sent", option="value"
        )


@dataclass(frozen=True, slots=True)
class Put(Command[int], fsm=KV):
    """Answers the revision. ``ttl`` in seconds."""

    key: str
    value: bytes
    ttl: float | None = None

    def __post_init__(self) -> None:
        check_key(self.key)
        check_value(self.value)
        check_ttl(self.ttl)


def check_ttl(ttl: float | None) -> None:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if ttl is None:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"ttl is seconds, not {type(ttl).__name__}")
    if not 0 < ttl <= 1e9:
        raise InvalidArgument(f"ttl={ttl}: seconds above 0, and at most 1e9; nothing was sent", option="ttl")


@dataclass(frozen=True, slots=True)
class PutIf(Command[PutResult], fsm=KV):
    """A put with a condition, or one that wants to know what was there before. Refuses with ``CompareFailed``."""

    key: str
    value: bytes
    ttl: float | None = None
    if_revision: int | None = None
    if_absent: bool = False

    def __post_init__(self) -> None:
        check_key(self.key)
        check_value(self.value)
        check_ttl(self.ttl)
        if self.if_absent and self.if_revision is not None:
            raise InvalidArgument(
                "if_absent and if_revision exclude each other; nothing was sent", option="if_revision"
            )


@dataclass(frozen=True, slots=True)
class CompareAndSet(Command[int | None], fsm=KV):
    """``expected`` None: absent. Answers the revision, or None when what is there differs."""

    key: str
    expected: bytes | None
    new: bytes

    def __post_init__(self) -> None:
        check_key(self.key)
        check_value(self.new)


@dataclass(frozen=True, slots=True)
class Delete(Command[int], fsm=KV):
    """Answers how many went: 0 or 1."""

    key: str

    def __post_init__(self) -> None:
        check_key(self.key)


@dataclass(frozen=True, slots=True)
class DeleteRange(Command[int], fsm=KV):
    """Deletes low <= key < high; ``high`` None: to the end. Answers how many went."""

    low: str
    high: str | None


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a batch: ``value`` None deletes."""

    key: str
    value: bytes | None
    ttl: float | None = None


@dataclass(frozen=True, slots=True)
class WriteBatch(Command[int], fsm=KV):
    """All of them at one revision, which is the answer."""

    writes: tuple[Write, ...]

    def __post_init__(self) -> None:
        size = 0
        for write in self.writes:
            check_key(write.key)
            check_ttl(write.ttl)
            if write.value is not None:
                check_value(write.value)
                size += len(write.value)
        if len(self.writes) > MAX_BATCH_WRITES or size > MAX_BATCH_BYTES:
            raise TooLarge(
                f"a batch of {len(self.writes)} writes and {size} bytes: the limits are {MAX_BATCH_WRITES} and "
                f"{MAX_BATCH_BYTES}; nothing was sent",
                option="batch",
            )


@dataclass(frozen=True, slots=True)
class Expire(Command[None], fsm=KV):
    """Sent by a timer: the key's time is up, if it still has the revision it had then."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Get(Query[Entry | None], fsm=KV):
    key: str

    def __post_init__(self) -> None:
        check_key(self.key)


@dataclass(frozen=True, slots=True)
class Keys(Query[Page[str]], fsm=KV):
    """From ``cursor`` on, at most ``limit``; a cursor of a page at another revision is refused (``Compacted``)."""

    prefix: str = ""
    limit: int | None = None
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Items(Query[Page[Entry]], fsm=KV):
    """As ``Keys``, with values."""

    prefix: str = ""
    limit: int | None = None
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Count(Query[int], fsm=KV):
    prefix: str = ""
