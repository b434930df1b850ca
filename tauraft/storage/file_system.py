"""The file operations that storage stands on, and a twin in memory that can lose power.

Everything durable in tauraft goes through this small surface, so that a test can stand between the
log and the disk: ``RealFileSystem`` calls the operating system, ``MemoryFileSystem`` keeps what a disk would
have kept.  What both promise, and no more:

- bytes written are durable after ``File.sync_data`` returned, not before; without it any part of a write may be
  missing after a crash;
- a name created, renamed or removed is durable after ``sync_directory`` of its directory returned, and only then;
- a rename within one directory is atomic: after a crash the old state or the new one, never a mixture;
- a ``sync_data`` that raised leaves it unknown what is durable, for good: a later one that succeeds proves nothing.

The twin takes these at their word: ``reboot`` drops or tears what was not synced, undoes what no directory
sync covered, and a failed sync drops pages while the file still reads as if they were there.
Neither is thread-safe beyond what the operating system gives: one thread at a time a file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import posixpath
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Protocol

SECTOR_BYTES = 512
_ZEROS = bytes(1 << 20)


class File(Protocol):
    """One open file. Raises ``OSError`` as the operating system does."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes at ``offset``; fewer only at the end of the file."""

    def write(self, offset: int, data: bytes) -> None:
        """All of ``data`` at ``offset``. After an error any part of it may be in the file."""

    def sync_data(self) -> None:
        """Returns when all written so far, and the size, would survive a power cut.

        Never call it again after it raised.
        """

    def size(self) -> int: ...

    def truncate(self, size: int) -> None: ...

    def close(self) -> None: ...


class FileSystem(Protocol):
    """Paths are absolute strings with ``/``. Symbolic links are never followed at the last component."""

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True) -> File: ...

    def rename(self, source: str, target: str) -> None:
        """Within one directory; replaces a file that is there."""

    def unlink(self, path: str) -> None: ...

    def make_directory(self, path: str) -> None:
        """Mode 0700. An existing one is fine; the parent must exist."""

    def remove_directory(self, path: str) -> None:
        """It must be empty."""

    def list_directory(self, path: str) -> list[str]:
        """The names in it, sorted."""

    def exists(self, path: str) -> bool: ...

    def is_directory(self, path: str) -> bool: ...

    def sync_directory(self, path: str) -> None: ...

    def free_bytes(self, path: str) -> int: ...


def preallocate(file: File, start: int, size: int) -> None:
    """Fill ``[start, start + size)`` with written zeros.

    Written, not reserved (``fallocate``): a write into reserved space changes metadata, and each sync of it then
    costs a journal commit.
    """
    end = start + size
    while start < end:
        step = min(len(_ZEROS), end - start)
        file.write(start, _ZEROS if step == len(_ZEROS) else _ZEROS[:step])
        start += step


def read_whole(files: FileSystem, path: str) -> bytes:
    file = files.open(path, writable=False)
    try:
        return file.read(0, file.size())
    finally:
        file.close()


def write_atomically(files: FileSystem, path: str, data: bytes) -> None:
    """Replace the file at ``path`` so that after a crash it holds its old content or ``data``, durable on return."""
    directory = posixpath.dirname(path)
    temporary = path + ".tmp"
    with suppress(FileNotFoundError):
        files.unlink(temporary)
    file = files.open(temporary, create=True, exclusive=True)
    try:
        file.write(0, data)
        file.sync_data()
    finally:
        file.close()
    files.rename(temporary, path)
    files.sync_directory(directory)


def remove_tree(files: FileSystem, path: str) -> None:
    """Remove a directory and all in it; one that is gone is fine. Not durable until its parent is synced."""
    if not files.exists(path):
        return
    for name in files.list_directory(path):
        child = posixpath.join(path, name)
        if files.is_directory(child):
            remove_tree(files, child)
        else:
            files.unlink(child)
    files.remove_directory(path)


