"""Locks by several, permits, readers and writers, and fenced writes, through both facades over the real apply engine."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

from tauraft import errors
from tauraft._blocking.primitives import Primitives
from tauraft.system.messages import Close
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_primitives.holds import handle as holds
from tauraft_primitives.locks.messages import Standing
from tests.client.test_facade import awaited, blocking, wait_until
from tests.session.machine_replica import MachineHost


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([KeyValue, *HOLDERS, Fencing])


@pytest.fixture
def cluster(host: MachineHost) -> Iterator[Primitives]:
    with blocking(host) as cluster:
        yield cluster


@pytest.fixture
def other(host: MachineHost, cluster: Primitives) -> Iterator[Primitives]:
    with blocking(host) as other:
        yield other


class InThread(threading.Thread):
    """Calls something that waits, and keeps what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def value(self) -> Any:
        self.join(10)
        assert not self.is_alive(), "it still waits"
        if self.error is not None:
            raise self.error
        return self.result


# ---- several at once ----


def test_lock_all_gives_a_hold_for_each_name_and_takes_them_back_together(
    cluster: Primitives, other: Primitives
) -> None:
    with cluster.lock_all(["b", "a"]) as held:
        assert list(held) == ["b", "a"]
        assert len({hold.token for hold in held.values()}) == 2
        for hold in held.values():
            hold.check()
            hold.verify()
        assert other.lock("a").try_acquire() is None
        held["a"].release()
        assert not other.lock("a").locked()
    assert not other.lock("b").locked()


def test_lock_all_waits_for_all_and_gives_up_with_none(cluster: Primitives, other: Primitives) -> None:
    with other.lock("b"):
        with pytest.raises(errors.WaitTimeout):
            cluster.lock_all(["a", "b"]).acquire(timeout=0.05)
        with pytest.raises(errors.WaitTimeout):
            cluster.lock_all(["a", "b"]).acquire(timeout=0)
        assert not cluster.lock("a").locked()
        waits = InThread(lambda: cluster.lock_all(["a", "b"]).acquire(timeout=10))
        wait_until("it waits", lambda: bool(other.lock("b").info().waiters))
    assert set(waits.value()) == {"a", "b"}


def test_a_broken_one_of_lock_all_comes_out_as_lost_and_the_others_are_given_back(
    cluster: Primitives, other: Primitives
) -> None:
    with pytest.raises(errors.LockLost), cluster.lock_all(["a", "b"]) as held:
        assert other.lock("a").break_("test")
        with pytest.raises(errors.LockLost):
            held["a"].verify()
        held["b"].verify()
    wait_until("b is free", lambda: not other.lock("b").locked())


def test_lock_all_with_a_ttl_is_renewed(cluster: Primitives, other: Primitives) -> None:
    with other.lock("b"):
        waits = InThread(lambda: cluster.lock_all(["a", "b"], ttl=0.6).acquire())
        wait_until("it waits", lambda: bool(other.lock("b").info().waiters))
    held = waits.value()
    first = {name: hold.deadline for name, hold in held.items()}
    wait_until("both are renewed", lambda: all(hold.deadline > first[name] for name, hold in held.items()))
    for hold in held.values():
        hold.release()


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda c: c.lock_all("ab"), TypeError),
        (lambda c: c.lock_all([]), errors.InvalidArgument),
        (lambda c: c.lock_all(["a", "a"]), errors.InvalidArgument),
        (lambda c: c.lock_all(["a", 5]), TypeError),
        (lambda c: c.lock_all(["a"], ttl=0), errors.InvalidArgument),
        (lambda c: c.lock("a", ttl=0.1), errors.InvalidArgument),
        (lambda c: c.lock("a", ttl="5"), TypeError),
        (lambda c: c.lock("a", renew=1), TypeError),
        (lambda c: c.lock("a", lock_delay=-1), errors.InvalidArgument),
        (lambda c: c.lock("a", priority=1 << 40), errors.InvalidArgument),
        (lambda c: c.lock("a", priority=1.5), TypeError),
        (lambda c: c.lock("a", reason="x" * 5000), errors.TooLarge),
        (lambda c: c.lock("a", on_loss="ignore"), errors.InvalidArgument),
        (lambda c: c.lock("a").break_(""), errors.InvalidArgument),
        (lambda c: c.semaphore("a", 0), errors.InvalidArgument),
        (lambda c: c.semaphore("a", 1.0), TypeError),
        (lambda c: c.semaphore("", 1), errors.InvalidArgument),
        (lambda c: c.semaphore("a", 2).acquire(count=3), errors.InvalidArgument),
        (lambda c: c.semaphore("a", 2).resize(0), errors.InvalidArgument),
        (lambda c: c.rwlock(""), errors.InvalidArgument),
        (lambda c: c.rwlock("a").read.acquire(timeout=-1), errors.InvalidTimeout),
        (lambda c: c.fenced("7"), TypeError),
        (lambda c: c.fenced(0), errors.InvalidArgument),
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


