"""The bytes of a log segment: frames, entries, and what a bad one means (SAFETY 23).

A segment is a file of frames, then zeros. Little-endian throughout::

    frame   = header (36) payload trailer (12)
    header  = "TRF\\x93" kind:u8 0:u8 0:u16 payload_length:u32 segment:u32 offset:u32 chain:u32 synced_up_to:u64 crc:u32
    trailer = crc:u32 payload_length:u32 "\\x9fEND"
    entry   = data_length:u32 index:u64 term:u64 kind:u8 crc:u32 data

``chain`` is the CRC32C of all bytes of the segment before the frame: a frame is only good after exactly the frames it
was written behind. The trailer's crc covers header and payload. ``synced_up_to`` is a position, ``segment << 32 |
offset``: what lay before it was on disk before this frame was written.

A frame that is not good, with nothing good behind it that claims it was synced, was the last write:

- *torn*: it visibly never arrived whole (its end is missing, or a whole sector of its header). It was not
  acknowledged: cut.
- *suspect*: all parts are there and disagree. A tear in the middle, or a flipped bit in a record that was acknowledged.

If a later frame claims it was synced, it is corruption whatever it looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from struct import Struct

from crc32c import crc32c

from tauraft.storage.file_system import SECTOR_BYTES

FORMAT = 1

_HEADER = Struct("<4sBBHIIIIQ")
_CRC = Struct("<I")
_TRAILER = Struct("<II4s")
ENTRY_HEAD = Struct("<IQQB")
ENTRY_OVERHEAD = ENTRY_HEAD.size + _CRC.size
_HEADER_MAGIC = b"TRF\x93"
_TRAILER_MAGIC = b"\x9fEND"
HEADER_BYTES = _HEADER.size + _CRC.size
TRAILER_BYTES = _TRAILER.size
FRAME_OVERHEAD = HEADER_BYTES + TRAILER_BYTES

pack_crc = _CRC.pack
unpack_crc_from = _CRC.unpack_from


class FrameKind(IntEnum):
    SEGMENT = 1  # the first frame of a segment: format, where the previous segment ended, the log's state
    APPEND = 2  # a hard state (or none) and entries
    STATE = 3  # the log's state: a truncation, reset, compaction...
    INDEX = 4  # behind the end of a sealed segment: where its entries are


@dataclass(frozen=True, slots=True)
class Frame:
    kind: int
    start: int
    end: int
    payload_start: int
    payload_end: int
    chain: int
    synced_up_to: int


class Tail(Enum):
    """What is behind the last good frame."""

    CLEAN = "clean"
    TORN = "torn"
    SUSPECT = "suspect"


class LaterFrameClaims(Exception):
    """A frame behind a bad one says that the bad one was synced: ``offset`` is where."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


def position(segment: int, offset: int) -> int:
    return segment << 32 | offset


def encode_frame(
    kind: FrameKind, pieces: list[bytes], payload_length: int, segment: int, offset: int, chain: int, synced_up_to: int
) -> bytes:
    """``pieces`` are the payload; they are taken over by the call."""
    head = _HEADER.pack(_HEADER_MAGIC, kind, 0, 0, payload_length, segment, offset, chain, synced_up_to)
    pieces.insert(0, head + pack_crc(crc32c(head)))
    body = b"".join(pieces)
    return body + _TRAILER.pack(crc32c(body), payload_length, _TRAILER_MAGIC)


def decode_header(data: bytes, start: int, segment: int) -> Frame | None:
    """The frame that starts there, if its header is intact; its payload is not looked at."""
    if start + HEADER_BYTES > len(data):
        return None
    magic, kind, zero, reserved, length, its_segment, its_offset, chain, synced = _HEADER.unpack_from(data, start)
    if magic != _HEADER_MAGIC or its_segment != segment or its_offset != start or zero or reserved:
        return None
    payload_start = start + HEADER_BYTES
    if unpack_crc_from(data, payload_start - 4)[0] != crc32c(data[start : payload_start - 4]):
        return None
    payload_end = payload_start + length
    return Frame(kind, start, payload_end + TRAILER_BYTES, payload_start, payload_end, chain, synced)


def is_intact(data: bytes, frame: Frame) -> bool:
    """Whether payload and trailer are what was written. ``frame`` comes from ``decode_header``."""
    if frame.end > len(data):
        return False
    crc, length, magic = _TRAILER.unpack_from(data, frame.payload_end)
    return bool(
        magic == _TRAILER_MAGIC
        and length == frame.payload_end - frame.payload_start
        and crc == crc32c(memoryview(data)[frame.start : frame.payload_end])
    )


def decode_frame(data: bytes, start: int, segment: int, chain: int) -> Frame | None:
    """The frame at ``start``, if it is good behind bytes with the CRC ``chain``."""
    frame = decode_header(data, start, segment)
    return frame if frame is not None and frame.chain == chain and is_intact(data, frame) else None


def find_claim(data: bytes, start: int, segment: int, bad: int) -> int | None:
    """The offset of a frame at or behind ``start`` that claims that more than the position ``bad`` was synced."""
    while (start := data.find(_HEADER_MAGIC, start)) >= 0:
        frame = decode_header(data, start, segment)
        if frame is not None and frame.synced_up_to > bad:
            return start
        start += 1
    return None


def judge_tail(data: bytes, start: int, segment: int) -> Tail:
    """What is at ``start``, where no good frame is. Raises ``LaterFrameClaims``: corruption."""
    written = len(data.rstrip(b"\0"))
    if written <= start:
        return Tail.CLEAN
    frame = decode_header(data, start, segment)
    search_from = start + 1 if frame is None else frame.end
    claim = find_claim(data, search_from, segment, position(segment, start))
    if claim is not None:
        raise LaterFrameClaims(claim)
    if frame is None:
        is_torn = written <= start + HEADER_BYTES or _has_empty_sector(
            data, start, start + HEADER_BYTES, start, written
        )
    else:
        is_torn = _is_trailer_missing(data, frame, written)
    return Tail.TORN if is_torn else Tail.SUSPECT


def _is_trailer_missing(data: bytes, frame: Frame, written: int) -> bool:
    if written <= frame.payload_end or _has_empty_sector(data, frame.payload_end, frame.end, frame.start, frame.end):
        return True
    if written >= frame.end:
        return False
    # Something of the trailer is there. A tear has left the beginning of the right one.
    crc = crc32c(memoryview(data)[frame.start : frame.payload_end])
    expected = _TRAILER.pack(crc, frame.payload_end - frame.payload_start, _TRAILER_MAGIC)
    return expected.startswith(data[frame.payload_end : written])


def _has_empty_sector(data: bytes, start: int, end: int, low: int, high: int) -> bool:
    """Whether one of the sectors that share ``[start, end)`` has only zeros in ``[low, high)``.

    Disks write whole sectors.
    """
    sector = start - start % SECTOR_BYTES
    while sector < end:
        if not any(data[max(low, sector) : min(high, sector + SECTOR_BYTES)]):
            return True
        sector += SECTOR_BYTES
    return False
