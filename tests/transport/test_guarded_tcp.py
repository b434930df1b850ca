"""The raw connection under the library: whole frames in their order, whatever the socket takes at once and whoever is cancelled."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream

from tauraft.transport.libp2p.guarded_tcp import GuardedStream

MORE_THAN_A_SOCKET_TAKES = 4 << 20


def pair(write_timeout_s: float = 5.0) -> tuple[GuardedStream, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    return GuardedStream(TrioTCPStream(stream), write_timeout_s), theirs


async def take(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        await trio.lowlevel.wait_readable(sock)
        found += sock.recv(1 << 20)
    return found


def test_writes_that_must_wait_keep_their_order_and_stay_whole_when_cancelled() -> None:
    async def story() -> None:
        guarded, theirs = pair()
        with theirs:
            large = bytes(MORE_THAN_A_SOCKET_TAKES)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guarded.write, large)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(guarded.write, b"second")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert await take(theirs, len(large) + 6) == large + b"second"
            await guarded.write(b"third")
            assert await take(theirs, 5) == b"third"
            await guarded.close()

    trio.run(story)


def test_what_is_sent_at_once_goes_before_all_that_is_written_later_also_where_the_socket_takes_a_part() -> None:
    async def story() -> None:
        guarded, theirs = pair()
        with theirs:
            guarded.send_now(b"first")
            assert guarded.is_free and not guarded.has_unsent
            assert theirs.recv(100) == b"first", "nothing was awaited"
            large = bytes(MORE_THAN_A_SOCKET_TAKES)
            guarded.send_now(large)
            assert guarded.has_unsent and not guarded.is_free
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guarded.write, b"second")
                await trio.testing.wait_all_tasks_blocked()
                assert not guarded.is_free, "somebody waits for the socket"
                assert await take(theirs, len(large) + 6) == large + b"second"
            assert guarded.is_free
            guarded.close_now()
            assert not guarded.is_free

    trio.run(story)


def test_a_peer_that_takes_nothing_ends_the_connection() -> None:
    async def story() -> None:
        guarded, theirs = pair(write_timeout_s=0.05)
        with theirs:
            with pytest.raises(ConnectionClosedError, match="took nothing for"):
                await guarded.write(bytes(MORE_THAN_A_SOCKET_TAKES))
            with pytest.raises(ConnectionClosedError):
                await guarded.write(b"more")

    trio.run(story)


def test_small_reads_of_what_arrived_together_and_a_read_that_waits() -> None:
    async def story() -> None:
        guarded, theirs = pair()
        with theirs:
            theirs.send(b"0123456789")
            assert [await guarded.read(2), await guarded.read(3), await guarded.read(None)] == [b"01", b"234", b"56789"]
            with trio.move_on_after(0.01) as limit:
                await guarded.read(2)
            assert limit.cancelled_caught
            theirs.send(b"abc")
            assert await guarded.read(2) == b"ab"
            assert await guarded.read(100_000) == b"c"
            theirs.close()
            assert await guarded.read(2) == b""
            await guarded.close()

    trio.run(story)


def test_closing_it_here_ends_a_read_and_a_broken_one_says_so() -> None:
    async def story() -> None:
        guarded, theirs = pair()
        with theirs:
            found: list[bytes] = []

            async def read() -> None:
                found.append(await guarded.read(2))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                guarded.close_now()
            assert found == [b""]
            assert await guarded.read(2) == b""
        guarded, theirs = pair()
        theirs.close()
        with pytest.raises(ConnectionClosedError, match="the connection broke"):
            await guarded.write(b"x")
        await guarded.close()

    trio.run(story)
