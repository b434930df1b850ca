"""Callers in asyncio, trio and threads, over a real engine thread and an in-memory replica."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tauraft import engine, errors
from tauraft.caller import AsyncCaller, Caller
from tauraft.client import LocalDialer
from tauraft.command_service import CommandService
from tauraft.engine import Engine, boottime_ns
from tauraft.handle import AsyncLossGuard
from tests.session.memory_replica import Add, Count, Give, MemoryReplica, Take


class MemoryHost:
    """One replica for any number of callers of this process."""

    problem = None
    trouble = ""

    def __init__(self) -> None:
        self.replica: MemoryReplica
        self.service: CommandService
        self.has_leader = True
        self._users = 0

    @property
    def dialer(self) -> LocalDialer:
        return LocalDialer(self.service.connect_local)

    @asynccontextmanager
    async def open(self, engine: Engine) -> AsyncIterator[MemoryHost]:
        if self._users == 0:
            self.replica = MemoryReplica()
            if not self.has_leader:
                self.replica.leader = None
            self.service = CommandService(self.replica, boottime_ns)
            engine.nursery.start_soon(self.replica.run)
            engine.nursery.start_soon(self.service.run)
        self._users += 1
        yield self

    def caller(self) -> Caller:
        return Caller(self.open, timeout=10, session_ttl=10, label="test")

    def async_caller(self) -> AsyncCaller:
        return AsyncCaller(self.open, timeout=10, session_ttl=10, label="test")


@pytest.fixture
def host() -> MemoryHost:
    return MemoryHost()


@pytest.fixture
def here(host: MemoryHost) -> Iterator[Caller]:
    caller = host.caller()
    caller.start(5)
    yield caller
    caller.close()


def wait_until(reason: str, is_so: Callable[[], bool], within: float = 5.0) -> None:
    give_up = time.monotonic() + within
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < give_up, f"still waiting until {reason}"
        pause.wait(0.005)


def test_a_thread_submits_and_asks(here: Caller) -> None:
    assert [here.submit(Add("a"), None) for _ in range(3)] == [1, 2, 3]
    assert here.query(Count("a"), "linearizable", None) == 3
    assert here.query(Count("a"), "stale", None) == 3
    assert here.call("status", {"x": 1}, None) == {"method": "status", "x": 1}


@pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
def test_a_task_submits_and_asks(host: MemoryHost, run: Callable[..., Any]) -> None:
    async def story() -> None:
        caller = host.async_caller()
        await caller.start(5)
        assert await caller.submit(Add("a"), None) == 1
        assert await caller.query(Count("a"), "linearizable", None) == 1
        await caller.close()
        with pytest.raises(errors.AlreadyClosed):
            await caller.submit(Add("a"), None)
        await caller.close()

    run(story) if run is trio.run else run(story())


def test_many_tasks_share_the_wake_ups(host: MemoryHost) -> None:
    async def story() -> None:
        caller = host.async_caller()
        await caller.start(5)
        answers = await asyncio.gather(*[caller.submit(Add("a"), None) for _ in range(500)])
        assert sorted(answers) == list(range(1, 501))
        await caller.close()

    asyncio.run(story())


def test_used_before_start_after_close_and_twice(host: MemoryHost) -> None:
    caller = host.caller()
    with pytest.raises(errors.Shutdown):
        caller.submit(Add("a"), None)
    caller.start(5)
    with pytest.raises(errors.Shutdown):
        caller.start(5)
    caller.close()
    caller.close()
    with pytest.raises(errors.AlreadyClosed):
        caller.submit(Add("a"), None)
    with pytest.raises(errors.AlreadyClosed):
        caller.start(5)
    assert engine._engine is None, "the last user's close stops the engine"


def test_a_start_that_runs_out_says_no_leader_and_leaves_nothing_running(host: MemoryHost) -> None:
    host.has_leader = False
    caller = host.caller()
    with pytest.raises(errors.NoLeader):
        caller.start(0.2)
    assert engine._engine is None

    async def story() -> None:
        again = MemoryHost()
        again.has_leader = False
        with pytest.raises(errors.NoLeader):
            await again.async_caller().start(0.2)

    asyncio.run(story())
    trio.run(story)
    assert engine._engine is None


def test_a_wrong_type_raises_in_the_callers_frame_before_anything_is_sent(here: Caller, host: MemoryHost) -> None:
    sent = len(host.replica.taken)
    with pytest.raises(TypeError):
        here.submit(Add(5), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        here.submit("no command", None)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument):
        here.query(Count("a"), "sometimes", None)
    assert len(host.replica.taken) == sent


def test_a_cancelled_asyncio_wait_leaves_nothing_held(here: Caller, host: MemoryHost) -> None:
    here.submit(Take("lock"), None)

    async def story() -> None:
        caller = host.async_caller()
        await caller.start(5)
        waiting = asyncio.create_task(caller.submit(Take("lock"), None))
        while not host.replica.queue:
            await asyncio.sleep(0.005)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        while host.replica.queue:
            await asyncio.sleep(0.005)
        await caller.close()

    asyncio.run(story())
    assert here.submit(Give("lock"), None) is True
    assert not host.replica.held


def test_a_cancelled_trio_wait_leaves_nothing_held(here: Caller, host: MemoryHost) -> None:
    here.submit(Take("lock"), None)

    async def story() -> None:
        caller = host.async_caller()
        await caller.start(5)
        with trio.move_on_after(0.1):
            await caller.submit(Take("lock"), None)
        with trio.fail_after(1):
            while host.replica.queue:
                await trio.sleep(0.005)
        await caller.close()

    trio.run(story)


def test_cancelled_at_any_moment_from_asyncio_a_grant_is_given_back(here: Caller, host: MemoryHost) -> None:
    async def story() -> None:
        caller = host.async_caller()
        await caller.start(5)
        for steps in range(60):
            taking = asyncio.create_task(caller.submit(Take("lock"), None))
            for _ in range(steps):
                await asyncio.sleep(0)
            await asyncio.sleep((steps % 10) * 0.0004)
            taking.cancel()
            try:
                await taking
                await caller.submit(Give("lock"), None)
            except asyncio.CancelledError:
                pass
        assert await caller.submit(Take("lock"), 5) > 0, "whatever raced, nothing is held"
        await caller.close()

    asyncio.run(story())


def test_ctrl_c_in_a_blocking_wait_leaves_nothing_held(here: Caller, host: MemoryHost) -> None:
    here.submit(Take("lock"), None)

    def interrupt() -> None:
        wait_until("the main thread waits", lambda: bool(host.replica.queue))
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        here.submit(Take("lock"), None)
    interrupter.join()
    wait_until("the wait is withdrawn", lambda: not host.replica.queue, within=1.0)


def test_closing_ends_the_session_and_frees_what_it_held(here: Caller, host: MemoryHost) -> None:
    other = host.caller()
    other.start(5)
    other.submit(Take("lock"), None)
    assert host.replica.held
    other.close()
    assert not host.replica.held
    assert len(host.replica.sessions) == 1


def test_a_forked_child_refuses_and_can_make_its_own(here: Caller, host: MemoryHost) -> None:
    here.submit(Add("a"), None)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                here.submit(Add("a"), None)
            except errors.ForkedProcess:
                mine = MemoryHost().caller()
                mine.start(5)
                code = 0 if mine.submit(Add("a"), None) == 1 else 2
                mine.close()
                here.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert here.submit(Add("a"), None) == 2


def test_the_session_ends_at_its_deadline_and_every_tenure_with_it(host: MemoryHost) -> None:
    caller = Caller(host.open, timeout=10, session_ttl=0.5, label=None)
    caller.start(5)
    tenure = caller.tenure(ttl=None, started=caller.now(), renewal=None)
    called: list[str] = []
    fired = threading.Event()

    def note() -> None:
        called.append(threading.current_thread().name)
        fired.set()

    tenure.state.add_callback(note)
    assert tenure.remaining() > 0
    assert not tenure.is_lost
    caller.engine.post(lambda _: host.replica.lose_leader(), None)
    assert tenure.state.wait_blocking(3)
    assert tenure.is_lost
    assert tenure.remaining() <= 0
    assert fired.wait(1)
    assert called != ["tauraft-engine"]
    with pytest.raises(errors.SessionLost):
        caller.submit(Add("a"), None)
    caller.close()


def test_a_tenure_is_renewed_until_it_ends_and_lost_when_refused(host: MemoryHost) -> None:
    caller = host.caller()
    caller.start(5)
    tenure = caller.tenure(ttl=0.6, started=caller.now(), renewal=Add("renewed"))
    first = tenure.deadline
    wait_until("it was renewed", lambda: tenure.deadline > first)
    tenure.end()
    assert not tenure.state.is_set
    short = caller.tenure(ttl=0.3, started=caller.now(), renewal=None)
    assert short.state.wait_blocking(2)
    assert short.is_lost
    caller.close()


@pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
def test_a_body_is_cut_short_when_its_tenure_is_lost(host: MemoryHost, run: Callable[..., Any]) -> None:
    async def story() -> None:
        caller = host.async_caller()
        await caller.start(5)
        tenure = caller.tenure(ttl=0.3, started=caller.now(), renewal=None)
        guard = AsyncLossGuard(tenure)
        with guard:
            if run is trio.run:
                await trio.sleep(30)
            else:
                await asyncio.sleep(30)
        assert guard.was_cut
        await caller.close()

    run(story) if run is trio.run else run(story())


def test_when_the_engine_dies_nobody_waits_for_ever(host: MemoryHost, caplog: pytest.LogCaptureFixture) -> None:
    caller = host.caller()
    caller.start(5)
    caller.submit(Take("lock"), None)
    told: list[BaseException] = []

    def wait() -> None:
        try:
            caller.submit(Take("lock"), None)
        except errors.TauraftError as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until("it waits", lambda: bool(host.replica.queue))

    async def crash() -> None:
        raise SystemError("a bug in a task nobody guards")

    caller.engine.post(lambda _: caller.engine.nursery.start_soon(crash), None)
    waiting.join(5)
    assert not waiting.is_alive()
    assert isinstance(told[0], errors.TauraftError)
    assert told[0].outcome == "unknown"
    wait_until("it is known to have ended", lambda: caller.has_ended)
    with pytest.raises(errors.Shutdown):
        caller.submit(Add("a"), None)
    caller.close()
    assert engine._engine is None


def test_when_the_host_fails_its_callers_are_told_why(host: MemoryHost) -> None:
    @asynccontextmanager
    async def broken(engine_: Engine) -> AsyncIterator[MemoryHost]:
        raise errors.DataDirectoryError("it belongs to another machine", path="/x")
        yield host

    caller = Caller(broken, timeout=10, session_ttl=10, label=None)
    with pytest.raises(errors.DataDirectoryError):
        caller.start(5)
    with pytest.raises(errors.Shutdown, match="another machine"):
        caller.submit(Add("a"), None)
    caller.close()
    assert engine._engine is None
