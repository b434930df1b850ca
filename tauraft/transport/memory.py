"""A network in memory whose links fail as told: the twin of the libp2p transport for tests and the simulator.

``MemoryNetwork`` holds who is up and the state of every directed link; ``network.transport(peer_id)`` is a node on
it.  Time is anyio's clock and chance is the given ``random``, so under trio's ``MockClock`` and deterministic
scheduling equal seeds give equal runs; nothing here iterates over a set.

How a link behaves: it delays each frame by a draw from ``delay_s`` and keeps order, as TCP does.  ``loss`` and
``duplication`` concern one-way frames only (a late duplicate is what a reconnection can bring).  A cut link loses
one-way frames and holds stream frames back; a cut that lasts ``SILENCE_S`` ends streams across it, and tells
channels, as pings that are not answered would.  A node that stops (``network.stop``, or leaving its ``async with``)
ends them at once, as a killed process's sockets do.

Each node has one task, which delivers what is due from a heap; a frame costs no task and, without delay, no timer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from types import TracebackType
from typing import Final, NamedTuple, Self

import anyio
from anyio.abc import TaskGroup

from tauraft.transport.inbox import FrameInbox
from tauraft.transport.transport import (
    CONNECT_TIMEOUT_S,
    MAX_QUEUED_BULK_BYTES,
    MAX_QUEUED_BYTES,
    SILENCE_S,
    Admission,
    FrameSink,
    MessageStream,
    NotAdmitted,
    PeerUnreachable,
    ProblemListener,
    StreamClosed,
    StreamHandler,
    StreamOverloaded,
    check_frame,
    split_address,
)

log = logging.getLogger("tauraft.transport.memory")

_PREFIX: Final = "/memory/"


@dataclass(slots=True)
class Link:
    """One direction between two nodes. Change its fields at any time; ``MemoryNetwork.cut`` cuts it."""

    delay_s: tuple[float, float] = (0.0, 0.0)
    loss: float = 0.0
    duplication: float = 0.0
    is_cut: bool = False
    cuts: int = 0  # tells a cut that was healed and made again from one that lasted
    is_silent: bool = False  # the cut lasted long enough to be noticed
    last_due_s: float = 0.0

    def due_s(self, random: Random, *, in_order: bool = True) -> float:
        low, high = self.delay_s
        due = anyio.current_time() + (low if low == high else random.uniform(low, high))
        if in_order:
            due = self.last_due_s = max(due, self.last_due_s)
        return due


class _Delivery(NamedTuple):
    due_s: float
    order: int
    run: Callable[[], object] | None
    channel: MemoryChannel | None = None
    sender: str = ""
    frame: bytes = b""
    counted: tuple[dict[str, int], str] | None = None  # the sender's queue that this frame leaves


class MemoryNetwork:
    """Who is up, and how each link behaves. Links not touched have the delay given here."""

    def __init__(self, random: Random, *, delay_s: tuple[float, float] = (0.0, 0.0)) -> None:
        self._random = random
        self._delay_s = delay_s
        self._links: dict[tuple[str, str], Link] = {}
        self._running: dict[str, MemoryTransport] = {}
        self._streams: list[MemoryStream] = []

    def transport(
        self, peer_id: str, *, address: str | None = None, admit: Admission = lambda peer_id, namespace, action: True
    ) -> MemoryTransport:
        """A node; enter it to start. At most one of a peer id runs at a time.

        ``address``: a name of the place it listens at; by default its peer id, so that it comes back where it was.
        """
        return MemoryTransport(self, peer_id, _PREFIX + (address or peer_id), admit)

    def link(self, source: str, target: str) -> Link:
        found = self._links.get((source, target))
        if found is None:
            found = self._links[source, target] = Link(delay_s=self._delay_s)
        return found

    def set_faults(
        self,
        source: str,
        target: str,
        *,
        delay_s: tuple[float, float] | None = None,
        loss: float | None = None,
        duplication: float | None = None,
    ) -> None:
        """Both directions; for one, change ``link(source, target)``."""
        for link in (self.link(source, target), self.link(target, source)):
            link.delay_s = link.delay_s if delay_s is None else delay_s
            link.loss = link.loss if loss is None else loss
            link.duplication = link.duplication if duplication is None else duplication

    def cut(self, source: str, target: str, *, both_ways: bool = True) -> None:
        pairs = [(source, target), (target, source)] if both_ways else [(source, target)]
        for sender, receiver in pairs:
            link = self.link(sender, receiver)
            if link.is_cut:
                continue
            link.is_cut = True
            link.cuts += 1
            node = self._running.get(receiver) or self._running.get(sender)
            if node is not None:
                node.schedule(anyio.current_time() + SILENCE_S, self._silence(sender, receiver, link.cuts))

    def partition(self, *groups: Sequence[str]) -> None:
        """Cut every link between two groups; links within a group stay as they are."""
        for number, group in enumerate(groups):
            for other in groups[number + 1 :]:
                for left in group:
                    for right in other:
                        self.cut(left, right)

    def heal(self, source: str | None = None, target: str | None = None) -> None:
        """Both directions between the two, or every cut link. What streams held back is delivered."""
        for (sender, receiver), link in list(self._links.items()):
            if source is None or (sender, receiver) in ((source, target), (target, source)):
                link.is_cut = link.is_silent = False
        for stream in list(self._streams):
            if not self.is_cut(stream.peer_id, stream.own_id):
                stream.release()

    def is_cut(self, source: str, target: str) -> bool:
        link = self._links.get((source, target))
        return link is not None and link.is_cut

    def stop(self, peer_id: str) -> None:
        """The process dies now: it hears and says nothing more, its handlers are cancelled, its streams end."""
        node = self._running.pop(peer_id, None)
        if node is None:
            return
        node.halt()
        for stream in list(self._streams):
            if peer_id in (stream.own_id, stream.peer_id):
                self.end_stream(stream, f"{peer_id} closed the connection")
        for other in list(self._running.values()):
            if not self.is_cut(peer_id, other.peer_id):
                due = self.link(peer_id, other.peer_id).due_s(self._random)
                other.schedule(due, lambda other=other: other.peer_is_gone(peer_id))  # type: ignore[misc]

    def is_running(self, peer_id: str) -> bool:
        return peer_id in self._running

    # Called by the nodes.

    @property
    def random(self) -> Random:
        return self._random

    def started(self, node: MemoryTransport) -> None:
        if node.peer_id in self._running:
            raise ValueError(f"a node with the peer id {node.peer_id!r} is running already")
        if any(other.place == node.place for other in self._running.values()):
            raise ValueError(f"the address {node.place!r} is in use")
        self._running[node.peer_id] = node

    def node(self, peer_id: str) -> MemoryTransport | None:
        return self._running.get(peer_id)

    def node_at(self, place: str) -> MemoryTransport | None:
        for node in self._running.values():
            if node.place == place:
                return node
        return None

    def nodes(self) -> list[MemoryTransport]:
        return list(self._running.values())

    def opened(self, stream: MemoryStream) -> None:
        self._streams.append(stream)

    def end_stream(self, stream: MemoryStream, reason: str) -> None:
        if stream in self._streams:
            self._streams.remove(stream)
        stream.inbox.end(reason)

    def _silence(self, sender: str, receiver: str, cut: int) -> Callable[[], None]:
        def end_if_still_cut() -> None:
            link = self.link(sender, receiver)
            if not link.is_cut or link.cuts != cut:
                return
            link.is_silent = True
            if self.link(receiver, sender).is_silent:
                return
            for stream in list(self._streams):
                if (stream.own_id, stream.peer_id) in ((sender, receiver), (receiver, sender)):
                    self.end_stream(stream, f"{stream.peer_id} was not heard for {SILENCE_S:g} s")
            # Pings are answered over the way back, so both sides notice a cut of one direction.
            for own, other in ((receiver, sender), (sender, receiver)):
                node = self._running.get(own)
                if node is not None:
                    node.peer_is_gone(other)

        return end_if_still_cut


class MemoryTransport:
    """One node of a ``MemoryNetwork``."""

    def __init__(self, network: MemoryNetwork, peer_id: str, place: str, admit: Admission) -> None:
        self.peer_id = peer_id
        self.place = place
        self.addresses: tuple[str, ...] = (f"{place}/p2p/{peer_id}",)
        self._network = network
        self._admit = admit
        self._channels: dict[str, MemoryChannel] = {}
        self._handlers: dict[str, StreamHandler] = {}
        self._known: dict[str, tuple[str, ...]] = {}
        self._heap: list[_Delivery] = []
        self._order = 0
        self._wake = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._listeners: list[ProblemListener] = []
        self._halted = False

    async def __aenter__(self) -> Self:
        self._network.started(self)
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._tasks.start_soon(self._deliver)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._network.node(self.peer_id) is self:
            self._network.stop(self.peer_id)
        self.halt()
        return await self._stack.__aexit__(kind, error, traceback)

    # The Transport protocol.

    def open_channel(self, namespace: str, sink: FrameSink) -> MemoryChannel:
        if namespace in self._channels:
            raise ValueError(f"{namespace} has a channel on this node already")
        channel = self._channels[namespace] = MemoryChannel(self, namespace, sink)
        return channel

    def serve(self, namespace: str, handler: StreamHandler) -> None:
        self._handlers[namespace] = handler

    def stop_serving(self, namespace: str) -> None:
        self._handlers.pop(namespace, None)

    async def connect(
        self, namespace: str, *, peer_id: str | None = None, addresses: Sequence[str] = ()
    ) -> MessageStream:
        candidates = list(addresses)
        if peer_id is not None:
            candidates += self.known_addresses(peer_id)
        if not candidates:
            raise PeerUnreachable(f"no address of {peer_id} is known; give one of its addresses")
        failures: list[str] = []
        with anyio.move_on_after(CONNECT_TIMEOUT_S):
            for address in candidates:
                try:
                    return await self._connect(namespace, peer_id, address)
                except PeerUnreachable as failure:
                    failures.append(str(failure))
        raise PeerUnreachable("; ".join(failures) or f"{candidates[0]} did not answer in {CONNECT_TIMEOUT_S:g} s")

    def learn(self, peer_id: str, addresses: Sequence[str]) -> None:
        if peer_id != self.peer_id and addresses:
            self._known[peer_id] = tuple(dict.fromkeys((*addresses, *self._known.get(peer_id, ()))))[:16]

    def known_addresses(self, peer_id: str) -> tuple[str, ...]:
        return self._known.get(peer_id, ())

    def connected_peers(self) -> list[str]:
        others = (node.peer_id for node in self._network.nodes() if node is not self)
        return sorted(other for other in others if self.can_exchange(other))

    def on_problem(self, listener: ProblemListener) -> None:
        self._listeners.append(listener)

    # Called by the network, channels and streams.

    @property
    def network(self) -> MemoryNetwork:
        return self._network

    @property
    def is_running(self) -> bool:
        return not self._halted and self._tasks is not None

    def can_exchange(self, other: str) -> bool:
        """Both are up, no link is cut, and they have a channel in common."""
        node = self._network.node(other)
        return (
            node is not None
            and self.is_running
            and not self._network.is_cut(self.peer_id, other)
            and not self._network.is_cut(other, self.peer_id)
            and any(node.channel(namespace) is not None for namespace in self._channels)
        )

    def channel(self, namespace: str) -> MemoryChannel | None:
        return self._channels.get(namespace)

    def admits(self, peer_id: str, namespace: str, action: str) -> bool:
        return self._admit(peer_id, namespace, action)

    def close_channel(self, channel: MemoryChannel) -> None:
        if self._channels.get(channel.namespace) is channel:
            del self._channels[channel.namespace]
            for other in self._network.nodes():
                theirs = other.channel(channel.namespace)
                if other is not self and theirs is not None and not self._network.is_cut(self.peer_id, other.peer_id):
                    due = self._network.link(self.peer_id, other.peer_id).due_s(self._network.random)
                    other.schedule(due, lambda theirs=theirs: theirs.peer_is_gone(self.peer_id))  # type: ignore[misc]

    def peer_is_gone(self, peer_id: str) -> None:
        for channel in list(self._channels.values()):
            channel.peer_is_gone(peer_id)

    def halt(self) -> None:
        self._halted = True
        for delivery in self._heap:
            _leave_queue(delivery)
        self._heap.clear()
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def schedule(self, due_s: float, run: Callable[[], object]) -> None:
        self._order += 1
        self._push(_Delivery(due_s, self._order, run))

    def schedule_frame(
        self,
        due_s: float,
        channel: MemoryChannel,
        sender: str,
        frame: bytes,
        counted: tuple[dict[str, int], str] | None,
    ) -> None:
        self._order += 1
        self._push(_Delivery(due_s, self._order, None, channel, sender, frame, counted))

    def accept(self, stream: MemoryStream, namespace: str) -> bool:
        handler = self._handlers.get(namespace)
        if handler is None or self._tasks is None or self._halted:
            return False
        self._tasks.start_soon(self._serve, handler, stream)
        return True

    def _push(self, delivery: _Delivery) -> None:
        if self._halted:
            return
        if not self._heap or delivery.due_s < self._heap[0].due_s:
            self._wake.set()
        heappush(self._heap, delivery)

    async def _deliver(self) -> None:
        while True:
            if self._heap and self._heap[0].due_s <= anyio.current_time():
                self._deliver_due(anyio.current_time())
                await anyio.lowlevel.checkpoint()
                continue
            self._wake = anyio.Event()
            if self._heap:
                with anyio.move_on_after(self._heap[0].due_s - anyio.current_time()):
                    await self._wake.wait()
            else:
                await self._wake.wait()

    def _deliver_due(self, now: float) -> None:
        due: list[_Delivery] = []
        while self._heap and self._heap[0].due_s <= now:
            due.append(heappop(self._heap))
        position = 0
        while position < len(due) and not self._halted:
            delivery = due[position]
            position += 1
            if delivery.run is not None:
                delivery.run()
                continue
            # Frames that arrive together are handed over together, as one read of a socket would.
            frames = [_leave_queue(delivery)]
            while (
                position < len(due)
                and due[position].channel is delivery.channel
                and (due[position].sender == delivery.sender)
            ):
                frames.append(_leave_queue(due[position]))
                position += 1
            assert delivery.channel is not None
            if self._channels.get(delivery.channel.namespace) is delivery.channel:
                delivery.channel.deliver(delivery.sender, frames)

    async def _connect(self, namespace: str, peer_id: str | None, address: str) -> MessageStream:
        place, named = split_address(address)
        expected = peer_id or named
        network = self._network
        target = network.node_at(place)
        if target is None or target is self:
            await anyio.lowlevel.checkpoint()
            raise PeerUnreachable(f"nobody listens at {place}")
        there, back = network.link(self.peer_id, target.peer_id), network.link(target.peer_id, self.peer_id)
        if there.is_cut or back.is_cut:
            await anyio.sleep(CONNECT_TIMEOUT_S)
            raise PeerUnreachable(f"{place} did not answer in {CONNECT_TIMEOUT_S:g} s")
        await anyio.sleep(sum(network.random.uniform(*link.delay_s) for link in (there, back)))
        if expected is not None and expected != target.peer_id:
            raise PeerUnreachable(f"at {place} is {target.peer_id}, not {expected}")
        if network.node(target.peer_id) is not target:
            raise PeerUnreachable(f"{target.peer_id} closed the connection")
        if not target.admits(self.peer_id, namespace, "commands"):
            raise NotAdmitted(f"{target.peer_id} does not admit {self.peer_id} to {namespace}")
        mine = MemoryStream(self, target.peer_id)
        theirs = MemoryStream(target, self.peer_id)
        mine.other, theirs.other = theirs, mine
        if not target.accept(theirs, namespace):
            raise PeerUnreachable(f"{target.peer_id} does not serve {namespace}")
        network.opened(mine)
        network.opened(theirs)
        self.learn(target.peer_id, target.addresses)
        target.learn(self.peer_id, self.addresses)
        return mine

    async def _serve(self, handler: StreamHandler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except StreamClosed:
            pass  # an ordinary end
        except Exception:  # the task's edge: one bad stream must not end the node
            log.exception("the handler of a stream from %s failed", stream.peer_id)
        finally:
            stream.end("the other end closed the stream")


class MemoryChannel:
    """One namespace's frames on a ``MemoryTransport``."""

    def __init__(self, node: MemoryTransport, namespace: str, sink: FrameSink) -> None:
        self.namespace = namespace
        self._node = node
        self._sink = sink
        self._members: dict[str, tuple[str, ...]] = {}
        self._heard: dict[str, None] = {}
        self._queued: dict[str, int] = {}
        self._queued_bulk: dict[str, int] = {}
        self._is_open = True

    def send(self, peer_id: str, frame: bytes, *, bulk: bool = False) -> bool:
        check_frame(frame, bulk=bulk)
        node, network = self._node, self._node.network
        if not self._is_open or not node.is_running or peer_id == node.peer_id or not self._knows(peer_id):
            return False
        queue, limit = (self._queued_bulk, MAX_QUEUED_BULK_BYTES) if bulk else (self._queued, MAX_QUEUED_BYTES)
        if queue.get(peer_id, 0) + len(frame) > limit:
            return False
        link = network.link(node.peer_id, peer_id)
        target = network.node(peer_id)
        random = network.random
        if target is None or link.is_cut or (link.loss and random.random() < link.loss):
            return True
        channel = target.channel(self.namespace)
        if channel is None or not target.admits(node.peer_id, self.namespace, "raft"):
            return True
        queue[peer_id] = queue.get(peer_id, 0) + len(frame)
        target.schedule_frame(link.due_s(random), channel, node.peer_id, frame, (queue, peer_id))
        if link.duplication and random.random() < link.duplication:
            target.schedule_frame(link.due_s(random, in_order=False), channel, node.peer_id, frame, None)
        return True

    def cork(self) -> None:
        return None

    def flush(self) -> None:
        return None

    def set_members(self, members: Mapping[str, Sequence[str]]) -> None:
        self._members = {peer_id: tuple(addresses) for peer_id, addresses in members.items()}
        for peer_id, addresses in self._members.items():
            self._node.learn(peer_id, addresses)

    def set_context(self, cluster_id: bytes) -> None:
        return None

    def is_connected(self, peer_id: str) -> bool:
        node = self._node.network.node(peer_id)
        return (
            self._is_open
            and self._knows(peer_id)
            and node is not None
            and node.channel(self.namespace) is not None
            and self._node.can_exchange(peer_id)
        )

    def lane_is_up(self, peer_id: str) -> bool:
        return peer_id in self._members and self.is_connected(peer_id)

    async def aclose(self) -> None:
        self._is_open = False
        self._node.close_channel(self)
        await anyio.lowlevel.checkpoint()

    def deliver(self, sender: str, frames: list[bytes]) -> None:
        # What was on its way when a link was cut is lost with it.
        if self._is_open and not self._node.network.is_cut(sender, self._node.peer_id):
            self._heard[sender] = None
            self._sink.frames_received(sender, frames)

    def peer_is_gone(self, peer_id: str) -> None:
        if self._is_open and (peer_id in self._members or peer_id in self._heard):
            self._heard.pop(peer_id, None)
            self._sink.peer_closed(peer_id)

    def _knows(self, peer_id: str) -> bool:
        return peer_id in self._members or peer_id in self._heard or bool(self._node.known_addresses(peer_id))


