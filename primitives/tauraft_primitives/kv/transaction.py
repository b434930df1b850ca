"""Conditions, and what to run when they hold: how ``kv.transaction`` is sent, for async and blocking handles alike.

The parts are encoded here, in the caller's frame, so what cannot be sent raises there; the answers are decoded by the
messages that were sent.  What runs is decided in the log (docs/decisions/0007).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tauraft.fsm import Command, Query
from tauraft.handle import decode_part, encode_part
from tauraft.types import Compare, TransactionResult
from tauraft_primitives.kv.messages import Transact, Transacted


class Transaction:
    """What ``kv.transaction`` is given, as it is sent. May be among the ``then`` and ``otherwise`` of another one."""

    def __init__(
        self,
        when: Sequence[Compare] = (),
        then: Sequence[Command[Any] | Query[Any] | Transaction] = (),
        otherwise: Sequence[Command[Any] | Query[Any] | Transaction] = (),
    ) -> None:
        for compare in when:
            if not isinstance(compare, Compare):
                raise TypeError(f"when takes Compares, not {type(compare).__name__}")
        self._then, self._otherwise = tuple(then), tuple(otherwise)
        self.command = Transact(tuple(when), *[tuple(map(_part, parts)) for parts in (self._then, self._otherwise)])

    def result_of(self, done: Transacted) -> TransactionResult:
        ran = self._then if done.succeeded else self._otherwise
        results = tuple(_result(part, data) for part, data in zip(ran, done.results, strict=True))
        return TransactionResult(done.succeeded, done.revision, results)


def _part(given: Command[Any] | Query[Any] | Transaction) -> bytes:
    if isinstance(given, Transaction):
        return encode_part(given.command)
    if not isinstance(given, Command | Query):
        raise TypeError(f"a transaction takes Commands and Queries, not {type(given).__name__}")
    return encode_part(given)


def _result(given: Command[Any] | Query[Any] | Transaction, data: bytes) -> Any:
    if isinstance(given, Transaction):
        return given.result_of(decode_part(given.command, data))
    return decode_part(given, data)
