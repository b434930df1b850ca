"""What nodes tell each other with Raft's heartbeats and the answers to them: clocks, logs, digests, which process it is.

``LeaderSays`` and ``MemberSays`` are the payloads (a msgpack array each; the core carries them unread).  Three readers:

- ``Rounds``: which voters answered the round under way, and what their clocks said (SAFETY 15, 18, 20);
- ``Watch``: is a member still the disk and the process it was?  A log that is shorter than what it acknowledged before
  the round began has lost something: the tail, where it says so itself (SAFETY 23), else it is a restored backup; answers of two
  processes in turns are two copies of one disk (SAFETY 14);
- ``divergence``: do its digests agree (SAFETY 28)?

A late duplicate of an answer names an older round, and is nothing to ``Rounds`` or ``Watch``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from operator import attrgetter
from typing import Any, TypeVar, get_type_hints

import msgpack

from tauraft.core.messages import Index, Member
from tauraft.node.wire import WireError

S = TypeVar("S", "LeaderSays", "MemberSays")
WALL_ROUNDS = 10  # a reading of a clock counts for so long
MAX_FORMER = 64  # processes of one member remembered


@dataclass(frozen=True, slots=True)
class LeaderSays:
    """``asked``: the index of the checkpoint it wants to hear of, 0 for the newest. ``verdict``: 0 for none (``divergence``)."""

    round: int
    now_ns: int
    last_index: Index
    asked: Index = 0
    verdict: Index = 0
    digest: bytes = b""

    def encode(self) -> bytes:
        return _packed(self)


@dataclass(frozen=True, slots=True)
class MemberSays:
    """In answer to ``round``. ``boot``: drawn by each process anew. ``last_index``: of its log on disk."""

    round: int
    monotonic_ns: int
    wall_ns: int
    boot: int
    last_index: Index
    is_tail_suspect: bool
    checkpoint: Index = 0
    digest: bytes = b""

    def encode(self) -> bytes:
        return _packed(self)


def _packed(says: LeaderSays | MemberSays) -> bytes:
    packed: bytes = msgpack.packb(_VALUES_OF[type(says)](says))
    return packed


def decode(kind: type[S], payload: bytes) -> S:
    """Raises ``WireError``."""
    try:
        values: list[Any] = msgpack.unpackb(payload, max_ext_len=0)
        if [type(value) for value in values] != _TYPES_OF[kind]:
            raise ValueError("wrong fields")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"not what a heartbeat carries: {error}") from error
    return kind(*values)


# Looked up once: making and reading these is most of what an idle replica does.
_VALUES_OF: Mapping[type, attrgetter[tuple[Any, ...]]] = {
    kind: attrgetter(*kind.__dataclass_fields__) for kind in (LeaderSays, MemberSays)
}
_TYPES_OF: Mapping[type, list[Any]] = {kind: list(get_type_hints(kind).values()) for kind in (LeaderSays, MemberSays)}


class Rounds:
    """Which voters answered which heartbeat, and what their clocks said: input of ``ClusterClock.confirmed``."""

    def __init__(self) -> None:
        self.number = 0
        self._first: dict[Member, int] = {}
        self._latest: dict[Member, int] = {}
        self._wall_offsets: dict[Member, tuple[int, int]] = {}  # the round, and the wall less our monotonic clock then
        self._answered: set[Member] = set()
        self._confirmed = 0
        self._began_ns = self._sent_ns = 0

    def start(self, now: int) -> None:
        if not self.number:
            self._began_ns = now
        self._sent_ns = now
        self.number += 1
        self._answered = set()

    def answered(self, voter: Member, says: MemberSays, voters: int) -> bool:
        """True when this answer is the one that makes a quorum of the round under way."""
        # A voter that joined later counts as if it had been there from the start, at the leader's own pace.
        self._first.setdefault(voter, says.monotonic_ns - (self._sent_ns - self._began_ns))
        self._latest[voter] = says.monotonic_ns
        if says.round == self.number:
            self._wall_offsets[voter] = (self.number, says.wall_ns - self._sent_ns)
        if says.round != self.number or self._confirmed == says.round:
            return False
        self._answered.add(voter)
        if len(self._answered) + 1 > voters // 2:
            self._confirmed = says.round
            return True
        return False

    def elapsed(self) -> list[int]:
        return [self._latest[voter] - self._first[voter] for voter in sorted(self._answered)]

    def walls(self, voters: Iterable[Member]) -> list[int]:
        """Of all ``voters`` that have answered lately, not only of those that answer first: as they stood when this round began.

        What one that is silent said long ago does not count: its clock may have been put right since.
        """
        heard = [self._wall_offsets[voter] for voter in sorted(voters) if voter in self._wall_offsets]
        return [self._sent_ns + offset for round_, offset in heard if self.number - round_ <= WALL_ROUNDS]


class Finding(Enum):
    SOUND = auto()
    LOST_TAIL = auto()  # and says so: it is asked anew where it stands
    RESTORED = auto()
    CLONED = auto()


class Watch:
    """The leader's: compares each member with what it was."""

    def __init__(self) -> None:
        self._acknowledged: Mapping[Member, Index] = {}
        self._boots: dict[Member, int] = {}
        self._former: dict[Member, list[int]] = {}

    def start_round(self, acknowledged: Mapping[Member, Index]) -> None:
        """``acknowledged``: by each member, before this round's heartbeats leave."""
        self._acknowledged = acknowledged

    def heard(self, member: Member, says: MemberSays) -> Finding:
        """An answer to the round under way."""
        if self._has_come_back(member, says.boot):
            return Finding.CLONED
        if says.last_index >= self._acknowledged.get(member, 0):
            return Finding.SOUND
        return Finding.LOST_TAIL if says.is_tail_suspect else Finding.RESTORED

    def _has_come_back(self, member: Member, boot: int) -> bool:
        """A process that another one had taken the place of."""
        present = self._boots.setdefault(member, boot)
        if present == boot:
            return False
        former = self._former.setdefault(member, [])
        self._boots[member] = boot
        if boot in former:
            return True
        former.append(present)
        del former[:-MAX_FORMER]
        return False
