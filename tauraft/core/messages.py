"""What the core reads, writes and says: entries, membership and messages, as plain values.

Everything here is immutable and compares by value.  A message carries who sent it and to
whom as *members* (peer id and incarnation), so that a disk that came back empty is
another member than the one whose votes it lost, and the id of the cluster, so that two clusters
of one name never mix.  Encoding is the node's affair (``tauraft/node/wire.py``).

Sources: Raft (Ongaro, thesis 2014) 3, 4.3 (joint consensus), 6.4 (ReadIndex), 9.6 (pre-vote).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

Index: TypeAlias = int
Term: TypeAlias = int


class Member(NamedTuple):
    """One incarnation of one peer: a disk that was lost comes back as another member."""

    peer_id: str
    incarnation: int


class EntryKind(IntEnum):
    NOOP = 0
    BATCH = 1
    CONFIG = 2


@dataclass(frozen=True, slots=True)
class Entry:
    index: Index
    term: Term
    kind: EntryKind
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class HardState:
    """What must be on disk before anyone hears of it. ``vote`` None: nobody yet in this term."""

    term: Term = 0
    vote: Member | None = None
    commit: Index = 0


@dataclass(frozen=True, slots=True)
class Membership:
    """Who votes, and who only listens. Joint while ``outgoing`` is not empty (thesis 4.3)."""

    voters: frozenset[Member] = frozenset()
    outgoing: frozenset[Member] = frozenset()
    learners: frozenset[Member] = frozenset()
    learners_next: frozenset[Member] = frozenset()  # outgoing voters that become learners on leaving
    auto_leave: bool = False

    @property
    def is_joint(self) -> bool:
        return bool(self.outgoing)

    def all_members(self) -> frozenset[Member]:
        return self.voters | self.outgoing | self.learners | self.learners_next


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """Where a snapshot stands. ``id`` names its files (the hash of its manifest); the core only passes it on."""

    index: Index
    term: Term
    membership: Membership
    id: bytes = b""


@dataclass(frozen=True, slots=True)
class Message:
    sender: Member
    to: Member
    term: Term
    cluster_id: bytes


@dataclass(frozen=True, slots=True)
class VoteRequest(Message):
    """Thesis 3.4; with ``is_pre_vote`` (9.6) ``term`` is the one it would campaign in."""

    last_index: Index
    last_term: Term
    is_pre_vote: bool = False
    is_transfer: bool = False  # sent because of TimeoutNow: voters skip the leader-is-alive check


@dataclass(frozen=True, slots=True)
class VoteReply(Message):
    """A refusal names what is committed: a candidate whose log has it learns of a membership change that way."""

    granted: bool
    is_pre_vote: bool = False
    commit: Index = 0
    commit_term: Term = 0


@dataclass(frozen=True, slots=True)
class Append(Message):
    prev_index: Index
    prev_term: Term
    entries: tuple[Entry, ...]
    commit: Index
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class AppendReply(Message):
    """``match`` when ok; when not, ``match`` is the refused prev_index, and ``hint_index``/``hint_term`` skip a whole diverging term."""

    ok: bool
    match: Index
    hint_index: Index = 0
    hint_term: Term = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """``payload`` is the node's (clocks, digests); the core carries it unread, as does the reply."""

    commit: Index
    read_context: int = 0
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class HeartbeatReply(Message):
    read_context: int = 0
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class InstallSnapshot(Message):
    """The core sends and takes it whole (``done``, no data): the node moves the bytes in chunks of its own."""

    meta: SnapshotMeta
    offset: int = 0
    data: bytes = b""
    done: bool = True


@dataclass(frozen=True, slots=True)
class TimeoutNow(Message):
    """Campaign at once: leadership is handed to you (thesis 3.10)."""


@dataclass(frozen=True, slots=True)
class ReadIndexRequest(Message):
    """A follower asks for an index it may read at. ``context`` is its own number for the read."""

    context: int


@dataclass(frozen=True, slots=True)
class ReadIndexReply(Message):
    context: int
    index: Index


@dataclass(frozen=True, slots=True)
class ReadState:
    """A read that may be answered once the replica has applied ``index``."""

    context: int
    index: Index


class Role(IntEnum):
    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


@dataclass(frozen=True, slots=True)
class RoleChange:
    """``leader`` None: unknown."""

    role: Role
    term: Term
    leader: Member | None


@dataclass(frozen=True, slots=True)
class Ready:
    """All that the driver has to do now, and the order it owes.

    ``messages_now`` may leave at once, also before the disk has anything (the leader's own
    disk and the wire work at the same time).  ``entries``, ``hard_state`` and ``snapshot`` go to disk,
    then ``messages_after_persist`` leave and ``Raft.persisted(number)`` is called; Readies are
    persisted in their order, several may be under way.  ``committed`` are to be applied in order, and
    are always already persisted here (SAFETY 12); ``Raft.applied(index)`` reports them done.
    A driver that applies late drops what it has not applied when a ``snapshot`` comes, which holds it.
    """

    number: int
    hard_state: HardState | None = None  # None: unchanged
    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMeta | None = None  # to install before ``entries``: the log is reset at it
    must_sync: bool = False
    messages_now: tuple[Message, ...] = ()
    messages_after_persist: tuple[Message, ...] = ()
    committed: tuple[Entry, ...] = ()
    reads: tuple[ReadState, ...] = ()
    role_change: RoleChange | None = None
