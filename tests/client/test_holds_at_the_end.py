"""No hold outlives what keeps it: the facade's close, its node's failure, a fork, a loop that stopped (SAFETY 2 to 6)."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing

import pytest
import trio

from tauraft import engine as engine_room, errors
from tauraft._blocking.primitives import Primitives
from tauraft.bridge import mailbox_here
from tauraft.caller import Caller
from tauraft.engine import Engine
from tauraft.node.replica import SessionEvent
from tauraft_plugins.locks.fsm import Locks
from tests.session.machine_replica import MachineHost


class FailingHost(MachineHost):
    """A node that stops when told, as one does whose disk failed."""

    def __init__(self) -> None:
        super().__init__([Locks])
        self.fail: trio.Event

    @asynccontextmanager
    async def open(self, engine: Engine) -> AsyncIterator[MachineHost]:
        self.fail = trio.Event()

        async def watch() -> None:
            await self.fail.wait()
            raise OSError(5, "Input/output error")

        async with super().open(engine) as host, trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield host
            nursery.cancel_scope.cancel()


def started(host: MachineHost) -> Primitives:
    return Primitives("/raft/test", Caller(host.open, timeout=5, session_ttl=10, label=None)).start()


def test_a_hold_is_lost_when_its_facade_is_closed_before_the_lock_goes_to_the_next() -> None:
    host = MachineHost([Locks])
    with closing(started(host)) as other:
        cluster = started(host)
        hold, brief = cluster.lock("x").acquire(), cluster.lock("y", ttl=60).acquire()
        lost_when_ended: list[bool] = []

        class Listener:
            def applied(self, index: int, outcomes: object, events: Sequence[SessionEvent]) -> None:
                lost_when_ended.extend(hold.lost.is_set() for event in events if event.kind == "ended")

            def leader_changed(self, leader: object) -> None: ...

        assert host.replica is not None
        host.replica.add_listener(Listener())
        cluster.close()
        assert lost_when_ended == [True], "its holder knew before the cluster gave it away"
        assert other.lock("x").try_acquire() is not None, "it is somebody else's now"
        for lost in (hold, brief):
            assert lost.lost.is_set()
            with pytest.raises(errors.LockLost):
                lost.check()
        assert not cluster.session.lost.is_set(), "given back, not lost"


def test_a_hold_is_lost_and_its_callers_are_told_why_when_the_node_stops() -> None:
    host = FailingHost()
    cluster = started(host)
    hold = cluster.lock("x").acquire()
    told: list[BaseException] = []

    def wait() -> None:
        try:
            cluster.lock("x").acquire()
        except errors.TauraftError as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    cluster._caller.engine.post(lambda _: host.fail.set(), None)
    assert hold.lost.wait(5)
    with pytest.raises(errors.LockLost):
        hold.check()
    waiting.join(5)
    assert type(told[0]) is errors.Shutdown and "Input/output error" in str(told[0])
    with pytest.raises(errors.Shutdown, match="Input/output error"):
        cluster.lock("x").acquire()
    cluster.close()


def test_a_hold_is_nothing_in_a_forked_child() -> None:
    with closing(started(MachineHost([Locks]))) as cluster:
        hold = cluster.lock("x").acquire()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                hold.check()
            except errors.LockLost:
                code = 0 if hold.remaining() <= 0 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        hold.check()


def test_a_loop_that_stops_before_it_woke_the_engine_keeps_nobody_else_waiting() -> None:
    engine = Engine()
    engine.start()
    loop = asyncio.new_event_loop()
    done = [threading.Event(), threading.Event()]

    def post_and_stop() -> None:
        engine.post_from_loop(lambda _: done[0].set(), None, mailbox_here())
        loop.stop()

    try:
        loop.call_soon(post_and_stop)
        loop.run_forever()
        engine.post(lambda _: done[1].set(), None)
        assert done[1].wait(5), "another thread's post wakes the engine all the same"
        assert done[0].is_set()
    finally:
        loop.close()
        engine.stop()


def test_the_clients_clock_counts_while_the_machine_sleeps() -> None:
    wanted = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    assert wanted == engine_room._CLOCK
    assert abs(engine_room.boottime_ns() - time.clock_gettime_ns(wanted)) < 10**9
