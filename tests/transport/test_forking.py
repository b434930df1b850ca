"""What a forked child inherits of our connections: nothing (SAFETY 6)."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import trio

from tauraft.transport.local_socket import connect_local
from tests.transport.test_local_socket import NAMESPACE, served


def open_sockets() -> set[int]:
    found = set()
    for descriptor in range(256):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found.add(descriptor)
    return found


def kept_by_a_child(ours: set[int]) -> int:
    """How many of ``ours`` are still open in a child of fork."""
    child = os.fork()
    if child == 0:
        os._exit(len(ours & open_sockets()))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_keeps_no_local_socket_and_the_parent_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        before = open_sockets()
        async with served(tmp_path) as (path, tasks):
            stream = await connect_local(path, NAMESPACE, tasks)
            ours = open_sockets() - before
            assert len(ours) == 3, "the listener and both ends"
            assert kept_by_a_child(ours) == 0
            stream.send(b"still here")
            assert await stream.receive() == [b"still here"]
            await stream.aclose()

    trio.run(story)


@pytest.mark.middle
def test_a_child_keeps_no_connection_over_libp2p(tmp_path: Path) -> None:
    from tauraft.transport.libp2p.transport import Libp2pTransport

    async def story() -> None:
        before = open_sockets()
        random = Random(1)
        listen = ("/ip4/127.0.0.1/tcp/0",)
        async with (
            Libp2pTransport(bytes([1]) * 32, random=random, listen=listen) as one,
            Libp2pTransport(bytes([2]) * 32, random=random, listen=listen) as other,
        ):

            async def echo(stream: object) -> None:
                while True:
                    for frame in await stream.receive():  # type: ignore[attr-defined]
                        stream.send(frame)  # type: ignore[attr-defined]

            other.serve(NAMESPACE, echo)
            stream = await one.connect(NAMESPACE, addresses=other.addresses)
            ours = open_sockets() - before
            assert len(ours) >= 4
            assert kept_by_a_child(ours) == 0
            stream.send(b"still here")
            assert await stream.receive() == [b"still here"]
            await stream.aclose()

    trio.run(story)
