"""One namespace of a node: its formation, its replica, and this process's way to it.

    who are we (member record, or formation) -> log, snapshot, Raft -> serve

``Namespace`` lives as long as anybody in this process uses it, or, opened for a standby, as long as its node.  It runs only in the process that
holds the node's directory (``run``); elsewhere it is the way through the holder's socket, and asks the holder to open
what that has not opened yet.  ``dialer`` leads to the replica wherever it is at the moment, ``trouble`` says in a clause why
it does not serve, and ``problem`` why it never will: it has failed, or its replica only votes.

A node of a thousand namespaces has a thousand of these: each must be cheap while nothing happens in it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import anyio
import trio

from tauraft.client import LinkFailed, LocalDialer, Overhearing, Seen, StreamDialer
from tauraft.codec import CodecError
from tauraft.command_protocol import LeaderIs, Link, LinkUser
from tauraft.command_service import CommandService
from tauraft.config import ClusterOptions
from tauraft.core.messages import Member as RaftMember, Role
from tauraft.discovery.discovery import Discoverer
from tauraft.errors import DataDirectoryError, InvalidOption, Shutdown, TauraftError, WrongKey
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
from tauraft.hookspecs import LogStoreConfig
from tauraft.node.apply import Machine
from tauraft.node.forwarding import forward_call
from tauraft.node.local_replica import LocalReplica, Whereabouts
from tauraft.node.opening import MemberRecord, Parts, load_member, open_replica, save_halted, save_member
from tauraft.node.pacer import Timing
from tauraft.node.replica import LeaderInfo
from tauraft.node.snapshots import SnapshotMover
from tauraft.storage.data_dir import NamespacePaths
from tauraft.storage.file_system import FileSystem, read_whole, write_atomically
from tauraft.storage.log_store import LogStore
from tauraft.storage.snapshot_store import SnapshotStore
from tauraft.transport.local_socket import LocalStream, connect_local
from tauraft.transport.transport import CONNECT_TIMEOUT_S, Channel, FrameSink, MessageStream, PeerUnreachable, Transport
from tauraft.types import Member

if TYPE_CHECKING:
    from tauraft.node.host import NodeHost

State: TypeAlias = Literal["stopped", "starting", "leader", "follower", "candidate", "learner", "standby"]
R = TypeVar("R")

JOIN_TIMEOUT_S = 5.0
DIAL_PATIENCE_S = 4.0  # less than a link is given to say Welcome
LOOK_AGAIN_S = 0.1
# What a standby's options decide when the holder has to open the namespace for it.
ASKED_OPTIONS = (
    "expect", "max_voters", "bootstrap_timeout", "bootstrap_threshold", "force_bootstrap", "lease_reads",
)  # fmt: skip
_log = logging.getLogger("tauraft.node")


class Namespace:
    """See the module. What a facade stands on (``tauraft.cluster.ClusterHost``)."""

    def __init__(self, node: NodeHost, options: ClusterOptions, earlier: Namespace | None) -> None:
        """``earlier``: the one whose place it takes; it may still be at work on the same files."""
        self.node = node
        self._earlier = earlier
        self.options = options
        self.users = 0
        self.problem: TauraftError | None = None
        self.dialer = HostDialer(self)
        self.replica: LocalReplica | None = None
        self.service: CommandService | None = None
        self.has_failed = trio.Event()
        self.has_ended = trio.Event()
        self.has_ended.set()
        self.changed = trio.Event()  # replaced at each change of how the replica is reached
        self.seen = Seen()
        self._waiting_for = ""
        self._scope = trio.CancelScope()

    # What a started cluster shows.

    @property
    def peer_id(self) -> str:
        return self.node.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.node.addresses

    @property
    def state(self) -> State:
        replica = self.replica
        if replica is None:
            return "starting" if self.node.is_holder else "standby"
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
        leader: LeaderInfo | LeaderIs | None = self.seen.leader if replica is None else replica.leader
        if leader is None or not leader.peer_id:
            return None
        row = None if replica is None else replica.machine.system.replicas.get(leader.peer_id)
        host = row.host if row is not None else socket.gethostname() if leader.peer_id == self.peer_id else ""
        return Member(leader.peer_id, leader.addresses, "voter", host, True)

    @property
    def trouble(self) -> str:
        """Why it does not serve at the moment; empty while it does."""
        if not self.node.is_holder:
            return self.node.trouble_with_holder()
        if self.replica is None:
            return f"waiting: {self._waiting_for}" if self._waiting_for else ""
        return self.replica.trouble if self.problem is None else str(self.problem)

    # Its life.

    def fail(self, error: BaseException) -> None:
        """It will never serve. Whoever uses it is told."""
        if not self.has_failed.is_set():
            if not isinstance(error, TauraftError):
                _log.error("%s stopped", self.options.namespace, exc_info=error)
            self.problem = _as_told(error)
            self.has_failed.set()
            self.stir()

    async def raise_problem(self) -> None:
        """For the users' tasks: never returns."""
        await self.has_failed.wait()
        assert self.problem is not None
        raise self.problem

    def stir(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def run(self, transport: Transport) -> None:
        """Until it is ended, or fails: that is ``problem`` then. Only in the process that holds the directory."""
        try:
            if self._earlier is not None:
                await self._earlier.has_ended.wait()  # also when this one is to end: the next one waits for it alone
                self._earlier = None
            with self._scope:
                await self._take_part(transport)
        except Exception as error:  # the edge that owns the task: other namespaces go on
            self.fail(only(error))
        finally:
            self.has_ended.set()

    def stop(self) -> None:
        self._scope.cancel()

    async def end(self) -> None:
        self.stop()
        await self.has_ended.wait()

    def note_problem(self, peer_id: str, error: Exception) -> None:
        """What the transport met. Another key than ours, at a peer we looked for, is the user's error as long as nothing runs."""
        if not isinstance(error, WrongKey):
            return
        replica = self.replica
        if replica is not None and replica.leader is not None:
            replica.problems[peer_id] = f"{peer_id} was refused: {error}"
        elif self.node.is_known(peer_id):
            self.fail(error)

    async def _take_part(self, transport: Transport) -> None:
        options, node = self.options, self.node
        files, paths = node.disk(options.namespace)
        if options.snapshot_dir is not None and not node.is_in_memory:
            paths = paths.with_snapshots_in(options.snapshot_dir, transport.peer_id)
        incarnation = _incarnation(files, paths, node)
        machine_id, device = node.machine_id, node.device
        request = forming.JoinRequest(
            transport.peer_id, incarnation, transport.addresses, machine_id, device, (), options.join_token
        )
        discoverers = node.discoverers(options.namespace)
        records = _Records(files, paths)
        record = load_member(files, paths.path)
        formation = Formation(
            transport,
            options.namespace,
            request,
            records,
            options=FormationOptions(
                bootstrap_timeout_s=(
                    options.timing.bootstrap_timeout_s
                    if options.bootstrap_timeout is None
                    else options.bootstrap_timeout
                ),
                bootstrap_threshold=options.bootstrap_threshold,
                expect=options.expect,
                # In memory there is nobody to wait for, unless a plugin finds somebody.
                force_bootstrap=options.force_bootstrap or (node.is_in_memory and not discoverers),
                max_voters=options.max_voters,
            ),
            cluster_options=CommittedOptions(lease_reads=options.lease_reads),
            discoverers=discoverers,
            random=node.random,
            age_s=node.age_s,
            waiting=self._waits_for,
        )
        try:
            formed = await formation.form()
            for member in formed.members:
                transport.learn(member.peer_id, member.addresses)
            if record is None:
                # The log is made first: where there is a record, a missing log is a lost one (its votes with it).
                store = self._log_store(files, paths, must_exist=False)
                is_new = store.open().last_index == 0
                store.close()
                if is_new:
                    _set_aside_snapshots(files, paths)
                record = MemberRecord(
                    transport.peer_id, incarnation, formed.genesis.cluster_id, tuple(formed.genesis.members)
                )
                save_member(files, paths.path, record)
            await self._serve(transport, files, paths, record, formed.genesis, formation, discoverers)
        finally:
            with anyio.CancelScope(shield=True):
                await formation.aclose()

    def _waits_for(self, reason: str) -> None:
        self._waiting_for = reason
        _log.warning("%s is waiting: %s", self.options.namespace, reason)

    async def _serve(
        self,
        transport: Transport,
        files: FileSystem,
        paths: NamespacePaths,
        record: MemberRecord,
        genesis: Genesis,
        formation: Formation,
        discoverers: Sequence[Discoverer],
    ) -> None:
        options, node = self.options, self.node
        timing = options.timing
        mover = SnapshotMover(SnapshotStore(paths.snapshots, files=files), node.row_files(), node.clock, node.run_apart)
        parts = Parts(
            options.namespace,
            node.clock,
            node.random,
            node.registry,
            Timing(timing.heartbeat_s, timing.election_s),
            Whereabouts(transport.addresses, socket.gethostname(), node.machine_id, str(node.device)),
            lambda why: save_halted(files, paths.path, why),
            max_voters=options.max_voters,
            lease_reads=genesis.options.lease_reads,
            projection=None if node.is_in_memory else paths.projection,
            history_bytes=options.history_bytes,
        )
        channels: list[Channel] = []

        def open_channel(sink: FrameSink) -> Channel:
            channels.append(transport.open_channel(options.namespace, sink))
            return channels[0]

        await mover.read_ahead(Machine(node.registry))
        replica = open_replica(record, self._log_store(files, paths, must_exist=True), mover, open_channel, parts)
        replica.forward = lambda leader, method, arguments: forward_call(
            transport, options.namespace, leader, method, arguments
        )
        replica.invite = formation.invite
        engine = node.engine
        replica.driver.begin_turn, replica.driver.end_turn = engine.begin_turn, engine.end_turn
        replica.driver.linger, replica.driver.give_way = engine.linger, engine.give_way
        service = CommandService(
            replica,
            node.clock.monotonic_ns,
            at_end_of_turn=engine.at_end_of_turn,
            authority=node.hook_calls.authority(options.namespace),
        )
        leadership = node.hook_calls.leadership_listener(replica)
        if leadership is not None:
            replica.add_listener(leadership)
        transport.serve(options.namespace, service.serve_stream)
        formation.became_member(_Joins(replica, genesis, transport))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(replica.run)
                nursery.start_soon(self._serve_while_it_applies, replica, service, transport)
                for discoverer in discoverers:
                    nursery.start_soon(_keep_learning, discoverer, transport)
                nursery.start_soon(self._ask_to_be_let_in_again, replica, formation, discoverers)
                self.replica = replica
                if self.problem is None:
                    self.service = service
                self.stir()
        finally:
            self.replica = self.service = None
            self.stir()
            transport.stop_serving(options.namespace)
            with anyio.CancelScope(shield=True), anyio.move_on_after(CONNECT_TIMEOUT_S):
                await channels[0].aclose()
            replica.close()

    async def _serve_while_it_applies(
        self, replica: LocalReplica, service: CommandService, transport: Transport
    ) -> None:
        """Until a plugin is missing: the replica votes on, and its clients are sent to those that apply (SAFETY 27)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run)
            await replica.stopped.wait()
            self.problem = replica.driver.stopped_by
            self.service = None
            transport.stop_serving(self.options.namespace)
            nursery.cancel_scope.cancel()
        self.stir()

    async def serve_local(self, stream: LocalStream) -> None:
        """One client of this host. It waits until the replica is here."""
        while self.service is None:
            if self.problem is not None:
                return
            await self.changed.wait()
        await self.service.serve_stream(stream, pid=stream.peer_pid)

    async def _ask_to_be_let_in_again(
        self, replica: LocalReplica, formation: Formation, discoverers: Sequence[Discoverer]
    ) -> None:
        """To start is to ask: a member that was removed is let in again, as a learner, under the same incarnation.

        Only until it has heard a leader once: one that is removed while it runs stays out.
        """
        pause_s = 2 * self.options.timing.election_s
        while True:
            with trio.move_on_after(pause_s):
                await replica.has_heard_leader.wait()
                return
            known = {
                peer_id: forming.KnownPeer(peer_id, row.addresses)
                for peer_id, row in sorted(replica.machine.system.replicas.items())
            }
            for discoverer in discoverers:
                for found in discoverer.look():
                    if found.peer_id is not None:
                        known[found.peer_id] = forming.KnownPeer(found.peer_id, found.addresses)
            known.pop(replica.peer_id, None)
            await formation.ask_again(list(known.values()))
            pause_s = min(pause_s * 1.5, 10.0)

    def _log_store(self, files: FileSystem, paths: NamespacePaths, *, must_exist: bool) -> LogStore:
        storage = self.options.storage
        if storage == "duckdb":
            from tauraft.storage.duckdb_log import DuckDBLog

            return DuckDBLog(paths.log, must_exist=must_exist)
        if "." in storage:
            config = LogStoreConfig(storage, self.options.namespace, paths.log, must_exist)
            theirs: LogStore | None = self.node.registry.hooks.tauraft_log_store(config=config)
            if theirs is None:
                raise InvalidOption(
                    f"storage={storage!r}: no plugin of this process brings it; install or give the one that does",
                    option="storage",
                )
            return theirs
        from tauraft.storage.segment_log import SegmentLog

        return SegmentLog(paths.log, files=files, must_exist=must_exist)


class HostDialer:
    """To the replica in this process if it is here, else through the socket of the process that has it."""

    has_choice = False

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    async def dial(self, user: LinkUser, leader: LeaderIs | None, nursery: trio.Nursery) -> Link:
        namespace, node = self._namespace, self._namespace.node
        with trio.move_on_after(DIAL_PATIENCE_S):
            while namespace.problem is None:
                changed = namespace.changed
                if namespace.service is not None:
                    return await LocalDialer(namespace.service.connect_local).dial(user, leader, nursery)
                if not node.is_holder:
                    try:
                        return await self._through_socket(user, nursery)
                    except LinkFailed:
                        node.try_lock_now()
                with trio.move_on_after(LOOK_AGAIN_S):
                    await changed.wait()
        raise LinkFailed(namespace.trouble or "the node is starting")

    async def _through_socket(self, user: LinkUser, nursery: trio.Nursery) -> Link:
        namespace, node = self._namespace, self._namespace.node
        options = namespace.options

        async def open_stream(leader: LeaderIs | None) -> MessageStream:
            tasks: Any = nursery  # a trio nursery starts tasks as anyio's task group does
            wants = {
                "plugins": node.required_plugins,
                "options": {name: getattr(options, name) for name in ASKED_OPTIONS},
            }
            try:
                return await connect_local(node.socket_path, options.namespace, tasks, wants)
            except TauraftError as error:
                namespace.fail(error)
                raise PeerUnreachable(str(error)) from error

        overhearing = Overhearing(user, namespace.seen)
        return await StreamDialer(open_stream, has_choice=False).dial(overhearing, None, nursery)


class _Records:
    """What formation keeps in the namespace's directory. Durable when saving returns."""

    def __init__(self, files: FileSystem, paths: NamespacePaths) -> None:
        self._files = files
        self._genesis, self._acceptor = f"{paths.path}/genesis", f"{paths.path}/acceptor"

    def load_genesis(self) -> Genesis | None:
        return self._read(self._genesis, decode_genesis)

    def save_genesis(self, genesis: Genesis) -> None:
        write_atomically(self._files, self._genesis, encode_genesis(genesis))

    def load_acceptor(self) -> AcceptorRecord:
        return self._read(self._acceptor, decode_acceptor) or AcceptorRecord()

    def save_acceptor(self, record: AcceptorRecord) -> None:
        write_atomically(self._files, self._acceptor, encode_acceptor(record))

    def _read(self, path: str, decode: Callable[[bytes], R]) -> R | None:
        if not self._files.exists(path):
            return None
        try:
            return decode(read_whole(self._files, path))
        except CodecError as error:
            raise DataDirectoryError(
                f"{path} cannot be read ({error}); nothing was touched: put a copy of it back, or use the version that "
                "wrote it",
                path=path,
            ) from error


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


def _incarnation(files: FileSystem, paths: NamespacePaths, node: NodeHost) -> int:
    """Drawn once for this disk: one that comes back empty is another member (SAFETY 14)."""
    path = f"{paths.path}/incarnation"
    if files.exists(path):
        return int.from_bytes(read_whole(files, path), "big")
    incarnation = node.random.getrandbits(63)
    write_atomically(files, path, incarnation.to_bytes(8, "big"))
    return incarnation


def _set_aside_snapshots(files: FileSystem, paths: NamespacePaths) -> None:
    """A member that begins has none: what lies there is another one's, and would be taken for its own state."""
    if not files.list_directory(paths.snapshots):
        return
    number = 1
    while files.exists(aside := f"{paths.snapshots}-of-another-{number}"):
        number += 1
    files.rename(paths.snapshots, aside)
    files.make_directory(paths.snapshots)
    files.sync_directory(os.path.dirname(paths.snapshots))
    _log.warning("%s held snapshots of another member: they are in %s now, and nothing reads them", paths.path, aside)


async def _keep_learning(discoverer: Discoverer, transport: Transport) -> None:
    """Members that come back at another port are found as at first."""
    async for found in discoverer.find():
        if found.peer_id is not None and found.peer_id != transport.peer_id:
            transport.learn(found.peer_id, found.addresses)


def only(error: BaseException) -> BaseException:
    """What the caller is to see of a nursery's group: the one error in it, ours before others."""
    while isinstance(error, BaseExceptionGroup):
        ours, _ = error.split(TauraftError)
        error = (ours or error).exceptions[0]
    return error


def _as_told(error: BaseException) -> TauraftError:
    if isinstance(error, TauraftError):
        return error
    if isinstance(error, OSError):
        told: TauraftError = DataDirectoryError(
            f"the disk failed ({os.strerror(error.errno) if error.errno else error}); what was acknowledged is safe: make room, "
            "or repair the disk, and start again",
            path=str(error.filename or ""),
        )
    else:
        told = Shutdown(f"the replica stopped by an error of its own ({type(error).__name__}: {error})")
    told.__cause__ = error
    return told
