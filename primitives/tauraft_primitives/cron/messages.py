"""What cron's handles send, and the rows that may be watched. Names: UTF-8, 1 to 512 bytes.

A ``Schedule`` is a spec that has been read already (``specs.py``): the sets of a cron line, an interval or one moment, and
with a time zone the very rules of it.  So no replica parses a spec or looks up a zone, and replicas with other versions
of a parser or of the zone database still decide alike (docs/decisions/0032).

A process says what it can run (``Register``), waits for a tick (``Serve``), and for each says that it begins (``Start``, answered before the
function runs) and how it ended (``Finish``).  A run is known by its token.  ``Due``, ``Again``, ``Overdue`` and ``GraceEnds`` are sent by timers alone.

Moments are microseconds of the cluster's wall clock since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias

from tauraft.errors import InvalidArgument, InvalidSpec, TooLarge
from tauraft.fsm import Command, Query, TableName
from tauraft.types import JobInfo, Owner, TickRow, TickState
from tauraft_primitives.checks import check_count, check_name

CRON: Final = "tauraft.cron"
MAX_JOBS: Final = 1_000  # of one process
MAX_ZONE_BYTES: Final = 64 << 10
MAX_ERROR_BYTES: Final = 4 << 10
MAX_PAGE: Final = 1_000
MAX_SECONDS: Final = 1e9
MAX_RETRIES: Final = 1_000
SECOND_US: Final = 1_000_000
MIN_EVERY_US: Final = SECOND_US
LAST_MOMENT_US: Final = 253_370_764_800 * SECOND_US  # the year 9999
FIRST_MOMENT: Final = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MOMENT: Final = FIRST_MOMENT + timedelta(microseconds=LAST_MOMENT_US + SECOND_US)
# A runner counts itself out 0.1 s before the cluster does, or 3 % of a long time-out.
MIN_TIMEOUT_S: Final = 0.2
LAST: Final = -1  # day of the month: the last; weekday: the last of the month
LAST_WEEKDAY: Final = -2

Misfire: TypeAlias = Literal["latest", "all", "earliest", "skip"]
Overlap: TypeAlias = Literal["forbid", "allow", "queue_one", "replace"]
Delivery: TypeAlias = Literal["at_least_once", "at_most_once"]
Gap: TypeAlias = Literal["run_after", "skip"]
Repeat: TypeAlias = Literal["first", "both"]


def check_seconds(value: object, option: str, least: float) -> None:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{option} is seconds, not {type(value).__name__}")
    if not least <= value <= MAX_SECONDS:
        raise InvalidArgument(
            f"{option}={value}: at least {least:g} and at most {MAX_SECONDS:g} seconds; nothing was sent", option=option
        )


def check_choice(value: object, option: str, choices: tuple[str, ...]) -> None:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if type(value) is not str:
        raise TypeError(f"{option} is a str, not {type(value).__name__}")
    if value not in choices:
        raise InvalidArgument(
            f"{option} is {value!r}; it is {', '.join(choices[:-1])} or {choices[-1]}; nothing was sent", option=option
        )


@dataclass(frozen=True, slots=True)
class Calendar:
    """The sets of a cron line, each in ascending order.

    ``days`` of the month, ``LAST`` and ``LAST_WEEKDAY`` among them; ``weekdays``: (0 for Sunday to 6, which of the month: 0 for every,
    1 to 5, ``LAST``).  ``needs_both``: the day must be one of each, else one of either.  ``is_fixed``: at certain times of day, since neither
    the minute nor the hour begins with ``*``; only such a job is touched by ``gap`` and ``repeat``.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[tuple[int, int], ...]
    needs_both: bool
    is_fixed: bool

    def __post_init__(self) -> None:
        for name, low, high in _FIELDS:
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] < low or values[-1] > high:
                raise InvalidSpec(f"{name} are numbers from {low} to {high}, in order", option="spec", field=name)
        for weekday, which in self.weekdays:
            if not 0 <= weekday <= 6 or not LAST <= which <= 5:
                raise InvalidSpec("a weekday is 0 to 6", option="spec", field="day-of-week")
        if not self.weekdays or len(self.weekdays) > 49:
            raise InvalidSpec("there are 1 to 49 weekdays", option="spec", field="day-of-week")


