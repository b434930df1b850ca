"""What many namespaces on one node cost: ``python -m benchmarks.many_namespaces [--count 1000] [--seconds 10]``.

Opens them one after another on one ``tauraft.Node``, writes and reads one key in each, then leaves them alone and measures what the idle process
uses: processor, memory, descriptors, disk, threads.  Says how many locks and sockets it holds (one of each), and how long closing takes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import tauraft


def memory_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def descriptors(kind: str = "") -> int:
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += kind in os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--preset", default="local")
    arguments = parser.parse_args()
    told: dict[str, object] = {"namespaces": arguments.count}
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="many-") as directory:
        os.environ["TAURAFT_STATE_DIR"] = directory
        data_dir = os.path.join(directory, "node")
        node = tauraft.Node(data_dir=data_dir, preset=arguments.preset)
        node.start()
        before_mb = memory_mb()
        began = time.monotonic()
        clusters = [node.cluster(f"/raft/many/{number}").start() for number in range(arguments.count)]
        told["start_s"] = round(time.monotonic() - began, 1)
        began = time.monotonic()
        for number, cluster in enumerate(clusters):
            cluster.set("number", str(number))
        assert [cluster.get("number") for cluster in clusters] == [str(n).encode() for n in range(len(clusters))]
        told["write_and_read_each_s"] = round(time.monotonic() - began, 1)
        time.sleep(2)
        used, wall = time.process_time(), time.monotonic()
        time.sleep(arguments.seconds)
        told["idle_cpu_percent"] = round(100 * (time.process_time() - used) / (time.monotonic() - wall), 1)
        began = time.monotonic()
        clusters[0].set("late", "write")
        told["write_while_idle_ms"] = round(1000 * (time.monotonic() - began), 1)
        told["memory_mb"] = round(memory_mb() - before_mb)
        told["descriptors"] = descriptors()
        told["locks"] = descriptors(f"{data_dir}/lock")
        disk = subprocess.run(["du", "-sm", directory], capture_output=True, text=True, check=True)
        told["disk_mb"] = int(disk.stdout.split()[0])
        began = time.monotonic()
        node.close()
        told["close_s"] = round(time.monotonic() - began, 1)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
