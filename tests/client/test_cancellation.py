"""Nothing stays held, wherever whoever takes a hold is interrupted: at each await of asyncio and trio, at each line of a thread.

Systematic: the same use is run again and again, interrupted one step later each time, until it comes to its end
uninterrupted.  After each the hold is free within a second: another session takes it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from itertools import count
from linecache import getline
from types import CodeType, FrameType
from typing import Any

import anyio
import pytest
import trio

from tauraft import errors
from tauraft._blocking.primitives import Primitives
from tauraft.primitives import AsyncPrimitives
from tauraft_plugins.barriers.doubles import DoubleBarriers
from tauraft_plugins.fencing.fsm import HOLDERS
from tauraft_primitives.partitions.handle import AsyncPartitioner
from tests.client.test_facade import awaited, blocking, wait_until
from tests.session.machine_replica import MachineHost

MAX_STEPS = 3_000


def leading(cluster: Any, name: str = "e") -> Any:
    block = cluster.leadership(name)
    block.acquire = cluster.election(name).campaign
    return block


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([*HOLDERS, DoubleBarriers])


def meeting(cluster: Any) -> Any:
    """Of one party: who stayed in would keep the next round out."""
    barrier = cluster.double_barrier("d", 1)
    barrier.release = barrier.leave
    if isinstance(cluster, Primitives):

        def acquire(timeout: float) -> Any:
            barrier.enter(timeout)
            return barrier
    else:

        async def acquire(timeout: float) -> Any:
            await barrier.enter(timeout)
            return barrier

    barrier.acquire = acquire
    return barrier


class Steps:
    """Something of ours that is no block by itself, as one: ``enter`` and ``leave`` give what is called or awaited."""

    def __init__(self, enter: Callable[[Any], Any], leave: Callable[[Any], Any] = lambda entered: None) -> None:
        self._enter, self._leave = enter, leave
        self._entered: Any = None

    def __enter__(self) -> Any:
        self._entered = self._enter(None)
        return self._entered

    def __exit__(self, *exc: object) -> None:
        self._leave(exc)

    async def __aenter__(self) -> Any:
        self._entered = await self._enter(None)
        return self._entered

    async def __aexit__(self, *exc: object) -> None:
        left = self._leave(exc)
        if left is not None:
            await left

    def acquire(self, timeout: float) -> Any:
        return self._enter(timeout)

    def release(self) -> Any:
        return self._leave((None, None, None))


names = count()


def doing(cluster: Any, *, again: bool = False) -> Any:
    """``once``: what was interrupted is done by another at once. A name each time, since what is done is done."""
    if not again:
        next(names)
    once = cluster.once(f"once {names!r}")
    if isinstance(cluster, Primitives):

        def run(timeout: float | None) -> Any:
            once.run(lambda turn: b"", timeout=timeout)
            return Steps(lambda timeout: None)
    else:

        async def run(timeout: float | None) -> Any:
            async def work(turn: object) -> bytes:
                return b""

            async def nothing() -> None: ...

            await once.run(work, timeout=timeout)
            return Steps(lambda timeout: nothing(), lambda exc: nothing())

    return Steps(run)


class Joining:
    """Joins when it is entered, where it may be interrupted."""

    def __init__(self, cluster: Primitives) -> None:
        self._group = cluster.group("g")

    def __enter__(self) -> None:
        self._member = self._group._join(b"", "me")  # without what makes it awaitable in the async form

    def __exit__(self, *exc: Any) -> None:
        self._member.__exit__(*exc)


def joining(cluster: Any, *, alone: bool = False) -> Any:
    """A member of an id of its own: who stayed in would keep the next one out."""
    if not alone and isinstance(cluster, Primitives):
        return Joining(cluster)
    if not alone:
        return cluster.group("g").join(id="me")
    if isinstance(cluster, Primitives):
        return Steps(lambda timeout: without_member(cluster))
    return Steps(lambda timeout: awaited_without_member(cluster))


class Sharing:
    """A worker joins, takes the only partition, gives it back and leaves: what stayed would be nobody else's."""

    def __init__(self, cluster: Any) -> None:
        self._mine = cluster.partitioner("p", 1)
        self._partition: Any = None

    def __enter__(self) -> None:
        self._mine.__enter__()
        try:
            self._partition = self._mine.next().__enter__()
        except BaseException as error:
            self._mine.__exit__(type(error), error, None)
            raise

    def __exit__(self, *exc: Any) -> None:
        try:
            self._partition.__exit__(*exc)
        finally:
            self._mine.__exit__(*exc)

    async def __aenter__(self) -> None:
        await self._mine.__aenter__()
        try:
            self._partition = await (await self._mine.next()).__aenter__()
        except BaseException as error:
            await self._mine.__aexit__(type(error), error, None)
            raise

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._partition.__aexit__(*exc)
        finally:
            await self._mine.__aexit__(*exc)

    def acquire(self, timeout: float) -> Any:
        """All of it, as another has it when nothing stayed behind."""
        return self._taken() if isinstance(self._mine, AsyncPartitioner) else self._taken_blocking()

    def _taken_blocking(self) -> Any:
        wait_until("nobody works", lambda: not self._mine.info().workers, 1)
        return Steps(lambda timeout: None)

    async def _taken(self) -> Any:
        async def nothing() -> None: ...

        with anyio.fail_after(1):
            while (await self._mine.info()).workers:
                await anyio.sleep(0.001)
        return Steps(lambda timeout: nothing(), lambda exc: nothing())


