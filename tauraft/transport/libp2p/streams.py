"""Frames over one libp2p stream: a queue, one writer, one reader, and a way to notice that the peer is gone.

The library loses bytes when a read is cancelled, and connections when a write is; so one task writes, one reads,
neither is ever cancelled but to end the stream, and everyone else talks to queues.

First the *greeting* (a request and an answer, and a confirmation when a key is in use): what the stream is for, where
the opener can be reached, and agreement on keys (``secure_frames``).  Then frames, packed into writes of at most 64
KiB. An idle side pings every second; three silent seconds mean that the peer is gone, and the raw connection is
closed under it, since the library never notices a stopped process.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import msgpack
import trio

from tauraft.errors import WrongKey
from tauraft.transport.frames import HEADER_BYTES, FrameSplitter, Kind, MalformedStream, gather, packed
from tauraft.transport.libp2p.host import reset_stream
from tauraft.transport.libp2p.muxed import MuxedStream
from tauraft.transport.secure_frames import (
    NONCE_BYTES,
    BrokenRecord,
    DirectionKeys,
    Initiator,
    KeyRing,
    RecordOpener,
    RecordSealer,
    Responder,
    StreamContext,
)
from tauraft.transport.transport import CONNECT_TIMEOUT_S, PING_INTERVAL_S, SILENCE_S, NotAdmitted, PeerUnreachable

log = logging.getLogger("tauraft.transport.libp2p")

VERSION = 1
_MAX_GREETING_BYTES = 8 << 10
_READ_BYTES = 64 << 10

OnFrames = Callable[[list[bytes]], object]
OnControl = Callable[[int, bytes], object]


class Purpose(IntEnum):
    RAFT = 0
    BULK = 1
    COMMANDS = 2


class Status(IntEnum):
    OK = 0
    NOT_ADMITTED = 1
    NOT_SERVED = 2


RELAXED_PING_S = 10.0
SEAL_BYTES = 64  # more than sealing adds to a record


class PackedStream:
    """Made by ``greet`` or ``answer``; then ``run`` in a task, and from anywhere ``push``, or ``add`` and later ``flush``."""

    def __init__(self, stream: Any, peer_id: str) -> None:
        self.peer_id = peer_id
        self.queued_bytes = 0
        self._stream = stream
        self._muxed = MuxedStream(stream)
        self._raw = self._muxed.raw
        self._waiting: deque[bytes] = deque()
        self._wake = trio.Event()
        self._drained = trio.Event()
        self._sealer: RecordSealer | None = None
        self._opener: RecordOpener | None = None
        self._last_heard_s = trio.current_time()
        self._ping_s = self._peer_pings_s = PING_INTERVAL_S
        self._end_reason: str | None = None
        self._is_finished = False
        self._is_writing = False
        self._last_sent_s = self._last_heard_s
        self.awaits_flush = False  # for whoever gathers streams to flush

    @property
    def remote_ip(self) -> str | None:
        address = None if self._raw is None else self._raw.get_remote_address()
        return None if address is None else address[0]

    @property
    def has_ended(self) -> bool:
        return self._end_reason is not None

    @property
    def local_ip(self) -> str | None:
        return None if self._raw is None else self._raw.local_ip()

    def use(self, keys: DirectionKeys) -> None:
        if keys.send:
            self._sealer, self._opener = RecordSealer(keys.send), RecordOpener(keys.receive)

    def push(self, frame: bytes, kind: Kind = Kind.DATA) -> None:
        """Queue one frame for the writer's task; the caller watches ``queued_bytes``."""
        self.add(frame, kind)
        self._wake.set()

    def add(self, frame: bytes, kind: Kind = Kind.DATA) -> None:
        """Queue one frame for the next ``flush``; the caller watches ``queued_bytes``."""
        piece = packed(frame, kind)
        self.queued_bytes += len(piece)
        self._waiting.append(piece)

    def flush(self) -> None:
        """Send what waits here and now, if it can go at once; else the writer's task does."""
        self.awaits_flush = False
        if not self._waiting or self._end_reason is not None:
            return
        if self._is_writing or self.queued_bytes + SEAL_BYTES > self._muxed.room_now():
            self._wake.set()
            return
        data = gather(self._waiting)
        try:
            self._muxed.write_now(self._sealed(data))
        except Exception as error:  # the library's edge
            self._end(f"{self.peer_id} cannot be written to ({error})")
        self._written(len(data))
        if self._muxed.must_drain or self._end_reason is not None:
            self._wake.set()

    def relax(self, is_idle: bool) -> None:
        """A lane carries the frames: whoever dies or is silent shows there, so this stream only has to be kept.

        A ping passes the muxer at both ends, and is the dearest thing an idle node does.
        """
        self._ping_s = RELAXED_PING_S if is_idle else PING_INTERVAL_S
        if self._end_reason is None:
            # The other end learns at once how long it may take until the next.
            self._push_ping()

    async def run(self, on_frames: OnFrames, on_control: OnControl) -> str:
        """Until the stream ends; returns why. Both callbacks run in the reader's task."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_until_end, nursery.cancel_scope)
                self._end(await self._read_until_end(on_frames, on_control))
                nursery.cancel_scope.cancel()
        finally:
            self._end("this node closed it")
            if self._is_finished:
                # A reset would overtake what was written last.
                await _close_politely(self._stream)
            else:
                await reset_stream(self._stream)
        return self._end_reason or ""

    async def finish(self) -> None:
        """Send what waits and the end marker, then end. Takes at most ``CONNECT_TIMEOUT_S``."""
        if self._end_reason is None:
            self.push(b"", Kind.END)
            with trio.CancelScope(shield=True), trio.move_on_after(CONNECT_TIMEOUT_S):
                await self.drained()
                self._is_finished = self._end_reason is None
        self.end("it was closed here")

    async def drained(self) -> None:
        while self.queued_bytes and self._end_reason is None:
            self._drained = trio.Event()
            await self._drained.wait()

    def end(self, reason: str) -> None:
        """Now; ``run`` returns soon."""
        self._end(reason)
        self._wake.set()

    def abandon(self, reason: str) -> None:
        """The peer is silent: close the raw connection under every stream of it."""
        self._end(reason)
        self._wake.set()
        if self._raw is not None:
            self._raw.close_now()

    def _end(self, reason: str) -> None:
        if self._end_reason is None:
            self._end_reason = reason
        self._drained.set()

    async def _read_until_end(self, on_frames: OnFrames, on_control: OnControl) -> str:
        splitter = FrameSplitter()
        while True:
            try:
                data = await self._muxed.read(_READ_BYTES)
            except Exception as error:  # the library's edge: ends, resets, torn connections
                return f"{self.peer_id} closed the connection ({type(error).__name__})"
            if not data:
                return f"{self.peer_id} closed the connection"
            self._last_heard_s = trio.current_time()
            try:
                frames = splitter.feed(data if self._opener is None else self._opener.feed(data))
            except (MalformedStream, BrokenRecord) as error:
                log.warning("a stream from %s was closed: %s", self.peer_id, error)
                return str(error)
            if frames:
                on_frames(frames)
            if splitter.control:
                control, splitter.control = splitter.control, []
                for kind, payload in control:
                    if kind == Kind.END:
                        return "the other end closed the stream"
                    if kind == Kind.PING:
                        self._peer_pings_s = float(payload[0]) if payload else PING_INTERVAL_S
                    else:
                        on_control(kind, payload)

    async def _write_until_end(self, scope: trio.CancelScope) -> None:
        try:
            while self._end_reason is None:
                await self._muxed.drain()
                if not self._waiting:
                    await self._wait_or_ping()
                    continue
                data = gather(self._waiting)
                self._is_writing = True
                await self._muxed.write(self._sealed(data))
                self._is_writing = False
                self._written(len(data))
        except Exception as error:  # the library's edge
            self._end(f"{self.peer_id} cannot be written to ({error})")
        scope.cancel()

    def _sealed(self, data: bytes) -> bytes:
        return data if self._sealer is None else self._sealer.seal(data)

    def _written(self, size: int) -> None:
        self._last_sent_s = trio.current_time()
        self.queued_bytes -= size
        if not self.queued_bytes:
            self._drained.set()

    async def _wait_or_ping(self) -> None:
        self._wake = trio.Event()
        asleep_since = trio.current_time()
        with trio.CancelScope(deadline=self._last_sent_s + self._ping_s):
            await self._wake.wait()
            return
        now = trio.current_time()
        # After a stall of ours what the peer sent is still unread: first hear it, then judge.
        was_stalled = now - asleep_since > self._ping_s + 0.5
        silence_s = SILENCE_S * self._peer_pings_s / PING_INTERVAL_S
        if now - self._last_heard_s > silence_s and not was_stalled:
            self.abandon(f"{self.peer_id} was not heard for {silence_s:g} s")
            return
        if now - self._last_sent_s >= self._ping_s:
            self._push_ping()

    def _push_ping(self) -> None:
        self.push(bytes([int(self._ping_s)]), Kind.PING)


async def greet(
    stream: Any, ring: KeyRing | None, context: StreamContext, purpose: Purpose, own_addresses: Sequence[str]
) -> tuple[PackedStream, tuple[str, ...]]:
    """As the opener. Returns the stream and where the peer says it listens.

    Raises ``PeerUnreachable`` or ``WrongKey``; the stream is reset then.
    """
    peer = context.responder
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            initiator = Initiator(ring, context, os.urandom(NONCE_BYTES))
            await _write_greeting(stream, [VERSION, int(purpose), initiator.hello(), list(own_addresses)])
            status, answer, addresses = _expect(await _read_greeting(stream), int, bytes, list)
            if status != Status.OK:
                if status == Status.NOT_ADMITTED:
                    raise NotAdmitted(f"{peer} does not admit this node to {context.namespace}")
                raise PeerUnreachable(f"{peer} does not serve {context.namespace}")
            try:
                confirmation, keys = initiator.confirm(answer)
            except WrongKey:
                await stream.write(packed(initiator.refuse(), Kind.CONFIRM))
                raise
            if confirmation:
                await stream.write(packed(confirmation, Kind.CONFIRM))
    except trio.TooSlowError:
        await reset_stream(stream)
        raise PeerUnreachable(f"{peer} did not answer the greeting in {CONNECT_TIMEOUT_S:g} s") from None
    except (WrongKey, PeerUnreachable):
        # The peer has yet to read why: it ends the stream.
        await _close_politely(stream)
        raise
    except Exception as error:  # the library's edge
        await reset_stream(stream)
        raise PeerUnreachable(f"{peer} ended the stream in the greeting ({error})") from error
    found = PackedStream(stream, peer)
    found.use(keys)
    return found, tuple(str(address) for address in addresses[:16])


async def answer(
    stream: Any,
    ring: KeyRing | None,
    context: StreamContext,
    own_addresses: Sequence[str],
    status_of: Callable[[Purpose], Status],
) -> tuple[PackedStream, Purpose, tuple[str, ...]] | None:
    """As the side that accepted. None: the greeting failed or was refused. Raises ``WrongKey``; both end the stream."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            version, purpose_number, hello, addresses = _expect(await _read_greeting(stream), int, int, bytes, list)
            if version != VERSION:
                raise BrokenRecord(f"version {version} of the stream protocol is not known here")
            purpose = Purpose(purpose_number)
            responder = Responder(ring, context, os.urandom(NONCE_BYTES))
            status = status_of(purpose)
            await _write_greeting(stream, [int(status), responder.answer(hello), list(own_addresses)])
            responder.check_mode()
            if status != Status.OK:
                await _close_politely(stream)
                return None
            keys = DirectionKeys()
            if ring is not None:
                keys = responder.finish(await _read_frame(stream, Kind.CONFIRM))
    except WrongKey:
        await _close_politely(stream)
        raise
    except Exception as error:  # the library's edge, and whatever a stranger sends
        log.info("a stream from %s was refused: %r", context.initiator, error)
        await reset_stream(stream)
        return None
    found = PackedStream(stream, context.initiator)
    found.use(keys)
    return found, purpose, tuple(str(address) for address in addresses[:16])


