"""One libp2p stream, read and written with fewer frames and fewer passes of the loop than the library's own face takes.

The library answers every read with a window update, a frame that costs both ends as much as the data did; and its face
takes a lock, which is a pass of the loop, before each read and write.  Here the credit of small reads is gathered until
half a window is owed, as yamux is meant to be used; the read after that goes by the library's face, which gives it all
and grows the window where the peer's pace asks for it.  The other end needs no part in this.
"""

from __future__ import annotations

from typing import Any

from libp2p.stream_muxer.yamux.yamux import YamuxStream


class MuxedStream:
    """For one reader and one writer. Errors are the library's."""

    def __init__(self, stream: Any) -> None:
        self._face = stream
        self._yamux: Any = stream.muxed_stream if isinstance(stream.muxed_stream, YamuxStream) else None
        self._owed_bytes = 0  # of credit, to the peer

    async def read(self, most: int) -> bytes:
        """What has arrived, at least one byte; b"" or an error at the end."""
        yamux = self._yamux
        if yamux is None or self._owed_bytes >= yamux.target_recv_window // 2:
            self._owed_bytes = 0
            data: bytes = await self._face.read(most)
        else:
            data = await yamux.conn.read_stream(yamux.stream_id, most)
            self._owed_bytes += len(data)
        return data

    async def write(self, data: bytes) -> None:
        await (self._face if self._yamux is None else self._yamux).write(data)
