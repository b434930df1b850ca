"""The default log: preallocated segment files, one write and one ``fdatasync`` an append.

``segment_format`` has the bytes.  A directory holds ``<number>.segment`` files; the highest one with a good
first frame is written to, the others are sealed.  Every change is a frame: entries with the hard state (``APPEND``), or
the state of everything else (``STATE``: a truncation, a reset, a compaction).  Replaying the frames of all segments in
order gives the log; an entry written again replaces what was there from its index on.

A new segment's first frame says where the previous segment ended (``previous_end``, ``previous_chain``), so what
lies behind that point there does not count.  That is also how a bad tail is cut: nothing is wiped, the next write goes
to a new segment.  Behind its end a sealed segment has an ``INDEX`` frame, by which ``open`` takes it over with one
CRC of the file instead of reading each record; without it the frames are read one by one.

``open`` writes and syncs the last frame again: every older one is known to be durable, by what the next one claims.

The next segment is prepared (filled with zeros, a step with each append) before it is needed.
In memory: 8 bytes an entry for its place, and the recent entries themselves up to ``cache_bytes``.

Not here: what a suspect tail means for votes (the driver), and who calls from which thread.
"""

from __future__ import annotations

import posixpath
import sys
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

from crc32c import crc32c

from tauraft.core.messages import Entry, EntryKind, HardState, Index, SnapshotMeta, Term
from tauraft.storage.entry_index import EntryIndex, RecentEntries, runs_of
from tauraft.storage.file_system import File, FileSystem, RealFileSystem, preallocate
from tauraft.storage.log_store import (
    Compacted,
    LogCorrupt,
    Recovered,
    StorageError,
    StorageFailed,
    StorageFull,
    check_consecutive,
    check_range,
    failure,
    failure_of,
)
from tauraft.storage.segment_format import (
    ENTRY_HEAD,
    ENTRY_OVERHEAD,
    FORMAT,
    FRAME_OVERHEAD,
    HEADER_BYTES,
    Frame,
    FrameKind,
    LaterFrameClaims,
    Tail,
    decode_frame,
    encode_frame,
    judge_tail,
    pack_crc,
    position,
    unpack_crc_from,
)
from tauraft.storage.state_codec import (
    LogState,
    hard_state_from_plain,
    hard_state_to_plain,
    log_state_from_plain,
    log_state_to_plain,
    pack,
    unpack,
)

_SUFFIX = ".segment"
_PREPARE_STEP_BYTES = 256 * 1024
_READ_BYTES = 256 * 1024
_KINDS = tuple(EntryKind)


class _Segment:
    """A segment to write to.

    ``end``: behind its last good frame; ``filled``: zeros are written and synced up to there; ``dirty_to``: a write
    that failed may have left bytes up to there; ``entry_count``: how many places its INDEX frame has to have room for.
    """

    __slots__ = ("chain", "dirty_to", "end", "entry_count", "file", "filled", "number", "path", "size")

    def __init__(self, number: int, path: str, file: File, size: int) -> None:
        self.number = number
        self.path = path
        self.file = file
        self.size = size
        self.end = 0
        self.chain = 0
        self.filled = 0
        self.dirty_to = 0
        self.entry_count = 0


class _Final:
    """Around what touches the disk: whatever fails is final, and the log takes nothing any more.

    ``unless_full``: but for a full disk, around writes. Around syncs and reads that is final too: the log could no
    longer say what it holds. (A class, because every append enters two of them.)
    """

    __slots__ = ("_log", "_unless_full")

    def __init__(self, log: SegmentLog, *, unless_full: bool) -> None:
        self._log = log
        self._unless_full = unless_full

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise self._log.failed(error, unless_full=self._unless_full) from error


