"""History's files: what a crash, a flipped bit or somebody's hand leaves of them."""

from __future__ import annotations

from random import Random

import pytest

from tauraft.storage.file_system import FileSystem, MemoryFileSystem, PowerLost, read_whole
from tauraft.storage.history import HistoryFiles, Stand, sound_prefix

DIRECTORY = "/projection"


def line(revision: int) -> bytes:
    return b'%d\t1000\tkv\t"k"\t\t"%s"\n' % (revision, b"v" * 50)


def opened(files: FileSystem, *, cluster: bytes = b"c", max_bytes: int = 1 << 20) -> tuple[HistoryFiles, Stand | None]:
    def seal(source: str, target: str) -> None:
        file = files.open(target, create=True, exclusive=True)
        file.write(0, read_whole(files, source))
        file.close()

    history = HistoryFiles(DIRECTORY, cluster, files=files, max_bytes=max_bytes, seal=seal)
    return history, history.open()


@pytest.fixture
def disk() -> MemoryFileSystem:
    files = MemoryFileSystem()
    files.make_directory(DIRECTORY)
    files.sync_directory("/")
    return files


def begun(disk: FileSystem) -> HistoryFiles:
    history, stand = opened(disk)
    assert stand is None
    history.begin(Stand(0, 0), continues=False)
    return history


def test_it_goes_on_where_it_was(disk: MemoryFileSystem) -> None:
    history = begun(disk)
    history.append(line(1), Stand(1, 10))
    history.append(line(2) + line(3), Stand(4, 12))
    history.close()
    again, stand = opened(disk)
    assert stand == Stand(4, 12)
    again.append(line(5), Stand(5, 13))
    assert again.live_lines().count(b'\t"k"\t') == 4
    assert again.oldest() == (0, 0)


def test_what_is_synced_survives_a_power_cut(disk: MemoryFileSystem) -> None:
    history = begun(disk)
    history.append(line(1), Stand(1, 10))
    history.sync()
    history.append(line(2), Stand(2, 11))
    disk.reboot()
    _, stand = opened(disk)
    assert stand == Stand(1, 10)


def test_a_flipped_byte_ends_it_there(disk: MemoryFileSystem) -> None:
    history = begun(disk)
    history.append(line(1), Stand(1, 10))
    at = len(history.live_lines())
    history.append(line(2), Stand(2, 11))
    history.append(line(3), Stand(3, 12))
    path = history.parts()[-1].path
    history.close()
    for offset in range(at, at + 60):
        disk.flip(path, offset)
        stand, size = sound_prefix(read_whole(disk, path))
        assert (stand, size) == (Stand(1, 10), at), offset
        disk.flip(path, offset)
    disk.flip(path, at + 3)
    again, stand = opened(disk)
    assert stand == Stand(1, 10)
    assert [part.path for part in again.parts()] == [path]
    again.append(line(2), Stand(2, 11))
    assert sound_prefix(again.live_lines())[0] == Stand(2, 11)


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"garbage\n", b"1\t2\t#\t3\t4\t5\nxyz", b"9" * 100_000])
def test_garbage_in_its_place_is_no_history(disk: MemoryFileSystem, content: bytes) -> None:
    history = begun(disk)
    path = history.parts()[-1].path
    history.close()
    file = disk.open(path)
    file.truncate(0)
    file.write(0, content)
    file.close()
    again, stand = opened(disk)
    assert stand is None
    again.begin(Stand(7, 7), continues=False)
    assert [part.start for part in again.parts()] == [7]


def test_another_clusters_history_is_removed(disk: MemoryFileSystem) -> None:
    history = begun(disk)
    history.append(line(1), Stand(1, 10))
    history.close()
    other, stand = opened(disk, cluster=b"other")
    assert stand is None
    assert other.parts() == []


def test_full_files_are_sealed_and_the_oldest_go(disk: MemoryFileSystem) -> None:
    history, _ = opened(disk, max_bytes=4 * 64 << 10)
    history.begin(Stand(0, 0), continues=False)
    revision = 0
    while revision < 10_000:
        history.append(b"".join(line(revision + n) for n in range(1, 101)), Stand(revision + 100, revision))
        revision += 100
        if history.is_full:
            history.begin(history.stand, continues=True)
    parts = history.parts()
    assert sum(part.size_bytes for part in parts) <= 5 * 64 << 10
    assert [part.is_sealed for part in parts] == [True] * (len(parts) - 1) + [False]
    assert history.oldest() == (parts[0].start, None)
    assert parts[0].start > 0


def test_a_gap_ends_what_is_without_one(disk: MemoryFileSystem) -> None:
    history = begun(disk)
    history.append(line(1), Stand(1, 10))
    history.begin(Stand(5, 20), continues=False)
    history.begin(Stand(5, 20), continues=True)
    assert history.oldest()[0] == 5
    assert len(history.parts()) == 3


def test_power_lost_at_any_operation_costs_at_most_the_end(disk: MemoryFileSystem) -> None:
    """Whatever was synced is there; what is there is a prefix of what was written, and it goes on."""
    for operations in range(1, 60):
        files = MemoryFileSystem()
        files.make_directory(DIRECTORY)
        files.sync_directory("/")
        synced = 0
        files.lose_power_after(operations)
        try:
            history, _ = opened(files)
            history.begin(Stand(0, 0), continues=False)
            for revision in range(1, 9):
                history.append(line(revision), Stand(revision, revision))
                if revision % 2 == 0:
                    history.sync()
                    synced = revision
                if revision % 3 == 0:
                    history.begin(history.stand, continues=True)
                    synced = revision
        except PowerLost:
            pass
        files.reboot(Random(operations))
        again, stand = opened(files)
        if stand is None:
            assert synced == 0, operations
            again.begin(Stand(0, 0), continues=False)
        else:
            assert synced <= stand.revision <= 8, operations
        found = b"".join(read_whole(files, part.path) for part in again.parts())
        revisions = [int(one.split(b"\t")[0]) for one in found.splitlines() if b"\t#\t" not in one]
        assert revisions == list(range(1, again.stand.revision + 1)), operations
        again.append(line(99), Stand(99, 99))
        again.close()
