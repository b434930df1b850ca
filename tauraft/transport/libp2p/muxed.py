"""One libp2p stream, read and written with fewer frames and fewer passes of the loop than the library's own face takes.

The library takes half a dozen locks for each frame, and each is a pass of the loop; and it answers every read with a window
update, a frame that costs both ends as much as the data did.  So, where the muxer is Yamux over Noise (else by the library's face):

- what the socket takes at once is framed, sealed and written here, without a pass.  The muxer's lock says whether another
  frame is half-way; then, and for all that is large, the library's way is taken.
- what has arrived is taken from the muxer's buffer; ends and errors are left to the library.
- the credit of small reads is gathered until half a window is owed, as Yamux is meant to be used; the read after that goes
  by the library's face, which gives it all and grows the window where the peer's pace asks for it.

The other end needs no part in this.  It leans on the library's inside, as of the release series that is required; the
transport's conformance suite runs over it, and where a layer is not the one that is known here, nothing of this is done.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import trio
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.stream_muxer.yamux.yamux import TYPE_DATA, YAMUX_HEADER_FORMAT, YamuxStream

from tauraft.transport.libp2p.guarded_tcp import GuardedStream, guarded_stream_of

# With Yamux's header and Noise's tag it is one Noise message.
_MOST_AT_ONCE: Final = 60 << 10


class MuxedStream:
    """For one reader and one writer. Errors are the library's."""

    def __init__(self, stream: Any) -> None:
        self._face = stream
        self._owed_bytes = 0  # of credit, to the peer
        # Mutable attributes of the library's classes are reached, hence Any.
        muxed = stream.muxed_stream
        self.raw: GuardedStream | None = guarded_stream_of(stream.muxed_conn)
        noise = getattr(getattr(stream.muxed_conn, "secured_conn", None), "conn", None)
        is_known = (
            isinstance(muxed, YamuxStream) and isinstance(noise, NoiseTransportReadWriter) and self.raw is not None
        )
        self._yamux: Any = muxed if is_known else None
        self._noise: Any = noise

    def room_now(self) -> int:
        """How many bytes ``write_now`` takes at this moment."""
        yamux, raw = self._yamux, self.raw
        if yamux is None or raw is None or not raw.is_free or yamux.send_closed or yamux.conn._write_lock.locked():
            return 0
        return min(int(yamux.send_window), _MOST_AT_ONCE)

    def write_now(self, data: bytes) -> None:
        """At most ``room_now`` bytes. What the socket has no room for waits for ``drain``."""
        yamux, raw = self._yamux, self.raw
        assert raw is not None
        yamux.send_window -= len(data)
        header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, yamux.stream_id, len(data))
        message: bytes = self._noise.encrypt(header + data)
        raw.send_now(len(message).to_bytes(2, "big") + message)

    @property
    def must_drain(self) -> bool:
        return self.raw is not None and self.raw.has_unsent

    async def drain(self) -> None:
        """Returns at once when there is nothing."""
        if self.raw is not None and self.raw.has_unsent:
            await self.raw.write(b"")

    async def write(self, data: bytes) -> None:
        if len(data) <= self.room_now():
            self.write_now(data)
            await self.drain()
        else:
            await (self._face if self._yamux is None else self._yamux).write(data)

    async def read(self, most: int) -> bytes:
        """What has arrived, at least one byte; b"" or an error at the end."""
        yamux = self._yamux
        if yamux is None or self._owed_bytes >= yamux.target_recv_window // 2:
            self._owed_bytes = 0
            data: bytes = await self._face.read(most)
            return data
        data = await self._take(yamux, most)
        self._owed_bytes += len(data)
        return data

    async def _take(self, yamux: Any, most: int) -> bytes:
        muxer, number = yamux.conn, yamux.stream_id
        buffers, events = muxer.stream_buffers, muxer.stream_events
        while not (yamux.recv_closed or yamux.closed or muxer.event_shutting_down.is_set()):
            buffer, event = buffers.get(number), events.get(number)
            if buffer is None or event is None:
                break
            if not buffer:
                await event.wait()
            if event.is_set() and number in events:
                events[number] = trio.Event()
            if buffer:
                data = bytes(buffer[:most])
                del buffer[:most]
                return data
        left: bytes = await muxer.read_stream(number, most)
        return left