class MemoryStream:
    """One end of a stream."""

    is_local = False
    other: MemoryStream

    def __init__(self, node: MemoryTransport, peer_id: str) -> None:
        self.peer_id = peer_id
        self.own_id = node.peer_id
        self.inbox = FrameInbox()
        self._node = node
        self._held: list[bytes | str] = []
        self._on_the_way = 0

    def send(self, frame: bytes) -> None:
        check_frame(frame)
        if self.inbox.has_ended or not self._node.is_running:
            raise StreamClosed(f"the stream with {self.peer_id} has ended")
        other = self.other
        if self._on_the_way + other.inbox.size_bytes + len(frame) > MAX_QUEUED_BYTES:
            raise StreamOverloaded(f"{self.peer_id} does not read: {MAX_QUEUED_BYTES >> 20} MiB wait for it")
        self._on_the_way += len(frame)
        self._schedule(lambda: other.arrive(frame))

    async def receive(self) -> list[bytes]:
        return await self.inbox.receive()

    async def aclose(self) -> None:
        self.end("the other end closed the stream")
        await anyio.lowlevel.checkpoint()

    # Called by the network and the other end.

    def end(self, reason: str) -> None:
        """Closed here; the other end learns it after the frames sent before."""
        if self.inbox.has_ended:
            return
        self._node.network.end_stream(self, "the stream was closed here")
        other = self.other
        self._schedule(lambda: other.arrive(reason))

    def arrive(self, what: bytes | str) -> None:
        """A frame, or the reason of the end."""
        network = self._node.network
        if self._held or network.is_cut(self.peer_id, self.own_id):
            self._held.append(what)
        elif isinstance(what, str):
            network.end_stream(self, what)
        else:
            self.other._on_the_way -= len(what)
            self.inbox.put((what,))

    def release(self) -> None:
        """The cut has healed: what was held back comes now, in its order."""
        held, self._held = self._held, []
        for what in held:
            self.arrive(what)

    def _schedule(self, run: Callable[[], object]) -> None:
        network = self._node.network
        target = network.node(self.peer_id)
        if target is not None:
            target.schedule(network.link(self.own_id, self.peer_id).due_s(network.random), run)


def _leave_queue(delivery: _Delivery) -> bytes:
    if delivery.counted is not None:
        queue, peer_id = delivery.counted
        queue[peer_id] -= len(delivery.frame)
    return delivery.frame
