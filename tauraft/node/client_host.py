"""The way of a pure client to a cluster: the node of this host through its socket, or members at addresses over libp2p."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import trio

from tauraft.caller import Host
from tauraft.client import Dialer, StreamDialer
from tauraft.command_protocol import LeaderIs
from tauraft.config import ClientOptions
from tauraft.engine import Engine
from tauraft.remote import AddressHost
from tauraft.storage.data_dir import default_data_directory, trouble_with_holder
from tauraft.transport.local_socket import connect_local
from tauraft.transport.transport import MessageStream


class SocketHost:
    """The node of this host, at the socket in its directory."""

    problem: BaseException | None = None

    def __init__(self, directory: str, namespace: str, nursery: trio.Nursery) -> None:
        self._directory = directory

        async def open_stream(leader: LeaderIs | None) -> MessageStream:
            path = os.path.join(directory, "socket")
            return await connect_local(path, namespace, nursery)  # type: ignore[arg-type]  # it starts tasks alike

        self._dialer = StreamDialer(open_stream, has_choice=False)

    @property
    def dialer(self) -> Dialer:
        return self._dialer

    @property
    def trouble(self) -> str:
        return trouble_with_holder(self._directory)


@asynccontextmanager
async def open_host(options: ClientOptions, engine: Engine) -> AsyncIterator[Host]:
    """A cluster that cannot be reached is no error: the client keeps trying, and says so. Raises ``WrongKey``."""
    if not options.addresses:
        directory = options.data_dir or default_data_directory(options.namespace)
        async with trio.open_nursery() as nursery:
            yield SocketHost(directory, options.namespace, nursery)
            nursery.cancel_scope.cancel()
        return
    # Here, so that the client of this host's node does not load libp2p.
    from tauraft.transport.libp2p.transport import Libp2pTransport

    random = Random(os.urandom(16))
    # It is no node: this identity is only how it proves on the network that its streams are one client's.
    async with Libp2pTransport(
        os.urandom(32), random=random, listen=(), encryption_keys=options.encryption_key, lanes=False
    ) as transport:
        host = AddressHost(transport, options.namespace, options.addresses, random)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.raise_problem)
            yield host
            nursery.cancel_scope.cancel()
