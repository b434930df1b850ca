"""A node: one data directory, one identity, one libp2p host, one flock, one Unix socket, and any number of namespaces.

One data directory is one node; whoever holds its flock runs the replicas, and serves the host's other processes on
the Unix socket in it.  The others are clients of that socket, and try the flock again and again: when the holder is
gone, the first that gets it opens the same disk under the same identity (SAFETY 7).

    flock -> identity -> network, socket -> each namespace that is used (namespace.py)

``Cluster("/raft/a")`` has a node of its own (``open_host``); ``Node`` carries many (``open_node``, ``open_namespace``).  A namespace that fails, of a
lost disk or a missing plugin, ends alone; what fails in the node ends all of them.  With ``storage="memory"`` nothing is on disk,
and there is no stand-by.  Everything here runs in the engine's loop; what is entered is left in the same task of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import trio

from tauraft.config import ClusterOptions, NodeOptions, cluster_options, shared_options
from tauraft.discovery.discovery import Discoverer
from tauraft.discovery.local_host import LocalHostDiscoverer
from tauraft.discovery.static import StaticDiscoverer
from tauraft.engine import Engine
from tauraft.errors import InvalidOption, PluginMissing, TauraftError
from tauraft.formation.driver import formation_namespace
from tauraft.hookspecs import DiscoveryConfig, NodeInfo, TransportConfig
from tauraft.node.clock import Clock
from tauraft.node.hook_calls import HookCalls
from tauraft.node.namespace import ASKED_OPTIONS, Namespace, only
from tauraft.node.snapshots import ParquetRows, PlainRows, RowFile
from tauraft.plugin_manager import Registry, load_plugins
from tauraft.storage.data_dir import (
    DataDirectory,
    NamespacePaths,
    default_data_directory,
    encode_namespace,
    read_machine_id,
    state_directory,
)
from tauraft.storage.file_system import FileSystem, MemoryFileSystem, RealFileSystem
from tauraft.transport.local_socket import LocalSocketServer, LocalStream
from tauraft.transport.memory import MemoryNetwork
from tauraft.transport.transport import Transport, split_address

TRY_LOCK_S = 0.1
SILENT_HOLDER_S = 3.0
_log = logging.getLogger("tauraft.node")


@asynccontextmanager
async def open_host(options: ClusterOptions, engine: Engine) -> AsyncIterator[Namespace]:
    """A node with one namespace. Raises ``DataDirectoryError``, ``PluginMissing``, ``InvalidOption``, ``WrongKey``."""
    async with (
        open_node(options.node(), engine, namespace=options.namespace) as node,
        open_namespace(node, options) as opened,
    ):
        yield opened
        node.is_closing = True
        await node.hook_calls.node_stopping(node)  # while its one namespace is there


@asynccontextmanager
async def open_node(options: NodeOptions, engine: Engine, *, namespace: str = "") -> AsyncIterator[NodeHost]:
    """A started node or stand-by. ``namespace``: whose default directory it has when none is given."""
    node = NodeHost(options, load_plugins(options.plugins), engine.clock, Random(engine.entropy(16)), engine)
    try:
        node.prepare(namespace)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run)
            yield node
            await node.hook_calls.node_stopping(node)
            await node.close()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only(group) from group
    finally:
        node.free_directory()


@asynccontextmanager
async def open_namespace(node: NodeHost, options: ClusterOptions) -> AsyncIterator[Namespace]:
    """This process's part in a namespace, shared by all facades of it that stand on ``node``."""
    opened = node.enter(options)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.raise_problem)
            yield opened
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only(group) from group
    finally:
        with trio.CancelScope(shield=True):
            await node.leave(opened)