def without_member(cluster: Any) -> Any:
    wait_until("nobody stays in", lambda: not cluster.group("g").members(), 1)
    return Steps(lambda timeout: None)


async def awaited_without_member(cluster: Any) -> Any:
    async def nothing() -> None: ...

    with anyio.fail_after(1):
        while await cluster.group("g").members():
            await anyio.sleep(0.001)
    return Steps(lambda timeout: nothing(), lambda exc: nothing())


# What is taken, and what of it another session can have when all is given back.
KINDS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "lock": (lambda c: c.lock("x"), lambda c: c.lock("x")),
    "ttl": (lambda c: c.lock("x", ttl=30), lambda c: c.lock("x")),
    "reentrant": (lambda c: c.lock("x", reentrant="session"), lambda c: c.lock("x")),
    "lock_all": (lambda c: c.lock_all(["a", "b"]), lambda c: c.lock_all(["a", "b"])),
    "semaphore": (lambda c: c.semaphore("s", 1), lambda c: c.semaphore("s", 1)),
    "write": (lambda c: c.rwlock("r").write, lambda c: c.rwlock("r").write),
    "read": (lambda c: c.rwlock("r").read, lambda c: c.rwlock("r").write),
    "double barrier": (lambda c: c.double_barrier("d", 1), meeting),
    "once": (doing, lambda c: doing(c, again=True)),
    "member": (joining, lambda c: joining(c, alone=True)),
    "partition": (Sharing, Sharing),
    "leadership": (lambda c: c.leadership("e"), leading),
    "raft": (lambda c: c.raft_leadership(), lambda c: leading(c, "tauraft.raft")),
}


class Stepped(Awaitable[None]):
    """Runs a coroutine, and says before each time that it is about to be suspended, and after each time it went on."""

    def __init__(self, work: Coroutine[Any, Any, None], at: Callable[[int], object]) -> None:
        self._work = work
        self._at = at

    def __await__(self) -> Generator[Any, Any, None]:
        step = 0
        to_send: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = self._work.send(to_send) if error is None else self._work.throw(error)
            except StopIteration:
                return
            error = None
            step += 1
            self._at(step)
            try:
                to_send = yield waits_for
            except BaseException as thrown:
                error = thrown


async def is_free(other: AsyncPrimitives, wanted: Callable[[Any], Any]) -> None:
    try:
        async with wanted(other):
            pass
    except errors.WaitTimeout as error:
        raise AssertionError("something stayed held") from error


async def use(cluster: AsyncPrimitives, take: Callable[[Any], Any], done: Callable[[], object]) -> None:
    async with take(cluster):
        pass
    done()


@pytest.mark.parametrize("when", ["waiting", "answered"])
@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_at_each_await_of_asyncio(host: MachineHost, kind: str, contended: bool, when: str) -> None:
    take, wanted = KINDS[kind]

    async def story() -> None:
        async with awaited(host) as cluster, awaited(host) as other:
            for step in range(1, MAX_STEPS):
                finished: list[bool] = []
                holder = await wanted(other).acquire(timeout=5) if contended else None
                body = use(cluster, take, lambda to=finished: to.append(True))  # type: ignore[misc]

                async def interrupted(body: Any = body, step: int = step) -> None:
                    task = asyncio.current_task()
                    assert task is not None

                    def at(now: int) -> None:
                        if now == step and when == "waiting":
                            task.cancel()
                        elif now == step:
                            loop.call_soon(cancel_when_answered)

                    def cancel_when_answered() -> None:
                        # What it waits for is there, and it has not been woken: the answer would be lost with it.
                        waits_for = getattr(task, "_fut_waiter", None)
                        if waits_for is None or waits_for.done():
                            task.cancel()
                        else:
                            loop.call_soon(cancel_when_answered)

                    loop = asyncio.get_running_loop()
                    await Stepped(body, at)

                running = asyncio.ensure_future(interrupted())
                if holder is not None:
                    for _ in range(3):
                        await asyncio.sleep(0)
                    for hold in holder.values() if kind == "lock_all" else [holder]:
                        await hold.release()
                try:
                    await running
                except asyncio.CancelledError:
                    pass
                await asyncio.wait_for(is_free(other, wanted), 5)
                if finished:
                    return
        raise AssertionError("it never came to its end")

    asyncio.run(story())


