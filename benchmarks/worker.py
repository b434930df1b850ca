"""A process of the benchmark: a member with a data directory of its own, or a remote client. Obeys lines of JSON.

    python -m benchmarks.worker member DIRECTORY [--stream-only | --blocking]
    python -m benchmarks.worker client ADDRESS...

It says ``{"event": "ready", ...}``, then answers each line ``{"run": workload, "tasks": n, "seconds": s}`` or
``{"ask": "state"}`` with one line, until its input ends. ``--blocking``: it is written with ``Cluster``, and runs ``puts`` of one task.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import time
from typing import Any

import psutil

from benchmarks.workloads import WORKLOADS, puts_blocking
from tauraft import Cluster
from tauraft.cluster import AsyncClient, AsyncCluster

NAMESPACE = "/raft/bench"


async def serve(cluster: AsyncCluster | AsyncClient) -> None:
    loop = asyncio.get_running_loop()
    process = psutil.Process()
    async with cluster:
        say({"event": "ready", "pid": os.getpid(), "addresses": list(getattr(cluster, "addresses", ()))})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order = json.loads(line)
            if "run" in order:
                say(await WORKLOADS[order["run"]](cluster, order["tasks"], order["seconds"]))
            else:
                say(
                    {
                        "is_leader": getattr(cluster, "is_leader", False),
                        "members": len(await cluster.members()),
                        "voters": sum(member.role == "voter" for member in await cluster.members()),
                        "cpu_s": sum(process.cpu_times()[:2]),
                        "rss_bytes": process.memory_info().rss,
                    }
                )


def serve_blocking(cluster: Cluster) -> None:
    with cluster:
        say({"event": "ready", "pid": os.getpid(), "addresses": list(cluster.addresses)})
        for line in sys.stdin:
            order = json.loads(line)
            if "run" in order:
                say(puts_blocking(cluster, order["seconds"]))
            else:
                voters = sum(member.role == "voter" for member in cluster.members())
                say({"is_leader": cluster.is_leader, "voters": voters})


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    kind, *rest = sys.argv[1:]
    if "--profile" in rest:
        rest.remove("--profile")
        _profile_engine()
    if kind == "client":
        asyncio.run(serve(AsyncClient(NAMESPACE, rest)))
        return
    if "--blocking" in rest:
        serve_blocking(Cluster(NAMESPACE, data_dir=rest[0], preset="local", expect=3))
        return
    if "--stream-only" in rest:
        from tauraft.transport.libp2p import transport

        transport.Libp2pTransport = functools.partial(transport.Libp2pTransport, lanes=False)  # type: ignore[misc,assignment]
    asyncio.run(serve(AsyncCluster(NAMESPACE, data_dir=rest[0], preset="local", expect=3)))


def _profile_engine() -> None:
    """cProfile over the engine's thread; the table goes to standard error when it stops."""
    import cProfile
    import pstats

    import trio

    plain = trio.run

    def profiled(*arguments: Any, **options: Any) -> Any:
        profile = cProfile.Profile(time.thread_time)  # waiting costs nothing
        try:
            return profile.runcall(plain, *arguments, **options)
        finally:
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(45)

    trio.run = profiled


if __name__ == "__main__":
    main()
