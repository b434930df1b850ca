"""Who waits, by name and the revision of the command that waits: the same for every kind of barrier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tauraft.errors import BrokenBarrier
from tauraft.fsm import Table, Ticket
from tauraft.types import Owner


@dataclass(frozen=True, slots=True)
class Waiter:
    ticket: Ticket[None]
    owner: Owner


def waiters_of(table: Table[tuple[str, int], Any], name: str) -> Iterator[tuple[tuple[str, int], Any]]:
    """In order of arrival. Take a list of it before the table is changed."""
    return table.range((name, 0), (name + "\0", 0))


def owner_of(who: Owner, ticket: Ticket[Any]) -> Owner:
    return replace(who, session=ticket.session)


def broken(name: str, who: Owner | None) -> BrokenBarrier:
    """``who`` was lost or gave up; None: it was aborted or reset."""
    if who is None:
        return BrokenBarrier(f"the barrier {name!r} is broken: it was aborted or reset", who=None)
    label = who.label or who.peer_id or f"session {who.session}"
    return BrokenBarrier(
        f"the barrier {name!r} is broken: {label}@{who.host} pid {who.pid} was lost or gave up", who=who
    )
