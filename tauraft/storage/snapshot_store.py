"""Snapshots on disk: whole directories that appear at once, each with a manifest that proves its content.

A snapshot is ``<index>-<term>-<beginning of id>/`` with some files and a ``manifest``: format number, index, term,
membership, name, size and SHA-256 of each file, and ``extra``, bytes of the node's own (revision, clocks, digests...).
Its id is the SHA-256 of the manifest, so that whoever knows the id can check every byte.  What is in the files is
not this module's affair.

Writing: ``tmp-*`` -> files synced -> manifest synced -> directory synced -> rename -> parent synced (SAFETY 24); a
crash leaves all of it or a ``tmp-*`` that ``open`` sweeps.  A snapshot comes over the wire as its manifest, then
chunks of the files laid end to end, in any order, any number of times (``SnapshotReceiver``).  Names in a manifest
from the wire are checked before they are used as file names.

A snapshot that does not verify is skipped with a warning and left where it is: someone may want to look at it.
Synchronous; one thread at a time for a store, and one for each writer, reader and receiver.
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from tauraft.core.messages import Index, SnapshotMeta
from tauraft.storage.file_system import File, FileSystem, RealFileSystem, read_whole, remove_tree
from tauraft.storage.log_store import StorageError, final_failures
from tauraft.storage.state_codec import membership_from_plain, membership_to_plain, pack, unpack

FORMAT = 1
MAX_FILES = 10_000
MAX_MANIFEST_BYTES = 16 << 20

_MANIFEST = "manifest"
_TEMPORARY = "tmp-"
_DIRECTORY_NAME = re.compile(r"\d{20}-\d{20}-[0-9a-f]{32}")
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_READ_BYTES = 1 << 20

_log = logging.getLogger("tauraft.storage")


class SnapshotCorrupt(StorageError):
    """A manifest or file is not what was written. Use another snapshot; nothing was changed."""


class SnapshotNotFound(StorageError):
    """No valid snapshot with this id is here."""


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    name: str
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """``meta.id`` is the SHA-256 of ``encoded``."""

    meta: SnapshotMeta
    files: tuple[SnapshotFile, ...]
    extra: bytes
    encoded: bytes

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def directory_name(self) -> str:
        return f"{self.meta.index:020d}-{self.meta.term:020d}-{self.meta.id[:16].hex()}"


def encode_manifest(meta: SnapshotMeta, files: Sequence[SnapshotFile], extra: bytes) -> Manifest:
    plain = [[file.name, file.size_bytes, file.sha256] for file in files]
    encoded = pack([FORMAT, meta.index, meta.term, membership_to_plain(meta.membership), plain, extra])
    return Manifest(replace(meta, id=hashlib.sha256(encoded).digest()), tuple(files), extra, encoded)


def decode_manifest(encoded: bytes) -> Manifest:
    """Raises ``SnapshotCorrupt``, also for file names that could leave the snapshot's directory."""
    if len(encoded) > MAX_MANIFEST_BYTES:
        raise SnapshotCorrupt(f"a manifest of {len(encoded)} bytes is over the limit of {MAX_MANIFEST_BYTES}")
    try:
        number, index, term, membership, plain, extra = unpack(encoded)
        if number != FORMAT:
            raise SnapshotCorrupt(f"a snapshot of format {number}, this program knows {FORMAT}")
        meta = SnapshotMeta(index, term, membership_from_plain(membership), hashlib.sha256(encoded).digest())
        files = tuple(SnapshotFile(name, size, digest) for name, size, digest in plain)
    except (TypeError, ValueError) as error:
        raise SnapshotCorrupt(f"the manifest cannot be read: {error}") from error
    names = [file.name for file in files]
    is_sound = (
        isinstance(index, int)
        and isinstance(term, int)
        and isinstance(extra, bytes)
        and min(index, term) >= 0
        and len(set(names)) == len(names) <= MAX_FILES
        and all(isinstance(name, str) and _FILE_NAME.fullmatch(name) and name != _MANIFEST for name in names)
        and all(isinstance(file.size_bytes, int) and file.size_bytes >= 0 for file in files)
        and all(isinstance(file.sha256, bytes) and len(file.sha256) == 32 for file in files)
    )
    if not is_sound:
        raise SnapshotCorrupt("the manifest has impossible values")
    return Manifest(meta, files, extra, encoded)


