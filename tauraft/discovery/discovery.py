"""What formation asks of a discoverer: hints about who might be there, and a place to be found.

A hint may be stale or wrong; whoever it names is asked, over a transport that proves its identity.  ``find`` goes on for ever and
says a peer again when its addresses change.  ``minimum_s`` is how long, from the process's start, the window stays
open for it at least (SAFETY 11): the time in which it finds who is there.  Called in the engine's loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Found:
    peer_id: str | None  # None: whoever answers at ``addresses``
    addresses: tuple[str, ...]
    is_running: bool = False  # its process was seen just now: if it does not answer, it is busy or stopped


class Discoverer(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def minimum_s(self) -> float: ...

    async def announce(self, peer_id: str, addresses: Sequence[str]) -> None:
        """Be found from now on, until ``withdraw``. Again when the addresses change."""

    async def withdraw(self) -> None: ...

    def look(self) -> Sequence[Found]:
        """Who is known at this moment, without waiting. Formation looks once between ``announce`` and deciding."""

    def find(self) -> AsyncIterator[Found]: ...
