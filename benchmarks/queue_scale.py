"""What a queue costs at a million items: ``python -m benchmarks.queue_scale [--items 1000000]``.

One state machine, driven by hand: no log, no network, so what is measured is the work each replica does for a command.
Prints one JSON object: microseconds for a put, a claim with its ack and the same within groups, at 1,000 items and at ITEMS,
their ratio, and resident bytes an item.  Exits 1 when an operation takes more than twice as long with ITEMS items.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from tauraft.system.messages import Transaction
from tauraft_plugins.queues.fsm import Queues
from tauraft_primitives.queues.messages import Ack, Enqueue, Stats, TakeItems
from tests.primitives.harness import Harness, SessionOf

FEW = 1_000
BATCH = 500
ROUNDS = {
    "claim_of_a_group": 80,
    "put": 400,
    "claim_and_ack": 400,
    "stats": 400,
}  # 80: the groups of a thousand have 100
BODY = b"x" * 100


class Measured:
    """A queue with ``count`` items in it, a tenth of them in groups, in five priorities."""

    def __init__(self, count: int) -> None:
        self.replica = Harness(Queues)
        self.count = count
        self._open()
        before = psutil.Process().memory_info().rss
        for start in range(0, count, BATCH):
            parts = tuple(self._encoded(number) for number in range(start, min(start + BATCH, count)))
            self._run(Transaction(parts))
            self.replica.machine.tables.digest()  # a node does this when idle, and lets go of the rows it noted for it
        gc.collect()
        self.bytes_per_item = (psutil.Process().memory_info().rss - before) / count

    def _encoded(self, number: int) -> bytes:
        group = f"group-{number // 100}" if number % 10 == 0 else None
        return self.replica.registry.encode(Enqueue("jobs", BODY, f"item-{number}", 0, number % 5, group))

    def _open(self) -> None:
        self._session: SessionOf = self.replica.open()
        self._used = 0

    def _run(self, command: Any) -> Any:
        # The harness acknowledges nothing, so its answers pile up; a new session begins with none.
        self._used += 1
        if self._used > 500 and not isinstance(command, Ack):
            self._open()
        return self._session.run(command).value

    def put(self, number: int) -> None:
        self._run(Enqueue("jobs", BODY, f"more-{number}", 0, number % 5))

    def claim_and_ack(self, number: int) -> None:
        (claimed,) = self._run(TakeItems("jobs"))
        self._run(Ack(claimed.token))

    def claim_of_a_group(self, number: int) -> None:
        taken = self._run(TakeItems("jobs", groups=(f"group-{number % max(1, self.count // 100)}",)))
        for claimed in taken:
            self._run(Ack(claimed.token))

    def stats(self, number: int) -> None:
        self._run(Stats("jobs"))


def microseconds(operation: Callable[[int], None], rounds: int) -> float:
    """The median of single calls: what others do to this machine meanwhile is no matter."""
    taken = []
    for number in range(rounds):
        started = time.perf_counter_ns()
        operation(number)
        taken.append((time.perf_counter_ns() - started) / 1_000)
    return statistics.median(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    many = parser.parse_args().items
    figures: dict[int, dict[str, float]] = {}
    for count in (FEW, many):
        measured = Measured(count)
        figures[count] = {
            name: round(microseconds(getattr(measured, name), rounds), 1) for name, rounds in ROUNDS.items()
        } | {"bytes_per_item": round(measured.bytes_per_item)}
        del measured
        gc.collect()
    ratios = {
        name: round(figures[many][name] / figures[FEW][name], 2) for name in figures[FEW] if name != "bytes_per_item"
    }
    told = {"items": many, f"us_at_{FEW}": figures[FEW], f"us_at_{many}": figures[many], "ratio": ratios}
    print(json.dumps(told))
    return 0 if max(ratios.values()) <= 2 else 1


if __name__ == "__main__":
    sys.exit(main())
