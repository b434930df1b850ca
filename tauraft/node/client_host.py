"""The way of a pure client to a cluster: the node of this host through its socket, or members at addresses over libp2p."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import trio

from tauraft.client import Dialer, StreamDialer
from tauraft.command_protocol import LeaderIs
from tauraft.config import ClientOptions
from tauraft.engine import Engine
from tauraft.storage.data_dir import default_data_directory
from tauraft.transport.local_socket import connect_local
from tauraft.transport.transport import MessageStream, PeerUnreachable, Transport


class ClientHost:
    """Where a client's links go. It is no node: ``peer_id`` is only how it proves who it is on the network."""

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer
        self.problem: BaseException | None = None


@asynccontextmanager
async def open_host(options: ClientOptions, engine: Engine) -> AsyncIterator[ClientHost]:
    """Raises nothing for a cluster that cannot be reached: the client keeps trying, and says so."""
    if not options.addresses:
        path = os.path.join(options.data_dir or default_data_directory(options.namespace), "socket")
        async with trio.open_nursery() as nursery:

            async def to_this_host(leader: LeaderIs | None) -> MessageStream:
                stream: MessageStream = await connect_local(path, options.namespace, nursery)  # type: ignore[arg-type]
                return stream

            yield ClientHost(StreamDialer(to_this_host, has_choice=False))
            nursery.cancel_scope.cancel()
        return
    from tauraft.transport.libp2p.transport import Libp2pTransport

    random = Random(os.urandom(16))
    async with Libp2pTransport(
        os.urandom(32), random=random, listen=(), encryption_keys=options.encryption_key, lanes=False
    ) as transport:
        yield ClientHost(StreamDialer(_Members(options, transport, random).open_stream, has_choice=True))


class _Members:
    """The leader where it is known, else any of the addresses given, in a new order each time."""

    def __init__(self, options: ClientOptions, transport: Transport, random: Random) -> None:
        self._options, self._transport, self._random = options, transport, random

    async def open_stream(self, leader: LeaderIs | None) -> MessageStream:
        namespace = self._options.namespace
        if leader is not None and leader.peer_id:
            try:
                return await self._transport.connect(namespace, peer_id=leader.peer_id, addresses=leader.addresses)
            except PeerUnreachable:
                pass  # it may be the one that died: any other will say who leads
        addresses = list(self._options.addresses)
        self._random.shuffle(addresses)
        return await self._transport.connect(namespace, addresses=addresses)
