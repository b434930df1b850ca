"""Locks, permits, readers and writers, and fences as a user writes them; every type is what the call says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

import tauraft
from tauraft.commands import CheckHold, Put
from tauraft.fencing import DUCKDB, FencedResource


def one_at_a_time(cluster: tauraft.Cluster, report: FencedResource) -> None:
    with cluster.lock("nightly-report", ttl=30, reason="backfill") as hold:
        assert_type(hold, tauraft.Hold)
        report.check(hold.token)
        hold.check()
        cluster.fenced(hold.token).put("report", b"done")
        cluster.transaction(CheckHold(hold.token), Put("also", b"done"))
    assert_type(cluster.lock("x").try_acquire(), tauraft.Hold | None)
    assert_type(cluster.lock("x").info().last_break, tauraft.LockBreak | None)
    assert_type(cluster.lock("x").break_("it hangs"), bool)
    with cluster.lock("x").acquire(timeout=5) as again:
        assert_type(again.lost.wait(0), bool)
    assert_type(DUCKDB.admit, str)


def several_at_once(client: tauraft.Client) -> None:
    with client.lock_all(["from", "to"], timeout=5) as held:
        assert_type(held, Mapping[str, tauraft.Hold])
        held["from"].verify()
    with client.semaphore("downloads", 4) as permit:
        assert_type(permit.token, int)
    assert_type(client.semaphore("downloads", 4).info(), tauraft.SemaphoreInfo)
    with client.rwlock("config").write as writing:
        assert_type(writing, tauraft.RwHold)
        writing.downgrade()


async def the_same_awaited(cluster: tauraft.AsyncCluster) -> None:
    async with cluster.lock("x", reentrant="task", on_loss="signal") as hold:
        assert_type(hold, tauraft.AsyncHold)
        await hold.verify()
    async with cluster.lock_all(["a", "b"]) as held:
        assert_type(held, Mapping[str, tauraft.AsyncHold])
    async with cluster.semaphore("s", 2), cluster.rwlock("r").read as reading:
        assert_type(reading, tauraft.AsyncRwHold)

    @cluster.lock("once-at-a-time")
    async def job(number: int) -> int:
        return number

    assert_type(await job(1), int)
