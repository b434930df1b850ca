"""``make bench``: what three durable members on loopback give, beside the raw limits of this machine in the same run.

    python -m benchmarks.run [--seconds 2] [--rounds 3] [--idle 60] [--failovers 20] [--json FILE]

Machines are noisy: raw limits and measurements alternate, medians over the rounds are quoted, and what counts is the ratio.
Each line with a bound says whether it is kept; the exit code does not depend on it, because a busy machine proves nothing.
The raw disk is where TMPDIR is; put it on the disk that the data will be on.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.bench_cluster import BenchCluster, bench_cluster
from benchmarks.raw_limits import cold_factor, fdatasync_us, python_us, round_trip_us

IDLE_S = 60.0
SETTLE_S = 10.0  # what forming a cluster leaves to do


@dataclass(frozen=True, slots=True)
class Line:
    """One figure. ``bound``: what it is to be, and ``is_kept`` whether it is."""

    name: str
    value: float
    unit: str
    bound: str = ""
    is_kept: bool | None = None


class Samples:
    """Figures by name, over the rounds."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, name: str, value: float) -> float:
        self._values[name].append(value)
        return value

    def __getitem__(self, name: str) -> float:
        return statistics.median(self._values[name])

    def __contains__(self, name: str) -> bool:
        return name in self._values


def measure_raw(samples: Samples) -> None:
    samples.add("python", python_us())
    samples.add("fdatasync", fdatasync_us(400))
    for kind in ("tcp", "libp2p", "stream", "lane", "unix"):
        samples.add(kind, round_trip_us(kind, 600))


def measure_speed(cluster: BenchCluster, seconds: float, samples: Samples) -> None:
    for side, worker in (("in-process", cluster.leader), ("remote", cluster.client)):
        for workload, tasks in (
            ("puts", 1),
            ("puts", 64),
            ("gets", 1),
            ("gets", 64),
            ("lock_pairs", 1),
            ("contend", 16),
        ):
            found = worker.run(workload, tasks, seconds)
            samples.add(f"{side} {workload} {tasks} per second", found["per_second"])
            samples.add(f"{side} {workload} {tasks} p50", found["p50_us"])
            samples.add(f"{side} {workload} {tasks} p99", found["p99_us"])
        pairs, handed = samples[f"{side} lock_pairs 1 per second"], samples[f"{side} contend 16 per second"]
        samples.add(f"{side} hand-overs per pair", handed / pairs)


def measure_idle(cluster: BenchCluster, seconds: float) -> tuple[float, float]:
    """(mean CPU share of a member, largest resident memory in MB). The members are connected, and nobody asks for anything."""
    before = [member.ask(ask="state") for member in cluster.members]
    began = time.monotonic()
    time.sleep(seconds)
    after = [member.ask(ask="state") for member in cluster.members]
    elapsed = time.monotonic() - began
    shares = [(b["cpu_s"] - a["cpu_s"]) / elapsed for a, b in zip(before, after, strict=True)]
    return statistics.mean(shares), max(state["rss_bytes"] for state in after) / 1e6


def speed_lines(samples: Samples) -> list[Line]:
    def per_second(name: str, least: float | None = None) -> Line:
        value = samples[f"{name} per second"]
        return Line(
            name, value, "/s", "" if least is None else f">= {least:,.0f}", None if least is None else value >= least
        )

    put, raw = samples["in-process puts 1 p50"], samples["fdatasync"] + samples["tcp"]
    lines = [
        Line("raw: a fixed piece of Python", samples["python"], "us"),
        Line("raw: write and fdatasync of 200 bytes", samples["fdatasync"], "us"),
        *(Line(f"raw: {kind} round trip", samples[kind], "us") for kind in ("tcp", "lane", "libp2p", "stream", "unix")),
        Line("one put in-process", put, "us"),
        Line("one put in-process / (fdatasync + TCP)", put / raw, "x", "<= 5", put / raw <= 5),
    ]
    if "blocking put" in samples:
        ratio = samples["blocking put"] / raw
        lines.append(Line("the same by the blocking Cluster", ratio, "x", "<= 5", ratio <= 5))
    if "stream-only put" in samples:
        ratio = samples["stream-only put"] / (samples["fdatasync"] + samples["libp2p"])
        lines.append(Line("one put on the stream alone / (fdatasync + libp2p)", ratio, "x", "<= 3", ratio <= 3))
    for side, floor in (("in-process", 8_000.0), ("remote", 4_000.0)):
        pair = samples[f"{side} lock_pairs 1 p50"] / samples[f"{side} puts 1 p50"]
        handed = samples[f"{side} hand-overs per pair"]
        lines += [
            per_second(f"{side} puts 1"),
            per_second(f"{side} puts 64", floor),
            per_second(f"{side} gets 1"),
            per_second(f"{side} gets 64", 5_000.0 if side == "remote" else None),
            per_second(f"{side} lock_pairs 1"),
            Line(f"{side} lock pair / put", pair, "x", "<= 2.5", pair <= 2.5),
            Line(f"{side} hand-overs of 16 contenders / lone pairs", handed, "x", ">= 0.5", handed >= 0.5),
        ]
    return lines


