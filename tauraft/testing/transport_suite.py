"""What every transport must do, as checks that anyone can run on their own (``tauraft.testing.check_transport``).

A check is an async function of a ``TransportHarness``; each stands alone and reads as one sentence of the contract in
``tauraft.transport.transport``.  ``check_transport(harness)`` runs them all under trio; a test suite that wants one
test each takes ``TRANSPORT_CHECKS``.

They use real time where the transport does, and wait for conditions, never for durations.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final, Protocol, TypeAlias

import anyio
import trio

from tauraft.transport.transport import (
    MAX_BULK_FRAME_BYTES,
    MAX_FRAME_BYTES,
    MAX_QUEUED_BYTES,
    Channel,
    MessageStream,
    PeerUnreachable,
    StreamClosed,
    Transport,
    split_address,
)

NAMESPACE: Final = "/raft/suite"
LIMIT_S: Final = 20.0


class TransportHarness(Protocol):
    """Starts nodes of the transport under test, all on one network."""

    def start(self, name: str) -> AbstractAsyncContextManager[Transport]:
        """A node. The same name again, after the first has stopped: the same peer id at another address."""


Check: TypeAlias = Callable[[TransportHarness], Awaitable[None]]


class RecordingSink:
    """A ``FrameSink`` that keeps what it was given."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, bytes]] = []
        self.closed: list[str] = []
        self._changed = anyio.Event()

    def frames_received(self, sender: str, frames: Sequence[bytes]) -> None:
        self.frames += [(sender, frame) for frame in frames]
        self._changed.set()

    def peer_closed(self, peer_id: str) -> None:
        self.closed.append(peer_id)
        self._changed.set()

    def of(self, sender: str) -> list[bytes]:
        return [frame for source, frame in self.frames if source == sender]

    async def until(self, condition: Callable[[], bool], reason: str) -> None:
        try:
            with anyio.fail_after(LIMIT_S):
                while not condition():
                    self._changed = anyio.Event()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"waited {LIMIT_S:g} s in vain: {reason}") from None


async def wait_until(condition: Callable[[], bool], reason: str) -> None:
    """For states that announce themselves to nobody."""
    try:
        with anyio.fail_after(LIMIT_S):
            while not condition():
                await anyio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {LIMIT_S:g} s in vain: {reason}") from None


class Pair:
    """Two nodes whose channels are connected both ways."""

    def __init__(self, a: Transport, b: Transport) -> None:
        self.a, self.b = a, b
        self.sink_a, self.sink_b = RecordingSink(), RecordingSink()
        self.channel_a: Channel = a.open_channel(NAMESPACE, self.sink_a)
        self.channel_b: Channel = b.open_channel(NAMESPACE, self.sink_b)

    async def connect(self, cluster_id: bytes = b"0123456789abcdef") -> Pair:
        for channel in (self.channel_a, self.channel_b):
            channel.set_context(cluster_id)
        self.channel_a.set_members({self.b.peer_id: self.b.addresses, self.a.peer_id: self.a.addresses})
        self.channel_b.set_members({self.a.peer_id: self.a.addresses, self.b.peer_id: self.b.addresses})
        await wait_until(self.is_connected, "both channels connect")
        return self

    def is_connected(self) -> bool:
        return self.channel_a.is_connected(self.b.peer_id) and self.channel_b.is_connected(self.a.peer_id)


async def start_pair(harness: TransportHarness, stack: AsyncExitStack) -> Pair:
    a = await stack.enter_async_context(harness.start("a"))
    b = await stack.enter_async_context(harness.start("b"))
    return await Pair(a, b).connect()


async def echo(stream: MessageStream) -> None:
    while True:
        for frame in await stream.receive():
            stream.send(frame)


async def receive_count(stream: MessageStream, count: int) -> list[bytes]:
    frames: list[bytes] = []
    with anyio.fail_after(LIMIT_S):
        while len(frames) < count:
            frames += await stream.receive()
    return frames


# Channels.


