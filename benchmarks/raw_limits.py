"""What this machine gives without tauraft: a small durable append, and round trips by each kind of lane."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from benchmarks import lane_rtt


def fdatasync_us(count: int = 1_000) -> float:
    """Median of a 200-byte write and its fdatasync, in a file filled with zeros beforehand, as the log's segments are."""
    with tempfile.TemporaryFile() as file:
        descriptor = file.fileno()
        os.pwrite(descriptor, bytes(count * 256), 0)
        os.fsync(descriptor)
        times = []
        for turn in range(count):
            began = time.perf_counter_ns()
            os.pwrite(descriptor, bytes(200), turn * 256)
            os.fdatasync(descriptor)
            times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1000


def round_trip_us(kind: str, count: int = 2_000) -> float:
    """Median round trip of 200 bytes: ``tcp``, ``libp2p`` (the bare library), ``stream`` (our channel on it), ``lane``, ``unix``."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, str(Path(lane_rtt.__file__)), "serve", kind, os.path.join(directory, "socket")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            where = process.stdout.readline().strip()
            p50, _ = trio.run(lane_rtt.measure, kind, where, count)
            process.stdin.close()
            process.wait(10)
    return p50


def python_us(turns: int = 1_000) -> float:
    """Median CPU time of a fixed piece of Python: machines differ, and so do builds of the interpreter."""
    return statistics.median(_work_us() for _ in range(turns))


def cold_factor(pause_s: float = 0.1, turns: int = 30) -> float:
    """How much longer it takes after a pause of an idle node: caches, and what a hypervisor gave to others."""
    cold = []
    for _ in range(turns):
        time.sleep(pause_s)
        cold.append(_work_us())
    return statistics.median(cold) / python_us()


_NUMBERS = {number: str(number) for number in range(2_000)}


def _work_us() -> float:
    began = time.thread_time_ns()
    json.dumps(sum(len(_NUMBERS[number * 37 % 2_000]) for number in range(300)))
    return (time.thread_time_ns() - began) / 1000
