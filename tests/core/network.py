"""A cluster of cores in memory, for tests: replicas with a disk each, and a network that does as it is told.

``Replica`` carries out Readies as a driver would.  With ``is_writing_at_once`` False its writes queue up until
``finish_write``, with ``is_applying_at_once`` False what is to be applied until ``apply_one``; ``crash`` forgets them and
all that was in memory, and a new core starts from the disk.
``Network`` delivers what replicas sent; ``settle`` turns until nothing moves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tauraft.core.log import Compacted
from tauraft.core.membership import decode_change
from tauraft.core.messages import (
    Entry,
    EntryKind,
    HardState,
    Index,
    Member,
    Membership,
    Message,
    ReadState,
    Ready,
    Role,
    SnapshotMeta,
    Term,
)
from tauraft.core.raft import Raft, RaftConfig

CLUSTER = b"cluster"


def member(name: str, incarnation: int = 1) -> Member:
    return Member(name, incarnation)


def members(names: str) -> list[Member]:
    return [member(name) for name in names]


def voters(names: str, learners: str = "") -> Membership:
    return Membership(voters=frozenset(members(names)), learners=frozenset(members(learners)))


class Disk:
    """What survives a crash: the log, the hard state, one snapshot. A ``LogView``."""

    def __init__(self, membership: Membership, terms: Sequence[Term] = ()) -> None:
        self.snapshot = SnapshotMeta(0, 0, membership)
        self.base = (0, 0)
        self.log: list[Entry] = [
            Entry(index, term, EntryKind.BATCH, b"%d" % index) for index, term in enumerate(terms, 1)
        ]
        self.hard_state = HardState(term=terms[-1] if terms else 0)
        self.applied_data: list[bytes] = []

    def first_index(self) -> Index:
        return self.base[0] + 1

    def last_index(self) -> Index:
        return self.base[0] + len(self.log)

    def term(self, index: Index) -> Term:
        if index == self.base[0]:
            return self.base[1]
        return self.log[index - self.base[0] - 1].term

    def entries(self, low: Index, high: Index, max_bytes: int) -> Sequence[Entry]:
        if low <= self.base[0]:
            raise Compacted(low)
        chunk = self.log[low - self.base[0] - 1 : high - self.base[0] - 1]
        total = 0
        for count, entry in enumerate(chunk):
            total += len(entry.data)
            if total > max_bytes and count:
                return chunk[:count]
        return chunk

    def snapshot_meta(self) -> SnapshotMeta:
        return self.snapshot

    def terms(self) -> list[Term]:
        return [entry.term for entry in self.log]

    def write(self, ready: Ready) -> None:
        if ready.snapshot is not None:
            self.snapshot = ready.snapshot
            self.base = (ready.snapshot.index, ready.snapshot.term)
            self.log = []
        if ready.entries:
            first = ready.entries[0].index
            assert self.base[0] < first <= self.last_index() + 1, "a hole in the log"
            self.log[first - self.base[0] - 1 :] = ready.entries
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
            assert self.hard_state.commit <= self.last_index(), "a commit index beyond the log on disk"

    def take_snapshot(self, index: Index, membership: Membership, keep: int = 0) -> None:
        """A snapshot at an applied ``index``; the log before it goes, ``keep`` entries apart."""
        self.snapshot = SnapshotMeta(index, self.term(index), membership, b"snapshot")
        base = max(self.base[0], index - keep)
        term = self.term(base)
        del self.log[: base - self.base[0]]
        self.base = (base, term)


class Replica:
    def __init__(self, me: Member, disk: Disk, seed: int = 0, **options: Any) -> None:
        self.me = me
        self.disk = disk
        self.seed = seed
        self.options = options
        self.is_writing_at_once = self.is_applying_at_once = True
        self.applied: list[Entry] = []
        self.reads: list[ReadState] = []
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        config = RaftConfig(self.me, CLUSTER, **self.options)
        self.unwritten: deque[Ready] = deque()
        self.unapplied: deque[Entry] = deque()
        self.applied = [entry for entry in self.applied if entry.index <= self.disk.snapshot.index]
        self.raft = Raft(
            config,
            self.disk.hard_state,
            self.disk.snapshot.membership,
            self.disk,
            Random(self.seed * 1000 + self.starts),
            applied=self.disk.snapshot.index,
        )

    def crash(self) -> None:
        self.start()

    def turn(self) -> list[Message]:
        """All that may leave now."""
        sent: list[Message] = []
        while self.raft.has_ready():
            ready = self.raft.ready()
            sent.extend(ready.messages_now)
            self.reads.extend(ready.reads)
            self.unwritten.append(ready)
            if self.is_writing_at_once:
                while self.unwritten:
                    sent.extend(self.finish_write())
            if ready.snapshot is not None:
                self.unapplied.clear()
            self.unapplied.extend(ready.committed)
            while self.is_applying_at_once and self.unapplied:
                self.apply_one()
        return sent

    def finish_write(self) -> list[Message]:
        """The oldest Ready under way reaches the disk."""
        ready = self.unwritten.popleft()
        self.disk.write(ready)
        self.raft.persisted(ready.number)
        return list(ready.messages_after_persist)

    def apply_one(self) -> None:
        """The oldest entry handed out reaches the state machine."""
        entry = self.unapplied.popleft()
        assert entry.index == self.raft.log.applied + 1, "applied out of order, or twice"
        assert entry.index <= self.disk.last_index(), "applied before it was on disk"
        assert self.disk.term(entry.index) == entry.term, "applied what the disk does not have"
        self.applied.append(entry)
        if entry.kind is EntryKind.CONFIG:
            self.raft.apply_membership(decode_change(entry.data))
        self.raft.applied(entry.index)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.raft.tick()

    @property
    def data(self) -> list[bytes]:
        return [entry.data for entry in self.applied if entry.kind is EntryKind.BATCH]


class Network:
    """Replicas by name. ``cut`` holds (from, to) pairs that do not hear each other; ``dropped`` judges single messages."""

    def __init__(
        self, names: str, *, learners: str = "", logs: dict[str, Sequence[Term]] | None = None, **options: Any
    ) -> None:
        membership = voters(names, learners)
        self.replicas: dict[str, Replica] = {}
        for seed, name in enumerate(names + learners, 1):
            disk = Disk(membership, (logs or {}).get(name, ()))
            self.replicas[name] = Replica(member(name), disk, seed, **options)
        self.cut: set[tuple[str, str]] = set()
        self.drops: Callable[[Message], bool] = lambda message: False
        self.delivered: list[Message] = []

    def __getitem__(self, name: str) -> Raft:
        return self.replicas[name].raft

    def isolate(self, name: str) -> None:
        for other in self.replicas:
            self.cut |= {(name, other), (other, name)}

    def heal(self) -> None:
        self.cut.clear()

    def add(self, name: str, membership: Membership, **options: Any) -> None:
        """A new member with an empty disk, who learns all else from its leader."""
        self.replicas[name] = Replica(member(name), Disk(membership), len(self.replicas) + 1, **options)

    def settle(self) -> None:
        for _ in range(1000):
            sent = [message for replica in self.replicas.values() for message in replica.turn()]
            if not sent:
                return
            self.deliver(sent)
        raise AssertionError("the cluster does not come to rest")

    def deliver(self, messages: Sequence[Message]) -> None:
        for message in messages:
            receiver = self.replicas.get(message.to.peer_id)
            pair = (message.sender.peer_id, message.to.peer_id)
            if receiver is not None and pair not in self.cut and not self.drops(message):
                self.delivered.append(message)
                receiver.raft.step(message)

    def elect(self, name: str) -> Raft:
        self[name].campaign()
        self.settle()
        assert self[name].is_leader, f"{name} was not elected"
        return self[name]

    def tick(self, count: int = 1, names: str | None = None) -> None:
        """Everyone's time passes, and what comes of it is delivered."""
        for _ in range(count):
            for name in names or self.replicas:
                self.replicas[name].raft.tick()
            self.settle()

    def leaders(self) -> list[str]:
        return [name for name, replica in self.replicas.items() if replica.raft.role is Role.LEADER]

    def logs(self) -> list[list[Term]]:
        return [replica.disk.terms() for replica in self.replicas.values()]
