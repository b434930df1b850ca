"""The commands of the system itself (docs/decisions/0001): they travel in the log beside the plugins' commands.

Those marked *session* are sent by a client in a session, with a sequence, and have an answer; the others
are proposed by replicas (session 0) and are matched by what they carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tauraft.fsm import Command

SYSTEM = "tauraft.system"


@dataclass(frozen=True, slots=True)
class Open(Command[int], fsm=SYSTEM):
    """Opens a session, or finds the one that this ``nonce`` opened: sending it twice is harmless."""

    nonce: bytes
    secret_hash: bytes
    ttl_ns: int
    peer_id: str
    host: str
    pid: int
    label: str | None


@dataclass(frozen=True, slots=True)
class KeepAlive(Command[None], fsm=SYSTEM):
    """Renews sessions, given as (session, serial); those that the entry's stamp found expired are gone already (SAFETY 16).

    The serial comes back in the ``renewed`` event: it tells the client *which* of its keepalives renewed (decision 0002).
    """

    sessions: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Close(Command[None], fsm=SYSTEM):
    """Ends a session: its owner left, or its process is proven dead."""

    session: int


@dataclass(frozen=True, slots=True)
class ExpireSession(Command[None], fsm=SYSTEM):
    """Fired by a timer: ends the session unless it was renewed since."""

    session: int


@dataclass(frozen=True, slots=True)
class Withdraw(Command[None], fsm=SYSTEM):
    """The caller gives up a wait (SAFETY 4). ``only_waiting``: fired by the wait's own patience, leaves answers alone."""

    session: int
    sequence: int
    acked_below: int = 0
    only_waiting: bool = False


@dataclass(frozen=True, slots=True)
class Tick(Command[None], fsm=SYSTEM):
    """Nothing of its own: the entry's stamp fires the timers that are due."""


@dataclass(frozen=True, slots=True)
class SetWall(Command[None], fsm=SYSTEM):
    """The cluster's wall clock goes back to ``wall_ns``, since the voters' clocks did. Every timer on it fires and looks again."""

    wall_ns: int


@dataclass(frozen=True, slots=True)
class Activate(Command[None], fsm=SYSTEM):
    """From this entry on, ``fsm_name`` runs at ``version`` (SAFETY 27). Proposed once every voter can run it."""

    fsm_name: str
    version: int
    digest: bytes
    package: str = ""  # what to install where it is missing


@dataclass(frozen=True, slots=True)
class Announce(Command[None], fsm=SYSTEM):
    """A replica says where it is and what it can run; sent at each start and change, idempotent."""

    peer_id: str
    incarnation: int
    addresses: tuple[str, ...]
    host: str
    machine_id: str
    disk: str  # the device under its data directory: a failure domain (SAFETY 8)
    supported: tuple[tuple[str, int, bytes], ...]  # FSM name, version, digest of the data that decides its results


@dataclass(frozen=True, slots=True)
class Barrier(Command[int], fsm=SYSTEM):
    """*Session.* An entry of its own; the answer is the revision it got."""


@dataclass(frozen=True, slots=True)
class Transaction(Command[tuple[bytes, ...]], fsm=SYSTEM):
    """*Session.* Messages run all or nothing; the answer holds their encoded answers in order."""

    encoded_parts: ClassVar[tuple[str, ...]] = ("commands",)
    commands: tuple[bytes, ...]


# Those proposed by replicas, without a session.
UNATTENDED = (Open, KeepAlive, Close, ExpireSession, Withdraw, Tick, SetWall, Activate, Announce)
MESSAGES = (*UNATTENDED, Barrier, Transaction)
