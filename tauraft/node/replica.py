"""What the rest of the process may ask of a replica: the seam between ``node`` and ``command_service``.

All of it is called in the engine's loop and never blocks: what takes time is reported later to a listener.
``tauraft/node/node.py`` implements it; tests have an in-memory one.  An implementation calls listeners
after an entry has been applied whole, so that they see the state between entries only (SAFETY 31).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from tauraft.command_protocol import AnswerKind as AnswerKind
from tauraft.errors import Suspended
from tauraft.fsm import Message, Query
from tauraft.node.change_log import ChangeLog


class Outcome(NamedTuple):
    """The answer of one command of a session, as stored in it. ``data``: encoded answer, or encoded error."""

    session: int
    sequence: int
    kind: AnswerKind
    data: bytes


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """``opened`` (``nonce`` says whose), ``renewed`` (``serial`` says by which keepalive) or ``ended`` by an applied entry.

    Or ``announced``, of no session: a replica said where it is.
    """

    kind: str
    session: int
    nonce: bytes = b""
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """One command on its way into the log (docs/decisions/0001). ``message``: decoded form, where it is at hand."""

    session: int
    sequence: int
    acked_below: int
    wait_ns: int
    payload: bytes
    message: Message[Any] | None = None


@dataclass(frozen=True, slots=True)
class LeaderInfo:
    peer_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Suspension:
    """Why a replica takes nothing at present. It ends by itself."""

    reason: str
    serves_stale: bool

    def error(self) -> Suspended:
        return Suspended(f"{self.reason}; nothing was taken", retry_after=1.0)


class ReplicaListener(Protocol):
    def applied(self, index: int, outcomes: Sequence[Outcome], events: Sequence[SessionEvent]) -> None: ...

    def leader_changed(self, leader: LeaderInfo | None) -> None: ...


class StoredState(IntEnum):
    UNKNOWN = 0  # never applied here
    WAITING = 1  # its ticket is open
    BELOW_FLOOR = 2  # acknowledged, or given up: never to be run


class Replica(Protocol):
    peer_id: str
    namespace: str
    cluster_id: bytes

    @property
    def applied_index(self) -> int: ...

    @property
    def change_log(self) -> ChangeLog:
        """What changed lately, from which watches are served."""

    @property
    def leader(self) -> LeaderInfo | None: ...

    @property
    def is_leader(self) -> bool: ...

    @property
    def suspension(self) -> Suspension | None:
        """While there is one, nothing may be proposed, and nothing be read but stale where it says so."""

    def propose(self, items: Sequence[Item]) -> None:
        """Queue for the log here, or forward to the leader. May be lost in silence when leadership changes.

        Raises ``Overloaded`` (nothing of it was taken) when the queue is full, ``InvalidCommand`` where a payload
        does not decode, ``NoLeader`` when there is none to send it to.
        """

    def stored(self, session: int, sequence: int) -> Outcome | StoredState:
        """What the applied state holds of this command. Raises ``SessionLost`` when there is no such session."""

    def may_attach(self, session: int, secret: bytes, peer_id: str) -> bool:
        """False: wrong secret, another peer than the one that opened it, or no such session here (yet) (SAFETY 34)."""

    def read_index(self, done: Callable[[int | None], object]) -> None:
        """Calls ``done(index)`` once a quorum confirmed the read *and* this replica applied ``index``; None: no leader."""

    def when_applied(self, index: int, done: Callable[[], object]) -> None:
        """Calls ``done`` once ``applied_index >= index``; at once when it is."""

    def answer(self, query: Query[Any]) -> Any:
        """Run a query's handler on the applied state. Raises what the handler refuses."""

    def decode(self, payload: bytes) -> Message[Any]:
        """The message in ``payload``. Raises ``InvalidCommand``."""

    def encode_answer(self, message: Message[Any], value: Any) -> bytes: ...

    def add_listener(self, listener: ReplicaListener) -> None: ...

    def remove_listener(self, listener: ReplicaListener) -> None: ...

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Administration: status, members, sql, add_voter, remove_server, transfer_leadership, snapshot. Raises ``NotLeader``."""
