"""The direct lane: who may open one, what ends one, and that frames keep their order when they change over."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from tauraft.testing.transport_suite import NAMESPACE, Pair, start_pair, wait_until
from tauraft.transport import lane as lanes
from tauraft.transport.lane import LaneNumber, LaneRefused, ReceivingLane, SendingLane, dial_lane
from tauraft.transport.transport import PING_INTERVAL_S, SILENCE_S
from tests.transport.harnesses import Libp2pHarness

KEY = bytes(range(32))


async def pair_with_lanes(stack: AsyncExitStack, harness: Libp2pHarness | None = None) -> Pair:
    pair = await start_pair(harness or Libp2pHarness(), stack)
    await wait_until(lambda: pair.channel_a.lane_is_up(pair.b.peer_id), "a's lane opens")
    await wait_until(lambda: pair.channel_b.lane_is_up(pair.a.peer_id), "b's lane opens")
    return pair


def linked(key: bytes = KEY, other_key: bytes = KEY, rekey_after: int = 1 << 31) -> tuple[SendingLane, ReceivingLane]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    return SendingLane(left, key, rekey_after), ReceivingLane(right, "peer", LaneNumber(), other_key, rekey_after)


def test_members_open_lanes_and_frames_go_by_them() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await pair_with_lanes(stack)
            assert pair.channel_a.send(pair.b.peer_id, b"by lane")
            pair.channel_a.flush()
            await pair.sink_b.until(lambda: pair.sink_b.of(pair.a.peer_id) == [b"by lane"], "it arrives")

    trio.run(story)


def test_what_is_sent_in_one_turn_goes_in_one_record_without_an_explicit_flush() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await pair_with_lanes(stack)
            calls: list[int] = []
            deliver = pair.sink_b.frames_received
            pair.sink_b.frames_received = lambda sender, frames: (calls.append(len(frames)), deliver(sender, frames))  # type: ignore[method-assign, assignment, func-returns-value]
            for number in range(50):
                assert pair.channel_a.send(pair.b.peer_id, b"%d" % number)
            await pair.sink_b.until(lambda: len(pair.sink_b.frames) == 50, "they arrive")
            assert calls == [50]

    trio.run(story)


def test_frames_keep_their_order_while_lanes_come_and_go() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await start_pair(Libp2pHarness(), stack)  # the lane opens while frames flow
            link = pair.channel_a._links[pair.b.peer_id]  # type: ignore[attr-defined]
            number = 0
            for _ in range(4):
                for _ in range(400):
                    pair.channel_a.send(pair.b.peer_id, number.to_bytes(4, "big") + bytes(300))
                    number += 1
                    if number % 7 == 0:
                        await anyio.lowlevel.checkpoint()
                await wait_until(lambda: link.lane_is_up, "the lane opens again")
                for _ in range(400):
                    pair.channel_a.send(pair.b.peer_id, number.to_bytes(4, "big") + bytes(300))
                    number += 1
                    if number % 7 == 0:
                        await anyio.lowlevel.checkpoint()
                link.end_lane("cut in the test")
            await wait_until(lambda: link.lane_is_up, "the lane opens again")
            assert pair.channel_a.send(pair.b.peer_id, number.to_bytes(4, "big"))
            await pair.sink_b.until(lambda: pair.sink_b.frames[-1][1] == number.to_bytes(4, "big"), "the last arrives")
            seen = [int.from_bytes(frame[:4], "big") for frame in pair.sink_b.of(pair.a.peer_id)]
            assert seen == sorted(set(seen)), "reordered, or delivered twice"
            assert len(seen) > number * 0.5
            assert pair.sink_b.closed == [], "a lane that ends beside a live stream is no sign of death"

    trio.run(story)


def test_a_lane_goes_on_when_its_stream_breaks_and_order_is_kept() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await pair_with_lanes(stack)
            pair.a._host.disconnect(pair.b.peer_id)  # type: ignore[attr-defined]
            for number in range(100):
                assert pair.channel_a.send(pair.b.peer_id, b"%d" % number)
            await pair.sink_b.until(lambda: len(pair.sink_b.frames) == 100, "frames go by lane")
            assert pair.sink_b.of(pair.a.peer_id) == [b"%d" % number for number in range(100)]
            assert pair.sink_b.closed == []

    trio.run(story)


def test_another_cluster_of_the_same_name_gets_no_lane() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await pair_with_lanes(stack)
            pair.channel_a.set_context(b"another cluster!")
            with pytest.raises(LaneRefused):
                await dial(pair, b"another cluster!")
            assert not pair.channel_a.lane_is_up(pair.b.peer_id)
            assert pair.channel_a.send(pair.b.peer_id, b"by stream")  # the node itself drops what names another cluster
            await pair.sink_b.until(lambda: pair.sink_b.of(pair.a.peer_id) == [b"by stream"], "the stream carries it")

    trio.run(story)


def test_only_members_open_lanes() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await pair_with_lanes(stack)
            pair.channel_b.set_members({})
            await wait_until(lambda: not pair.channel_a.lane_is_up(pair.b.peer_id), "b closes the lane")
            with pytest.raises(LaneRefused):
                await dial(pair, b"0123456789abcdef")

    trio.run(story)


def test_another_peer_at_the_lane_is_refused() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await pair_with_lanes(stack)
            c = await stack.enter_async_context(Libp2pHarness().start("c"))
            with pytest.raises(LaneRefused):
                await dial(pair, b"0123456789abcdef", peer_id=c.peer_id)

    trio.run(story)


def test_handshakes_at_once_are_bounded_and_slow_ones_end() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await pair_with_lanes(stack)
            port = lane_port(pair)
            mute = [socket.create_connection(("127.0.0.1", port)) for _ in range(lanes.MAX_HANDSHAKES)]
            listener = pair.b._lane_listener  # type: ignore[attr-defined]
            await wait_until(lambda: listener.handshakes == lanes.MAX_HANDSHAKES, "all are waited for")
            one_more = socket.create_connection(("127.0.0.1", port))
            one_more.setblocking(False)
            await anyio.wait_readable(one_more)
            assert one_more.recv(1) == b""
            assert listener.handshakes == lanes.MAX_HANDSHAKES, "turned away, not given up with the others"
            await wait_until(lambda: listener.handshakes == 0, "they are given up")
            for sock in (*mute, one_more):
                sock.close()

    trio.run(story)


def test_both_ends_change_keys_before_the_limit() -> None:
    async def story() -> None:
        sending, receiving = linked(rekey_after=3)
        received: list[bytes] = []
        done = anyio.Event()

        def take(frames: list[bytes]) -> None:
            received.extend(frames)
            if len(received) == 50:
                done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receiving.run, take)
            for number in range(50):
                sending.add(b"%d" % number)
                sending.flush()
            with anyio.fail_after(5):
                await done.wait()
            tasks.cancel_scope.cancel()
        sending.end("done")
        assert received == [b"%d" % number for number in range(50)]

    trio.run(story)


@pytest.mark.parametrize("harm", ["flip", "replay", "leave out", "cut off", "wrong key"])
def test_a_record_that_was_tampered_with_ends_the_lane(harm: str) -> None:
    async def story() -> None:
        from tauraft.transport.secure_frames import RecordSealer

        left, right = socket.socketpair()
        right.setblocking(False)
        sealer = RecordSealer(KEY if harm != "wrong key" else bytes(32))
        first, second, third = (sealer.seal(b"\0\0\0\1" + letter) for letter in (b"a", b"b", b"c"))
        sent = {
            "flip": first + second[:-1] + bytes([second[-1] ^ 1]) + third,
            "replay": first + first + second,
            "leave out": first + third,
            "cut off": first + second[:-5],
            "wrong key": first,
        }[harm]
        left.sendall(sent)
        left.close()
        received: list[bytes] = []
        receiving = ReceivingLane(right, "peer", LaneNumber(), KEY)
        with anyio.fail_after(5):
            await receiving.run(received.extend)
        assert received in ([b"a"], [])
        assert receiving.has_ended

    trio.run(story)


def test_a_peer_that_does_not_read_fills_the_queue_and_ends_the_lane() -> None:
    async def story() -> None:
        sending, receiving = linked()
        while sending.add(bytes(100_000)):
            sending.flush()
        with anyio.fail_after(10):
            reason = await sending.run()
        assert "took nothing" in reason
        receiving.end("done")

    trio.run(story)


BEATS_OF_SILENCE = int(SILENCE_S / PING_INTERVAL_S)


async def beat(lane: SendingLane | ReceivingLane, times: int) -> None:
    for _ in range(times):
        lane.beat()
        await trio.testing.wait_all_tasks_blocked()


def test_a_lane_whose_peer_is_silent_ends_and_pings_keep_it() -> None:
    async def story() -> None:
        sending, receiving = linked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiving.run, lambda frames: None)
            for _ in range(3 * BEATS_OF_SILENCE):
                await beat(sending, 1)
                await beat(receiving, 1)
            await beat(receiving, BEATS_OF_SILENCE - 1)
            assert not receiving.has_ended, "a ping came within that time"
            await beat(receiving, 1)
            assert receiving.has_ended
        sending.end("done")

    trio.run(story)


def test_a_ping_is_sent_only_where_nothing_else_was() -> None:
    async def story() -> None:
        left, right = socket.socketpair()
        left.setblocking(False)
        right.setblocking(False)
        sending = SendingLane(left, KEY)
        sending.add(b"frame")
        sending.flush()
        assert right.recv(1_000)
        sending.beat()
        with pytest.raises(BlockingIOError):
            right.recv(1_000)
        sending.beat()
        assert right.recv(1_000)
        sending.end("done")
        sending.beat()
        right.close()

    trio.run(story)


def test_a_lane_that_waits_for_the_change_over_is_not_given_up_as_silent() -> None:
    async def story() -> None:
        sending, receiving = linked()
        await beat(receiving, 2 * BEATS_OF_SILENCE)
        assert not receiving.has_ended
        sending.end("done")
        receiving.end("done")

    trio.run(story)


def test_all_lanes_of_a_transport_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft.transport.libp2p.transport.PING_INTERVAL_S", 0.02)

    async def story() -> None:
        async with AsyncExitStack() as stack:
            pair = await pair_with_lanes(stack)
            lanes_in = [
                pair.channel_a._incoming[pair.b.peer_id]._lane,  # type: ignore[attr-defined]
                pair.channel_b._incoming[pair.a.peer_id]._lane,  # type: ignore[attr-defined]
            ]
            await trio.sleep(0.02 * 4 * BEATS_OF_SILENCE)
            assert not any(lane.has_ended for lane in lanes_in), "pings keep them"
            with monkeypatch.context() as patch:
                patch.setattr(SendingLane, "beat", lambda lane: None)
                await wait_until(lambda: all(lane.has_ended for lane in lanes_in), "both notice the silence")

    trio.run(story)


def test_a_large_frame_is_sent_while_the_kernel_takes_a_little_at_a_time() -> None:
    async def story() -> None:
        sending, receiving = linked()
        frames = [bytes([number]) * 1_000_000 for number in range(10)]
        received: list[bytes] = []

        async with anyio.create_task_group() as tasks:

            def take(arrived: list[bytes]) -> None:
                received.extend(arrived)
                if len(received) == len(frames):
                    tasks.cancel_scope.cancel()

            tasks.start_soon(receiving.run, take)
            tasks.start_soon(sending.run)
            for frame in frames:
                assert sending.add(frame)
                sending.flush()
        assert received == frames

    trio.run(story)


async def dial(pair: Pair, cluster_id: bytes, peer_id: str | None = None) -> Any:
    """As a would, at b's lane port."""
    return await dial_lane(
        pair.a._identity,  # type: ignore[attr-defined]
        peer_id or pair.b.peer_id,
        ("127.0.0.1", lane_port(pair)),
        NAMESPACE,
        cluster_id,
        LaneNumber(1, 1),
    )


def lane_port(pair: Pair) -> int:
    port = pair.b.lane_port("127.0.0.1")  # type: ignore[attr-defined]
    assert isinstance(port, int)
    return port
