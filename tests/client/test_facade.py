"""KV, locks, sessions and transactions through both facades, over the real apply engine in one process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

from tauraft import errors
from tauraft._blocking.primitives import Primitives
from tauraft.caller import AsyncCaller, Caller
from tauraft.primitives import AsyncPrimitives
from tauraft_plugins.fencing.fsm import Fencing
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_plugins.locks.fsm import Locks
from tauraft_primitives.fencing.messages import CheckHold
from tauraft_primitives.kv.messages import Put
from tests.session.machine_replica import MachineHost

NAMESPACE = "/raft/test"


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([KeyValue, Locks, Fencing])


def blocking(host: MachineHost, session_ttl: float = 10) -> Primitives:
    return Primitives(NAMESPACE, Caller(host.open, timeout=5, session_ttl=session_ttl, label="test"))


def awaited(host: MachineHost, session_ttl: float = 10) -> AsyncPrimitives:
    return AsyncPrimitives(NAMESPACE, AsyncCaller(host.open, timeout=5, session_ttl=session_ttl, label="test"))


@pytest.fixture
def cluster(host: MachineHost) -> Iterator[Primitives]:
    with blocking(host) as cluster:
        yield cluster


def either_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs an async test once under asyncio, once under trio."""

    @pytest.mark.parametrize("loop", ["asyncio", "trio"])
    def run(host: MachineHost, loop: str) -> None:
        sleep = asyncio.sleep if loop == "asyncio" else trio.sleep
        if loop == "asyncio":
            asyncio.run(test(host, sleep))  # type: ignore[arg-type]
        else:
            trio.run(test, host, sleep)

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


def wait_until(reason: str, is_so: Callable[[], bool], within: float = 5.0) -> None:
    give_up = time.monotonic() + within
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < give_up, f"still waiting until {reason}"
        pause.wait(0.005)


# ---- KV ----


def test_kv_puts_gets_deletes_and_pages(cluster: Primitives) -> None:
    kv = cluster.kv
    first = kv.put("a/1", "one")
    assert kv.put("a/2", b"two") > first
    entry = kv.get("a/1")
    assert entry is not None
    assert (entry.value, entry.revision, entry.version) == (b"one", first, 1)
    assert kv.get("absent") is None
    assert kv.get("a/1", consistency="stale") is not None
    assert list(kv.keys("a/")) == ["a/1", "a/2"]
    assert [entry.value for entry in kv.items("a/")] == [b"one", b"two"]
    page = kv.keys("a/", limit=1)
    assert list(page) == ["a/1"]
    assert list(kv.keys("a/", limit=1, cursor=page.cursor)) == ["a/2"]
    assert kv.count() == 2
    assert kv.delete("a/1") == 1
    assert kv.delete(prefix="a/") == 1
    kv.put("x", b"")
    kv.put("y", b"")
    assert kv.delete(range=("x", "y")) == 1
    assert kv.delete(prefix="") == 1
    assert kv.count() == 0


def test_kv_conditions(cluster: Primitives) -> None:
    kv = cluster.kv
    revision = kv.put("k", b"1", if_absent=True)
    with pytest.raises(errors.CompareFailed):
        kv.put("k", b"2", if_absent=True)
    result = kv.put("k", b"2", if_revision=revision, return_previous=True)
    assert result.previous is not None
    assert result.previous.value == b"1"
    assert kv.cas("k", b"1", b"3") is None
    assert kv.cas("k", b"2", b"3") is not None
    assert kv.cas("new", None, "x") is not None


def test_a_batch_is_one_revision_or_nothing(cluster: Primitives) -> None:
    with cluster.kv.batch() as batch:
        batch.put("a", b"1")
        batch.put("b", b"2")
        batch.delete("a")
    assert list(cluster.kv.keys()) == ["b"]
    assert cluster.kv.get("b").revision == batch.revision  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError), cluster.kv.batch() as broken:
        broken.put("c", b"3")
        raise ZeroDivisionError
    assert cluster.kv.get("c") is None


def test_an_empty_batch_changes_nothing_and_a_batch_takes_no_other(cluster: Primitives) -> None:
    cluster.set("k", "v")
    with cluster.kv.batch() as empty:
        pass
    assert empty.revision > 0 and list(cluster.kv.keys()) == ["k"]
    batching = cluster.kv.batch()
    with batching as outer:
        outer.put("a", b"1")
        with pytest.raises(errors.InvalidArgument), batching:
            pass
        with pytest.raises(TypeError):
            outer.put("b", outer)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument):
        outer.put("late", b"")
    assert list(cluster.kv.keys()) == ["a", "k"]


