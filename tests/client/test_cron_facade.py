"""Cron functions and schedules as callers hold them: on threads, in asyncio and in trio, over the real apply engine in one process."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import trio

import tauraft
from tauraft import errors
from tauraft.testing import MemoryCluster
from tauraft_plugins.cron.fsm import Cron
from tauraft_primitives.cron.messages import Finish, Start
from tests.client.test_facade import awaited, blocking, wait_until
from tests.session.machine_replica import MachineHost


@pytest.fixture
def memory() -> Iterator[MemoryCluster]:
    cluster = MemoryCluster()
    yield cluster
    cluster.close()


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([Cron])


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """Runs a story on either loop."""
    return trio.run if request.param == "trio" else lambda story: asyncio.run(story())


def states(cluster: Any, job: str = "job") -> list[str]:
    return [row.state for row in cluster.schedules.history(job)]


# ---- blocking ----


def test_a_function_runs_once_a_tick_on_a_thread_of_its_own(memory: MemoryCluster) -> None:
    ticks: list[tuple[tauraft.Tick, str]] = []

    def work(tick: tauraft.Tick) -> None:
        tick.check()
        ticks.append((tick, threading.current_thread().name))

    assert memory.cron("@every 10s", name="job")(work) is work, "returned unchanged"
    memory.start()
    (due,) = memory.schedules.next("job")
    for count in range(1, 4):
        memory.advance(10)
        wait_until("it ran", lambda count=count: len(ticks) == count)  # type: ignore[misc]
        wait_until("it was reported", lambda count=count: states(memory) == ["OK"] * count)  # type: ignore[misc]
    assert [tick.scheduled_at for tick, _ in ticks] == [due + timedelta(seconds=10 * place) for place in range(3)]
    assert {(tick.job, tick.attempt) for tick, _ in ticks} == {("job", 1)}
    tokens = [tick.token for tick, _ in ticks]
    assert tokens == sorted(set(tokens))
    assert not any("engine" in name or name == "MainThread" for _, name in ticks)
    assert [row.token for row in memory.schedules.history("job", 2)] == tokens[:0:-1]


def test_an_exception_is_failed_with_its_text_and_so_is_an_exit(memory: MemoryCluster) -> None:
    @memory.cron("@every 1d", name="raises")
    def raises(tick: tauraft.Tick) -> None:
        raise ValueError("text")

    @memory.cron("@every 1d", name="exits")
    def exits(tick: tauraft.Tick) -> None:
        sys.exit("gone")

    with memory:
        for name, error in (
            ("raises", "ValueError: text"),
            ("exits", "RuntimeError: the function left with SystemExit: gone"),
        ):
            memory.schedules.trigger(name)
            wait_until("it was reported", lambda name=name: states(memory, name) == ["FAILED"])  # type: ignore[misc]
            assert memory.schedules.history(name)[0].error == error


@pytest.mark.parametrize(
    ("spec", "timezone", "field"),
    [
        ("61 * * * *", "UTC", "minute"),
        ("* 24 * * *", "UTC", "hour"),
        ("* * 0 * *", "UTC", "day-of-month"),
        ("* * * 13 *", "UTC", "month"),
        ("* * * * 8", "UTC", "day-of-week"),
        ("60 * * * * *", "UTC", "second"),
        ("*/0 * * * *", "UTC", "minute"),
        ("* * * *", "UTC", "spec"),
        ("never", "UTC", "spec"),
        ("@reboot", "UTC", "spec"),
        ("@dayly", "UTC", "spec"),
        ("0 0 30 2 *", "UTC", "day-of-month"),
        ("0 0 31 2,4,6,9,11 *", "UTC", "day-of-month"),
        ("@every 0.5s", "UTC", "every"),
        ("@every soon", "UTC", "every"),
        ("@every", "UTC", "every"),
        ("0 0 * * *", "Europe/Berlln", "timezone"),
        ("0 0 * * *", "../../etc/passwd", "timezone"),
        (datetime(2030, 1, 1), "UTC", "spec"),
        (datetime(1930, 1, 1, tzinfo=UTC), "UTC", "spec"),
    ],
)
def test_a_bad_spec_names_its_field_before_anything_is_sent(
    memory: MemoryCluster, spec: Any, timezone: str, field: str
) -> None:
    with pytest.raises(tauraft.InvalidSpec) as caught:
        memory.cron(spec, name="job", timezone=timezone)
    assert (caught.value.field, caught.value.outcome) == (field, "not-applied")
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("misfire", "never", errors.InvalidArgument),
        ("overlap", "maybe", errors.InvalidArgument),
        ("delivery", "once", errors.InvalidArgument),
        ("gap", "x", errors.InvalidArgument),
        ("repeat", "thrice", errors.InvalidArgument),
        ("retries", -1, errors.InvalidArgument),
        ("retries", 1.5, TypeError),
        ("backoff", -1, errors.InvalidArgument),
        ("timeout", 0.01, errors.InvalidArgument),
        ("timeout", "5", TypeError),
        ("grace", -1, errors.InvalidArgument),
        ("jitter", float("nan"), errors.InvalidArgument),
        ("run_on", "", errors.InvalidArgument),
        ("timezone", None, TypeError),
    ],
)
def test_a_bad_option_is_named_before_anything_is_sent(
    memory: MemoryCluster, option: str, value: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=option) as caught:
        memory.cron("@daily", name="job", **{option: value})
    if isinstance(caught.value, errors.InvalidArgument):
        assert caught.value.option == option


def test_what_cannot_be_run_is_refused_where_it_is_written(memory: MemoryCluster) -> None:
    async def coroutine(tick: tauraft.Tick) -> None: ...

    def plain(tick: tauraft.Tick) -> None: ...

    class Called:
        async def __call__(self, tick: tauraft.Tick) -> None: ...

    for wrong in (coroutine, Called(), "work"):
        with pytest.raises(TypeError):
            memory.cron("@daily", name="job")(wrong)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        memory.cron(5, name="job")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument):
        memory.cron("@daily", name="")
    with pytest.raises(errors.InvalidArgument, match="at_most_once"):
        memory.cron("@daily", name="job", delivery="at_most_once", retries=1)
    with pytest.raises(errors.InvalidArgument, match="declared elsewhere"):
        memory.cron(None, name="job", retries=1)
    memory.cron("@daily", name="job")(plain)
    with pytest.raises(errors.InvalidArgument, match="already"):
        memory.cron("@daily", name="job")(plain)


def test_what_was_declared_by_put_is_run_by_a_function_without_a_spec(memory: MemoryCluster) -> None:
    ran = threading.Event()
    with memory:
        info = memory.schedules.put("job", "30 2 * * *", timezone="Europe/Berlin", retries=2)
        assert (info.name, info.spec, info.timezone, info.version) == ("job", "30 2 * * *", "Europe/Berlin", 1)
        memory.cron(None, name="job")(lambda tick: ran.set())
        memory.schedules.trigger("job")
        assert ran.wait(5), "a function may also be added after the start"
        assert memory.schedules.get("job") == info


def test_jobs_are_listed_paused_resumed_triggered_and_deleted(memory: MemoryCluster) -> None:
    with memory:
        schedules = memory.schedules
        for name in ("b", "a"):
            schedules.put(name, "@every 1h")
        assert [info.name for info in schedules.list()] == ["a", "b"]
        schedules.pause("a")
        paused = schedules.get("a")
        assert paused is not None and paused.paused and paused.next_at is None
        schedules.resume("a")
        resumed = schedules.get("a")
        assert resumed is not None and not resumed.paused and resumed.next_at == schedules.next("a")[0]
        later = schedules.next("a", 3)
        assert [after - before for before, after in pairwise(later)] == [timedelta(hours=1)] * 2
        row = schedules.trigger("a")
        assert (row.state, row.reason) == ("FIRED", "triggered")
        assert schedules.history("a") == [row]
        assert schedules.delete("a") is True
        assert schedules.delete("a") is False
        assert schedules.get("a") is None
        for call in (schedules.pause, schedules.resume, schedules.trigger, schedules.next):
            with pytest.raises(errors.Refused, match="no job"):
                call("a")


def test_a_run_past_its_time_out_knows_it_before_the_cluster_says_so(memory: MemoryCluster) -> None:
    began, may_end = threading.Event(), threading.Event()
    seen: list[Any] = []

    @memory.cron("@every 1d", name="job", timeout=5)
    def job(tick: tauraft.Tick) -> None:
        began.set()
        seen.append(tick)
        may_end.wait(10)

    with memory:
        memory.schedules.trigger("job")
        assert began.wait(5)
        memory.advance(4.8)
        assert not seen[0].lost.is_set()
        memory.advance(0.15)
        assert seen[0].lost.is_set()
        with pytest.raises(tauraft.LockLost):
            seen[0].check()
        assert states(memory) == ["RUNNING"]
        memory.advance(0.1)
        (row,) = memory.schedules.history("job")
        assert (row.state, row.error) == ("FAILED", "TimeoutError: it ran longer than 5 s")
        may_end.set()


def test_closing_tells_what_runs_and_waits_for_it(memory: MemoryCluster) -> None:
    began, ended = threading.Event(), threading.Event()

    @memory.cron("@every 1d", name="job")
    def job(tick: tauraft.Tick) -> None:
        began.set()
        assert tick.lost.wait(10)
        ended.set()

    with memory:
        memory.schedules.trigger("job")
        assert began.wait(5)
    assert ended.is_set()


def test_a_run_whose_start_is_not_certain_does_not_run_and_is_given_back(host: MachineHost) -> None:
    """SAFETY 22."""
    ran: list[int] = []
    with blocking(host) as cluster:
        cluster._caller._plain_ns = 200_000_000
        replica = host.replica
        assert replica is not None
        propose, held = replica.propose, []

        def hold_first_start(items: Any) -> None:
            for item in items:
                if not held and isinstance(item.message, Start):
                    held.append(item)
                elif not (held and isinstance(item.message, Start) and item.sequence == held[0].sequence):
                    propose([item])

        replica.propose = hold_first_start  # type: ignore[method-assign]
        cluster.cron("@every 1d", name="job", delivery="at_most_once")(lambda tick: ran.append(tick.attempt))
        cluster.schedules.trigger("job")
        wait_until("it has run once, the second time it was given", lambda: states(cluster) == ["OK"])
        assert held
        cluster._caller.engine.post(lambda _: propose(held), None)  # the late copy
        assert cluster.schedules.history("job")[0].attempts == 1
    assert ran == [1]


def test_how_a_run_ended_is_said_until_it_is_heard(host: MachineHost) -> None:
    with blocking(host) as cluster:
        cluster._caller._plain_ns = 100_000_000
        replica = host.replica
        assert replica is not None
        propose, silence = replica.propose, threading.Event()

        def lose_the_first(items: Any) -> None:
            for item in items:
                if isinstance(item.message, Finish) and not silence.is_set():
                    silence.set()
                    replica.suspension = None
                else:
                    propose([item])

        replica.propose = lose_the_first  # type: ignore[method-assign]
        cluster.cron("@every 1d", name="job")(lambda tick: None)
        cluster.schedules.trigger("job")
        wait_until("it was heard", lambda: states(cluster) == ["OK"])
        assert silence.is_set()


# ---- asyncio and trio ----


def test_a_coroutine_function_is_a_task_and_a_plain_one_runs_on_a_thread(
    host: MachineHost, run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
) -> None:
    async def story() -> None:
        where: dict[str, int] = {}
        cluster = awaited(host)

        @cluster.cron("@every 1d", name="coroutine")
        async def coroutine(tick: tauraft.AsyncTick) -> None:
            tick.check()
            where["coroutine"] = threading.get_ident()

        @cluster.cron("@every 1d", name="plain")
        def plain(tick: tauraft.AsyncTick) -> None:
            where["plain"] = threading.get_ident()

        @cluster.cron("@every 1d", name="bad")
        async def bad(tick: tauraft.AsyncTick) -> None:
            raise ValueError("text")

        async with cluster:
            for name in ("coroutine", "plain", "bad"):
                await cluster.schedules.trigger(name)
                await over(cluster, name)
            assert where["coroutine"] == threading.get_ident() != where["plain"]
            (row,) = await cluster.schedules.history("bad")
            assert (row.state, row.error) == ("FAILED", "ValueError: text")
            assert await cluster.schedules.next("bad")

    run(story)


def test_a_coroutine_is_cancelled_when_it_is_replaced_or_past_its_time_out(
    host: MachineHost, run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
) -> None:
    async def story() -> None:
        import anyio

        cancelled: list[str] = []
        began = {"replaced": anyio.Event(), "late": anyio.Event()}
        cluster = awaited(host)

        async def work(tick: tauraft.AsyncTick) -> None:
            if cancelled and tick.job == "replaced":
                return
            began[tick.job].set()
            try:
                await anyio.sleep(60)
            finally:
                cancelled.append(tick.job)

        cluster.cron("@every 1d", name="replaced", overlap="replace")(work)
        cluster.cron("@every 1d", name="late", timeout=0.3)(work)
        async with cluster:
            await cluster.schedules.trigger("replaced")
            await began["replaced"].wait()
            await cluster.schedules.trigger("replaced")
            await over(cluster, "replaced")
            rows = await cluster.schedules.history("replaced")
            assert sorted((row.state, row.reason) for row in rows) == [("LOST", "replaced"), ("OK", "triggered")]
            await cluster.schedules.trigger("late")
            await over(cluster, "late")
            (row,) = await cluster.schedules.history("late")
            assert (row.state, row.error) == ("FAILED", "TimeoutError: it ran longer than 0.3 s")
        assert cancelled == ["replaced", "late"]

    run(story)


def test_closing_cancels_what_runs_and_nothing_runs_afterwards(
    host: MachineHost, run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
) -> None:
    async def story() -> None:
        import anyio

        began, cancelled = anyio.Event(), []
        cluster = awaited(host)

        @cluster.cron("@every 1d", name="job")
        async def job(tick: tauraft.AsyncTick) -> None:
            began.set()
            try:
                await anyio.sleep(60)
            finally:
                cancelled.append(tick.attempt)

        async with cluster:
            await cluster.schedules.trigger("job")
            await began.wait()
        assert cancelled == [1]

    run(story)
    assert host.replica is not None
    fsm = host.replica.machine._fsms["tauraft.cron"]
    assert not (fsm.runners or fsm.runs or fsm.waiting)  # type: ignore[attr-defined]


async def over(cluster: Any, job: str) -> None:
    """Waits until the newest tick of the job has come to its end."""
    import anyio

    with anyio.fail_after(10):
        while True:
            rows = await cluster.schedules.history(job)
            if all(row.finished is not None for row in rows):
                return
            await anyio.sleep(0.01)


def test_a_cluster_may_be_closed_from_a_function_that_it_runs(
    host: MachineHost, run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
) -> None:
    async def story() -> None:
        import anyio

        cluster = await awaited(host).start()

        @cluster.cron("@every 1d", name="job")
        async def job(tick: tauraft.AsyncTick) -> None:
            await cluster.close()

        with anyio.fail_after(10):
            await cluster.schedules.trigger("job")  # what was added is there
            while cluster._caller.is_open:
                await anyio.sleep(0.01)

    run(story)


def test_a_blocking_cluster_may_be_closed_from_a_function_that_it_runs_and_twice(memory: MemoryCluster) -> None:
    closed = threading.Event()

    @memory.cron("@every 1d", name="job")
    def job(tick: tauraft.Tick) -> None:
        tauraft.Cluster.close(memory)
        closed.set()

    memory.start()
    memory.schedules.trigger("job")
    assert closed.wait(5)
    memory.close()


def test_a_function_whose_declaration_is_refused_is_not_added() -> None:
    with blocking(MachineHost([])) as cluster:
        for _ in range(2):
            with pytest.raises(errors.InvalidCommand, match="no such plugin"):
                cluster.cron("@daily", name="job")(lambda tick: None)
