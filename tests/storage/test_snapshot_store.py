"""Snapshots appear whole or not at all, prove their content, and come over the wire in any order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tauraft.storage.file_system import FileSystem, MemoryFileSystem, PowerLost, RealFileSystem, write_atomically
from tauraft.storage.log_store import StorageFailed, StorageFull
from tauraft.storage.snapshot_store import (
    Manifest,
    SnapshotCorrupt,
    SnapshotFile,
    SnapshotNotFound,
    SnapshotStore,
    decode_manifest,
    encode_manifest,
)
from tauraft.testing.log_store_suite import make_meta

GOLDEN = Path(__file__).parent.parent / "golden" / "storage_snapshot_manifest.hex"


def open_store(files: FileSystem, directory: str = "/snapshots") -> SnapshotStore:
    if not files.exists(directory):
        files.make_directory(directory)
        files.sync_directory("/")
    store = SnapshotStore(directory, files=files)
    store.open()
    return store


def write(store: SnapshotStore, index: int, content: bytes = b"rows") -> Manifest:
    writer = store.begin(make_meta(index, 2))
    writer.add_file("rows-0")
    writer.write(content)
    writer.write(b", more of them")
    writer.add_file("empty")
    writer.add_file("rows-1")
    writer.write(bytes(range(256)) * 20)
    return writer.commit(b"revision 9")


def test_what_was_committed_is_the_newest(tmp_path: Path) -> None:
    store = open_store(RealFileSystem(), str(tmp_path))
    assert store.newest() is None
    write(store, 5)
    manifest = write(store, 17)
    store = open_store(RealFileSystem(), str(tmp_path))
    reader = store.newest()
    assert reader is not None
    assert reader.manifest == manifest
    assert (reader.meta.index, reader.meta.membership) == (17, make_meta(17, 2).membership)
    assert len(reader.meta.id) == 32
    assert reader.manifest.extra == b"revision 9"
    assert reader.read_file("rows-0") == b"rows, more of them"
    assert reader.read_file("rows-1", 250, 10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
    assert [found.meta.index for found in store.list()] == [17, 5]
    assert store.newest(at_least=18) is None
    reader.close()


def test_another_library_may_write_a_file(tmp_path: Path) -> None:
    store = open_store(RealFileSystem(), str(tmp_path))
    writer = store.begin(make_meta(1, 1))
    Path(writer.external_path("table.parquet")).write_bytes(b"PAR1")
    writer.commit()
    reader = store.newest()
    assert reader is not None
    assert Path(reader.path("table.parquet")).read_bytes() == reader.read_file("table.parquet") == b"PAR1"
    reader.close()


def test_a_finished_or_cancelled_snapshot_takes_no_more(tmp_path: Path) -> None:
    store = open_store(RealFileSystem(), str(tmp_path))
    writer = store.begin(make_meta(1, 1))
    with pytest.raises(ValueError, match="add_file comes first"):
        writer.write(b"x")
    writer.add_file("a")
    for name in ("a", "../a", "manifest", "", "A", "a/b"):
        with pytest.raises(ValueError, match="cannot be the name"):
            writer.add_file(name)
    writer.cancel()
    writer.cancel()
    done = store.begin(make_meta(2, 1))
    done.commit()
    done.cancel()
    for closed in (writer, done):
        with pytest.raises(ValueError, match="committed or cancelled"):
            closed.write(b"x")
    assert [manifest.meta.index for manifest in store.list()] == [2]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_unknown_snapshot_is_not_found() -> None:
    store = open_store(MemoryFileSystem())
    manifest = write(store, 3)
    assert store.find(manifest.meta.id).manifest == manifest
    with pytest.raises(SnapshotNotFound):
        store.find(b"\0" * 32)


def test_the_oldest_are_reaped_and_a_reader_reads_on() -> None:
    files = MemoryFileSystem()
    store = open_store(files)
    first = write(store, 1)
    reader = store.find(first.meta.id)
    for index in range(2, 6):
        write(store, index)
    assert [manifest.meta.index for manifest in store.reap(keep=3)] == [2, 1]
    assert [manifest.meta.index for manifest in store.list()] == [5, 4, 3]
    assert len(files.list_directory("/snapshots")) == 3
    reader.verify()
    assert reader.read_file("rows-0") == b"rows, more of them"


def test_reaping_cut_short_leaves_nothing_that_looks_corrupt(caplog: pytest.LogCaptureFixture) -> None:
    for operation in range(20):
        files = MemoryFileSystem()
        store = open_store(files)
        write(store, 1)
        write(store, 2)
        files.lose_power_after(operation)
        try:
            store.reap(keep=1)
        except PowerLost:
            pass
        files.reboot(Random(operation))
        store = open_store(files)
        assert [manifest.meta.index for manifest in store.list()] in ([2, 1], [2])
    assert caplog.text == ""


def path_of(manifest: Manifest, name: str) -> str:
    return f"/snapshots/{manifest.directory_name}/{name}"


@pytest.mark.parametrize("name", ["manifest", "rows-0", "rows-1"])
def test_a_damaged_snapshot_is_skipped_with_a_warning_and_left_there(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = MemoryFileSystem()
    store = open_store(files)
    write(store, 1)
    damaged = write(store, 2)
    size = files.open(path_of(damaged, name)).size()
    for offset in range(0, size, 7):
        files.flip(path_of(damaged, name), offset, 0x20)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "tauraft.storage"):
            reader = store.newest()
        assert reader is not None
        assert reader.meta.index == 1
        assert "leaving it there" in caplog.text
        files.flip(path_of(damaged, name), offset, 0x20)
    store.reap(keep=1)
    assert files.exists(path_of(damaged, "manifest"))


def test_a_damaged_snapshot_does_not_count_among_those_kept() -> None:
    files = MemoryFileSystem()
    store = open_store(files)
    manifests = [write(store, index) for index in range(1, 5)]
    files.flip(path_of(manifests[3], "manifest"), 0)
    files.unlink(path_of(manifests[2], "manifest"))
    assert store.reap(keep=2) == []
    assert [manifest.meta.index for manifest in store.list()] == [2, 1]


def test_half_written_ones_are_swept_whoever_wrote_them() -> None:
    files = MemoryFileSystem()
    store = open_store(files)
    writer = store.begin(make_meta(1, 1))
    writer.add_file("rows-0")
    writer.write(b"half of")
    write(store, 2)
    files.make_directory("/snapshots/tmp-someone-else")
    files.make_directory("/snapshots/tmp-someone-else/deep")
    files.make_directory("/snapshots/not-ours")
    store = open_store(files)
    assert [name[:20] for name in files.list_directory("/snapshots")] == ["00000000000000000002", "not-ours"]
    write(store, 3)


def test_a_power_cut_at_any_operation_leaves_all_or_nothing() -> None:
    def life(files: MemoryFileSystem) -> int:
        """How many snapshots were acknowledged."""
        done = 0
        try:
            store = open_store(files)
            for index in range(1, 4):
                write(store, index)
                done = index
                store.reap(keep=2)
        except PowerLost:
            pass
        return done

    unbroken = MemoryFileSystem()
    life(unbroken)
    for operation in range(unbroken.operations):
        for seed in range(3):
            files = MemoryFileSystem()
            files.lose_power_after(operation)
            done = life(files)
            files.reboot(Random(seed))
            store = open_store(files)
            found = [manifest.meta.index for manifest in store.list()]
            newest = store.newest()
            assert (newest.meta.index if newest else 0) in (done, done + 1), (operation, seed)
            assert not found or (newest is not None and newest.meta.index == found[0])


@pytest.mark.parametrize("seed", range(5))
def test_chunks_come_in_any_order_and_more_than_once(seed: int) -> None:
    random = Random(seed)
    source = open_store(MemoryFileSystem())
    reader = source.find(write(source, 9, b"x" * 3000).meta.id)
    files = MemoryFileSystem()
    target = open_store(files)
    receiver = target.receive(reader.manifest.encoded)
    size = reader.manifest.size_bytes
    assert receiver.missing() == [(0, size)]
    chunks = [(offset, random.randint(1, 700)) for offset in range(0, size, 300)]
    for offset, length in [*random.sample(chunks, len(chunks)), *random.choices(chunks, k=5)]:
        receiver.write(offset, reader.read(offset, length))
        with pytest.raises(ValueError, match="outside"):
            receiver.write(size, b"x")
    while receiver.missing():  # resumed: it says what it lacks
        start, end = receiver.missing()[0]
        receiver.write(start, reader.read(start, min(end - start, 100)))
    assert receiver.commit() == reader.manifest
    files.reboot()
    received = open_store(files).newest()
    assert received is not None
    assert received.manifest == reader.manifest
    assert received.read(0, size) == reader.read(0, size + 50)


def test_a_chunk_that_was_changed_on_the_way_is_noticed() -> None:
    source = open_store(MemoryFileSystem())
    reader = source.find(write(source, 9).meta.id)
    target = open_store(MemoryFileSystem())
    receiver = target.receive(reader.manifest.encoded)
    with pytest.raises(ValueError, match="not complete"):
        receiver.commit()
    data = bytearray(reader.read(0, 1 << 20))
    data[100] ^= 1
    receiver.write(0, bytes(data))
    with pytest.raises(SnapshotCorrupt, match="digest"):
        receiver.commit()
    receiver.cancel()
    assert target.list() == []


def test_receiving_what_is_there_already_replaces_it() -> None:
    files = MemoryFileSystem()
    store = open_store(files)
    manifest = write(store, 9)
    data = store.find(manifest.meta.id).read(0, 1 << 20)
    files.flip(path_of(manifest, "rows-0"), 0)
    assert store.newest() is None
    receiver = store.receive(manifest.encoded)
    receiver.write(0, data)
    receiver.commit()
    found = store.newest()
    assert found is not None
    assert found.manifest == manifest
    assert len(files.list_directory("/snapshots")) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda files: [SnapshotFile("../../identity", 1, bytes(32)), *files],
        lambda files: [SnapshotFile("manifest", 1, bytes(32))],
        lambda files: [SnapshotFile("a/b", 1, bytes(32))],
        lambda files: [*files, files[0]],
        lambda files: [SnapshotFile("a", -1, bytes(32))],
        lambda files: [SnapshotFile("a", 1, b"short")],
        lambda files: [replace(files[0], sha256="text")],
        lambda files: [replace(files[0], name=b"a")],
    ],
)
def test_a_hostile_manifest_is_refused(change: Callable[[list[SnapshotFile]], list[SnapshotFile]]) -> None:
    files = change([SnapshotFile("rows", 1, bytes(32))])
    with pytest.raises(SnapshotCorrupt):
        decode_manifest(encode_manifest(make_meta(1, 1), files, b"").encoded)


@pytest.mark.parametrize("encoded", [b"", b"\xc1", b"\x90", b"\x01", b"\xff" * 100, b"\x96\x02" + b"\x00" * 5])
def test_what_is_no_manifest_is_refused(encoded: bytes) -> None:
    with pytest.raises(SnapshotCorrupt):
        decode_manifest(encoded)


def test_a_full_or_failing_disk_leaves_no_snapshot() -> None:
    files = MemoryFileSystem()
    store = open_store(files)
    write(store, 1)
    files.set_capacity(files.used_bytes + 100)
    writer = store.begin(make_meta(2, 2))
    writer.add_file("rows")
    with pytest.raises(StorageFull):
        writer.write(bytes(200))
    writer.cancel()
    files.set_capacity(1 << 30)
    files.fail_syncs(1)
    with pytest.raises(StorageFailed):
        write(store, 3)
    assert [manifest.meta.index for manifest in open_store(files).list()] == [1]
    write_atomically(files, "/snapshots/readme", b"")


def test_the_manifest_has_the_bytes_of_format_1() -> None:
    meta = make_meta(300, 7)
    files = [SnapshotFile("rows-0", 70_000, bytes(range(32))), SnapshotFile("system", 0, bytes(32))]
    manifest = encode_manifest(meta, files, b"extra")
    golden = bytes.fromhex(GOLDEN.read_text())
    assert manifest.encoded == golden
    assert decode_manifest(golden) == manifest
