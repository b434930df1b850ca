"""Gates, latches, double and cyclic barriers as callers use them, blocking and awaited, over the real apply engine."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

from tauraft import errors
from tauraft._blocking.primitives import Primitives
from tauraft.types import Owner
from tauraft_plugins.barriers import tauraft_fsms
from tauraft_plugins.rates.fsm import Rates
from tests.client.test_election_facade import all_of, end_session, on_both_loops
from tests.client.test_facade import awaited, blocking, wait_until
from tests.client.test_holds import InThread
from tests.session.machine_replica import MachineHost


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([*tauraft_fsms(), Rates])


@pytest.fixture
def cluster(host: MachineHost) -> Iterator[Primitives]:
    with blocking(host) as cluster:
        yield cluster


@pytest.fixture
def other(host: MachineHost, cluster: Primitives) -> Iterator[Primitives]:
    with blocking(host) as other:
        yield other


def test_a_gate_is_made_closed_and_opens_for_all(cluster: Primitives, other: Primitives) -> None:
    gate = cluster.gate("g")
    assert not gate.is_open()
    with pytest.raises(errors.WaitTimeout):
        gate.wait(timeout=0)
    with pytest.raises(errors.WaitTimeout):
        gate.wait(timeout=0.05)
    assert gate.info().waiters == ()
    waits = [InThread(other.gate("g").wait) for _ in range(3)]
    wait_until("they wait", lambda: len(gate.info().waiters) == 3)
    assert gate.info().waiters[0].session == other.session.id
    gate.open()
    assert [wait.value() for wait in waits] == [None] * 3
    gate.wait()
    other.gate("g").close()
    assert not gate.is_open()


def test_a_latch_opens_when_it_is_counted_down(cluster: Primitives, other: Primitives) -> None:
    latch = cluster.latch("l", 3)
    assert latch.info().left == 3
    waits = InThread(other.latch("l", 3).wait)
    wait_until("it waits", lambda: bool(latch.info().waiters))
    assert latch.count_down() == 2
    with pytest.raises(errors.WaitTimeout):
        latch.wait(0)
    assert latch.count_down(5) == 0
    waits.value()
    latch.wait()
    with pytest.raises(errors.Mismatch):
        other.latch("l", 4).wait()
    assert latch.reset() and not latch.reset()
    waits = InThread(other.latch("l", 1).wait)
    wait_until("it waits", lambda: bool(latch.info().waiters))
    latch.reset()
    with pytest.raises(errors.BrokenBarrier) as error:
        waits.value()
    assert error.value.who is None


def test_a_double_barrier_is_entered_and_left_together(cluster: Primitives, other: Primitives) -> None:
    story: list[str] = []
    is_in, may_leave = threading.Event(), threading.Event()

    def work() -> None:
        with other.double_barrier("d", 2):
            story.append("in")
            is_in.set()
            may_leave.wait(10)
            story.append("leaves")

    works = InThread(work)
    wait_until("it waits", lambda: cluster.double_barrier("d", 2).info().arrived == 1)
    assert not story
    barrier = cluster.double_barrier("d", 2)
    barrier.enter()
    assert is_in.wait(5)
    leaves = InThread(lambda: (barrier.leave(), story.append("all are out")))
    with pytest.raises(errors.NotHolder):
        leaves.value()  # another thread than the one that entered
    may_leave.set()
    barrier.leave()
    works.value()
    assert story == ["in", "leaves"]
    with pytest.raises(errors.NotHolder):
        barrier.leave()
    assert barrier.info().arrived == 0


def test_a_body_that_raises_leaves_without_waiting_for_the_others(cluster: Primitives, other: Primitives) -> None:
    enters = InThread(lambda: other.double_barrier("d", 2).enter())
    with pytest.raises(ZeroDivisionError), cluster.double_barrier("d", 2):
        raise ZeroDivisionError
    enters.value()
    wait_until("it has left", lambda: other.double_barrier("d", 2).info().arrived == 1)


def test_a_lost_party_is_named_to_who_waits(host: MachineHost, cluster: Primitives) -> None:
    doomed = blocking(host).start()
    waits = InThread(lambda: cluster.double_barrier("d", 3).enter())
    rounds = InThread(lambda: cluster.cyclic_barrier("c", 3).wait())
    lost = InThread(lambda: doomed.double_barrier("d", 3).enter())
    also_lost = InThread(lambda: doomed.cyclic_barrier("c", 3).wait())
    for info in (cluster.double_barrier("d", 3).info, cluster.cyclic_barrier("c", 3).info):
        wait_until("both wait", lambda info=info: info().arrived == 2)  # type: ignore[misc]
    session = doomed.session.id
    end_session(host, doomed)
    for told in (waits, rounds):
        with pytest.raises(errors.BrokenBarrier) as error:
            told.value()
        assert isinstance(error.value.who, Owner) and error.value.who.session == session
    for thread in (lost, also_lost):
        with pytest.raises(errors.SessionLost):
            thread.value()
    doomed.close()


def test_a_cyclic_barrier_runs_its_action_once_a_round_before_anyone_goes_on(
    cluster: Primitives, other: Primitives
) -> None:
    story: list[str] = []

    def work(of: Primitives) -> list[int]:
        barrier = of.cyclic_barrier("c", 3, lambda: story.append("action"))
        indexes = []
        for _ in range(3):
            indexes.append(barrier.wait(timeout=10))
            story.append("on")
        return indexes

    workers = [InThread(lambda of=of: work(of)) for of in (cluster, other, other)]  # type: ignore[misc]
    found = [worker.value() for worker in workers]
    for place in range(3):
        assert sorted(indexes[place] for indexes in found) == [0, 1, 2]
    assert [story.count("action"), story.count("on")] == [3, 9]
    for number in range(3):
        actions = [place for place, told in enumerate(story) if told == "action"]
        assert story[: actions[number]].count("on") >= 3 * number - 2  # nobody is a whole round ahead
        assert story[: actions[number]].count("on") <= 3 * number
    assert cluster.cyclic_barrier("c", 3).info().generation == 3


def test_an_action_that_raises_breaks_it_and_is_raised_where_it_ran(cluster: Primitives, other: Primitives) -> None:
    waits = InThread(other.cyclic_barrier("c", 2).wait)
    wait_until("it waits", lambda: cluster.cyclic_barrier("c", 2).info().arrived == 1)
    barrier = cluster.cyclic_barrier("c", 2, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        barrier.wait()
    with pytest.raises(errors.BrokenBarrier) as error:
        waits.value()
    assert error.value.who.session == cluster.session.id
    with pytest.raises(errors.BrokenBarrier):
        barrier.wait()
    barrier.reset()
    assert not barrier.info().broken


def test_a_time_out_breaks_it_for_all_but_not_one_that_does_not_wait(cluster: Primitives, other: Primitives) -> None:
    barrier = cluster.cyclic_barrier("c", 3)
    waits = InThread(other.cyclic_barrier("c", 3).wait)
    wait_until("it waits", lambda: barrier.info().arrived == 1)
    with pytest.raises(errors.WaitTimeout):
        barrier.wait(timeout=0)
    assert barrier.info().arrived == 1
    with pytest.raises(errors.WaitTimeout):
        barrier.wait(timeout=0.05)
    with pytest.raises(errors.BrokenBarrier) as error:
        waits.value()
    assert error.value.who.session == cluster.session.id
    barrier.reset()
    waits = InThread(other.cyclic_barrier("c", 3).wait)
    wait_until("it waits", lambda: barrier.info().arrived == 1)
    barrier.abort()
    with pytest.raises(errors.BrokenBarrier) as error:
        waits.value()
    assert error.value.who is None


@on_both_loops
async def test_barriers_are_awaited(host: MachineHost, sleep: Callable[[float], Awaitable[None]]) -> None:
    async with awaited(host) as cluster, awaited(host) as other:
        story: list[str] = []

        async def work(of: Any, name: str) -> None:
            async with of.double_barrier("d", 2) as barrier:
                story.append("in")
                assert (await barrier.info()).parties == 2
                await of.latch("l", 2).count_down()
            await of.latch("l", 2).wait()
            index = await of.cyclic_barrier("c", 2, lambda: story.append("action")).wait()
            story.append(f"on {index}")
            await of.gate("g").wait(5)

        await all_of(lambda: work(cluster, "a"), lambda: work(other, "b"), other.gate("g").open)
        assert story[:3] == ["in", "in", "action"]
        assert sorted(story[3:]) == ["on 0", "on 1"]


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_cancelled_wait_breaks_the_barrier_for_the_others(host: MachineHost, loop: str) -> None:
    async def cancelled(work: Callable[[], Awaitable[Any]], others_wait: Callable[[], Awaitable[Any]]) -> None:
        if loop == "trio":
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()

                async def within() -> None:
                    with scope:
                        await work()

                nursery.start_soon(within)
                nursery.start_soon(others_wait)
                while not is_ready():
                    await trio.sleep(0.005)
                scope.cancel()
        else:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(work())  # type: ignore[arg-type]
                group.create_task(others_wait())  # type: ignore[arg-type]
                while not is_ready():
                    await asyncio.sleep(0.005)
                task.cancel()

    def is_ready() -> bool:
        assert host.replica is not None
        rows = host.replica.machine._fsms["tauraft.cyclic_barriers"].barriers  # type: ignore[attr-defined]
        return "c" in rows and bool(rows["c"].arrived == 2)

    async def story() -> None:
        async with awaited(host) as cluster, awaited(host) as other:

            async def waits() -> None:
                with pytest.raises(errors.BrokenBarrier) as error:
                    await other.cyclic_barrier("c", 3).wait()
                assert error.value.who.session == cluster.session.id

            await cancelled(cluster.cyclic_barrier("c", 3).wait, waits)

    if loop == "trio":
        trio.run(story)
    else:
        asyncio.run(story())


WAITS: dict[str, Callable[[Any], Any]] = {
    "gate": lambda c: c.gate("w").wait(),
    "latch": lambda c: c.latch("w", 1).wait(),
    "double": lambda c: c.double_barrier("w", 2).enter(),
    "cyclic": lambda c: c.cyclic_barrier("w", 2).wait(),
    "rate": lambda c: c.rate_limit("w", 0.001, 1).acquire(),
}


def tickets(host: MachineHost) -> int:
    assert host.replica is not None
    return sum(len(session.tickets) for session in host.replica.machine.sessions)


@pytest.mark.parametrize("kind", WAITS)
def test_a_wait_cancelled_by_either_loop_or_interrupted_is_withdrawn(host: MachineHost, kind: str) -> None:
    wait = WAITS[kind]

    async def of_asyncio() -> None:
        async with awaited(host) as cluster:
            task = asyncio.ensure_future(wait(cluster))
            while not tickets(host):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(1):
                while tickets(host):
                    await asyncio.sleep(0.001)
            if kind == "cyclic":
                await cluster.cyclic_barrier("w", 2).reset()

    async def of_trio() -> None:
        async with awaited(host) as cluster, trio.open_nursery() as nursery:
            nursery.start_soon(wait, cluster)
            while not tickets(host):
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        assert not tickets(host)

    with blocking(host) as keeps:
        if kind == "rate":
            keeps.rate_limit("w", 0.001, 1).acquire()
        asyncio.run(of_asyncio())
        trio.run(of_trio)
        if kind == "cyclic":
            keeps.cyclic_barrier("w", 2).reset()

        def interrupt() -> None:
            wait_until("it waits", lambda: tickets(host) > 0)
            os.kill(os.getpid(), signal.SIGINT)

        interrupts = InThread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            wait(keeps)
        interrupts.value()
        wait_until("it is withdrawn", lambda: not tickets(host), within=1)


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda c: c.gate(""), errors.InvalidArgument),
        (lambda c: c.gate(5), TypeError),
        (lambda c: c.gate("g").wait(-1), errors.InvalidTimeout),
        (lambda c: c.latch("l", 0), errors.InvalidArgument),
        (lambda c: c.latch("l", "3"), TypeError),
        (lambda c: c.latch("l", 3).count_down(0), errors.InvalidArgument),
        (lambda c: c.double_barrier("d", 0), errors.InvalidArgument),
        (lambda c: c.double_barrier("d", 2, on_loss="panic"), errors.InvalidArgument),
        (lambda c: c.double_barrier("d", 2).leave(), errors.NotHolder),
        (lambda c: c.cyclic_barrier("c", 1.5), TypeError),
        (lambda c: c.cyclic_barrier("c", 2, "action"), TypeError),
        (lambda c: c.cyclic_barrier("c", 2, on_loss=None), TypeError),
        (lambda c: c.cyclic_barrier("c", 2).wait(timeout="1"), TypeError),
    ],
)
def test_wrong_use_is_refused_before_anything_is_sent(
    cluster: Primitives, host: MachineHost, use: Callable[[Primitives], Any], error: type[Exception]
) -> None:
    assert host.replica is not None
    applied = host.replica.applied_index
    with pytest.raises(error):
        use(cluster)
    assert host.replica.applied_index == applied


def test_an_action_that_would_have_to_be_awaited_is_refused(cluster: Primitives) -> None:
    async def action() -> None: ...

    with pytest.raises(TypeError, match="not awaited"):
        cluster.cyclic_barrier("c", 2, action)
