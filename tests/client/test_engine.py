"""What an engine does to the interpreter it runs in, and undoes; when it lingers for a caller."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue

import pytest

from tauraft.bridge import Waiter
from tauraft.engine import COLLECT_AFTER, LONE_TURNS, SWITCH_INTERVAL_S, Engine, SystemClock


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def started() -> Engine:
    engine = Engine()
    engine.start()
    return engine


def test_while_it_runs_threads_change_often_and_the_collector_runs_seldom() -> None:
    gc.set_threshold(700, 10, 10)
    sys.setswitchinterval(0.005)
    engine = started()
    assert gc.get_threshold() == (COLLECT_AFTER, 10, 10)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    engine.stop()
    assert gc.get_threshold() == (700, 10, 10)
    assert sys.getswitchinterval() == pytest.approx(0.005)


@pytest.mark.parametrize("thresholds", [(0, 10, 10), (50_000, 5, 5)])
def test_who_has_switched_the_collector_off_or_lets_it_run_more_seldom_is_left_alone(
    thresholds: tuple[int, int, int],
) -> None:
    gc.set_threshold(*thresholds)
    engine = started()
    assert gc.get_threshold() == thresholds
    engine.stop()
    assert gc.get_threshold() == thresholds


def test_what_the_application_sets_while_it_runs_stays_set() -> None:
    gc.set_threshold(700, 10, 10)
    engine = started()
    gc.set_threshold(1_234, 10, 10)
    engine.stop()
    assert gc.get_threshold() == (1_234, 10, 10)


class SetClock(SystemClock):
    """No time passes between an answer and the next question, unless somebody lets it."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000_000

    def monotonic_ns(self) -> int:
        return self.now_ns


class Caller:
    """One whom the engine answers at once, as a driver does: in a task, between turns; and then it lingers for the next."""

    def __init__(self) -> None:
        self.clock = SetClock()
        self.engine = Engine(self.clock)
        self.engine.start()
        self._done: SimpleQueue[tuple[str, float]] = SimpleQueue()

    def asks(self, name: str, *events: str) -> None:
        """Returns when answered. ``events`` wake somebody afterwards, and are nobody's answer."""
        waiter = Waiter(None)
        task = partial(self._answer_and_linger, {name: waiter, **{event: Waiter(None) for event in events}})
        self.engine.post(lambda _: self.engine.spawn(task, lambda *_: None), None)
        assert waiter.wait_blocking(10)

    async def _answer_and_linger(self, waiters: dict[str, Waiter]) -> None:
        for name, waiter in waiters.items():
            self.engine.begin_turn()
            self.engine.completions.complete(waiter)
            self.engine.end_turn()
            began = time.monotonic()
            self.engine.linger()
            self._done.put((name, time.monotonic() - began))

    def notes(self, name: str) -> None:
        self.engine.post(lambda _: self._done.put((name, 0)), None)

    def next_done(self) -> tuple[str, float]:
        """What the engine was through with next, and for how many seconds it had lingered then."""
        return self._done.get(timeout=10)

    def next_is(self, name: str) -> float:
        found, lingered_s = self.next_done()
        assert found == name
        return lingered_s


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller()
    yield caller
    caller.engine.stop()


def test_who_asks_again_at_once_is_waited_for(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft.engine.LINGER_S", 5.0)
    caller.asks("first")
    assert caller.next_is("first") < 1  # nobody knows yet how prompt this caller is
    caller.asks("second")
    caller.notes("third")
    caller.next_is("third")  # taken where the second was answered
    assert caller.next_is("second") < 4


def test_who_does_not_ask_again_is_waited_for_once(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft.engine.LINGER_S", 0.5)
    caller.asks("first")
    caller.next_is("first")
    caller.asks("second", "an event")
    assert caller.next_is("second") >= 0.5
    assert caller.next_is("an event") < 0.4
    caller.clock.now_ns += 600_000_000
    caller.asks("third")
    assert caller.next_is("third") < 0.4


def test_with_others_to_serve_it_does_not_linger(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft.engine.LINGER_S", 5.0)
    caller.asks("first")
    caller.next_is("first")
    for number in range(LONE_TURNS + 1):
        caller.notes(str(number))
        caller.next_is(str(number))
    caller.asks("last")
    assert caller.next_is("last") < 4


def test_it_stops_while_it_lingers(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft.engine.LINGER_S", 60.0)
    caller.asks("first")
    caller.next_is("first")
    caller.asks("second")
    began = time.monotonic()
    caller.engine.stop()
    assert time.monotonic() - began < 4
    caller.next_is("second")


def test_nothing_posted_is_lost_however_it_meets_the_end_of_a_linger(caller: Caller) -> None:
    """Each must be run though nothing else wakes the engine for it."""
    for number in range(1_000):
        caller.asks("ask")
        time.sleep(number % 20 * 0.000_02)
        caller.notes("note")
        assert {caller.next_done()[0], caller.next_done()[0]} == {"ask", "note"}
