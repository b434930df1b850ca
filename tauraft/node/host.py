"""This process's part in a cluster: the node itself, or a stand-by beside it.

One data directory is one node; whoever holds its flock runs the replica, and serves the host's other processes on
the Unix socket in it.  The others are clients of that socket, and try the flock again and again: when the holder is
gone, the first that gets it opens the same disk under the same identity (SAFETY 7).

    flock -> identity -> network -> who are we (member record, or formation) -> log, snapshot, Raft -> serve

With ``storage="memory"`` nothing is on disk, and there is no stand-by: a cluster of one process, for tests.
Everything here runs in the engine's loop; ``open_host`` is entered and left in one task of it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeAlias

import anyio
import trio

from tauraft.client import LinkFailed, LocalDialer, StreamDialer
from tauraft.command_protocol import LeaderIs, Link, LinkUser
from tauraft.command_service import CommandService
from tauraft.config import ClusterOptions
from tauraft.core.messages import Member as RaftMember, Role
from tauraft.discovery.discovery import Discoverer
from tauraft.discovery.local_host import LocalHostDiscoverer
from tauraft.discovery.static import StaticDiscoverer
from tauraft.engine import Engine
from tauraft.errors import DataDirectoryError, TauraftError
from tauraft.formation import messages as forming
from tauraft.formation.decide import Options as FormationOptions
from tauraft.formation.driver import Formation
from tauraft.formation.genesis import (
    AcceptorRecord,
    ClusterOptions as CommittedOptions,
    Genesis,
    decode_acceptor,
    decode_genesis,
    encode_acceptor,
    encode_genesis,
)
from tauraft.node.clock import Clock, SystemClock
from tauraft.node.driver import Timing
from tauraft.node.local_replica import LocalReplica, Whereabouts
from tauraft.node.opening import MemberRecord, Parts, load_member, open_replica, save_member
from tauraft.node.snapshots import ParquetRows, PlainRows, RowFile, SnapshotMover
from tauraft.plugin_manager import Registry, load_plugins
from tauraft.storage.data_dir import (
    DataDirectory,
    NamespacePaths,
    default_data_directory,
    encode_namespace,
    read_machine_id,
    state_directory,
)
from tauraft.storage.file_system import FileSystem, MemoryFileSystem, RealFileSystem, read_whole, write_atomically
from tauraft.storage.log_store import LogStore
from tauraft.storage.snapshot_store import SnapshotStore
from tauraft.transport.local_socket import LocalSocketServer, LocalStream, connect_local
from tauraft.transport.memory import MemoryNetwork
from tauraft.transport.transport import MessageStream, PeerUnreachable, Transport
from tauraft.types import Member

State: TypeAlias = Literal["stopped", "starting", "leader", "follower", "candidate", "learner", "standby"]
TRY_LOCK_S = 0.1
JOIN_TIMEOUT_S = 5.0
_log = logging.getLogger("tauraft.node")


@asynccontextmanager
async def open_host(options: ClusterOptions, engine: Engine) -> AsyncIterator[NodeHost]:
    """A started node or stand-by. Raises ``DataDirectoryError``, ``PluginMissing``, ``InvalidOption``, ``WrongKey``."""
    registry = load_plugins(options.plugins)
    random = Random(os.urandom(16))
    host = NodeHost(options, registry, SystemClock(), random)
    try:
        async with trio.open_nursery() as nursery:
            host.prepare()
            nursery.start_soon(host.run)
            with trio.fail_after(60) as patience:
                await host.can_dial.wait()
                patience.deadline = float("inf")
            yield host
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _only(group) from group
    finally:
        host.close()


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What the caller is to see of a nursery's group: the one error in it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class NodeHost:
    """See the module. ``dialer`` leads to the replica, wherever it runs at the moment."""

    def __init__(self, options: ClusterOptions, registry: Registry, clock: Clock, random: Random) -> None:
        self.options = options
        self.problem: BaseException | None = None
        self.dialer = HostDialer(self)
        self.can_dial = trio.Event()
        self.replica: LocalReplica | None = None
        self.service: CommandService | None = None
        self.directory: DataDirectory | None = None
        self._registry, self._clock, self._random = registry, clock, random
        self._transport: Transport | None = None
        self._seen_leader: LeaderIs | None = None
        self._welcomed_peer_id = ""
        self._began_ns = clock.monotonic_ns()

    # What a started cluster shows.

    @property
    def peer_id(self) -> str:
        return self.replica.peer_id if self.replica is not None else self._welcomed_peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return () if self._transport is None else self._transport.addresses

    @property
    def state(self) -> State:
        replica = self.replica
        if replica is None:
            return "standby" if self.directory is not None and not self.directory.is_locked else "starting"
        raft = replica.driver.raft
        if replica.me in raft.membership.learners or replica.me not in raft.membership.all_members():
            return "learner"
        match raft.role:
            case Role.LEADER:
                return "leader"
            case Role.FOLLOWER:
                return "follower"
            case _:
                return "candidate"

    @property
    def leader(self) -> Member | None:
        replica = self.replica
        leader = None if replica is None else replica.leader
        if replica is None or leader is None:
            return None
        row = replica.machine.system.replicas.get(leader.peer_id)
        return Member(leader.peer_id, leader.addresses, "voter", "" if row is None else row.host, True)

    # Its life.

    def prepare(self) -> None:
        """Find what is wrong with the directory before anything is started."""
        if self.options.storage == "memory":
            return
        path = self.options.data_dir or default_data_directory(self.options.namespace)
        self.directory = DataDirectory.prepare(path)

    def close(self) -> None:
        if self.directory is not None:
            self.directory.close()

    async def run(self) -> None:
        """Stand by until the directory is ours, then be the node."""
        directory = self.directory
        if directory is not None:
            while not directory.try_lock():
                if not self.can_dial.is_set() and os.path.exists(directory.socket_path):
                    self.can_dial.set()
                await trio.sleep(TRY_LOCK_S * self._random.uniform(0.5, 1.0))
        try:
            await self._be_the_node()
        except BaseException as error:
            self.problem = error
            raise

    async def _be_the_node(self) -> None:
        options = self.options
        files: FileSystem = RealFileSystem()
        rows: RowFile = ParquetRows()
        if self.directory is None:
            files, rows = MemoryFileSystem(), PlainRows()
            files.make_directory("/node")
            for name in ("log", "snapshots"):
                files.make_directory(f"/node/{name}")
            paths = NamespacePaths("/node")
            machine_id, device = "memory", 0
        else:
            paths = self.directory.namespace(options.namespace)
            paths.make()
            machine_id, device = self.directory.machine_id or read_machine_id(), self.directory.device
        async with self._make_transport() as transport:
            self._transport = transport
            incarnation = self._incarnation(files, paths)
            request = forming.JoinRequest(
                transport.peer_id, incarnation, transport.addresses, machine_id, device, (), options.join_token
            )
            discoverers = self._discoverers()
            formation = Formation(
                transport,
                options.namespace,
                request,
                _Records(files, paths),
                options=FormationOptions(
                    bootstrap_timeout_s=(
                        options.timing.bootstrap_timeout_s
                        if options.bootstrap_timeout is None
                        else options.bootstrap_timeout
                    ),
                    bootstrap_threshold=options.bootstrap_threshold,
                    expect=options.expect,
                    force_bootstrap=options.force_bootstrap or self.directory is None,
                    max_voters=options.max_voters,
                ),
                cluster_options=CommittedOptions(lease_reads=options.lease_reads),
                discoverers=discoverers,
                random=self._random,
                age_s=self._age_s,
                waiting=lambda reason: _log.warning("%s is waiting: %s", options.namespace, reason),
            )
            try:
                formed = await formation.form()
                for member in formed.members:
                    transport.learn(member.peer_id, member.addresses)
                record = load_member(files, paths.path)
                if record is None:
                    record = MemberRecord(
                        transport.peer_id, incarnation, formed.genesis.cluster_id, tuple(formed.genesis.members)
                    )
                    save_member(files, paths.path, record)
                await self._serve(transport, files, rows, paths, record, formed.genesis, formation, discoverers)
            finally:
                with anyio.CancelScope(shield=True):
                    await formation.aclose()

    async def _serve(
        self,
        transport: Transport,
        files: FileSystem,
        rows: RowFile,
        paths: NamespacePaths,
        record: MemberRecord,
        genesis: Genesis,
        formation: Formation,
        discoverers: list[Discoverer],
    ) -> None:
        options = self.options
        timing = options.timing
        mover = SnapshotMover(
            SnapshotStore(paths.snapshots, files=files),
            rows,
            self._clock,
            _run_in_worker if self.directory is not None else _run_inline,
        )
        parts = Parts(
            options.namespace,
            self._clock,
            self._random,
            self._registry,
            Timing(timing.heartbeat_s, timing.election_s),
            Whereabouts(
                transport.addresses,
                socket.gethostname(),
                self.directory.machine_id if self.directory is not None else "memory",
                str(self.directory.device) if self.directory is not None else "memory",
            ),
            max_voters=options.max_voters,
            lease_reads=genesis.options.lease_reads,
        )
        replica = open_replica(
            record,
            self._log_store(files, paths),
            mover,
            lambda sink: transport.open_channel(options.namespace, sink),
            parts,
        )
        service = CommandService(replica, self._clock.monotonic_ns)
        transport.serve(options.namespace, service.serve_stream)
        formation.became_member(_Joins(replica, genesis, transport))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(replica.run)
                nursery.start_soon(service.run)
                for discoverer in discoverers:
                    nursery.start_soon(_keep_learning, discoverer, transport)
                if self.directory is not None:
                    local = LocalSocketServer(self.directory.socket_path, transport.peer_id)

                    async def serve_local(stream: LocalStream, namespace: str) -> None:
                        await service.serve_stream(stream, pid=stream.peer_pid)

                    local.serve(options.namespace, serve_local)
                    nursery.start_soon(local.run)
                self.replica, self.service = replica, service
                self.can_dial.set()
        finally:
            self.replica = self.service = None
            replica.close()

    def _age_s(self) -> float:
        return (self._clock.monotonic_ns() - self._began_ns) / 1e9

    def _make_transport(self) -> Any:
        options = self.options
        if self.directory is None:
            return MemoryNetwork(self._random).transport("memory-node")
        from tauraft.transport.libp2p.transport import Libp2pTransport

        identity = self.directory.read_identity()
        if identity is None:
            identity = os.urandom(32)
            self.directory.write_identity(identity)
        allow = frozenset(options.allow)
        return Libp2pTransport(
            identity,
            random=self._random,
            listen=options.listen or ("/ip4/127.0.0.1/tcp/0",),
            encryption_keys=options.encryption_key,
            admit=lambda peer_id, namespace, action: not allow or peer_id in allow or action == "commands",
        )

    def _discoverers(self) -> list[Discoverer]:
        found: list[Discoverer] = []
        if self.directory is None:
            return found
        if "local" in self.options.discovery:
            directory = Path(state_directory()) / "peers" / encode_namespace(self.options.namespace)
            found.append(LocalHostDiscoverer(directory))
        if self.options.peers:
            found.append(StaticDiscoverer(self.options.peers))
        return found

    def _incarnation(self, files: FileSystem, paths: NamespacePaths) -> int:
        """Drawn once for this disk: one that comes back empty is another member (SAFETY 14)."""
        path = f"{paths.path}/incarnation"
        if files.exists(path):
            return int.from_bytes(read_whole(files, path), "big")
        incarnation = self._random.getrandbits(63)
        write_atomically(files, path, incarnation.to_bytes(8, "big"))
        return incarnation

    def _log_store(self, files: FileSystem, paths: NamespacePaths) -> LogStore:
        if self.options.storage == "duckdb":
            from tauraft.storage.duckdb_log import DuckDBLog

            return DuckDBLog(paths.log)
        from tauraft.storage.segment_log import SegmentLog

        return SegmentLog(paths.log, files=files)


class HostDialer:
    """To the replica in this process if it is here, else through the socket of the process that has it."""

    has_choice = False

    def __init__(self, host: NodeHost) -> None:
        self._host = host

    async def dial(self, user: LinkUser, leader: LeaderIs | None, nursery: trio.Nursery) -> Link:
        host = self._host
        if host.service is not None:
            return await LocalDialer(host.service.connect_local).dial(user, leader, nursery)
        if host.directory is None or host.directory.is_locked:
            raise LinkFailed("the node is starting")
        return await SocketDialer(host.directory.socket_path, host.options.namespace).dial(user, leader, nursery)


class SocketDialer:
    """Through the Unix socket of a node's directory."""

    has_choice = False

    def __init__(self, path: str, namespace: str) -> None:
        self._path, self._namespace = path, namespace

    async def dial(self, user: LinkUser, leader: LeaderIs | None, nursery: trio.Nursery) -> Link:
        async def open_stream(leader: LeaderIs | None) -> MessageStream:
            tasks: Any = nursery  # a trio nursery starts tasks as anyio's task group does
            stream: MessageStream = await connect_local(self._path, self._namespace, tasks)
            return stream

        return await StreamDialer(open_stream, has_choice=False).dial(user, leader, nursery)