class SnapshotStore:
    """The snapshots of one replica, in ``directory``, which exists and is nobody else's."""

    def __init__(self, directory: str, *, files: FileSystem | None = None) -> None:
        self._directory = directory
        self._files: FileSystem = RealFileSystem() if files is None else files
        self._temporaries = 0

    def open(self) -> None:
        """Sweep what an earlier life left half-written, whoever it was. Call it before anything else."""
        for name in self._files.list_directory(self._directory):
            if name.startswith(_TEMPORARY):
                remove_tree(self._files, posixpath.join(self._directory, name))

    def begin(self, meta: SnapshotMeta) -> SnapshotWriter:
        """Start a snapshot at ``meta`` (its ``id`` is given by ``commit``).

        Raises ``StorageFull``, as all writing here.
        """
        return SnapshotWriter(self._files, self._directory, self._new_temporary(), meta)

    def receive(self, encoded_manifest: bytes) -> SnapshotReceiver:
        """Start to take a snapshot from a peer.

        Raises ``SnapshotCorrupt``. The caller compares the id with the one announced.
        """
        manifest = decode_manifest(encoded_manifest)
        return SnapshotReceiver(self._files, self._directory, self._new_temporary(), manifest)

    def list(self) -> Sequence[Manifest]:
        """All snapshots with a sound manifest, newest first; the files are not read.

        Others are skipped with a warning.
        """
        manifests = []
        for name in reversed(self._files.list_directory(self._directory)):
            if not _DIRECTORY_NAME.fullmatch(name):
                continue
            try:
                manifests.append(self._read_manifest(name))
            except (SnapshotCorrupt, OSError) as error:
                _log.warning("skipping snapshot %s in %s, leaving it there: %s", name, self._directory, error)
        return manifests

    def newest(self, at_least: Index = 0) -> SnapshotReader | None:
        """The newest one with an index of at least ``at_least`` whose files all verify. Reads them whole."""
        for manifest in self.list():
            if manifest.meta.index < at_least:
                return None
            reader = self._reader(manifest)
            if reader is None:
                continue
            try:
                reader.verify()
            except (SnapshotCorrupt, OSError) as error:
                _log.warning(
                    "skipping snapshot %s in %s, leaving it there: %s", manifest.directory_name, self._directory, error
                )
                reader.close()
                continue
            return reader
        return None

    def find(self, identifier: bytes) -> SnapshotReader:
        """The snapshot with this id; its files are not verified yet. Raises ``SnapshotNotFound``."""
        for manifest in self.list():
            if manifest.meta.id == identifier and (reader := self._reader(manifest)) is not None:
                return reader
        raise SnapshotNotFound(f"there is no snapshot {identifier.hex()} in {self._directory}")

    def reap(self, keep: int = 3) -> Sequence[Manifest]:
        """Remove all but the newest ``keep`` of those with a sound manifest; returns the removed.

        Open readers go on.
        """
        removed = self.list()[keep:]
        for manifest in removed:
            # Renamed first: one that is half gone must not look like a corrupt one.
            temporary = self._new_temporary()
            with final_failures(self._directory):
                self._files.rename(posixpath.join(self._directory, manifest.directory_name), temporary)
                self._files.sync_directory(self._directory)
                remove_tree(self._files, temporary)
        return removed

    def _new_temporary(self) -> str:
        self._temporaries += 1
        return posixpath.join(self._directory, f"{_TEMPORARY}{self._temporaries}")

    def _read_manifest(self, name: str) -> Manifest:
        manifest = decode_manifest(read_whole(self._files, posixpath.join(self._directory, name, _MANIFEST)))
        if manifest.directory_name != name:
            raise SnapshotCorrupt("the manifest is not the one the directory is named after")
        return manifest

    def _reader(self, manifest: Manifest) -> SnapshotReader | None:
        try:
            return SnapshotReader(self._files, posixpath.join(self._directory, manifest.directory_name), manifest)
        except OSError as error:
            _log.warning("skipping snapshot %s in %s: %s", manifest.directory_name, self._directory, error)
            return None


