"""What is particular to segments:

torn tails and flipped bits (SAFETY 23), full and failing disks (SAFETY 32), the bytes.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tauraft.core.messages import HardState
from tauraft.storage.file_system import File, FileSystem, MemoryFileSystem, PowerLost, _MemoryInode, read_whole
from tauraft.storage.log_store import LogCorrupt, Recovered, StorageFailed, StorageFull
from tauraft.storage.segment_format import HEADER_BYTES, FrameKind, decode_frame, encode_frame
from tauraft.storage.segment_log import SegmentLog
from tauraft.testing.log_store_suite import ALICE, BOB, EVERYTHING, Model, Step, make_entries, make_meta

GOLDEN = Path(__file__).parent.parent / "golden" / "storage_segment.hex"
FIRST = "/log/0000000001.segment"


def open_log(files: FileSystem, **options: int | bool) -> tuple[SegmentLog, Recovered]:
    if not files.exists("/log"):
        files.make_directory("/log")
        files.sync_directory("/")
    log = SegmentLog("/log", files=files, **options)  # type: ignore[arg-type]
    return log, log.open()


def small_log() -> tuple[MemoryFileSystem, list[Model], list[int]]:
    """A log in one segment; what it held after each change, and how many bytes it took."""
    files = MemoryFileSystem()
    log, _ = open_log(files, first_segment_bytes=2048)
    model = Model()
    models, sizes = [model.copy()], [used(files)]
    steps: list[Step] = [
        lambda target: target.append(make_entries(1, 2), HardState(1, ALICE, 0)),
        lambda target: target.append(make_entries(3, 4), HardState(1, ALICE, 2)),
        lambda target: target.truncate_suffix(3),
        lambda target: target.append(make_entries(4, 5, term=2), HardState(2, BOB, 3)),
        lambda target: target.append(make_entries(6, 6, term=2, size=600)),
    ]
    for step in steps:
        step(log)
        step(model)
        models.append(model.copy())
        sizes.append(used(files))
    log.close()
    return files, models, sizes


def used(files: FileSystem) -> int:
    return len(read_whole(files, FIRST).rstrip(b"\0"))


def copy_of(files: FileSystem, content: bytes) -> MemoryFileSystem:
    copy = MemoryFileSystem()
    copy.make_directory("/log")
    file = copy.open(FIRST, create=True)
    file.write(0, content)
    file.sync_data()
    copy.sync_directory("/log")
    copy.sync_directory("/")
    return copy


@pytest.mark.parametrize("padding", ["zeros", "end of file"])
def test_a_log_cut_at_any_byte_holds_what_was_whole(padding: str) -> None:
    files, models, sizes = small_log()
    content = read_whole(files, FIRST)
    for cut in range(sizes[0], sizes[-1]):
        torn = content[:cut].ljust(len(content), b"\0") if padding == "zeros" else content[:cut]
        copy = copy_of(files, torn)
        log, recovered = open_log(copy)
        whole = sum(size <= cut for size in sizes) - 1
        assert models[whole].describes(log, recovered), (cut, recovered)
        assert not recovered.is_tail_suspect, cut
        log.append(make_entries(log.last_index + 1, log.last_index + 1, term=3))
        log.close()
        again, recovered = open_log(copy)
        assert recovered.last_index == models[whole].last_index + 1
        assert not recovered.is_tail_suspect
        again.close()


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_any_flipped_byte_is_found_or_made_harmless(mask: int) -> None:
    files, models, sizes = small_log()
    content = read_whole(files, FIRST)
    outcomes = {"corrupt": 0, "suspect": 0}
    for offset in range(sizes[-1]):
        copy = copy_of(files, content)
        copy.flip(FIRST, offset, mask)
        if offset < sizes[-2]:
            with pytest.raises(LogCorrupt) as corrupt:
                open_log(copy)
            assert corrupt.value.path == FIRST
            assert corrupt.value.offset <= offset
            outcomes["corrupt"] += 1
            continue
        log, recovered = open_log(copy)
        outcomes["suspect"] += 1
        assert recovered.is_tail_suspect, offset
        assert models[-2].describes(log, recovered)
    assert outcomes == {"corrupt": sizes[-2], "suspect": sizes[-1] - sizes[-2]}


def test_a_suspect_tail_stays_suspect_until_it_is_confirmed() -> None:
    files, _, sizes = small_log()
    files.flip(FIRST, sizes[-1] - 300)
    for _ in range(2):
        log, recovered = open_log(files)
        assert recovered.is_tail_suspect
        assert recovered.last_index == 5
        log.close()
    log, _ = open_log(files)
    log.append(make_entries(6, 7, term=3), HardState(3, None, 3))
    log.close()
    log, recovered = open_log(files)
    assert recovered.is_tail_suspect
    assert recovered.last_index == 7
    log.confirm_tail()
    log.close()
    log, recovered = open_log(files)
    assert not recovered.is_tail_suspect
    assert recovered.hard_state == HardState(3, None, 3)


def test_a_reset_does_not_clear_a_suspicion() -> None:
    """Entries of before the reset may be what was lost: a vote was given with them."""
    files, _, sizes = small_log()
    files.flip(FIRST, sizes[-1] - 300)
    log, _ = open_log(files)
    log.reset_at(make_meta(50, 3))
    log.close()
    _, recovered = open_log(files)
    assert recovered.is_tail_suspect


def test_a_bad_tail_is_kept_for_whoever_wants_to_look_at_it() -> None:
    files, _, sizes = small_log()
    files.flip(FIRST, sizes[-1] - 300)
    damaged = read_whole(files, FIRST)
    log, _ = open_log(files)
    log.append(make_entries(6, 7, term=3))
    log.close()
    assert read_whole(files, FIRST) == damaged


def rolled_log(files: FileSystem) -> Model:
    model = Model()
    log, _ = open_log(files, segment_bytes=1024, first_segment_bytes=1024)
    for index in range(1, 60):
        for target in (log, model):
            target.append(make_entries(index, index, term=index // 20))
    log.close()
    return model


def test_any_flipped_byte_of_a_sealed_segment_is_found_when_opening() -> None:
    files = MemoryFileSystem()
    model = rolled_log(files)
    path = "/log/0000000002.segment"
    harmless = 0
    for offset in range(len(read_whole(files, path))):
        files.flip(path, offset)
        try:
            log, recovered = open_log(files)
        except LogCorrupt:
            pass
        else:
            harmless += 1  # the index frame, and zeros behind it
            assert model.describes(log, recovered)
            assert not recovered.is_tail_suspect
            log.close()
        files.flip(path, offset)
    assert 0 < harmless < 500


def test_a_missing_segment_is_named() -> None:
    files = MemoryFileSystem()
    rolled_log(files)
    files.unlink("/log/0000000003.segment")
    before = files.list_directory("/log")
    with pytest.raises(LogCorrupt, match=r"0000000003\.segment") as caught:
        open_log(files)
    assert "Nothing was changed" in str(caught.value)
    assert files.list_directory("/log") == before


def test_a_log_that_must_exist_is_not_begun_anew() -> None:
    with pytest.raises(LogCorrupt, match="gone"):
        open_log(MemoryFileSystem(), must_exist=True)


def test_a_damaged_entry_is_refused_when_read() -> None:
    files = MemoryFileSystem()
    log, _ = open_log(files, cache_bytes=0)
    log.append(make_entries(1, 3, size=100))
    files.flip(FIRST, used(files) - 150)
    with pytest.raises(LogCorrupt, match="entry 2 is damaged"):
        log.read(1, 4, EVERYTHING)


def test_compaction_and_reset_free_whole_segments() -> None:
    files = MemoryFileSystem()
    rolled_log(files)
    log, _ = open_log(files, segment_bytes=1024, first_segment_bytes=1024)
    before = len(files.list_directory("/log"))
    log.compact_prefix(30)
    middle = len(files.list_directory("/log"))
    log.reset_at(make_meta(100, 5))
    assert before > middle > len(files.list_directory("/log"))
    log.close()
    log, recovered = open_log(files)
    assert (recovered.first_index, recovered.last_index, recovered.snapshot) == (101, 100, make_meta(100, 5))


class _CountingFile:
    def __init__(self, file: File, counts: dict[str, int]) -> None:
        self._file = file
        self._counts = counts
        self.size, self.truncate, self.close = file.size, file.truncate, file.close

    def read(self, offset: int, size: int) -> bytes:
        self._counts["read"] += 1
        return self._file.read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._counts["write"] += 1
        self._file.write(offset, data)

    def sync_data(self) -> None:
        self._counts["sync"] += 1
        self._file.sync_data()


class _CountingFileSystem(MemoryFileSystem):
    def __init__(self) -> None:
        super().__init__()
        self.counts = {"read": 0, "write": 0, "sync": 0}

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True) -> File:
        return _CountingFile(super().open(path, create=create, exclusive=exclusive, writable=writable), self.counts)


def test_an_append_is_one_write_and_one_sync_and_its_end_is_read_from_memory() -> None:
    files = _CountingFileSystem()
    log, _ = open_log(files)
    files.counts.update(read=0, write=0, sync=0)
    for batch in range(10):
        log.append(make_entries(batch * 5 + 1, batch * 5 + 5), HardState(1, None, batch * 5))
    assert files.counts == {"read": 0, "write": 10, "sync": 10}
    assert log.read(1, 51, EVERYTHING) == make_entries(1, 50)
    assert files.counts["read"] == 0


def test_the_next_segment_is_ready_before_it_is_needed() -> None:
    files = _CountingFileSystem()
    log, _ = open_log(files, segment_bytes=1 << 20, first_segment_bytes=1 << 20)
    worst = 0
    for index in range(1, 600):
        files.counts.update(write=0, sync=0)
        log.append(make_entries(index, index, size=5000))
        worst = max(worst, files.counts["sync"])
    assert len(files.list_directory("/log")) > 3
    assert worst == 2


def test_a_full_disk_refuses_and_works_again_when_there_is_space() -> None:
    files = MemoryFileSystem()
    log, _ = open_log(files, segment_bytes=2048, first_segment_bytes=2048)
    files.set_capacity(files.used_bytes)
    model = Model()
    for _ in range(100):
        more = make_entries(model.last_index + 1, model.last_index + 1, size=100)
        try:
            log.append(more)
        except StorageFull:
            break
        model.append(more)
    assert 5 < model.last_index < 30
    with pytest.raises(StorageFull):
        log.append(make_entries(model.last_index + 1, model.last_index + 1, size=100))
    assert log.read(1, log.last_index + 1, EVERYTHING) == model.entries
    reopened, recovered = open_log(files, segment_bytes=2048)
    assert model.describes(reopened, recovered)
    reopened.close()
    files.set_capacity(1 << 30)
    for target in (log, model):
        target.append(make_entries(model.last_index + 1, model.last_index + 3, term=2))
    log.close()
    reopened, recovered = open_log(files)
    assert model.describes(reopened, recovered)
    assert not recovered.is_tail_suspect


def test_a_write_cut_short_by_a_full_disk_leaves_no_trace() -> None:
    """Where space is taken at the write (copy-on-write file systems), the file ends behind what was written."""
    files = MemoryFileSystem()
    log, _ = open_log(files, first_segment_bytes=4096, segment_bytes=4096)
    log.append(make_entries(1, 1))
    file = files.open(FIRST)
    file.truncate(used(files))
    file.sync_data()
    files.set_capacity(files.used_bytes + 200)
    with pytest.raises(StorageFull):
        log.append(make_entries(2, 9, size=100))
    log.append(make_entries(2, 2, size=20))
    log.close()
    _, recovered = open_log(files)
    assert (recovered.last_index, recovered.is_tail_suspect) == (2, False)


def test_a_failed_sync_is_final() -> None:
    files = MemoryFileSystem()
    log, _ = open_log(files)
    log.append(make_entries(1, 3))
    files.fail_syncs(1)
    with pytest.raises(StorageFailed):
        log.append(make_entries(4, 4))
    for call in (
        lambda: log.append(make_entries(4, 4)),
        lambda: log.save_hard_state(HardState(9)),
        lambda: log.reset_at(make_meta(9, 9)),
        lambda: log.read(1, 2, EVERYTHING),
    ):
        with pytest.raises(StorageFailed):
            call()
    assert log.last_index == 3
    files.reboot(Random(1))
    _, recovered = open_log(files)
    assert recovered.last_index == 3


class _FailingWrites(MemoryFileSystem):
    is_failing = False

    def write_inode(self, inode: _MemoryInode, offset: int, data: bytes, path: str) -> None:
        if self.is_failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        super().write_inode(inode, offset, data, path)


def interrupted_log(size: int, dies_after: int | None) -> MemoryFileSystem:
    """One entry is safe; the next, of ``size`` bytes, meets a failing sync or (``dies_after``) its process's end."""
    files = MemoryFileSystem()
    log, _ = open_log(files, first_segment_bytes=2048)
    log.append(make_entries(1, 1), HardState(1, ALICE, 0))
    if dies_after is None:
        files.fail_syncs(1)
    else:
        files.lose_power_after(dies_after)
    with suppress(StorageFailed, PowerLost):
        log.append(make_entries(2, 2, size=size))
    files.fail_syncs(0)
    files.restart_process()
    return files


