"""Real processes for a test, told what to do line by line, and gone when it ends, however it ends.

``Processes`` belongs to one test (the fixture ``processes``): its state directory is the test's own, so that nothing of another test, or of
the user, is found.  ``node(...)`` starts ``tests/cluster/worker.py`` with a ``tauraft.Cluster`` in it; ``ask`` has it evaluate an
expression and returns the answer, or raises ``WorkerError`` with what it raised.  ``script(...)`` runs a file as a user would.

A worker also ends when its standard input does, so that a killed test run leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


class WorkerError(Exception):
    """What the expression raised: ``kind`` is the class's name."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class Worker:
    """One process. Lines of its standard output are taken with ``line``; standard error is kept in a file."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], directory: Path, log: Path) -> None:
        self._log = log
        self.begun: dict[str, Any] = {}  # what it was begun with, to begin it again
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=directory,
                start_new_session=True,
            )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def errors(self) -> str:
        return self._log.read_text(errors="replace")

    def line(self, patience_s: float = PATIENCE_S) -> str:
        """The next line it prints. Raises ``AssertionError`` with its standard error when none comes."""
        try:
            line = self._lines.get(timeout=patience_s)
        except queue.Empty:
            raise AssertionError(f"process {self.pid} said nothing for {patience_s:g} s; {self.errors}") from None
        if not line:
            self._lines.put(b"")
            raise AssertionError(f"process {self.pid} ended ({self.process.wait()}): {self.errors}")
        return line.decode().rstrip("\n")

    def send(self, expression: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(expression).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, patience_s: float = PATIENCE_S) -> Any:
        told = json.loads(self.line(patience_s))
        if "error" in told:
            raise WorkerError(*told["error"])
        return told["value"]

    def ask(self, expression: str, patience_s: float = PATIENCE_S) -> Any:
        """The value of ``expression`` there, where ``cluster`` and ``tauraft`` are known."""
        self.send(expression)
        return self.answer(patience_s)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        if self.is_alive():
            self.process.send_signal(number)

    def end(self, patience_s: float = PATIENCE_S) -> int:
        """Close its input, which ends a worker cleanly. Returns its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(patience_s)

    def discard(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                pass
        self._reader.join(5)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")


class Processes:
    """All processes of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.state.mkdir(mode=0o700)
        self._workers: list[Worker] = []
        paths = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "primitives")]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TAURAFT_")}
        self.environment = {**inherited, "TAURAFT_STATE_DIR": str(self.state), "PYTHONPATH": os.pathsep.join(paths)}

    def start(self, arguments: Sequence[str], **environment: str) -> Worker:
        log = self.directory / f"process-{len(self._workers)}.err"
        worker = Worker(arguments, {**self.environment, **environment}, self.directory, log)
        self._workers.append(worker)
        return worker

    def script(self, source: str, *arguments: str) -> Worker:
        path = self.directory / f"script-{len(self._workers)}.py"
        path.write_text(source, encoding="utf-8")
        return self.start([str(path), *arguments])

    def begin(self, namespace: str = "/raft/test", kind: str = "Cluster", **options: Any) -> Worker:
        """A worker that is starting: the first ``answer`` is its state, or the error of its start."""
        if kind == "Cluster":
            options = {"preset": "local", **options}
        worker = self.start(["-m", "tests.cluster.worker", kind, namespace, json.dumps(options)])
        worker.begun = {"namespace": namespace, "kind": kind, **options}
        return worker

    def again(self, ended: Worker) -> Worker:
        """The same once more, from the same directory."""
        return self.node(**ended.begun)

    def node(self, namespace: str = "/raft/test", kind: str = "Cluster", **options: Any) -> Worker:
        """A worker that serves."""
        worker = self.begin(namespace, kind, **options)
        worker.answer()
        return worker

    def nodes(self, count: int, namespace: str = "/raft/test", **options: Any) -> list[Worker]:
        """Members with a data directory each (``d0``, ``d1``, ...), started at once; returns when all serve."""
        begun = [
            self.begin(namespace, data_dir=str(self.directory / f"d{number}"), **options) for number in range(count)
        ]
        for worker in begun:
            worker.answer()
        return begun

    def end(self) -> None:
        for worker in self._workers:
            worker.discard()


def eventually(holds: Callable[[], Any], why: str, patience_s: float = PATIENCE_S) -> Any:
    """What ``holds`` gives as soon as that is true. Raises ``AssertionError`` saying ``why`` it was waited for."""
    give_up = time.monotonic() + patience_s
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < give_up, f"not within {patience_s:g} s: {why}"
        time.sleep(0.02)
