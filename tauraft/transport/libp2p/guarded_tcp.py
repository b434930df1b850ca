"""A guard around py-libp2p's raw TCP connections; without it the library is not usable (FACTS.md).

What it changes, and which trap that closes:

- a write runs shielded, with a time limit of its own: a cancelled caller cannot tear a frame, which would end the
  connection for everyone on it, and a stopped peer cannot block a writer for ever;
- reads fill a 64 KiB buffer: the layers above ask for 2 and 12 bytes at a time;
- what the socket takes or has at once costs no pass of the loop: a frame passes some ten of them in the layers above;
- closing never waits, and ends the accepted connection's task, which else holds its slot until the host ends (the
  host refuses everyone after the 250th connection of its life);
- listening does not share its port: py-libp2p sets SO_REUSEPORT, with which an occupied port looks free.
"""

from __future__ import annotations

import os
import socket as stdlib_socket
from typing import Any

import trio
from libp2p.abc import IRawConnection
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP, TCPListener
from libp2p.utils.multiaddr_utils import extract_ip_from_multiaddr
from multiaddr import Multiaddr

from tauraft.transport.forking import keep_from_children

WRITE_TIMEOUT_S = 2.0
_READ_BYTES = 64 << 10


class GuardedStream(ReadWriteCloser):  # type: ignore[misc]
    """One raw connection."""

    def __init__(self, inner: Any, write_timeout_s: float = WRITE_TIMEOUT_S) -> None:
        self._inner = inner
        self._socket = inner.stream.socket
        keep_from_children(self._socket)
        self._write_timeout_s = write_timeout_s
        self._writers = 0  # that wait for the socket
        self._unsent = b""  # of ``send_now``
        self._buffer = b""
        self.closed = trio.Event()

    async def write(self, data: bytes) -> None:
        if self.closed.is_set():
            raise ConnectionClosedError("the connection is closed", transport="tcp")
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        if not self._writers:
            data = data[self._write_now(data) :]
            if not data:
                return
        self._writers += 1
        try:
            with trio.CancelScope(shield=True), trio.move_on_after(self._write_timeout_s) as limit:
                await self._inner.write(data)
        finally:
            self._writers -= 1
        if limit.cancelled_caught:
            # What was written of the frame cannot be taken back: the connection is of no use to anyone.
            self.close_now()
            raise ConnectionClosedError(f"the peer took nothing for {self._write_timeout_s:g} s", transport="tcp")

    async def read(self, n: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._buffer:
            if n is None or n >= _READ_BYTES:
                return await self._read_some(n or _READ_BYTES)
            self._buffer = await self._read_some(_READ_BYTES)
        data = self._buffer if n is None else self._buffer[:n]
        self._buffer = self._buffer[len(data) :]
        return data

    @property
    def is_free(self) -> bool:
        """``send_now`` may be used: nothing waits that must go before."""
        return not self._writers and not self._unsent and not self.closed.is_set()

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def send_now(self, data: bytes) -> None:
        """What the socket has no room for goes before the next ``write``; whoever called sees to that there is one."""
        self._unsent = data[self._write_now(data) :]

    def _write_now(self, data: bytes) -> int:
        """How many bytes the socket took."""
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _broken(error) from error

    async def _read_some(self, most: int) -> bytes:
        """b"": the peer ended the connection, or it was closed here."""
        while True:
            try:
                return os.read(self._socket.fileno(), most)
            except BlockingIOError:
                pass
            except OSError as error:
                if self.closed.is_set():
                    return b""
                raise _broken(error) from error
            try:
                await trio.lowlevel.wait_readable(self._socket)
            except trio.ClosedResourceError:
                return b""

    async def close(self) -> None:
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Readers and writers of it fail at once; nothing is awaited, so a stopped peer cannot hold us up."""
        if not self.closed.is_set():
            self.closed.set()
            self._socket.close()

    def local_ip(self) -> str | None:
        """At which of our addresses the peer reached us, or we left from. None: it is closed."""
        try:
            return str(self._socket.getsockname()[0])
        except OSError:
            return None

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self._inner.get_remote_address()
        return address


def _broken(error: OSError) -> ConnectionClosedError:
    return ConnectionClosedError(f"the connection broke: {error.strerror}", transport="tcp")


class GuardedTCP(TCP):  # type: ignore[misc]
    """Given to ``new_host(transports=[...])``."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        connection = await super().dial(maddr)
        # Typed as the interface, made as RawConnection, whose ``stream`` is what is read and written.
        raw: Any = connection
        raw.stream.get_remote_address()  # remembered while the socket can still say it
        raw.stream = GuardedStream(raw.stream)
        return connection

    def create_listener(self, handler_function: THandler) -> TCPListener:
        async def serve(stream: Any) -> None:
            guarded = GuardedStream(stream)
            async with trio.open_nursery() as nursery:

                async def run() -> None:
                    await handler_function(guarded)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(run)
                await guarded.closed.wait()
                nursery.cancel_scope.cancel()

        return ExclusiveListener(serve)


class ExclusiveListener(TCPListener):  # type: ignore[misc]
    """Refuses a port that another process, or another host of this one, listens on."""

    async def listen(self, maddr: Multiaddr) -> None:
        probe = bind_exclusively(str(extract_ip_from_multiaddr(maddr)), int(str(maddr.value_for_protocol("tcp"))))
        # The library binds with SO_REUSEPORT, which does not go together with our socket: ours makes room for it.
        probe.close()
        await super().listen(maddr)
        for listener in self.listeners:
            keep_from_children(listener.socket)


def bind_exclusively(host: str, port: int) -> stdlib_socket.socket:
    """A bound, non-blocking TCP socket. Raises ``OpenConnectionError``."""
    family = stdlib_socket.AF_INET6 if ":" in host else stdlib_socket.AF_INET
    sock = keep_from_children(stdlib_socket.socket(family, stdlib_socket.SOCK_STREAM))
    try:
        sock.setblocking(False)
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise OpenConnectionError(f"{host}:{port}: {error.strerror}") from error
    return sock


def guarded_stream_of(muxed_connection: Any) -> GuardedStream | None:
    """The raw connection under a muxed one, whatever the library's layers between are called."""
    layer = muxed_connection
    for _ in range(12):
        if isinstance(layer, GuardedStream):
            return layer
        for name in ("secured_conn", "conn", "read_writer", "read_write_closer", "stream"):
            below = getattr(layer, name, None)
            if below is not None:
                layer = below
                break
        else:
            return None
    return None
