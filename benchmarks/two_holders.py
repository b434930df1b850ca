"""Two holders never, with real processes: workers write under a lock, and are stopped past their session's ttl, cut off, or killed.

    python -m benchmarks.two_holders [--rounds 200] [--workers 4]

One node, and workers that are its clients.  Each takes the lock, and writes with its token, again and again, to a resource
in this process, which looks at the tokens; a worker never looks whether it still holds the lock.  In each round the present
holder is stopped (SIGSTOP) until another one writes, and writes the moment it goes on; or it is cut off from the node, not from
the resource, and writes on until it is refused; or it is killed with -9.

To be cut off, each worker has a network namespace of its own, which needs root and ``ip``; without them nobody is cut off.

Prints one JSON object; exits with 1 if a stale write was taken, or if none was ever tried.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import shutil
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


KEY = bytes(range(32))


def work(resource: str, addresses: list[str]) -> None:
    """One worker, until it is killed."""
    with tauraft.Client(NAMESPACE, addresses, session_ttl=SESSION_TTL_S, encryption_key=KEY) as client:
        while True:
            hold = client.lock("resource").acquire()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(resource)
                replies = connection.makefile("r")
                left = 20
                while left:
                    connection.sendall(f"{os.getpid()} {hold.token}\n".encode())
                    reply = replies.readline()
                    if reply == "stale\n":
                        break
                    left -= reply != "go on\n"
                    time.sleep(0.01)
            hold.release()


class Network:
    """A network namespace for each worker, and a bridge that the node listens on. All named after this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._name = f"tau{os.getpid() % 1_000_000}"
        self._subnet = f"10.231.{os.getpid() % 250}"
        self.is_there = os.geteuid() == 0 and shutil.which("ip") is not None
        self.listen = f"/ip4/{self._subnet if self.is_there else '127.0.0'}.1/tcp/0"

    def __enter__(self) -> Network:
        if self.is_there:
            self._ip("link", "add", self._name, "type", "bridge")
            self._ip("addr", "add", f"{self._subnet}.1/24", "dev", self._name)
            self._ip("link", "set", self._name, "up")
            for place in range(self.workers):
                name = self._of(place)
                self._ip("netns", "add", name)
                self._ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
                self._ip("link", "set", name, "master", self._name, "up")
                self._ip("-n", name, "addr", "add", f"{self._subnet}.{place + 2}/24", "dev", "eth0")
                self._ip("-n", name, "link", "set", "eth0", "up")
                self._ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_there:
            for place in range(self.workers):
                self._ip("netns", "delete", self._of(place), check=False)
            self._ip("link", "delete", self._name, check=False)

    def inside(self, place: int, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self._of(place), *command] if self.is_there else command

    def cut(self, place: int, is_cut: bool) -> None:
        self._ip("link", "set", self._of(place), "down" if is_cut else "up")

    def _of(self, place: int) -> str:
        return f"{self._name}w{place}"

    def _ip(self, *arguments: str, check: bool = True) -> None:
        subprocess.run(["ip", *arguments], check=check, capture_output=not check)


class Resource:
    """Takes writes on a Unix socket. ``writes`` is told of each: (pid, token, whether it was taken)."""

    def __init__(self, path: str) -> None:
        self.guard = FencedResource()
        self.taken: list[int] = []
        self.refused = 0
        self.goes_on: int | None = None  # the worker that is to write until it is refused
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
                reply = b"go on\n" if pid == self.goes_on else b"taken\n"
                connection.sendall(reply if is_taken else b"stale\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    draws = random.Random(chosen.seed)
    started = time.monotonic()
    counted = dict.fromkeys(("stopped", "cut_off", "killed", "stale_after_stop", "stale_while_cut_off"), 0)
    handed_over_s: list[float] = []
    with tempfile.TemporaryDirectory() as directory, Network(chosen.workers) as network:
        os.environ["TAURAFT_STATE_DIR"] = directory
        path = str(Path(directory) / "resource")
        resource = Resource(path)
        workers: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}  # by their pid, as they tell it: place and process

        def start(place: int) -> None:
            command = [sys.executable, "-m", "benchmarks.two_holders", "--work", path, *addresses]
            process = subprocess.Popen(network.inside(place, command), stderr=subprocess.DEVNULL)
            workers[process.pid] = (place, process)  # `ip netns exec` becomes the command

        def end(pid: int) -> int:
            place, process = workers.pop(pid)
            process.kill()
            process.wait()
            return place

        def next_write(of: int | None = None, not_of: int | None = None, within: float = 30.0) -> tuple[int, bool]:
            """(pid, whether it was taken) of the next write of that worker, or of another one."""
            give_up = time.monotonic() + within
            while True:
                pid, _, is_taken = resource.writes.get(timeout=max(0.01, give_up - time.monotonic()))
                if (of is None or pid == of) and (not_of is None or pid != not_of):
                    return pid, is_taken

        def was_refused(pid: int, refused_before: int) -> bool:
            """It writes and is refused, or learns at its next call that its session is lost, and ends."""
            give_up = time.monotonic() + 30
            while resource.refused == refused_before and time.monotonic() < give_up:
                if workers[pid][1].poll() is not None:
                    break
                time.sleep(0.005)
            return resource.refused > refused_before

        data_dir = str(Path(directory) / "node")
        with tauraft.Cluster(
            NAMESPACE, data_dir=data_dir, preset="local", listen=[network.listen], encryption_key=KEY
        ) as cluster:
            addresses = list(cluster.addresses)
            for place in range(chosen.workers):
                start(place)
            try:
                for _ in range(chosen.rounds):
                    while not resource.writes.empty():
                        resource.writes.get()
                    holder, _ = next_write()
                    hurt_at = time.monotonic()
                    fate = draws.random()
                    refused_before = resource.refused
                    if fate < 0.2:
                        counted["killed"] += 1
                        place = end(holder)
                        next_write(not_of=holder)
                        handed_over_s.append(time.monotonic() - hurt_at)
                    elif fate < 0.6 and network.is_there:
                        counted["cut_off"] += 1
                        resource.goes_on = holder
                        network.cut(workers[holder][0], True)
                        next_write(not_of=holder)
                        handed_over_s.append(time.monotonic() - hurt_at)
                        counted["stale_while_cut_off"] += was_refused(holder, refused_before)
                        place = end(holder)
                        resource.goes_on = None
                        network.cut(place, False)
                    else:
                        counted["stopped"] += 1
                        os.kill(holder, signal.SIGSTOP)
                        next_write(not_of=holder)
                        handed_over_s.append(time.monotonic() - hurt_at)
                        os.kill(holder, signal.SIGCONT)
                        counted["stale_after_stop"] += was_refused(holder, refused_before)
                        place = end(holder)
                    start(place)
            finally:
                for pid in list(workers):
                    end(pid)
    stale_taken = sum(later < earlier for earlier, later in zip(resource.taken, resource.taken[1:], strict=False))
    print(
        json.dumps(
            {
                "rounds": chosen.rounds,
                **counted,
                "writes_taken": len(resource.taken),
                "holds": len(set(resource.taken)),
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
        work(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
