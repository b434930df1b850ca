"""Commands between processes of one host and user: a Unix socket in the node's data directory.

The process that holds the data directory listens (``LocalSocketServer``); the others are its clients
(``connect_local``).  The same ``MessageStream`` as over libp2p at a tenth of the round trip, unencrypted: the directory is
0700, and both ends ask the kernel for the other's user, so only the same user can be there (SAFETY 37).

Lean as the lane: non-blocking socket, the first frame of a turn goes to the kernel inline, the rest of the turn's are
packed by a task, and ``receive`` awaits readiness only, so cancelling it loses nothing.  A process that dies closes
its socket, so there are no pings; one that is stopped keeps it, and ``peer_pid`` says which process that is.

A path over the kernel's limit (107 bytes) is reached through a descriptor of its directory on Linux, elsewhere through
a link in a private directory.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
import sys
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import anyio
import msgpack
from anyio.abc import TaskGroup

from tauraft import errors
from tauraft.errors import DataDirectoryError, TauraftError
from tauraft.transport.forking import keep_from_children
from tauraft.transport.frames import HEADER_BYTES, FrameSplitter, Kind, MalformedStream, gather, packed
from tauraft.transport.lane import close_socket
from tauraft.transport.transport import (
    CONNECT_TIMEOUT_S,
    MAX_QUEUED_BYTES,
    PeerUnreachable,
    StreamClosed,
    StreamOverloaded,
    check_frame,
)

log = logging.getLogger("tauraft.transport.local")

VERSION: Final = 1
MAX_CONNECTIONS: Final = 1024
_MAX_PATH_BYTES: Final = 107 if sys.platform == "linux" else 103
_READ_BYTES: Final = 256 << 10
_WRITES_AT_ONCE: Final = 32
_SERVED: Final = 0
_NOT_SERVED: Final = 1

LocalHandler = Callable[["LocalStream", str], Awaitable[None]]
# What a caller asks for besides the namespace, as plain values; {} for a client that only uses what is there.
Wants = Mapping[str, Any]


class LocalStream:
    """The ``MessageStream`` of a Unix socket. ``peer_pid``: the process at the other end."""

    is_local = True

    def __init__(self, sock: socket.socket, peer_id: str, peer_pid: int) -> None:
        self.peer_id = peer_id
        self.peer_pid = peer_pid
        self._sock = sock
        self._splitter = FrameSplitter()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._unsent: bytes | memoryview = b""
        self._sent_this_turn = False
        self._wake = anyio.Event()
        self._drained = anyio.Event()
        self._end_reason: str | None = None

    def send(self, frame: bytes) -> None:
        check_frame(frame)
        if self._end_reason is not None:
            raise StreamClosed(self._end_reason)
        if self._waiting_bytes + len(frame) + HEADER_BYTES > MAX_QUEUED_BYTES:
            raise StreamOverloaded(f"process {self.peer_pid} does not read: {MAX_QUEUED_BYTES >> 20} MiB wait for it")
        self._queue(packed(frame))

    async def receive(self) -> list[bytes]:
        while True:
            if self._end_reason is not None:
                raise StreamClosed(self._end_reason)
            await wait_ready(anyio.wait_readable, self._sock)
            frames = self._take()
            if frames:
                self._sent_this_turn = False
                return frames

    async def aclose(self) -> None:
        if self._end_reason is None:
            with anyio.move_on_after(CONNECT_TIMEOUT_S, shield=True):
                while (self._waiting or self._unsent) and self._end_reason is None:
                    self._drained = anyio.Event()
                    self._wake.set()
                    await self._drained.wait()
        self.end("the stream was closed here")

    async def run(self) -> None:
        """Its one task, until it ends: sends what did not go inline."""
        try:
            while self._end_reason is None:
                await self._wake.wait()
                self._wake = anyio.Event()
                self._sent_this_turn = False
                while (self._waiting or self._unsent) and self._end_reason is None:
                    if not self._push() and self._end_reason is None:
                        await wait_ready(anyio.wait_writable, self._sock)
                self._drained.set()
        finally:
            self.end("this process closed it")

    def end(self, reason: str) -> None:
        if self._end_reason is None:
            self._end_reason = reason
            self._wake.set()
            self._drained.set()
            close_socket(self._sock)

    # The greeting, before ``run`` is needed: its frames are small, and an empty socket takes them at once.

    def send_hello(self, fields: list[Any]) -> None:
        self._queue(packed(msgpack.packb(fields), Kind.HELLO))

    async def receive_hello(self) -> list[Any]:
        """Raises ``StreamClosed`` or ``MalformedStream``."""
        while not self._splitter.control:
            if self._end_reason is not None:
                raise StreamClosed(self._end_reason)
            await wait_ready(anyio.wait_readable, self._sock)
            if self._take(at_most=4096):
                raise MalformedStream("a frame came before the greeting")
        kind, payload = self._splitter.control.pop(0)
        fields = msgpack.unpackb(payload)
        if kind != Kind.HELLO or not isinstance(fields, list):
            raise MalformedStream("this is no greeting of ours")
        return fields

    def _queue(self, piece: bytes) -> None:
        self._waiting.append(piece)
        self._waiting_bytes += len(piece)
        if not self._sent_this_turn:
            # The first after a receive is likely the only one: it goes now. What follows it in the same turn goes
            # packed, by the task; waking that for every frame would cost as much as the round trip.
            self._sent_this_turn = True
            if self._push():
                return
        self._wake.set()

    def _push(self) -> bool:
        """False: something is left; the kernel is full, or others get their turn first."""
        try:
            for _ in range(_WRITES_AT_ONCE):
                if not self._unsent:
                    if not self._waiting:
                        return True
                    self._unsent = gather(self._waiting)
                    self._waiting_bytes -= len(self._unsent)
                sent = self._sock.send(self._unsent)
                if sent < len(self._unsent):
                    self._unsent = memoryview(self._unsent)[sent:]
                    return False
                self._unsent = b""
        except BlockingIOError:
            return False
        except OSError as error:
            self.end(f"process {self.peer_pid} closed the stream ({error.strerror})")
        return not self._waiting and not self._unsent

    def _take(self, at_most: int = _READ_BYTES) -> list[bytes]:
        try:
            data = self._sock.recv(at_most)
            if not data:
                self.end(f"process {self.peer_pid} closed the stream")
                return []
            return self._splitter.feed(data)
        except BlockingIOError:
            return []
        except (OSError, MalformedStream) as error:
            self.end(f"process {self.peer_pid} closed the stream ({error})")
            return []


class LocalSocketServer:
    """Listens at ``path`` inside ``run``. Only for the holder of the directory's lock: it replaces what is there."""

    def __init__(self, path: str, peer_id: str) -> None:
        self._path = path
        self._peer_id = peer_id
        self.refuse: Callable[[str, Wants], TauraftError | None] = lambda namespace, wants: None
        self._handlers: dict[str, LocalHandler] = {}
        self._default: Callable[[LocalStream, str, Wants], Awaitable[None]] | None = None
        self._connections = 0

    def serve(self, namespace: str, handler: LocalHandler) -> None:
        """``handler(stream, namespace)`` runs for each connection; the stream is closed when it returns or raises."""
        self._handlers[namespace] = handler

    def serve_others(self, handler: Callable[[LocalStream, str, Wants], Awaitable[None]]) -> None:
        """For those who want a namespace that no one serves yet: it opens it."""
        self._default = handler

    def stop_serving(self, namespace: str) -> None:
        self._handlers.pop(namespace, None)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Started once it listens. Raises ``DataDirectoryError`` for an unsafe directory."""
        listener = _listen(self._path)
        try:
            async with anyio.create_task_group() as tasks:
                task_status.started()
                while True:
                    await wait_ready(anyio.wait_readable, listener)
                    try:
                        sock = keep_from_children(listener.accept()[0])
                    except OSError as error:
                        if not isinstance(error, BlockingIOError):
                            # Out of descriptors, most likely: trying at once would spin.
                            await anyio.sleep(0.1)
                        continue
                    if self._connections >= MAX_CONNECTIONS:
                        sock.close()
                        continue
                    self._connections += 1
                    tasks.start_soon(self._serve, sock)
        finally:
            close_socket(listener)
            _remove(self._path)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            sock.setblocking(False)
            uid, pid = peer_credentials(sock)
            if uid != os.geteuid():
                log.warning("process %d of user %d was refused at %s", pid, uid, self._path)
                return
            stream = LocalStream(sock, self._peer_id, pid)
            with anyio.fail_after(CONNECT_TIMEOUT_S):
                version, namespace, wants = await stream.receive_hello()
            handler = self._handler_of(namespace, wants) if version == VERSION else None
            refusal = self.refuse(namespace, wants) if handler is not None else None
            if handler is None or refusal is not None:
                stream.send_hello([_NOT_SERVED, self._peer_id, b"" if refusal is None else errors.encode(refusal)])
            else:
                stream.send_hello([_SERVED, self._peer_id, b""])
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(stream.run)
                    await self._handle(handler, stream, namespace)
                    tasks.cancel_scope.cancel()
        except (OSError, ValueError, StreamClosed, MalformedStream, TimeoutError) as error:
            log.info("a local connection was refused: %r", error)
        finally:
            self._connections -= 1
            close_socket(sock)

    def _handler_of(self, namespace: str, wants: Wants) -> LocalHandler | None:
        handler, opener = self._handlers.get(namespace), self._default
        if handler is not None or opener is None or not wants:
            return handler
        return lambda stream, name: opener(stream, name, wants)

    async def _handle(self, handler: LocalHandler, stream: LocalStream, namespace: str) -> None:
        try:
            await handler(stream, namespace)
        except StreamClosed:
            pass  # an ordinary end
        except Exception:  # the task's edge: one bad stream must not end the node
            log.exception("the handler of a stream of process %d failed", stream.peer_pid)
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()


async def connect_local(
    path: str, namespace: str, tasks: TaskGroup, wants: Wants = MappingProxyType({})
) -> LocalStream:
    """Open a stream to the process that listens at ``path``. Its task runs in ``tasks`` until it is closed.

    Raises ``PeerUnreachable``: nobody listens, another user does, or the namespace is not served; or the error by which
    that process refuses ``wants``, such as ``PluginMissing``.
    """
    sock = keep_from_children(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        sock.setblocking(False)
        with short_path(path) as short:
            sock.connect(short)
        uid, pid = peer_credentials(sock)
        if uid != os.geteuid():
            raise PeerUnreachable(f"{path} belongs to user {uid}")
        stream = LocalStream(sock, "", pid)
        stream.send_hello([VERSION, namespace, dict(wants)])
        with anyio.fail_after(CONNECT_TIMEOUT_S):
            status, peer_id, refusal = await stream.receive_hello()
        if status != _SERVED and refusal:
            raise errors.decode(refusal)
        if status != _SERVED:
            raise PeerUnreachable(f"process {pid} does not serve {namespace}")
        stream.peer_id = str(peer_id)
    except (OSError, ValueError, StreamClosed, MalformedStream) as error:
        close_socket(sock)
        if isinstance(error, TimeoutError):
            raise PeerUnreachable(
                f"the process that listens at {path} did not answer in {CONNECT_TIMEOUT_S:g} s"
            ) from None
        raise PeerUnreachable(f"nobody serves {namespace} at {path} ({error})") from error
    except BaseException:
        close_socket(sock)
        raise
    tasks.start_soon(stream.run)
    return stream


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """(user id, process id) of the other end, as the kernel knows them."""
    if sys.platform == "linux":
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return uid, pid
    # macOS: SOL_LOCAL is 0, LOCAL_PEERCRED 1 (version, uid, ...), LOCAL_PEERPID 2.
    _, uid = struct.unpack("Ii", sock.getsockopt(0, 1, 76)[:8])
    (pid,) = struct.unpack("i", sock.getsockopt(0, 2, 4))
    return uid, pid


async def wait_ready(wait: Callable[[socket.socket], Awaitable[None]], sock: socket.socket) -> None:
    """Raises ``StreamClosed`` when the socket was closed here."""
    if sock.fileno() == -1:
        raise StreamClosed("the stream was closed here")
    try:
        await wait(sock)
    except anyio.ClosedResourceError:
        raise StreamClosed("the stream was closed here") from None


@contextmanager
def short_path(path: str) -> Iterator[str]:
    """A name of ``path`` that the kernel takes for a socket."""
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        yield path
        return
    directory, name = os.path.split(path)
    if sys.platform == "linux":
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}/{name}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory(prefix="tauraft-") as private:
            link = os.path.join(private, "d")
            os.symlink(directory, link)
            yield os.path.join(link, name)


def _listen(path: str) -> socket.socket:
    directory = os.path.dirname(path)
    found = os.stat(directory)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise DataDirectoryError(
            f"{directory} is open to other users; nothing was started: give it to this user alone (chmod 700)",
            path=directory,
        )
    _remove(path)
    listener = keep_from_children(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        listener.setblocking(False)
        with short_path(path) as short:
            listener.bind(short)
        os.chmod(path, 0o600)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove(path: str) -> None:
    """Only a socket: whatever else has that name is not ours to take away."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
