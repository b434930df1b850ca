"""One conformance test for both file systems, and the ways in which the twin in memory breaks."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tauraft.storage.file_system import (
    SECTOR_BYTES,
    FileSystem,
    MemoryFileSystem,
    PowerLost,
    RealFileSystem,
    preallocate,
    read_whole,
    remove_tree,
    write_atomically,
)


@pytest.fixture(params=["real", "memory"])
def files_and_root(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    if request.param == "real":
        return RealFileSystem(), str(tmp_path)
    files = MemoryFileSystem()
    files.make_directory("/root")
    return files, "/root"


def put(files: FileSystem, path: str, data: bytes, *, sync: bool = True) -> None:
    file = files.open(path, create=True)
    file.write(0, data)
    if sync:
        file.sync_data()
    file.close()


def test_what_is_written_is_read(files_and_root: tuple[FileSystem, str]) -> None:
    files, root = files_and_root
    file = files.open(f"{root}/a", create=True, exclusive=True)
    file.write(3, b"def")
    file.write(0, b"abc")
    assert file.size() == 6
    assert file.read(0, 100) == b"abcdef"
    assert file.read(4, 1) == b"e"
    assert file.read(6, 1) == b""
    file.truncate(2)
    file.truncate(4)
    assert file.read(0, 10) == b"ab\0\0"
    preallocate(file, 2, 3 << 20)
    assert file.size() == (3 << 20) + 2
    file.sync_data()
    file.close()
    file.close()


def test_names_come_go_and_change(files_and_root: tuple[FileSystem, str]) -> None:
    files, root = files_and_root
    files.make_directory(f"{root}/d")
    files.make_directory(f"{root}/d")
    put(files, f"{root}/d/one", b"1")
    put(files, f"{root}/d/two", b"2")
    files.rename(f"{root}/d/one", f"{root}/d/two")
    files.sync_directory(f"{root}/d")
    assert files.list_directory(f"{root}/d") == ["two"]
    assert read_whole(files, f"{root}/d/two") == b"1"
    assert files.is_directory(f"{root}/d")
    assert not files.is_directory(f"{root}/d/two")
    assert not files.exists(f"{root}/d/one")
    with pytest.raises(OSError) as not_empty:
        files.remove_directory(f"{root}/d")
    assert not_empty.value.errno == errno.ENOTEMPTY
    put(files, f"{root}/d/three", b"3")
    remove_tree(files, f"{root}/d")
    remove_tree(files, f"{root}/d")
    assert files.list_directory(root) == []
    assert files.free_bytes(root) > 0


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda files, root: files.open(f"{root}/none"), FileNotFoundError),
        (lambda files, root: files.open(f"{root}/file", create=True, exclusive=True), FileExistsError),
        (lambda files, root: files.make_directory(f"{root}/file"), FileExistsError),
        (lambda files, root: files.make_directory(f"{root}/none/deep"), FileNotFoundError),
        (lambda files, root: files.list_directory(f"{root}/none"), FileNotFoundError),
        (lambda files, root: files.list_directory(f"{root}/file"), NotADirectoryError),
        (lambda files, root: files.remove_directory(f"{root}/file"), NotADirectoryError),
        (lambda files, root: files.unlink(f"{root}/none"), FileNotFoundError),
        (lambda files, root: files.rename(f"{root}/none", f"{root}/x"), FileNotFoundError),
        (lambda files, root: files.sync_directory(f"{root}/none"), FileNotFoundError),
        (lambda files, root: files.open(f"{root}/file", writable=False).write(0, b"x"), OSError),
    ],
)
def test_wrong_use_raises_what_the_system_raises(
    files_and_root: tuple[FileSystem, str], call: Callable[[FileSystem, str], object], kind: type[OSError]
) -> None:
    files, root = files_and_root
    put(files, f"{root}/file", b"content")
    with pytest.raises(kind):
        call(files, root)
    assert read_whole(files, f"{root}/file") == b"content"


def test_an_atomic_write_replaces_the_whole_file(files_and_root: tuple[FileSystem, str]) -> None:
    files, root = files_and_root
    for content in (b"a longer first content", b"second"):
        write_atomically(files, f"{root}/identity", content)
        assert read_whole(files, f"{root}/identity") == content
    assert files.list_directory(root) == ["identity"]


def test_an_atomic_write_is_old_or_new_wherever_the_power_goes() -> None:
    outcomes = set()
    for operation in range(8):
        for seed in range(10):
            files = MemoryFileSystem()
            write_atomically(files, "/f", b"old")
            files.lose_power_after(operation)
            acknowledged = True
            try:
                write_atomically(files, "/f", b"new content")
            except PowerLost:
                acknowledged = False
            files.reboot(Random(seed))
            content = read_whole(files, "/f")
            assert content == b"new content" if acknowledged else content in (b"old", b"new content")
            outcomes.add((acknowledged, content))
    assert len(outcomes) == 3


def test_real_files_are_private_and_links_are_not_followed(tmp_path: Path) -> None:
    files = RealFileSystem()
    put(files, f"{tmp_path}/secret", b"x")
    files.make_directory(f"{tmp_path}/d")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError) as loop:
        files.open(f"{tmp_path}/link", create=True)
    assert loop.value.errno == errno.ELOOP


def test_what_was_not_synced_is_lost_with_the_power() -> None:
    files = MemoryFileSystem()
    put(files, "/kept", b"kept")
    files.sync_directory("/")
    put(files, "/nameless", b"synced, but its name is not")
    file = files.open("/kept")
    file.write(0, b"lost")
    files.reboot()
    assert files.list_directory("/") == ["kept"]
    assert read_whole(files, "/kept") == b"kept"
    with pytest.raises(PowerLost):
        file.read(0, 1)


def test_a_write_under_way_is_torn_at_bytes_or_at_sectors() -> None:
    shapes = set()
    for seed in range(100):
        files = MemoryFileSystem()
        put(files, "/f", bytes(4 * SECTOR_BYTES))
        files.sync_directory("/")
        files.open("/f").write(0, b"x" * (4 * SECTOR_BYTES))
        files.reboot(Random(seed))
        content = read_whole(files, "/f")
        length = len(content.rstrip(b"\0"))
        if length % SECTOR_BYTES:
            shapes.add("at a byte")
            assert content == (b"x" * length).ljust(4 * SECTOR_BYTES, b"\0")
        elif 0 < content.count(b"x") < length:
            shapes.add("a hole")
    assert shapes == {"at a byte", "a hole"}


def test_a_failed_sync_keeps_the_bytes_readable_and_loses_them() -> None:
    files = MemoryFileSystem()
    put(files, "/f", b"old")
    files.sync_directory("/")
    file = files.open("/f")
    file.write(0, b"new")
    files.fail_syncs(1)
    with pytest.raises(OSError):
        file.sync_data()
    file.sync_data()  # says all is well
    assert file.read(0, 3) == b"new"
    files.reboot()
    assert read_whole(files, "/f") == b"old"


def test_a_full_disk_takes_what_fits_and_says_so() -> None:
    files = MemoryFileSystem(capacity_bytes=10)
    file = files.open("/f", create=True)
    with pytest.raises(OSError) as full:
        file.write(0, b"0123456789abc")
    assert full.value.errno == errno.ENOSPC
    assert file.size() == 10
    file.write(0, b"9876543210")
    files.set_capacity(20)
    file.write(10, b"abc")
    assert files.free_bytes("/") == 7
    files.unlink("/f")
    assert files.used_bytes == 0
