"""What a million entries cost later writes, and a restart: ``python -m benchmarks.growth [--entries 1000000] [--keys 100000]``.

Two lone durable members, each a process: one has written ``--entries`` log entries over ``--keys`` keys, one a thousandth of each.
While it fills, a member puts one command into an entry, so that the entries are as many as was said.  Then turns are taken: a few
hundred puts on the one, a few hundred on the other, so that a noisy machine is noisy for both; the ratio of their medians counts.
Last, the large one is killed with SIGKILL and started again: from process start until it acknowledges a write.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tauraft
from tauraft.node import proposals

NAMESPACE = "/raft/growth"
VALUE = b"v" * 100
MAX_RATIO = 1.3
MAX_RESTART_S = 10.0


async def serve(data_dir: str) -> None:
    """The member's process: orders on stdin, an object a line on stdout."""
    loop = asyncio.get_running_loop()
    async with tauraft.AsyncCluster(
        NAMESPACE, data_dir=data_dir, preset="local", bootstrap_timeout=0.1, timeout=60
    ) as cluster:
        await cluster.kv.put("first", VALUE)
        say({"ready": True})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order: dict[str, int] = json.loads(line)
            if "fill" in order:
                say(await fill(cluster, order["fill"], order["keys"]))
            else:
                say({"latencies_us": await put_one_by_one(cluster, order["measure"], order["keys"])})


async def fill(cluster: tauraft.AsyncCluster, entries: int, keys: int) -> dict[str, Any]:
    usual, proposals.MAX_BATCH_ITEMS = proposals.MAX_BATCH_ITEMS, 1
    numbers = iter(range(entries))

    async def work() -> None:
        for number in numbers:
            await cluster.kv.put(f"key/{number % keys}", VALUE)

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(64)))
    proposals.MAX_BATCH_ITEMS = usual
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "seconds": round(time.monotonic() - began, 1),
        "log_index": (await cluster.status()).commit_index,
        "keys": await cluster.kv.count("key/"),
        "memory_mb": round(pages * resource.getpagesize() / 1e6),
    }


async def put_one_by_one(cluster: tauraft.AsyncCluster, count: int, keys: int) -> list[float]:
    found = []
    for number in range(count):
        began = time.perf_counter()
        await cluster.kv.put(f"key/{number * 7919 % keys}", VALUE)
        found.append((time.perf_counter() - began) * 1e6)
    return found


def say(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


class Member:
    def __init__(self, data_dir: Path, state_dir: str) -> None:
        self.began = time.monotonic()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.growth", "--serve", str(data_dir)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**environment, "TAURAFT_STATE_DIR": state_dir},
        )  # fmt: skip
        self.hear()
        self.started_s = time.monotonic() - self.began

    def ask(self, **order: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a member ended; its words are above")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve))
        return 0
    small_size = {"fill": max(1, arguments.entries // 1_000), "keys": max(1, arguments.keys // 100)}
    with tempfile.TemporaryDirectory(prefix="growth-") as directory:
        members: list[Member] = []
        try:
            small = Member(Path(directory) / "small", f"{directory}/state-small")
            members.append(small)
            large = Member(Path(directory) / "large", f"{directory}/state-large")
            members.append(large)
            small.ask(**small_size)
            filled = large.ask(fill=arguments.entries, keys=arguments.keys)
            print(f"filled: {filled}", file=sys.stderr, flush=True)
            times: dict[str, list[float]] = {"small": [], "large": []}
            for _ in range(arguments.turns):
                times["small"] += small.ask(measure=300, keys=small_size["keys"])["latencies_us"]
                times["large"] += large.ask(measure=300, keys=arguments.keys)["latencies_us"]
            large.kill()
            again = Member(Path(directory) / "large", f"{directory}/state-large")
            members.append(again)
            restart_s = again.started_s
        finally:
            for member in members:
                member.kill()
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["large"] / medians["small"]
    say(
        {
            "filled": filled,
            "put_p50_us": {name: round(value) for name, value in medians.items()},
            "put_p99_us": {name: round(statistics.quantiles(found, n=100)[98]) for name, found in times.items()},
            "ratio": round(ratio, 2),
            "restart_s": round(restart_s, 2),
            "is_kept": ratio <= MAX_RATIO and restart_s < MAX_RESTART_S,
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
