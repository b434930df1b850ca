"""The examples of one file do what they say."""

from __future__ import annotations

import importlib
import threading
import time
from typing import Any

import tauraft
from tauraft.testing import MemoryCluster


def example(name: str) -> Any:
    return importlib.import_module(name)


def test_a_pool_does_every_job_once_and_sets_a_bad_one_aside() -> None:
    pool = example("worker_pool")
    stop = threading.Event()
    with tauraft.Cluster("/raft/pool", storage="memory") as cluster:
        workers = [threading.Thread(target=pool.work, args=(cluster, stop)) for _ in range(3)]
        for worker in workers:
            worker.start()
        try:
            ids = pool.put(cluster, *(f"word {number}" for number in range(20)), "bad word")
            give_up = time.monotonic() + 20
            while len(pool.results(cluster)) + len(pool.jobs(cluster).dead()) < 21:
                assert time.monotonic() < give_up, "some jobs are not done"
                stop.wait(0.02)
            assert pool.results(cluster) == {id: f"WORD {number}".encode() for number, id in enumerate(ids[:-1])}
            (dead,) = pool.jobs(cluster).dead()
            assert (dead.id, dead.attempts) == (ids[-1], pool.ATTEMPTS)
            assert "cannot be shouted" in dead.history[-1]
            assert pool.jobs(cluster).len() == 0
        finally:
            stop.set()
            for worker in workers:
                worker.join()


def test_a_write_that_comes_too_late_is_refused_by_the_database() -> None:
    fencing = example("fencing")
    with MemoryCluster() as cluster:
        sleeper = cluster.lock("till", ttl=1, renew=False).acquire()
        cluster.advance(2)
        ledger = fencing.Ledger()
        assert "nothing was written" in fencing.story(sleeper, cluster, ledger)
        assert ledger.balance() == 100
