"""From a directory to a running replica: what is read, in which order, and what is refused.

    member record   who this disk is in which cluster (incarnation, genesis); written once, before Raft starts
    log             the hard state and the entries, opened and verified
    snapshot        the newest valid one with index >= first - 1 (SAFETY 24), or the genesis, which stands for index 0

The state machine starts from the snapshot and is brought up to date by applying the log, which also brings the
membership up to date.  Nothing here waits or talks; the caller gives files, and a channel to talk on later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import msgpack

from tauraft.core.log import HardStateLost
from tauraft.core.messages import EntryKind, HardState, Member, Membership, SnapshotMeta
from tauraft.core.raft import Raft, RaftConfig
from tauraft.errors import DataDirectoryError
from tauraft.node.apply import Machine
from tauraft.node.clock import Clock, ClusterClock
from tauraft.node.driver import Driver, StoredLog, halted
from tauraft.node.local_replica import LocalReplica, Whereabouts
from tauraft.node.pacer import Timing
from tauraft.node.snapshots import SnapshotMover
from tauraft.node.sql import DEFAULT_HISTORY_BYTES, MAX_MEMORY_BYTES, Projection
from tauraft.plugin_manager import Registry
from tauraft.storage.file_system import FileSystem, RealFileSystem, read_whole, write_atomically
from tauraft.storage.history import HistoryFiles
from tauraft.storage.log_store import LogStore
from tauraft.transport.transport import Channel, FrameSink

FORMAT = 1
MEMBER_FILE = "member"
HALTED_FILE = "halted"


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """Who this disk is: a peer's incarnation, in the cluster that ``genesis`` began (SAFETY 7, 14)."""

    peer_id: str
    incarnation: int
    cluster_id: bytes
    founders: tuple[Member, ...]  # the voters of the genesis; empty never

    @property
    def me(self) -> Member:
        return Member(self.peer_id, self.incarnation)

    def encode(self) -> bytes:
        packed: bytes = msgpack.packb(
            [FORMAT, self.peer_id, self.incarnation, self.cluster_id, [list(m) for m in self.founders]]
        )
        return packed

    @classmethod
    def decode(cls, data: bytes, path: str) -> MemberRecord:
        try:
            form, peer_id, incarnation, cluster_id, founders = msgpack.unpackb(data)
            if form != FORMAT:
                raise ValueError(f"format {form}")
            return cls(peer_id, incarnation, cluster_id, tuple(Member(*pair) for pair in founders))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            refused = DataDirectoryError(
                f"{path} is not a member record this version can read ({error}); nothing was touched: "
                "give another data directory, or the version that wrote this one"
            )
            refused.path = path
            raise refused from error


def load_member(files: FileSystem, directory: str) -> MemberRecord | None:
    """Raises ``DataDirectoryError``, also where the replica has halted for good (SAFETY 14, 28)."""
    if files.exists(f"{directory}/{HALTED_FILE}"):
        raise halted(read_whole(files, f"{directory}/{HALTED_FILE}").decode(errors="replace"))
    path = f"{directory}/{MEMBER_FILE}"
    return MemberRecord.decode(read_whole(files, path), path) if files.exists(path) else None


def save_member(files: FileSystem, directory: str, record: MemberRecord) -> None:
    """Durable when it returns. From here on this disk never forms or joins another cluster of the name."""
    write_atomically(files, f"{directory}/{MEMBER_FILE}", record.encode())


def save_halted(files: FileSystem, directory: str, why: str) -> None:
    """Durable when it returns. The replica on this disk never runs again."""
    write_atomically(files, f"{directory}/{HALTED_FILE}", why.encode())


@dataclass(frozen=True, slots=True)
class Parts:
    """What a replica is made of besides its disk. ``mark_halted``: see ``save_halted``."""

    namespace: str
    clock: Clock
    random: Random
    registry: Registry
    timing: Timing
    whereabouts: Whereabouts
    mark_halted: Callable[[str], object]
    max_voters: int = 5
    snapshot_entries: int = 20_000  # a snapshot is taken this many entries after the last one
    lease_reads: bool = False
    projection: str | None = None  # the directory history is kept in; None: in memory, from the first query of SQL on
    history_bytes: int = DEFAULT_HISTORY_BYTES


class _LateSink:
    """Stands in for the driver while the channel is opened: frames that come first wait for it."""

    def __init__(self) -> None:
        self.driver: FrameSink | None = None

    def frames_received(self, sender: str, frames: Any) -> None:
        if self.driver is not None:
            self.driver.frames_received(sender, frames)

    def peer_closed(self, peer_id: str) -> None:
        if self.driver is not None:
            self.driver.peer_closed(peer_id)


