"""What the queues' tables hold. Instants are cluster time in nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tauraft.fsm import Ticket
from tauraft_primitives.queues.messages import Claimed

State: TypeAlias = Literal["ready", "delayed", "claimed", "dead", "acked", "expired", "purged"]
Key: TypeAlias = tuple[str, str]  # queue, id
Place: TypeAlias = tuple[str, int, int]  # queue, -priority, order: who is claimed first


@dataclass(frozen=True, slots=True)
class ItemRow:
    """One item, without its body.

    ``order``: the revision of its put.  ``due_ns``: when its delay or its claim is over.  ``token``, ``session`` and
    ``sequence`` (of the command that claimed it) are those of its claim.  ``ended``: the revision at which it went to the
    ledger; None: its id is taken, by an item that is present or by one whose ``dedupe_for`` still runs.
    """

    state: State
    order: int
    priority: int
    group: str | None
    put_ns: int
    expires_ns: int | None
    dedupe_ns: int
    attempts: int = 0
    due_ns: int | None = None
    token: int | None = None
    session: int | None = None
    sequence: int = 0
    reason: str | None = None
    history: tuple[str, ...] = ()
    ended: int | None = None


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