async def _close_politely(stream: Any) -> None:
    """So that what was written last arrives: a reset would overtake it."""
    with trio.CancelScope(shield=True), trio.move_on_after(1.0):
        try:
            await stream.close()
        except Exception as error:  # the library's edge
            log.debug("closing a stream: %r", error)


async def _write_greeting(stream: Any, fields: list[Any]) -> None:
    await stream.write(packed(msgpack.packb(fields), Kind.HELLO))


async def _read_greeting(stream: Any) -> Any:
    return msgpack.unpackb(await _read_frame(stream, Kind.HELLO), max_array_len=64, max_bin_len=4096, max_str_len=1024)


async def _read_frame(stream: Any, kind: Kind) -> bytes:
    header = await _read_exactly(stream, HEADER_BYTES)
    size = int.from_bytes(header[1:], "big")
    if header[0] != kind or size > _MAX_GREETING_BYTES:
        raise MalformedStream("this is no greeting of ours")
    return await _read_exactly(stream, size)


async def _read_exactly(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.read(size - len(data))
        if not more:
            raise MalformedStream("the stream ended in the greeting")
        data += more
    return data


def _expect(value: Any, *types: type) -> Any:
    if not isinstance(value, list) or len(value) != len(types):
        raise MalformedStream("this is no greeting of ours")
    for field, expected in zip(value, types, strict=True):
        if type(field) is not expected:
            raise MalformedStream("this is no greeting of ours")
    return value