@pytest.mark.parametrize("size", [10, 1_950])  # the larger one starts a new segment
@pytest.mark.parametrize("dies_after", [None, *range(12)])
def test_what_open_finds_is_durable_although_it_was_never_synced(size: int, dies_after: int | None) -> None:
    """It comes from the page cache; the restarted replica tells its leader that it has it; then the power goes."""
    files = interrupted_log(size, dies_after)
    found = open_log(files)[1].last_index
    files.reboot()
    assert open_log(files)[1].last_index == found


@pytest.mark.parametrize("size", [10, 1_950])
@pytest.mark.parametrize("dies_after", [None, *range(12)])
def test_what_open_found_unsynced_is_no_hole_behind_later_records(size: int, dies_after: int | None) -> None:
    files = interrupted_log(size, dies_after)
    log, recovered = open_log(files)
    last = recovered.last_index + 1
    log.append(make_entries(last, last))
    files.reboot()
    assert open_log(files)[1].last_index == last


def test_a_failed_write_is_final() -> None:
    files = _FailingWrites()
    log, _ = open_log(files)
    files.is_failing = True
    with pytest.raises(StorageFailed):
        log.append(make_entries(1, 1))
    files.is_failing = False
    with pytest.raises(StorageFailed):
        log.append(make_entries(1, 1))