class SegmentLog:
    """A ``LogStore`` in ``directory``, which exists. One thread at a time.

    Segments double in size from ``first_segment_bytes`` to ``segment_bytes``, so that a thousand idle logs on one
    disk stay small. ``must_exist``: this log has been here before; an empty directory is then corruption, not a new
    log (its votes would be lost).
    """

    def __init__(
        self,
        directory: str,
        *,
        files: FileSystem | None = None,
        segment_bytes: int = 16 << 20,
        first_segment_bytes: int = 256 << 10,
        cache_bytes: int = 8 << 20,
        must_exist: bool = False,
    ) -> None:
        self._directory = directory
        self._files: FileSystem = RealFileSystem() if files is None else files
        self._segment_bytes = segment_bytes
        self._first_segment_bytes = min(first_segment_bytes, segment_bytes)
        self._must_exist = must_exist
        self._index = EntryIndex(1)
        self._recent = RecentEntries(cache_bytes)
        self._state = LogState()  # its last_index and hard state are not kept up
        self._hard_state = self._state.hard_state
        self._current: _Segment | None = None
        self._must_roll = False
        self._next: _Segment | None = None
        self._may_prepare = True
        self._number = 0  # the highest one in use
        self._sealed: list[int] = []  # numbers on disk before the current one, oldest first
        self._reader: tuple[int, File] | None = None
        self._failure: str | None = None
        self._final, self._final_unless_full = _Final(self, unless_full=False), _Final(self, unless_full=True)
        self._is_open = False

    # -- LogStore

    def open(self) -> Recovered:
        recovery = _Recovery(self._files, self._directory, self._index)
        recovery.run(self._must_exist)
        self._is_open = True
        self._state = recovery.state
        self._hard_state = recovery.state.hard_state
        self._number = recovery.highest
        if recovery.current is None:
            self._start_new_log()
        else:
            number, end, chain = recovery.current
            path = self._path(number)
            file = self._files.open(path)
            self._current = _Segment(number, path, file, file.size())
            self._current.end, self._current.chain = end, chain
            self._current.entry_count = self.last_index + 1 - self._index.first_in(number)
            self._must_roll = recovery.tail is not Tail.CLEAN
            self._write_again(self._current, recovery.unsynced_from)
            self._sealed = [other for other in recovery.chain if other != number]
            if recovery.tail is Tail.SUSPECT:
                self._state = replace(self._state, is_tail_suspect=True)
        self._unlink(recovery.unused)
        self._drop_unneeded()
        return Recovered(
            self.first_index,
            self.last_index,
            self._hard_state,
            self._state.snapshot,
            self._state.is_tail_suspect,
        )

    @property
    def first_index(self) -> Index:
        return self._index.first

    @property
    def last_index(self) -> Index:
        return self._index.last

    def append(self, entries: Sequence[Entry], hard_state: HardState | None = None) -> None:
        check_consecutive(entries, self._state.base, self._index.last)
        if not entries and hard_state is None:
            return
        self._check_usable()
        packed = b"" if hard_state is None else pack(hard_state_to_plain(hard_state))
        pieces = [len(packed).to_bytes(2, "little"), packed]
        length = 2 + len(packed)
        offsets: list[int] = []
        pack_head = ENTRY_HEAD.pack
        for entry in entries:
            data = entry.data
            head = pack_head(len(data), entry.index, entry.term, entry.kind)
            pieces += (head, pack_crc(crc32c(data, crc32c(head))), data)
            offsets.append(length)
            length += ENTRY_OVERHEAD + len(data)
        if entries:
            first = entries[0].index
            kept_last = first - 1
            # The new segment's state, if this append starts one, is the log before it.
            place = self._write(FrameKind.APPEND, pieces, length, len(entries)) + HEADER_BYTES
            if kept_last < self._index.last:
                self._index.cut_to(kept_last)
            self._index.extend(array("Q", [place + offset for offset in offsets]), runs_of(entries))
            self._recent.append(entries)
        else:
            self._write(FrameKind.APPEND, pieces, length, 0)
        if hard_state is not None:
            self._hard_state = hard_state
        self._prepare_step(length)

    def save_hard_state(self, hard_state: HardState) -> None:
        self.append((), hard_state)

    def read(self, low: Index, high: Index, max_bytes: int) -> list[Entry]:
        check_range(low, high, self._index.first, self._index.last)
        self._check_usable()
        if low == high:
            return []
        entries = self._recent.read(low, high, max_bytes)
        return self._read_from_disk(low, high, max_bytes) if entries is None else entries

    def term(self, index: Index) -> Term:
        if index == self._state.base:
            return self._state.base_term
        check_range(index, index + 1, self._index.first, self._index.last)
        return self._index.term(index)

    def truncate_suffix(self, keep_to: Index) -> None:
        if keep_to < self._state.base:
            raise Compacted(keep_to, self._index.first)
        if keep_to < self._index.last:
            self._write_state(self._changed(last_index=keep_to))
            self._index.cut_to(keep_to)
            self._recent.cut_to(keep_to)

    def reset_at(self, meta: SnapshotMeta, hard_state: HardState | None = None) -> None:
        self._write_state(
            LogState(
                last_index=meta.index,
                base=meta.index,
                base_term=meta.term,
                hard_state=self._hard_state if hard_state is None else hard_state,
                snapshot=meta,
                is_tail_suspect=self._state.is_tail_suspect,
            )
        )
        self._index.restart(meta.index + 1)
        self._recent.clear()
        self._drop_unneeded()

    def compact_prefix(self, up_to: Index) -> None:
        if up_to <= self._state.base:
            return
        self._write_state(
            self._changed(last_index=self._index.last, base=up_to, base_term=self.term(up_to), snapshot=None)
        )
        self._index.drop_to(up_to)
        self._drop_unneeded()

    def confirm_tail(self) -> None:
        if self._state.is_tail_suspect:
            self._write_state(self._changed(last_index=self._index.last, is_tail_suspect=False))

    def close(self) -> None:
        self._is_open = False
        for segment in (self._current, self._next):
            if segment is not None:
                segment.file.close()
        self._current = self._next = None
        self._close_reader()

    # -- writing

    def failed(self, error: OSError, *, unless_full: bool) -> StorageError:
        """What to raise; final but for a full disk, where that is not."""
        reported = failure(self._directory, error)
        if unless_full and isinstance(reported, StorageFull):
            return reported
        self._failure = failure_of(self._directory, error)
        return StorageFailed(self._failure)

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise StorageFailed(self._failure)
        if not self._is_open:
            raise ValueError("this log is not open")

    def _changed(self, **changes: Any) -> LogState:
        return replace(self._state, hard_state=self._hard_state, **changes)

    def _write_state(self, state: LogState) -> None:
        self._check_usable()
        payload = pack(log_state_to_plain(state))
        self._write(FrameKind.STATE, [payload], len(payload), 0)
        self._state = state
        self._hard_state = state.hard_state

    def _write(self, kind: FrameKind, pieces: list[bytes], length: int, entry_count: int) -> int:
        """Write one frame, in a new segment if this one is full; return its place. Nothing changed if it raises."""
        segment = self._current
        assert segment is not None
        if (
            not self._must_roll
            and segment.end + FRAME_OVERHEAD + length + _index_bytes(segment.entry_count + entry_count) <= segment.size
        ):
            start = segment.end
            frame = encode_frame(
                kind, pieces, length, segment.number, start, segment.chain, position(segment.number, start)
            )
            self._write_and_sync(segment, start, frame)
        else:
            payload = self._first_payload(segment)
            following = self._take_next(2 * FRAME_OVERHEAD + len(payload) + length)
            synced_up_to = position(segment.number, segment.end)
            head = _first_frame(payload, following.number, synced_up_to)
            start = len(head)
            frame = encode_frame(kind, pieces, length, following.number, start, crc32c(head), synced_up_to)
            frame = head + frame
            self._write_and_sync(following, 0, frame)
            if not self._must_roll:
                self._write_index(segment)
            segment.file.close()
            self._sealed.append(segment.number)
            segment = self._current = following
            self._next = None
            self._must_roll = False
            self._may_prepare = True
        segment.chain = crc32c(frame, segment.chain)
        segment.end += len(frame)
        segment.entry_count += entry_count
        return position(segment.number, start)

    def _first_payload(self, previous: _Segment | None) -> bytes:
        state = self._changed(last_index=self._index.last)
        before = [0, 0, 0] if previous is None else [previous.number, previous.end, previous.chain]
        return pack([FORMAT, *before, log_state_to_plain(state)])

    def _write_and_sync(self, segment: _Segment, start: int, frame: bytes) -> None:
        end = start + len(frame)
        data = frame + bytes(segment.dirty_to - end) if segment.dirty_to > end else frame
        try:
            with self._final_unless_full:
                segment.file.write(start, data)
        except StorageFull:
            segment.dirty_to = max(segment.dirty_to, min(end, segment.file.size()))
            raise
        with self._final:
            segment.file.sync_data()
        segment.dirty_to = 0

    def _write_again(self, segment: _Segment, start: int) -> None:
        """Make durable what was read: the process before may have died, or seen its sync fail, between write and sync.

        Its bytes come from the page cache then. Syncing alone would not do: pages whose sync failed count as clean.
        """
        with self._final:
            data = segment.file.read(start, segment.end - start)
        self._write_and_sync(segment, start, data)

    # -- segments

    def _path(self, number: int) -> str:
        return posixpath.join(self._directory, f"{number:010d}{_SUFFIX}")

    def _size_of(self, number: int) -> int:
        return min(self._segment_bytes, self._first_segment_bytes << min(number - 1, 40))

    def _start_new_log(self) -> None:
        segment = self._create_segment(self._size_of(self._number + 1))
        frame = _first_frame(self._first_payload(None), segment.number, 0)
        self._write_and_sync(segment, 0, frame)
        segment.end, segment.chain = len(frame), crc32c(frame)
        self._current, self._next = segment, None

    def _create_segment(self, size: int) -> _Segment:
        """A new segment, filled with zeros, its name durable. Raises ``StorageFull`` and leaves nothing then."""
        segment = self._begin_segment(size)
        self._fill_next(segment, size)
        return segment

    def _begin_segment(self, size: int) -> _Segment:
        number = self._number + 1
        path = self._path(number)
        with self._final_unless_full:
            with suppress(FileNotFoundError):
                self._files.unlink(path)
            segment = self._next = _Segment(number, path, self._files.open(path, create=True, exclusive=True), size)
        self._number = number
        with self._final:
            self._files.sync_directory(self._directory)
        return segment

    def _fill_next(self, segment: _Segment, step: int) -> None:
        """Zeros for the next ``step`` bytes, synced."""
        step = min(step, segment.size - segment.filled)
        try:
            with self._final_unless_full:
                preallocate(segment.file, segment.filled, step)
        except StorageFull:
            self._abandon_next()
            raise
        with self._final:
            segment.file.sync_data()
        segment.filled += step

    def _abandon_next(self) -> None:
        assert self._next is not None
        self._next.file.close()
        with suppress(OSError):
            self._files.unlink(self._next.path)
        self._next = None

    def _prepare_step(self, written: int) -> None:
        """Do a part of the work for the next segment, so that no append pays for all of it."""
        segment = self._current
        assert segment is not None
        if not self._may_prepare or segment.end < segment.size // 2:
            return
        try:
            if self._next is None:
                self._begin_segment(self._size_of(self._number + 1))
            elif self._next.filled < self._next.size:
                self._fill_next(self._next, max(_PREPARE_STEP_BYTES, 4 * written))
        except StorageFull:
            # The append itself took effect. The one that needs the segment tries again and reports it.
            self._may_prepare = False

    def _take_next(self, needed: int) -> _Segment:
        """The segment to go on with, of at least ``needed`` bytes."""
        segment = self._next
        if segment is not None and segment.size < needed:
            self._abandon_next()
            segment = None
        if segment is None:
            return self._create_segment(max(self._size_of(self._number + 1), needed))
        if segment.filled < segment.size:
            self._fill_next(segment, segment.size)
        return segment

    def _write_index(self, segment: _Segment) -> None:
        """Write the index of a segment that is full. Not synced: it only makes ``open`` quicker."""
        first = self._index.first_in(segment.number)
        offsets = self._index.offsets(first)
        if sys.byteorder == "big":
            offsets.byteswap()
        payload = pack([first, self._index.runs(first) if offsets else [], offsets.tobytes()])
        frame = encode_frame(
            FrameKind.INDEX,
            [payload],
            len(payload),
            segment.number,
            segment.end,
            segment.chain,
            position(segment.number, segment.end),
        )
        with suppress(OSError):  # then the frames are read one by one
            if segment.end + len(frame) <= segment.size:
                segment.file.write(segment.end, frame)

    def _drop_unneeded(self) -> None:
        """Unlink the segments before the one with the first entry.

        A crash here leaves some: ``open`` drops them again.
        """
        first = self._index.first
        oldest = self._index.place(first) >> 32 if first <= self._index.last else self._number + 1
        unneeded = [number for number in self._sealed if number < oldest]
        if unneeded:
            self._close_reader()
            self._unlink(unneeded)
            self._sealed = self._sealed[len(unneeded) :]

    def _unlink(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            with suppress(OSError):
                self._files.unlink(self._path(number))

    # -- reading

    def _read_from_disk(self, low: Index, high: Index, max_bytes: int) -> list[Entry]:
        entries: list[Entry] = []
        taken = 0
        data, start, segment = b"", 0, -1
        for index in range(low, high):
            place = self._index.place(index)
            offset = place & 0xFFFFFFFF
            if place >> 32 != segment or offset + ENTRY_OVERHEAD > start + len(data):
                segment, start = place >> 32, offset
                data = self._read_bytes(segment, start, min(_READ_BYTES, max_bytes + ENTRY_OVERHEAD))
            length = (
                ENTRY_HEAD.unpack_from(data, offset - start)[0] if len(data) >= ENTRY_OVERHEAD + offset - start else 0
            )
            if offset + ENTRY_OVERHEAD + length > start + len(data):
                start = offset
                data = self._read_bytes(segment, start, ENTRY_OVERHEAD + length)
            entry = _decode_entry(data, offset - start)
            if entry is None or entry.index != index:
                raise LogCorrupt(self._path(segment), offset, f"entry {index} is damaged")
            taken += len(entry.data)
            if taken > max_bytes and entries:
                break
            entries.append(entry)
        return entries

    def _read_bytes(self, segment: int, offset: int, size: int) -> bytes:
        assert self._current is not None
        with self._final:
            if segment == self._current.number:
                return self._current.file.read(offset, size)
            if self._reader is None or self._reader[0] != segment:
                self._close_reader()
                self._reader = (segment, self._files.open(self._path(segment), writable=False))
            return self._reader[1].read(offset, size)

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader[1].close()
            self._reader = None


def _first_frame(payload: bytes, number: int, synced_up_to: int) -> bytes:
    return encode_frame(FrameKind.SEGMENT, [payload], len(payload), number, 0, 0, synced_up_to)


def _index_bytes(entry_count: int) -> int:
    """How much room to leave for the INDEX frame. Many terms take more; such a segment goes without."""
    return FRAME_OVERHEAD + 256 + 4 * entry_count


def _decode_entry(data: bytes, start: int) -> Entry | None:
    """The entry there, if it is all there and what was written."""
    crc_at = start + ENTRY_HEAD.size
    if crc_at + 4 > len(data):
        return None
    length, index, term, kind = ENTRY_HEAD.unpack_from(data, start)
    body = data[crc_at + 4 : crc_at + 4 + length]
    if len(body) != length or unpack_crc_from(data, crc_at)[0] != crc32c(body, crc32c(data[start:crc_at])):
        return None
    return Entry(index, term, _KINDS[kind], body)


class _Recovery:
    """Finds the segments that count and replays them into an index and a state. Changes nothing on disk."""

    def __init__(self, files: FileSystem, directory: str, index: EntryIndex) -> None:
        self._files = files
        self._directory = directory
        self._index = index
        self.state = LogState()
        self.highest = 0
        self.current: tuple[int, int, int] | None = None  # number, end, chain
        self.unsynced_from = 0  # in the current segment: no frame says that what lies behind was synced
        self.tail = Tail.CLEAN
        self.chain: list[int] = []
        self.unused: list[int] = []

    def run(self, must_exist: bool) -> None:
        numbers = sorted(_numbers_in(self._files.list_directory(self._directory)))
        self.highest = max(numbers, default=0)
        firsts = {number: self._first_frame(number) for number in numbers}
        written = [number for number in numbers if firsts[number] is not None]
        if not written:
            self._check_that_nothing_was_here(numbers, must_exist)
            self.unused = numbers
            return
        self.chain = _chain_of(written[-1], firsts)
        self.unused = [number for number in numbers if number not in self.chain]
        for number, following in zip(self.chain, self.chain[1:], strict=False):
            _, end, chain = firsts[following][1:4]  # type: ignore[index]
            self._replay_sealed(number, end, chain)
        self._replay_last(self.chain[-1], [number for number in numbers if number > self.chain[-1]])
        if self._index.first != self.state.base + 1:
            missing = firsts[self.chain[0]][1]  # type: ignore[index]
            raise LogCorrupt(
                self._path(missing),
                0,
                f"entries {self.state.base + 1} to {self._index.first - 1} are gone: the segment is missing or its "
                f"beginning is damaged",
            )

    def _check_that_nothing_was_here(self, numbers: Sequence[int], must_exist: bool) -> None:
        if must_exist:
            raise LogCorrupt(self._directory, 0, "the log that this member had is gone")
        for number in numbers:
            if self._judge(number, self._read(number), 0) is Tail.SUSPECT:
                raise LogCorrupt(self._path(number), 0, "the first record of the log is damaged")

    def _path(self, number: int) -> str:
        return posixpath.join(self._directory, f"{number:010d}{_SUFFIX}")

    def _read(self, number: int, limit: int = 1 << 40) -> bytes:
        file = self._files.open(self._path(number), writable=False)
        try:
            return file.read(0, min(limit, file.size()))
        finally:
            file.close()

    def _first_frame(self, number: int) -> list[Any] | None:
        """What the first frame of a segment says, None if it is not good."""
        for limit in (64 << 10, 1 << 40):
            data = self._read(number, limit)
            frame = decode_frame(data, 0, number, 0)
            if frame is not None and frame.kind == FrameKind.SEGMENT:
                plain: list[Any] = unpack(data[frame.payload_start : frame.payload_end])
                if plain[0] != FORMAT:
                    raise LogCorrupt(
                        self._path(number), frame.payload_start, f"format {plain[0]}, this program knows {FORMAT};"
                    )
                return plain
            if len(data) < limit:
                break
        return None

    def _replay_sealed(self, number: int, end: int, chain: int) -> None:
        data = self._read(number)
        if end <= len(data) and crc32c(memoryview(data)[:end]) == chain:
            index_frame = decode_frame(data, end, number, chain)
            if index_frame is not None and index_frame.kind == FrameKind.INDEX:
                self._take_first_frame(number, data)
                self._take_index(number, data[index_frame.payload_start : index_frame.payload_end])
                return
        reached, reached_chain = self._replay_frames(number, data, end)
        if reached != end or reached_chain != chain:
            raise LogCorrupt(self._path(number), reached, "a record that was written and synced is damaged")

    def _replay_last(self, number: int, later: Sequence[int]) -> None:
        data = self._read(number)
        end, chain = self._replay_frames(number, data, len(data))
        self.current = (number, end, chain)
        tails = [self._judge(number, data, end), *(self._judge(other, self._read(other), 0) for other in later)]
        self.tail = next((tail for tail in (Tail.SUSPECT, Tail.TORN) if tail in tails), Tail.CLEAN)

    def _judge(self, number: int, data: bytes, start: int) -> Tail:
        try:
            return judge_tail(data, start, number)
        except LaterFrameClaims as claim:
            raise LogCorrupt(
                self._path(number),
                start,
                f"a record is damaged that was synced before the one at byte {claim.offset} was written,",
            ) from None

    def _take_first_frame(self, number: int, data: bytes) -> int:
        frame = decode_frame(data, 0, number, 0)
        assert frame is not None
        self._take_frame(number, data, frame)
        return frame.end

    def _replay_frames(self, number: int, data: bytes, limit: int) -> tuple[int, int]:
        """Replay the good frames; return where they end and the chain there."""
        start, chain = 0, 0
        view = memoryview(data)
        while start < limit and (frame := decode_frame(data, start, number, chain)) is not None:
            if frame.end > limit:
                break
            self._take_frame(number, data, frame)
            self.unsynced_from = frame.synced_up_to & 0xFFFFFFFF if frame.synced_up_to >> 32 == number else 0
            chain = crc32c(view[start : frame.end], chain)
            start = frame.end
        return start, chain

    def _take_frame(self, number: int, data: bytes, frame: Frame) -> None:
        if frame.kind == FrameKind.APPEND:
            self._take_append(number, data, frame)
        elif frame.kind == FrameKind.STATE:
            self._take_state(log_state_from_plain(unpack(data[frame.payload_start : frame.payload_end])))
        elif frame.kind == FrameKind.SEGMENT:
            state = log_state_from_plain(unpack(data[frame.payload_start : frame.payload_end])[4])
            if number == self.chain[0]:
                self._index.restart(state.last_index + 1)
            self._take_state(state)

    def _take_append(self, number: int, data: bytes, frame: Frame) -> None:
        start = frame.payload_start + 2
        length = int.from_bytes(data[frame.payload_start : start], "little")
        if length:
            hard_state = hard_state_from_plain(unpack(data[start : start + length]))
            self.state = replace(self.state, hard_state=hard_state)
            start += length
        end = frame.payload_end
        if start == end:
            return
        first = ENTRY_HEAD.unpack_from(data, start)[1]
        unpack_head = ENTRY_HEAD.unpack_from
        base = number << 32
        places: list[int] = []
        runs: list[tuple[Index, Term]] = []
        run_term = -1
        while start < end:
            size, index, term, _ = unpack_head(data, start)
            if term != run_term:
                run_term = term
                runs.append((index, term))
            places.append(base | start)
            start += ENTRY_OVERHEAD + size
        if first <= self._index.last:
            self._index.cut_to(first - 1)
        self._index.extend(array("Q", places), runs)

    def _take_state(self, state: LogState) -> None:
        self.state = state
        if state.last_index < self._index.last:
            self._index.cut_to(state.last_index)
        if state.base >= self._index.first:
            self._index.drop_to(state.base)

    def _take_index(self, number: int, payload: bytes) -> None:
        first, runs, packed = unpack(payload)
        offsets = array("I")
        offsets.frombytes(packed)
        if sys.byteorder == "big":
            offsets.byteswap()
        if first > self._index.last + 1:
            self._index.restart(first)
        else:
            self._index.cut_to(first - 1)
        base = number << 32
        self._index.extend(array("Q", [base | offset for offset in offsets]), [(start, term) for start, term in runs])


def _chain_of(last: int, firsts: dict[int, list[Any] | None]) -> list[int]:
    """The segments that lead to ``last``, oldest first, as far back as they are there."""
    chain = [last]
    while (first := firsts[chain[0]]) is not None and firsts.get(first[1]) is not None:
        chain.insert(0, first[1])
    return chain


def _numbers_in(names: Sequence[str]) -> list[int]:
    return [int(name[: -len(_SUFFIX)]) for name in names if name.endswith(_SUFFIX) and name[: -len(_SUFFIX)].isdigit()]
