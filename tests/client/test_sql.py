"""SQL as a user writes it: both facades, a cluster in memory, the examples of the docs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import tauraft
from tauraft import errors
from tauraft.primitives import AsyncPast


@pytest.fixture(scope="module")
def cluster() -> Iterator[tauraft.Cluster]:
    with tauraft.Cluster("/raft/sql", storage="memory") as cluster:
        cluster.sql("SELECT 1")  # history in memory begins here
        yield cluster


def test_a_query_sees_all_that_was_acknowledged(cluster: tauraft.Cluster) -> None:
    for number in range(20):
        cluster.kv.put("seen", str(number))
        found = cluster.sql("SELECT value FROM kv WHERE key = ?", ["seen"])
        assert found.rows == ((str(number).encode(),),)
        assert found.columns == ("value",)
        assert found.applied_index > 0


def test_who_held_the_lock_then(cluster: tauraft.Cluster) -> None:
    with cluster.lock("nightly", reason="backfill") as hold:
        token = hold.token
        then = cluster.sql("SELECT max(at) FROM history")[0][0]
    with cluster.lock("nightly"):
        pass
    found = cluster.as_of(then).sql("SELECT token, request.reason FROM tauraft_locks_holds WHERE key = 'nightly'")
    assert found.rows == ((token, "backfill"),)
    assert cluster.as_of(revision=token).sql("SELECT token FROM locks WHERE name = 'nightly'").rows == ((token,),)
    assert cluster.as_of(revision=token - 1).sql("SELECT token FROM locks WHERE name = 'nightly'").rows == ()


def test_the_longest_waits(cluster: tauraft.Cluster) -> None:
    with tauraft.Cluster("/raft/sql2", storage="memory") as other:
        other.sql("SELECT 1")
        with other.lock("busy"):
            waiter = threading.Thread(target=lambda: other.lock("busy").acquire(timeout=10).release())
            waiter.start()
            while not other.sql("SELECT * FROM tauraft_locks_requests WHERE names[1] = 'busy'"):
                pass
        waiter.join()
        found = other.sql("""
            SELECT max(value ->> '$.names[0]') AS lock, max(at) - min(at) AS waited
            FROM history WHERE view = 'tauraft_locks_requests' GROUP BY key ORDER BY waited DESC LIMIT 10
        """)
    ((lock, waited),) = found
    assert lock == "busy"
    assert waited > timedelta(0)


def test_which_keys_changed_between_two_revisions(cluster: tauraft.Cluster) -> None:
    before = cluster.kv.put("unchanged", "x")
    cluster.kv.put("changed/1", "x")
    after = cluster.kv.put("changed/2", "x")
    cluster.kv.put("later", "x")
    found = cluster.sql(
        "SELECT DISTINCT key FROM history WHERE view = 'tauraft_kv_kv' AND revision > ? AND revision <= ? ORDER BY key",
        [before, after],
    )
    assert found.rows == (("changed/1",), ("changed/2",))


def test_the_async_facade_asks_the_same(cluster: tauraft.Cluster) -> None:
    async def story() -> None:
        async with tauraft.AsyncCluster("/raft/sql3", storage="memory") as other:
            await other.kv.put("k", "v")
            assert (await other.sql("SELECT key FROM kv")).rows == (("k",),)
            past = other.as_of(datetime.now(UTC) + timedelta(days=1))
            assert isinstance(past, AsyncPast)
            assert (await past.sql("SELECT count(*) FROM kv")).rows == ((1,),)
            revision = await other.kv.put("k", "w")
            assert (await other.as_of(revision=revision).sql("SELECT value FROM kv")).rows == ((b"w",),)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda c: c.sql(b"SELECT 1"), TypeError),
        (lambda c: c.sql("SELECT ?", "text"), TypeError),
        (lambda c: c.sql("SELECT ?", [object()]), TypeError),
        (lambda c: c.sql("SELECT 1", timeout=0), errors.InvalidTimeout),
        (lambda c: c.as_of(), TypeError),
        (lambda c: c.as_of(5), TypeError),
        (lambda c: c.as_of(datetime.now(UTC), revision=5), TypeError),
        (lambda c: c.as_of(revision="5"), TypeError),
        (lambda c: c.as_of(revision=-1), errors.InvalidArgument),
        (lambda c: c.as_of(datetime(2026, 1, 27)), errors.InvalidArgument),
        (lambda c: c.sql("INSERT INTO kv VALUES (1)"), errors.Refused),
        (lambda c: c.sql("SELECT nonsense FROM kv"), errors.Refused),
        (lambda c: c.as_of(revision=1 << 60).sql("SELECT 1"), errors.Refused),
        (lambda c: c.as_of(revision=0).sql("SELECT 1"), errors.Compacted),
    ],
)
def test_wrong_use(cluster: tauraft.Cluster, use: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        use(cluster)


@pytest.mark.middle
def test_it_works_for_the_node_its_standby_and_a_client_and_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAURAFT_STATE_DIR", str(tmp_path))
    directory = tmp_path / "node"

    def make() -> tauraft.Cluster:
        return tauraft.Cluster("/raft/sql", data_dir=directory, bootstrap_timeout=0, preset="local")

    with make() as cluster:
        first = cluster.kv.put("k", "1")
        with make() as standby, tauraft.Client("/raft/sql", data_dir=directory) as client:
            for facade in (cluster, standby, client):
                assert facade.sql("SELECT value FROM kv").rows == ((b"1",),)
        assert cluster.snapshot() > 0
        cluster.kv.put("k", "2")
    with make() as cluster:
        cluster.kv.put("k", "3")
        assert cluster.sql("SELECT value FROM kv").rows == ((b"3",),)
        assert cluster.as_of(revision=first).sql("SELECT value FROM kv").rows == ((b"1",),)
        changes = cluster.sql("SELECT value ->> 'value' FROM history WHERE view = 'tauraft_kv_kv' ORDER BY revision")
        assert changes.rows == (("1",), ("2",), ("3",))


@pytest.mark.middle
def test_a_snapshot_is_there_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAURAFT_STATE_DIR", str(tmp_path))
    with tauraft.Cluster("/raft/sql", data_dir=tmp_path / "node", bootstrap_timeout=0, preset="local") as cluster:
        cluster.kv.put("k", "v")
        index = cluster.snapshot()
        assert index == cluster.status().applied_index
        assert list(tmp_path.rglob(f"{index:020d}-*/manifest"))
