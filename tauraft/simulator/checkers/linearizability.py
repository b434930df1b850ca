"""Linearizability of a register per key: every history must have one order that explains all answers.

The search is Wing and Gong's with Lowe's memory of (done operations, state): take any operation that was
called before every undone one returned, try it on the state, go deeper, or come back.  Keys are independent
registers, which keeps each search small.  An operation of unknown outcome may be placed anywhere after
its call, or nowhere.

Kinds: ``put`` (argument: the value; result None), ``get`` (result: value or None), ``cas`` (argument: (expected, new); result: bool),
``add`` (argument: n; result: the sum after it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tauraft.simulator.history import History, Known, Operation

_MISMATCH = object()


class NotLinearizable(AssertionError):
    """No order of the key's operations explains what their clients saw."""


def check_linearizable(history: History) -> None:
    """Raises ``NotLinearizable`` naming the key and its operations."""
    for key in history.named_keys():
        operations = [o for o in history.of_key(key) if o.known is not Known.NOT_APPLIED]
        if not _explainable(operations):
            story = "\n".join(f"  {o}" for o in sorted(operations, key=lambda o: o.called))
            raise NotLinearizable(f"the operations on {key!r} have no order that explains them:\n{story}")


def _after(state: Any, operation: Operation) -> Any:
    """The state after it, or _MISMATCH where its answer contradicts the state."""
    is_sure = operation.known is Known.OK
    match operation.kind:
        case "put":
            return operation.argument
        case "get":
            return state if not is_sure or operation.result == state else _MISMATCH
        case "cas":
            expected, new = operation.argument
            succeeds = state == expected
            if is_sure and operation.result != succeeds:
                return _MISMATCH
            return new if succeeds else state
        case "add":
            total = (state or 0) + operation.argument
            return total if not is_sure or operation.result == total else _MISMATCH
        case _:
            raise ValueError(f"unknown kind of operation: {operation.kind}")


def _explainable(operations: Sequence[Operation]) -> bool:
    ordered = sorted(operations, key=lambda o: (o.called, o.latest))
    sure = frozenset(place for place, o in enumerate(ordered) if o.known is Known.OK)
    seen: set[tuple[frozenset[int], Any]] = set()
    stack: list[tuple[frozenset[int], Any]] = [(frozenset(), None)]
    while stack:
        done, state = stack.pop()
        if sure <= done:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        # Only what was called before the earliest return among the undone sure ones can come next.
        horizon = min(ordered[place].latest for place in sure if place not in done)
        for place, operation in enumerate(ordered):
            if place in done:
                continue
            if operation.called > horizon:
                break
            after = _after(state, operation)
            if after is not _MISMATCH:
                stack.append((done | {place}, after))
    return False
