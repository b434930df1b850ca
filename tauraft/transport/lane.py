"""The direct lane: the frames of one namespace from one peer to another on a bare socket, without libp2p's muxer.

libp2p says who is where; a lane only carries frames, in one direction, opened by their sender.  First libp2p's own
Noise handshake proves both peer ids; its prologue binds it to this use (protocol, namespace, lane number, cluster id), so
that a handshake relayed from elsewhere fails.  Inside it the ends agree on the shared key, where there is one
(``secure_frames``), and the sender gives the key of the lane.  After that: AES-256-GCM records of packed frames.

Fast (RTT about that of plain TCP, a sixth of a muxed stream's): a frame is sealed and handed to the kernel inline, in
the task that flushes, and a read gives its frames to the receiver inline; only readiness is awaited.  Safe to cancel:
there is no await between taking bytes from the socket and accounting for them.

Refused: who is no member, another cluster or namespace, more handshakes at once than ``MAX_HANDSHAKES``.  A lane ends
when the peer takes nothing for ``STALL_S``, is silent for ``SILENCE_S``, or a record does not open.  What it held is
lost then, as the channel may; who changes over between lane and stream, and how order is kept: ``libp2p/channel.py``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import anyio
import trio

from tauraft.errors import WrongKey
from tauraft.transport.forking import keep_from_children
from tauraft.transport.frames import HEADER_BYTES, FrameSplitter, Kind, MalformedStream, gather, packed
from tauraft.transport.secure_frames import (
    KEY_BYTES,
    NONCE_BYTES,
    REKEY_AFTER,
    BrokenRecord,
    DirectionKeys,
    Initiator,
    KeyRing,
    RecordOpener,
    RecordSealer,
    Responder,
    StreamContext,
    mix,
)
from tauraft.transport.transport import MAX_QUEUED_BYTES, PING_INTERVAL_S, SILENCE_S

PROTOCOL: Final = "tauraft lane 1"
MAX_HANDSHAKES: Final = 16
HANDSHAKE_TIMEOUT_S: Final = 2.0
STALL_S: Final = 2.0
_MAGIC: Final = b"tauraft lane 1\n"
_READ_BYTES: Final = 256 << 10
# Inline at most 2 MiB at a time: a large frame must not keep the loop from everyone else.
_RECORDS_INLINE: Final = 32
_MAX_NAMESPACE_BYTES: Final = 1024
_READY: Final = b"\x01"
_NUMBER: Final = struct.Struct("!II")


class LaneRefused(Exception):
    """No lane was opened: not reachable, not a member, another cluster, too many at once."""


@dataclass(frozen=True, slots=True, order=True)
class LaneNumber:
    """Which lane of a sender this is: ``boot`` tells its processes apart, ``count`` its lanes."""

    boot: int = 0
    count: int = 0

    def encode(self) -> bytes:
        return _NUMBER.pack(self.boot, self.count)

    @staticmethod
    def decode(data: bytes) -> LaneNumber:
        """Raises ``MalformedStream``."""
        if len(data) != _NUMBER.size:
            raise MalformedStream("this is no number of a lane")
        return LaneNumber(*_NUMBER.unpack(data))


@dataclass(frozen=True, slots=True)
class LaneIdentity:
    """Who we are: our libp2p key pair and shared keys."""

    peer_id: str
    key_pair: Any  # libp2p's KeyPair; this module must import without libp2p
    ring: KeyRing | None


class SendingLane:
    """Our frames to one peer. ``add`` and ``flush`` never wait; ``run`` is its one task; ``beat`` is called in between."""

    def __init__(self, sock: socket.socket, key: bytes, rekey_after: int = REKEY_AFTER) -> None:
        self.queued_bytes = 0
        self._sock = sock
        self._sealer = RecordSealer(key, rekey_after)
        self._waiting: deque[bytes] = deque()
        self._unsent: bytes | memoryview = b""  # the rest of a record that the kernel took in part
        self._blocked = anyio.Event()
        self._end_reason: str | None = None
        self._sent_since_ping = False
        self.awaits_flush = False  # for whoever gathers lanes to flush

    @property
    def has_ended(self) -> bool:
        return self._end_reason is not None

    def add(self, frame: bytes) -> bool:
        """Queue a frame for the next ``flush``. False: the queue is full, or the lane has ended."""
        size = len(frame) + HEADER_BYTES
        if self.queued_bytes + size > MAX_QUEUED_BYTES or self._end_reason is not None:
            return False
        self._waiting.append(packed(frame))
        self.queued_bytes += size
        return True

    def flush(self) -> None:
        """Seal what waits, as few records as it takes, and give them to the kernel."""
        self.awaits_flush = False
        if self._unsent:
            return  # the kernel is full: ``run`` goes on when it has room
        try:
            for _ in range(_RECORDS_INLINE):
                if not self._waiting:
                    return
                data = gather(self._waiting)
                self.queued_bytes -= len(data)
                record = self._sealer.seal(data)
                self._sent_since_ping = True
                sent = self._sock.send(record)
                if sent < len(record):
                    self._unsent = memoryview(record)[sent:]
                    break
        except BlockingIOError:
            self._unsent = record
        except OSError as error:
            self.end(f"sending failed: {error.strerror}")
        if self._waiting or self._unsent:
            self._blocked.set()

    async def run(self) -> str:
        """Until the lane ends; returns why."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._push)
                await self._watch_for_end()
                tasks.cancel_scope.cancel()
        finally:
            self.end("it was closed here")
        return self._end_reason or ""

    def beat(self) -> None:
        """``PING_INTERVAL_S`` have passed: say that we are there, where nothing else has."""
        if self._end_reason is None and not self._sent_since_ping and not self._waiting:
            self._waiting.append(packed(b"", Kind.PING))
            self.queued_bytes += HEADER_BYTES
            self.flush()
        self._sent_since_ping = False

    def finish(self) -> None:
        """Say that this end is meant, then end."""
        if self._end_reason is None:
            self._waiting.append(packed(b"", Kind.END))
            self.queued_bytes += HEADER_BYTES
            self.flush()
        self.end("it was closed here")

    def end(self, reason: str) -> None:
        if self._end_reason is None:
            self._end_reason = reason
            self._blocked.set()
            close_socket(self._sock)

    async def _push(self) -> None:
        """Send what the kernel had no room for."""
        while self._end_reason is None:
            await self._blocked.wait()
            self._blocked = anyio.Event()
            while self._waiting or self._unsent:
                with anyio.move_on_after(STALL_S) as limit:
                    await _until_ready(trio.lowlevel.wait_writable, self._sock)
                if limit.cancelled_caught:
                    self.end(f"the peer took nothing for {STALL_S:g} s")
                if self._end_reason is not None:
                    return
                self._push_unsent()
                if not self._unsent:
                    self.flush()

    def _push_unsent(self) -> None:
        if not self._unsent:
            return
        try:
            self._unsent = memoryview(self._unsent)[self._sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self.end(f"sending failed: {error.strerror}")

    async def _watch_for_end(self) -> None:
        """Nothing comes this way but the end."""
        while self._end_reason is None:
            if not await _until_ready(trio.lowlevel.wait_readable, self._sock):
                return
            try:
                if not self._sock.recv(1):
                    self.end("the peer closed it")
            except BlockingIOError:
                continue
            except OSError as error:
                self.end(f"the peer closed it: {error.strerror}")


class ReceivingLane:
    """One peer's frames to us. ``run`` is its one task; ``on_frames`` is called in it; ``beat`` in between."""

    def __init__(
        self, sock: socket.socket, peer_id: str, number: LaneNumber, key: bytes, rekey_after: int = REKEY_AFTER
    ) -> None:
        self.peer_id = peer_id
        self.number = number
        self._sock = sock
        self._opener = RecordOpener(key, rekey_after)
        self._splitter = FrameSplitter()
        self._silent_beats: int | None = None  # None: nobody reads it yet
        self._end_reason: str | None = None

    @property
    def has_ended(self) -> bool:
        return self._end_reason is not None

    async def run(self, on_frames: Callable[[list[bytes]], object]) -> str:
        """Until the lane ends; returns why."""
        self._silent_beats = 0
        try:
            await self._read(on_frames)
        finally:
            self.end("it was closed here")
        return self._end_reason or ""

    def beat(self) -> None:
        """``PING_INTERVAL_S`` have passed: a peer that was not heard for ``SILENCE_S`` is gone.

        Counted in beats of ours, so that a stall of our own process is not taken for the peer's silence.
        """
        if self._silent_beats is None:
            return
        if self._silent_beats >= SILENCE_S / PING_INTERVAL_S:
            self.end(f"the peer was not heard for {SILENCE_S:g} s")
        self._silent_beats += 1

    def end(self, reason: str) -> None:
        if self._end_reason is None:
            self._end_reason = reason
            close_socket(self._sock)

    async def _read(self, on_frames: Callable[[list[bytes]], object]) -> None:
        splitter = self._splitter
        while self._end_reason is None:
            if not await _until_ready(trio.lowlevel.wait_readable, self._sock):
                return
            try:
                data = self._sock.recv(_READ_BYTES)
                if not data:
                    self.end("the peer closed it")
                    return
                frames = splitter.feed(self._opener.feed(data))
            except BlockingIOError:
                continue
            except OSError as error:
                self.end(f"the peer closed it: {error.strerror}")
                return
            except (BrokenRecord, MalformedStream) as error:
                self.end(str(error))
                return
            self._silent_beats = 0
            if frames:
                on_frames(frames)
            if splitter.control:
                if any(kind == Kind.END for kind, _ in splitter.control):
                    self.end("the peer closed it")
                splitter.control.clear()


class LaneListener:
    """Where others open lanes to us: one socket an address, whose ports are told over the libp2p stream."""

    def __init__(
        self,
        sockets: list[socket.socket],
        identity: LaneIdentity,
        context_of: Callable[[str], bytes | None],
        is_member: Callable[[str, str], bool],
        accepted: Callable[[str, ReceivingLane], Awaitable[None]],
        *,
        max_handshakes: int = MAX_HANDSHAKES,
        rekey_after: int = REKEY_AFTER,
    ) -> None:
        """``context_of(namespace)``: its cluster id; ``is_member(namespace, peer id)``; ``accepted`` runs the lane."""
        self.handshakes = 0
        self._sockets = sockets
        self._identity = identity
        self._context_of = context_of
        self._is_member = is_member
        self._accepted = accepted
        self._max_handshakes = max_handshakes
        self._rekey_after = rekey_after

    def port_for(self, local_ip: str) -> int | None:
        """The port to name to a peer that reached us at ``local_ip``."""
        for sock in self._sockets:
            address = sock.getsockname()
            if address[0] in (local_ip, "0.0.0.0", "::"):
                return int(address[1])
        return None

    async def run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                for sock in self._sockets:
                    tasks.start_soon(self._accept_all, sock, tasks)
        finally:
            for sock in self._sockets:
                close_socket(sock)

    async def _accept_all(self, listener: socket.socket, tasks: anyio.abc.TaskGroup) -> None:
        while await _until_ready(trio.lowlevel.wait_readable, listener):
            try:
                sock = keep_from_children(listener.accept()[0])
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # Out of descriptors: the connection stays in the backlog, and trying at once would spin.
                    await anyio.sleep(0.1)
                continue
            if self.handshakes >= self._max_handshakes:
                sock.close()
                continue
            self.handshakes += 1
            tasks.start_soon(self._serve, sock)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
                namespace, lane = await self._handshake(sock)
        except (LaneRefused, WrongKey, TimeoutError):
            close_socket(sock)
            return
        except BaseException:
            close_socket(sock)
            raise
        finally:
            self.handshakes -= 1
        await self._accepted(namespace, lane)

    async def _handshake(self, sock: socket.socket) -> tuple[str, ReceivingLane]:
        _tune(sock)
        raw = _RawSocket(sock)
        try:
            magic = await raw.read_exactly(len(_MAGIC) + 2)
            size = int.from_bytes(magic[-2:], "big")
            if magic[:-2] != _MAGIC or size > _MAX_NAMESPACE_BYTES:
                raise LaneRefused("this is no lane of ours")
            rest = await raw.read_exactly(size + _NUMBER.size)
            namespace = rest[:size].decode()
            number = LaneNumber.decode(rest[size:])
            context = self._context_of(namespace)
            if context is None:
                raise LaneRefused(f"{namespace} takes no lanes here")
            session = await _noise(self._identity, magic + rest + context).handshake_inbound(raw)
            peer = str(session.get_remote_peer())
            if not self._is_member(namespace, peer):
                raise LaneRefused(f"{peer} is no member of {namespace}")
            key = await session.read(KEY_BYTES)
            responder = Responder(
                self._identity.ring,
                StreamContext(PROTOCOL, namespace, peer, self._identity.peer_id),
                os.urandom(NONCE_BYTES),
            )
            await _write_part(session, responder.answer(await _read_part(session)))
            responder.check_mode()
            keys = responder.finish(await _read_part(session)) if self._identity.ring else DirectionKeys()
            await session.write(_READY)
        except (LaneRefused, WrongKey):
            raise
        except Exception as error:  # the library's edge, and whatever a stranger sends
            raise LaneRefused(f"the handshake failed: {error!r}") from error
        return namespace, ReceivingLane(sock, peer, number, mix(key, keys.receive), self._rekey_after)


async def dial_lane(
    identity: LaneIdentity,
    peer_id: str,
    address: tuple[str, int],
    namespace: str,
    cluster_id: bytes,
    number: LaneNumber,
    *,
    rekey_after: int = REKEY_AFTER,
) -> SendingLane:
    """Open a lane to ``peer_id``. Raises ``LaneRefused`` or ``WrongKey`` within ``HANDSHAKE_TIMEOUT_S``."""
    from libp2p.peer.id import ID

    name = namespace.encode()
    preface = _MAGIC + len(name).to_bytes(2, "big") + name + number.encode()
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = keep_from_children(socket.socket(family, socket.SOCK_STREAM))
    try:
        with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
            _tune(sock)
            await _connect(sock, address)
            raw = _RawSocket(sock)
            await raw.write(preface)
            pattern = _noise(identity, preface + cluster_id)
            session = await pattern.handshake_outbound(raw, ID.from_string(peer_id))
            key = os.urandom(KEY_BYTES)
            await session.write(key)
            initiator = Initiator(
                identity.ring,
                StreamContext(PROTOCOL, namespace, identity.peer_id, peer_id),
                os.urandom(NONCE_BYTES),
            )
            await _write_part(session, initiator.hello())
            confirmation, keys = initiator.confirm(await _read_part(session))
            if confirmation:
                await _write_part(session, confirmation)
            if await session.read(1) != _READY:
                raise LaneRefused(f"{peer_id} did not accept the lane")
    except (LaneRefused, WrongKey):
        close_socket(sock)
        raise
    except TimeoutError:
        close_socket(sock)
        raise LaneRefused(f"{peer_id} did not answer at its lane's port in {HANDSHAKE_TIMEOUT_S:g} s") from None
    except Exception as error:  # the library's edge
        close_socket(sock)
        raise LaneRefused(f"the lane to {peer_id} could not be opened: {error!r}") from error
    except BaseException:
        close_socket(sock)
        raise
    return SendingLane(sock, mix(key, keys.send), rekey_after)


def close_socket(sock: socket.socket) -> None:
    """Tasks that wait for it wake; closing twice does nothing."""
    if sock.fileno() != -1:
        anyio.notify_closing(sock)
        sock.close()


class _RawSocket:
    """What libp2p's handshake reads and writes: never more than it asks for, so later records stay in the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def read(self, n: int | None = None) -> bytes:
        while True:
            await anyio.wait_readable(self._sock)
            try:
                return self._sock.recv(n or 65536)
            except BlockingIOError:
                continue

    async def read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self.read(size - len(data))
            if not more:
                raise LaneRefused("the peer closed it in the handshake")
            data += more
        return data

    async def write(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                await anyio.wait_writable(self._sock)

    async def close(self) -> None:
        close_socket(self._sock)

    def get_remote_address(self) -> None:
        return None


def _noise(identity: LaneIdentity, prologue: bytes) -> Any:
    from libp2p.crypto.x25519 import create_new_key_pair
    from libp2p.peer.id import ID
    from libp2p.security.noise.patterns import PatternXX

    return PatternXX(
        ID.from_string(identity.peer_id),
        identity.key_pair.private_key,
        create_new_key_pair().private_key,
        prologue=prologue,
    )


async def _connect(sock: socket.socket, address: tuple[str, int]) -> None:
    problem = sock.connect_ex(address)
    if problem == errno.EINPROGRESS:
        await anyio.wait_writable(sock)
        problem = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if problem:
        raise LaneRefused(f"nobody listens at {address[0]}:{address[1]} ({os.strerror(problem)})")


async def _until_ready(wait: Callable[[int], Awaitable[None]], sock: socket.socket) -> bool:
    """False: the socket was closed here."""
    # trio would remember us as waiting for descriptor -1, and refuse whoever makes the same mistake next. (Of trio itself,
    # since every frame comes through here.)
    descriptor = sock.fileno()
    if descriptor == -1:
        return False
    try:
        await wait(descriptor)
    except (trio.ClosedResourceError, ValueError, OSError):
        return False
    return True


async def _write_part(session: Any, part: bytes) -> None:
    await session.write(len(part).to_bytes(2, "big") + part)


async def _read_part(session: Any) -> bytes:
    size = int.from_bytes(await session.read(2), "big")
    return bytes(await session.read(size)) if size else b""


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Where the way back is cut our data arrives but no acknowledgement does; only the kernel sees that.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_S * 1000))
