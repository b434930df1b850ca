"""Queues, counters and ids as a user writes them; every type is what the call says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

import tauraft
from tauraft.commands import Ack, Add, CheckHold, Enqueue, Put


def produce_and_consume(cluster: tauraft.Cluster) -> None:
    jobs = cluster.queue("jobs", max_attempts=3)
    put = jobs.put(b"resize 1", id="image-1", priority=5, delay=0.5, group="images", ttl=60, headers={"by": "web"})
    assert_type(put, tauraft.Enqueued)
    assert_type(jobs.put_many(["a", b"b"]), list[tauraft.Enqueued])
    with jobs.claim(visibility=30, timeout=5) as job:
        assert_type(job, tauraft.Claim)
        assert_type(job.body, bytes)
        assert_type(job.headers, Mapping[str, str])
        job.extend(30)
    job = jobs.claim(groups=["images"])
    assert_type(job.token, int)
    job.nack(delay=1, reason="later")
    assert_type(jobs.claim_many(10), list[tauraft.Claim])
    assert_type(jobs.dead(), list[tauraft.Item])
    assert_type(jobs.stats().oldest_age, float | None)
    assert_type(jobs.push("id", b""), bool)
    assert_type(jobs.pop(), tauraft.Item)
    assert_type(jobs.len() + jobs.purge() + jobs.redrive(), int)


async def the_same_awaited(cluster: tauraft.AsyncClient) -> None:
    jobs = cluster.queue("jobs")
    async with jobs.claim(timeout=None) as job:
        assert_type(job, tauraft.AsyncClaim)
        job.check()
    claiming = jobs.claim()
    assert_type(claiming, tauraft.AsyncClaiming)
    job = await claiming
    await job.ack()
    assert_type(await jobs.claim_many(2), list[tauraft.AsyncClaim])


def one_step(cluster: tauraft.Client, job: tauraft.Claim, hold: tauraft.Hold) -> None:
    outbox = cluster.transaction(Enqueue("mails", b"hello"), Put("greeted", b"yes"), CheckHold(hold.token))
    assert_type(outbox, tuple[tauraft.Enqueued, int, None])
    assert_type(cluster.transaction(Ack(job.token), Add("done")), tuple[None, int])


def numbers(cluster: tauraft.Cluster) -> None:
    assert_type(cluster.counter("hits").add(), int)
    assert_type(cluster.counter("hits").reset(), int)
    orders = cluster.ids("orders", block=50)
    assert_type(orders.next(), int)
    assert_type(orders.reserve(10), range)
