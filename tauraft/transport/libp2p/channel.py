"""One namespace's frames over libp2p: a link to each peer we send to, and what each peer sends to us.

An ``OutgoingLink`` keeps one stream open to one peer, opened by us and carrying our frames only: two peers that dial at
the same time then need no agreement on whose connection to keep.  While it has none, a little may wait for the
attempt under way; when that fails, what waited is dropped, for old Raft frames are of no use to anyone.

Members' links are kept up for ever, with back-off.  A peer that is no member (a leader that we have
not learned of yet, a learner being caught up) gets a link when there is something to say to it, which ends with its
connection.

``IncomingPeer`` is what one peer sends us: its newest stream wins, so that frames of a stream that died come
before those of the next, or not at all.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from tauraft.errors import TauraftError
from tauraft.transport.frames import HEADER_BYTES
from tauraft.transport.libp2p.address_book import AddressBook, Backoff
from tauraft.transport.libp2p.streams import PackedStream, Purpose
from tauraft.transport.transport import (
    MAX_QUEUED_BULK_BYTES,
    MAX_QUEUED_BYTES,
    FrameSink,
    PeerUnreachable,
    check_frame,
)

log = logging.getLogger("tauraft.transport.libp2p")

# Without a connection only what the attempt under way may still deliver in time is kept.
MAX_WAITING_BYTES: Final = 1 << 20
BULK_IDLE_S: Final = 30.0


class Host(Protocol):
    """What a channel needs of its transport."""

    peer_id: str
    book: AddressBook

    def new_backoff(self) -> Backoff: ...

    def start_task(self, function: Any, *arguments: Any) -> None: ...

    async def open_raft_stream(self, namespace: str, peer_id: str, purpose: Purpose) -> PackedStream: ...

    def forget_channel(self, channel: Libp2pChannel) -> None: ...

    def report_problem(self, peer_id: str, error: Exception) -> None: ...


class Libp2pChannel:
    """The ``Channel`` of the libp2p transport."""

    def __init__(self, host: Host, namespace: str, sink: FrameSink) -> None:
        self.namespace = namespace
        self.sink = sink
        self.is_open = True
        self._host = host
        self._members: dict[str, tuple[str, ...]] = {}
        self._links: dict[str, OutgoingLink] = {}
        self._incoming: dict[str, IncomingPeer] = {}
        self._context: bytes | None = None

    # The Channel protocol.

    def send(self, peer_id: str, frame: bytes, *, bulk: bool = False) -> bool:
        check_frame(frame, bulk=bulk)
        if not self.is_open:
            return False
        link = self._links.get(peer_id)
        if link is None:
            if not self._may_be_told(peer_id):
                return False
            link = self._start_link(peer_id)
        return link.send_bulk(frame) if bulk else link.send(frame)

    def flush(self) -> None:
        return None

    def set_members(self, members: Mapping[str, Sequence[str]]) -> None:
        self._members = {peer: tuple(addresses) for peer, addresses in members.items() if peer != self._host.peer_id}
        for peer_id, addresses in self._members.items():
            self._host.book.learn(peer_id, addresses)
            if self.is_open and peer_id not in self._links:
                self._start_link(peer_id)
        for peer_id, link in self._links.items():
            link.is_wanted = peer_id in self._members
            link.try_now()

    def set_context(self, cluster_id: bytes) -> None:
        self._context = cluster_id

    def is_connected(self, peer_id: str) -> bool:
        link = self._links.get(peer_id)
        return link is not None and link.is_connected

    def lane_is_up(self, peer_id: str) -> bool:
        return False

    async def aclose(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        self._host.forget_channel(self)
        async with trio.open_nursery() as nursery:
            for link in list(self._links.values()):
                nursery.start_soon(link.aclose)
        for incoming in list(self._incoming.values()):
            incoming.end()

    # Called by the transport, links and incoming streams.

    def learned(self, peer_id: str) -> None:
        """There is a new address to try."""
        link = self._links.get(peer_id)
        if link is not None:
            link.try_now()

    def link_ended(self, link: OutgoingLink) -> None:
        if self._links.get(link.peer_id) is link:
            del self._links[link.peer_id]

    async def run_incoming(self, stream: PackedStream, purpose: Purpose) -> None:
        """The life of one stream that a peer opened to us."""
        incoming = self._incoming.get(stream.peer_id)
        if incoming is None:
            incoming = self._incoming[stream.peer_id] = IncomingPeer(self, stream.peer_id)
        if purpose == Purpose.BULK:
            await stream.run(incoming.deliver, _ignore)
            return
        await incoming.run(stream)
        if not incoming.is_alive and self._incoming.get(stream.peer_id) is incoming:
            del self._incoming[stream.peer_id]

    def _may_be_told(self, peer_id: str) -> bool:
        if peer_id == self._host.peer_id:
            return False
        return peer_id in self._members or peer_id in self._incoming or bool(self._host.book.places(peer_id))

    def _start_link(self, peer_id: str) -> OutgoingLink:
        link = self._links[peer_id] = OutgoingLink(self, self._host, peer_id)
        link.is_wanted = peer_id in self._members
        self._host.start_task(link.run)
        return link


class OutgoingLink:
    """Our frames to one peer."""

    def __init__(self, channel: Libp2pChannel, host: Host, peer_id: str) -> None:
        self.peer_id = peer_id
        self.is_wanted = True
        self._channel = channel
        self._host = host
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._stream: PackedStream | None = None
        self._bulk = BulkQueue(channel, host, peer_id)
        self._retry = trio.Event()
        self._scope = trio.CancelScope()

    @property
    def is_connected(self) -> bool:
        return self._stream is not None

    def send(self, frame: bytes) -> bool:
        size = len(frame) + HEADER_BYTES
        if self._stream is not None:
            if self._stream.queued_bytes + size > MAX_QUEUED_BYTES:
                return False
            self._stream.push(frame)
            return True
        # One frame of any size may wait, or the first large one would never go.
        if self._waiting_bytes and self._waiting_bytes + size > MAX_WAITING_BYTES:
            return False
        self._waiting.append(frame)
        self._waiting_bytes += size
        return True

    def send_bulk(self, frame: bytes) -> bool:
        return self._bulk.send(frame)

    def try_now(self) -> None:
        self._retry.set()

    async def run(self) -> None:
        backoff = self._host.new_backoff()
        with self._scope:
            while self._channel.is_open:
                try:
                    stream = await self._host.open_raft_stream(self._channel.namespace, self.peer_id, Purpose.RAFT)
                except (PeerUnreachable, TauraftError) as error:
                    self._host.report_problem(self.peer_id, error)
                    self._drop_waiting()
                    if not self.is_wanted:
                        break
                    await self._pause(backoff)
                    continue
                backoff.reset()
                await self._use(stream)
                if not self.is_wanted:
                    break
                # A stream that ends at once, over and over, must not turn into a busy loop.
                await self._pause(backoff)
        self._drop_waiting()
        self._channel.link_ended(self)

    async def aclose(self) -> None:
        if self._stream is not None:
            await self._stream.finish()
        self._bulk.end()
        self._scope.cancel()

    async def _use(self, stream: PackedStream) -> None:
        for frame in self._waiting:
            stream.push(frame)
        self._drop_waiting()
        self._stream = stream
        try:
            reason = await stream.run(_ignore, self._control)
            log.debug("stream to %s ended: %s", self.peer_id, reason)
        finally:
            self._stream = None

    def _control(self, kind: int, payload: bytes) -> None:
        return None

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0

    async def _pause(self, backoff: Backoff) -> None:
        self._retry = trio.Event()
        with trio.move_on_after(backoff.next_s()):
            await self._retry.wait()


class BulkQueue:
    """Snapshot chunks to one peer, on a stream of their own that lives while there are some.

    Paced: after each write it waits as long as that write took, so that chunks take at most about half of
    the connection and the other streams' frames get through between two of them.
    """

    def __init__(self, channel: Libp2pChannel, host: Host, peer_id: str) -> None:
        self._channel = channel
        self._host = host
        self._peer_id = peer_id
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._wake = trio.Event()
        self._is_running = False
        self._scope = trio.CancelScope()

    def send(self, frame: bytes) -> bool:
        if self._waiting_bytes + len(frame) > MAX_QUEUED_BULK_BYTES:
            return False
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        self._wake.set()
        if not self._is_running:
            self._is_running = True
            self._host.start_task(self._run)
        return True

    def end(self) -> None:
        self._scope.cancel()

    async def _run(self) -> None:
        try:
            with self._scope:
                stream = await self._host.open_raft_stream(self._channel.namespace, self._peer_id, Purpose.BULK)
                async with trio.open_nursery() as nursery:

                    async def read() -> None:
                        await stream.run(_ignore, _ignore)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(read)
                    await self._feed(stream)
                    await stream.finish()
                    nursery.cancel_scope.cancel()
        except (PeerUnreachable, TauraftError) as error:
            log.debug("no bulk stream to %s: %s", self._peer_id, error)
        finally:
            self._waiting.clear()
            self._waiting_bytes = 0
            self._is_running = False

    async def _feed(self, stream: PackedStream) -> None:
        """Until nothing came for a while."""
        while not stream.has_ended:
            if not self._waiting:
                self._wake = trio.Event()
                with trio.move_on_after(BULK_IDLE_S) as idle:
                    await self._wake.wait()
                if idle.cancelled_caught:
                    return
                continue
            frame = self._waiting[0]
            began = trio.current_time()
            stream.push(frame)
            await stream.drained()
            self._waiting.popleft()
            self._waiting_bytes -= len(frame)
            await trio.sleep(trio.current_time() - began)


class IncomingPeer:
    """What one peer sends us in one namespace."""

    def __init__(self, channel: Libp2pChannel, peer_id: str) -> None:
        self._channel = channel
        self._peer_id = peer_id
        self._stream: PackedStream | None = None

    @property
    def is_alive(self) -> bool:
        return self._stream is not None

    def deliver(self, frames: list[bytes]) -> None:
        if self._channel.is_open:
            self._channel.sink.frames_received(self._peer_id, frames)

    async def run(self, stream: PackedStream) -> None:
        if self._stream is not None:
            self._stream.end("the peer opened a newer stream")
        self._stream = stream
        await stream.run(lambda frames: self._from_stream(stream, frames), _ignore)
        if self._stream is stream:
            self._stream = None
            if self._channel.is_open:
                self._channel.sink.peer_closed(self._peer_id)

    def end(self) -> None:
        if self._stream is not None:
            self._stream.end("the channel was closed")

    def _from_stream(self, stream: PackedStream, frames: list[bytes]) -> None:
        if self._stream is stream:
            self.deliver(frames)


def _ignore(*_: object) -> None:
    return None
