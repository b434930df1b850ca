"""Three member processes and a client process for a benchmark, in a directory that goes with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Worker:
    """One process of ``benchmarks.worker``."""

    def __init__(self, arguments: Sequence[str], state_dir: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TAURAFT_STATE_DIR": state_dir},
        )  # fmt: skip
        self.ready: dict[str, Any] = {}

    def wait_until_ready(self) -> Worker:
        self.ready = self.hear()
        return self

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def run(self, workload: str, tasks: int, seconds: float) -> dict[str, Any]:
        return self.ask(run=workload, tasks=tasks, seconds=seconds)

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a process of the benchmark ended; its words are above")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class BenchCluster:
    def __init__(self, directory: str, *options: str) -> None:
        self.directory = directory
        self.members = [
            Worker(["member", os.path.join(directory, f"node-{number}"), *options], directory) for number in range(3)
        ]
        for member in self.members:
            member.wait_until_ready()
        addresses = [address for member in self.members for address in member.ready["addresses"]]
        while self.members[0].ask(ask="state")["voters"] < 3:
            time.sleep(0.1)
        self._addresses = addresses
        self._options = options
        self._client: Worker | None = None

    @property
    def client(self) -> Worker:
        """A process of its own, started when it is first asked for."""
        if self._client is None:
            options = [option for option in self._options if option == "--profile"]
            self._client = Worker(["client", *self._addresses, *options], self.directory).wait_until_ready()
        return self._client

    @property
    def leader(self) -> Worker:
        while True:
            for member in self.members:
                if member.ask(ask="state")["is_leader"]:
                    return member
            time.sleep(0.1)

    def close(self) -> None:
        for worker in (*([] if self._client is None else [self._client]), *self.members):
            worker.close()


@contextmanager
def bench_cluster(*options: str) -> Iterator[BenchCluster]:
    with tempfile.TemporaryDirectory() as directory:
        cluster = BenchCluster(directory, *options)
        try:
            yield cluster
        finally:
            cluster.close()