class NodeHost:
    """See the module."""

    def __init__(self, options: NodeOptions, registry: Registry, clock: Clock, random: Random, engine: Engine) -> None:
        self.options = options
        self.engine = engine
        self.registry, self.clock, self.random = registry, clock, random
        self.hook_calls = HookCalls(registry.hooks)
        self.is_settled = trio.Event()  # it is the node, or stands by
        self.is_closing = False  # nothing is opened for others any more: one of them will be the node
        # What a plugin list asks for must be there; what is merely installed need not be (an upgrade under way).
        self.required_plugins = _names_of(options.plugins)
        self._directory: DataDirectory | None = None
        self._memory_files: MemoryFileSystem | None = None
        self._machine_id, self._device = "memory", 0
        self._transport: Transport | None = None
        self._nursery: trio.Nursery | None = None
        self._local: LocalSocketServer | None = None
        self._namespaces: dict[str, Namespace] = {}
        self._last: dict[str, Namespace] = {}  # of each name, also those that are being ended
        self._discoverers: dict[str, list[Discoverer]] = {}
        self._known: set[str] = set()
        self._lock_wanted = trio.Event()
        self._stopped_since_ns: int | None = None
        self._began_ns = clock.monotonic_ns()

    # What namespaces ask of it.

    @property
    def is_in_memory(self) -> bool:
        return self._directory is None

    @property
    def is_holder(self) -> bool:
        """This process runs the replicas, or is about to."""
        return self._directory is None or self._directory.is_locked

    @property
    def peer_id(self) -> str:
        """Of a stand-by: as the holder said it, once a namespace has been reached there."""
        if self._transport is not None:
            return self._transport.peer_id
        return next((one.seen.peer_id for one in self._namespaces.values() if one.seen.peer_id), "")

    @property
    def addresses(self) -> tuple[str, ...]:
        if self._transport is not None:
            return self._transport.addresses
        return next((own for one in self._namespaces.values() if (own := one.seen.own_addresses)), ())

    @property
    def namespaces(self) -> Mapping[str, Namespace]:
        return self._namespaces

    @property
    def machine_id(self) -> str:
        return self._machine_id

    @property
    def device(self) -> int:
        return self._device

    @property
    def socket_path(self) -> str:
        assert self._directory is not None
        return self._directory.socket_path

    def age_s(self) -> float:
        return (self.clock.monotonic_ns() - self._began_ns) / 1e9

    def disk(self, namespace: str) -> tuple[FileSystem, NamespacePaths]:
        """Its files, and its directory, made."""
        if self._directory is not None:
            paths = self._directory.namespace(namespace)
            paths.make()
            return RealFileSystem(), paths
        if self._memory_files is None:
            self._memory_files = MemoryFileSystem()
        files, root = self._memory_files, f"/{encode_namespace(namespace)}"
        for path in (root, f"{root}/log", f"{root}/snapshots"):
            if not files.exists(path):
                files.make_directory(path)
        return files, NamespacePaths(root)

    def row_files(self) -> RowFile:
        return PlainRows() if self.is_in_memory else ParquetRows()

    async def run_apart(self, work: Callable[[], Any]) -> Any:
        """``work`` in a thread; in memory here, where it takes no time."""
        if not self.is_in_memory:
            return await trio.to_thread.run_sync(work)
        await trio.lowlevel.checkpoint()
        return work()

    def discoverers(self, namespace: str) -> list[Discoverer]:
        """Made anew, for a namespace that starts. Raises ``InvalidOption`` for one that nobody brings."""
        options, found = self.options, list[Discoverer]()
        if not self.is_in_memory and "local" in options.discovery:
            directory = Path(state_directory()) / "peers" / encode_namespace(namespace)
            found.append(LocalHostDiscoverer(directory))
        if not self.is_in_memory and options.peers:
            found.append(StaticDiscoverer(options.peers))
        theirs = {name for name in options.discovery if "." in name}
        if theirs:
            config = DiscoveryConfig(namespace, options.discovery, options.peers, self._data_dir)
            brought = [one for some in self.registry.hooks.tauraft_discoverers(config=config) for one in some]
            found += [one for one in brought if one.name in theirs]
            missing = sorted(theirs - {one.name for one in brought})
            if missing:
                raise InvalidOption(
                    f"discovery={missing[0]!r}: no plugin of this process brings it; install or give the one that does",
                    option="discovery",
                )
        self._discoverers[namespace] = found
        return found

    @property
    def _data_dir(self) -> str | None:
        return None if self._directory is None else self._directory.path

    def is_known(self, peer_id: str) -> bool:
        """We looked for that peer: it was found, named or a member, and did not merely knock."""
        transport = self._transport
        named = {split_address(address)[1] for address in self.options.peers}
        if peer_id in self._known or peer_id in named or None in named or transport is None:
            return True
        return any(
            found.peer_id == peer_id
            for namespace in self._namespaces
            for discoverer in self._discoverers.get(namespace, ())
            for found in discoverer.look()
        )

    # Who uses it.

    def enter(self, options: ClusterOptions) -> Namespace:
        found = self._namespaces.get(options.namespace)
        if found is None or found.has_failed.is_set():
            found = self._open(options)
        found.users += 1
        return found

    async def leave(self, namespace: Namespace) -> None:
        namespace.users -= 1
        if namespace.users == 0:
            await self._end(namespace)

    def _open(self, options: ClusterOptions) -> Namespace:
        earlier = self._last.get(options.namespace)
        if earlier is not None:
            earlier.stop()  # it has failed, or is being ended
        opened = Namespace(self, options, earlier)
        self._namespaces[options.namespace] = self._last[options.namespace] = opened
        if self._nursery is not None:
            self._start(opened)
        return opened

    def _start(self, namespace: Namespace) -> None:
        assert self._nursery is not None and self._transport is not None
        namespace.has_ended = trio.Event()
        self._nursery.start_soon(namespace.run, self._transport)
        if self._local is not None:

            async def serve(stream: LocalStream, name: str) -> None:
                await namespace.serve_local(stream)

            self._local.serve(namespace.options.namespace, serve)

    async def _end(self, namespace: Namespace) -> None:
        name = namespace.options.namespace
        if self._namespaces.get(name) is namespace:
            del self._namespaces[name]
            self._discoverers.pop(name, None)
            if self._local is not None:
                self._local.stop_serving(name)
        await namespace.end()
        if self._last.get(name) is namespace:
            del self._last[name]

    # Its life.

    def prepare(self, namespace: str) -> None:
        """Find what is wrong with the directory before anything is started."""
        if self.options.storage == "memory":
            return
        self._directory = DataDirectory.prepare(self.options.data_dir or default_data_directory(namespace))
        self._machine_id = self._directory.machine_id or read_machine_id()
        self._device = self._directory.device

    def free_directory(self) -> None:
        if self._directory is not None:
            self._directory.close()

    async def close(self) -> None:
        """End what is open, each with its disk in order."""
        self.is_closing = True
        async with trio.open_nursery() as nursery:
            for namespace in list(self._namespaces.values()):
                nursery.start_soon(self._end, namespace)

    def try_lock_now(self) -> None:
        """The holder cannot be reached: it may be gone."""
        self._lock_wanted.set()

    async def run(self) -> None:
        """Stand by until the directory is ours, then be the node. What fails here fails every namespace."""
        try:
            await self._stand_by()
            await self._be_the_node()
        except Exception as error:
            for namespace in list(self._namespaces.values()):
                namespace.fail(only(error))
            raise

    async def _stand_by(self) -> None:
        directory = self._directory
        while directory is not None and not directory.try_lock():
            self.is_settled.set()
            self._look_at_holder(directory)
            self._lock_wanted = trio.Event()
            with trio.move_on_after(TRY_LOCK_S * self.random.uniform(0.5, 1.0)):
                await self._lock_wanted.wait()
            await trio.sleep(TRY_LOCK_S / 10)  # however often we are asked

    def _look_at_holder(self, directory: DataDirectory) -> None:
        """A holder that is stopped (SIGSTOP, a debugger) keeps its flock: the others can only say so."""
        trouble, now = directory.trouble(), self.clock.monotonic_ns()
        if not trouble:
            self._stopped_since_ns = None
        elif self._stopped_since_ns is None:
            self._stopped_since_ns = now
        elif now - self._stopped_since_ns >= SILENT_HOLDER_S * 1e9:
            _log.warning("%s", trouble)
            self._stopped_since_ns = now + int(3600e9)  # once an hour is enough

    def trouble_with_holder(self) -> str:
        return "" if self._directory is None else self._directory.trouble()

    async def _be_the_node(self) -> None:
        async with self._make_transport() as transport:
            transport.on_problem(self._note_problem)
            async with trio.open_nursery() as nursery:
                self._transport, self._nursery = transport, nursery
                self.is_settled.set()
                if self._directory is not None:
                    self._local = LocalSocketServer(self._directory.socket_path, transport.peer_id)
                    self._local.serve_others(self._open_for_another)
                    self._local.refuse = self._refuse
                    nursery.start_soon(self._local.run)
                nursery.start_soon(self.hook_calls.run, self)
                for namespace in list(self._namespaces.values()):
                    self._start(namespace)
                self.hook_calls.node_started(NodeInfo(transport.peer_id, transport.addresses, self._data_dir))
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = self._local = None

    def _note_problem(self, peer_id: str, error: Exception) -> None:
        for namespace in list(self._namespaces.values()):
            namespace.note_problem(peer_id, error)

    # What other processes of this host ask.

    def _refuse(self, namespace: str, wants: Mapping[str, Any]) -> TauraftError | None:
        """Why a standby cannot be served here, if so; it raises that."""
        lacking = sorted(set(wants.get("plugins", ())) - {name for name, _, _ in self.registry.supported()})
        if lacking:
            return PluginMissing(
                f"process {os.getpid()} holds the data directory, and lacks the plugin {', '.join(lacking)}; nothing was "
                "started: end it or give it the plugin too, or use another data_dir",
                package=lacking[0],
            )
        found = self._namespaces.get(namespace)
        if found is not None and found.has_failed.is_set():
            return found.problem
        return None

    async def _open_for_another(self, stream: LocalStream, namespace: str, wants: Mapping[str, Any]) -> None:
        """A standby uses a namespace that nobody in this process does: it is opened, and stays open."""
        found = self._namespaces.get(namespace)
        if found is None:
            if self.is_closing:
                return
            asked = {name: value for name, value in wants.get("options", {}).items() if name in ASKED_OPTIONS}
            found = self._open(cluster_options(namespace, shared_options(self.options) | asked))
        await found.serve_local(stream)

    def _make_transport(self) -> Any:
        options = self.options
        if self._directory is None:
            identity = self.random.randbytes(32)
        else:
            found = self._directory.read_identity()
            identity = os.urandom(32) if found is None else found
            if found is None:
                self._directory.write_identity(identity)
        theirs = self.registry.hooks.tauraft_transport(
            config=TransportConfig(
                identity, options.listen, options.encryption_key, self._data_dir, self._admit, self.random
            )
        )
        if theirs is not None:
            return theirs
        if self._directory is None:
            return MemoryNetwork(self.random).transport("memory-node")
        from tauraft.transport.libp2p.transport import Libp2pTransport

        return Libp2pTransport(
            identity,
            random=self.random,
            listen=options.listen or ("/ip4/127.0.0.1/tcp/0",),
            encryption_keys=options.encryption_key,
            admit=self._admit,
        )

    def _admit(self, peer_id: str, namespace: str, action: str) -> bool:
        """With an allow-list strangers neither join nor command; who has proven the shared key may command."""
        if any(one.replica is None for one in self._namespaces.values()) and self.is_known(peer_id):
            # One with another key gives up, and is gone from where it was found, before we have read its refusal.
            self._known.add(peer_id)
        forming = formation_namespace(namespace)
        if self.options.allow and peer_id not in self.options.allow:
            is_command = action == "commands" and not forming
            if not (is_command and self.options.encryption_key):
                return False
        return self.hook_calls.may(peer_id, forming or namespace, "join" if forming else action)


def _names_of(plugins: tuple[object, ...]) -> list[str]:
    if not plugins:
        return []
    return sorted({name for name, _, _ in load_plugins(plugins, autoload=False).supported()})
