"""What the rest of tauraft asks of a network: one-way frames between replicas, and streams of commands.

A ``Transport`` is a node's presence on the network under one proven *peer id*.  It carries two kinds of traffic:

- A ``Channel`` per namespace: Raft's one-way frames.  A frame may be lost, whole; it is never torn, and of two frames
  that arrive over one connection the first sent comes first.  Sending never waits: a full queue says ``False`` and
  drops that frame alone.  Raft asks again for what it misses, so nothing here is retried.
- ``MessageStream``: both ways and complete, for commands, joins and peer exchange.  Every frame sent before the end
  arrives, in order, or the stream ends with ``StreamClosed`` and the sender does not know which of the last ones did.

Everything is called in the engine's loop (anyio on trio); nothing here is thread-safe.  ``sender`` and ``peer_id`` are
proven by the transport (libp2p's Noise), never claimed by a frame.  The transport decides neither
who is a member nor what frames mean; it refuses whom ``Admission`` refuses.

Implementations: ``memory.MemoryNetwork`` (tests, simulator), ``libp2p.transport.Libp2pTransport``.  All pass
``tauraft.testing.check_transport``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, Protocol, Self, TypeAlias

# Larger than the largest frame of the command protocol (8 MiB) and than one log entry that holds such a command.
MAX_FRAME_BYTES: Final = 12 << 20
# A chunk of a snapshot with its header: one write, so that other frames get their turn after it.
MAX_BULK_FRAME_BYTES: Final = (64 << 10) + 1024
# What may wait for one peer before ``Channel.send`` says False, or ``MessageStream.send`` raises.
MAX_QUEUED_BYTES: Final = 16 << 20
MAX_QUEUED_BULK_BYTES: Final = 1 << 20
CONNECT_TIMEOUT_S: Final = 2.0
# A peer that was not heard for this long counts as gone; pings go every ``PING_INTERVAL_S`` where nothing else does.
SILENCE_S: Final = 3.0
PING_INTERVAL_S: Final = 1.0


class TransportError(Exception):
    """What this package raises, apart from the public errors. ``args[0]`` is one sentence."""


class PeerUnreachable(TransportError):
    """No stream was opened, so nothing was sent."""


class NotAdmitted(PeerUnreachable):
    """The peer is there, and its ``Admission`` refuses this node."""


class StreamClosed(TransportError):
    """The stream has ended; of the frames sent last, some may not have arrived."""


class StreamOverloaded(TransportError):
    """The peer reads slower than we write: this frame was not taken, earlier ones are under way."""


class FrameSink(Protocol):
    """A replica. Called in the engine's loop; must neither block nor raise."""

    def frames_received(self, sender: str, frames: Sequence[bytes]) -> None: ...

    def peer_closed(self, peer_id: str) -> None:
        """Its stream to us ended, or fell silent: a hint that the process died, nothing more."""


class Channel(Protocol):
    """The Raft traffic of one namespace."""

    def send(self, peer_id: str, frame: bytes, *, bulk: bool = False) -> bool:
        """Queue one frame; never waits. False: the queue is full or the peer unknown, and the frame dropped.

        Known are members, peers whose addresses were learned, and peers that have sent us frames.
        ``bulk``: chunks of snapshots, at most ``MAX_BULK_FRAME_BYTES``; they travel apart, paced, in their own
        order.  Raises ``ValueError`` for a frame over the limit.
        """

    def cork(self) -> None:
        """What is sent from here on waits for ``flush``, which is to follow before the caller awaits."""

    def flush(self) -> None:
        """Hand over now what ``send`` gathered; without it, and not corked, that happens at the end of the loop's turn."""

    def set_members(self, members: Mapping[str, Sequence[str]]) -> None:
        """Peer id -> known multiaddrs: who is dialled, kept connected, and may open a direct lane."""

    def set_context(self, cluster_id: bytes) -> None:
        """Binds direct lanes to this cluster: a lane of another cluster of the same name is refused."""

    def is_connected(self, peer_id: str) -> bool:
        """Frames sent now have a connection to leave by."""

    def lane_is_up(self, peer_id: str) -> bool:
        """They leave by the direct lane."""

    async def aclose(self) -> None: ...


class MessageStream(Protocol):
    """A stream of frames both ways with one peer. One task receives at a time; any task sends."""

    @property
    def peer_id(self) -> str:
        """Proven; of a stream over the local socket: our own node's."""

    @property
    def is_local(self) -> bool:
        """The other end is a process of this host, of the same user, over the local socket."""

    def send(self, frame: bytes) -> None:
        """Never waits. Raises ``StreamClosed``, ``StreamOverloaded``, or ``ValueError`` for a frame over the limit."""

    async def receive(self) -> list[bytes]:
        """The frames that have arrived, at least one; cancelling loses nothing. Raises ``StreamClosed`` at the end."""

    async def aclose(self) -> None:
        """Frames already sent are given ``CONNECT_TIMEOUT_S`` to leave. Closing twice does nothing."""


StreamHandler: TypeAlias = Callable[[MessageStream], Awaitable[None]]
# (peer id, namespace, action) -> may it? Actions: "raft", "commands".
Admission: TypeAlias = Callable[[str, str, str], bool]
# (peer id, what is wrong): a wrong key, a refused peer. For status, doctor and ``start()``, which raises WrongKey.
ProblemListener: TypeAlias = Callable[[str, Exception], object]


class Transport(Protocol):
    """A node on the network, from ``__aenter__`` to ``__aexit__``; no task of it lives outside these."""

    @property
    def peer_id(self) -> str: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others reach us: concrete multiaddrs ending in ``/p2p/<peer id>``. Known once entered."""

    def open_channel(self, namespace: str, sink: FrameSink) -> Channel:
        """Raises ``ValueError`` when the namespace has one already."""

    def serve(self, namespace: str, handler: StreamHandler) -> None:
        """Run ``handler`` for every stream that others open; the stream is closed when it returns or raises.

        A second call replaces the handler for streams to come.
        """

    def stop_serving(self, namespace: str) -> None:
        """New streams are refused; open ones go on."""

    async def connect(
        self, namespace: str, *, peer_id: str | None = None, addresses: Sequence[str] = ()
    ) -> MessageStream:
        """Open a stream to ``peer_id``, or to whoever of ``addresses`` answers first.

        ``addresses`` are tried before known ones. Raises ``PeerUnreachable`` within about ``CONNECT_TIMEOUT_S``, and
        ``WrongKey`` when the peer's shared key is another one.
        """

    def learn(self, peer_id: str, addresses: Sequence[str]) -> None:
        """These are where the peer is now; they are tried before older ones."""

    def known_addresses(self, peer_id: str) -> tuple[str, ...]: ...

    def connected_peers(self) -> list[str]:
        """In the order of their peer ids."""

    def on_problem(self, listener: ProblemListener) -> None:
        """Call ``listener`` at every problem from now on. It must neither block nor raise."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None: ...


def split_address(address: str) -> tuple[str, str | None]:
    """``/ip4/10.0.0.1/tcp/4001/p2p/12D3...`` -> (``/ip4/10.0.0.1/tcp/4001``, ``12D3...``)."""
    place, found, peer_id = address.rpartition("/p2p/")
    if not found:
        return address, None
    return place, peer_id


def check_frame(frame: bytes, *, bulk: bool = False) -> None:
    limit = MAX_BULK_FRAME_BYTES if bulk else MAX_FRAME_BYTES
    if len(frame) > limit:
        raise ValueError(f"a frame of {len(frame)} bytes was not sent: the limit is {limit} bytes; send smaller parts")