def open_replica(
    record: MemberRecord,
    store: LogStore,
    snapshots: SnapshotMover,
    open_channel: Callable[[FrameSink], Channel],
    parts: Parts,
) -> LocalReplica:
    """Raises ``LogCorrupt``, ``DataDirectoryError``, ``PluginMissing``. ``replica.driver.run()`` starts it."""
    recovered = store.open()
    machine = Machine(parts.registry)
    founding = SnapshotMeta(0, 0, Membership(voters=frozenset(record.founders)))
    machine.membership = founding.membership
    snapshot = snapshots.restore_newest(machine, recovered.first_index - 1) or founding
    if snapshot.index < recovered.first_index - 1:
        raise DataDirectoryError(
            f"the log starts at entry {recovered.first_index}, and no snapshot that reaches it is intact; nothing was "
            "touched: move the namespace's folder away to rejoin as a new member, or see `tauraft recover`"
        )
    hard_state: HardState = recovered.hard_state
    if snapshot.index > recovered.last_index or store.term(snapshot.index) != snapshot.term:
        # The crash came between a snapshot's arrival and the log's reset: finish it. The log may be longer than the
        # snapshot and yet another one, of entries that were never committed; only if it has the snapshot's last entry
        # do those after it follow from it.
        if snapshot.term > hard_state.term:
            hard_state = HardState(snapshot.term)
        store.reset_at(snapshot, hard_state)
    if recovered.is_tail_suspect and snapshot.membership.voters == {record.me} and not _has_changes(store):
        raise DataDirectoryError(
            "the last record of the log is damaged, may have been acknowledged, and no other voter has it; nothing was "
            "touched: `tauraft recover` starts again with what can be read, and says what may be lost"
        )
    log = StoredLog(store, snapshot)
    config = RaftConfig(
        me=record.me,
        cluster_id=record.cluster_id,
        election_ticks=parts.timing.election_ticks,
        heartbeat_ticks=1,
        lease_reads=parts.lease_reads,
    )
    try:
        raft = Raft(config, hard_state, snapshot.membership, log, parts.random, applied=snapshot.index)
    except HardStateLost as lost:
        raise DataDirectoryError(
            f"{lost}: whom this member voted for is lost, so it must not vote again; nothing was touched: move the "
            "namespace's folder away to rejoin as a new member, or see `tauraft recover`"
        ) from lost
    cluster_clock = ClusterClock(parts.clock, int(parts.timing.election_s * 1e9))
    cluster_clock.saw_in_log(machine.now_ns, machine.wall_ns)
    sink = _LateSink()
    channel = open_channel(sink)
    driver = Driver(
        me=record.me,
        cluster_id=record.cluster_id,
        raft=raft,
        log=log,
        store=store,
        machine=machine,
        channel=channel,
        clock=parts.clock,
        cluster_clock=cluster_clock,
        timing=parts.timing,
        random=parts.random,
        snapshots=snapshots,
        is_tail_suspect=recovered.is_tail_suspect,
        mark_halted=parts.mark_halted,
    )
    driver.see_last_stamp(store.last_index)
    sink.driver = driver
    if snapshot.membership.voters == {record.me}:
        # As far as its snapshot says it is alone: nobody else's leadership to wait out. (If that has changed since,
        # the log says so, and a campaign without the others' votes comes to nothing.)
        raft.campaign()
    return LocalReplica(
        parts.namespace,
        driver,
        parts.registry,
        parts.whereabouts,
        max_voters=parts.max_voters,
        snapshots=snapshots,
        snapshot_entries=parts.snapshot_entries,
        projection=_projection(machine, snapshots, record, parts),
    )


def _projection(machine: Machine, snapshots: SnapshotMover, record: MemberRecord, parts: Parts) -> Projection:
    directory = parts.projection
    if directory is None or not parts.history_bytes:
        return Projection(machine, snapshots.run_in_worker, memory_bytes=min(parts.history_bytes, MAX_MEMORY_BYTES))
    files = HistoryFiles(
        directory, record.cluster_id, files=RealFileSystem(), max_bytes=parts.history_bytes, seal=_seal
    )
    return Projection(machine, snapshots.run_in_worker, files, directory=directory)


def _seal(source: str, target: str) -> None:
    from tauraft.storage.projection import seal_lines

    seal_lines(source, target)


def _has_changes(store: LogStore) -> bool:
    """Whether the log has a membership change: somebody else may be a voter."""
    low = store.first_index
    while low <= store.last_index:
        entries = store.read(low, store.last_index + 1, 1 << 20)
        if any(entry.kind is EntryKind.CONFIG for entry in entries):
            return True
        low += len(entries)
    return False
