"""Consumers killed at random lose nothing: ``python -m benchmarks.queue_soak [--items 100000] [--consumers 16]``.

One node in this process; each consumer is a process of its own that claims items and ends each in one transaction with a mark
of it in the key-value store, which is refused if the mark is there.  One item in a hundred is unreadable, and is buried; now and then a
consumer gives one back, or lets its claim run out.  Meanwhile consumers are killed with SIGKILL, one after another, and started again.

At the end every item must have ended once: marked or dead, not both, none left.  Prints one JSON object; exits 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import tauraft
from tauraft.commands import Ack
from tauraft_primitives.kv.messages import PutIf

NAMESPACE = "/raft/soak"
BATCH = 500


def consume(data_dir: str, seed: int) -> None:
    draw = random.Random(seed)
    with tauraft.Client(NAMESPACE, data_dir=data_dir, timeout=60) as client:
        queue = client.queue("jobs")
        while True:
            with contextlib.suppress(tauraft.QueueEmpty, tauraft.StaleClaim):
                for job in queue.claim_many(draw.randint(1, 20), visibility=draw.choice([5, 30]), timeout=60):
                    end(client, job, draw.random())


def end(client: tauraft.Client, job: tauraft.Claim, chance: float) -> None:
    if job.body == b"unreadable":
        job.bury("unreadable")
    elif chance < 0.01:
        job.nack(delay=chance * 10)
    elif chance < 0.015:
        pass  # forgotten: its visibility runs out
    else:
        client.transaction(Ack(job.token), PutIf(f"done/{job.id}", b"", if_absent=True))


class Consumers:
    def __init__(self, data_dir: str, count: int) -> None:
        self._data_dir = data_dir
        self._draw = random.Random(7)
        self._processes = [self._start() for _ in range(count)]
        self.killed = 0

    def _start(self) -> subprocess.Popen[bytes]:
        seed = str(self._draw.getrandbits(32))
        return subprocess.Popen([sys.executable, "-m", "benchmarks.queue_soak", "--consume", self._data_dir, seed])

    def kill_one(self) -> None:
        place = self._draw.randrange(len(self._processes))
        process = self._processes[place]
        assert process.poll() is None, f"a consumer ended by itself ({process.returncode})"
        process.kill()
        process.wait()
        self.killed += 1
        self._processes[place] = self._start()

    def stop(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


def fill(queue: tauraft.Queue, items: int) -> None:
    for start in range(0, items, BATCH):
        queue.put_many(
            [b"unreadable" if number % 100 == 0 else b"%d" % number for number in range(start, start + BATCH)]
        )


def marked(cluster: tauraft.Cluster) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = cluster.kv.keys("done/", cursor=cursor)
        found += [key.removeprefix("done/") for key in page]
        cursor = page.cursor
        if cursor is None:
            return found


def main() -> int:
    if sys.argv[1:2] == ["--consume"]:
        consume(sys.argv[2], int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--consumers", type=int, default=16)
    parser.add_argument("--kill-every", type=float, default=1.0, help="Seconds between two kills.")
    arguments = parser.parse_args()
    items = arguments.items // BATCH * BATCH
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        os.environ["TAURAFT_STATE_DIR"] = directory
        data_dir = f"{directory}/node"
        with tauraft.Cluster(NAMESPACE, data_dir=data_dir, preset="local", timeout=60) as cluster:
            queue = cluster.queue("jobs")
            started = time.monotonic()
            fill(queue, items)
            filled = time.monotonic()
            consumers = Consumers(data_dir, arguments.consumers)
            try:
                while queue.len():
                    time.sleep(arguments.kill_every)
                    consumers.kill_one()
                emptied = time.monotonic()
            finally:
                consumers.stop()
            stats = queue.stats()
            done, dead = marked(cluster), [item.id for item in queue.dead(items)]
    ended_once = len(done) + len(dead) == len({*done, *dead}) == items
    told = {
        "items": items,
        "acknowledged": len(done),
        "dead": len(dead),
        "left": stats.ready + stats.delayed + stats.claimed,
        "ended_once": ended_once,
        "consumers_killed": consumers.killed,
        "puts_per_s": round(items / (filled - started)),
        "ends_per_s": round(items / (emptied - filled)),
    }
    print(json.dumps(told))
    return 0 if ended_once and len(dead) == items // 100 else 1


if __name__ == "__main__":
    sys.exit(main())
