"""KV's watches, transactions and leases through both facades, over the real apply engine in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tauraft import errors, events
from tauraft._blocking.primitives import Primitives
from tauraft.caller import AsyncCaller, Caller
from tauraft.commands import CheckHold, Delete, Get, Put
from tauraft.primitives import AsyncPrimitives
from tauraft.types import Compare, Entry
from tauraft_plugins.fencing.fsm import Fencing
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_plugins.locks.fsm import Locks
from tauraft_primitives.kv.messages import MAX_BATCH_WRITES
from tauraft_primitives.kv.transaction import Transaction
from tests.session.machine_replica import MachineHost

NAMESPACE = "/raft/test"


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([KeyValue, Locks, Fencing])


def blocking(host: MachineHost) -> Primitives:
    return Primitives(NAMESPACE, Caller(host.open, timeout=5, session_ttl=10, label="test"))


@pytest.fixture
def cluster(host: MachineHost) -> Iterator[Primitives]:
    with blocking(host) as cluster:
        yield cluster


def test_a_watch_gives_put_delete_and_expire_in_order_with_the_previous_entry(cluster: Primitives) -> None:
    kv = cluster.kv
    kv.put("a", b"before")
    with kv.watch(prefix="a") as watch:
        first = kv.put("a", b"1")
        kv.put("b", b"another prefix")
        kv.delete("a")
        kv.put("a/ttl", b"2", ttl=0.05)
        put = watch.next(5)
        assert isinstance(put, events.Put)
        assert (put.key, put.revision, put.entry.value, put.entry.version) == ("a", first, b"1", 2)
        assert put.previous is not None
        assert put.previous.value == b"before"
        deleted = watch.next(5)
        assert isinstance(deleted, events.Delete)
        assert deleted.previous == put.entry
        again = watch.next(5)
        assert isinstance(again, events.Put)
        assert again.entry.expires_in == pytest.approx(0.05)
        expired = watch.next(5)
        assert isinstance(expired, events.Expire)
        assert (expired.key, expired.previous.value) == ("a/ttl", b"2")
        assert put.revision < deleted.revision < again.revision < expired.revision


def test_since_revision_is_exclusive_and_events_of_one_revision_stay_together(cluster: Primitives) -> None:
    kv = cluster.kv
    first = kv.put("a", b"1")
    with kv.batch() as batch:
        batch.put("b", b"2")
        batch.put("c", b"3")
        batch.delete("a")
    with kv.watch(since_revision=first) as watch:
        seen = [watch.next(5) for _ in range(3)]
    assert [(type(event), event.revision) for event in seen] == [
        (events.Put, batch.revision), (events.Put, batch.revision), (events.Delete, batch.revision),
    ]  # fmt: skip
    with kv.watch("b", since_revision=batch.revision) as watch, pytest.raises(errors.WaitTimeout):
        watch.next(0.01)


def test_a_watch_older_than_what_is_remembered_gets_one_resync_and_goes_on(
    cluster: Primitives, host: MachineHost
) -> None:
    assert host.replica is not None
    kv = cluster.kv
    first = kv.put("a", b"1")
    host.replica.change_log._max_bytes = 2_000
    for number in range(30):
        last = kv.put(f"b{number % 3}", b"x" * 100)
    with kv.watch(since_revision=first) as watch:
        resync = watch.next(5)
        assert isinstance(resync, events.Resync)
        assert resync.revision >= last
        assert [entry.key for entry in resync.entries] == ["a", "b0", "b1", "b2"]
        kv.delete("a")
        assert isinstance(watch.next(5), events.Delete)
    with pytest.raises(errors.Compacted) as caught:
        kv.get("a", at_revision=first)
    assert caught.value.oldest > first


def test_reads_at_an_older_revision(cluster: Primitives) -> None:
    kv = cluster.kv
    revisions = [kv.put("k", str(number)) for number in range(3)]
    kv.delete("k")
    assert [kv.get("k", at_revision=revision).value for revision in revisions] == [b"0", b"1", b"2"]  # type: ignore[union-attr]
    assert kv.get("k", at_revision=revisions[0] - 1) is None
    assert kv.get("k") is None
    with pytest.raises(errors.InvalidCommand):
        kv.get("k", at_revision=revisions[-1] + 1_000)


def test_what_compare_failed_found_is_an_entry(cluster: Primitives) -> None:
    cluster.kv.put("k", b"1")
    with pytest.raises(errors.CompareFailed) as caught:
        cluster.kv.put("k", b"2", if_absent=True)
    assert isinstance(caught.value.entry, Entry)
    assert caught.value.entry.value == b"1"


def test_all_keys_are_fetched_where_no_limit_says_otherwise(
    cluster: Primitives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tauraft_plugins.kv.fsm.MAX_PAGE", 10)
    with cluster.kv.batch() as batch:
        for number in range(35):
            batch.put(f"{number:02}", b"")
    expected = [f"{number:02}" for number in range(35)]
    assert cluster.keys() == expected
    page = cluster.kv.items()
    assert [entry.key for entry in page] == expected
    assert page.cursor is None
    part = cluster.kv.keys(limit=25)
    assert list(part) == expected[:25]
    assert list(cluster.kv.keys(cursor=part.cursor)) == expected[25:]


def test_a_transaction_decodes_what_it_ran(cluster: Primitives) -> None:
    kv = cluster.kv
    bump = [Put("counter", b"1"), Get("counter"), Transaction([Compare("x", "exists", "==", True)], [], [Delete("x")])]
    done = kv.transaction([Compare("counter", "exists", "==", False)], bump, [Get("counter")])
    assert done.succeeded
    put, entry, nested = done.results
    assert done.revision > put
    assert (entry.revision, entry.value) == (put, b"1")
    assert (nested.succeeded, nested.results) == (False, (0,))
    again = kv.transaction([Compare("counter", "exists", "==", False)], bump, [Get("counter")])
    assert not again.succeeded
    assert again.results == (entry,)


def test_a_fenced_write_is_refused_once_the_hold_is_gone(cluster: Primitives) -> None:
    hold = cluster.lock("x").acquire()
    fenced = cluster.fenced(hold.token)
    fenced.put("k", b"1")
    assert fenced.transaction([], [Put("l", b"1")]).succeeded
    hold.release()
    for write in (
        lambda: fenced.put("k", b"2"),
        lambda: fenced.put("k", b"2", if_revision=5),
        lambda: fenced.delete("k"),
        lambda: fenced.delete(prefix=""),
        lambda: fenced.cas("k", b"1", b"2"),
        lambda: fenced.transaction([], [Put("k", b"2")]),
    ):
        with pytest.raises(errors.NotHolder):
            write()
    with pytest.raises(errors.NotHolder), fenced.batch() as batch:
        batch.put("k", b"2")
    entry = fenced.get("k")
    assert entry is not None
    assert entry.value == b"1"


def test_a_batch_says_when_it_is_full(cluster: Primitives) -> None:
    with cluster.kv.batch() as batch:
        for number in range(MAX_BATCH_WRITES):
            batch.put(str(number), b"")
        with pytest.raises(errors.TooLarge):
            batch.delete("one too many")
    with cluster.kv.batch() as batch:
        for number in range(4):
            batch.put(str(number), b"x" * (1 << 20))
        with pytest.raises(errors.TooLarge):
            batch.put("more", b"x")
    assert cluster.kv.count() == MAX_BATCH_WRITES


# ---- leases ----


def test_a_lease_lives_while_it_is_kept_and_takes_its_keys_along(cluster: Primitives) -> None:
    with cluster.kv.watch() as watch:
        with cluster.lease(0.6) as lease:
            cluster.kv.put("k", b"v", attach=lease)
            assert not lease.lost.wait(1.0), "renewed by itself"
            lease.check()
            assert 0 < lease.remaining() <= 0.6
            assert lease.keep_alive() == pytest.approx(0.5, abs=0.2)
            assert cluster.kv.get("k").lease == lease.id  # type: ignore[union-attr]
            cluster.fenced(lease.token).put("fenced", b"")
        assert cluster.kv.get("k") is None
        with pytest.raises(errors.LockLost):
            lease.check()
        with pytest.raises(errors.NotHolder):
            lease.revoke()
        with pytest.raises(errors.LockLost):
            cluster.kv.put("l", b"", attach=lease)
        with pytest.raises(errors.NotHolder):
            cluster.fenced(lease.token).put("fenced", b"")
        assert [type(watch.next(5)) for _ in range(3)] == [events.Put, events.Put, events.Delete]


def test_keys_of_a_session_and_of_its_leases_expire_with_it_in_one_revision(
    cluster: Primitives, host: MachineHost
) -> None:
    other = blocking(host).start()
    lease = other.lease(60)
    other.kv.put("leased", b"", attach=lease)
    other.kv.put("own", b"", attach="session")
    with cluster.kv.watch() as watch:
        other.close()
        gone = [watch.next(5), watch.next(5)]
        assert [(type(event), event.key) for event in gone] == [  # type: ignore[union-attr]
            (events.Expire, "leased"), (events.Expire, "own"),
        ]  # fmt: skip
        assert gone[0].revision == gone[1].revision


def test_a_lease_goes_to_another_session(cluster: Primitives, host: MachineHost) -> None:
    with blocking(host) as other:
        lease = other.lease(5)
        other.kv.put("k", b"", attach=lease)
        lease.transfer(cluster.session.id)
        with pytest.raises(errors.LockLost):
            lease.check()
        with pytest.raises(errors.NotHolder):
            lease.transfer(cluster.session.id)
        adopted = cluster.lease(5, adopt=lease.id)
        assert adopted.id == lease.id
        assert adopted.token > lease.token
    assert cluster.kv.get("k") is not None
    adopted.revoke()
    assert cluster.kv.get("k") is None
    with pytest.raises(errors.NotHolder):
        cluster.lease(5, adopt=lease.id)


def test_a_lease_that_was_lost_says_so_at_the_end_of_its_block(cluster: Primitives, host: MachineHost) -> None:
    with pytest.raises(errors.LockLost), cluster.lease(5) as lease:
        cluster.transaction(*[_revoke(lease)])
        with pytest.raises(errors.LockLost):
            lease.keep_alive()


def _revoke(lease: Any) -> Any:
    from tauraft_primitives.kv.messages import RevokeLease

    return RevokeLease(lease.id, lease.token)


def test_cancelled_while_it_is_granted_no_lease_stays(host: MachineHost) -> None:
    async def story() -> None:
        async with AsyncPrimitives(
            NAMESPACE, AsyncCaller(host.open, timeout=5, session_ttl=10, label="test")
        ) as cluster:
            for steps in range(40):
                task = asyncio.create_task(cluster.lease(60))
                for _ in range(steps % 6):
                    await asyncio.sleep(0)
                await asyncio.sleep((steps % 8) * 0.0003)
                if task.cancel():
                    try:
                        await (await task).revoke()
                    except asyncio.CancelledError:
                        pass
                else:
                    await task.result().revoke()
            assert host.replica is not None
            give_up = time.monotonic() + 5
            while host.replica.machine._fsms["tauraft.kv"].leases:  # type: ignore[attr-defined]
                assert time.monotonic() < give_up, "still waiting until every grant is withdrawn"
                await asyncio.sleep(0.005)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda c: c.kv.watch("a", prefix="b"), errors.InvalidArgument),
        (lambda c: c.kv.watch(""), errors.InvalidArgument),
        (lambda c: c.kv.watch(5), TypeError),
        (lambda c: c.kv.watch(prefix=5), TypeError),
        (lambda c: c.kv.watch(since_revision="5"), TypeError),
        (lambda c: c.kv.get("k", at_revision=-1), errors.InvalidArgument),
        (lambda c: c.kv.get("k", at_revision="1"), TypeError),
        (lambda c: c.kv.put("k", b"", attach=5), TypeError),
        (lambda c: c.kv.transaction(["x"]), TypeError),
        (lambda c: c.kv.transaction([], ["x"]), TypeError),
        (lambda c: c.lease(0.1), errors.InvalidArgument),
        (lambda c: c.lease("5"), TypeError),
        (lambda c: c.lease(5, adopt="x"), TypeError),
        (lambda c: c.fenced(0), errors.InvalidArgument),
        (lambda c: c.transaction(CheckHold("x")), TypeError),
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