# ---- waiting ----


def test_a_deadlock_is_told_to_the_younger_of_two_threads(cluster: Primitives, other: Primitives) -> None:
    both_hold = threading.Barrier(2)

    def nested(mine: Primitives, first: str, second: str) -> str:
        with mine.lock(first):
            both_hold.wait(5)
            with mine.lock(second):
                return "got both"

    one, two = (InThread(lambda a=a: nested(*a)) for a in ((cluster, "a", "b"), (other, "b", "a")))  # type: ignore[misc]
    outcomes = []
    for thread in (one, two):
        thread.join(10)
        outcomes.append(thread.error or thread.result)
    (deadlock,) = [outcome for outcome in outcomes if isinstance(outcome, errors.Deadlock)]
    assert "got both" in outcomes
    assert set(deadlock.cycle) == {"a", "b"}


def test_to_wait_for_oneself_for_ever_is_told_and_with_a_time_out_it_runs_out(cluster: Primitives) -> None:
    with cluster.lock("a"):
        with pytest.raises(errors.Deadlock):
            cluster.lock("a").acquire()
        with pytest.raises(errors.WaitTimeout):
            cluster.lock("a").acquire(timeout=0.05)
        assert cluster.lock("a").try_acquire() is None


def test_a_wait_that_lasts_says_who_keeps_it(
    cluster: Primitives, other: Primitives, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "REMIND_AFTER_S", 0.05)
    monkeypatch.setattr("tauraft_primitives.holds._blocking.REMIND_AFTER_S", 0.05)
    with caplog.at_level(logging.WARNING, "tauraft.locks"), other.lock("x", reason="backfill"):
        first = InThread(lambda: other.lock("x").acquire(timeout=10).release())
        wait_until("the first waits", lambda: len(other.lock("x").info().waiters) == 1)
        second = InThread(lambda: cluster.lock("x").acquire(timeout=10).release())
        wait_until("both have said so", lambda: len(caplog.records) == 2)
    first.value()
    second.value()
    said = sorted(record.getMessage() for record in caplog.records)
    assert all("still waiting for lock 'x': held by test@" in line for line in said)
    assert {line.rpartition(" d ")[2] for line in said} == {
        "('backfill'); 0 ahead of you",
        "('backfill'); 1 ahead of you",
    }
    assert len(said) == 2, "each says it once"


def test_a_short_wait_says_nothing(cluster: Primitives, other: Primitives, caplog: pytest.LogCaptureFixture) -> None:
    with other.lock("x"), pytest.raises(errors.WaitTimeout):
        cluster.lock("x").acquire(timeout=0.05)
    assert not caplog.records


def test_nobody_holds_a_lock_that_cools_down() -> None:
    assert holds.standing_in_words(Standing(None, None, None, 3)) == "held by nobody now; 3 ahead of you"


# ---- loss ----


def test_the_lost_signal_is_set_and_calls_back(cluster: Primitives) -> None:
    told = threading.Event()
    hold = cluster.lock("x", ttl=0.5, renew=False).acquire()
    hold.lost.add_callback(told.set)
    assert hold.lost.wait(5) and told.wait(5)
    with pytest.raises(errors.LockLost) as error:
        hold.check()
    assert error.value.token == hold.token
    with pytest.raises(errors.NotHolder):
        hold.release()


def end_session(cluster: Any, host: MachineHost) -> None:
    """The cluster ends it, as when its ttl ran out."""
    assert host.replica is not None
    replica, session = host.replica, cluster.session.id
    cluster._caller.engine.post(lambda _: replica.propose([replica._system(Close(session))]), None)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", ["lock", "lock_all", "semaphore", "rwlock"])
def test_every_kind_of_block_is_cut_short_when_it_is_lost(host: MachineHost, loop: str, kind: str) -> None:
    async def story(sleep: Callable[[float], Awaitable[object]]) -> None:
        async with awaited(host) as cluster:
            blocks: dict[str, Any] = {
                "lock": cluster.lock("x"),
                "lock_all": cluster.lock_all(["a", "b"]),
                "semaphore": cluster.semaphore("s", 1),
                "rwlock": cluster.rwlock("r").write,
            }
            with pytest.raises(errors.LockLost):
                async with blocks[kind]:
                    end_session(cluster, host)
                    await sleep(60)

    if loop == "asyncio":
        asyncio.run(story(asyncio.sleep))
    else:
        trio.run(story, trio.sleep)


@pytest.mark.parametrize("kind", ["lock", "lock_all", "semaphore", "rwlock"])
def test_every_kind_of_blocking_block_raises_at_its_end_when_it_was_lost(host: MachineHost, kind: str) -> None:
    with blocking(host) as cluster:
        blocks: dict[str, Any] = {
            "lock": cluster.lock("x"),
            "lock_all": cluster.lock_all(["a", "b"]),
            "semaphore": cluster.semaphore("s", 1),
            "rwlock": cluster.rwlock("r").write,
        }
        with pytest.raises(errors.LockLost), blocks[kind] as held:
            hold = held["a"] if kind == "lock_all" else held
            end_session(cluster, host)
            assert hold.lost.wait(5)
            with pytest.raises(errors.LockLost):
                hold.check()


