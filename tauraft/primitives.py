"""What every facade offers: ``AsyncPrimitives``, the base of ``AsyncCluster`` and ``AsyncClient``.

A facade is an ``AsyncHolder`` (``tauraft.handle``): it submits, queries and watches over holds.  Everything else is sugar:
``cluster.lock("x")`` is ``AsyncLock(cluster, "x")``, so a third party's handle stands where ours do.  It owns a
``AsyncCaller``, which is its only way into the engine; no method here does I/O of its own.

The blocking twin, ``tauraft/_blocking/primitives.py``, is generated from this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from tauraft import errors
from tauraft.caller import AsyncCaller, EngineTenure
from tauraft.fsm import Command, Query, TableName
from tauraft.handle import AsyncSignal, AsyncWatch, Reminder, check_patience, check_timeout
from tauraft.system.messages import Barrier
from tauraft.types import Consistency, Member, Rows, Status
from tauraft.watch import Frame, State, watch_request
from tauraft_primitives.counters.handle import AsyncCounter, AsyncIds
from tauraft_primitives.fencing.handle import AsyncFenced
from tauraft_primitives.kv.handle import AsyncKV
from tauraft_primitives.locks.handle import AsyncLock, AsyncLockAll
from tauraft_primitives.queues.handle import AsyncQueue
from tauraft_primitives.rwlocks.handle import AsyncRwLock
from tauraft_primitives.semaphores.handle import AsyncSemaphore

R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")

MAX_BARRIER_S = 30.0


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


class AsyncPrimitives:
    """Submit commands, ask queries, and use every primitive. Started by ``async with`` or ``start()``."""

    def __init__(self, namespace: str, caller: AsyncCaller) -> None:
        self.namespace = namespace
        self._caller = caller
        self._kv: AsyncKV | None = None

    # ---- life ----

    async def start(self, timeout: float | None = None) -> Self:
        """Returns when it can serve: a leader is known and the session is open. Raises ``NoLeader`` when time runs out."""
        await self._caller.start(check_patience(timeout))
        return self

    async def close(self, timeout: float | None = None) -> None:
        """Ends the session, so that all it holds is free at once, then leaves. Twice is fine."""
        await self._caller.close(check_patience(timeout))

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

    def fenced(self, token: int) -> AsyncKV:
        """KV whose writes are refused (``NotHolder``) unless the hold of ``token`` still holds, each in one command."""
        return AsyncKV(AsyncFenced(self, token))

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
        """Rows of the projection, which has reached the index of the call. Read-only."""
        if not isinstance(query, str):
            raise TypeError(f"query must be str, not {type(query).__name__}")
        arguments = {"query": query, "parameters": list(parameters)}
        told = await self._caller.call("sql", arguments, check_timeout(timeout))
        return Rows(tuple(told["columns"]), tuple(tuple(row) for row in told["rows"]), told["applied_index"])

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
