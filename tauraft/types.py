"""The data classes that calls return, shared by all primitives. Frozen; instants are aware UTC datetimes, durations float seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar, overload

from tauraft.errors import InvalidArgument

if TYPE_CHECKING:
    import pyarrow

R = TypeVar("R")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Consistency: TypeAlias = Literal["linearizable", "lease", "stale"]
Revision: TypeAlias = int
Bytes: TypeAlias = bytes | str  # str is stored as UTF-8; what comes back is always bytes
OnLoss: TypeAlias = Literal["break", "shrink", "ignore"]
TickState: TypeAlias = Literal["FIRED", "RUNNING", "OK", "FAILED", "LOST", "SKIPPED"]


def instant(wall_ns: int) -> datetime:
    """Of the cluster's wall clock, as it is shown."""
    return _EPOCH + timedelta(microseconds=wall_ns // 1_000)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose session it is: ``label`` is what its process calls itself."""

    session: int
    peer_id: str
    host: str
    pid: int
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    peer_id: str
    addresses: tuple[str, ...]
    role: Literal["voter", "learner"]
    host: str
    is_leader: bool


@dataclass(frozen=True, slots=True)
class Status:
    """What a node knows of its cluster. ``hosts``, ``disks``: how many the quorum really spans."""

    namespace: str
    cluster_id: str
    peer_id: str
    state: str
    term: int
    leader: Member | None
    members: tuple[Member, ...]
    commit_index: int
    applied_index: int
    revision: Revision
    holder_pid: int
    hosts: int
    disks: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value with its history in numbers. ``expires_in``: seconds, None: never."""

    key: str
    value: bytes
    revision: Revision
    created_revision: Revision
    version: int
    lease: int | None = None
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class PutResult:
    revision: Revision
    previous: Entry | None


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of ``kv.transaction``: ``Compare("k", "value", "==", b"x")``, ``Compare("k", "exists", "==", True)``.

    Of a key that is not there the numbers are 0, and its value is unlike any other.
    """

    key: str
    field: Literal["value", "revision", "version", "created_revision", "exists"]
    op: Literal["==", "!=", "<", "<=", ">", ">="]
    operand: bytes | int | bool

    def __post_init__(self) -> None:
        wanted = {"value": bytes, "exists": bool}.get(self.field, int)
        if type(self.operand) is not wanted:
            raise TypeError(f"{self.field} is compared with {wanted.__name__}, not {type(self.operand).__name__}")
        if self.field not in ("value", "revision", "version", "created_revision", "exists"):
            raise InvalidArgument(f"field is {self.field!r}; it is value, revision, version, created_revision or exists",
                                  option="field")  # fmt: skip
        if self.op not in (("==", "!=") if self.field == "exists" else ("==", "!=", "<", "<=", ">", ">=")):
            raise InvalidArgument(f"{self.field} is not compared by {self.op!r}", option="op")


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """``results``: the answers of what was run, in order. ``revision``: of the last of it; of the transaction where nothing ran."""

    succeeded: bool
    revision: Revision
    results: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Page(Sequence[R], Generic[R]):
    """Everything of it at ONE revision. ``cursor`` None: that was all."""

    items: tuple[R, ...]
    revision: Revision
    cursor: str | None = None

    @overload
    def __getitem__(self, place: int) -> R: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[R]: ...
    def __getitem__(self, place: int | slice) -> R | Sequence[R]:
        return self.items[place]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[R]:
        return iter(self.items)


@dataclass(frozen=True, slots=True)
class Rows(Sequence[tuple[Any, ...]]):
    """What a query of SQL gave. ``applied_index``: the projection had reached it; ``types``: DuckDB's, a name a column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    applied_index: int
    types: tuple[str, ...] = ()

    def to_arrow(self) -> pyarrow.Table:
        """As a table of Arrow, from which any data frame is made: ``to_arrow().to_pandas()``, ``polars.from_arrow(...)``.

        Needs the extra ``tauraft[arrow]``; raises ``ModuleNotFoundError`` where it is not installed. Instants are in UTC.
        """
        from tauraft.arrow import table_of

        return table_of(self.columns, self.types, self.rows)

    @overload
    def __getitem__(self, place: int) -> tuple[Any, ...]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[tuple[Any, ...]]: ...
    def __getitem__(self, place: int | slice) -> tuple[Any, ...] | Sequence[tuple[Any, ...]]:
        return self.rows[place]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)


@dataclass(frozen=True, slots=True)
class LockBreak:
    """An operator took the lock from its ``holder``: who did, when and why."""

    by: Owner
    at: datetime
    reason: str
    holder: Owner
    token: int


@dataclass(frozen=True, slots=True)
class LockInfo:
    """``waiters`` in the order in which they are served. ``last_break``: the last time that it was broken."""

    name: str
    holder: Owner | None
    token: int | None
    reason: str | None
    since: datetime | None
    waiters: tuple[Owner, ...]
    last_break: LockBreak | None = None


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What became of a put. ``duplicate``: an item of that id is in the queue already, put at ``revision``."""

    id: str
    duplicate: bool
    revision: Revision


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a queue. ``reason``: why it is dead; ``history``: how its last attempts ended, oldest first."""

    id: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    attempts: int = 0
    reason: str | None = None
    history: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QueueStats:
    """``ready`` counts also what waits behind an earlier item of its group. ``oldest_age``: seconds since the oldest item
    that is ready, delayed or claimed was put; None when there is none."""

    ready: int
    delayed: int
    claimed: int
    dead: int
    oldest_age: float | None


@dataclass(frozen=True, slots=True)
class SemaphoreInfo:
    """``available``: below 0 while more are out than a smaller ``resize`` allows."""

    name: str
    permits: int
    available: int
    holders: tuple[Owner, ...]
    waiters: tuple[Owner, ...]


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads an election. ``token`` fences what it does; ``since``: when it was elected."""

    owner: Owner
    value: bytes
    token: int
    since: datetime


@dataclass(frozen=True, slots=True)
class ElectionInfo:
    """``candidates`` in the order in which they will be elected."""

    name: str
    leader: Leader | None
    candidates: tuple[Owner, ...]


@dataclass(frozen=True, slots=True)
class TickRow:
    """A tick of a job in the ledger. Over in OK, FAILED, LOST and SKIPPED (``reason`` says why).

    ``token`` fences the run begun last, 0: none was. ``until``: a SKIPPED row that stands for many says the last of them.
    """

    job: str
    scheduled_at: datetime
    state: TickState
    runner: Owner | None
    token: int
    attempts: int
    started: datetime | None
    finished: datetime | None
    error: str | None
    reason: str | None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class JobInfo:
    """``spec`` as it was written. ``next_at``: when it is due next, before jitter; None: paused, or never. ``version`` counts its schedules."""

    name: str
    spec: str | None
    timezone: str
    paused: bool
    next_at: datetime | None
    version: int


@dataclass(frozen=True, slots=True)
class BarrierInfo:
    """Of a double or cyclic barrier. ``arrived``: how many wait for the others, or are in. ``parties``: how many it takes now;
    fewer than it was made with once it has shrunk. ``generation``: rounds that it has seen."""

    name: str
    parties: int
    arrived: int
    generation: int
    broken: bool


@dataclass(frozen=True, slots=True)
class GateInfo:
    name: str
    is_open: bool
    waiters: tuple[Owner, ...]


@dataclass(frozen=True, slots=True)
class LatchInfo:
    """``left``: counts to go, 0 once it is open."""

    name: str
    count: int
    left: int
    waiters: tuple[Owner, ...]


@dataclass(frozen=True, slots=True)
class RwLockInfo:
    """Of a lock for readers and writers. ``waiters`` of either kind, in the order in which they are served."""

    name: str
    readers: tuple[Owner, ...]
    writer: Owner | None
    waiters: tuple[Owner, ...]


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """``session``: whose it is. ``keys``: how many are attached to it."""

    id: int
    token: int
    session: int
    ttl: float
    keys: int


@dataclass(frozen=True, slots=True)
class RateInfo:
    """``available``: tokens that could be taken now. ``full_in``: seconds until the bucket is full again."""

    name: str
    rate: float
    burst: int
    available: int
    full_in: float
    waiters: int


@dataclass(frozen=True, slots=True)
class OnceInfo:
    """``runner``: who runs it, or ran it. ``since``: when that began; ``result`` and ``finished`` once it is done."""

    name: str
    state: Literal["idle", "running", "done"]
    runner: Owner | None
    token: int | None
    since: datetime | None
    finished: datetime | None
    result: bytes | None
    waiters: tuple[Owner, ...]


@dataclass(frozen=True, slots=True)
class GroupMember:
    """``token`` fences what it does as a member."""

    id: str
    owner: Owner
    metadata: bytes
    since: datetime
    token: int


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """``members`` in the order of their ids."""

    name: str
    members: tuple[GroupMember, ...]


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """``holder``: who has it, None: nobody at the moment. ``next``: who is to have it, where that is somebody else."""

    partition: int
    holder: Owner | None
    token: int | None
    next: Owner | None


@dataclass(frozen=True, slots=True)
class PartitionsInfo:
    """``workers`` in the order in which they joined."""

    name: str
    workers: tuple[Owner, ...]
    partitions: tuple[PartitionInfo, ...]
