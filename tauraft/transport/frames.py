"""How frames lie in a stream of bytes: four bytes of header, then the frame.

The header's first byte is the kind, the other three the length.  Data frames are the user's; the other kinds are the
transport's own, in band, so that they keep their place between data frames.  The length is checked before
anything is allocated.  A frame may be cut by reads and writes anywhere: ``FrameSplitter`` puts it together again.

``gather`` joins what waits into writes of at most ``WRITE_BYTES``, and cuts a larger frame over several, so that other
streams of the same connection get their turn in between (a write of 1 MiB holds the others up for 450 ms).
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Final

from tauraft.transport.transport import MAX_FRAME_BYTES

WRITE_BYTES: Final = 64 << 10
HEADER_BYTES: Final = 4
_MAX_CONTROL_BYTES: Final = 16 << 10


class Kind(IntEnum):
    DATA = 0
    PING = 1
    END = 2  # a clean end: libp2p gives the same end of file for a reset and for a close
    HELLO = 3
    CONFIRM = 4
    LANE = 5  # "my lane listens on this port"
    SWITCH = 6  # "what follows comes by the lane of this number"
    FALLBACK = 7  # "what follows comes by this stream again; forget lanes up to this number"


class MalformedStream(Exception):
    """These bytes are no frames of ours; the stream is not to be used any more."""


def packed(frame: bytes, kind: Kind = Kind.DATA) -> bytes:
    return (kind << 24 | len(frame)).to_bytes(HEADER_BYTES, "big") + frame


def gather(waiting: deque[bytes]) -> bytes:
    """Take at most ``WRITE_BYTES`` from the front of what waits."""
    taken: list[bytes] = []
    room = WRITE_BYTES
    while waiting:
        piece = waiting[0]
        if len(piece) <= room:
            taken.append(waiting.popleft())
            room -= len(piece)
            continue
        # Only a frame too large for any write is cut; cutting others would cost a copy and gain nothing.
        if len(piece) > WRITE_BYTES and room:
            taken.append(piece[:room])
            waiting[0] = piece[room:]
        break
    return taken[0] if len(taken) == 1 else b"".join(taken)


class FrameSplitter:
    """Bytes in, whole frames out. Frames of other kinds than DATA are put aside in ``control``, in order."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.control: list[tuple[int, bytes]] = []
        self._max_frame_bytes = max_frame_bytes
        self._rest = bytearray()

    @property
    def is_between_frames(self) -> bool:
        return not self._rest

    def feed(self, data: bytes) -> list[bytes]:
        """Raises ``MalformedStream``."""
        if not self._rest:
            frames, end = self._split(data)
            if end < len(data):
                self._rest += memoryview(data)[end:]
            return frames
        self._rest += data
        if len(self._rest) < HEADER_BYTES or len(self._rest) < HEADER_BYTES + self._length(self._rest, 0):
            return []
        whole = bytes(self._rest)
        frames, end = self._split(whole)
        del self._rest[:end]
        return frames

    def _split(self, data: bytes) -> tuple[list[bytes], int]:
        frames: list[bytes] = []
        position, size = 0, len(data)
        while size - position >= HEADER_BYTES:
            start = position + HEADER_BYTES
            end = start + self._length(data, position)
            if end > size:
                break
            kind = data[position]
            if kind == Kind.DATA:
                frames.append(data[start:end])
            else:
                self.control.append((kind, data[start:end]))
            position = end
        return frames, position

    def _length(self, data: bytes | bytearray, position: int) -> int:
        kind = data[position]
        length = int.from_bytes(data[position + 1 : position + HEADER_BYTES], "big")
        if length > (self._max_frame_bytes if kind == Kind.DATA else _MAX_CONTROL_BYTES):
            raise MalformedStream(f"a frame of kind {kind} claims {length} bytes")
        return length
