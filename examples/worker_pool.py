"""A pool of workers on one queue: start as many as you like, on as many hosts as you like, and kill any of them.

    python worker_pool.py work           # in three terminals
    python worker_pool.py put one two three bad
    python worker_pool.py show

An item is claimed by one worker at a time. A worker that is killed, or too slow, loses its claim, and another does the item; whoever
comes late is told so by its token. An item that fails three times is set aside with the reason, and holds up nobody.
"""

from __future__ import annotations

import sys
import threading

import tauraft

ATTEMPTS = 3


def jobs(cluster: tauraft.Cluster) -> tauraft.Queue:
    return cluster.queue("jobs", max_attempts=ATTEMPTS)


def do(body: bytes) -> bytes:
    """The work: here, to shout."""
    if body.startswith(b"bad"):
        raise ValueError(f"{body.decode()} cannot be shouted")
    return body.upper()


def work(cluster: tauraft.Cluster, stop: threading.Event) -> None:
    """One worker, until ``stop``. Threads of one process and processes of many hosts alike."""
    queue = jobs(cluster)
    while not stop.is_set():
        try:
            claim = queue.claim(visibility=30, timeout=0.5)
        except tauraft.QueueEmpty:
            continue
        try:
            result = do(claim.body)
        except ValueError as error:
            claim.nack(reason=str(error))
            continue
        # Under the item's id: whoever else did it too wrote the same.
        cluster.kv.put(f"results/{claim.id}", result)
        try:
            claim.ack()
        except tauraft.StaleClaim:
            print(f"{claim.id} took too long, and was given to another", file=sys.stderr)


def put(cluster: tauraft.Cluster, *bodies: str) -> list[str]:
    return [item.id for item in jobs(cluster).put_many(bodies)]


def results(cluster: tauraft.Cluster) -> dict[str, bytes]:
    return {entry.key.removeprefix("results/"): entry.value for entry in cluster.kv.items("results/")}


def main() -> None:
    command, *arguments = sys.argv[1:] or ["show"]
    with tauraft.Cluster("/raft/worker-pool") as cluster:
        if command == "work":
            work(cluster, threading.Event())
        elif command == "put":
            print("\n".join(put(cluster, *arguments)))
        else:
            for id, result in results(cluster).items():
                print(id, result.decode())
            for item in jobs(cluster).dead():
                print(item.id, "dead:", item.reason, item.history)


if __name__ == "__main__":
    main()