class StepCounter(trio.abc.Instrument):
    """Cancels ``scope`` before, or after, the ``step``-th step of a task."""

    def __init__(self, step: int, before: bool) -> None:
        self.task: Any = None
        self.scope = trio.CancelScope()
        self._left = step
        self._before = before

    def before_task_step(self, task: Any) -> None:
        if task is self.task and self._before:
            self._count()

    def after_task_step(self, task: Any) -> None:
        if task is self.task and not self._before:
            self._count()

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.scope.cancel()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_at_each_step_of_trio(host: MachineHost, kind: str, contended: bool, when: str) -> None:
    take, wanted = KINDS[kind]

    async def story() -> None:
        async with awaited(host) as cluster, awaited(host) as other:
            for step in range(1, MAX_STEPS):
                finished: list[bool] = []
                holder = await wanted(other).acquire(timeout=5) if contended else None
                counter = StepCounter(step, when == "before")

                async def interrupted(counter: StepCounter = counter, finished: list[bool] = finished) -> None:
                    counter.task = trio.lowlevel.current_task()
                    with counter.scope:
                        await use(cluster, take, lambda: finished.append(True))

                trio.lowlevel.add_instrument(counter)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(interrupted)
                        if holder is not None:
                            for _ in range(3):
                                await trio.lowlevel.checkpoint()
                            for hold in holder.values() if kind == "lock_all" else [holder]:
                                await hold.release()
                finally:
                    trio.lowlevel.remove_instrument(counter)
                with trio.fail_after(5):
                    await is_free(other, wanted)
                if finished and not counter.scope.cancel_called:
                    return
        raise AssertionError("it never came to its end")

    trio.run(story)


OURS = ("tauraft_primitives", "tauraft/caller.py", "tauraft/bridge.py", "tauraft/handle.py", "tauraft/_blocking")


class Interrupter:
    """Raises KeyboardInterrupt in the place of the ``step``-th line that runs in our modules, as Ctrl-C might.

    Not at ``with`` and ``try`` themselves: the interpreter takes signals at calls and loops, a tracer would everywhere.
    """

    def __init__(self, step: int) -> None:
        self.left = step
        self.where = ""
        self._is_ours: dict[CodeType, bool] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        is_ours = self._is_ours.get(code)
        if is_ours is None:
            is_ours = self._is_ours[code] = any(part in code.co_filename for part in OURS)
        if not is_ours or code.co_name == "run_apart":
            return None
        if (
            event == "line"
            and self.left
            and not getline(code.co_filename, frame.f_lineno).lstrip().startswith(("with ", "try:"))
        ):
            self.left -= 1
            if not self.left:
                self.where = f"{code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self


@pytest.mark.middle
@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_at_each_line_of_taking_leaves_nothing_held(host: MachineHost, kind: str) -> None:
    take, wanted = KINDS[kind]
    before = sys.gettrace()
    with blocking(host) as cluster, blocking(host) as other:
        for step in range(1, MAX_STEPS):
            interrupter = Interrupter(step)
            block = take(cluster)
            sys.settrace(interrupter)
            try:
                block.__enter__()
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            if not interrupter.where:
                block.__exit__(None, None, None)
                return
            take_and_give_back(other, wanted, interrupter.where)
    raise AssertionError("it never came to its end")


@pytest.mark.middle
@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_at_each_line_of_giving_back_leaves_nothing_held(host: MachineHost, kind: str) -> None:
    take, wanted = KINDS[kind]
    before = sys.gettrace()
    with blocking(host) as cluster, blocking(host) as other:
        for step in range(1, MAX_STEPS):
            interrupter = Interrupter(step)
            block = take(cluster)
            block.__enter__()
            sys.settrace(interrupter)
            try:
                block.__exit__(None, None, None)
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            take_and_give_back(other, wanted, interrupter.where)
            if not interrupter.where:
                return
    raise AssertionError("it never came to its end")


def take_and_give_back(other: Primitives, wanted: Callable[[Any], Any], where: str) -> None:
    try:
        found = wanted(other).acquire(timeout=1)
    except errors.WaitTimeout as error:
        raise AssertionError(f"interrupted at {where}, and something stayed held") from error
    for hold in found.values() if isinstance(found, Mapping) else [found]:
        hold.release()