async def frames_arrive_in_order_and_whole(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        pair = await start_pair(harness, stack)
        frames = [bytes([number % 251]) * (number * 37 % 3000) for number in range(1000)]
        for number, frame in enumerate(frames):
            assert pair.channel_a.send(pair.b.peer_id, frame)
            if number % 50 == 0:
                await anyio.lowlevel.checkpoint()
        await pair.sink_b.until(lambda: len(pair.sink_b.frames) == len(frames), "all frames arrive")
        assert pair.sink_b.of(pair.a.peer_id) == frames


async def large_frames_arrive_whole(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        pair = await start_pair(harness, stack)
        large = bytes(range(256)) * (MAX_FRAME_BYTES // 256)
        frames = [b"before", large, b"", b"after"]
        for frame in frames:
            assert pair.channel_a.send(pair.b.peer_id, frame)
        await pair.sink_b.until(lambda: len(pair.sink_b.frames) == len(frames), "the large frame arrives")
        assert pair.sink_b.of(pair.a.peer_id) == frames


async def frames_over_the_limit_are_refused(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        pair = await start_pair(harness, stack)
        for size, bulk in ((MAX_FRAME_BYTES, False), (MAX_BULK_FRAME_BYTES, True)):
            try:
                pair.channel_a.send(pair.b.peer_id, bytes(size + 1), bulk=bulk)
            except ValueError:
                continue
            raise AssertionError(f"a frame of {size + 1} bytes was accepted")


async def bulk_frames_arrive_in_their_own_order(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        pair = await start_pair(harness, stack)
        chunks = [b"chunk" + bytes([number]) * MAX_BULK_FRAME_BYTES for number in range(40)]
        chunks = [chunk[:MAX_BULK_FRAME_BYTES] for chunk in chunks]
        for chunk in chunks:
            while not pair.channel_a.send(pair.b.peer_id, chunk, bulk=True):
                await anyio.sleep(0.002)
        await pair.sink_b.until(lambda: len(pair.sink_b.frames) == len(chunks), "all chunks arrive")
        assert pair.sink_b.of(pair.a.peer_id) == chunks


async def a_full_queue_says_false_and_tears_nothing(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        pair = await start_pair(harness, stack)
        accepted: list[bytes] = []
        while True:  # nothing of the transport runs in between, so the queue must fill
            frame = len(accepted).to_bytes(4, "big") + bytes(200_000)
            if not pair.channel_a.send(pair.b.peer_id, frame):
                break
            accepted.append(frame)
            assert len(accepted) * len(frame) < 4 * MAX_QUEUED_BYTES, "the queue has no bound"
        await pair.sink_b.until(lambda: len(pair.sink_b.frames) == len(accepted), "what was accepted arrives")
        assert pair.sink_b.of(pair.a.peer_id) == accepted
        assert pair.channel_a.send(pair.b.peer_id, b"again")
        await pair.sink_b.until(lambda: pair.sink_b.frames[-1][1] == b"again", "the queue works again")


async def a_frame_to_an_unknown_peer_is_dropped(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        pair = await start_pair(harness, stack)
        async with harness.start("stranger") as stranger:
            assert not pair.channel_a.send(stranger.peer_id, b"hello?")


async def a_peer_that_wrote_can_be_answered(harness: TransportHarness) -> None:
    """A learner hears from a leader that is not in its membership yet."""
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        b = await stack.enter_async_context(harness.start("b"))
        pair = Pair(a, b)
        pair.channel_a.set_members({b.peer_id: b.addresses})
        await wait_until(lambda: pair.channel_a.is_connected(b.peer_id), "a connects")
        assert pair.channel_a.send(b.peer_id, b"append")
        await pair.sink_b.until(lambda: bool(pair.sink_b.frames), "b hears a")
        assert pair.channel_b.send(a.peer_id, b"reply")
        await pair.sink_a.until(lambda: pair.sink_a.of(b.peer_id) == [b"reply"], "a hears b")


async def a_peer_that_stops_is_noticed(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        async with harness.start("b") as b:
            pair = await Pair(a, b).connect()
            assert pair.channel_b.send(a.peer_id, b"alive")
            await pair.sink_a.until(lambda: bool(pair.sink_a.frames), "b is heard")
        await pair.sink_a.until(lambda: pair.sink_a.closed == [b.peer_id], "a is told that b closed")
        await wait_until(lambda: not pair.channel_a.is_connected(b.peer_id), "a notices")


async def a_peer_that_comes_back_elsewhere_is_found(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        async with harness.start("b") as b:
            pair = await Pair(a, b).connect()
            before = b.addresses
        await wait_until(lambda: not pair.channel_a.is_connected(b.peer_id), "a notices")
        async with harness.start("b") as b:
            assert b.peer_id == pair.b.peer_id
            assert b.addresses != before
            sink = RecordingSink()
            b.open_channel(NAMESPACE, sink)
            a.learn(b.peer_id, b.addresses)
            await wait_until(lambda: pair.channel_a.is_connected(b.peer_id), "a finds b again")
            assert pair.channel_a.send(b.peer_id, b"welcome back")
            await sink.until(lambda: sink.of(a.peer_id) == [b"welcome back"], "b hears a")


async def peers_that_dial_at_once_hear_each_frame_once(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        b = await stack.enter_async_context(harness.start("b"))
        pair = await Pair(a, b).connect()
        for number in range(100):
            assert pair.channel_a.send(b.peer_id, b"a%d" % number)
            assert pair.channel_b.send(a.peer_id, b"b%d" % number)
        await pair.sink_a.until(lambda: len(pair.sink_a.frames) >= 100, "a hears all")
        await pair.sink_b.until(lambda: len(pair.sink_b.frames) >= 100, "b hears all")
        assert pair.sink_a.of(b.peer_id) == [b"b%d" % number for number in range(100)]
        assert pair.sink_b.of(a.peer_id) == [b"a%d" % number for number in range(100)]


async def namespaces_do_not_mix(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        b = await stack.enter_async_context(harness.start("b"))
        sinks = {f"/raft/n{number}": RecordingSink() for number in range(20)}
        channels = {namespace: a.open_channel(namespace, RecordingSink()) for namespace in sinks}
        for namespace, sink in sinks.items():
            b.open_channel(namespace, sink)
            channels[namespace].set_members({b.peer_id: b.addresses})
        await wait_until(lambda: all(one.is_connected(b.peer_id) for one in channels.values()), "all connect")
        for namespace, channel in channels.items():
            assert channel.send(b.peer_id, namespace.encode())
        await wait_until(lambda: all(sink.frames for sink in sinks.values()), "each hears its frame")
        for namespace, sink in sinks.items():
            assert sink.frames == [(a.peer_id, namespace.encode())]
        first, second, *_ = sinks
        await channels[first].aclose()
        assert not channels[first].send(b.peer_id, b"closed")
        assert channels[second].send(b.peer_id, b"open")
        await sinks[second].until(lambda: len(sinks[second].frames) == 2, "the others go on")


# Message streams.


async def a_stream_carries_requests_and_answers(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        b = await stack.enter_async_context(harness.start("b"))
        b.serve(NAMESPACE, echo)
        stream = await a.connect(NAMESPACE, addresses=b.addresses)
        assert stream.peer_id == b.peer_id
        assert not stream.is_local
        frames = [bytes([number % 256]) * number for number in range(500)] + [bytes(8 << 20)]
        for frame in frames:
            stream.send(frame)
        assert await receive_count(stream, len(frames)) == frames
        # By now its addresses are known.
        again = await a.connect(NAMESPACE, peer_id=b.peer_id)
        again.send(b"again")
        assert await receive_count(again, 1) == [b"again"]


async def cancelled_receives_lose_nothing(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        b = await stack.enter_async_context(harness.start("b"))
        b.serve(NAMESPACE, echo)
        stream = await a.connect(NAMESPACE, addresses=b.addresses)
        received: list[bytes] = []
        for number in range(200):
            stream.send(b"%d" % number)
            with anyio.move_on_after(0.0005):
                received += await stream.receive()
        received += await receive_count(stream, 200 - len(received))
        assert received == [b"%d" % number for number in range(200)]


async def an_ended_stream_gives_what_came_before_its_end(harness: TransportHarness) -> None:
    async def speak_and_leave(stream: MessageStream) -> None:
        for number in range(100):
            stream.send(b"%d" % number)

    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        b = await stack.enter_async_context(harness.start("b"))
        b.serve(NAMESPACE, speak_and_leave)
        stream = await a.connect(NAMESPACE, addresses=b.addresses)
        received: list[bytes] = []
        with anyio.fail_after(LIMIT_S):
            try:
                while True:
                    received += await stream.receive()
            except StreamClosed:
                pass
        assert received == [b"%d" % number for number in range(100)]
        try:
            stream.send(b"too late")
        except StreamClosed:
            return
        raise AssertionError("an ended stream took a frame")


async def a_handler_that_fails_ends_its_stream_alone(harness: TransportHarness) -> None:
    async def fail(stream: MessageStream) -> None:
        await stream.receive()
        raise RuntimeError("a bug in a handler")

    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        b = await stack.enter_async_context(harness.start("b"))
        b.serve("/raft/bad", fail)
        b.serve(NAMESPACE, echo)
        bad = await a.connect("/raft/bad", addresses=b.addresses)
        good = await a.connect(NAMESPACE, addresses=b.addresses)
        bad.send(b"go")
        try:
            await receive_count(bad, 1)
        except StreamClosed:
            good.send(b"still here")
            assert await receive_count(good, 1) == [b"still here"]
            return
        raise AssertionError("the stream of the handler that failed is open")


async def a_receiver_that_does_not_read_holds_nobody_up(harness: TransportHarness) -> None:
    async def never_read(stream: MessageStream) -> None:
        await anyio.sleep_forever()

    async with AsyncExitStack() as stack:
        pair = await start_pair(harness, stack)
        pair.b.serve("/raft/deaf", never_read)
        pair.b.serve(NAMESPACE, echo)
        deaf = await pair.a.connect("/raft/deaf", addresses=pair.b.addresses)
        good = await pair.a.connect(NAMESPACE, addresses=pair.b.addresses)
        for _ in range(6):
            deaf.send(bytes(1 << 20))
        for number in range(20):
            good.send(b"%d" % number)
            assert await receive_count(good, 1) == [b"%d" % number]
            assert pair.channel_a.send(pair.b.peer_id, b"%d" % number)
        await pair.sink_b.until(lambda: len(pair.sink_b.frames) == 20, "Raft's frames get through")


async def a_peer_that_stops_ends_its_streams(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        async with harness.start("b") as b:
            b.serve(NAMESPACE, echo)
            stream = await a.connect(NAMESPACE, addresses=b.addresses)
        with anyio.fail_after(LIMIT_S):
            try:
                await stream.receive()
            except StreamClosed:
                return
        raise AssertionError("the stream outlived its peer")


async def nobody_listening_is_said_soon(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        async with harness.start("b") as b:
            addresses = b.addresses
        for given in (addresses, ()):
            with anyio.fail_after(4):
                try:
                    await a.connect(NAMESPACE, peer_id=b.peer_id, addresses=given)
                except PeerUnreachable:
                    pass
                else:
                    raise AssertionError("connected to nobody")


async def a_namespace_that_is_not_served_is_refused(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        b = await stack.enter_async_context(harness.start("b"))
        b.serve(NAMESPACE, echo)
        b.stop_serving(NAMESPACE)
        try:
            await a.connect(NAMESPACE, addresses=b.addresses)
        except PeerUnreachable:
            return
        raise AssertionError("a namespace that nobody serves was served")


async def another_peer_at_the_address_is_refused(harness: TransportHarness) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(harness.start("a"))
        b = await stack.enter_async_context(harness.start("b"))
        c = await stack.enter_async_context(harness.start("c"))
        c.serve(NAMESPACE, echo)
        wrong = f"{split_address(c.addresses[0])[0]}/p2p/{b.peer_id}"
        try:
            await a.connect(NAMESPACE, addresses=[wrong])
        except PeerUnreachable:
            return
        raise AssertionError("another peer was taken for the one that was asked for")


TRANSPORT_CHECKS: Final[tuple[Check, ...]] = (
    frames_arrive_in_order_and_whole,
    large_frames_arrive_whole,
    frames_over_the_limit_are_refused,
    bulk_frames_arrive_in_their_own_order,
    a_full_queue_says_false_and_tears_nothing,
    a_frame_to_an_unknown_peer_is_dropped,
    a_peer_that_wrote_can_be_answered,
    a_peer_that_stops_is_noticed,
    a_peer_that_comes_back_elsewhere_is_found,
    peers_that_dial_at_once_hear_each_frame_once,
    namespaces_do_not_mix,
    a_stream_carries_requests_and_answers,
    cancelled_receives_lose_nothing,
    an_ended_stream_gives_what_came_before_its_end,
    a_handler_that_fails_ends_its_stream_alone,
    a_receiver_that_does_not_read_holds_nobody_up,
    a_peer_that_stops_ends_its_streams,
    nobody_listening_is_said_soon,
    a_namespace_that_is_not_served_is_refused,
    another_peer_at_the_address_is_refused,
)


def check_transport(make_harness: Callable[[], TransportHarness]) -> None:
    """Run every check on a harness of its own. Raises ``AssertionError`` naming the first that failed."""
    for check in TRANSPORT_CHECKS:
        try:
            trio.run(check, make_harness())
        except (AssertionError, BaseExceptionGroup) as error:  # a transport's task group wraps what its body raised
            raise AssertionError(f"{check.__name__}: {error}") from error
