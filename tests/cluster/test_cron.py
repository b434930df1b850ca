"""Identical processes, as a web server has workers: one of them runs a tick, and when it is killed another does."""

from __future__ import annotations

import json
from collections import Counter as Tally
from itertools import pairwise
from typing import Any

import pytest

from tests.cluster.harness import Processes, Worker, eventually

pytestmark = pytest.mark.middle

WORKERS = 8
JOIN = """
[cluster.cron("@every 1s", name="job", run_on="any")(
    lambda tick: kept.setdefault("ran", []).append(tick.scheduled_at.isoformat())),
 cluster.cron(None, name="led")(lambda tick: kept.setdefault("led", []).append(tick.attempt)),
 cluster.cron(None, name="hangs")(
    lambda tick: kept.setdefault("hung", []).append(tick.attempt) or (tick.attempt == 1 and tick.lost.wait(60)))] and None
""".replace("\n", " ")


def test_of_eight_identical_processes_one_runs_a_tick_and_another_does_when_it_is_killed(processes: Processes) -> None:
    workers = [processes.begin() for _ in range(WORKERS)]
    for worker in workers:
        worker.answer(60)
    workers[0].ask('cluster.schedules.put("hangs", "@every 52w", run_on="any") and None')
    workers[0].ask('cluster.schedules.put("led", "@every 52w", run_on="leader") and None')
    for worker in workers:
        worker.ask(JOIN.strip())
    eventually(lambda: len(ledger(workers[0])) >= 5, "five ticks have run")
    workers[0].ask('cluster.schedules.pause("job")')
    eventually(lambda: all(row["finished"] for row in ledger(workers[0])), "the last one is over")

    rows = ledger(workers[0])
    assert [row["state"] for row in rows] == ["OK"] * len(rows)
    seconds = [row["scheduled_at"] for row in rows]
    assert [later - earlier for later, earlier in pairwise(seconds)] == [1] * (len(rows) - 1), "none was left out"
    ran = [worker.ask('kept.get("ran", [])') for worker in workers]
    assert set(Tally(at for one in ran for at in one).values()) == {1}
    assert sum(map(len, ran)) == len(rows)
    assert len([one for one in ran if one]) > 1, "they take turns"

    for _ in range(2):
        workers[1].ask('cluster.schedules.trigger("led") and None')
        eventually(lambda: all(row["finished"] for row in ledger(workers[0], "led")), "it has run")
    led = {worker.pid: worker.ask('kept.get("led", [])') for worker in workers}
    assert led[workers[0].ask("cluster.status().holder_pid")] == [1, 1], (
        "the process that holds the leader's replica ran it"
    )

    workers[1].ask('cluster.schedules.trigger("hangs") and None')

    def who_hangs() -> Worker | None:
        return next((worker for worker in workers if worker.ask('bool(kept.get("hung"))')), None)

    victim = eventually(who_hangs, "one of them began")
    victim.kill()
    left = [worker for worker in workers if worker is not victim]
    (row,) = eventually(
        lambda: [row for row in ledger(left[0], "hangs") if row["state"] == "OK"], "another ran it to its end"
    )
    assert row["attempts"] == 2
    assert sorted(attempt for worker in left for attempt in worker.ask('kept.get("hung", [])')) == [2]


def ledger(worker: Worker, job: str = "job") -> list[dict[str, Any]]:
    asked = (
        "__import__('json').dumps([{'state': row.state, 'attempts': row.attempts, 'finished': row.finished is not None, "
        f"'scheduled_at': row.scheduled_at.timestamp()}} for row in cluster.schedules.history('{job}')])"
    )
    found: list[dict[str, Any]] = json.loads(worker.ask(asked))
    return found
