"""What py-libp2p does by itself that would lose frames, hang or let strangers in; each was seen, each has its cure.

Real sockets on loopback, and real processes where one must die or freeze.  A new release of the library that changes one
of these is noticed here.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import anyio
import pytest
import trio
import trio.testing
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from tauraft.errors import InvalidOption
from tauraft.testing.transport_suite import (
    NAMESPACE,
    Pair,
    RecordingSink,
    echo,
    receive_count,
    start_pair,
    wait_until,
)
from tauraft.transport.libp2p import muxed
from tauraft.transport.libp2p.guarded_tcp import GuardedStream
from tauraft.transport.libp2p.transport import Libp2pTransport
from tauraft.transport.transport import Channel, PeerUnreachable, StreamClosed, Transport, split_address
from tests.transport.harnesses import Libp2pHarness, private_key

CLUSTER_ID = b"0123456789abcdef"


class Child:
    """A node in another process, connected with ours both ways."""

    def __init__(self, process: trio.Process, peer_id: str, address: str) -> None:
        self.process, self.peer_id, self.address = process, peer_id, address

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


@asynccontextmanager
async def child_of(transport: Transport, name: str) -> AsyncIterator[Child]:
    command = [sys.executable, "-m", "tests.transport.node_process", name, CLUSTER_ID.decode()]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        line = b""
        with trio.fail_after(20):
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some()
        peer_id, address = line.decode().split()
        await process.stdin.send_all(f"{transport.peer_id} {transport.addresses[0]}\n".encode())
        yield Child(process, peer_id, address)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()


@asynccontextmanager
async def node_and_child(*, lane: bool) -> AsyncIterator[tuple[Transport, Channel, RecordingSink, Child]]:
    async with Libp2pHarness(lane=lane).start("a") as a, child_of(a, "child") as child:
        sink = RecordingSink()
        channel = a.open_channel(NAMESPACE, sink)
        channel.set_context(CLUSTER_ID)
        channel.set_members({child.peer_id: [child.address]})
        await wait_until(lambda: channel.is_connected(child.peer_id), "the child is reached")
        if lane:
            await wait_until(lambda: channel.lane_is_up(child.peer_id), "the lane opens")
        assert channel.send(child.peer_id, b"are you there?")
        await sink.until(lambda: bool(sink.frames), "the child answers")
        yield a, channel, sink, child


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "stream"])
def test_a_killed_process_is_noticed_at_once(lane: bool) -> None:
    async def story() -> None:
        async with node_and_child(lane=lane) as (a, channel, sink, child):
            stream = await a.connect(NAMESPACE, peer_id=child.peer_id)
            began = trio.current_time()
            child.signal(signal.SIGKILL)
            await sink.until(lambda: sink.closed == [child.peer_id], "we are told")
            assert trio.current_time() - began < 1.0
            with pytest.raises(StreamClosed):
                await receive_count(stream, 1)
            await wait_until(lambda: not channel.is_connected(child.peer_id), "the channel notices")

    trio.run(story)


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "stream"])
def test_a_stopped_process_is_noticed_holds_nobody_up_and_is_found_again(lane: bool) -> None:
    async def story() -> None:
        async with node_and_child(lane=lane) as (a, channel, sink, child), Libp2pHarness().start("b") as b:
            b.serve(NAMESPACE, echo)
            stream = await a.connect(NAMESPACE, peer_id=child.peer_id)
            other = await a.connect(NAMESPACE, addresses=b.addresses)
            child.signal(signal.SIGSTOP)
            for _ in range(40):  # more than every buffer on the way holds
                channel.send(child.peer_id, bytes(100_000))
                stream.send(bytes(100_000))
            for number in range(20):
                other.send(b"%d" % number)
                assert await receive_count(other, 1) == [b"%d" % number]
            began = trio.current_time()
            with pytest.raises(StreamClosed):
                await receive_count(stream, 1)
            await sink.until(lambda: bool(sink.closed), "we are told")
            assert trio.current_time() - began < 6.0
            child.signal(signal.SIGCONT)
            await wait_until(lambda: channel.is_connected(child.peer_id), "it is found again")

            def answered() -> bool:
                channel.send(child.peer_id, b"back?")
                return b"back?" in sink.of(child.peer_id)

            await wait_until(answered, "it answers again")

    trio.run(story)


def test_an_occupied_port_is_named() -> None:
    async def story() -> None:
        async with Libp2pHarness().start("a") as a:
            place, _ = split_address(a.addresses[0])
            second = Libp2pTransport(private_key("b"), random=Random(1), listen=[place])
            with pytest.raises(InvalidOption, match="cannot listen on") as raised:
                async with second:
                    pass
            assert raised.value.option == "listen"

    trio.run(story)


def test_plaintext_is_not_spoken() -> None:
    """By default the library accepts it, and with it any peer id that the caller claims."""

    async def story() -> None:
        async with Libp2pHarness().start("a") as a:
            port = int(a.addresses[0].split("/")[4])
            async with await anyio.connect_tcp("127.0.0.1", port) as sock:
                for line in (b"/multistream/1.0.0\n", b"/plaintext/2.0.0\n"):
                    await sock.send(bytes([len(line)]) + line)
                answer = b""
                with anyio.fail_after(5):
                    while b"na\n" not in answer and b"plaintext" not in answer:
                        answer += await sock.receive()
                assert b"na\n" in answer

    trio.run(story)


def test_a_host_accepts_more_connections_in_its_life_than_the_library_has_slots() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(Libp2pHarness().start("a"))
            b = await stack.enter_async_context(Libp2pHarness().start("b"))
            place, _ = split_address(b.addresses[0])
            host = a._host  # type: ignore[attr-defined]
            for _ in range(260):
                await host.dial(b.peer_id, place)
                host.disconnect(b.peer_id)
                await wait_until(lambda: not host.is_connected(b.peer_id), "the connection is gone")
            b.serve(NAMESPACE, echo)
            stream = await a.connect(NAMESPACE, addresses=b.addresses)
            stream.send(b"still open")
            assert await receive_count(stream, 1) == [b"still open"]

    trio.run(story)


def test_connecting_does_not_wait_for_a_timer_of_the_library() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(Libp2pHarness().start("a"))
            times = []
            for name in "bcd":
                node = await stack.enter_async_context(Libp2pHarness().start(name))
                node.serve(NAMESPACE, echo)
                began = trio.current_time()
                await a.connect(NAMESPACE, addresses=node.addresses)
                times.append(trio.current_time() - began)
            assert min(times) < 0.2

    trio.run(story)


def test_a_mute_listener_costs_two_seconds_and_a_dead_address_before_the_right_one_little() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(Libp2pHarness().start("a"))
            b = await stack.enter_async_context(Libp2pHarness().start("b"))
            b.serve(NAMESPACE, echo)
            with socket.create_server(("127.0.0.1", 0)) as mute:
                deaf = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{b.peer_id}"
                began = trio.current_time()
                with pytest.raises(PeerUnreachable):
                    await a.connect(NAMESPACE, addresses=[deaf])
                assert trio.current_time() - began < 3.0
                began = trio.current_time()
                await a.connect(NAMESPACE, addresses=[deaf, *b.addresses])
                assert trio.current_time() - began < 1.5

    trio.run(story)


def test_a_refused_port_is_tried_again_as_soon_as_somebody_listens() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(Libp2pHarness().start("a"))
            async with Libp2pHarness().start("b") as b:
                addresses = b.addresses
            for _ in range(5):
                with pytest.raises(PeerUnreachable):
                    await a.connect(NAMESPACE, addresses=addresses)
            place, _ = split_address(addresses[0])
            again = Libp2pTransport(private_key("b"), random=Random(1), listen=[place])
            b = await stack.enter_async_context(again)
            b.serve(NAMESPACE, echo)
            await a.connect(NAMESPACE, addresses=addresses)

    trio.run(story)


def test_cancelled_connects_leave_other_streams_sound() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await start_pair(Libp2pHarness(lane=False), stack)
            pair.b.serve(NAMESPACE, echo)
            stream = await pair.a.connect(NAMESPACE, peer_id=pair.b.peer_id)
            for number in range(60):
                with anyio.move_on_after(0.0002 * (number % 20)):
                    doomed = await pair.a.connect(NAMESPACE, peer_id=pair.b.peer_id)
                    await doomed.aclose()
                stream.send(b"%d" % number)
                assert await receive_count(stream, 1) == [b"%d" % number]
            assert pair.sink_a.closed == []

    trio.run(story)


def test_nobody_is_dialled_on_the_librarys_own_account() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            a, b, c = [await stack.enter_async_context(Libp2pHarness().start(name)) for name in "abc"]
            for left, right in ((a, b), (b, c)):
                right.serve(NAMESPACE, echo)
                await left.connect(NAMESPACE, addresses=right.addresses)
            for node in (a, b, c):
                connector = node.library_host.get_network().auto_connector  # type: ignore[attr-defined]
                assert not connector._started
            assert a.connected_peers() == [b.peer_id]

    trio.run(story)


def test_small_frames_are_not_answered_with_frames_and_large_ones_get_their_credit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library sends a window update for every read: each frame would cost two."""
    credit: list[int] = []
    send_window_update = YamuxStream.send_window_update

    async def counted(stream: YamuxStream, increment: int, skip_lock: bool = False) -> None:
        credit.append(increment)
        await send_window_update(stream, increment, skip_lock)

    monkeypatch.setattr(YamuxStream, "send_window_update", counted)

    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await start_pair(Libp2pHarness(lane=False), stack)
            credit.clear()  # the greetings'
            for number in range(100):
                pair.channel_a.send(pair.b.peer_id, b"%d" % number)
                await pair.sink_b.until(lambda: len(pair.sink_b.frames) > number, "it arrives")  # noqa: B023  # at once
            assert credit == []
            for _ in range(100):  # more than the largest window that the library grows to
                while not pair.channel_a.send(pair.b.peer_id, bytes(256 << 10)):
                    await trio.sleep(0.01)
            await pair.sink_b.until(lambda: len(pair.sink_b.frames) == 200, "all of it arrives")
            assert credit
            assert min(credit) >= 128 << 10

    trio.run(story)


