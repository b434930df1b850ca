"""Two holders never, with real processes: workers write under a lock, are stopped past their session's ttl, or killed.

    python benchmarks/two_holders.py [--rounds 100] [--workers 4]

One node, and workers that are its clients.  Each takes the lock, and writes with its token, again and again, to a resource
in this process, which looks at the tokens; a worker never looks whether it still holds the lock, so one that
was stopped (SIGSTOP) for longer than its session lives writes the moment it goes on.  In each round the present holder is
stopped until another one writes, or killed with -9.

Prints one JSON object; exits with 1 if a stale write was taken, or if none was ever tried.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import tauraft
from tauraft.errors import StaleToken
from tauraft.fencing import FencedResource

NAMESPACE = "/raft/two-holders"
SESSION_TTL_S = 1.0


def work(data_dir: str, resource: str) -> None:
    """One worker, until it is killed."""
    with tauraft.Client(NAMESPACE, data_dir=data_dir, session_ttl=SESSION_TTL_S) as client:
        while True:
            hold = client.lock("resource").acquire()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(resource)
                replies = connection.makefile("r")
                for _ in range(20):
                    connection.sendall(f"{os.getpid()} {hold.token}\n".encode())
                    if replies.readline() != "taken\n":
                        break
                    time.sleep(0.01)
            hold.release()


class Resource:
    """Takes writes on a Unix socket. ``writes`` is told of each: (pid, token, whether it was taken)."""

    def __init__(self, path: str) -> None:
        self.guard = FencedResource()
        self.taken: list[int] = []
        self.refused = 0
        self.writes: queue.Queue[tuple[int, int, bool]] = queue.Queue()
        self._lock = threading.Lock()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(path)
        self._server.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):  # it was killed
            for line in connection.makefile("r"):
                pid, token = map(int, line.split())
                with self._lock:
                    try:
                        self.guard.check(token)
                        is_taken = True
                        self.taken.append(token)
                    except StaleToken:
                        is_taken = False
                        self.refused += 1
                self.writes.put((pid, token, is_taken))
                connection.sendall(b"taken\n" if is_taken else b"stale\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    draws = random.Random(chosen.seed)
    started = time.monotonic()
    stopped = killed = stale_after_stop = 0
    handed_over_s: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TAURAFT_STATE_DIR"] = directory
        data_dir = str(Path(directory) / "node")
        path = str(Path(directory) / "resource")
        resource = Resource(path)
        workers: dict[int, subprocess.Popen[bytes]] = {}

        def start() -> None:
            process = subprocess.Popen([sys.executable, __file__, "--work", data_dir, path], stderr=subprocess.DEVNULL)
            workers[process.pid] = process

        def next_write(of: int | None = None, not_of: int | None = None, within: float = 30.0) -> tuple[int, bool]:
            """(pid, whether it was taken) of the next write of that worker, or of another one."""
            give_up = time.monotonic() + within
            while True:
                pid, _, is_taken = resource.writes.get(timeout=max(0.01, give_up - time.monotonic()))
                if (of is None or pid == of) and (not_of is None or pid != not_of):
                    return pid, is_taken

        with tauraft.Cluster(NAMESPACE, data_dir=data_dir, preset="local"):
            for _ in range(chosen.workers):
                start()
            try:
                for _ in range(chosen.rounds):
                    while not resource.writes.empty():
                        resource.writes.get()
                    holder, _ = next_write()
                    hurt_at = time.monotonic()
                    if draws.random() < 0.2:
                        killed += 1
                        process = workers.pop(holder)
                        process.kill()
                        process.wait()
                        start()
                        next_write(not_of=holder)
                        handed_over_s.append(time.monotonic() - hurt_at)
                        continue
                    os.kill(holder, signal.SIGSTOP)
                    stopped += 1
                    next_write(not_of=holder)
                    handed_over_s.append(time.monotonic() - hurt_at)
                    os.kill(holder, signal.SIGCONT)
                    process = workers[holder]
                    refused_before = resource.refused
                    give_up = time.monotonic() + 30
                    # It goes on where it was: it writes (refused), or learns at its next call that its session is lost.
                    while resource.refused == refused_before and process.poll() is None and time.monotonic() < give_up:
                        time.sleep(0.005)
                    stale_after_stop += resource.refused > refused_before
                    process.kill()
                    process.wait()
                    del workers[holder]
                    start()
            finally:
                for process in workers.values():
                    process.kill()
                    process.wait()
    stale_taken = sum(later < earlier for earlier, later in zip(resource.taken, resource.taken[1:], strict=False))
    print(
        json.dumps(
            {
                "rounds": chosen.rounds,
                "stopped": stopped,
                "killed": killed,
                "writes_taken": len(resource.taken),
                "holds": len(set(resource.taken)),
                "stale_tried_after_stop": stale_after_stop,
                "stale_refused": resource.refused,
                "stale_taken": stale_taken,
                "handover_median_s": round(sorted(handed_over_s)[len(handed_over_s) // 2], 3),
                "seconds": round(time.monotonic() - started, 1),
            }
        )
    )
    return 1 if stale_taken or not resource.refused else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3])
    else:
        sys.exit(main())
