"""One namespace's frames over libp2p: a link to each peer we send to, and what each peer sends to us.

An ``OutgoingLink`` keeps one stream open to one peer, opened by us and carrying our frames only: two peers that dial at
the same time then need no agreement on whose connection to keep.  While it has none, a little may wait for the
attempt under way; when that fails, what waited is dropped, for old Raft frames are of no use to anyone.

Members that agree on the cluster open a *lane* beside the stream (``transport/lane.py``), and frames change over to
it and back.  Order is kept by what the sender says on the stream, in band:

- ``SWITCH(n)`` is the last thing on the stream before frames go by lane ``n``.  The receiver reads nothing from a lane
  before that (or before the stream has ended, when nothing can come by it any more): the stream's frames come first.
- ``FALLBACK(n)`` comes before frames that go by the stream again.  The receiver drops lanes up to ``n`` unread.
- A new stream begins with one of the two, so that a receiver never goes by what an older stream, or an earlier process
  of the sender, had said.

So frames are never reordered by a change; those that a dying lane or stream held are lost, which Raft repairs.  A lane
that cannot be opened is tried again, with long back-off, as long as the peer offers one.

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

from tauraft.errors import TauraftError, WrongKey
from tauraft.transport.frames import HEADER_BYTES, Kind, MalformedStream
from tauraft.transport.lane import LaneNumber, LaneRefused, ReceivingLane, SendingLane
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
LANE_RETRY_FIRST_S: Final = 0.5
LANE_RETRY_MOST_S: Final = 30.0
# How long a lane's frames wait for the last of the stream's.
CHANGE_OVER_S: Final = 5.0


class Host(Protocol):
    """What a channel needs of its transport."""

    peer_id: str
    book: AddressBook

    boot: int

    def new_backoff(self, first_s: float = ..., most_s: float = ...) -> Backoff: ...

    def start_task(self, function: Any, *arguments: Any) -> None: ...

    async def open_raft_stream(self, namespace: str, peer_id: str, purpose: Purpose) -> PackedStream: ...

    async def open_lane(
        self, namespace: str, peer_id: str, address: tuple[str, int], cluster_id: bytes, number: LaneNumber
    ) -> SendingLane: ...

    def lane_port(self, local_ip: str) -> int | None: ...

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
        self.context: bytes | None = None
        self._to_flush: list[SendingLane | PackedStream] = []
        self._is_corked = False
        self._flush_wanted = trio.Event()
        self._flusher = trio.CancelScope()
        host.start_task(self._flush_at_end_of_turn)

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

    def cork(self) -> None:
        self._is_corked = True

    def flush(self) -> None:
        self._is_corked = False
        if self._to_flush:
            ways, self._to_flush = self._to_flush, []
            for way in ways:
                way.flush()

    def set_members(self, members: Mapping[str, Sequence[str]]) -> None:
        self._members = {peer: tuple(addresses) for peer, addresses in members.items() if peer != self._host.peer_id}
        for peer_id, addresses in self._members.items():
            self._host.book.learn(peer_id, addresses)
            if self.is_open and peer_id not in self._links:
                self._start_link(peer_id)
        for peer_id, link in self._links.items():
            link.is_wanted = peer_id in self._members
            link.try_now()
        for peer_id, incoming in self._incoming.items():
            if peer_id in self._members:
                incoming.offer_lane()
            else:
                incoming.end_lane("the peer is no member any more")

    def set_context(self, cluster_id: bytes) -> None:
        if self.context == cluster_id:
            return
        self.context = cluster_id
        for link in self._links.values():
            link.end_lane("the cluster is another one")
            link.try_now()
        for incoming in self._incoming.values():
            incoming.end_lane("the cluster is another one")
            incoming.offer_lane()

    def is_connected(self, peer_id: str) -> bool:
        link = self._links.get(peer_id)
        return link is not None and link.is_connected

    def lane_is_up(self, peer_id: str) -> bool:
        link = self._links.get(peer_id)
        return link is not None and link.lane_is_up

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
        self._flusher.cancel()

    # Called by the transport, links and incoming streams.

    def is_member(self, peer_id: str) -> bool:
        return peer_id in self._members

    def beat(self) -> None:
        for link in self._links.values():
            link.beat()
        for incoming in self._incoming.values():
            incoming.beat()

    def flush_later(self, way: SendingLane | PackedStream) -> None:
        if way.awaits_flush:
            return
        way.awaits_flush = True
        if not self._to_flush and not self._is_corked:
            self._flush_wanted.set()
        self._to_flush.append(way)

    async def run_lane(self, lane: ReceivingLane) -> None:
        """The life of one lane that a member opened to us."""
        incoming = self._incoming.get(lane.peer_id)
        if incoming is None:
            incoming = self._incoming[lane.peer_id] = IncomingPeer(self, self._host, lane.peer_id)
        await incoming.run_lane(lane)
        self._forget_if_gone(incoming)

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
            incoming = self._incoming[stream.peer_id] = IncomingPeer(self, self._host, stream.peer_id)
        if purpose == Purpose.BULK:
            await stream.run(incoming.deliver, _ignore)
            return
        await incoming.run(stream)
        self._forget_if_gone(incoming)

    async def _flush_at_end_of_turn(self) -> None:
        """For whoever does not call ``flush``: this task runs once all that are ready now have."""
        with self._flusher:
            while True:
                await self._flush_wanted.wait()
                self._flush_wanted = trio.Event()
                self.flush()

    def _forget_if_gone(self, incoming: IncomingPeer) -> None:
        if not incoming.is_alive and self._incoming.get(incoming.peer_id) is incoming:
            del self._incoming[incoming.peer_id]

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
        self._lane: SendingLane | None = None
        self._lane_number = LaneNumber(host.boot, 0)
        self._lane_address: tuple[str, int] | None = None  # as offered on the stream
        self._bulk = BulkQueue(channel, host, peer_id)
        self._retry = trio.Event()
        self._lane_retry = trio.Event()
        self._scope = trio.CancelScope()

    @property
    def is_connected(self) -> bool:
        return self._stream is not None or self.lane_is_up

    @property
    def lane_is_up(self) -> bool:
        return self._lane is not None and not self._lane.has_ended

    def send(self, frame: bytes) -> bool:
        lane = self._lane
        if lane is not None:
            if lane.add(frame):
                self._channel.flush_later(lane)
                return True
            if not lane.has_ended:
                return False
            self._fall_back(lane)
        size = len(frame) + HEADER_BYTES
        if self._stream is not None:
            if self._stream.queued_bytes + size > MAX_QUEUED_BYTES:
                return False
            self._stream.add(frame)
            self._channel.flush_later(self._stream)
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
        """Members, addresses or the cluster changed."""
        self._retry.set()
        self._lane_retry.set()
        if not self.is_wanted:
            self.end_lane("the peer is no member any more")

    def beat(self) -> None:
        if self._lane is not None:
            self._lane.beat()

    def end_lane(self, reason: str) -> None:
        if self._lane is not None:
            self._lane.end(reason)
            self._fall_back(self._lane)

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_lane)
                await self._keep_stream()
                nursery.cancel_scope.cancel()
        self._drop_waiting()
        self._channel.link_ended(self)

    async def aclose(self) -> None:
        if self._lane is not None:
            self._lane.finish()
        if self._stream is not None:
            await self._stream.finish()
        self._bulk.end()
        self._scope.cancel()

    # The stream.

    async def _keep_stream(self) -> None:
        backoff = self._host.new_backoff()
        while self._channel.is_open:
            try:
                stream = await self._host.open_raft_stream(self._channel.namespace, self.peer_id, Purpose.RAFT)
            except (PeerUnreachable, TauraftError) as error:
                self._host.report_problem(self.peer_id, error)
                self._drop_waiting()
            else:
                backoff.reset()
                await self._use_stream(stream)
            if not self.is_wanted:
                return
            # A stream that ends at once, over and over, must not turn into a busy loop.
            self._retry = trio.Event()
            with trio.move_on_after(backoff.next_s()):
                await self._retry.wait()

    async def _use_stream(self, stream: PackedStream) -> None:
        stream.push(self._lane_number.encode(), Kind.FALLBACK if self._lane is None else Kind.SWITCH)
        for frame in self._waiting:
            stream.push(frame)
        self._drop_waiting()
        self._stream = stream
        try:
            reason = await stream.run(_ignore, self._take_offer)
            log.debug("the stream to %s ended: %s", self.peer_id, reason)
        finally:
            self._stream = None

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0

    # The lane.

    def _take_offer(self, kind: int, payload: bytes) -> None:
        if kind == Kind.LANE and len(payload) == 2 and self._stream is not None:
            ip = self._stream.remote_ip
            if ip is not None:
                self._lane_address = (ip, int.from_bytes(payload, "big"))
                self._lane_retry.set()

    async def _keep_lane(self) -> None:
        backoff = self._host.new_backoff(LANE_RETRY_FIRST_S, LANE_RETRY_MOST_S)
        while True:
            self._lane_retry = trio.Event()
            address, cluster_id = self._lane_address, self._channel.context
            if address is None or cluster_id is None or not self.is_wanted:
                await self._lane_retry.wait()
                continue
            number = LaneNumber(self._host.boot, self._lane_number.count + 1)
            try:
                lane = await self._host.open_lane(self._channel.namespace, self.peer_id, address, cluster_id, number)
            except (LaneRefused, WrongKey) as error:
                log.debug("no lane to %s: %s", self.peer_id, error)
            else:
                backoff.reset()
                await self._use_lane(lane, number)
            with trio.move_on_after(backoff.next_s()):
                await self._lane_retry.wait()

    async def _use_lane(self, lane: SendingLane, number: LaneNumber) -> None:
        self._lane_number = number
        if self._stream is not None:
            self._stream.push(number.encode(), Kind.SWITCH)
        self._lane = lane
        if self._stream is not None:
            self._stream.relax(True)
        for frame in self._waiting:
            self.send(frame)
        self._drop_waiting()
        try:
            reason = await lane.run()
            log.debug("the lane to %s ended: %s", self.peer_id, reason)
        finally:
            self._fall_back(lane)

    def _fall_back(self, lane: SendingLane) -> None:
        if self._lane is lane:
            self._lane = None
            if self._stream is not None:
                self._stream.relax(False)
                self._stream.push(self._lane_number.encode(), Kind.FALLBACK)


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

    def __init__(self, channel: Libp2pChannel, host: Host, peer_id: str) -> None:
        self.peer_id = peer_id
        self._channel = channel
        self._host = host
        self._stream: PackedStream | None = None
        self._lane: ReceivingLane | None = None
        self._announced: LaneNumber | None = None  # by the last SWITCH, until a FALLBACK
        self._changed = trio.Event()

    @property
    def is_alive(self) -> bool:
        return self._stream is not None or self._lane is not None

    def deliver(self, frames: list[bytes]) -> None:
        if self._channel.is_open:
            self._channel.sink.frames_received(self.peer_id, frames)

    def end(self) -> None:
        self.end_lane("the channel was closed")
        if self._stream is not None:
            self._stream.end("the channel was closed")

    def beat(self) -> None:
        if self._lane is not None:
            self._lane.beat()

    def end_lane(self, reason: str) -> None:
        if self._lane is not None:
            self._lane.end(reason)
            self._changed.set()

    def offer_lane(self) -> None:
        """Tell a member where our lanes are opened."""
        stream = self._stream
        if stream is None or self._channel.context is None or not self._channel.is_member(self.peer_id):
            return
        ip = stream.local_ip
        port = None if ip is None else self._host.lane_port(ip)
        if port is not None:
            stream.push(port.to_bytes(2, "big"), Kind.LANE)

    async def run(self, stream: PackedStream) -> None:
        if self._stream is not None:
            self._stream.end("the peer opened a newer stream")
        self._stream = stream
        self._announced = None
        self.offer_lane()
        await stream.run(
            lambda frames: self._from_stream(stream, frames), lambda kind, data: self._control(stream, kind, data)
        )
        if self._stream is stream:
            self._stream = None
            self._changed.set()
            self._tell_if_gone()

    async def run_lane(self, lane: ReceivingLane) -> None:
        self.end_lane("the peer opened a newer lane")
        self._lane = lane
        if await self._stream_is_done(lane):
            if self._stream is not None:
                self._stream.relax(True)
            reason = await lane.run(lambda frames: self._from_lane(lane, frames))
            log.debug("the lane from %s ended: %s", self.peer_id, reason)
        lane.end("the change to it was not announced")
        if self._lane is lane:
            self._lane = None
            if self._stream is not None:
                self._stream.relax(False)
            self._tell_if_gone()

    async def _stream_is_done(self, lane: ReceivingLane) -> bool:
        """Wait for the last of the stream's frames."""
        with trio.move_on_after(CHANGE_OVER_S):
            while not lane.has_ended:
                if self._stream is None or self._announced == lane.number:
                    return True
                self._changed = trio.Event()
                await self._changed.wait()
        return False

    def _from_stream(self, stream: PackedStream, frames: list[bytes]) -> None:
        if self._stream is stream:
            self.deliver(frames)

    def _from_lane(self, lane: ReceivingLane, frames: list[bytes]) -> None:
        if self._lane is lane:
            self.deliver(frames)

    def _control(self, stream: PackedStream, kind: int, payload: bytes) -> None:
        if self._stream is not stream or kind not in (Kind.SWITCH, Kind.FALLBACK):
            return
        try:
            number = LaneNumber.decode(payload)
        except MalformedStream as error:
            stream.end(str(error))
            return
        lane = self._lane
        if kind == Kind.SWITCH:
            self._announced = number
            is_stale = lane is not None and lane.number.boot != number.boot
        else:
            self._announced = None
            is_stale = lane is not None and (lane.number.boot != number.boot or lane.number <= number)
        if is_stale:
            self.end_lane("the peer went back to its stream")
        self._changed.set()

    def _tell_if_gone(self) -> None:
        # While the other way is alive so is the process.
        if not self.is_alive and self._channel.is_open:
            self._channel.sink.peer_closed(self.peer_id)


def _ignore(*_: object) -> None:
    return None