class RealFile:
    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        if len(data) in (0, size):
            return data
        pieces = [data]
        got = len(data)
        while got < size and (data := os.pread(self._descriptor, size - got, offset + got)):
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def write(self, offset: int, data: bytes) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        if written == len(data):
            return
        view = memoryview(data)
        while written < len(data):
            written += os.pwrite(self._descriptor, view[written:], offset + written)

    if sys.platform == "darwin":

        def sync_data(self) -> None:
            # fsync on macOS stops at the drive's cache.
            fcntl.fcntl(self._descriptor, fcntl.F_FULLFSYNC)

    else:

        def sync_data(self) -> None:
            os.fdatasync(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RealFileSystem:
    """The operating system's. Files are 0600, directories 0700, whatever the umask allows beyond."""

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True) -> File:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_RDWR if writable else os.O_RDONLY)
        if create:
            flags |= os.O_CREAT | (os.O_EXCL if exclusive else 0)
        return RealFile(os.open(path, flags, 0o600))

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def make_directory(self, path: str) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not self.is_directory(path):
                raise

    def remove_directory(self, path: str) -> None:
        os.rmdir(path)

    def list_directory(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def is_directory(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except FileNotFoundError:
            return False

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


class PowerLost(Exception):
    """The simulated machine is off: raised by the operation it died in, and by all until ``reboot``."""


class _MemoryInode:
    __slots__ = ("children", "content", "durable", "durable_children", "is_directory", "unsynced", "unsynced_children")

    def __init__(self, is_directory: bool) -> None:
        self.is_directory = is_directory
        self.content = bytearray()
        self.durable = bytearray()
        # (offset, data), or (size, None) for a truncation, in order.
        self.unsynced: list[tuple[int, bytes | None]] = []
        self.children: dict[str, _MemoryInode] = {}
        self.durable_children: dict[str, _MemoryInode] = {}
        # The states of ``children`` after each change since the last directory sync.
        self.unsynced_children: list[dict[str, _MemoryInode]] = []


def _overwrite(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


class MemoryFileSystem:
    """A file system in memory with the crash behaviour of a disk, for the simulator and for tests.

    ``reboot(random)`` gives one of the states a crash could have left, chosen by ``random``; ``reboot()`` the
    poorest one. The fault switches are the methods between ``lose_power_after`` and ``flip``.
    """

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self._root = _MemoryInode(True)
        self._capacity = capacity_bytes
        self._used = 0
        self._boot = 0
        self._operations = 0
        self._power_until: int | None = None
        self._is_off = False
        self._failing_syncs = 0
        self._failing_prefix = ""

    # -- faults

    @property
    def operations(self) -> int:
        """How many changing operations (write, sync, create, rename...) were done so far."""
        return self._operations

    def lose_power_after(self, operations: int) -> None:
        """The machine dies in place of the changing operation after the next ``operations`` ones."""
        self._power_until = self._operations + operations

    def reboot(self, random: Random | None = None) -> None:
        """Power off, if it is not already, and on again:

        what was not durable is lost, or is torn as ``random`` decides.
        """
        self._boot += 1
        self._is_off = False
        self._power_until = None
        self._used = 0
        seen: set[int] = set()
        self._settle(self._root, random, seen)

    def restart_process(self) -> None:
        """The process died, the machine did not: what was written is read again, durable or not; open files are gone."""
        self._boot += 1
        self._is_off = False
        self._power_until = None

    def fail_syncs(self, count: int | None = 1, *, prefix: str = "") -> None:
        """The next ``count`` syncs (None:

        all) of paths starting with ``prefix`` raise EIO, and lose what they should have kept.
        """
        self._failing_syncs = -1 if count is None else count
        self._failing_prefix = prefix

    def set_capacity(self, capacity_bytes: int) -> None:
        """ENOSPC for whatever would grow the sum of all files beyond this."""
        self._capacity = capacity_bytes

    @property
    def used_bytes(self) -> int:
        return self._used

    def flip(self, path: str, offset: int, mask: int = 1) -> None:
        """Silently change one byte, on disk and as read."""
        inode = self._find(path)
        inode.content[offset] ^= mask
        if offset < len(inode.durable):
            inode.durable[offset] ^= mask

    # -- FileSystem

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True) -> File:
        directory, name = self._parent(path)
        inode = directory.children.get(name)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            with self._changing():
                inode = _MemoryInode(False)
                self._change_children(directory, {**directory.children, name: inode})
        elif create and exclusive:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if inode.is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return _MemoryFile(self, inode, path, self._boot, writable)

    def rename(self, source: str, target: str) -> None:
        directory, name = self._parent(source)
        target_directory, target_name = self._parent(target)
        if directory is not target_directory:
            raise OSError(errno.EXDEV, "only within one directory", source)
        if name not in directory.children:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        with self._changing():
            replaced = directory.children.get(target_name)
            if replaced is not None and replaced.is_directory and replaced.children:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), target)
            children = dict(directory.children)
            children[target_name] = children.pop(name)
            self._change_children(directory, children)
            if replaced is not None:
                self._used -= len(replaced.content)

    def unlink(self, path: str) -> None:
        directory, name = self._parent(path)
        inode = self._find(path)
        if inode.is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._remove(directory, name, inode)

    def make_directory(self, path: str) -> None:
        directory, name = self._parent(path)
        existing = directory.children.get(name)
        if existing is not None:
            if not existing.is_directory:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            return
        with self._changing():
            self._change_children(directory, {**directory.children, name: _MemoryInode(True)})

    def remove_directory(self, path: str) -> None:
        directory, name = self._parent(path)
        inode = self._find(path)
        if not inode.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if inode.children:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._remove(directory, name, inode)

    def list_directory(self, path: str) -> list[str]:
        inode = self._find(path)
        if not inode.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return sorted(inode.children)

    def exists(self, path: str) -> bool:
        try:
            self._find(path)
        except FileNotFoundError:
            return False
        return True

    def is_directory(self, path: str) -> bool:
        try:
            return self._find(path).is_directory
        except FileNotFoundError:
            return False

    def sync_directory(self, path: str) -> None:
        inode = self._find(path)
        with self._changing():
            self._maybe_fail_sync(path)
            inode.durable_children = dict(inode.children)
            inode.unsynced_children.clear()

    def free_bytes(self, path: str) -> int:
        self._find(path)
        return max(0, self._capacity - self._used)

    # -- what the files call

    def write_inode(self, inode: _MemoryInode, offset: int, data: bytes, path: str) -> None:
        with self._changing():
            room = self._capacity - self._used
            growth = max(0, offset + len(data) - len(inode.content))
            if growth > room:
                # As on a disk, what still fitted is there.
                data = data[: max(0, len(data) - (growth - room))]
            self._used += max(0, offset + len(data) - len(inode.content))
            _overwrite(inode.content, offset, data)
            inode.unsynced.append((offset, bytes(data)))
            if growth > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def truncate_inode(self, inode: _MemoryInode, size: int) -> None:
        with self._changing():
            self._used += size - len(inode.content)
            _resize(inode.content, size)
            inode.unsynced.append((size, None))

    def sync_inode(self, inode: _MemoryInode, path: str) -> None:
        with self._changing():
            try:
                self._maybe_fail_sync(path)
            except OSError:
                # The pages are marked clean although they never reached the disk.
                inode.unsynced.clear()
                raise
            for offset, data in inode.unsynced:
                if data is None:
                    _resize(inode.durable, offset)
                else:
                    _overwrite(inode.durable, offset, data)
            inode.unsynced.clear()

    def check_power(self, boot: int) -> None:
        if self._is_off or boot != self._boot:
            raise PowerLost("the simulated machine lost power")

    # -- the rest

    @contextmanager
    def _changing(self) -> Iterator[None]:
        if self._power_until is not None and self._operations >= self._power_until:
            self._is_off = True
        self.check_power(self._boot)
        self._operations += 1
        yield

    def _maybe_fail_sync(self, path: str) -> None:
        if self._failing_syncs and path.startswith(self._failing_prefix):
            self._failing_syncs -= 1 if self._failing_syncs > 0 else 0
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def _parent(self, path: str) -> tuple[_MemoryInode, str]:
        head, name = posixpath.split(path)
        directory = self._find(head)
        if not directory.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return directory, name

    def _find(self, path: str) -> _MemoryInode:
        self.check_power(self._boot)
        inode = self._root
        for part in path.split("/"):
            if part:
                child = inode.children.get(part)
                if child is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                inode = child
        return inode

    def _change_children(self, directory: _MemoryInode, children: dict[str, _MemoryInode]) -> None:
        directory.children = children
        directory.unsynced_children.append(children)

    def _remove(self, directory: _MemoryInode, name: str, inode: _MemoryInode) -> None:
        with self._changing():
            children = dict(directory.children)
            del children[name]
            self._change_children(directory, children)
            self._used -= len(inode.content)

    def _settle(self, inode: _MemoryInode, random: Random | None, seen: set[int]) -> None:
        if id(inode) in seen:
            return
        seen.add(id(inode))
        if not inode.is_directory:
            self._settle_content(inode, random)
            self._used += len(inode.content)
            return
        if random is not None and inode.unsynced_children:
            # A journal keeps the order of changes to a directory, and ends somewhere.
            inode.durable_children = random.choice([inode.durable_children, *inode.unsynced_children])
        inode.children = dict(inode.durable_children)
        inode.unsynced_children.clear()
        for child in inode.children.values():
            self._settle(child, random, seen)

    def _settle_content(self, inode: _MemoryInode, random: Random | None) -> None:
        if random is not None and inode.unsynced:
            if random.random() < 0.5:
                _keep_a_prefix(inode, random)
            else:
                _keep_some_sectors(inode, random)
        inode.content = bytearray(inode.durable)
        inode.unsynced.clear()