def test_the_references_four(cluster: Primitives) -> None:
    cluster.set("k", "v")
    assert cluster.get("k") == b"v"
    assert cluster.keys() == ["k"]
    assert cluster.delete("k") is True
    assert cluster.delete("k") is False
    assert cluster.get("k") is None


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda c: c.kv.put("", b""), errors.InvalidArgument),
        (lambda c: c.kv.put("k", 5), TypeError),
        (lambda c: c.kv.put(5, b""), TypeError),
        (lambda c: c.kv.put("k", b"x" * (1 << 20) + b"x"), errors.TooLarge),
        (lambda c: c.kv.put("k" * 513, b""), errors.TooLarge),
        (lambda c: c.kv.put("k", b"", ttl=0), errors.InvalidArgument),
        (lambda c: c.kv.put("k", b"", ttl="5"), TypeError),
        (lambda c: c.kv.put("k", b"", timeout=0), errors.InvalidTimeout),
        (lambda c: c.kv.put("k", b"", timeout=60.1), errors.InvalidTimeout),
        (lambda c: c.kv.get("k", timeout=-1), errors.InvalidTimeout),
        (lambda c: c.kv.get("k", consistency="eventually"), errors.InvalidArgument),
        (lambda c: c.kv.delete(), errors.InvalidArgument),
        (lambda c: c.kv.delete("k", prefix=""), errors.InvalidArgument),
        (lambda c: c.kv.keys(limit=0), errors.InvalidArgument),
        (lambda c: c.kv.keys(5), TypeError),
        (lambda c: c.lock(""), errors.InvalidArgument),
        (lambda c: c.lock(5), TypeError),
        (lambda c: c.lock("x", ttl=-1), errors.InvalidArgument),
        (lambda c: c.lock("x", reentrant="process"), errors.InvalidArgument),
        (lambda c: c.lock("x").acquire(timeout=-1), errors.InvalidTimeout),
        (lambda c: c.lock("x").acquire(timeout="1"), TypeError),
        (lambda c: c.barrier(0), errors.InvalidBarrier),
        (lambda c: c.barrier(30.1), errors.InvalidBarrier),
        (lambda c: c.transaction(), errors.InvalidArgument),
        (lambda c: c.transaction("x"), TypeError),
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


def test_status_members_barrier_transaction(cluster: Primitives) -> None:
    assert cluster.status().leader is not None
    assert cluster.members()[0].peer_id == "A"
    assert cluster.wait_for_leader(5).is_leader
    revision = cluster.barrier(timeout=30)
    assert cluster.transaction(Put("a", b"1"), Put("b", b"2")) == (revision + 1, revision + 2)
    with pytest.raises(errors.NotHolder):
        cluster.transaction(Put("a", b"3"), CheckHold(12345))
    assert cluster.get("a") == b"1"


# ---- locks, blocking ----


def test_a_lock_excludes_and_its_token_grows(cluster: Primitives, host: MachineHost) -> None:
    with blocking(host) as other:
        with cluster.lock("x") as hold:
            assert other.lock("x").try_acquire() is None
            with pytest.raises(errors.WaitTimeout):
                other.lock("x").acquire(timeout=0.05)
            with pytest.raises(errors.WaitTimeout):
                other.lock("x").acquire(blocking=False)
            hold.check()
            hold.verify()
            assert 0 < hold.remaining() <= 10
            info = other.lock("x").info()
            assert info.token == hold.token
            assert info.holder is not None
            assert info.holder.session == cluster.session.id
            assert not info.waiters
        with other.lock("x") as later:
            assert later.token > hold.token
        assert not cluster.lock("x").locked()
        with pytest.raises(errors.LockLost):
            hold.check()
        with pytest.raises(errors.NotHolder):
            hold.release()


def test_a_waiter_gets_the_lock_when_it_is_released(cluster: Primitives, host: MachineHost) -> None:
    with blocking(host) as other:
        hold = cluster.lock("x").acquire()
        got: list[int] = []
        waiter = threading.Thread(target=lambda: got.append(other.lock("x").acquire(timeout=5).token))
        waiter.start()
        wait_until("it waits", lambda: bool(cluster.lock("x").info().waiters))
        hold.release()
        waiter.join()
        assert got[0] > hold.token


def test_a_ttl_hold_is_renewed_and_one_without_renewal_runs_out(cluster: Primitives) -> None:
    with cluster.lock("kept", ttl=0.6) as kept, pytest.raises(errors.LockLost):
        first = kept.deadline
        with cluster.lock("runs-out", ttl=0.5, renew=False) as hold:
            assert hold.lost.wait(2)
            assert hold.remaining() <= 0
            kept.check()
            assert kept.deadline > first


def test_a_ttl_hold_granted_after_waiting_is_confirmed_first(cluster: Primitives, host: MachineHost) -> None:
    with blocking(host) as other:
        cluster.lock("x", ttl=0.5, renew=False).acquire()
        hold = other.lock("x", ttl=0.8, renew=False).acquire(timeout=5)
        assert 0.5 < hold.remaining() <= 0.7


def test_reentrant_holds_share_a_token_and_each_is_left(cluster: Primitives) -> None:
    with cluster.lock("x", reentrant="thread") as outer:
        with cluster.lock("x", reentrant="thread") as inner:
            assert inner.token == outer.token
        outer.check()
        assert cluster.lock("x").locked()
    assert not cluster.lock("x").locked()


