"""Whole replicas (driver, machine, segment log, snapshots) on a wire and a clock that move when told: for tests of the driver.

``Cluster.pump`` carries frames and turns the drivers until nothing moves; ``Cluster.tick`` lets one heartbeat's time pass first.
Nothing runs by itself, and nothing sleeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import trio

from tauraft.core.messages import Member
from tauraft.node.local_replica import LocalReplica, Whereabouts
from tauraft.node.opening import MemberRecord, Parts, open_replica, save_halted
from tauraft.node.pacer import Timing
from tauraft.node.snapshots import PlainRows, SnapshotMover
from tauraft.plugin_manager import load_plugins
from tauraft.storage.file_system import MemoryFileSystem
from tauraft.storage.segment_log import SegmentLog
from tauraft.storage.snapshot_store import SnapshotStore

CLUSTER_ID = b"0123456789abcdef"
TIMING = Timing(heartbeat_s=0.1, election_s=1.0)


class ManualClock:
    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def monotonic_ns(self) -> int:
        return self.now_ns

    def boottime_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns


class Wire:
    """One node's channel: what it sends lies in the cluster's ``frames``."""

    def __init__(self, cluster: Cluster, peer_id: str) -> None:
        self._cluster, self._peer_id = cluster, peer_id

    def send(self, peer_id: str, frame: bytes, *, bulk: bool = False) -> bool:
        self._cluster.frames.append((self._peer_id, peer_id, frame))
        return True

    def cork(self) -> None: ...

    def flush(self) -> None: ...

    def set_members(self, members: Mapping[str, Sequence[str]]) -> None: ...

    def set_context(self, cluster_id: bytes) -> None: ...

    def is_connected(self, peer_id: str) -> bool:
        return True

    def lane_is_up(self, peer_id: str) -> bool:
        return False

    async def aclose(self) -> None: ...


class Node:
    def __init__(self, cluster: Cluster, me: Member) -> None:
        self.me = me
        self._cluster = cluster
        self.files = MemoryFileSystem()
        self.files.make_directory("/node")
        self.files.sync_directory("/")
        for name in ("log", "snapshots"):
            self.files.make_directory(f"/node/{name}")
        self.files.sync_directory("/node")
        self.replica: LocalReplica
        self.mover: SnapshotMover

    def store(self) -> SegmentLog:
        return SegmentLog("/node/log", files=self.files, segment_bytes=1 << 16)

    def snapshot_store(self) -> SnapshotStore:
        return SnapshotStore("/node/snapshots", files=self.files)

    def start(self) -> LocalReplica:
        cluster = self._cluster
        self.mover = SnapshotMover(self.snapshot_store(), PlainRows(), cluster.clock, run_inline)
        parts = Parts(
            "/raft/test",
            cluster.clock,
            Random(cluster.random.getrandbits(32)),
            load_plugins(()),
            TIMING,
            Whereabouts((), self.me.peer_id, self.me.peer_id, "disk"),
            lambda why: save_halted(self.files, "/node", why),
        )
        record = MemberRecord(self.me.peer_id, self.me.incarnation, CLUSTER_ID, cluster.founders)
        self.replica = open_replica(
            record, self.store(), self.mover, lambda sink: Wire(cluster, self.me.peer_id), parts
        )
        return self.replica

    def reap(self, keep: int) -> None:
        store = self.snapshot_store()
        store.open()
        store.reap(keep)

    def crash(self) -> None:
        self.files.reboot(self._cluster.random)


class Cluster:
    """``founders`` vote; ``others`` are there and not members. Letters are peer ids."""

    def __init__(self, founders: str, others: str = "") -> None:
        self.random = Random(1)
        self.clock = ManualClock()
        self.frames: list[tuple[str, str, bytes]] = []
        self.drops: Callable[[str, str, bytes], bool] = lambda sender, to, frame: False
        self.founders = tuple(Member(letter, 1) for letter in founders)
        self.nodes = {letter: Node(self, Member(letter, 1)) for letter in founders + others}

    def __getitem__(self, letter: str) -> LocalReplica:
        return self.nodes[letter].replica

    def start(self) -> Cluster:
        for node in self.nodes.values():
            node.start()
        self.pump()
        return self

    def pump(self) -> None:
        for _ in range(1_000):
            for node in self.nodes.values():
                node.replica.driver.turn()
            frames, self.frames = self.frames, []
            if not frames:
                return
            for sender, to, frame in frames:
                if to in self.nodes and not self.drops(sender, to, frame):
                    self.nodes[to].replica.driver.frames_received(sender, [frame])
        raise AssertionError("the cluster does not come to rest")

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.clock.now_ns += int(TIMING.heartbeat_s * 1e9)
            self.pump()

    def elect(self, letter: str) -> LocalReplica:
        self[letter].driver.raft.campaign()
        self.pump()
        assert self[letter].is_leader
        return self[letter]


def take_snapshot(replica: LocalReplica) -> int:
    async def take() -> int:
        return await replica.take_snapshot()

    return trio.run(take)


async def run_inline(work: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return work()
