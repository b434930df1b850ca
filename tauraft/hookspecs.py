"""Every hook a plugin may implement (pluggy). A plugin is a module or object found by entry point, or given as ``plugins=[...]``.

    from tauraft import hookimpl

    @hookimpl
    def tauraft_fsms() -> list[type[FSM]]:
        return [Counter]

A hook that is not listed here, or takes an argument that is not, is refused when the plugin is loaded, naming it.  An
implementation may leave out arguments that it does not need.  Entry points are of the group ``tauraft``; ``TAURAFT_PLUGIN_AUTOLOAD=0``
leaves them alone.

Who calls: *engine* means the engine's loop, where nothing may block or do I/O; *hook thread* means a thread of the node's
for hooks alone, one call at a time, where a plugin may take its time.  An exception there is logged and counted, and the node goes on.

Names of what a plugin brings have a dot, as its state machines do (``acme.dns``): those without are tauraft's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

if TYPE_CHECKING:
    from random import Random

    import click

    from tauraft.discovery.discovery import Discoverer
    from tauraft.fsm import FSM
    from tauraft.storage.log_store import LogStore
    from tauraft.transport.transport import Admission, Transport

_F = TypeVar("_F", bound=Callable[..., Any])
hookspec: Callable[[_F], _F] = pluggy.HookspecMarker("tauraft")
hookimpl: Callable[[_F], _F] = pluggy.HookimplMarker("tauraft")
_first: Callable[[_F], _F] = pluggy.HookspecMarker("tauraft")(firstresult=True)


# ---- what hooks are given ----


@dataclass(frozen=True, slots=True)
class DiscoveryConfig:
    """``wanted``: the names in ``discovery=``. ``data_dir``: of the node; None in memory."""

    namespace: str
    wanted: tuple[str, ...]
    peers: tuple[str, ...]
    data_dir: str | None


@dataclass(frozen=True, slots=True)
class LogStoreConfig:
    """``storage``: the name in ``storage=``. ``must_exist``: the log was here before, so an empty ``directory`` is a lost log:
    ``open`` raises ``LogCorrupt`` then, and does not begin a new one."""

    storage: str
    namespace: str
    directory: str
    must_exist: bool


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """``identity``: 32 secret bytes, the same whenever this data directory is opened. ``admit``: to be asked before a peer's
    stream is taken; it asks ``tauraft_authorize`` too. ``random``: for whatever is drawn, so that tests can repeat it."""

    identity: bytes
    listen: tuple[str, ...]
    encryption_keys: tuple[bytes, ...]
    data_dir: str | None
    admit: Admission
    random: Random


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node of this process. ``data_dir``: None in memory."""

    peer_id: str
    addresses: tuple[str, ...]
    data_dir: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One number, named as Prometheus names them. ``labels``: (name, value), sorted."""

    name: str
    kind: Literal["counter", "gauge"]
    value: float
    labels: tuple[tuple[str, str], ...] = ()


# ---- the hooks ----


@hookspec
def tauraft_fsms() -> list[type[FSM]]:  # type: ignore[empty-body]
    """The state machines it brings: one class per version it can run.

    Called once when a node starts, in the engine.
    """


@hookspec
def tauraft_discoverers(config: DiscoveryConfig) -> list[Discoverer]:  # type: ignore[empty-body]
    """Ways to find peers, each with a ``name`` like ``acme.dns``; those that ``discovery=`` names are used.

    Called when a namespace starts, in the engine; so are the discoverers themselves. A name that is asked for and that nobody brings is
    ``InvalidOption`` at the start.
    """


@_first
def tauraft_log_store(config: LogStoreConfig) -> LogStore | None:
    """The log of one namespace, where ``config.storage`` is its own name, like ``acme.rocks``; None: that is not mine.

    Asked only for names with a dot, in the engine; the store must pass ``tauraft.testing.check_log_store``. A name that nobody takes is
    ``InvalidOption`` at the start.
    """


@_first
def tauraft_transport(config: TransportConfig) -> Transport | None:
    """How this node reaches others, in place of libp2p (in memory: of nothing); None: not by me.

    Asked when a node starts, in the engine, and entered there. It must pass ``tauraft.testing.check_transport``, and all members must
    have the same. Clients that are no members come over libp2p, or through the socket of a node on their host.
    """


@hookspec
def tauraft_authorize(peer: str, namespace: str, action: str) -> bool | None:
    """May ``peer`` (a proven peer id; of this host's processes the node's own) do this? None: no opinion. One False refuses.

    ``action``: ``join`` (ask for membership, or form a cluster together), ``raft`` (replicate), ``commands`` (be a client);
    and of what clients ask: ``submit:acme.counter/Add``, ``query:acme.counter/Get``, ``watch:acme.counter/counts``,
    ``call:sql`` (``status``, ``members``, ``snapshot``, ``add_voter``, ``remove_server``, ``transfer_leadership``).
    What stands in a transaction is asked about one by one.  The client gets ``Refused`` with the code ``not-authorized``; nothing
    of it reached the log.

    Asked in the engine, for every single message, by the member that the client is connected to: install it on all members.
    An exception refuses.
    """


@hookspec
def tauraft_leadership_changed(namespace: str, leader: str | None, term: int) -> None:
    """A replica of this process learned of another leader (a peer id; None: unknown). On the hook thread.

    What was followed by something newer before its turn came is left out.
    """


@hookspec
def tauraft_node_started(node: NodeInfo) -> None:
    """A node of this process takes part. On the hook thread. A standby is none, until it takes over."""


@hookspec
def tauraft_node_stopping(node: NodeInfo) -> None:
    """A node of this process is about to close, and still serves. On the hook thread, and waited for at most 5 s."""


@hookspec
def tauraft_metrics() -> Callable[[Sequence[Sample]], None]:  # type: ignore[empty-body]
    """Where numbers go: a function that is given all samples of the node every 10 s, and once when it stops.

    Asked once when a node starts, in the engine; the function is called on the hook thread.
    """


@hookspec
def tauraft_cli(group: click.Group) -> None:
    """Adds commands: ``group.add_command(mine)``. Only of plugins found by entry point.

    Called when the command line meets a name it does not know, or lists its commands. Names of tauraft's own are refused.
    """