def test_release_by_handle_and_as_a_decorator(cluster: Primitives) -> None:
    lock = cluster.lock("x")
    with pytest.raises(errors.NotHolder):
        lock.release()
    lock.acquire()
    lock.release()

    @lock
    def guarded(number: int) -> int:
        assert cluster.lock("x").locked()
        return number + 1

    assert guarded(1) == 2
    assert not lock.locked()
    with lock.acquire(timeout=5) as hold:
        hold.check()
    assert not lock.locked()


def test_a_broken_lock_is_found_out_by_verify_and_at_the_blocks_end(cluster: Primitives) -> None:
    with pytest.raises(errors.LockLost), cluster.lock("x") as hold:
        assert cluster.lock("x").break_("stuck") is True
        assert cluster.lock("x").break_("stuck") is False
        with pytest.raises(errors.LockLost):
            hold.verify()


def test_a_body_that_raises_keeps_its_exception(cluster: Primitives) -> None:
    with pytest.raises(ZeroDivisionError), cluster.lock("x"):
        cluster.lock("x").break_("stuck")
        raise ZeroDivisionError


def test_closing_frees_locks_at_once(cluster: Primitives, host: MachineHost) -> None:
    other = blocking(host).start()
    other.lock("x").acquire()
    other.close()
    assert cluster.lock("x").try_acquire() is not None


def test_ctrl_c_while_acquiring_leaves_no_ghost(cluster: Primitives, host: MachineHost) -> None:
    with blocking(host) as other:
        hold = other.lock("x").acquire()

        def interrupt() -> None:
            wait_until("it waits", lambda: bool(other.lock("x").info().waiters))
            os.kill(os.getpid(), signal.SIGINT)

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            cluster.lock("x").acquire()
        interrupter.join()
        wait_until("the wait is withdrawn", lambda: not other.lock("x").info().waiters, within=1)
        hold.release()
        assert not other.lock("x").locked()


# ---- locks, async ----


@either_loop
async def test_an_async_lock_is_taken_and_given_back(
    host: MachineHost, sleep: Callable[[float], Awaitable[None]]
) -> None:
    async with awaited(host) as cluster:
        async with cluster.lock("x", reentrant="task") as hold:
            hold.check()
            await hold.verify()
            async with cluster.lock("x", reentrant="task") as again:
                assert again.token == hold.token
        assert not await cluster.lock("x").locked()

        @cluster.lock("x")
        async def guarded() -> bool:
            return await cluster.lock("x").locked()

        assert await guarded()


@either_loop
async def test_the_body_is_cancelled_when_the_hold_is_lost(
    host: MachineHost, sleep: Callable[[float], Awaitable[None]]
) -> None:
    async with awaited(host) as cluster:
        started = time.monotonic()
        with pytest.raises(errors.LockLost):
            async with cluster.lock("x", ttl=0.5, renew=False):
                await sleep(30)
        assert time.monotonic() - started < 5
        with pytest.raises(errors.LockLost):
            async with cluster.lock("y", ttl=0.5, renew=False, on_loss="signal") as hold:
                assert await hold.lost.wait(5)
                await sleep(0.01)
        async with cluster.lock("z", ttl=0.5) as hold:
            assert not await hold.lost.wait(0.01)


def test_cancelled_at_every_await_of_a_lock_nothing_stays_held(host: MachineHost) -> None:
    async def use(cluster: AsyncPrimitives) -> None:
        async with cluster.lock("x", ttl=5):
            await cluster.kv.put("k", b"v")

    async def story() -> None:
        async with awaited(host) as cluster:
            for steps in range(50):
                task = asyncio.create_task(use(cluster))
                for _ in range(steps % 12):
                    await asyncio.sleep(0)
                await asyncio.sleep((steps % 10) * 0.0003)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            hold = await cluster.lock("x").acquire(timeout=1)
            await hold.release()
            assert not await cluster.lock("x").locked()

    asyncio.run(story())


def test_cancelled_at_every_checkpoint_from_trio_nothing_stays_held(host: MachineHost) -> None:
    async def story() -> None:
        async with awaited(host) as cluster:
            for steps in range(50):
                with trio.move_on_after((steps % 25) * 0.0002):
                    async with cluster.lock("x", ttl=5):
                        await cluster.kv.put("k", b"v")
            hold = await cluster.lock("x").acquire(timeout=1)
            await hold.release()

    trio.run(story)


def test_an_outer_cancellation_inside_a_lock_stays_a_cancellation(host: MachineHost) -> None:
    async def story() -> None:
        async with awaited(host) as cluster:
            entered = asyncio.Event()

            async def body() -> None:
                async with cluster.lock("x"):
                    entered.set()
                    await asyncio.sleep(30)

            task = asyncio.create_task(body())
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            hold = await cluster.lock("x").acquire(timeout=1)
            await hold.release()

    asyncio.run(story())