def _keep_a_prefix(inode: _MemoryInode, random: Random) -> None:
    budget = random.randint(0, sum(len(data) for _, data in inode.unsynced if data is not None))
    for offset, data in inode.unsynced:
        if data is None:
            _resize(inode.durable, offset)
            continue
        _overwrite(inode.durable, offset, data[:budget])
        budget -= len(data)
        if budget <= 0:
            return


def _keep_some_sectors(inode: _MemoryInode, random: Random) -> None:
    for offset, data in inode.unsynced:
        if data is None:
            if random.random() < 0.5:
                _resize(inode.durable, offset)
            continue
        start = 0
        while start < len(data):
            end = min(len(data), start + SECTOR_BYTES - (offset + start) % SECTOR_BYTES)
            if random.random() < 0.5:
                _overwrite(inode.durable, offset + start, data[start:end])
            start = end


class _MemoryFile:
    __slots__ = ("_boot", "_files", "_inode", "_is_closed", "_path", "_writable")

    def __init__(self, files: MemoryFileSystem, inode: _MemoryInode, path: str, boot: int, writable: bool) -> None:
        self._files = files
        self._inode = inode
        self._path = path
        self._boot = boot
        self._writable = writable
        self._is_closed = False

    def read(self, offset: int, size: int) -> bytes:
        self._check(False)
        return bytes(self._inode.content[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self._check(True)
        self._files.write_inode(self._inode, offset, data, self._path)

    def sync_data(self) -> None:
        self._check(False)
        self._files.sync_inode(self._inode, self._path)

    def size(self) -> int:
        self._check(False)
        return len(self._inode.content)

    def truncate(self, size: int) -> None:
        self._check(True)
        self._files.truncate_inode(self._inode, size)

    def close(self) -> None:
        self._is_closed = True

    def _check(self, writes: bool) -> None:
        if self._is_closed or (writes and not self._writable):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._path)
        self._files.check_power(self._boot)
