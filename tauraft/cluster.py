"""The facades a user makes: ``AsyncCluster``, a member (or a standby of this host's member), ``AsyncNode`` for many, and ``AsyncClient``.

The constructors check every option (``tauraft.config``: argument > environment > file > preset) and do no I/O.  ``start`` has
the engine enter a *host*: for a cluster ``tauraft.node.host.open_host``, for a client ``tauraft.node.client_host.open_host``.
Both are imported then and there, so that a process which only submits never loads what a member needs.

The blocking twin, ``tauraft/_blocking/cluster.py``, is generated from this file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, TypeVar, cast

from tauraft import config, errors
from tauraft.caller import AsyncCaller, AsyncHostKeeper, Host, HostManager, OpenHost
from tauraft.engine import Engine
from tauraft.fsm import Command
from tauraft.handle import check_name, check_patience, check_timeout
from tauraft.primitives import AsyncPrimitives
from tauraft.types import Member

R = TypeVar("R")
Path: TypeAlias = str | os.PathLike[str]
Keys: TypeAlias = bytes | Sequence[bytes]
ClusterState: TypeAlias = Literal["stopped", "starting", "leader", "follower", "candidate", "learner", "standby"]

# Not given: the environment, the file or the preset decide. Typed so that signatures show the option's own type.
UNSET: Final[Any] = object()
LEAVE_TIMEOUT_S: Final = 5.0

logger = logging.getLogger("tauraft.cluster")


class ClusterHost(Host, Protocol):
    """What a started cluster stands on: this process's node, or the way to the process that holds the directory."""

    @property
    def peer_id(self) -> str: ...

    @property
    def addresses(self) -> tuple[str, ...]: ...

    @property
    def state(self) -> ClusterState: ...

    @property
    def leader(self) -> Member | None: ...


class AsyncCluster(AsyncPrimitives):
    """A cluster of this namespace, and this process's part in it. See API.md for every option."""

    def __init__(
        self,
        namespace: str,
        *,
        data_dir: Path | None = UNSET,
        preset: Literal["local", "regional", "global"] = UNSET,
        storage: Literal["segment", "duckdb", "memory"] | str = UNSET,
        listen: Sequence[str] = UNSET,
        peers: Sequence[str] = UNSET,
        discovery: Sequence[str] = UNSET,
        expect: int | None = UNSET,
        max_voters: int = UNSET,
        bootstrap_timeout: float | None = UNSET,
        bootstrap_threshold: float = UNSET,
        force_bootstrap: bool = UNSET,
        encryption_key: Keys | None = UNSET,
        allow: Sequence[str] = UNSET,
        join_token: str | None = UNSET,
        insecure: bool = UNSET,
        plugins: Sequence[object] = UNSET,
        session_ttl: float = UNSET,
        timeout: float = UNSET,
        lease_reads: bool = UNSET,
        snapshot_dir: Path | None = UNSET,
        history_bytes: int = UNSET,
        on_close: Literal["stay", "leave"] = UNSET,
        label: str | None = UNSET,
        _open_host: OpenHost | None = None,
    ) -> None:
        given = {
            name: value
            for name, value in locals().items()
            if value is not UNSET and name not in ("self", "namespace", "_open_host", "__class__")
        }
        self.options = config.cluster_options(namespace, given)
        caller = AsyncCaller(
            _open_host or self._enter_node,
            timeout=self.options.timeout,
            session_ttl=self.options.session_ttl,
            label=self.options.label,
        )
        super().__init__(self.options.namespace, caller)

    def _enter_node(self, engine: Engine) -> HostManager:
        opened: HostManager = import_module("tauraft.node.host").open_host(self.options, engine)
        return opened

    @property
    def _host(self) -> ClusterHost | None:
        return cast("ClusterHost | None", self._caller.host)

    @property
    def is_leader(self) -> bool:
        """The leader's replica runs in this process."""
        return self.state == "leader"

    @property
    def leader(self) -> Member | None:
        """As this process knows it now; no round trip."""
        return None if self._host is None or not self._caller.is_open else self._host.leader

    @property
    def state(self) -> ClusterState:
        if self._caller.has_ended:
            return "stopped"
        if self._host is None:
            return "starting" if self._caller.has_begun else "stopped"
        return self._host.state

    @property
    def peer_id(self) -> str:
        """Of the data directory: the same in its standbys. Raises ``Shutdown`` before the start."""
        return self._started().peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs with ``/p2p/<peer id>``, to give to ``peers=`` and ``addresses=``."""
        return self._started().addresses

    def _started(self) -> ClusterHost:
        host = self._host
        if host is None:
            raise errors.Shutdown("not started yet: use `with`, or call start()")
        return host

    async def close(self, timeout: float | None = None) -> None:
        """As of every facade; with ``on_close="leave"`` the member is removed first, unless it is the last."""
        if self.options.on_close == "leave" and self.state in ("leader", "follower", "learner", "candidate"):
            try:
                await self._caller.call("remove_server", {"peer_id": self.peer_id}, LEAVE_TIMEOUT_S)
            except errors.TauraftError as error:
                logger.warning("%s closes as a member after all: %s", self.namespace, error)
        await super().close(timeout)

    async def apply(self, command: Command[R], *, timeout: float | None = None, forward: bool = True) -> R:
        """``submit``, with the reference's limits on ``timeout``. ``forward=False``: only if the leader is in this process."""
        seconds = check_timeout(timeout)
        if not forward and not self.is_leader:
            leader = self.leader
            where = "no leader is known" if leader is None else f"{leader.peer_id} on {leader.host} leads"
            raise errors.NotLeader(f"this process does not lead: {where}; nothing was sent", leader=leader)
        return await self._caller.submit(command, seconds)

    async def add_voter(self, peer_id: str, address: str | None = None) -> None:
        """Let it vote. A member already, or a node at ``address`` that looks for a cluster. Idempotent; the leader does it, wherever it is."""
        arguments = {"peer_id": check_name(peer_id, "peer_id"), "address": address}
        await self._caller.call("add_voter", arguments, None)

    async def remove_server(self, peer_id: str) -> None:
        """Idempotent; the leader does it, wherever it is, also to itself. ``Refused`` where nobody would be left."""
        await self._caller.call("remove_server", {"peer_id": check_name(peer_id, "peer_id")}, None)

    async def transfer_leadership(self, to: str | None = None) -> None:
        """To ``to``, or to whoever is most up to date."""
        await self._caller.call("transfer_leadership", {"to": to}, None)

    async def snapshot(self) -> int:
        """Its index; written and verified when it returns."""
        index: int = await self._caller.call("snapshot", {}, None)
        return index