# ---- permits ----


def test_permits_are_counted_over_all_sessions(cluster: Primitives, other: Primitives) -> None:
    semaphore = cluster.semaphore("s", 2)
    assert semaphore.info().available == 2
    with semaphore as first, other.semaphore("s", 2) as second:
        assert first.token != second.token
        assert cluster.semaphore("s", 2).try_acquire() is None
        with pytest.raises(errors.WaitTimeout):
            cluster.semaphore("s", 2).acquire(timeout=0.05)
        info = other.semaphore("s", 2).info()
        assert (info.permits, info.available, len(info.holders), info.waiters) == (2, 0, 2, ())
        first.verify()
        waits = InThread(lambda: cluster.semaphore("s", 2).acquire(timeout=10))
        wait_until("it waits", lambda: bool(semaphore.info().waiters))
    waits.value().release()
    assert semaphore.info().available == 2
    with semaphore.acquire(count=2):
        assert semaphore.info().available == 0


def test_another_number_is_a_mismatch_until_it_is_resized(cluster: Primitives, other: Primitives) -> None:
    first = cluster.semaphore("s", 1)
    with first, pytest.raises(errors.Mismatch):
        other.semaphore("s", 2).acquire(timeout=5)
    with first:
        waits = InThread(lambda: other.semaphore("s", 1).acquire(timeout=10))
        wait_until("it waits", lambda: bool(first.info().waiters))
        first.resize(2)
        waits.value().release()
    with other.semaphore("s", 2).acquire(count=2), pytest.raises(errors.WaitTimeout):
        first.acquire(timeout=0.05)


def test_closing_gives_permits_and_readers_back(cluster: Primitives, host: MachineHost) -> None:
    leaving = blocking(host).start()
    leaving.semaphore("s", 1).acquire()
    leaving.rwlock("r").write.acquire()
    leaving.close()
    assert cluster.semaphore("s", 1).try_acquire() is not None
    assert cluster.rwlock("r").read.try_acquire() is not None


# ---- readers and writers ----


def test_readers_share_and_a_writer_waits_its_turn(cluster: Primitives, other: Primitives) -> None:
    rwlock = cluster.rwlock("r")
    with rwlock.read as first, other.rwlock("r").read as second:
        assert first.token != second.token
        again = rwlock.read.acquire()
        writes = InThread(lambda: other.rwlock("r").write.acquire(timeout=10))
        wait_until("readers are kept out", lambda: InThread(lambda: rwlock.read.try_acquire()).value() is None)
        one_more = rwlock.read.acquire(timeout=0)  # who reads already may read again
        again.release()
    assert writes.is_alive()
    with pytest.raises(errors.WaitTimeout):
        InThread(lambda: cluster.rwlock("r").write.acquire(timeout=0.05)).value()
    one_more.release()
    writes.value().release()


def test_upgrading_is_refused_and_downgrading_is_not(cluster: Primitives, other: Primitives) -> None:
    rwlock = cluster.rwlock("r")
    with rwlock.read, pytest.raises(errors.UpgradeRefused):
        rwlock.write.acquire(timeout=5)
    with rwlock.write as hold:
        assert other.rwlock("r").read.try_acquire() is None
        hold.downgrade()
        hold.verify()
        with other.rwlock("r").read:
            hold.check()
    with pytest.raises(errors.NotHolder):
        hold.downgrade()
    with other.rwlock("r").write.acquire(timeout=5):
        pass


# ---- fenced writes ----


def test_a_fenced_write_is_refused_once_the_hold_is_gone(cluster: Primitives, other: Primitives) -> None:
    with cluster.lock("x") as hold:
        fenced = other.fenced(hold.token)
        revision = fenced.put("k", b"1")
        assert fenced.cas("k", b"1", b"2") is not None
        assert fenced.get("k").value == b"2"  # type: ignore[union-attr]
        with pytest.raises(errors.CompareFailed):
            fenced.put("k", b"3", if_revision=revision)
        with fenced.batch() as batch:
            batch.put("a", b"1")
            batch.put("b", b"1")
    for write in (
        lambda: fenced.put("k", b"stale"),
        lambda: fenced.delete("k"),
        lambda: fenced.cas("k", b"2", b"stale"),
    ):
        with pytest.raises(errors.NotHolder):
            write()
    assert other.kv.get("k").value == b"2"  # type: ignore[union-attr]
    with cluster.semaphore("s", 1) as permit, cluster.rwlock("r").read as reader:
        other.fenced(permit.token).put("k", b"4")
        other.fenced(reader.token).put("k", b"5")