class _Unfinished:
    """A directory on its way to become a snapshot."""

    def __init__(self, files: FileSystem, parent: str, temporary: str) -> None:
        self._files = files
        self._parent = parent
        self._temporary = temporary
        self._is_closed = False
        with final_failures(parent):
            files.make_directory(temporary)

    def cancel(self) -> None:
        """Leave nothing. After ``commit``, or twice: nothing to do."""
        if not self._is_closed:
            self._is_closed = True
            self._close_files()
            with suppress(OSError):  # swept at the next open
                remove_tree(self._files, self._temporary)

    def _close_files(self) -> None:
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("this snapshot is committed or cancelled")

    def _publish(self, manifest: Manifest) -> None:
        """The files are synced. Give it its manifest and its name."""
        with final_failures(self._parent):
            file = self._files.open(posixpath.join(self._temporary, _MANIFEST), create=True, exclusive=True)
            file.write(0, manifest.encoded)
            file.sync_data()
            file.close()
            self._files.sync_directory(self._temporary)
            target = posixpath.join(self._parent, manifest.directory_name)
            if self._files.exists(target) and _is_sound(self._files, target, manifest):
                # The log may stand on it: it is never moved away, not even for an equal one.
                remove_tree(self._files, self._temporary)
            elif self._files.exists(target):
                damaged = f"{self._temporary}-damaged"
                self._files.rename(target, damaged)
                self._files.rename(self._temporary, target)
                remove_tree(self._files, damaged)
            else:
                self._files.rename(self._temporary, target)
            self._files.sync_directory(self._parent)
        self._is_closed = True


