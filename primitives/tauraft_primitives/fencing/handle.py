"""Writes that depend on a hold: each command goes out in one transaction with the question whether it still holds.

``AsyncFenced`` is a submitter, so any handle can be built on it: ``AsyncKV(AsyncFenced(cluster, hold.token))``.
The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from typing import Any, TypeVar

from tauraft.fsm import Command, Query
from tauraft.handle import AsyncSubmitter, AsyncWatch, Frame, State, TableName
from tauraft.types import Consistency
from tauraft_primitives.fencing.messages import CheckHold, check_token

R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")


class AsyncFenced:
    """A submitter whose commands are refused (``NotHolder``) unless the hold of ``token`` still holds. Queries are not."""

    def __init__(self, submitter: AsyncSubmitter, token: int) -> None:
        self._submitter = submitter
        self._check = CheckHold(check_token(token))

    async def submit(self, command: Command[R], *, timeout: float | None = None) -> R:
        """In one transaction with the check; so a command that waits is refused (``InvalidCommand``)."""
        _, answer = await self._submitter.transaction(self._check, command, timeout=timeout)
        return answer

    async def query(
        self, query: Query[R], *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> R:
        return await self._submitter.query(query, consistency=consistency, timeout=timeout)

    async def transaction(self, *commands: Command[Any], timeout: float | None = None) -> tuple[Any, ...]:
        _, *answers = await self._submitter.transaction(self._check, *commands, timeout=timeout)
        return tuple(answers)

    def watch(
        self,
        table: TableName[K, V],
        *,
        key: K | None = None,
        low: K | None = None,
        high: K | None = None,
        since_revision: int | None = None,
        with_state: bool = False,
    ) -> AsyncWatch[Frame[K, V] | State[K, V]]:
        """Watching changes nothing, and is not fenced."""
        return self._submitter.watch(
            table, key=key, low=low, high=high, since_revision=since_revision, with_state=with_state
        )
