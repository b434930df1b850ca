"""The Unix socket between processes of one host: only the same user, complete, cancellable, long paths too."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import trio

from tauraft.errors import DataDirectoryError
from tauraft.testing.transport_suite import receive_count
from tauraft.transport import local_socket
from tauraft.transport.local_socket import LocalSocketServer, LocalStream, connect_local
from tauraft.transport.transport import MAX_QUEUED_BYTES, PeerUnreachable, StreamClosed, StreamOverloaded

NAMESPACE = "/raft/local"


async def echo(stream: LocalStream, namespace: str) -> None:
    while True:
        for frame in await stream.receive():
            stream.send(frame)


@asynccontextmanager
async def served(
    directory: Path, handler: Callable[[LocalStream, str], Awaitable[None]] = echo
) -> AsyncIterator[tuple[str, anyio.abc.TaskGroup]]:
    directory.chmod(0o700)
    path = str(directory / "socket")
    server = LocalSocketServer(path, "own-peer-id")
    server.serve(NAMESPACE, handler)
    async with anyio.create_task_group() as tasks:
        await tasks.start(server.run)
        yield path, tasks
        tasks.cancel_scope.cancel()


def test_requests_and_answers(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (path, tasks):
            stream = await connect_local(path, NAMESPACE, tasks)
            assert stream.is_local
            assert stream.peer_id == "own-peer-id"
            assert stream.peer_pid == os.getpid()
            frames = [bytes([number % 256]) * number for number in range(500)] + [bytes(8 << 20), b""]
            for frame in frames:
                stream.send(frame)
            assert await receive_count(stream, len(frames)) == frames
            await stream.aclose()

    trio.run(story)


def test_cancelled_receives_lose_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (path, tasks):
            stream = await connect_local(path, NAMESPACE, tasks)
            received: list[bytes] = []
            for number in range(300):
                stream.send(b"%d" % number)
                with anyio.move_on_after(0.0002):
                    received += await stream.receive()
            received += await receive_count(stream, 300 - len(received))
            assert received == [b"%d" % number for number in range(300)]

    trio.run(story)


def test_what_was_sent_before_the_end_arrives(tmp_path: Path) -> None:
    async def leave(stream: LocalStream, namespace: str) -> None:
        for number in range(1000):
            stream.send(b"%d" % number + bytes(1000))

    async def story() -> None:
        async with served(tmp_path, leave) as (path, tasks):
            stream = await connect_local(path, NAMESPACE, tasks)
            assert len(await receive_count(stream, 1000)) == 1000
            with pytest.raises(StreamClosed):
                await stream.receive()

    trio.run(story)


def test_a_path_over_the_kernels_limit(tmp_path: Path) -> None:
    async def story() -> None:
        directory = tmp_path / ("d" * 100) / ("e" * 100)
        directory.mkdir(parents=True)
        async with served(directory) as (path, tasks):
            stream = await connect_local(path, NAMESPACE, tasks)
            stream.send(b"far away")
            assert await receive_count(stream, 1) == [b"far away"]

    trio.run(story)


def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with served(tmp_path) as (path, tasks):
            monkeypatch.setattr(local_socket, "peer_credentials", lambda sock: (os.geteuid() + 1, 1))
            with pytest.raises(PeerUnreachable):
                await connect_local(path, NAMESPACE, tasks)
            raw = socket.socket(socket.AF_UNIX)
            raw.setblocking(False)
            raw.connect(path)
            await anyio.wait_readable(raw)
            assert raw.recv(1) == b""
            raw.close()

    trio.run(story)


def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(DataDirectoryError):
        trio.run(LocalSocketServer(str(tmp_path / "socket"), "own-peer-id").run)


def test_a_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "socket").write_text("not a socket")
    with pytest.raises(OSError, match="in use"):
        trio.run(LocalSocketServer(str(tmp_path / "socket"), "own-peer-id").run)
    assert (tmp_path / "socket").read_text() == "not a socket"


def test_a_socket_left_by_a_dead_process_is_replaced_and_nobody_there_is_said(tmp_path: Path) -> None:
    async def story() -> None:
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(tmp_path / "socket"))
        stale.close()
        async with anyio.create_task_group() as tasks:
            with pytest.raises(PeerUnreachable):
                await connect_local(str(tmp_path / "socket"), NAMESPACE, tasks)
        async with served(tmp_path) as (path, tasks):
            await connect_local(path, NAMESPACE, tasks)
            with pytest.raises(PeerUnreachable, match="does not serve"):
                await connect_local(path, "/raft/other", tasks)

    trio.run(story)


def test_a_reader_that_does_not_read_overloads_only_its_sender(tmp_path: Path) -> None:
    async def never_read(stream: LocalStream, namespace: str) -> None:
        await anyio.sleep_forever()

    async def story() -> None:
        async with served(tmp_path, never_read) as (path, tasks):
            stream = await connect_local(path, NAMESPACE, tasks)

            def send_twice_what_fits() -> None:
                for _ in range(2 * MAX_QUEUED_BYTES // 1_000_000):
                    stream.send(bytes(1_000_000))

            with pytest.raises(StreamOverloaded):
                send_twice_what_fits()

    trio.run(story)
