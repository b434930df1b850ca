"""What an engine does to the interpreter it runs in, and undoes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from tauraft.engine import COLLECT_AFTER, SWITCH_INTERVAL_S, Engine


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
