"""A node's data directory: one directory = one identity = one node, on one machine, held by one process (SAFETY 7).

::

    <data dir>/  0700     format      "tauraft 1": this directory is ours
                          identity    the caller's bytes, with the id of the machine they were made on; 0600
                          lock        flock: the holder runs the node; its pid is written inside
                          socket      where the other processes of the host reach the holder
                          <encoded namespace>/{log,snapshots,projection}, and the node's ``member`` record

``DataDirectory.prepare`` makes or checks one; every process of the host may do that.  ``try_lock`` then says who
runs the node. A directory that is not ours, of another format or machine is refused with ``DataDirectoryError``, and
nothing in it is touched. The lock dies with its process, however it dies; in a forked child the descriptor is
closed, so that the child neither holds the lock nor keeps it from being taken over when the parent dies.

This module is about the operating system (locks, modes, links) and therefore does not go through ``FileSystem``.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import fcntl
import hashlib
import os
import stat
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import platformdirs

from tauraft.errors import DataDirectoryError
from tauraft.storage.file_system import RealFileSystem, read_whole, write_atomically
from tauraft.storage.state_codec import pack, unpack

FORMAT = 1
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103

_MARKER = f"tauraft {FORMAT}\n".encode()
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_MAX_NAME = 100
_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_files = RealFileSystem()


def encode_namespace(namespace: str) -> str:
    """One directory name for one namespace: never two for one or one for two, also where case is not told apart.

    >>> encode_namespace("/raft/Cron_1")
    'raft-_43ron_5f1'
    """
    if not namespace.startswith("/raft/"):
        raise ValueError(f"{namespace!r} is not a namespace: it must start with /raft/")
    name = "".join(
        character if character in _PLAIN else "-" if character == "/" else _escaped(character)
        for character in namespace[1:]
    )
    if len(name) <= _MAX_NAME:
        return name
    # "=" is in no short name.
    return f"{name[:32]}={hashlib.sha256(namespace.encode()).hexdigest()}"


def _escaped(character: str) -> str:
    return "".join(f"_{byte:02x}" for byte in character.encode())


def state_directory(environment: Mapping[str, str] = os.environ) -> str:
    """The root of all default data directories and of the host-local discovery."""
    chosen = environment.get("TAURAFT_STATE_DIR")
    return os.path.abspath(chosen) if chosen else os.path.join(platformdirs.user_state_dir(), "tauraft")


def default_data_directory(namespace: str, environment: Mapping[str, str] = os.environ) -> str:
    """Where ``Cluster(namespace)`` lives when nothing is said. The directories above it are made, 0700."""
    root = state_directory(environment)
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
    except OSError as error:
        raise _refused(root, f"cannot be made ({error.strerror}); set TAURAFT_STATE_DIR, or give data_dir=") from error
    return os.path.join(root, encode_namespace(namespace))


def read_machine_id() -> str:
    """What tells this machine from a clone of it; "" where the system has no such thing, and nothing can be checked."""
    if sys.platform == "darwin":
        return _mac_host_uuid()
    for path in _MACHINE_ID_FILES:
        with suppress(OSError, UnicodeDecodeError):
            machine_id = read_whole(_files, os.path.realpath(path)).decode("ascii").strip()
            if machine_id and machine_id != "uninitialized":
                return machine_id
    return ""


def _mac_host_uuid() -> str:
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    uuid = ctypes.create_string_buffer(16)
    no_waiting = (ctypes.c_long * 2)(0, 0)
    return uuid.raw.hex() if library.gethostuuid(uuid, no_waiting) == 0 else ""


@dataclass(frozen=True, slots=True)
class NamespacePaths:
    """One namespace's part of a data directory. ``snapshots_at``: where its snapshots are, when not in it."""

    path: str
    snapshots_at: str = ""

    @property
    def log(self) -> str:
        return os.path.join(self.path, "log")

    @property
    def snapshots(self) -> str:
        return self.snapshots_at or os.path.join(self.path, "snapshots")

    @property
    def projection(self) -> str:
        return os.path.join(self.path, "projection")

    def make(self) -> None:
        """Make what is missing, durably."""
        parent = os.path.dirname(self.path)
        with _refusals(parent):
            _files.make_directory(self.path)
            for path in (self.log, self.snapshots, self.projection):
                _files.make_directory(path)
            _files.sync_directory(self.path)
            _files.sync_directory(parent)

    def with_snapshots_in(self, directory: str, node: str) -> NamespacePaths:
        """The same, with its snapshots in ``directory``, which nodes may share: each has a folder there. Made, durably."""
        path = os.path.abspath(directory)
        for name in (path, os.path.join(path, node), os.path.join(path, node, os.path.basename(self.path))):
            with _refusals(name):
                _files.make_directory(name)
                _files.sync_directory(os.path.dirname(name))
                path = name
        return replace(self, snapshots_at=path)