class AsyncNode:
    """One data directory, identity and libp2p host for many namespaces; each ``cluster`` of it is started on its own.

    Where another process holds the directory, this one stands by, and the holder serves what is asked for.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        preset: Literal["local", "regional", "global"] = UNSET,
        listen: Sequence[str] = UNSET,
        peers: Sequence[str] = UNSET,
        discovery: Sequence[str] = UNSET,
        encryption_key: Keys | None = UNSET,
        insecure: bool = UNSET,
        plugins: Sequence[object] = UNSET,
    ) -> None:
        given = {
            name: value for name, value in locals().items() if value is not UNSET and name not in ("self", "__class__")
        }
        self.options = config.node_options(given)
        self._clusters: list[AsyncCluster] = []
        self._keeper = AsyncHostKeeper(self._enter)

    def _enter(self, engine: Engine) -> Any:
        return import_module("tauraft.node.host").open_node(self.options, engine)

    async def start(self, timeout: float | None = None) -> Self:
        """Returns when namespaces can be opened on it; ``DataDirectoryError`` and the like are raised here."""
        await self._keeper.start(check_patience(timeout))
        return self

    async def close(self, timeout: float | None = None) -> None:
        """Closes its clusters, each ending its session, then leaves. Twice is fine."""
        for cluster in self._clusters:
            await cluster.close(timeout)
        await self._keeper.close(check_patience(timeout))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def peer_id(self) -> str:
        """Of the data directory; of a stand-by's, known once a cluster of it has started. ``Shutdown`` before the start."""
        peer_id: str = self._started().peer_id
        return peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs with ``/p2p/<peer id>``, the same for all its namespaces."""
        addresses: tuple[str, ...] = self._started().addresses
        return addresses

    def _started(self) -> Any:
        if not self._keeper.is_open or self._keeper.kept is None:
            raise errors.Shutdown("the node is not running: use `with`, or call start(), before its clusters start")
        return self._keeper.kept

    def cluster(
        self,
        namespace: str,
        *,
        expect: int | None = UNSET,
        force_bootstrap: bool = UNSET,
        session_ttl: float = UNSET,
        timeout: float = UNSET,
    ) -> AsyncCluster:
        """This process's part in ``namespace``, on this node. Not started yet: use ``with``, or ``start()``."""
        given = {
            name: value
            for name, value in locals().items()
            if value is not UNSET and name not in ("self", "namespace", "__class__")
        }
        for name, value in config.shared_options(self.options).items():
            given[name] = value

        def enter(engine: Engine) -> HostManager:
            opened: HostManager = import_module("tauraft.node.host").open_namespace(self._started(), made.options)
            return opened

        made = AsyncCluster(namespace, **given, _open_host=enter)
        self._clusters.append(made)
        return made


class AsyncClient(AsyncPrimitives):
    """The same primitives without ever being a replica. No addresses: the node of this host."""

    def __init__(
        self,
        namespace: str,
        addresses: Sequence[str] = UNSET,
        *,
        data_dir: Path | None = UNSET,
        encryption_key: Keys | None = UNSET,
        insecure: bool = UNSET,
        session_ttl: float = UNSET,
        timeout: float = UNSET,
        label: str | None = UNSET,
        _open_host: OpenHost | None = None,
    ) -> None:
        given = {
            name: value
            for name, value in locals().items()
            if value is not UNSET and name not in ("self", "namespace", "_open_host", "__class__")
        }
        self.options = config.client_options(namespace, given)
        caller = AsyncCaller(
            _open_host or self._enter_client,
            timeout=self.options.timeout,
            session_ttl=self.options.session_ttl,
            label=self.options.label,
        )
        super().__init__(self.options.namespace, caller)

    def _enter_client(self, engine: Engine) -> HostManager:
        opened: HostManager = import_module("tauraft.node.client_host").open_host(self.options, engine)
        return opened