def run_apart(module: str, *arguments: str) -> dict[str, Any]:
    """A benchmark that is a program of its own and says what it found in JSON."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@click.command()
@click.option("--seconds", default=2.0, show_default=True, help="Of each workload in each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--idle", default=IDLE_S, show_default=True, help="Seconds over which idle CPU is averaged; 0: not.")
@click.option("--failovers", default=20, show_default=True, help="Leaders killed; 0: none.")
@click.option(
    "--json", "path", type=click.Path(dir_okay=False), default="benchmarks/results/bench.json", show_default=True
)
def main(seconds: float, rounds: int, idle: float, failovers: int, path: str) -> None:
    console = Console()
    samples = Samples()
    lines: list[Line] = []
    if idle:
        console.print(f"idle for {idle:g} s", style="dim")
        cold = cold_factor()
        with bench_cluster() as cluster:
            time.sleep(SETTLE_S)
            share, megabytes = measure_idle(cluster, idle)
    with bench_cluster() as cluster:
        for number in range(rounds):
            console.print(f"round {number + 1} of {rounds}: raw limits, then the cluster", style="dim")
            measure_raw(samples)
            measure_speed(cluster, seconds, samples)
        loaded = max(member.ask(ask="state")["rss_bytes"] for member in cluster.members) / 1e6
    console.print("a blocking caller, then the stream alone", style="dim")
    with bench_cluster("--blocking") as cluster:
        for _ in range(rounds):
            measure_raw(samples)
            samples.add("blocking put", cluster.leader.run("puts", 1, seconds)["p50_us"])
    with bench_cluster("--stream-only") as cluster:
        for _ in range(rounds):
            measure_raw(samples)
            samples.add("stream-only put", cluster.leader.run("puts", 1, seconds)["p50_us"])
    lines += speed_lines(samples)
    if idle:
        lines.append(Line("raw: the same Python after 100 ms of sleep / at once", cold, "x"))
        lines.append(Line("idle CPU of a member", share * 100, "%", "<= 1", share <= 0.01))
        lines.append(Line("memory of an idle member", megabytes, "MB", "<= 150", megabytes <= 150))
    lines.append(Line("memory of a member after the load", loaded, "MB"))
    console.print("cold starts", style="dim")
    starts = run_apart("benchmarks.cold_start")
    for name, limit in (("alone", 3.0), ("three together", 4.0), ("three again", None)):
        found = starts[name]["median_s"]
        bound, is_kept = ("", None) if limit is None else (f"< {limit:g}", found < limit)
        lines.append(Line(f"first acknowledged write, {name}", found, "s", bound, is_kept))
    if failovers:
        console.print(f"{failovers} leaders killed", style="dim")
        found = run_apart("benchmarks.failover", "--rounds", str(failovers))
        for side in ("remote", "follower"):
            gap = found[side]["p95_ms"]
            lines.append(
                Line(f"kill -9 of the leader: writes stand still, {side}, p95", gap, "ms", "<= 1,000", gap <= 1_000)
            )
    show(console, lines)
    save(Path(path), lines)


def show(console: Console, lines: list[Line]) -> None:
    table = Table("", "measured", "to be", "")
    for line in lines:
        verdict = {None: "", True: "kept", False: "MISSED"}[line.is_kept]
        table.add_row(line.name, f"{line.value:,.{0 if line.value >= 100 else 2}f} {line.unit}", line.bound, verdict)
    console.print(table)


def save(path: Path, lines: list[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "system": platform.release()}
    path.write_text(
        json.dumps({"at": time.time(), **machine, "lines": [asdict(line) for line in lines]}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
