"""How late the engine's loop runs while large things happen beside it: a snapshot, an installation, SQL.

    python benchmarks/loop_beat.py [--rows 1000000] [--rounds 1]

A member with ``rows`` keys, under a load of puts, (1) does nothing else, (2) takes a snapshot, (3) serves it to a second process
that joins and installs it, (4) fills DuckDB for the first query, (5) answers a query every half second while history is flushed.
In each process a task of the engine sleeps a millisecond, over and over, and notes how much later it woke.
The bound: 50 ms at the 99.9th percentile, and no election. Exit code 1 where it does not hold.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

import tauraft
from tauraft.engine import acquire, release

BOUND_MS = 50.0
NAMESPACE = "/raft/beat"


class Beat:
    """The lateness of an engine's loop, in ms."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self.engine = acquire(self)  # the process's one, also before a cluster has started it
        self.engine.post(lambda _: self.engine.spawn(self._probe, lambda *_: None), None)

    def close_at_exit(self) -> None:
        release(self, self.engine)

    async def _probe(self) -> None:
        while True:
            expected = trio.current_time() + 0.001
            await trio.sleep_until(expected)
            self.late_ms.append((trio.current_time() - expected) * 1e3)

    def during(self, work: Callable[[], Any]) -> dict[str, Any]:
        self.late_ms = []
        began = time.perf_counter()
        told = work()
        found = sorted(self.late_ms)
        at = lambda share: round(found[min(len(found) - 1, int(share * len(found)))], 2)  # noqa: E731
        return {
            "seconds": round(time.perf_counter() - began, 1), "probes": len(found), "p50": at(0.5), "p99": at(0.99),
            "p99.9": at(0.999), "max": at(1), "peak_mb": peak_mb(),
            **(told if isinstance(told, dict) else {}),
        }  # fmt: skip


def peak_mb() -> int:
    """Of this process alone: getrusage also counts what it was before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    return 0


def replica_of(cluster: tauraft.Cluster) -> Any:
    host: Any = cluster._caller.host
    return host.replica


def fill(cluster: tauraft.Cluster, rows: int) -> None:
    for start in range(0, rows, 500):
        with cluster.kv.batch() as batch:
            for number in range(start, min(start + 500, rows)):
                batch.put(f"key/{number:08}", b"value of %d" % number)


class Load:
    """One thread that puts, as fast as it is answered."""

    def __init__(self, cluster: tauraft.Cluster, rows: int) -> None:
        self.puts = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(cluster, rows))

    def _run(self, cluster: tauraft.Cluster, rows: int) -> None:
        while not self._stop.is_set():
            cluster.kv.put(f"key/{self.puts * 7919 % rows:08}", b"put %d" % self.puts)
            self.puts += 1

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def join(directory: str) -> None:
    """The second process: joins, and tells how its loop ran until it had the state."""
    importlib.import_module("tauraft.transport.libp2p.transport")  # a second of imports is not what is measured here
    beat = Beat()
    cluster = tauraft.Cluster(NAMESPACE, data_dir=directory, preset="local", timeout=60)

    def install() -> dict[str, Any]:
        cluster.start(timeout=300)
        replica = replica_of(cluster)
        while not replica.machine.generation:
            time.sleep(0.05)
        return {"installed_at": replica.machine.applied_index}

    print(json.dumps(beat.during(install)), flush=True)
    print(json.dumps(beat.during(lambda: time.sleep(5))), flush=True)
    sys.stdin.read()
    cluster.close()
    beat.close_at_exit()


def install_elsewhere(directory: str) -> dict[str, Any]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--join", directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    told = json.loads(process.stdout.readline())
    settled = json.loads(process.stdout.readline())
    process.stdin.close()
    process.wait(60)
    return {"installer": told, "installer_after": settled}


def query_often(cluster: tauraft.Cluster, seconds: float) -> dict[str, Any]:
    took = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        cluster.sql("SELECT count(*), max(revision) FROM kv WHERE key LIKE 'key/0000%'", timeout=60)
        took.append(time.perf_counter() - began)
        time.sleep(max(0.0, 0.5 - took[-1]))
    return {"query_ms": round(sorted(took)[len(took) // 2] * 1e3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--join")
    chosen = parser.parse_args()
    if chosen.join:
        join(chosen.join)
        return 0
    good = True
    with tempfile.TemporaryDirectory() as root:
        os.environ["TAURAFT_STATE_DIR"] = root
        options: dict[str, Any] = {"preset": "local", "bootstrap_timeout": 0.1, "timeout": 60}
        with tauraft.Cluster(NAMESPACE, data_dir=Path(root) / "one", **options) as cluster:
            replica = replica_of(cluster)
            replica._snapshot_entries = 1 << 40  # taken when this says so
            began = time.perf_counter()
            fill(cluster, chosen.rows)
            print(f"filled {chosen.rows} rows in {time.perf_counter() - began:.0f} s", flush=True)
            beat = Beat()
            term = cluster.status().term

            def show(name: str, work: Callable[[], Any]) -> None:
                nonlocal good
                with Load(cluster, chosen.rows) as load:
                    found = beat.during(work)
                found["puts_a_second"] = round(load.puts / found["seconds"])
                for who in ("installer", "installer_after"):
                    if who in found:
                        told = found.pop(who)
                        good &= told["p99.9"] < BOUND_MS
                        print(f"{name}, {who}: {json.dumps(told)}", flush=True)
                good &= found["p99.9"] < BOUND_MS
                print(f"{name}: {json.dumps(found)}", flush=True)

            def snapshot() -> None:
                replica._snapshot_entries = 40  # what is left of the log below it: less than who joins lacks
                cluster.snapshot()
                replica._snapshot_entries = 1 << 40

            show("load alone", lambda: time.sleep(5))
            show("snapshot", snapshot)
            show("install", lambda: install_elsewhere(str(Path(root) / "two")))
            show("first query", lambda: query_often(cluster, 0.1))
            show("queries and flushes", lambda: query_often(cluster, 10))
            elections = cluster.status().term - term
            print(f"elections: {elections}")
            good &= elections == 0
            beat.close_at_exit()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