class SnapshotWriter(_Unfinished):
    """One snapshot being written: ``add_file``, ``write``..., for each file, then ``commit`` or ``cancel``."""

    def __init__(self, files: FileSystem, parent: str, temporary: str, meta: SnapshotMeta) -> None:
        super().__init__(files, parent, temporary)
        self._meta = meta
        self._names: list[str] = []
        self._done: dict[str, SnapshotFile] = {}
        self._file: File | None = None
        self._hash = hashlib.sha256()
        self._size = 0

    def add_file(self, name: str) -> None:
        """Begin the next file; ``write`` goes to it."""
        self._begin(name)
        with final_failures(self._parent):
            self._file = self._files.open(posixpath.join(self._temporary, name), create=True, exclusive=True)
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append to the file begun last."""
        self._check_open()
        if self._file is None:
            raise ValueError("add_file comes first")
        with final_failures(self._parent):
            self._file.write(self._size, data)
        self._hash.update(data)
        self._size += len(data)

    def external_path(self, name: str) -> str:
        """Where another library is to write a file before ``commit``, which then reads it once for its digest."""
        self._begin(name)
        return posixpath.join(self._temporary, name)

    def commit(self, extra: bytes = b"") -> Manifest:
        """Make it durable and visible; its id is ``meta.id`` of the result."""
        self._check_open()
        self._finish_file()
        for name in self._names:
            if name not in self._done:
                self._done[name] = self._take_external(name)
        manifest = encode_manifest(self._meta, [self._done[name] for name in self._names], extra)
        self._publish(manifest)
        return manifest

    def _begin(self, name: str) -> None:
        self._check_open()
        self._finish_file()
        if not _FILE_NAME.fullmatch(name) or name == _MANIFEST or name in self._names:
            raise ValueError(f"{name!r} cannot be the name of another file of a snapshot")
        self._names.append(name)

    def _finish_file(self) -> None:
        if self._file is not None:
            with final_failures(self._parent):
                self._file.sync_data()
            self._close_files()
            name = self._names[-1]
            self._done[name] = SnapshotFile(name, self._size, self._hash.digest())

    def _take_external(self, name: str) -> SnapshotFile:
        with final_failures(self._parent):
            file = self._files.open(posixpath.join(self._temporary, name))
            try:
                size = file.size()
                digest = _sha256_of(file, size)
                file.sync_data()
            finally:
                file.close()
        return SnapshotFile(name, size, digest)

    def _close_files(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class SnapshotReceiver(_Unfinished):
    """One snapshot coming from a peer, in chunks of all its files laid end to end, in manifest order."""

    def __init__(self, files: FileSystem, parent: str, temporary: str, manifest: Manifest) -> None:
        super().__init__(files, parent, temporary)
        self.manifest = manifest
        self._open: list[File] = []
        self._received: list[tuple[int, int]] = []  # disjoint, not touching, sorted
        with final_failures(parent):
            for file in manifest.files:
                self._open.append(files.open(posixpath.join(temporary, file.name), create=True, exclusive=True))

    def write(self, offset: int, data: bytes) -> None:
        """Take one chunk. A repeated one is fine; one beyond the end raises ``ValueError``."""
        self._check_open()
        if offset < 0 or offset + len(data) > self.manifest.size_bytes:
            raise ValueError(f"a chunk of {len(data)} bytes at {offset} lies outside the snapshot")
        with final_failures(self._parent):
            for number, start, piece_start, piece_end in _pieces(self.manifest.files, offset, len(data)):
                self._open[number].write(start, data[piece_start:piece_end])
        self._received = _merged(self._received, offset, offset + len(data))

    def missing(self) -> Sequence[tuple[int, int]]:
        """The ranges ``[start, end)`` that have not come yet, in order; none: ``commit`` may be called."""
        missing = []
        reached = 0
        for start, end in self._received:
            if start > reached:
                missing.append((reached, start))
            reached = end
        if reached < self.manifest.size_bytes:
            missing.append((reached, self.manifest.size_bytes))
        return missing

    def commit(self) -> Manifest:
        """Verify every file and publish.

        Raises ``SnapshotCorrupt``: what came is not what the manifest says; ``cancel`` and start again.
        """
        self._check_open()
        if self.missing():
            raise ValueError("the snapshot is not complete")
        with final_failures(self._parent):
            for file, expected in zip(self._open, self.manifest.files, strict=True):
                if _sha256_of(file, expected.size_bytes) != expected.sha256:
                    raise SnapshotCorrupt(
                        f"the file {expected.name} that was received does not have the digest announced"
                    )
                file.sync_data()
        self._close_files()
        self._publish(self.manifest)
        return self.manifest

    def _close_files(self) -> None:
        for file in self._open:
            file.close()
        self._open.clear()


class SnapshotReader:
    """One snapshot, its files open: it can be read to the end even when it is reaped meanwhile."""

    def __init__(self, files: FileSystem, directory: str, manifest: Manifest) -> None:
        self.manifest = manifest
        self._directory = directory
        self._open: list[File] = []
        try:
            for file in manifest.files:
                self._open.append(files.open(posixpath.join(directory, file.name), writable=False))
        except OSError:
            self.close()
            raise

    @property
    def meta(self) -> SnapshotMeta:
        return self.manifest.meta

    def verify(self) -> None:
        """Read every byte. Raises ``SnapshotCorrupt``."""
        for file, expected in zip(self._open, self.manifest.files, strict=True):
            if file.size() != expected.size_bytes or _sha256_of(file, expected.size_bytes) != expected.sha256:
                raise SnapshotCorrupt(f"{posixpath.join(self._directory, expected.name)} is not what was written")

    def read(self, offset: int, size: int) -> bytes:
        """A chunk of all files laid end to end, for ``SnapshotReceiver.write``; shorter at the end."""
        size = max(0, min(size, self.manifest.size_bytes - offset))
        pieces = _pieces(self.manifest.files, offset, size)
        return b"".join([self._open[number].read(start, end - begin) for number, start, begin, end in pieces])

    def read_file(self, name: str, offset: int = 0, size: int = 1 << 40) -> bytes:
        """Raises ``KeyError`` for a name that is not in the manifest."""
        for file, expected in zip(self._open, self.manifest.files, strict=True):
            if expected.name == name:
                return file.read(offset, min(size, expected.size_bytes))
        raise KeyError(name)

    def path(self, name: str) -> str:
        """For libraries that open files themselves; not protected against ``reap``."""
        return posixpath.join(self._directory, name)

    def close(self) -> None:
        for file in self._open:
            file.close()
        self._open.clear()


def _is_sound(files: FileSystem, directory: str, manifest: Manifest) -> bool:
    try:
        reader = SnapshotReader(files, directory, manifest)
    except OSError:
        return False
    try:
        reader.verify()
        return read_whole(files, posixpath.join(directory, _MANIFEST)) == manifest.encoded
    except (SnapshotCorrupt, OSError):
        return False
    finally:
        reader.close()


def _sha256_of(file: File, size: int) -> bytes:
    digest = hashlib.sha256()
    for offset in range(0, size, _READ_BYTES):
        digest.update(file.read(offset, min(_READ_BYTES, size - offset)))
    return digest.digest()


def _pieces(files: Sequence[SnapshotFile], offset: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Which parts of which files a range is: (number of the file, offset in it, start and end in the range)."""
    file_start = 0
    for number, file in enumerate(files):
        start, end = max(offset, file_start), min(offset + size, file_start + file.size_bytes)
        if start < end:
            yield number, start - file_start, start - offset, end - offset
        file_start += file.size_bytes


def _merged(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """``ranges`` with ``[start, end)``, joined where they touch."""
    if start == end:
        return ranges
    at = bisect_right(ranges, (start, end))
    before, after = ranges[:at], ranges[at:]
    if before and before[-1][1] >= start:
        start, end = before[-1][0], max(end, before[-1][1])
        before.pop()
    while after and after[0][0] <= end:
        end = max(end, after.pop(0)[1])
    return [*before, (start, end), *after]
