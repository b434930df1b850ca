"""The system's own replicated tables: timers, the manifest, the replicas.

An FSM like a plugin's, so that its rows get undo, snapshots, SQL and the digest for nothing; its commands are run by
the apply engine itself, since they touch sessions and other FSMs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tauraft.fsm import FSM, Table
from tauraft.system.messages import SYSTEM


@dataclass(frozen=True, slots=True)
class TimerRow:
    """A command due at the row's key (deadline, order). ``(fsm, key)`` names it for cancelling."""

    fsm: str
    key: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class TimerPlace:
    is_wall: bool
    deadline_ns: int
    order: int


@dataclass(frozen=True, slots=True)
class ActiveVersion:
    version: int
    digest: bytes
    package: str


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """What a replica announced of itself."""

    incarnation: int
    addresses: tuple[str, ...]
    host: str
    machine_id: str
    disk: str
    supported: tuple[tuple[str, int, bytes], ...]


@dataclass(frozen=True, slots=True)
class WallStep:
    """The wall clock was set back: when on the cluster's clock, from where to where, and by which leader."""

    now_ns: int
    from_ns: int
    to_ns: int
    leader: str


class System(FSM, name=SYSTEM, version=1):
    timers: Table[tuple[int, int], TimerRow]
    wall_timers: Table[tuple[int, int], TimerRow]
    timer_places: Table[tuple[str, str], TimerPlace]
    manifest: Table[str, ActiveVersion]
    replicas: Table[str, ReplicaRow]
    wall_steps: Table[int, WallStep]  # by revision; the last hundred