def test_a_frame_leaves_in_the_turn_that_sent_it_and_without_the_librarys_inside_all_goes_by_its_face(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A leader's frames must be gone before it turns to its disk. Another muxer than the one that is known is no error."""
    at_once: list[bytes] = []
    send_now = GuardedStream.send_now

    def counted(stream: GuardedStream, data: bytes) -> None:
        at_once.append(data)
        send_now(stream, data)

    monkeypatch.setattr(GuardedStream, "send_now", counted)

    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await start_pair(Libp2pHarness(lane=False), stack)
            await trio.testing.wait_all_tasks_blocked()
            at_once.clear()
            pair.channel_a.send(pair.b.peer_id, b"one")
            pair.channel_a.send(pair.b.peer_id, b"two")
            pair.channel_a.flush()
            assert len(at_once) == 1, "both in one write, and nothing was awaited"
            await pair.sink_b.until(lambda: pair.sink_b.of(pair.a.peer_id) == [b"one", b"two"], "they arrive")
        monkeypatch.setattr(muxed, "YamuxStream", Pair)
        async with AsyncExitStack() as stack:
            pair = await start_pair(Libp2pHarness(lane=False), stack)
            at_once.clear()
            for number in range(50):
                pair.channel_a.send(pair.b.peer_id, b"%d" % number)
            await pair.sink_b.until(lambda: len(pair.sink_b.frames) == 50, "they arrive")
            assert at_once == []

    trio.run(story)


def test_the_librarys_warnings_do_not_reach_standard_error() -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("libp2p").handlers)


def test_only_the_transport_itself_imports_the_library() -> None:
    modules = ["transport", "memory", "frames", "inbox", "lane", "local_socket", "secure_frames"]
    imports = "; ".join(f"import tauraft.transport.{module}" for module in modules)
    subprocess.run([sys.executable, "-c", f"{imports}; import sys; assert 'libp2p' not in sys.modules"], check=True)
