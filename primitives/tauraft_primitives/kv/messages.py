"""What the KV handle sends. Keys: UTF-8, 1 to 512 bytes; values: up to 1 MiB.

Limits are checked when a message is made, in the caller's frame, so nothing too large reaches the log; the state machine
checks again, for those who write messages by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from tauraft.errors import InvalidArgument, TooLarge
from tauraft.fsm import Command, Query, TableName
from tauraft.types import Compare, Entry, LeaseInfo, Page, PutResult
from tauraft_primitives.checks import utf8_size

KV: Final = "tauraft.kv"
MAX_KEY_BYTES: Final = 512
MAX_VALUE_BYTES: Final = 1 << 20
MAX_BATCH_WRITES: Final = 1_000
MAX_BATCH_BYTES: Final = 4 << 20
MAX_PARTS: Final = 1_000
MIN_LEASE_TTL_S: Final = 0.5
NANOSECONDS: Final = 1_000_000_000


def check_key(key: str) -> None:
    """Raises ``TypeError``, ``InvalidArgument``, ``TooLarge``."""
    if type(key) is not str:
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    if not key:
        raise InvalidArgument("a key cannot be empty; nothing was sent", option="key")
    size = utf8_size(key, "key")
    if size > MAX_KEY_BYTES:
        raise TooLarge(f"a key of {size} bytes: the limit is {MAX_KEY_BYTES}; nothing was sent", option="key")


def check_value(value: bytes) -> None:
    """Raises ``TypeError``, ``TooLarge``."""
    if type(value) is not bytes:
        raise TypeError(f"a value is bytes or str, not {type(value).__name__}")
    if len(value) > MAX_VALUE_BYTES:
        raise TooLarge(
            f"a value of {len(value)} bytes: the limit is {MAX_VALUE_BYTES}; nothing was sent", option="value"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """What is kept of a key. ``lease``: the lease or session it goes with."""

    value: bytes
    revision: int
    created_revision: int
    version: int
    expires_ns: int | None = None
    lease: int | None = None

    def entry(self, key: str, now_ns: int) -> Entry:
        expires_in = None if self.expires_ns is None else max(0, self.expires_ns - now_ns) / NANOSECONDS
        return Entry(key, self.value, self.revision, self.created_revision, self.version, self.lease, expires_in)


KEYS: Final = TableName(KV, "kv", str, Row)


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
    """A put with a condition, one that wants to know what was there before, or one that binds the key to a lease.

    ``attach``: a lease, or 0 for the session that sends it. Refuses with ``CompareFailed``, and ``NotHolder`` where the
    lease has ended.
    """

    key: str
    value: bytes
    ttl: float | None = None
    if_revision: int | None = None
    if_absent: bool = False
    attach: int | None = None

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
class Transacted:
    """``results``: the encoded answers of the parts that ran."""

    succeeded: bool
    revision: int
    results: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Transact(Command[Transacted], fsm=KV):
    """Runs ``then`` where all of ``when`` holds, else ``otherwise``: encoded commands and queries of any plugin."""

    encoded_parts: ClassVar[tuple[str, ...]] = ("then", "otherwise")
    when: tuple[Compare, ...]
    then: tuple[bytes, ...]
    otherwise: tuple[bytes, ...]

    def __post_init__(self) -> None:
        for compare in self.when:
            check_key(compare.key)
        for option, given in (("when", self.when), ("then", self.then), ("otherwise", self.otherwise)):
            if len(given) > MAX_PARTS:
                raise TooLarge(
                    f"{option} has {len(given)} parts: the limit is {MAX_PARTS}; nothing was sent", option=option
                )


@dataclass(frozen=True, slots=True)
class Expire(Command[None], fsm=KV):
    """Sent by a timer: the key's time is up, if it still has the revision it had then."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """``token`` fences; ``id`` is what keys are attached to, and stays when the lease goes to another session."""

    id: int
    token: int


@dataclass(frozen=True, slots=True)
class GrantLease(Command[LeaseGrant], fsm=KV):
    """A lease of the session that sends it."""

    ttl: float

    def __post_init__(self) -> None:
        check_lease_ttl(self.ttl)


def check_lease_ttl(ttl: float) -> float:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"ttl is seconds, not {type(ttl).__name__}")
    if not MIN_LEASE_TTL_S <= ttl <= 1e9:
        raise InvalidArgument(
            f"ttl={ttl}: at least {MIN_LEASE_TTL_S} and at most 1e9 seconds; nothing was sent", option="ttl"
        )
    return float(ttl)


@dataclass(frozen=True, slots=True)
class AdoptLease(Command[LeaseGrant], fsm=KV):
    """Takes up a lease that was transferred to the session that sends it, for ``ttl`` from now. Refuses with ``NotHolder``."""

    id: int
    ttl: float

    def __post_init__(self) -> None:
        check_lease_ttl(self.ttl)


@dataclass(frozen=True, slots=True)
class RenewLease(Command[None], fsm=KV):
    """Gives it its whole ttl again. Refuses with ``NotHolder`` when it has ended or is another's."""

    id: int
    token: int


@dataclass(frozen=True, slots=True)
class TransferLease(Command[None], fsm=KV):
    """To another session, with its whole ttl and a new token. Refuses with ``NotHolder``."""

    id: int
    token: int
    session: int


@dataclass(frozen=True, slots=True)
class RevokeLease(Command[None], fsm=KV):
    """Ends it; the keys attached to it go in the same revision. Refuses with ``NotHolder``."""

    id: int
    token: int


@dataclass(frozen=True, slots=True)
class DescribeLease(Query[LeaseInfo | None], fsm=KV):
    """None: it has ended."""

    id: int


@dataclass(frozen=True, slots=True)
class LeaseEnds(Command[None], fsm=KV):
    """Sent by a timer: the ttl of that lease is over."""

    id: int
    token: int


@dataclass(frozen=True, slots=True)
class Get(Query[Entry | None], fsm=KV):
    """``at_revision``: as it was then; refuses with ``Compacted`` where that is not remembered."""

    key: str
    at_revision: int | None = None

    def __post_init__(self) -> None:
        check_key(self.key)


@dataclass(frozen=True, slots=True)
class Keys(Query[Page[str]], fsm=KV):
    """From ``cursor`` on, at most ``limit``, at the revision of the first page; ``Compacted`` where that is not remembered."""

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
