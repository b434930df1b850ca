"""Seconds from the start of a process to its first acknowledged write, imports included: ``python -m benchmarks.cold_start``.

Four cases on empty directories, preset ``local``: a node alone; a second process of the same script (a standby); three nodes with a
directory each started at once (the slowest counts); and all three started again after kill -9.  ``--imports`` prints the twenty most
expensive imports of the first case.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster.harness import Processes, Worker

SCRIPT = """
import sys
import tauraft
directory = sys.argv[1] or None
with tauraft.Cluster("/raft/cold", preset="local", data_dir=directory) as cluster:
    cluster.kv.put("first", b"write")
    print(cluster.state, flush=True)
    sys.stdin.read()
"""


def start(processes: Processes, directories: list[str]) -> tuple[float, list[Worker]]:
    """Until the last of them has its first write acknowledged."""
    began = time.monotonic()
    workers = [processes.script(SCRIPT, directory) for directory in directories]
    for worker in workers:
        worker.line()
    return time.monotonic() - began, workers


def one_round() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="cold-start-") as directory:
        processes = Processes(Path(directory))
        try:
            found = {}
            found["alone"], first = start(processes, [""])
            found["standby"], second = start(processes, [""])
            for worker in first + second:
                worker.kill()
            three = [str(Path(directory) / f"d{number}") for number in range(3)]
            found["three together"], workers = start(processes, three)
            for worker in workers:
                worker.kill()
            found["three again"], workers = start(processes, three)
        finally:
            processes.end()
    return found


def imports() -> str:
    with tempfile.TemporaryDirectory(prefix="cold-start-") as directory:
        environment = {**os.environ, "TAURAFT_STATE_DIR": directory}
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", SCRIPT, ""],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=True,
        )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:") and "self" not in line]
    lines.sort(key=lambda line: -int(line.split("|")[1]))
    return "\n".join(lines[:20])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--imports", action="store_true")
    arguments = parser.parse_args()
    if arguments.imports:
        print(imports())
        return
    rounds = [one_round() for _ in range(arguments.rounds)]
    print(
        json.dumps(
            {
                case: {
                    "median_s": round(statistics.median(found[case] for found in rounds), 2),
                    "max_s": round(max(found[case] for found in rounds), 2),
                }
                for case in rounds[0]
            }
        )
    )


if __name__ == "__main__":
    main()
