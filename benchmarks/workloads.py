"""What the benchmark has its processes do: puts, gets and locks, by a number of tasks at once, for some seconds."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tauraft import Cluster
from tauraft.primitives import AsyncPrimitives

VALUE = bytes(100)
Step = Callable[[int, int], Awaitable[object]]


async def puts(cluster: AsyncPrimitives, tasks: int, seconds: float) -> dict[str, Any]:
    """Each task awaits one put of 100 bytes after the other; keys are distinct."""
    return await _drive(tasks, seconds, lambda task, turn: cluster.kv.put(f"bench/{task}/{turn % 1_000}", VALUE))


def puts_blocking(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """One thread, one put after the other."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter_ns()
        cluster.kv.put(f"bench/0/{len(times) % 1_000}", VALUE)
        times.append((time.perf_counter_ns() - began) / 1000)
    return {"per_second": len(times) / seconds, "p50_us": statistics.median(times)}


async def gets(cluster: AsyncPrimitives, tasks: int, seconds: float) -> dict[str, Any]:
    """Linearizable."""
    await cluster.kv.put("bench/read", VALUE)
    return await _drive(tasks, seconds, lambda task, turn: cluster.kv.get("bench/read"))


async def lock_pairs(cluster: AsyncPrimitives, tasks: int, seconds: float) -> dict[str, Any]:
    """Acquire and release of a free lock; each task has its own."""

    async def pair(task: int, turn: int) -> None:
        async with cluster.lock(f"bench/{task}"):
            pass

    return await _drive(tasks, seconds, pair)


async def contend(cluster: AsyncPrimitives, tasks: int, seconds: float) -> dict[str, Any]:
    """All tasks want one lock: what is counted is hand-overs."""

    async def turn(task: int, turn: int) -> None:
        async with cluster.lock("bench/contended"):
            pass

    return await _drive(tasks, seconds, turn)


WORKLOADS = {"puts": puts, "gets": gets, "lock_pairs": lock_pairs, "contend": contend}


async def _drive(tasks: int, seconds: float, step: Step) -> dict[str, Any]:
    times: list[int] = []

    async def work(task: int, until_ns: int) -> None:
        turn = 0
        while True:
            began = time.perf_counter_ns()
            if began >= until_ns:
                return
            await step(task, turn)
            times.append(time.perf_counter_ns() - began)
            turn += 1

    # A quarter of the time to warm up, uncounted.
    for share in (0.25, 1.0):
        times.clear()
        began, cpu_began = time.perf_counter(), time.process_time()
        until_ns = time.perf_counter_ns() + int(seconds * share * 1e9)
        await asyncio.gather(*(work(task, until_ns) for task in range(tasks)))
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    times.sort()
    return {
        "per_second": len(times) / elapsed,
        "p50_us": statistics.median(times) / 1000,
        "p99_us": times[int(len(times) * 0.99)] / 1000,
        "cpu_us": cpu / len(times) * 1e6,
    }
