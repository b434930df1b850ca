"""Rate limits, things done once, groups and partitions as callers use them, over the real apply engine."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import tauraft
from tauraft import errors
from tauraft._blocking.primitives import Primitives
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_plugins.rates.fsm import Rates
from tests.client.test_election_facade import all_of, end_session, on_both_loops
from tests.client.test_facade import awaited, blocking, wait_until
from tests.client.test_holds import InThread
from tests.session.machine_replica import MachineHost


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([*HOLDERS, Fencing, Rates])


@pytest.fixture
def cluster(host: MachineHost) -> Iterator[Primitives]:
    with blocking(host) as cluster:
        yield cluster


@pytest.fixture
def other(host: MachineHost, cluster: Primitives) -> Iterator[Primitives]:
    with blocking(host) as other:
        yield other


# ---- rate limits ----


def test_a_rate_limit_is_shared_by_all(cluster: Primitives, other: Primitives) -> None:
    limit = cluster.rate_limit("r", 0.01, 2)
    assert limit.info().available == 2
    assert limit.try_acquire(2)
    assert not other.rate_limit("r", 0.01, 2).try_acquire()
    for patience in (0, 0.01):
        with pytest.raises(errors.WaitTimeout):
            limit.acquire(2, timeout=patience)
    assert limit.info().waiters == 0
    with pytest.raises(errors.Mismatch):
        other.rate_limit("r", 0.02, 2).try_acquire()
    waits = InThread(lambda: other.rate_limit("r", 0.01, 2).__enter__())
    wait_until("it waits", lambda: limit.info().waiters == 1)
    limit.retune(1000, 1)
    waits.value()
    other.rate_limit("r", 0.01, 2).acquire()
    assert other.rate_limit("r", 0.01, 2).info().rate == 1000


# ---- once ----


def test_it_is_done_once_and_everyone_has_its_result(cluster: Primitives, other: Primitives) -> None:
    began, may_end = threading.Event(), threading.Event()
    calls: list[int] = []

    def work(turn: tauraft.Turn) -> str:
        calls.append(turn.token)
        turn.verify()
        began.set()
        assert may_end.wait(10)
        return "result"

    runs = InThread(lambda: cluster.once("x").run(work))
    assert began.wait(5)
    assert other.once("x").info().state == "running"
    with pytest.raises(errors.WaitTimeout):
        other.once("x").run(work, timeout=0)
    waits = InThread(lambda: other.once("x").run(work))
    wait_until("it waits", lambda: bool(cluster.once("x").info().waiters))
    assert other.once("x").result() is None
    may_end.set()
    assert (runs.value(), waits.value()) == (b"result", b"result")
    assert cluster.once("x").run(work) == b"result"
    assert len(calls) == 1
    assert other.once("x").result() == b"result"
    assert other.once("x").forget() and not other.once("x").forget()
    assert other.once("x").run(lambda turn: None) == b""


def test_work_that_raises_was_not_done(cluster: Primitives, other: Primitives) -> None:
    began = threading.Event()

    def fails(turn: tauraft.Turn) -> None:
        began.set()
        wait_until("another waits", lambda: bool(cluster.once("x").info().waiters))
        raise ZeroDivisionError

    runs = InThread(lambda: cluster.once("x").run(fails))
    assert began.wait(5)
    waits = InThread(lambda: other.once("x").run(lambda turn: b"of the next"))
    with pytest.raises(ZeroDivisionError):
        runs.value()
    assert waits.value() == b"of the next"
    with pytest.raises(TypeError):
        cluster.once("y").run(lambda turn: 5)  # type: ignore[arg-type, return-value]
    assert cluster.once("y").info().state == "idle"


@on_both_loops
async def test_work_that_loses_its_turn_is_cancelled_and_the_next_runs_it(
    host: MachineHost, sleep: Callable[[float], Awaitable[None]]
) -> None:
    async with awaited(host) as other:
        doomed = await awaited(host).start()

        async def work(turn: tauraft.AsyncTurn) -> None:
            end_session(host, doomed)
            await sleep(60)

        async def again(turn: tauraft.AsyncTurn) -> str:
            return "again"

        with pytest.raises(errors.LockLost):
            await doomed.once("x").run(work)
        assert await other.once("x").run(again) == b"again"
        await doomed.close()


# ---- groups ----


def test_members_are_seen_by_all_and_watched(host: MachineHost, cluster: Primitives, other: Primitives) -> None:
    group = cluster.group("g")
    with other.group("g").watch() as watched:
        assert watched.next(5) == ()
        with group.join(b"one", id="a") as me:
            assert (me.id, me.name, me.metadata) == ("a", "g", b"one")
            (seen,) = watched.next(5)
            assert (seen.id, seen.metadata, seen.token) == ("a", b"one", me.token)
            me.update("two")
            assert watched.next(5)[0].metadata == b"two"
            with pytest.raises(errors.MemberExists):
                other.group("g").join(id="a")
            doomed = blocking(host).start()
            doomed.group("g").join()
            second = doomed.group("g").join(b"b")
            assert [len(watched.next(5)) for _ in range(2)] == [2, 3]
            assert len(group.members()) == 3
            me.verify()
            end_session(host, doomed)
            assert [member.id for member in watched.next(5)] == ["a"], "both at once"
            assert second.lost.wait(5)
            with pytest.raises(errors.LockLost):
                second.check()
            with pytest.raises(errors.NotHolder):
                second.update(b"")
            doomed.close()
        assert watched.next(5) == ()
    member = group.join()
    member.leave()
    for again in (member.leave, lambda: member.update(b"")):
        with pytest.raises(errors.NotHolder):
            again()
    assert group.members() == ()


# ---- partitions ----


def test_partitions_are_handed_over_when_they_are_let_go(cluster: Primitives, other: Primitives) -> None:
    with cluster.partitioner("p", 2) as mine:
        held = [mine.next(5), mine.next(5)]
        assert sorted(partition.partition for partition in held) == [0, 1]
        for partition in held:
            partition.check()
            partition.verify()
        with pytest.raises(errors.WaitTimeout):
            mine.next(timeout=0)
        with other.partitioner("p", 2) as theirs:
            wait_until("one is called for", lambda: any(partition.lost.is_set() for partition in held))
            (called,) = (partition for partition in held if partition.lost.is_set())
            (kept,) = (partition for partition in held if not partition.lost.is_set())
            with pytest.raises(errors.WaitTimeout):
                theirs.next(timeout=0.05)
            with pytest.raises(errors.LockLost):
                called.check()
            with called:
                called.check()  # comes out of the block as its ordinary end
            moved = theirs.next(5)
            assert (moved.partition, moved.token > called.token) == (called.partition, True)
            kept.check()
            assert [part.holder is not None for part in mine.info().partitions] == [True, True]
            with pytest.raises(errors.NotHolder):
                called.release()
        again = mine.next(5)
        assert again.partition == moved.partition and again.token > moved.token
        with pytest.raises(errors.LockLost):
            moved.check()
        with again:
            pass
        assert mine.next(5).token > again.token, "given back it is this worker's again"
    assert other.partitioner("p", 3).info().workers == ()
    with pytest.raises(errors.InvalidArgument):
        mine.next()
    with cluster.partitioner("p", 3), pytest.raises(errors.Mismatch):
        other.partitioner("p", 2).__enter__()


def test_a_lost_workers_partitions_go_to_the_others(host: MachineHost, cluster: Primitives) -> None:
    doomed = blocking(host).start()
    theirs = doomed.partitioner("p", 2)
    theirs.__enter__()
    held = [theirs.next(5), theirs.next(5)]
    with cluster.partitioner("p", 2) as mine:
        with pytest.raises(errors.LockLost), held[0]:
            end_session(host, doomed)
            assert held[0].lost.wait(5)
            wait_until("its session is over", lambda: len(mine.info().workers) == 1)
            assert doomed.session.lost.wait(5)
        assert sorted([mine.next(5).partition, mine.next(5).partition]) == [0, 1]
    doomed.close()


@on_both_loops
async def test_a_worker_is_cut_short_when_its_partition_is_called_for_and_none_overlap(
    host: MachineHost, sleep: Callable[[float], Awaitable[None]]
) -> None:
    working: set[int] = set()
    done: list[str] = []

    async with awaited(host) as cluster, awaited(host) as other:

        async def work(of: str, partition: tauraft.AsyncPartition) -> None:
            async with partition:
                assert partition.partition not in working, "two at once"
                working.add(partition.partition)
                try:
                    while len(done) < 2:
                        await sleep(0.002)
                finally:
                    working.discard(partition.partition)

        async def worker(of: Any, name: str, wanted: int) -> None:
            async with of.partitioner("p", 4) as mine:
                held = [await mine.next(5) for _ in range(wanted)]
                if name == "second":
                    done.append("second has its share")

                async def until_all_work() -> None:
                    while not done:
                        await sleep(0.002)
                    done.append("the first has seen it")

                await all_of(*[lambda p=p: work(name, p) for p in held], until_all_work)  # type: ignore[misc]

        async def second() -> None:
            while len(working) < 4:
                await sleep(0.002)
            await worker(other, "second", 2)

        await all_of(lambda: worker(cluster, "first", 4), second)
        assert not working


# ---- wrong use ----


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda c: c.rate_limit("", 1, 1), errors.InvalidArgument),
        (lambda c: c.rate_limit("r", 0, 1), errors.InvalidArgument),
        (lambda c: c.rate_limit("r", "1", 1), TypeError),
        (lambda c: c.rate_limit("r", 1, 1.5), TypeError),
        (lambda c: c.rate_limit("r", 1, 2).acquire(3), errors.InvalidArgument),
        (lambda c: c.rate_limit("r", 1, 2).try_acquire(0), errors.InvalidArgument),
        (lambda c: c.rate_limit("r", 1, 2).retune(1, 0), errors.InvalidArgument),
        (lambda c: c.once(""), errors.InvalidArgument),
        (lambda c: c.once("x").run("work"), TypeError),
        (lambda c: c.once("x").run(lambda turn: None, timeout=-1), errors.InvalidTimeout),
        (lambda c: c.group(5), TypeError),
        (lambda c: c.group("g").join(5), TypeError),
        (lambda c: c.group("g").join(b"x" * (1 << 17)), errors.TooLarge),
        (lambda c: c.group("g").join(id=""), errors.InvalidArgument),
        (lambda c: c.partitioner("p", 0), errors.InvalidArgument),
        (lambda c: c.partitioner("p", "4"), TypeError),
        (lambda c: c.partitioner("p", 4).next(), errors.InvalidArgument),
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
