"""Round trips of 200 bytes: plain trio TCP, a stream of the bare library, our channel on such a stream and by its lane, a Unix socket.

    python benchmarks/lane_rtt.py [round trips a run]

Both ends in processes of their own, three interleaved runs, medians. What to look at is the ratio to plain TCP: the lane
should be near 1, the stream about 4, the library 6 to 7, the Unix socket below 1.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from random import Random
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL, Transport as NoiseTransport
from multiaddr import Multiaddr

from tauraft.transport.libp2p.transport import Libp2pTransport
from tauraft.transport.local_socket import LocalSocketServer, LocalStream, connect_local
from tauraft.transport.transport import Channel

NAMESPACE = "/raft/rtt"
ECHO = TProtocol("/echo")
CLUSTER_ID = bytes(16)
MESSAGE = bytes(200)
RUNS = 3


class Sink:
    """Answers at once in the echoing process; in the asking one, wakes whoever waits."""

    def __init__(self, echoes: bool) -> None:
        self.channel: Channel
        self._echoes = echoes
        self._arrived = trio.Event()

    def frames_received(self, sender: str, frames: Sequence[bytes]) -> None:
        if self._echoes:
            for frame in frames:
                self.channel.send(sender, frame)
            self.channel.flush()
        else:
            self._arrived.set()

    def peer_closed(self, peer_id: str) -> None:
        return None

    async def round_trip(self, peer_id: str) -> None:
        self._arrived = trio.Event()
        self.channel.send(peer_id, MESSAGE)
        self.channel.flush()
        await self._arrived.wait()


def node(name: str, *, lanes: bool) -> Libp2pTransport:
    return Libp2pTransport(sha256(name.encode()).digest(), random=Random(name), lanes=lanes)


def bare_host(name: str) -> Any:
    """The library as it is: TCP, Noise, Yamux."""
    keys = create_new_key_pair(sha256(name.encode()).digest())
    noise = NoiseTransport(keys, noise_privkey=x25519_key_pair().private_key)
    return new_host(key_pair=keys, sec_opt={TProtocol(NOISE_PROTOCOL): noise})


async def serve(kind: str, where: str) -> None:
    """The echoing process: prints where it is, and runs until its input ends."""
    if kind == "tcp":
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def echo(stream: trio.SocketStream) -> None:
            stream.setsockopt(6, 1, 1)  # TCP_NODELAY
            while data := await stream.receive_some():
                await stream.send_all(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, listeners)
            print(listeners[0].socket.getsockname()[1], flush=True)
            await until_input_ends(nursery)
    elif kind == "unix":

        async def echo_frames(stream: LocalStream, namespace: str) -> None:
            while True:
                for frame in await stream.receive():
                    stream.send(frame)

        server = LocalSocketServer(where, "peer")
        server.serve(NAMESPACE, echo_frames)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: server.run(task_status=task_status))
            print(where, flush=True)
            await until_input_ends(nursery)
    elif kind == "libp2p":

        async def echo_stream(stream: Any) -> None:
            while data := await stream.read(1 << 16):
                await stream.write(data)

        host = bare_host("echo")
        host.set_stream_handler(ECHO, echo_stream)
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), trio.open_nursery() as nursery:
            print(host.get_addrs()[0], flush=True)
            await until_input_ends(nursery)
    else:
        async with node("echo", lanes=kind == "lane") as transport, trio.open_nursery() as nursery:
            sink = Sink(echoes=True)
            sink.channel = transport.open_channel(NAMESPACE, sink)
            sink.channel.set_context(CLUSTER_ID)
            async with node("ask", lanes=False) as asker:
                sink.channel.set_members({asker.peer_id: []})
            print(transport.addresses[0], flush=True)
            await until_input_ends(nursery)


async def until_input_ends(nursery: trio.Nursery) -> None:
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        while await stdin.receive_some():
            pass
    nursery.cancel_scope.cancel()


@asynccontextmanager
async def asking(kind: str, where: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """One round trip, as a function."""
    if kind == "tcp":
        stream = await trio.open_tcp_stream("127.0.0.1", int(where))

        async def by_tcp() -> None:
            await stream.send_all(MESSAGE)
            size = 0
            while size < len(MESSAGE):
                size += len(await stream.receive_some())

        yield by_tcp
        await stream.aclose()
    elif kind == "unix":
        async with trio.open_nursery() as nursery:
            local = await connect_local(where, NAMESPACE, nursery)  # type: ignore[arg-type]  # a nursery has start_soon

            async def by_socket() -> None:
                local.send(MESSAGE)
                await local.receive()

            yield by_socket
            await local.aclose()
    elif kind == "libp2p":
        host = bare_host("ask")
        async with host.run([]):
            info = info_from_p2p_addr(Multiaddr(where))
            await host.connect(info)
            muxed = await host.new_stream(info.peer_id, [ECHO])

            async def by_library() -> None:
                await muxed.write(MESSAGE)
                size = 0
                while size < len(MESSAGE):
                    size += len(await muxed.read(1 << 16))

            yield by_library
            await muxed.reset()
    else:
        async with node("ask", lanes=kind == "lane") as transport:
            sink = Sink(echoes=False)
            sink.channel = transport.open_channel(NAMESPACE, sink)
            peer_id = where.rpartition("/")[2]
            sink.channel.set_context(CLUSTER_ID)
            sink.channel.set_members({peer_id: [where]})
            while not sink.channel.is_connected(peer_id):
                await trio.sleep(0.01)
            await sink.round_trip(peer_id)
            with trio.move_on_after(5):
                while kind == "lane" and not sink.channel.lane_is_up(peer_id):
                    await trio.sleep(0.01)
            # The way back changes over by itself.
            for _ in range(20):
                await sink.round_trip(peer_id)
                await trio.sleep(0.01)
            if kind == "lane":
                assert sink.channel.lane_is_up(peer_id)
            yield lambda: sink.round_trip(peer_id)


async def measure(kind: str, where: str, count: int) -> tuple[float, float]:
    """Median and 99th percentile in microseconds."""
    times = []
    async with asking(kind, where) as round_trip:
        for _ in range(200):
            await round_trip()
        for _ in range(count):
            began = time.perf_counter_ns()
            await round_trip()
            times.append((time.perf_counter_ns() - began) / 1000)
    times.sort()
    return statistics.median(times), times[int(len(times) * 0.99)]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    kinds = ["tcp", "libp2p", "stream", "lane", "unix"]
    results: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(RUNS):
            for kind in kinds:
                command = [sys.executable, __file__, "serve", kind, os.path.join(directory, "socket")]
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                    assert process.stdout is not None
                    assert process.stdin is not None
                    where = process.stdout.readline().strip()
                    results[kind].append(trio.run(measure, kind, where, count))
                    process.stdin.close()
                    process.wait(10)
    base = statistics.median(p50 for p50, _ in results["tcp"])
    print(f"{'':8} {'p50 us':>8} {'p99 us':>8} {'x TCP':>6}")
    for kind in kinds:
        p50 = statistics.median(p50 for p50, _ in results[kind])
        p99 = statistics.median(p99 for _, p99 in results[kind])
        print(f"{kind:8} {p50:8.0f} {p99:8.0f} {p50 / base:6.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        trio.run(serve, sys.argv[2], sys.argv[3])
    else:
        main()