def test_a_failed_sync_of_the_segment_being_prepared_is_final_too() -> None:
    files = MemoryFileSystem()
    log, _ = open_log(files, segment_bytes=4096, first_segment_bytes=4096)
    files.fail_syncs(1, prefix="/log/0000000002")
    batches = (make_entries(index, index, size=100) for index in range(1, 100))
    with pytest.raises(StorageFailed):
        deque(map(log.append, batches), maxlen=0)
    assert 5 < log.last_index < 40
    with pytest.raises(StorageFailed):
        log.append(make_entries(log.last_index + 1, log.last_index + 1))
    files.reboot()
    reopened, recovered = open_log(files)
    assert recovered.last_index == log.last_index
    reopened.close()


def test_the_bytes_are_those_of_format_1() -> None:
    """A change of these bytes is a new format: it needs a new number and a way from the old one."""
    files = MemoryFileSystem()
    log, _ = open_log(files)
    log.append(make_entries(1, 2), HardState(1, ALICE, 0))
    log.truncate_suffix(1)
    log.reset_at(make_meta(10, 3), HardState(3, BOB, 10))
    log.append(make_entries(11, 11, term=4))
    log.close()
    content = read_whole(files, FIRST).rstrip(b"\0")
    golden = bytes.fromhex(GOLDEN.read_text())
    assert content == golden
    _, recovered = open_log(copy_of(files, golden))
    assert recovered == Recovered(11, 11, HardState(3, BOB, 10), make_meta(10, 3), False)


