"""Cron as a caller holds it: ``AsyncSchedules`` for the jobs of a cluster, ``AsyncCron`` for the functions that this process runs.

``AsyncCron`` belongs to a facade.  It declares its jobs and registers when that starts, then waits for a tick, one command at a time, and runs
each beside the next wait: coroutine functions as tasks, others on worker threads, never on the engine.  Before a function runs its ``Start``
must have been answered; where that is not certain it does not run, and the tick is given back (SAFETY 22).  How it ended is
said until the cluster has heard it, or the session is over.

A run is as safe as its *tenure* (``tauraft.handle``): with the session, with its time-out, and with ``overlap="replace"`` it is counted
out before the cluster gives the tick to another; ``AsyncTick.lost`` says so, and a coroutine is cancelled.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from tauraft import errors
from tauraft.fsm import Command, Query
from tauraft.handle import (
    AsyncCalls,
    AsyncHere,
    AsyncHolder,
    AsyncLossGuard,
    AsyncSignal,
    AsyncTasks,
    Tenure,
    check_name,
)
from tauraft.types import JobInfo, TickRow
from tauraft_primitives.checks import check_count
from tauraft_primitives.cron.messages import (
    MAX_ERROR_BYTES,
    MAX_PAGE,
    Assigned,
    AwaitStop,
    Declare,
    Delete,
    Delivery,
    Finish,
    Gap,
    GetJob,
    GiveBack,
    History,
    ListJobs,
    Misfire,
    NextTicks,
    Overlap,
    Pause,
    Policy,
    Register,
    Repeat,
    Serve,
    Start,
    Trigger,
)
from tauraft_primitives.cron.specs import read_spec

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

logger: Final = logging.getLogger("tauraft.cron")
MAX_AT_ONCE: Final = 100  # ticks of this process; the next one is not asked for before one of them has ended
RETRY_S: Final = 0.5


class AsyncTick:
    """One tick, as its function gets it. ``token`` fences: give it to whatever the function writes to.

    ``scheduled_at``: when it was due, whatever the time is now. ``attempt`` is 1 the first time. ``lost`` is set when this run no longer counts:
    the session was lost, the time-out is over, another tick took its place.
    """

    def __init__(self, assigned: Assigned, tenure: Tenure) -> None:
        self.job = assigned.job
        self.scheduled_at = assigned.scheduled_at
        self.token = assigned.token
        self.attempt = assigned.attempt
        self.lost = AsyncSignal(tenure.state)
        self._tenure = tenure

    def check(self) -> None:
        """Local, no round trip. Raises ``LockLost`` when the run no longer counts; a long function looks now and then."""
        if self._tenure.is_lost:
            raise errors.LockLost(
                f"the run {self.token} of job {self.job!r} no longer counts: another may run by now; stop",
                token=self.token,
            )


class AsyncSchedules:
    """The jobs of a cluster, and what became of their ticks. Made without I/O; may be shared by tasks and threads.

    ``cron``: the functions of the same facade, whose declarations come first.
    """

    def __init__(self, holder: AsyncHolder, cron: AsyncCron | None = None) -> None:
        self._holder = holder
        self._cron = cron

    async def put(
        self,
        name: str,
        spec: str | datetime,
        *,
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
    ) -> JobInfo:
        """Declare a job, or change it; processes run it that have ``cluster.cron(None, name=...)``. Raises ``InvalidSpec``.

        The options are those of ``cluster.cron``. Saying the same again changes nothing.
        """
        policy = Policy(
            run_on, delivery, misfire, grace, overlap, retries, backoff, timeout, jitter, gap, repeat
        )  # fmt: skip
        return await self._do(Declare(name, read_spec(spec, timezone), policy))

    async def get(self, name: str) -> JobInfo | None:
        """None: there is no such job."""
        return await self._ask(GetJob(name))

    async def list(self) -> Sequence[JobInfo]:
        """All jobs, by name."""
        found: list[JobInfo] = []
        while True:
            page = await self._ask(ListJobs(found[-1].name if found else "", MAX_PAGE))
            found += page
            if len(page) < MAX_PAGE:
                return found

    async def pause(self, name: str) -> None:
        """Nothing is due until ``resume``, and what would have been is not made up for. What runs goes on. Raises ``Refused``."""
        await self._do(Pause(name, True))

    async def resume(self, name: str) -> None:
        """Raises ``Refused`` where there is no such job."""
        await self._do(Pause(name, False))

    async def trigger(self, name: str) -> TickRow:
        """One tick now, besides the schedule; ``overlap`` holds for it too. Raises ``Refused``."""
        return await self._do(Trigger(name))

    async def delete(self, name: str) -> bool:
        """What runs goes on to its end, and the ledger keeps its rows. False: there was no such job."""
        return await self._do(Delete(name))

    async def next(self, name: str, n: int = 1) -> Sequence[datetime]:
        """The next ``n`` moments it is due at, before jitter; fewer where there are no more. Raises ``Refused``."""
        return await self._ask(NextTicks(name, n))

    async def history(self, name: str, n: int = 100) -> Sequence[TickRow]:
        """Its last ``n`` ticks, newest first; also of a job that was deleted."""
        check_count(n, "n", 1_000_000)
        found: list[TickRow] = []
        before: int | None = None
        while True:
            page = await self._ask(History(name, min(n - len(found), MAX_PAGE), before))
            found += page
            if len(page) < MAX_PAGE or len(found) == n:
                return found
            before = _micros(found[-1].scheduled_at)

    async def _do(self, command: Command[R]) -> R:
        if self._cron is not None:
            await self._cron.settled()
        return await self._holder.submit(command)

    async def _ask(self, query: Query[R]) -> R:
        if self._cron is not None:
            await self._cron.settled()
        return await self._holder.query(query)


class AsyncCron:
    """The cron functions of one facade, and what runs them."""

    def __init__(self, holder: AsyncHolder) -> None:
        self._holder = holder
        self._functions: dict[str, Callable[..., Any]] = {}
        self._undeclared: dict[str, Declare | None] = {}
        self._live: dict[Tenure, int] = {}  # and the task or thread that runs it
        self._tasks = AsyncTasks()
        self._has_begun = False
        self._serves = False

    def job(self, spec: str | datetime | None, name: str, timezone: str, policy: Policy) -> Callable[[F], F]:
        """See ``cluster.cron``. Reads and checks all of it here."""
        check_name(name)
        if spec is None and (policy != Policy() or timezone != "UTC"):
            raise errors.InvalidArgument(
                f"job {name!r} is declared elsewhere (spec=None), and so are its options; nothing was sent",
                option="spec",
            )
        declare = None if spec is None else Declare(name, read_spec(spec, timezone), policy)

        def decorate(function: F) -> F:
            AsyncCalls.check(function)
            if name in self._functions:
                raise errors.InvalidArgument(f"this process has a function for job {name!r} already", option="name")
            self._functions[name] = function
            self._undeclared[name] = declare
            if self._has_begun:
                try:
                    self._tasks.soon(self._join)
                except BaseException:
                    del self._functions[name]
                    raise
            return function

        return decorate

    async def begin(self) -> None:
        """The facade has started. Raises what a declaration is refused with."""
        self._has_begun = True
        if self._functions:
            await self._join()

    async def settled(self) -> None:
        """What was added after the start is declared."""
        await self._tasks.settled()

    def stop(self) -> None:
        """The facade is about to close: no tick is begun any more, those that run are told."""
        self._tasks.stop()
        here = AsyncHere.scope()
        for tenure, where in list(self._live.items()):
            try:
                if where != here:  # a function that closes its own cluster must get to do so
                    tenure.lose()
            except errors.Shutdown:
                pass  # it has closed already, or this is a fork's child, whose runs are its parent's

    async def ended(self, patience: float) -> None:
        """The facade has closed: wait for what still runs."""
        await self._tasks.wait(patience)

    async def _join(self) -> None:
        """Declare what was not yet, and say what this process runs from now on."""
        holder = self._holder
        undeclared, self._undeclared = self._undeclared, {}
        for declare in undeclared.values():
            if declare is not None:
                await holder.submit(declare)
        jobs: tuple[str, ...] = ()
        while jobs != tuple(sorted(self._functions)):  # another may have joined meanwhile
            jobs = tuple(sorted(self._functions))
            await holder.submit(Register(jobs, *holder.whoami()))
        if not self._serves:
            self._serves = True
            self._tasks.start(self._serve)

    async def _serve(self) -> None:
        while not self._tasks.is_closed:
            try:
                replica, is_own = self._holder.place()
                assigned = await self._holder.submit(Serve(replica, is_own))
            except errors.SessionLost as lost:
                logger.error("cron functions of this process run no more: %s", lost)
                return
            except errors.Shutdown:
                return
            except errors.TauraftError as error:
                logger.warning("cannot ask for ticks at this moment: %s", error)
                await self._tasks.pause(RETRY_S)
                continue
            if self._tasks.count > MAX_AT_ONCE:
                await self._run(assigned)
            else:
                self._tasks.start(self._run, assigned)

    async def _run(self, assigned: Assigned) -> None:
        holder, token = self._holder, assigned.token
        started = holder.now()
        try:
            await holder.submit(Start(token))
        except errors.Refused:
            return  # it is another's by now
        except errors.TauraftError as error:
            # It may have been done: then the cluster believes that it runs.
            logger.warning("a tick of job %r is given back, not run: %s", assigned.job, error)
            holder.submit_soon(GiveBack(token))
            return
        except BaseException:
            holder.submit_soon(GiveBack(token))
            raise
        tenure = holder.tenure(ttl=assigned.timeout, started=started, renewal=None)
        if assigned.may_be_stopped:
            tenure.lose_when(AwaitStop(token))
        self._live[tenure] = AsyncHere.scope()
        try:
            failure = await self._call(assigned, AsyncTick(assigned, tenure), tenure)
        finally:
            del self._live[tenure]
            tenure.end()
        await self._report(assigned, Finish(token, failure))

    async def _call(self, assigned: Assigned, tick: AsyncTick, tenure: Tenure) -> str | None:
        """Runs the function. What it failed with."""
        guard = AsyncLossGuard(tenure)
        try:
            with guard:
                await AsyncCalls.of(self._functions[assigned.job], tick)
        except Exception as error:
            logger.exception("job %r failed", assigned.job)
            return _in_words(error)
        if not guard.was_cut:
            return None
        if assigned.timeout is not None and not self._tasks.is_closed:
            return f"TimeoutError: it ran longer than {assigned.timeout:g} s"
        return "LockLost: it no longer counted, and was cancelled"

    async def _report(self, assigned: Assigned, finish: Finish) -> None:
        try:
            await self._holder.submit(finish)
        except errors.Refused as refused:
            logger.warning("how a run of job %r ended does not count: %s", assigned.job, refused)
        except errors.SessionLost:
            pass  # the cluster has counted it out; whoever serves says so
        except errors.Shutdown:
            pass
        except errors.TauraftError:
            self._holder.submit_soon(finish)


def _in_words(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    return text.encode(errors="replace")[:MAX_ERROR_BYTES].decode(errors="ignore")


def _micros(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000 + at.microsecond
