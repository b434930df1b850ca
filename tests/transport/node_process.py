"""A node in a process of its own, to be killed and stopped: ``python -m tests.transport.node_process NAME CLUSTER_ID``.

Prints its address; then reads lines ``<peer id> <address>`` of members from its standard input, and lives until that ends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from random import Random

import trio

from tauraft.testing.transport_suite import NAMESPACE, echo
from tauraft.transport.libp2p.transport import Libp2pTransport
from tauraft.transport.transport import Channel
from tests.transport.harnesses import private_key


class EchoSink:
    """Sends every frame back."""

    channel: Channel

    def frames_received(self, sender: str, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.channel.send(sender, frame)

    def peer_closed(self, peer_id: str) -> None:
        return None


async def main(name: str, cluster_id: bytes) -> None:
    async with Libp2pTransport(private_key(name), random=Random(name)) as transport:
        sink = EchoSink()
        sink.channel = transport.open_channel(NAMESPACE, sink)
        sink.channel.set_context(cluster_id)
        transport.serve(NAMESPACE, echo)
        print(transport.peer_id, transport.addresses[0], flush=True)
        async with trio.lowlevel.FdStream(sys.stdin.fileno()) as stdin:
            async for line in stdin:
                peer_id, address = line.decode().split()
                sink.channel.set_members({peer_id: [address]})


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2].encode())
