"""A process with a cluster (or client) in it: ``python -m tests.cluster.worker Cluster /raft/test '{"preset": "local"}'``.

Prints the state once it has started, then evaluates one expression a line (as JSON) and prints the value, or the error, as JSON.
Ends cleanly when its input does.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import Any

import tauraft
from tauraft.cli.cluster import plain


class Writes:
    """Puts one key after another from a thread of its own, and notes what was acknowledged, and when."""

    def __init__(self, cluster: Any, name: str, timeout: float = 20.0) -> None:
        self.acknowledged: list[str] = []
        self.times: list[float] = []
        self.errors: list[str] = []
        self._cluster, self._name, self._timeout = cluster, name, timeout
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            key = f"{self._name}/{number:06}"
            number += 1
            try:
                self._cluster.kv.put(key, key, timeout=self._timeout)
            except tauraft.TauraftError as error:
                self.errors.append(repr(error))
                continue
            self.acknowledged.append(key)
            self.times.append(time.monotonic())
            self._stop.wait(0.002)

    def end(self) -> dict[str, Any]:
        self._stop.set()
        self._thread.join()
        gaps = [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]
        return {"keys": self.acknowledged, "longest_gap_s": max(gaps, default=0.0), "errors": self.errors}


def fill(cluster: Any) -> list[Exception]:
    """Write until it is refused, and what was said then and when asked again."""
    errors: list[Exception] = []
    for number in range(10_000):
        try:
            cluster.kv.put(f"filler/{number}", b"x" * 50_000, timeout=5)
        except Exception as error:
            errors.append(error)
            if len(errors) == 2:
                break
    return errors


def limit_files(size_bytes: int) -> None:
    """No file of this process grows beyond: writing fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def say(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


def main(kind: str, namespace: str, options: str) -> None:
    known: dict[str, Any] = {
        "tauraft": tauraft, "os": os, "time": time, "Writes": Writes, "fill": fill, "limit_files": limit_files, "kept": {},
    }  # fmt: skip
    given = json.loads(options)
    if isinstance(given.get("encryption_key"), str):
        given["encryption_key"] = bytes.fromhex(given["encryption_key"])
    patience_s = given.pop("start_timeout", 60)
    try:
        cluster = getattr(tauraft, kind)(namespace, **given)
        cluster.start(timeout=patience_s)
    except Exception as error:
        say({"error": [type(error).__name__, str(error)]})
        return
    known["cluster"] = cluster
    say({"value": getattr(cluster, "state", "client")})
    try:
        for line in sys.stdin:
            try:
                value = eval(json.loads(line), known)
            except Exception as error:
                say({"error": [type(error).__name__, str(error)]})
            else:
                say({"value": value if isinstance(value, dict) else plain(value)})
    finally:
        cluster.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
