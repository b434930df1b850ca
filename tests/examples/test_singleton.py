"""The singleton of the examples, as processes that are killed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import tauraft
from tests.cluster.harness import Processes, Worker, eventually
from tests.examples.conftest import EXAMPLES


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    try:
        yield started
    finally:
        started.end()


@pytest.mark.middle
def test_one_serves_and_the_next_goes_on_where_it_was_when_it_is_killed(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAURAFT_STATE_DIR", str(processes.state))

    def start() -> Worker:
        return processes.start([str(EXAMPLES / "singleton.py")], TAURAFT_PRESET="local", BEAT_S="0.05")

    first = start()
    assert f"process {first.pid} serves" in first.line()
    others = [start(), start()]
    with tauraft.Client("/raft/singleton", timeout=30) as client:

        def steps() -> list[tuple[int, int]]:
            return [tuple(map(int, entry.value.split())) for entry in client.kv.items("steps/", limit=10_000)]  # type: ignore[misc]

        election = client.election("service")
        eventually(lambda: len(election.info().candidates) == 2 and len(steps()) >= 3, "one serves, and two stand")
        assert {pid for _, pid in steps()} == {first.pid}
        first.kill()
        (second,) = {pid for _, pid in eventually(lambda: [s for s in steps() if s[1] != first.pid], "another serves")}
        assert second in {other.pid for other in others}
        leader = election.leader()
        assert leader is not None
        assert leader.value == str(second).encode()
        tokens = [token for token, _ in steps()]
        assert tokens == sorted(tokens)
        assert len({pid for _, pid in steps()}) == 2
        assert sum(earlier != later for earlier, later in pairwise(tokens)) == 1, "they did not take turns"
        numbers = [int(key.rpartition("/")[2]) for key in client.kv.keys("steps/", limit=10_000)]
        assert numbers == list(range(1, len(numbers) + 1)), "it did not go on where the first one was"
