"""What an engine does to the interpreter it runs in, and undoes; when it lingers for a caller."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import trio

from tauraft.bridge import Waiter
from tauraft.engine import COLLECT_AFTER, LONE_TURNS, SWITCH_INTERVAL_S, Engine


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


class Caller:
    """One whom the engine answers at once, as a driver does: in a task, between turns; and then it lingers for the next."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.done: list[str] = []
        self.lingered_s = -1.0

    def asks(self, name: str) -> None:
        """Returns when answered."""
        assert self.waits_for(name, 0).wait_blocking(10)

    def waits_for(self, name: str, after_s: float) -> Waiter:
        """Something that happens later, and is nobody's answer."""
        waiter = Waiter(None)
        task = partial(self._answer_and_linger, name, waiter, after_s)
        self.engine.post(lambda _: self.engine.spawn(task, lambda *_: None), None)
        return waiter

    async def _answer_and_linger(self, name: str, waiter: Waiter, after_s: float) -> None:
        if after_s:
            await trio.sleep(after_s)
        self.engine.begin_turn()
        self.engine.completions.complete(waiter)
        self.engine.end_turn()
        began = time.monotonic()
        self.engine.linger()
        self.lingered_s = time.monotonic() - began
        self.done.append(name)

    def notes(self, name: str) -> None:
        self.engine.post(lambda _: self.done.append(name), None)

    def has_done(self, name: str) -> bool:
        return name in self.done[-3:]


@pytest.fixture
def caller() -> Iterator[Caller]:
    engine = started()
    yield Caller(engine)
    engine.stop()


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_who_asks_again_at_once_is_waited_for(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft.engine.LINGER_S", 5.0)
    caller.asks("first")
    wait_for(lambda: caller.has_done("first"))
    assert caller.lingered_s < 1  # nobody knows yet how prompt this caller is
    caller.asks("second")
    caller.notes("third")
    wait_for(lambda: len(caller.done) == 3)
    assert caller.done == ["first", "third", "second"]  # taken where the second was answered
    assert caller.lingered_s < 4


def test_who_does_not_ask_again_is_waited_for_once(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft.engine.LINGER_S", 0.5)
    event = caller.waits_for("an event", 1.0)
    caller.asks("first")
    caller.asks("second")
    wait_for(lambda: caller.has_done("second"))
    assert caller.lingered_s >= 0.5
    assert event.wait_blocking(10)
    wait_for(lambda: caller.has_done("an event"))
    assert caller.lingered_s < 0.4
    time.sleep(0.6)
    caller.asks("third")
    wait_for(lambda: caller.has_done("third"))
    assert caller.lingered_s < 0.4


def test_with_others_to_serve_it_does_not_linger(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft.engine.LINGER_S", 5.0)
    caller.asks("first")
    for number in range(LONE_TURNS + 1):
        caller.notes(str(number))
        wait_for(partial(caller.has_done, str(number)))
    caller.asks("last")
    wait_for(lambda: caller.has_done("last"))
    assert caller.lingered_s < 4


def test_it_stops_while_it_lingers(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft.engine.LINGER_S", 60.0)
    caller.asks("first")
    wait_for(lambda: caller.has_done("first"))
    caller.asks("second")
    began = time.monotonic()
    caller.engine.stop()
    assert time.monotonic() - began < 4
    assert caller.done == ["first", "second"]


def test_nothing_posted_is_lost_however_it_meets_the_end_of_a_linger(caller: Caller) -> None:
    """Each must be run though nothing else wakes the engine for it."""
    for number in range(1_000):
        caller.asks(f"ask {number}")
        time.sleep(number % 20 * 0.000_02)
        caller.notes(f"note {number}")
        wait_for(partial(caller.has_done, f"note {number}"))
