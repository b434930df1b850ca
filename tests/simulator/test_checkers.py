"""The checkers can fail: each is shown a history that breaks its property. Covers: G."""

from __future__ import annotations

from typing import Any

import pytest

from tauraft.simulator.checkers.agreement import Agreement, Diverged, ElectionSafety, TwoLeaders
from tauraft.simulator.checkers.exclusion import Exclusion, TwoHolders
from tauraft.simulator.checkers.linearizability import NotLinearizable, check_linearizable
from tauraft.simulator.history import History, Known, Operation


def operation(
    kind: str, argument: Any, result: Any, called: float, returned: float, known: Known = Known.OK
) -> Operation:
    return Operation("c", kind, "k", argument, result, called, returned, known)


def history(*operations: Operation) -> History:
    found = History()
    for one in operations:
        found.add(one)
    return found


def test_a_sequential_history_is_linearizable() -> None:
    check_linearizable(
        history(operation("put", 1, None, 0, 1), operation("get", None, 1, 2, 3), operation("add", 2, 3, 4, 5))
    )


def test_concurrent_operations_may_take_effect_in_either_order() -> None:
    check_linearizable(
        history(operation("put", 1, None, 0, 10), operation("put", 2, None, 0, 10), operation("get", None, 1, 11, 12))
    )


def test_a_stale_read_is_found() -> None:
    with pytest.raises(NotLinearizable):
        check_linearizable(
            history(operation("put", 1, None, 0, 1), operation("put", 2, None, 2, 3), operation("get", None, 1, 4, 5))
        )


def test_a_lost_acknowledged_write_is_found() -> None:
    with pytest.raises(NotLinearizable):
        check_linearizable(history(operation("put", 1, None, 0, 1), operation("get", None, None, 2, 3)))


def test_an_increment_applied_twice_is_found() -> None:
    with pytest.raises(NotLinearizable):
        check_linearizable(history(operation("add", 1, 1, 0, 1), operation("get", None, 2, 2, 3)))


def test_an_unknown_write_may_show_late_or_never() -> None:
    unknown = operation("put", 7, None, 0, 1, Known.UNKNOWN)
    check_linearizable(history(unknown, operation("get", None, None, 2, 3), operation("get", None, 7, 4, 5)))
    check_linearizable(history(unknown, operation("get", None, None, 2, 3)))


def test_an_unknown_write_may_not_come_and_go() -> None:
    unknown = operation("put", 7, None, 0, 1, Known.UNKNOWN)
    with pytest.raises(NotLinearizable):
        check_linearizable(history(unknown, operation("get", None, 7, 2, 3), operation("get", None, None, 4, 5)))


def test_a_failed_compare_that_should_have_succeeded_is_found() -> None:
    with pytest.raises(NotLinearizable):
        check_linearizable(history(operation("put", 1, None, 0, 1), operation("cas", (1, 2), False, 2, 3)))


def test_two_states_at_one_index_are_found() -> None:
    agreement = Agreement()
    agreement.report("a", 5, 3, 77)
    agreement.report("b", 5, 3, 77)
    with pytest.raises(Diverged):
        agreement.report("c", 5, 3, 78)


def test_two_leaders_in_one_term_are_found() -> None:
    safety = ElectionSafety()
    safety.leads("a", 2)
    safety.leads("b", 3)
    with pytest.raises(TwoLeaders):
        safety.leads("b", 2)


def test_overlapping_holds_and_stale_tokens_are_found() -> None:
    exclusion = Exclusion()
    exclusion.acquired("x", "w1", 4)
    with pytest.raises(TwoHolders):
        exclusion.acquired("x", "w2", 5)
    exclusion.gave_up("x", "w1", 4)
    with pytest.raises(TwoHolders):
        exclusion.acquired("x", "w2", 4)
    exclusion.acquired("x", "w2", 6)
