"""What every facade offers: ``AsyncPrimitives``, the base of ``AsyncCluster`` and ``AsyncClient``.

A facade is an ``AsyncHolder`` (``tauraft.handle``): it submits, queries and watches over holds.  Everything else is sugar:
``cluster.lock("x")`` is ``AsyncLock(cluster, "x")``, so a third party's handle stands where ours do.  It owns a
``AsyncCaller``, which is its only way into the engine; no method here does I/O of its own.

The blocking twin, ``tauraft/_blocking/primitives.py``, is generated from this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from tauraft import errors
from tauraft.caller import AsyncCaller, EngineTenure
from tauraft.fsm import Command, Query, TableName
from tauraft.handle import AsyncSignal, AsyncWatch, RaftStanding, Reminder, check_patience, check_timeout
from tauraft.sql_values import to_wire, unpack_rows
from tauraft.system.messages import Barrier
from tauraft.types import Bytes, Consistency, Member, OnLoss, Rows, Status
from tauraft.watch import Frame, State, watch_request
from tauraft_primitives.barriers.handle import AsyncCyclicBarrier, AsyncDoubleBarrier, AsyncGate, AsyncLatch
from tauraft_primitives.counters.handle import AsyncCounter, AsyncIds
from tauraft_primitives.cron.handle import AsyncCron, AsyncSchedules
from tauraft_primitives.cron.messages import Delivery, Gap, Misfire, Overlap, Policy, Repeat
from tauraft_primitives.elections.handle import AsyncElection, AsyncLeading, AsyncRaftLeadership, AsyncTerm
from tauraft_primitives.fencing.handle import AsyncFenced
from tauraft_primitives.groups.handle import AsyncGroup
from tauraft_primitives.kv.handle import AsyncKV
from tauraft_primitives.leases.handle import AsyncLease
from tauraft_primitives.locks.handle import AsyncLock, AsyncLockAll
from tauraft_primitives.once.handle import AsyncOnce
from tauraft_primitives.partitions.handle import AsyncPartitioner
from tauraft_primitives.queues.handle import AsyncQueue
from tauraft_primitives.rates.handle import AsyncRateLimit
from tauraft_primitives.rwlocks.handle import AsyncRwLock
from tauraft_primitives.semaphores.handle import AsyncSemaphore

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")

MAX_BARRIER_S = 30.0
CRON_PATIENCE_S = 5.0


class AsyncSession:
    """The session of a facade. ``lost`` is set when it is lost, before the cluster gives away what it held."""

    def __init__(self, caller: AsyncCaller) -> None:
        self._caller = caller
        self.lost = AsyncSignal(caller.session_lost)

    @property
    def id(self) -> int:
        """Public; 0 until it is open."""
        return self._caller.session.id

    @property
    def ttl(self) -> float:
        """Seconds the cluster keeps it without hearing from it."""
        return self._caller.session_ttl


class AsyncPast:
    """A cluster as it was: ``cluster.as_of(...)``. Cheap, local, reusable."""

    def __init__(self, cluster: AsyncPrimitives, at: datetime | int) -> None:
        self._cluster = cluster
        self._at = at

    async def sql(self, query: str, parameters: Sequence[Any] = (), *, timeout: float | None = None) -> Rows:
        """As ``cluster.sql``, of the state and history of then. Raises ``Compacted`` where history does not reach back that
        far, ``Refused`` for a revision still to come. A moment still to come is now."""
        return await self._cluster._ask_sql(query, parameters, self._at, timeout)


class AsyncPrimitives:
    """Submit commands, ask queries, and use every primitive. Started by ``async with`` or ``start()``."""

    def __init__(self, namespace: str, caller: AsyncCaller) -> None:
        self.namespace = namespace
        self._caller = caller
        self._kv: AsyncKV | None = None
        self._cron = AsyncCron(self)

    # ---- life ----

    async def start(self, timeout: float | None = None) -> Self:
        """Returns when it can serve: a leader is known and the session is open. Raises ``NoLeader`` when time runs out."""
        await self._caller.start(check_patience(timeout))
        try:
            await self._cron.begin()
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self, timeout: float | None = None) -> None:
        """Ends the session, so that all it holds is free at once, then leaves. Twice is fine.

        Cron functions that run are told, and waited for; those on threads that do not look at ``tick.lost`` no longer than 5 s.
        """
        patience = check_patience(timeout)
        self._cron.stop()
        await self._caller.close(patience)
        await self._cron.ended(CRON_PATIENCE_S if patience is None else min(patience, CRON_PATIENCE_S))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- what handles are made of ----

    async def submit(self, command: Command[R], *, timeout: float | None = None, reminder: Reminder | None = None) -> R:
        """Run ``command`` exactly once and return its answer.

        ``timeout``: a command that waits raises ``WaitTimeout`` with nothing held (default: for ever); a plain one raises
        ``Unavailable``, whose ``outcome`` says whether it may have taken effect (default: the facade's ``timeout``).
        ``reminder``: what to say of a wait that lasts.
        """
        return await self._caller.submit(command, check_patience(timeout), reminder)

    async def query(
        self, query: Query[R], *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> R:
        """Ask, without changing anything. ``stale`` answers from what the replica at hand has applied."""
        return await self._caller.query(query, consistency, check_timeout(timeout))

    @overload
    async def transaction(self, a: Command[A], /, *, timeout: float | None = None) -> tuple[A]: ...
    @overload
    async def transaction(self, a: Command[A], b: Command[B], /, *, timeout: float | None = None) -> tuple[A, B]: ...
    @overload
    async def transaction(
        self, a: Command[A], b: Command[B], c: Command[C], /, *, timeout: float | None = None
    ) -> tuple[A, B, C]: ...
    @overload
    async def transaction(self, *commands: Command[Any], timeout: float | None = None) -> tuple[Any, ...]: ...

    async def transaction(self, *commands: Command[Any], timeout: float | None = None) -> tuple[Any, ...]:
        """All or nothing, across plugins; the answers in order. A command that waits is refused (``InvalidCommand``)."""
        return await self._caller.transaction(commands, check_timeout(timeout))

    def watch(
        self,
        table: TableName[K, V],
        *,
        key: K | None = None,
        low: K | None = None,
        high: K | None = None,
        since_revision: int | None = None,
        with_state: bool = False,
    ) -> AsyncWatch[Frame[K, V] | State[K, V]]:
        """Follow the rows of a plugin's table: of one ``key``, or with low <= key < high (``tauraft.handle``)."""
        request = watch_request(
            table, key=key, low=low, high=high, since_revision=since_revision, with_state=with_state
        )
        return AsyncWatch(self._caller, request, lambda frame: (frame,))

    def whoami(self) -> tuple[str, str, int, str | None]:
        return self._caller.whoami()

    def now(self) -> float:
        return self._caller.now()

    def place(self) -> tuple[str, bool]:
        return self._caller.place()

    def raft_standing(self) -> RaftStanding:
        return self._caller.raft_standing()

    def tenure(self, *, ttl: float | None, started: float, renewal: Command[Any] | None) -> EngineTenure:
        return self._caller.tenure(ttl=ttl, started=started, renewal=renewal)

    def submit_soon(self, command: Command[Any]) -> None:
        self._caller.submit_soon(command)

    # ---- primitives ----

    @property
    def session(self) -> AsyncSession:
        return AsyncSession(self._caller)

    @property
    def kv(self) -> AsyncKV:
        if self._kv is None:
            self._kv = AsyncKV(self)
        return self._kv

    def lock(
        self,
        name: str,
        *,
        timeout: float | None = None,
        ttl: float | None = None,
        renew: bool = True,
        lock_delay: float = 0,
        reentrant: Literal["task", "thread", "session"] | None = None,
        priority: int = 0,
        reason: str | None = None,
        on_loss: Literal["cancel", "signal"] = "cancel",
    ) -> AsyncLock:
        """A lock by name. ``timeout``: of ``with``, and the default of ``acquire``."""
        return AsyncLock(
            self,
            name,
            timeout=timeout,
            ttl=ttl,
            renew=renew,
            lock_delay=lock_delay,
            reentrant=reentrant,
            priority=priority,
            reason=reason,
            on_loss=on_loss,
        )

    def queue(self, name: str, *, max_attempts: int | None = None) -> AsyncQueue:
        """A queue by name. ``max_attempts``: how often an item may be claimed before it is dead."""
        return AsyncQueue(self, name, max_attempts=max_attempts)

    @property
    def schedules(self) -> AsyncSchedules:
        """The jobs of the cluster, and the ledger of their ticks."""
        return AsyncSchedules(self, self._cron)

    def cron(
        self,
        spec: str | datetime | None,
        *,
        name: str,
        timezone: str = "UTC",
        run_on: str = "leader",
        delivery: Delivery = "at_least_once",
        misfire: Misfire = "latest",
        grace: float | None = None,
        overlap: Overlap = "forbid",
        retries: int = 0,
        backoff: float = 1.0,
        timeout: float | None = None,
        jitter: float = 0,
        gap: Gap = "run_after",
        repeat: Repeat = "first",
    ) -> Callable[[F], F]:
        """A function that runs once a tick, wherever in the cluster. As a decorator, before the start or after it.

        @cluster.cron("*/5 * * * *", name="cleanup")
        def cleanup(tick): ...

        ``spec``: a cron line of 5 fields, or 6 with seconds first; ``@daily`` and the like; ``@every 30s``; a moment; None: what
        ``schedules.put(name, ...)`` declared.  Raises ``InvalidSpec``, whose ``field`` names the part.
        The function takes one ``Tick``; it runs on a worker thread (async: a coroutine function as a task), and is returned unchanged.

        ``run_on``: ``leader`` (a process on the Raft leader's data directory; none there: any), ``any``, ``all``, or the ``label`` of
        those that may.  ``delivery``: what becomes of a tick whose process is lost while it runs.  ``misfire``: which of the ticks that
        were missed are made up for; ``grace``: how many seconds late is too late.  ``overlap``: what if the one before still runs.
        ``retries`` of a function that raised, after ``backoff`` seconds, doubled each time.  ``timeout``: seconds after which it has failed.
        ``jitter``: up to so many seconds late, the same for each tick whoever runs it.  ``gap``, ``repeat``: daylight saving.
        """
        policy = Policy(
            run_on, delivery, misfire, grace, overlap, retries, backoff, timeout, jitter, gap, repeat
        )  # fmt: skip
        return self._cron.job(spec, name, timezone, policy)

    def counter(self, name: str) -> AsyncCounter:
        """A counter by name."""
        return AsyncCounter(self, name)

    def ids(self, name: str, *, block: int = 100) -> AsyncIds:
        """Unique ids by name. ``block``: how many are reserved at a time for ``next``."""
        return AsyncIds(self, name, block=block)

    def lock_all(self, names: Sequence[str], *, timeout: float | None = None, ttl: float | None = None) -> AsyncLockAll:
        """Several locks, all or none."""
        return AsyncLockAll(self, names, timeout=timeout, ttl=ttl)

    def semaphore(self, name: str, permits: int, *, timeout: float | None = None) -> AsyncSemaphore:
        """So many permits in all the cluster."""
        return AsyncSemaphore(self, name, permits, timeout=timeout)

    def rwlock(self, name: str, *, timeout: float | None = None) -> AsyncRwLock:
        """Many readers or one writer: ``async with cluster.rwlock("x").read``."""
        return AsyncRwLock(self, name, timeout=timeout)

    def gate(self, name: str) -> AsyncGate:
        """A gate by name, made closed."""
        return AsyncGate(self, name)

    def latch(self, name: str, count: int) -> AsyncLatch:
        """Opens for good when it has been counted down ``count`` times."""
        return AsyncLatch(self, name, count)

    def double_barrier(self, name: str, parties: int, *, on_loss: OnLoss = "break") -> AsyncDoubleBarrier:
        """So many enter together and leave together."""
        return AsyncDoubleBarrier(self, name, parties, on_loss=on_loss)

    def cyclic_barrier(
        self, name: str, parties: int, action: Callable[[], object] | None = None, *, on_loss: OnLoss = "break"
    ) -> AsyncCyclicBarrier:
        """So many wait for each other, again and again; ``action`` runs once a round."""
        return AsyncCyclicBarrier(self, name, parties, action, on_loss=on_loss)

    def election(
        self,
        name: str,
        *,
        min_tenure: float = 0,
        on_elected: Callable[[AsyncTerm], object] | None = None,
        on_lost: Callable[[AsyncTerm], object] | None = None,
    ) -> AsyncElection:
        """An election by name. ``min_tenure``: seconds from this process's election to the next one."""
        return AsyncElection(self, name, min_tenure=min_tenure, on_elected=on_elected, on_lost=on_lost)

    def leadership(
        self, name: str, value: Bytes = b"", *, priority: int = 0, timeout: float | None = None
    ) -> AsyncLeading:
        """``async with cluster.leadership("x") as term``: of the election of that name."""
        return AsyncElection(self, name).leadership(value, priority=priority, timeout=timeout)

    def raft_leadership(self) -> AsyncRaftLeadership:
        """Leadership that follows the Raft leader: ``async with cluster.raft_leadership() as term``."""
        return AsyncRaftLeadership(self)

    def group(self, name: str) -> AsyncGroup:
        """Who is there, with what they say of themselves."""
        return AsyncGroup(self, name)

    def partitioner(self, group: str, partitions: int) -> AsyncPartitioner:
        """One worker among those of ``group``, with its share of so many partitions."""
        return AsyncPartitioner(self, group, partitions)

    def once(self, name: str) -> AsyncOnce:
        """Something that is done once in the life of the cluster."""
        return AsyncOnce(self, name)

    def rate_limit(self, name: str, rate: float, burst: int) -> AsyncRateLimit:
        """So many in a second in all the cluster, and at most ``burst`` at once."""
        return AsyncRateLimit(self, name, rate, burst)

    def fenced(self, token: int) -> AsyncKV:
        """KV whose writes are refused (``NotHolder``) unless the hold of ``token`` still holds, each in one command."""
        return AsyncKV(AsyncFenced(self, token))

    async def lease(self, ttl: float, *, adopt: int | None = None) -> AsyncLease:
        """A lease of this session, renewed by itself. ``adopt``: the id of one that was transferred to this session."""
        return await AsyncLease.grant(self, ttl, adopt)

    # ---- the cluster ----

    async def barrier(self, timeout: float = 10) -> int:
        """Commits an entry of its own and returns its revision: everything before it is applied here."""
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
        if not 0 < timeout <= MAX_BARRIER_S:
            raise errors.InvalidBarrier(
                f"timeout is {timeout:g} s; it must be over 0 and at most {MAX_BARRIER_S:g}; nothing was sent",
                option="timeout",
            )
        return await self._caller.submit(Barrier(), timeout)

    async def sql(self, query: str, parameters: Sequence[Any] = (), *, timeout: float | None = None) -> Rows:
        """Ask the state and its history in SQL (DuckDB's). Read-only, linearizable: it sees all acknowledged before the call.

        A view a table, ``<fsm>_<table>``, the bundled short names (``kv``, ``locks``, ...) and ``history(revision, at, view,
        key, value)``. Raises ``Refused`` with DuckDB's message, ``TooLarge``, ``Unavailable`` when it takes longer than
        ``timeout``. The first query loads DuckDB, and reads the whole state.
        """
        return await self._ask_sql(query, parameters, None, timeout)

    def as_of(self, time: datetime | None = None, *, revision: int | None = None) -> AsyncPast:
        """The cluster as it was at a moment of its wall clock, or after a revision. No I/O: its ``sql`` asks.

        with tauraft.Cluster("/raft/a") as cluster:
            cluster.as_of(datetime(2026, 1, 27, 14, 3, tzinfo=UTC)).sql("SELECT * FROM locks")
        """
        return AsyncPast(self, _check_moment(time, revision))

    async def _ask_sql(
        self, query: str, parameters: Sequence[Any], as_of: datetime | int | None, timeout: float | None
    ) -> Rows:
        if not isinstance(query, str):
            raise TypeError(f"query must be str, not {type(query).__name__}")
        if isinstance(parameters, (str, bytes)) or not isinstance(parameters, Sequence):
            raise TypeError(f"parameters must be a list or tuple, not {type(parameters).__name__}")
        seconds = check_timeout(timeout)
        arguments = {
            "query": query,
            "parameters": to_wire(tuple(parameters)),
            "as_of": to_wire(as_of),
            "timeout": self._caller.timeout if seconds is None else seconds,
        }
        told = await self._caller.call("sql", arguments, seconds)
        rows = tuple(row for chunk in told["chunks"] for row in unpack_rows(chunk))
        return Rows(tuple(told["columns"]), rows, told["applied_index"], tuple(told.get("types", ())))

    async def status(self) -> Status:
        """What the replica this facade is attached to knows of itself and its cluster."""
        return _status_of(await self._caller.call("status", {}, None))

    async def members(self) -> tuple[Member, ...]:
        told = await self._caller.call("members", {}, None)
        return tuple(_member_of(member) for member in told)

    async def wait_for_leader(self, timeout: float | None = None) -> Member:
        """The leader, as soon as there is one. Raises ``NoLeader``."""
        seconds = check_patience(timeout)
        give_up = None if seconds is None else self.now() + seconds
        while True:
            # A linearizable round proves that there is a leader now; which one, the status says.
            left = 60.0 if give_up is None else max(0.001, min(60.0, give_up - self.now()))
            try:
                await self._caller.submit(Barrier(), left)
                leader = _status_of(await self._caller.call("status", {}, left)).leader
            except errors.SessionLost:
                raise
            except errors.Unavailable as error:
                leader = None
                if give_up is not None and self.now() >= give_up:
                    raise errors.NoLeader(f"no leader within {seconds:g} s; nothing was changed") from error
            if leader is not None:
                return leader

    # ---- the reference's thin four ----

    async def set(self, key: str, value: bytes | str, timeout: float | None = None) -> None:
        await self.kv.put(key, value, timeout=timeout)

    async def get(self, key: str, timeout: float | None = None) -> bytes | None:
        entry = await self.kv.get(key, timeout=timeout)
        return None if entry is None else entry.value

    async def delete(self, key: str, timeout: float | None = None) -> bool:
        return await self.kv.delete(key, timeout=timeout) > 0

    async def keys(self, prefix: str = "", timeout: float | None = None) -> list[str]:
        return list(await self.kv.keys(prefix, timeout=timeout))


def _check_moment(time: datetime | None, revision: int | None) -> datetime | int:
    if (time is None) == (revision is None):
        raise TypeError("as_of takes a moment, or revision=: exactly one of them")
    if revision is not None:
        if type(revision) is not int:
            raise TypeError(f"revision must be int, not {type(revision).__name__}")
        if revision < 0:
            raise errors.InvalidArgument(f"revision is {revision}; revisions start at 0", option="revision")
        return revision
    if not isinstance(time, datetime):
        raise TypeError(f"as_of takes a datetime, not {type(time).__name__}; a revision is given as revision=")
    if time.tzinfo is None:
        raise errors.InvalidArgument("the moment has no timezone; give an aware datetime, as in UTC", option="time")
    return time


def _member_of(told: Mapping[str, Any]) -> Member:
    return Member(
        peer_id=told["peer_id"],
        addresses=tuple(told["addresses"]),
        role=told["role"],
        host=told["host"],
        is_leader=told["is_leader"],
    )


def _status_of(told: Mapping[str, Any]) -> Status:
    members = tuple(_member_of(member) for member in told["members"])
    known = {field.name: told[field.name] for field in fields(Status) if field.name in told}
    known |= {
        "members": members,
        "leader": next((member for member in members if member.is_leader), None),
        "warnings": tuple(told.get("warnings", ())),
        "holder_pid": told.get("holder_pid", 0),
    }
    return Status(**known)
