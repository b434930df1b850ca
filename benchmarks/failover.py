"""How long writes stand still when the leader's process is killed: ``python -m benchmarks.failover [--rounds 20]``.

Three voters, each a process with a data directory of its own.  Two writers put one key after another: a ``Client`` over libp2p in this
process, and the process of a follower itself.  Each round kills the leader with SIGKILL and measures, for each writer, the longest
pause between two acknowledgements around the kill; then the killed one is started again and caught up.

At the end every acknowledged key must be there (none lost) in version 1 (none applied twice), else the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tauraft
from tests.cluster.harness import Processes, Worker, eventually
from tests.cluster.worker import Writes

NAMESPACE = "/raft/failover"


class Run:
    def __init__(self, processes: Processes, preset: str) -> None:
        self.processes, self.preset = processes, preset
        self.nodes: list[Worker] = processes.nodes(3, NAMESPACE, preset=preset)
        self.gaps: dict[str, list[float]] = {"remote": [], "follower": []}
        self.acknowledged: list[str] = []
        self.errors: list[str] = []

    def settle(self) -> None:
        eventually(
            lambda: all(
                node.ask("[m.role for m in cluster.members()]") == ["voter"] * 3 and node.ask("cluster.leader")
                for node in self.nodes
            ),
            "three voters that know their leader",
        )
        # Caught up, or the round would measure the catching up.
        indexes = lambda: [node.ask("cluster.status().applied_index") for node in self.nodes]  # noqa: E731
        eventually(lambda: max(found := indexes()) - min(found) < 20, "all are caught up")

    def round(self, number: int) -> None:
        self.settle()
        leader = next(node for node in self.nodes if node.ask("cluster.is_leader"))
        place = self.nodes.index(leader)
        follower = self.nodes[(place + 1) % 3]
        addresses = [address for node in self.nodes for address in node.ask("list(cluster.addresses)")]
        with tauraft.Client(NAMESPACE, addresses, timeout=20) as client:
            remote = Writes(client, f"remote-{number}")
            follower.ask(f"kept.__setitem__('writes', Writes(cluster, 'follower-{number}'))")
            time.sleep(0.5)
            killed_at = time.monotonic()
            leader.kill()

            def go_on() -> bool:
                last = follower.ask("kept['writes'].times[-1]")
                return bool(min(last, remote.times[-1]) > killed_at + 0.05 and time.monotonic() > killed_at + 0.7)

            eventually(go_on, "writes flow again")
            time.sleep(0.3)
            told: dict[str, Any] = {"remote": remote.end(), "follower": follower.ask("kept['writes'].end()")}
        for name, found in told.items():
            self.gaps[name].append(found["longest_gap_s"])
            self.acknowledged += found["keys"]
            self.errors += found["errors"]
        self.nodes[place] = self.processes.node(
            NAMESPACE, data_dir=str(self.processes.directory / f"d{place}"), preset=self.preset
        )

    def judge(self) -> tuple[int, int]:
        """(lost, applied twice)"""
        self.settle()
        node = self.nodes[0]
        versions: dict[str, int] = {}
        for writer in ("remote", "follower"):
            for number in range(len(self.gaps["remote"])):
                versions.update(node.ask(f"{{e.key: e.version for e in cluster.kv.items('{writer}-{number}/')}}"))
        lost = sum(key not in versions for key in self.acknowledged)
        return lost, sum(version != 1 for version in versions.values())


def summary(gaps: list[float]) -> dict[str, float]:
    ordered = sorted(gaps)
    return {
        "p50_ms": round(1000 * statistics.median(ordered)),
        "p95_ms": round(1000 * ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]),
        "max_ms": round(1000 * ordered[-1]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--preset", default="local")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="failover-") as directory:
        processes = Processes(Path(directory))
        try:
            run = Run(processes, arguments.preset)
            for number in range(arguments.rounds):
                run.round(number)
                last = {name: round(1000 * gaps[-1]) for name, gaps in run.gaps.items()}
                print(f"round {number + 1}: {last} ms", file=sys.stderr, flush=True)
            lost, twice = run.judge()
        finally:
            processes.end()
    print(
        json.dumps(
            {
                "rounds": arguments.rounds,
                "preset": arguments.preset,
                **{name: summary(gaps) for name, gaps in run.gaps.items()},
                "acknowledged": len(run.acknowledged),
                "lost": lost,
                "applied_twice": twice,
                "errors": run.errors,
            }
        )
    )
    return 1 if lost or twice else 0


if __name__ == "__main__":
    sys.exit(main())