_FIELDS: Final = (
    ("seconds", 0, 59),
    ("minutes", 0, 59),
    ("hours", 0, 23),
    ("days", LAST_WEEKDAY, 31),
    ("months", 1, 12),
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a job is due: exactly one of ``calendar``, ``every_us`` (on multiples of it since 1970) and ``at_us`` (once).

    ``text``: as its author wrote it.  ``zone``: the rules of ``timezone`` as in a TZif file, of release ``zone_version``; none: UTC.
    """

    text: str
    calendar: Calendar | None = None
    every_us: int = 0
    at_us: int | None = None
    timezone: str = "UTC"
    zone: bytes = b""
    zone_version: str = ""

    def __post_init__(self) -> None:
        check_name(self.text, "spec")
        check_name(self.timezone, "timezone")
        if (self.calendar is not None) + (self.every_us != 0) + (self.at_us is not None) != 1:
            raise InvalidSpec("a schedule is a cron line, an interval or one moment", option="spec", field="spec")
        if self.every_us and not MIN_EVERY_US <= self.every_us <= LAST_MOMENT_US:
            raise InvalidSpec(
                f"an interval of {self.every_us / SECOND_US:g} s: it is at least 1 s, and less than 8,000 years; nothing was sent",
                option="spec",
                field="every",
            )
        if self.at_us is not None and not 0 <= self.at_us <= LAST_MOMENT_US:
            raise InvalidSpec("the moment lies outside of 1970 to 9999; nothing was sent", option="spec", field="spec")
        if len(self.zone) > MAX_ZONE_BYTES:
            raise TooLarge("the rules of a time zone have at most 64 KiB; nothing was sent", option="timezone")
        if self.zone and self.zone[:4] != b"TZif":
            raise InvalidSpec("zone is no TZif data; nothing was sent", option="timezone", field="timezone")
        if len(self.zone_version) > 32:
            raise TooLarge("zone_version has at most 32 characters; nothing was sent", option="timezone")


@dataclass(frozen=True, slots=True)
class Policy:
    """How the ticks of a job are run (``cluster.cron``)."""

    run_on: str = "leader"
    delivery: Delivery = "at_least_once"
    misfire: Misfire = "latest"
    grace: float | None = None
    overlap: Overlap = "forbid"
    retries: int = 0
    backoff: float = 1.0
    timeout: float | None = None
    jitter: float = 0.0
    gap: Gap = "run_after"
    repeat: Repeat = "first"

    def __post_init__(self) -> None:
        check_name(self.run_on, "run_on")
        check_choice(self.delivery, "delivery", ("at_least_once", "at_most_once"))
        check_choice(self.misfire, "misfire", ("latest", "all", "earliest", "skip"))
        check_choice(self.overlap, "overlap", ("forbid", "allow", "queue_one", "replace"))
        check_choice(self.gap, "gap", ("run_after", "skip"))
        check_choice(self.repeat, "repeat", ("first", "both"))
        check_count(self.retries, "retries", MAX_RETRIES, 0)
        check_seconds(self.backoff, "backoff", 0)
        check_seconds(self.jitter, "jitter", 0)
        if self.grace is not None:
            check_seconds(self.grace, "grace", 0)
        if self.timeout is not None:
            check_seconds(self.timeout, "timeout", MIN_TIMEOUT_S)
        if self.delivery == "at_most_once" and self.retries:
            raise InvalidArgument(
                "retries run a tick again, and delivery='at_most_once' says that none is; leave one of them out",
                option="retries",
            )


@dataclass(frozen=True, slots=True)
class Tick:
    """A row of the ledger, by job and the moment it was scheduled at.

    ``order``: the revision it was fired at.  ``until``: of a SKIPPED row that stands for many, the last of them.
    ``token``, ``runner``, ``started``: of the run begun last.  ``failures``, ``losses``, ``open_runs``: how its runs ended so far, and how many have not.
    """

    state: TickState
    order: int
    token: int = 0
    attempts: int = 0
    runner: Owner | None = None
    started: datetime | None = None
    finished: datetime | None = None
    error: str | None = None
    reason: str | None = None
    until: datetime | None = None
    failures: int = 0
    losses: int = 0
    open_runs: int = 0


# (job, scheduled_at)
TICKS: Final[TableName[tuple[str, datetime], Tick]] = TableName(CRON, "ticks", tuple[str, datetime], Tick)


def ticks_of(job: str) -> dict[str, tuple[str, datetime]]:
    """The bounds of a watch on ``TICKS`` that sees one job."""
    return {"low": (job, FIRST_MOMENT), "high": (job, LAST_MOMENT)}


def as_row(job: str, at: datetime, tick: Tick) -> TickRow:
    return TickRow(
        job, at, tick.state, tick.runner, tick.token, tick.attempts, tick.started, tick.finished, tick.error, tick.reason,
        tick.until,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Assigned:
    """A tick to run. ``timeout``: seconds from ``Start`` on. ``may_be_stopped``: ``AwaitStop`` is worth waiting for."""

    job: str
    scheduled_at: datetime
    token: int
    attempt: int
    timeout: float | None
    may_be_stopped: bool


@dataclass(frozen=True, slots=True)
class Declare(Command[JobInfo], fsm=CRON):
    """The job is as said here from now on. Saying the same again changes nothing; another schedule is a new version."""

    job: str
    schedule: Schedule
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        check_name(self.job)


@dataclass(frozen=True, slots=True)
class Register(Command[None], fsm=CRON):
    """This session's process can run these jobs, and no others. The rest says who it is."""

    jobs: tuple[str, ...]
    peer_id: str = ""
    host: str = ""
    pid: int = 0
    label: str | None = None

    def __post_init__(self) -> None:
        check_count(len(self.jobs), "jobs", MAX_JOBS, 0)
        for job in self.jobs:
            check_name(job)


@dataclass(frozen=True, slots=True)
class Serve(Command[Assigned], fsm=CRON):
    """Waits for a tick of the jobs registered. ``replica``: whose data directory it works on, "" when on none; ``is_own``: it runs that replica."""

    replica: str = ""
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class Start(Command[None], fsm=CRON):
    """The run begins. Whoever is not sure that this was done must not run (``NotHolder``: it is another's, or over)."""

    token: int


@dataclass(frozen=True, slots=True)
class Finish(Command[None], fsm=CRON):
    """The run has ended, in ``error`` if there is one. ``NotHolder``: it was not this session's any more."""

    token: int
    error: str | None = None

    def __post_init__(self) -> None:
        if self.error is not None:
            if type(self.error) is not str:
                raise TypeError(f"error is a str, not {type(self.error).__name__}")
            if len(self.error.encode()) > MAX_ERROR_BYTES:
                raise TooLarge(f"error has at most {MAX_ERROR_BYTES} bytes; nothing was sent", option="error")


@dataclass(frozen=True, slots=True)
class GiveBack(Command[None], fsm=CRON):
    """The function did not run and will not: as if the tick had not been given to this session."""

    token: int


@dataclass(frozen=True, slots=True)
class AwaitStop(Command[None], fsm=CRON):
    """Waits until that run is over, or is taken away."""

    token: int


@dataclass(frozen=True, slots=True)
class Pause(Command[None], fsm=CRON):
    """Nothing is due while ``paused``; what would have been is not made up for."""

    job: str
    paused: bool

    def __post_init__(self) -> None:
        check_name(self.job)


@dataclass(frozen=True, slots=True)
class Trigger(Command[TickRow], fsm=CRON):
    """One tick now, besides the schedule."""

    job: str

    def __post_init__(self) -> None:
        check_name(self.job)


@dataclass(frozen=True, slots=True)
class Delete(Command[bool], fsm=CRON):
    """The job is no more; what runs goes on to its end, and the ledger keeps its rows. False: there was none."""

    job: str

    def __post_init__(self) -> None:
        check_name(self.job)


@dataclass(frozen=True, slots=True)
class GetJob(Query[JobInfo | None], fsm=CRON):
    job: str

    def __post_init__(self) -> None:
        check_name(self.job)


@dataclass(frozen=True, slots=True)
class ListJobs(Query[tuple[JobInfo, ...]], fsm=CRON):
    """By name, those after ``after``."""

    after: str = ""
    limit: int = 500

    def __post_init__(self) -> None:
        check_count(self.limit, "limit", MAX_PAGE, 1)


@dataclass(frozen=True, slots=True)
class NextTicks(Query[tuple[datetime, ...]], fsm=CRON):
    """The moments the job will be due at, as things are; without jitter."""

    job: str
    n: int = 1

    def __post_init__(self) -> None:
        check_name(self.job)
        check_count(self.n, "n", MAX_PAGE, 1)


@dataclass(frozen=True, slots=True)
class History(Query[tuple[TickRow, ...]], fsm=CRON):
    """Rows of the ledger, newest first; of a job that was deleted, too. ``before``: those scheduled before it."""

    job: str
    n: int = 100
    before_us: int | None = None

    def __post_init__(self) -> None:
        check_name(self.job)
        check_count(self.n, "n", MAX_PAGE, 1)
        if self.before_us is not None:
            check_count(self.before_us, "before", LAST_MOMENT_US, 0)


@dataclass(frozen=True, slots=True)
class Due(Command[None], fsm=CRON):
    """Sent by a timer: look what is due of the job."""

    job: str


@dataclass(frozen=True, slots=True)
class Again(Command[None], fsm=CRON):
    """Sent by a timer: the back-off of a failed run is over. ``session``: who must run it, 0 for anybody."""

    job: str
    at_us: int
    order: int
    session: int
    failures: int


@dataclass(frozen=True, slots=True)
class Overdue(Command[None], fsm=CRON):
    """Sent by a timer: the time-out of that run is over."""

    token: int


@dataclass(frozen=True, slots=True)
class GraceEnds(Command[None], fsm=CRON):
    """Sent by a timer: that tick is not to be begun any more."""

    job: str
    at_us: int
    order: int
