"""The transport over libp2p: peers prove who they are, and one host carries every namespace of a node.

Raft frames go by ``/raft/v1<namespace>/transport`` (``channel.py``), commands by ``/raft/v1<namespace>``
(``message_stream.py``).  This module starts and stops the host, dials, accepts, and hands streams to their namespace.

Must run under trio.  Importing it imports libp2p: 0.8 s and 80 MB.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random
from types import TracebackType
from typing import Any, Self

import trio

from tauraft.beat import next_beat
from tauraft.errors import WrongKey
from tauraft.transport.lane import LaneIdentity, LaneListener, LaneNumber, ReceivingLane, SendingLane, dial_lane
from tauraft.transport.libp2p.address_book import AddressBook, Backoff
from tauraft.transport.libp2p.channel import Libp2pChannel
from tauraft.transport.libp2p.guarded_tcp import bind_exclusively
from tauraft.transport.libp2p.host import PeerHost
from tauraft.transport.libp2p.message_stream import Libp2pMessageStream
from tauraft.transport.libp2p.streams import PackedStream, Purpose, Status, answer, greet
from tauraft.transport.secure_frames import KeyRing, StreamContext
from tauraft.transport.transport import (
    CONNECT_TIMEOUT_S,
    PING_INTERVAL_S,
    Admission,
    FrameSink,
    PeerUnreachable,
    ProblemListener,
    StreamClosed,
    StreamHandler,
    split_address,
)

log = logging.getLogger("tauraft.transport.libp2p")

# The next address is tried beside the first when that has not answered by then.
NEXT_ADDRESS_S = 0.25


def raft_protocol(namespace: str) -> str:
    return f"/raft/v1{namespace}/transport"


def command_protocol(namespace: str) -> str:
    return f"/raft/v1{namespace}"


class Libp2pTransport:
    """One node's presence on libp2p.

    ``private_key``: 32 bytes, the Ed25519 seed that is the node's identity.  ``listen``: multiaddrs; port 0 takes a
    free one.  ``encryption_keys``: of 32 bytes; the first seals, all open.  ``random``: for jitter only.
    ``lanes``: False keeps Raft's frames on libp2p.
    """

    def __init__(
        self,
        private_key: bytes,
        *,
        random: Random,
        listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
        encryption_keys: Sequence[bytes] = (),
        lanes: bool = True,
        admit: Admission = lambda peer_id, namespace, action: True,
    ) -> None:
        self.book = AddressBook()
        self._host = PeerHost(private_key, listen)
        self.peer_id = self._host.peer_id
        self._ring = KeyRing(encryption_keys) if encryption_keys else None
        self._random = random
        self._identity = LaneIdentity(self.peer_id, self._host.key_pair, self._ring)
        self._with_lanes = lanes
        self._reaching: dict[str, trio.Lock] = {}
        self._lane_listener: LaneListener | None = None
        # Tells lanes of this process from those of an earlier one; not a secret, but it must differ every time.
        self.boot = int.from_bytes(os.urandom(4), "big")
        self._admit = admit
        self._addresses: tuple[str, ...] = ()
        self._channels: dict[str, Libp2pChannel] = {}
        self._handlers: dict[str, StreamHandler] = {}
        self._accepting: set[str] = set()
        self._listeners: list[ProblemListener] = []
        self._stack = AsyncExitStack()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        """Raises ``InvalidOption`` when a port is occupied."""
        async with AsyncExitStack() as stack:
            await self._host.start()
            stack.push_async_callback(self._host.stop)
            self._nursery = await stack.enter_async_context(trio.open_nursery())
            places = self._host.listen_addresses()
            if self._with_lanes:
                self._start_lanes(places)
            self._addresses = tuple(f"{split_address(place)[0]}/p2p/{self.peer_id}" for place in places)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        with trio.CancelScope(shield=True), trio.move_on_after(CONNECT_TIMEOUT_S):
            for channel in list(self._channels.values()):
                await channel.aclose()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        return await self._stack.__aexit__(kind, error, traceback)

    # The Transport protocol.

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def open_channel(self, namespace: str, sink: FrameSink) -> Libp2pChannel:
        _check_namespace(namespace)
        if namespace in self._channels:
            raise ValueError(f"{namespace} has a channel on this node already")
        channel = self._channels[namespace] = Libp2pChannel(self, namespace, sink)
        self._host.accept(
            raft_protocol(namespace), lambda stream, peer_id: self._accept_raft(namespace, stream, peer_id)
        )
        return channel

    def serve(self, namespace: str, handler: StreamHandler) -> None:
        _check_namespace(namespace)
        self._handlers[namespace] = handler
        protocol = command_protocol(namespace)
        if protocol not in self._accepting:
            self._accepting.add(protocol)
            self._host.accept(protocol, lambda stream, peer_id: self._accept_commands(namespace, stream, peer_id))

    def stop_serving(self, namespace: str) -> None:
        if self._handlers.pop(namespace, None) is not None:
            protocol = command_protocol(namespace)
            self._accepting.discard(protocol)
            self._host.stop_accepting(protocol)

    async def connect(
        self, namespace: str, *, peer_id: str | None = None, addresses: Sequence[str] = ()
    ) -> Libp2pMessageStream:
        with trio.move_on_after(CONNECT_TIMEOUT_S) as limit:
            peer = await self._reach(peer_id, addresses)
            stream = await self._open(command_protocol(namespace), namespace, peer, Purpose.COMMANDS)
            return self._start_messages(stream)
        assert limit.cancelled_caught
        who = peer_id or ", ".join(addresses)
        raise PeerUnreachable(f"{who} did not answer in {CONNECT_TIMEOUT_S:g} s")

    def learn(self, peer_id: str, addresses: Sequence[str]) -> None:
        if peer_id != self.peer_id and self.book.learn(peer_id, addresses):
            for channel in self._channels.values():
                channel.learned(peer_id)

    def known_addresses(self, peer_id: str) -> tuple[str, ...]:
        return self.book.addresses(peer_id)

    def connected_peers(self) -> list[str]:
        return self._host.connected_peers()

    def on_problem(self, listener: ProblemListener) -> None:
        self._listeners.append(listener)

    # For discovery, which uses the library's own services.

    @property
    def library_host(self) -> Any:
        """The ``libp2p`` host. Its ``connect`` must not be used (it always takes 250 ms): see ``learn``."""
        return self._host.library_host

    # Called by channels (``channel.Host``).

    def new_backoff(self, first_s: float = 0.1, most_s: float = 3.0) -> Backoff:
        return Backoff(self._random, first_s, most_s)

    def start_task(self, function: Any, *arguments: Any) -> None:
        assert self._nursery is not None, "the transport is not running"
        self._nursery.start_soon(function, *arguments)

    async def open_raft_stream(self, namespace: str, peer_id: str, purpose: Purpose) -> PackedStream:
        await self._reach(peer_id, ())
        return await self._open(raft_protocol(namespace), namespace, peer_id, purpose)

    async def open_lane(
        self, namespace: str, peer_id: str, address: tuple[str, int], cluster_id: bytes, number: LaneNumber
    ) -> SendingLane:
        return await dial_lane(self._identity, peer_id, address, namespace, cluster_id, number)

    def lane_port(self, local_ip: str) -> int | None:
        return None if self._lane_listener is None else self._lane_listener.port_for(local_ip)

    def forget_channel(self, channel: Libp2pChannel) -> None:
        if self._channels.get(channel.namespace) is channel:
            del self._channels[channel.namespace]
            self._host.stop_accepting(raft_protocol(channel.namespace))

    def report_problem(self, peer_id: str, error: Exception) -> None:
        for listener in self._listeners:
            listener(peer_id, error)

    # Reaching peers.

    async def _reach(self, peer_id: str | None, addresses: Sequence[str]) -> str:
        """Be connected to ``peer_id``, or to whoever answers first. Returns the peer id. Raises ``PeerUnreachable``."""
        if peer_id == self.peer_id:
            raise PeerUnreachable(f"{peer_id} is this node itself")
        if peer_id is not None and self._host.is_connected(peer_id):
            return peer_id
        candidates = self._candidates(peer_id, addresses)
        if not candidates:
            who = peer_id or "the peer"
            raise PeerUnreachable(f"no address of {who} is known; an address ends in /p2p/<peer id>")
        for peer, _ in candidates:
            if peer_id is None and self._host.is_connected(peer):
                return peer
        if peer_id is None:
            return await self._race(candidates)
        # A thousand namespaces that lose one peer dial it once: more connections would only be more to keep.
        async with self._reaching.setdefault(peer_id, trio.Lock()):
            if self._host.is_connected(peer_id):
                return peer_id
            return await self._race(candidates)

    def _candidates(self, peer_id: str | None, addresses: Sequence[str]) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for address in addresses:
            place, named = split_address(address)
            peer = peer_id or named
            if peer is not None and peer != self.peer_id and named in (None, peer):
                found.append((peer, place))
        if peer_id is not None:
            found += [(peer_id, place) for place in self.book.places(peer_id)]
        return list(dict.fromkeys(found))

    async def _race(self, candidates: list[tuple[str, str]]) -> str:
        winner: str | None = None
        failures: list[str] = []
        async with trio.open_nursery() as nursery:

            async def attempt(peer: str, place: str, failed: trio.Event) -> None:
                nonlocal winner
                try:
                    await self._host.dial(peer, place)
                except PeerUnreachable as error:
                    failures.append(str(error))
                    self.book.failed(peer, place)
                    failed.set()
                    return
                self.book.worked(peer, place)
                winner = winner or peer
                nursery.cancel_scope.cancel()

            for peer, place in candidates:
                failed = trio.Event()
                nursery.start_soon(attempt, peer, place, failed)
                with trio.move_on_after(NEXT_ADDRESS_S):
                    await failed.wait()
        if winner is None:
            raise PeerUnreachable("; ".join(failures))
        return winner

    async def _open(self, protocol: str, namespace: str, peer_id: str, purpose: Purpose) -> PackedStream:
        stream = await self._host.open_stream(peer_id, protocol)
        context = StreamContext(protocol, namespace, self.peer_id, peer_id)
        try:
            found, addresses = await greet(stream, self._ring, context, purpose, self._addresses)
        except WrongKey as error:
            self.report_problem(peer_id, error)
            raise
        self.learn(peer_id, addresses)
        return found

    # Being reached.

    async def _accept_raft(self, namespace: str, stream: Any, peer_id: str) -> None:
        def status_of(purpose: Purpose) -> Status:
            if purpose not in (Purpose.RAFT, Purpose.BULK) or namespace not in self._channels:
                return Status.NOT_SERVED
            return Status.OK if self._admit(peer_id, namespace, "raft") else Status.NOT_ADMITTED

        accepted = await self._answer(raft_protocol(namespace), namespace, stream, peer_id, status_of)
        channel = self._channels.get(namespace)
        if accepted is not None and channel is not None:
            await channel.run_incoming(*accepted)

    async def _accept_commands(self, namespace: str, stream: Any, peer_id: str) -> None:
        def status_of(purpose: Purpose) -> Status:
            if purpose != Purpose.COMMANDS or namespace not in self._handlers:
                return Status.NOT_SERVED
            return Status.OK if self._admit(peer_id, namespace, "commands") else Status.NOT_ADMITTED

        accepted = await self._answer(command_protocol(namespace), namespace, stream, peer_id, status_of)
        handler = self._handlers.get(namespace)
        if accepted is None or handler is None or self._nursery is None:
            return
        messages = self._start_messages(accepted[0])
        # In our own nursery: the library's tasks end with their connection, and a handler must get to clean up.
        finished = trio.Event()
        self._nursery.start_soon(self._serve, handler, messages, finished)
        await finished.wait()

    def _start_lanes(self, places: Sequence[str]) -> None:
        # "/ip4/127.0.0.1/tcp/4001": the same addresses, ports of their own.
        hosts = dict.fromkeys(place.split("/")[2] for place in places)
        self._lane_listener = LaneListener(
            [bind_exclusively(host, 0) for host in hosts],
            self._identity,
            context_of=self._lane_context,
            is_member=lambda namespace, peer_id: self._channels[namespace].is_member(peer_id),
            accepted=self._accept_lane,
        )
        self.start_task(self._lane_listener.run)
        self.start_task(self._beat)

    async def _beat(self) -> None:
        """Of all lanes: one task for them."""
        while True:
            await next_beat(PING_INTERVAL_S)
            for channel in self._channels.values():
                channel.beat()

    def _lane_context(self, namespace: str) -> bytes | None:
        channel = self._channels.get(namespace)
        return None if channel is None else channel.context

    async def _accept_lane(self, namespace: str, lane: ReceivingLane) -> None:
        channel = self._channels.get(namespace)
        if channel is None:
            lane.end("the channel was closed")
            return
        await channel.run_lane(lane)

    async def _answer(
        self, protocol: str, namespace: str, stream: Any, peer_id: str, status_of: Any
    ) -> tuple[PackedStream, Purpose] | None:
        context = StreamContext(protocol, namespace, peer_id, self.peer_id)
        try:
            accepted = await answer(stream, self._ring, context, self._addresses, status_of)
        except WrongKey as error:
            self.report_problem(peer_id, error)
            return None
        if accepted is None:
            return None
        found, purpose, addresses = accepted
        self.learn(peer_id, addresses)
        return found, purpose

    def _start_messages(self, stream: PackedStream) -> Libp2pMessageStream:
        messages = Libp2pMessageStream(stream)
        self.start_task(messages.run)
        return messages

    async def _serve(self, handler: StreamHandler, stream: Libp2pMessageStream, finished: trio.Event) -> None:
        try:
            await handler(stream)
        except StreamClosed:
            pass  # an ordinary end
        except Exception:  # the task's edge: one bad stream must not end the node
            log.exception("the handler of a stream from %s failed", stream.peer_id)
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()
            finished.set()


def _check_namespace(namespace: str) -> None:
    if not namespace.startswith("/"):
        raise ValueError(f"a namespace starts with a slash, unlike {namespace!r}")
    # Its commands would travel under the name of another namespace's Raft protocol.
    if namespace.endswith("/transport"):
        raise ValueError(f"a namespace cannot end in /transport, as {namespace!r} does")
