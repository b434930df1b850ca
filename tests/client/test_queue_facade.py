"""Queues, counters and ids as callers hold them: from threads, asyncio and trio, over the real apply engine in one process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections import Counter as Tally
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio

import tauraft
from tauraft import errors
from tauraft._blocking.primitives import Primitives
from tauraft.commands import Ack, CheckHold, Enqueue, Put
from tauraft.handle import Holder
from tauraft.primitives import AsyncPrimitives
from tauraft.types import QueueStats
from tauraft_plugins.counters.fsm import Counters, Ids
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_primitives.queues.messages import Claimed, GiveBack
from tests.client.test_facade import awaited, blocking, wait_until
from tests.session.machine_replica import MachineHost


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([KeyValue, *HOLDERS, Fencing, Counters, Ids])


@pytest.fixture
def cluster(host: MachineHost) -> Iterator[Primitives]:
    with blocking(host) as cluster:
        yield cluster


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """Runs a story on either loop."""
    return trio.run if request.param == "trio" else lambda story: asyncio.run(story())


def waiters(host: MachineHost) -> int:
    assert host.replica is not None
    return len(host.replica.machine._fsms["tauraft.queues"].waiters)  # type: ignore[attr-defined]


def claims(host: MachineHost) -> int:
    assert host.replica is not None
    return len(host.replica.machine._fsms["tauraft.queues"].claims)  # type: ignore[attr-defined]


def counts(cluster: Primitives, queue: str = "q") -> tuple[int, int, int, int]:
    stats = cluster.queue(queue).stats()
    return stats.ready, stats.delayed, stats.claimed, stats.dead


# ---- blocking ----


def test_an_item_goes_in_is_claimed_and_acknowledged(cluster: Primitives) -> None:
    queue = cluster.queue("q")
    put = queue.put("héllo", id="i", headers={"by": "web"}, priority=2)
    assert (put.id, put.duplicate) == ("i", False)
    assert queue.put(b"", id="i") == tauraft.Enqueued("i", True, put.revision)
    with queue.claim(visibility=30) as job:
        assert isinstance(job, tauraft.Claim)
        assert (job.id, job.body, job.headers, job.group, job.attempts) == (
            "i",
            "héllo".encode(),
            {"by": "web"},
            None,
            1,
        )
        assert not job.lost.is_set()
        job.check()
        assert counts(cluster) == (0, 0, 1, 0)
    assert queue.len() == 0
    with pytest.raises(errors.StaleClaim):
        job.check()
    with pytest.raises(errors.StaleClaim):
        job.ack()
    with pytest.raises(errors.QueueEmpty):
        queue.claim()


def test_leaving_with_an_exception_gives_the_item_back_and_says_why(cluster: Primitives) -> None:
    queue = cluster.queue("q", max_attempts=1)
    queue.put(b"x")
    with pytest.raises(ValueError, match="no good"), queue.claim():
        raise ValueError("no good" * 200)
    with pytest.raises(errors.QueueEmpty):
        queue.claim()
    (item,) = queue.dead()
    assert item.reason == "max-attempts"
    assert item.history[0].startswith("nack: ValueError: no good")
    assert queue.redrive() == 1
    with queue.claim() as job:
        job.nack()
    assert counts(cluster) == (1, 0, 0, 0)


def test_a_claim_may_be_ended_inside_its_block(cluster: Primitives) -> None:
    queue = cluster.queue("q")
    queue.put_many([b"a", "b", b"c"])
    with queue.claim() as job:
        job.ack()
    with queue.claim() as job:
        job.bury("unreadable")
    with queue.claim() as job:
        job.nack(delay=60, reason="later")
    assert counts(cluster) == (0, 1, 0, 1)
    assert [(item.body, item.reason) for item in queue.dead()] == [(b"b", "unreadable")]


def test_a_claim_past_its_deadline_knows_it_before_the_cluster_gives_the_item_away(
    cluster: Primitives, host: MachineHost
) -> None:
    queue = cluster.queue("q")
    queue.put(b"x")
    job = queue.claim(visibility=0.4)
    assert job.lost.wait(5)
    with pytest.raises(errors.StaleClaim):
        job.check()
    with pytest.raises(errors.StaleClaim):
        job.extend(30)
    with blocking(host) as other:
        again = other.queue("q").claim(timeout=5)
        assert (again.attempts, again.token > job.token) == (2, True)
        with pytest.raises(errors.StaleClaim):
            job.ack()
        again.ack()
    queue.put(b"y")
    with pytest.raises(errors.StaleClaim), queue.claim(visibility=0.2):
        wait_until("the item has returned", lambda: counts(cluster) == (1, 0, 0, 0))


def test_an_extended_claim_is_kept(cluster: Primitives) -> None:
    queue = cluster.queue("q")
    queue.put(b"x")
    job = queue.claim(visibility=0.5)
    job.extend(30)
    assert not job.lost.wait(0.6)
    job.check()
    job.ack()


def test_a_waiting_claim_gets_what_is_put_and_its_whole_visibility(cluster: Primitives, host: MachineHost) -> None:
    got: list[tauraft.Claim] = []
    with blocking(host) as other:
        claimer = threading.Thread(target=lambda: got.append(other.queue("q").claim(visibility=0.6, timeout=5)))
        claimer.start()
        wait_until("it waits", lambda: waiters(host) == 1)
        threading.Event().wait(0.7)
        cluster.queue("q").put(b"x")
        claimer.join()
        got[0].check()
        got[0].ack()


def test_claims_wait_no_longer_than_asked(cluster: Primitives, host: MachineHost) -> None:
    queue = cluster.queue("q")
    with pytest.raises(errors.QueueEmpty):
        queue.claim(timeout=0.05)
    with pytest.raises(errors.QueueEmpty):
        queue.claim_many(5, timeout=0.05)
    assert waiters(host) == 0
    queue.put(b"x")
    assert counts(cluster) == (1, 0, 0, 0)


def test_many_are_claimed_in_one_command(cluster: Primitives) -> None:
    queue = cluster.queue("q")
    queue.put_many([str(number) for number in range(7)])
    assert queue.put_many([]) == []
    jobs = queue.claim_many(5)
    assert [job.body for job in jobs] == [b"0", b"1", b"2", b"3", b"4"]
    assert len({job.token for job in jobs}) == 5
    for job in jobs:
        job.ack()
    assert len(queue.claim_many(5)) == 2


def test_put_many_is_one_command(cluster: Primitives, host: MachineHost) -> None:
    assert host.replica is not None
    applied = host.replica.applied_index
    put = cluster.queue("q").put_many([b"a", b"b", b"c"])
    assert host.replica.applied_index == applied + 1
    assert [one.revision for one in put] == sorted({one.revision for one in put})


def test_several_consumers_get_each_item_once(cluster: Primitives, host: MachineHost) -> None:
    bodies = [str(number).encode() for number in range(60)]
    got: Tally[bytes] = Tally()

    def consume() -> None:
        with blocking(host) as mine, contextlib.suppress(errors.QueueEmpty):
            while True:
                with mine.queue("q").claim(timeout=0.3) as job:
                    got[job.body] += 1

    consumers = [threading.Thread(target=consume) for _ in range(4)]
    for consumer in consumers:
        consumer.start()
    for body in bodies:
        cluster.queue("q").put(body)
    for consumer in consumers:
        consumer.join()
    assert got == Tally(bodies)
    assert cluster.queue("q").len() == 0


def test_closing_returns_what_was_claimed_at_once(cluster: Primitives, host: MachineHost) -> None:
    cluster.queue("q").put(b"x")
    other = blocking(host).start()
    job = other.queue("q").claim(visibility=1_000)
    other.close()
    assert cluster.queue("q").claim().attempts == 2
    with pytest.raises(errors.AlreadyClosed):
        job.ack()
    for use in (other.queue("q").pop, other.queue("q").len, lambda: other.queue("q").push("a", b"")):
        with pytest.raises(errors.AlreadyClosed):
            use()


def test_pause_purge_and_dead_letters(cluster: Primitives) -> None:
    queue = cluster.queue("q")
    queue.put_many([b"a", b"b"])
    queue.pause()
    with pytest.raises(errors.QueueEmpty):
        queue.claim()
    queue.resume()
    queue.claim().bury("bad")
    assert queue.purge() == 1
    assert queue.purge() == 0
    assert queue.dead()[0].body == b"a"
    assert queue.purge(dead=True) == 1
    assert queue.stats() == QueueStats(0, 0, 0, 0, None)


def test_more_dead_than_one_answer_or_step_holds(cluster: Primitives) -> None:
    queue = cluster.queue("q", max_attempts=1)
    for _ in range(6):
        queue.put(b"x" * (1 << 20))
    for job in queue.claim_many(4) + queue.claim_many(4):
        job.bury("bad")
    assert len(queue.dead()) == 6
    assert len(queue.dead(limit=5)) == 5
    assert queue.redrive(4) == 4
    assert counts(cluster) == (4, 0, 0, 2)


def test_the_references_push_pop_peek_len(cluster: Primitives) -> None:
    queue = cluster.queue("q")
    for use in (queue.pop, queue.peek):
        with pytest.raises(errors.QueueEmpty):
            use()
    assert queue.push("a", b"first") is True
    assert queue.push("a", b"again") is False
    assert queue.push("b", b"") is True
    with pytest.raises(errors.InvalidArgument):
        queue.push("", b"x")
    assert queue.peek().body == b"first"
    assert queue.len() == 2
    assert [queue.pop().id, queue.pop().body] == ["a", b""]
    assert queue.push("a", b"once more") is True


def test_an_outbox_and_an_inbox_are_one_step_each(cluster: Primitives) -> None:
    with cluster.lock("x") as hold:
        put, revision, _ = cluster.transaction(Enqueue("q", b"mail"), Put("sent", b"1"), CheckHold(hold.token))
        assert put.revision < revision
    with pytest.raises(errors.NotHolder):
        cluster.transaction(Enqueue("q", b"mail"), CheckHold(hold.token))
    with cluster.queue("q").claim() as job:
        cluster.transaction(Ack(job.token), Put("done", job.body))
        with pytest.raises(errors.StaleClaim):
            cluster.transaction(Put("done", b"twice"), Ack(job.token))
        with pytest.raises(errors.StaleClaim):
            job.ack()
    assert cluster.get("done") == b"mail"


def test_max_attempts_is_declared_by_the_first_use_and_the_last_one_holds(
    cluster: Primitives, host: MachineHost
) -> None:
    cluster.queue("q", max_attempts=1).put(b"x")
    cluster.queue("q").claim().nack()
    cluster.queue("q", max_attempts=2).claim().nack()
    with pytest.raises(errors.QueueEmpty):
        cluster.queue("q").claim()
    assert counts(cluster) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda c: c.queue(""), errors.InvalidArgument),
        (lambda c: c.queue(5), TypeError),
        (lambda c: c.queue("q" * 513), errors.TooLarge),
        (lambda c: c.queue("q", max_attempts=0), errors.InvalidArgument),
        (lambda c: c.queue("q", max_attempts="3"), TypeError),
        (lambda c: c.queue("q").put(5), TypeError),
        (lambda c: c.queue("q").put(b"x" * ((1 << 20) + 1)), errors.TooLarge),
        (lambda c: c.queue("q").put(b"", id=""), errors.InvalidArgument),
        (lambda c: c.queue("q").put(b"", id=5), TypeError),
        (lambda c: c.queue("q").put(b"", group=""), errors.InvalidArgument),
        (lambda c: c.queue("q").put(b"", priority=1.5), TypeError),
        (lambda c: c.queue("q").put(b"", priority=True), TypeError),
        (lambda c: c.queue("q").put(b"", priority=1 << 31), errors.InvalidArgument),
        (lambda c: c.queue("q").put(b"", delay=-1), errors.InvalidArgument),
        (lambda c: c.queue("q").put(b"", delay="1"), TypeError),
        (lambda c: c.queue("q").put(b"", delay=float("nan")), errors.InvalidArgument),
        (lambda c: c.queue("q").put(b"", ttl=0), errors.InvalidArgument),
        (lambda c: c.queue("q").put(b"", dedupe_for=-1), errors.InvalidArgument),
        (lambda c: c.queue("q").put(b"", headers={"a": 1}), TypeError),
        (lambda c: c.queue("q").put(b"", headers="a"), TypeError),
        (lambda c: c.queue("q").put(b"", headers={"a": "x" * 20_000}), errors.TooLarge),
        (lambda c: c.queue("q").put(b"", timeout=0), errors.InvalidTimeout),
        (lambda c: c.queue("q").put_many(b"abc"), TypeError),
        (lambda c: c.queue("q").put_many([b"a", 5]), TypeError),
        (lambda c: c.queue("q").claim(visibility=0), errors.InvalidArgument),
        (lambda c: c.queue("q").claim(visibility="30"), TypeError),
        (lambda c: c.queue("q").claim(timeout=-1), errors.InvalidTimeout),
        (lambda c: c.queue("q").claim(groups="g"), TypeError),
        (lambda c: c.queue("q").claim(groups=[]), errors.InvalidArgument),
        (lambda c: c.queue("q").claim(groups=[""]), errors.InvalidArgument),
        (lambda c: c.queue("q").claim_many(0), errors.InvalidArgument),
        (lambda c: c.queue("q").claim_many("3"), TypeError),
        (lambda c: c.queue("q").dead(limit=0), errors.InvalidArgument),
        (lambda c: c.queue("q").redrive(0), errors.InvalidArgument),
        (lambda c: c.queue("q").purge(dead=1), TypeError),
        (lambda c: c.counter(""), errors.InvalidArgument),
        (lambda c: c.counter("c").add(1.5), TypeError),
        (lambda c: c.counter("c").add(True), TypeError),
        (lambda c: c.counter("c").add(1 << 63), errors.InvalidArgument),
        (lambda c: c.counter("c").get(timeout=0), errors.InvalidTimeout),
        (lambda c: c.ids("i", block=0), errors.InvalidArgument),
        (lambda c: c.ids("i").reserve(0), errors.InvalidArgument),
        (lambda c: c.ids("i").reserve(1.0), TypeError),
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


def test_wrong_use_of_a_claim_leaves_it_as_it_was(cluster: Primitives) -> None:
    queue = cluster.queue("q")
    queue.put(b"x")
    job = queue.claim()
    for use, error in (
        (lambda: job.nack(delay=-1), errors.InvalidArgument),
        (lambda: job.nack(reason=5), TypeError),  # type: ignore[arg-type]
        (lambda: job.bury(""), errors.InvalidArgument),
        (lambda: job.extend("5"), TypeError),  # type: ignore[arg-type]
    ):
        with pytest.raises(error):
            use()
    job.ack()


# ---- interruption ----


def test_ctrl_c_while_claiming_leaves_no_claim(cluster: Primitives, host: MachineHost) -> None:
    def interrupt() -> None:
        wait_until("it waits", lambda: waiters(host) == 1)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        cluster.queue("q").claim(timeout=None)
    interrupter.join()
    wait_until("the wait is withdrawn", lambda: waiters(host) == 0, within=1)
    cluster.queue("q").put(b"x")
    assert counts(cluster) == (1, 0, 0, 0)


def test_cancelled_at_every_await_of_a_claim_nothing_stays_claimed(host: MachineHost) -> None:
    async def use(cluster: AsyncPrimitives) -> None:
        async with cluster.queue("q").claim(timeout=5):
            await cluster.kv.put("k", b"v")

    async def story() -> None:
        async with awaited(host) as cluster:
            queue = cluster.queue("q")
            for steps in range(60):
                waiting = bool(steps % 3)
                if not waiting:
                    await queue.put(str(steps))
                task = asyncio.create_task(use(cluster))
                if waiting:
                    await asyncio.sleep(0.0005)
                    await queue.put(str(steps))
                for _ in range(steps % 12):
                    await asyncio.sleep(0)
                await asyncio.sleep((steps % 10) * 0.0003)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await settled(cluster)

    asyncio.run(story())
    assert (claims(host), waiters(host)) == (0, 0)


def test_cancelled_at_every_checkpoint_from_trio_nothing_stays_claimed(host: MachineHost) -> None:
    async def story() -> None:
        async with awaited(host) as cluster:
            queue = cluster.queue("q")
            for steps in range(60):
                if steps % 2:
                    await queue.put(str(steps))
                with trio.move_on_after((steps % 25) * 0.0002):
                    if steps % 3:
                        async with queue.claim(timeout=5):
                            await cluster.kv.put("k", b"v")
                    else:
                        (job,) = await queue.claim_many(1, timeout=5)
                        async with job:
                            await cluster.kv.put("k", b"v")
            await settled(cluster)

    trio.run(story)
    assert waiters(host) == 0


class Interrupted(Holder):
    """A facade whose calls are interrupted: ``at`` which submission, or with "tenure" when a claim is made of its answer."""

    def __init__(self, at: int | str) -> None:
        self.at = at
        self.submitted: list[Any] = []
        self.said_later: list[Any] = []

    def submit(self, command: Any, *, timeout: float | None = None) -> Any:
        self.submitted.append(command)
        if len(self.submitted) == self.at:
            raise KeyboardInterrupt
        return (Claimed(5, "a", b"", {}, None, 1), Claimed(6, "b", b"", {}, None, 1))

    def submit_soon(self, command: Any) -> None:
        self.said_later.append(command)

    def now(self) -> float:
        return 0.0

    def tenure(self, *, ttl: float | None, started: float, renewal: Any) -> Any:
        if self.at == "tenure":
            raise KeyboardInterrupt
        return SimpleNamespace(state=None, is_lost=False, end=lambda: None)


def test_claims_interrupted_before_they_are_handed_out_are_given_back_by_the_engine() -> None:
    holder = Interrupted(at="tenure")
    with pytest.raises(KeyboardInterrupt):
        tauraft.Queue(holder, "q").claim_many(2)
    assert holder.said_later == [GiveBack(5), GiveBack(6)]


def test_an_end_that_was_interrupted_is_said_by_the_engine() -> None:
    holder = Interrupted(at=2)
    job = tauraft.Queue(holder, "q").claim()
    with pytest.raises(KeyboardInterrupt):
        job.ack()
    assert holder.said_later == [Ack(5)]


async def settled(cluster: AsyncPrimitives) -> None:
    """What was interrupted has been said by now: it was handed to the engine before this was."""
    await cluster.barrier()
    stats = await cluster.queue("q").stats()
    assert stats.claimed == 0, stats


# ---- asyncio and trio ----


def test_claims_are_awaited_or_entered(run: Any, host: MachineHost) -> None:
    async def story() -> None:
        async with awaited(host) as cluster:
            queue = cluster.queue("q", max_attempts=2)
            await queue.put_many([b"a", b"b", b"c"])
            job = await queue.claim()
            assert isinstance(job, tauraft.AsyncClaim)
            await job.extend(5)
            await job.ack()
            async with queue.claim(timeout=None) as job:
                assert job.body == b"b"
            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    async with queue.claim():
                        raise ZeroDivisionError
            with pytest.raises(errors.QueueEmpty):
                await queue.claim()
            (item,) = await queue.dead()
            assert item.history == ("nack: ZeroDivisionError", "nack: ZeroDivisionError")
            assert await queue.redrive(1) == 1
            assert (await queue.peek()).body == b"c"
            assert await queue.len() == 1

    run(story)


def test_counters_and_ids_are_awaited(run: Any, host: MachineHost) -> None:
    async def story() -> None:
        async with awaited(host) as cluster:
            counter = cluster.counter("c")
            assert (await counter.add(5), await counter.reset(1), await counter.get()) == (5, 5, 1)
            ids = cluster.ids("i", block=2)
            assert [await ids.next() for _ in range(3)] == [1, 2, 3]

    run(story)


# ---- counters and ids ----


def test_a_counter_adds_and_refuses_what_does_not_fit(cluster: Primitives) -> None:
    counter = cluster.counter("c")
    assert counter.get() == 0
    assert counter.add() == 1
    assert counter.add(-3) == -2
    assert counter.reset((1 << 63) - 1) == -2
    with pytest.raises(errors.Refused) as refused:
        counter.add()
    assert refused.value.code == "overflow"
    assert counter.get() == (1 << 63) - 1
    assert counter.reset() == (1 << 63) - 1
    assert cluster.counter("other").get() == 0


def test_blocks_of_ids_have_no_gap_and_next_costs_no_commit(cluster: Primitives, host: MachineHost) -> None:
    assert host.replica is not None
    ids = cluster.ids("i", block=10)
    with blocking(host) as other:
        assert ids.reserve(3) == range(1, 4)
        assert other.ids("i").reserve(2) == range(4, 6)
        assert ids.next() == 6
        assert other.ids("i", block=1).next() == 16
        applied = host.replica.applied_index
        assert [ids.next() for _ in range(9)] == list(range(7, 16))
        assert host.replica.applied_index == applied
        assert ids.next() == 17


def test_ids_shared_by_threads_are_unique(cluster: Primitives) -> None:
    ids = cluster.ids("i", block=7)
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.extend(ids.next() for _ in range(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 200


def test_a_closed_handle_gives_no_ids_of_its_block(host: MachineHost) -> None:
    cluster = blocking(host).start()
    ids = cluster.ids("i")
    ids.next()
    cluster.close()
    with pytest.raises(errors.AlreadyClosed):
        ids.next()
