"""Clients over message streams: frames instead of objects, several replicas' addresses, a leader to follow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from tauraft import errors
from tauraft.client import Connector
from tauraft.command_protocol import Hello, encode
from tauraft.command_service import CommandService
from tauraft.node.replica import LeaderInfo
from tauraft.payloads import encode_message
from tauraft.remote import AddressHost
from tauraft.session import Session, State
from tauraft.transport.memory import MemoryNetwork
from tauraft.transport.transport import MessageStream, StreamClosed
from tests.session.memory_replica import Add, MemoryReplica, S, Take, clock

NAMESPACE = "/raft/test"


class Net:
    def __init__(self) -> None:
        self.random = Random(3)
        self.network = MemoryNetwork(self.random)
        self.replica = MemoryReplica()
        self.services: dict[str, CommandService] = {}


def session_of(net: Net, ttl_s: float = 10) -> Callable[[Callable[[], None]], Session]:
    return lambda reschedule: Session(
        ttl_ns=int(ttl_s * S), clock=clock, random_bytes=net.random.randbytes, reschedule=reschedule
    )


@asynccontextmanager
async def nodes(*names: str) -> AsyncIterator[Net]:
    """Command services at several addresses, in front of one replica."""
    net = Net()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(net.replica.run)
        for name in names:
            await nursery.start(_serve, net, name)
        yield net
        nursery.cancel_scope.cancel()


async def _serve(net: Net, name: str, task_status: Any) -> None:
    service = net.services[name] = CommandService(net.replica, clock)

    async def handle(stream: MessageStream) -> None:
        await service.serve_stream(stream)

    async with net.network.transport(name) as transport, trio.open_nursery() as nursery:
        transport.serve(NAMESPACE, handle)
        nursery.start_soon(service.run)
        task_status.started()


@asynccontextmanager
async def client(net: Net, *addresses: str) -> AsyncIterator[Connector]:
    async with net.network.transport("client") as transport, trio.open_nursery() as nursery:
        host = AddressHost(transport, NAMESPACE, addresses, Random(0))
        connector = Connector(
            host.dialer, make_session=session_of(net), clock=clock, random=net.random, hello=Hello(1, "t", "h", 1)
        )
        nursery.start_soon(connector.run)
        yield connector
        nursery.cancel_scope.cancel()


async def answer(connector: Connector, command: Any, timeout_s: float = 10) -> bytes:
    ended = trio.Event()
    told: list[Any] = []

    def done(data: bytes | None, error: BaseException | None) -> None:
        told.extend((data, error))
        ended.set()

    connector.session.submit(
        encode_message(command), None, waits=None, timeout_ns=None, plain_timeout_ns=int(timeout_s * S), done=done
    )
    await ended.wait()
    if told[1] is not None:
        raise told[1]
    return bytes(told[0])


def run(story: Callable[[], Any]) -> None:
    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_client_finds_a_replica_that_answers_and_another_when_that_one_dies() -> None:
    async def story() -> None:
        async with nodes("A", "B") as net, client(net, "/memory/nobody", "/memory/A", "/memory/B") as connector:
            assert await answer(connector, Add("a")) == b"\x01"
            used = connector.session.replica
            assert used in ("A", "B")
            net.network.stop(used)
            assert await answer(connector, Add("a")) == b"\x02"
            assert connector.session.replica not in ("", used)
            assert connector.session.state is State.OPEN

    run(story)


def test_a_client_moves_to_the_leader_without_losing_a_command() -> None:
    async def story() -> None:
        async with nodes("A", "B") as net, client(net, "/memory/A") as connector:
            assert await answer(connector, Add("a")) == b"\x01"
            net.replica.leader = LeaderInfo("B", ("/memory/B",))
            for service in net.services.values():
                service.leader_changed(net.replica.leader)
            for expected in (b"\x02", b"\x03"):
                assert await answer(connector, Add("a")) == expected
            with trio.fail_after(5):
                while connector.session.replica != "B":
                    await trio.sleep(0.05)
            assert await answer(connector, Add("a")) == b"\x04"

    run(story)


def test_a_malformed_frame_ends_that_link_only() -> None:
    async def story() -> None:
        async with nodes("A") as net, client(net, "/memory/A") as connector:
            assert await answer(connector, Add("a")) == b"\x01"
            async with net.network.transport("stranger") as transport:
                stream = await transport.connect(NAMESPACE, addresses=["/memory/A"])
                stream.send(b"\xff garbage")
                with pytest.raises(StreamClosed), trio.fail_after(10):
                    while True:
                        await stream.receive()
            assert await answer(connector, Add("a")) == b"\x02"

    run(story)


def test_another_protocol_version_is_refused() -> None:
    async def story() -> None:
        async with nodes("A") as net, net.network.transport("old") as transport:
            stream = await transport.connect(NAMESPACE, addresses=["/memory/A"])
            stream.send(encode(Hello(99, "", "", 0)))
            with pytest.raises(StreamClosed), trio.fail_after(10):
                while True:
                    await stream.receive()

    run(story)


def test_a_local_client_that_was_killed_loses_its_locks_at_once() -> None:
    """Real time: the death of a real process is seen by the kernel's word, not by a time-out."""

    class Local:
        """A stream of this host, whose other end is ``pid``."""

        peer_id, is_local = "A", True

        def __init__(self, inner: MessageStream) -> None:
            self._inner = inner

        def send(self, frame: bytes) -> None:
            self._inner.send(frame)

        async def receive(self) -> list[bytes]:
            return await self._inner.receive()

        async def aclose(self) -> None:
            await self._inner.aclose()

    async def story() -> None:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        try:
            net = Net()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(net.replica.run)
                service = CommandService(net.replica, clock)
                nursery.start_soon(service.run)

                async def handle(stream: MessageStream) -> None:
                    await service.serve_stream(Local(stream), pid=process.pid)

                async with net.network.transport("A") as transport:
                    transport.serve(NAMESPACE, handle)
                    async with client(net, "/memory/A") as connector:
                        await answer(connector, Take("lock"))
                        assert net.replica.held
                    await trio.sleep(0.05)
                    assert net.replica.held, "the link ended, but its process lives"
                    process.kill()
                    with trio.fail_after(2):
                        while net.replica.held:
                            await trio.sleep(0.005)
                nursery.cancel_scope.cancel()
        finally:
            process.kill()
            process.wait()

    if not hasattr(os, "pidfd_open"):
        pytest.fail("this system has no pidfd: the ttl decides there, and this test does not apply")
    trio.run(story)


def test_no_address_that_answers_is_unavailable_and_certain() -> None:
    async def story() -> None:
        async with nodes("A") as net, client(net, "/memory/nobody") as connector:
            with pytest.raises(errors.Unavailable) as caught:
                await answer(connector, Add("a"), timeout_s=3)
            assert caught.value.outcome == "not-applied"

    run(story)
