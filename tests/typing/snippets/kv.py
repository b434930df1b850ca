"""What a user writes with KV, watches and leases; checked, not run."""

from __future__ import annotations

from typing import assert_type

import tauraft
from tauraft import Compare, events
from tauraft.commands import Get, Put


def follow(cluster: tauraft.Cluster) -> None:
    revision = cluster.kv.put("jobs/1", b"queued", ttl=60)
    assert_type(revision, int)
    previous = cluster.kv.put("jobs/1", b"running", if_revision=revision, return_previous=True).previous
    assert_type(previous, tauraft.Entry | None)
    with cluster.kv.watch(prefix="jobs/", since_revision=revision) as watch:
        for event in watch:
            match event:
                case events.Put(key=key, entry=entry):
                    print(key, entry.value.decode())
                case events.Delete(key=key) | events.Expire(key=key):
                    print(key, "is gone")
                case events.Resync(entries=entries):
                    print([entry.key for entry in entries])


async def follow_async(cluster: tauraft.AsyncCluster) -> None:
    async with await cluster.lease(10) as lease:
        await cluster.kv.put("here/me", b"", attach=lease)
        async with cluster.kv.watch("leader") as watch:
            assert_type(await watch.next(timeout=5), events.Event)
            async for event in watch:
                assert_type(event, events.Event)
                lease.check()


def move(cluster: tauraft.Client) -> bool:
    done = cluster.kv.transaction(
        when=[Compare("stock", "value", "!=", b"0"), Compare("order", "exists", "==", False)],
        then=[Put("stock", b"0"), Put("order", b"1")],
        otherwise=[Get("stock")],
    )
    return done.succeeded