def test_another_format_is_refused_by_name() -> None:
    files, _, _ = small_log()
    content = read_whole(files, FIRST)
    # The format is the first element of the first frame's msgpack array; the CRCs have to be made anew.
    first = decode_frame(content, 0, 1, 0)
    assert first is not None
    payload = content[HEADER_BYTES : first.payload_end]
    assert payload[1] == 1
    changed = encode_frame(FrameKind.SEGMENT, [payload[:1] + b"\x02" + payload[2:]], len(payload), 1, 0, 0, 0)
    with pytest.raises(LogCorrupt, match="format 2"):
        open_log(copy_of(files, changed + content[first.end :]))


def test_a_killed_process_loses_nothing_acknowledged(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from tauraft.core.messages import HardState
        from tauraft.storage.segment_log import SegmentLog
        from tauraft.testing.log_store_suite import make_entries
        log = SegmentLog(sys.argv[1], segment_bytes=20_000, first_segment_bytes=5000)
        log.open()
        for index in range(1, 100_000):
            log.append(make_entries(index, index), HardState(1, None, index))
            print(index, flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as writer:
        assert writer.stdout is not None
        acknowledged = 0
        while acknowledged < 1000:
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
    log = SegmentLog(str(tmp_path))
    recovered = log.open()
    assert acknowledged <= recovered.last_index <= acknowledged + 1
    assert recovered.hard_state.commit == recovered.last_index
    assert log.read(1, acknowledged + 1, EVERYTHING) == make_entries(1, acknowledged)
    assert not recovered.is_tail_suspect
    log.close()
