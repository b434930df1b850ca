"""What the queues' tables hold beside the items (``messages.ItemRow``). Instants are cluster time in nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tauraft.fsm import Ticket
from tauraft_primitives.queues.messages import Claimed

Key: TypeAlias = tuple[str, str]  # queue, id
Place: TypeAlias = tuple[str, int, int]  # queue, -priority, order: who is claimed first


@dataclass(frozen=True, slots=True)
class Content:
    """Written once, so that what happens to an item does not write its body again."""

    body: bytes
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class QueueRow:
    """Items by state, and what was declared. A queue of which there is nothing to say has no row."""

    ready: int = 0
    delayed: int = 0
    claimed: int = 0
    dead: int = 0
    max_attempts: int | None = None
    is_paused: bool = False


@dataclass(frozen=True, slots=True)
class Waiter:
    """A claim that waits for an item. ``groups`` None: of any group, or none."""

    ticket: Ticket[tuple[Claimed, ...]]
    count: int
    visibility_ns: int
    groups: tuple[str, ...] | None