class DataDirectory:
    """A checked data directory. Made by ``prepare``; ``close`` frees the lock."""

    def __init__(self, path: str, machine_id: str, device: int) -> None:
        self.path = path
        self.machine_id = machine_id
        self.device = device  # of the disk it lies on (SAFETY 8)
        self._lock: int | None = None
        _open_directories.add(self)

    @classmethod
    def prepare(cls, path: str | os.PathLike[str], machine_id: str | None = None) -> DataDirectory:
        """Make the directory if it is missing (its parent must exist), or check that it is ours.

        Raises ``DataDirectoryError``.

        ``machine_id``: as ``read_machine_id`` gives it, which is asked when it is None.
        """
        absolute = os.path.abspath(path)
        with _refusals(absolute):
            with suppress(FileExistsError):
                os.mkdir(absolute, 0o700)
            status = os.lstat(absolute)
        if not stat.S_ISDIR(status.st_mode):
            raise _refused(absolute, "is not a directory (links are not followed); give another data_dir")
        if status.st_uid != os.geteuid():
            raise _refused(
                absolute,
                f"belongs to user {status.st_uid}, not to {os.geteuid()}; run as that user, or give another data_dir",
            )
        with _refusals(absolute):
            names = {name for name in os.listdir(absolute) if not name.startswith(".format.")}
        if "format" in names:
            cls._check_marker(absolute)
        elif names:
            raise _refused(
                absolute,
                f"is not empty and not a tauraft data directory (it has {sorted(names)[0]!r}); give an empty or new "
                f"one",
            )
        if not os.access(absolute, os.W_OK | os.X_OK):
            raise _refused(absolute, "is not writable; give its user write permission, or give another data_dir")
        directory = cls(absolute, read_machine_id() if machine_id is None else machine_id, status.st_dev)
        directory.read_identity()
        with _refusals(absolute):
            if status.st_mode & 0o077:
                os.chmod(absolute, 0o700)
            if "format" not in names:
                cls._write_marker(absolute)
        return directory

    @staticmethod
    def _check_marker(path: str) -> None:
        with _refusals(path):
            marker = read_whole(_files, os.path.join(path, "format"))
        if marker != _MARKER:
            raise _refused(
                path,
                f"has format {marker[:40]!r}, this version of tauraft knows {_MARKER!r}; use the version that wrote "
                f"it, or another data_dir",
            )

    @staticmethod
    def _write_marker(path: str) -> None:
        """Several processes may do this at once: each writes a file of its own, one of the links wins."""
        temporary = os.path.join(path, f".format.{os.getpid()}")
        write_atomically(_files, temporary, _MARKER)
        with suppress(FileExistsError):
            os.link(temporary, os.path.join(path, "format"))
        os.unlink(temporary)
        _files.sync_directory(path)

    # -- identity

    def read_identity(self) -> bytes | None:
        """The caller's bytes; None: there is no identity yet. Refuses one that was made on another machine."""
        path = os.path.join(self.path, "identity")
        try:
            with _refusals(self.path):
                content = read_whole(_files, path)
        except FileNotFoundError:
            return None
        try:
            number, machine_id, identity = unpack(content)
            if number != FORMAT or not isinstance(machine_id, str) or not isinstance(identity, bytes):
                raise ValueError("wrong fields")
        except (TypeError, ValueError) as error:
            raise _refused(
                path,
                f"is damaged ({error}); put a copy of it back, or move the directory away: the node then joins as a "
                f"new member",
            ) from error
        if machine_id and self.machine_id and machine_id != self.machine_id:
            raise _refused(
                self.path,
                f"was made on another machine (id {machine_id[:8]}..., this one is {self.machine_id[:8]}...): two "
                f"machines must never run one "
                "identity. If this is a copy (a cloned disk, a shared home), give another data_dir; if the disk was "
                "moved for good, "
                "`tauraft doctor --adopt` takes it over",
            )
        return identity

    def write_identity(self, identity: bytes) -> None:
        """Durable and whole when it returns; the lock must be held."""
        if self._lock is None:
            raise ValueError("only the holder of the lock writes the identity")
        with _refusals(self.path):
            write_atomically(_files, os.path.join(self.path, "identity"), pack([FORMAT, self.machine_id, identity]))

    # -- lock

    @property
    def is_locked(self) -> bool:
        """Whether this process, by this object, holds the directory."""
        return self._lock is not None

    def try_lock(self) -> bool:
        """Take the directory unless another process (or object) holds it. Never waits."""
        if self._lock is not None:
            return True
        with _refusals(self.path):
            descriptor = os.open(
                os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise _refused(
                self.path, f"cannot be locked ({error.strerror}); it must lie on a local file system"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        self._lock = descriptor
        return True

    def holder_pid(self) -> int | None:
        """The pid that took the lock last; it is only meaningful while ``try_lock`` says that somebody has it."""
        return _pid_in(self.path)

    def trouble(self) -> str:
        return trouble_with_holder(self.path)

    def close(self) -> None:
        """Free the lock. Twice is fine."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def forget_in_child(self) -> None:
        """After a fork: the lock is the parent's alone. (Closing a copy of the descriptor does not free it.)"""
        self.close()

    # -- places

    @property
    def socket_path(self) -> str:
        return os.path.join(self.path, "socket")

    def namespace(self, namespace: str) -> NamespacePaths:
        return NamespacePaths(os.path.join(self.path, encode_namespace(namespace)))


def trouble_with_holder(path: str) -> str:
    """In a clause, that the holder of ``path`` is stopped and keeps its lock; empty when it is not, or nobody can tell."""
    pid = _pid_in(path)
    if pid is None or not is_stopped(pid):
        return ""
    return (
        f"process {pid}, which holds {path}, is stopped (SIGSTOP, or a debugger): let it go on, or end it and another "
        "process takes over"
    )


def is_stopped(pid: int) -> bool:
    """By a signal or a debugger. Only Linux can say so; elsewhere False."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # of no size, as all of /proc: to be read to its end
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def _pid_in(path: str) -> int | None:
    with suppress(OSError, ValueError):
        return int(read_whole(_files, os.path.join(path, "lock")))
    return None


class ShortSocketPath:
    """A path by which a Unix socket can be bound or reached although its own is over the system's limit.

    ``with ShortSocketPath(path) as short: sock.bind(short)``. On Linux it leads through ``/proc/self/fd``; elsewhere
    through a link in a private directory that is removed on leaving.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._link_directory: str | None = None

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= SOCKET_PATH_BYTES:
            return self._path
        directory, name = os.path.split(self._path)
        if sys.platform == "linux":
            self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return f"/proc/self/fd/{self._descriptor}/{name}"
        import tempfile

        self._link_directory = tempfile.mkdtemp(prefix="tauraft-")
        os.symlink(directory, os.path.join(self._link_directory, "d"))
        return os.path.join(self._link_directory, "d", name)

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._link_directory is not None:
            os.unlink(os.path.join(self._link_directory, "d"))
            os.rmdir(self._link_directory)
            self._link_directory = None


class _refusals:
    """Turns an ``OSError`` on the way into the refusal a user can act on; a missing file passes."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, FileNotFoundError):
            if os.path.isdir(os.path.dirname(self._path)):
                return
            raise _refused(
                self._path, "cannot be made: the directory above it does not exist; make it, or give another data_dir"
            ) from error
        if isinstance(error, OSError):
            raise _refused(
                self._path, f"cannot be used ({error.strerror}); give another data_dir, or set this one right"
            ) from error


def _refused(path: str, what: str) -> DataDirectoryError:
    return DataDirectoryError(f"{path} {what}. Nothing in it was touched.", path=path)


_open_directories: weakref.WeakSet[DataDirectory] = weakref.WeakSet()


def _forget_all_in_child() -> None:
    for directory in list(_open_directories):
        directory.forget_in_child()


os.register_at_fork(after_in_child=_forget_all_in_child)