class _Records:
    """What formation keeps in the namespace's directory. Durable when saving returns."""

    def __init__(self, files: FileSystem, paths: NamespacePaths) -> None:
        self._files = files
        self._genesis, self._acceptor = f"{paths.path}/genesis", f"{paths.path}/acceptor"

    def load_genesis(self) -> Genesis | None:
        return decode_genesis(read_whole(self._files, self._genesis)) if self._files.exists(self._genesis) else None

    def save_genesis(self, genesis: Genesis) -> None:
        write_atomically(self._files, self._genesis, encode_genesis(genesis))

    def load_acceptor(self) -> AcceptorRecord:
        if not self._files.exists(self._acceptor):
            return AcceptorRecord()
        return decode_acceptor(read_whole(self._files, self._acceptor))

    def save_acceptor(self, record: AcceptorRecord) -> None:
        write_atomically(self._files, self._acceptor, encode_acceptor(record))


class _Joins:
    """Lets others in: the leader adds a learner; anyone else says who leads."""

    def __init__(self, replica: LocalReplica, genesis: Genesis, transport: Transport) -> None:
        self._replica, self._genesis, self._transport = replica, genesis, transport

    def leader(self) -> forming.KnownPeer | None:
        leader = self._replica.leader
        return None if leader is None else forming.KnownPeer(leader.peer_id, leader.addresses)

    async def join(
        self, request: forming.JoinRequest
    ) -> forming.JoinAccepted | forming.JoinRefused | forming.NotLeader:
        replica = self._replica
        if not replica.is_leader:
            return forming.NotLeader(self.leader())
        self._transport.learn(request.peer_id, request.addresses)
        member = RaftMember(request.peer_id, request.incarnation)
        try:
            await replica.add(member, is_voter=False, timeout_s=JOIN_TIMEOUT_S)
        except TauraftError as error:
            _log.info("%s has to ask again to join: %s", request.peer_id, error)
            return forming.NotLeader(None)
        membership = replica.machine.membership
        members = tuple(
            forming.MemberAddresses(
                one.peer_id, one.incarnation, replica.addresses_of(one.peer_id), one in membership.voters
            )
            for one in sorted(membership.all_members())
        )
        return forming.JoinAccepted(self._genesis, members)


async def _keep_learning(discoverer: Discoverer, transport: Transport) -> None:
    """Members that come back at another port are found as at first."""
    async for found in discoverer.find():
        if found.peer_id is not None and found.peer_id != transport.peer_id:
            transport.learn(found.peer_id, found.addresses)


async def _run_in_worker(work: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(work)


async def _run_inline(work: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return work()


__all__ = ["DataDirectoryError", "NodeHost", "PeerUnreachable", "SocketDialer", "open_host"]
