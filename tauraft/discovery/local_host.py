"""Finding the nodes of the same host and user: one small file per node in a directory that only the user can write.

``<directory>/<peer id>.json`` holds addresses, pid, the host's boot id and the process's start time; it is written to a
temporary name and renamed, so a reader sees all of it or nothing.  A file whose process is gone (pid free, or taken by a process that started at another
time, or of another boot) is ignored and removed.  Files and directories of other users, links, and directories that others may write
are never trusted.  The directory is looked at every 50 ms at first, then at longer intervals up to ``SLOWEST_S``.

Whoever announced before we look is seen at the first look, and whoever announces later sees us: hence ``minimum_s`` = 0, provided that
``announce`` is called before ``find``.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import anyio

from tauraft.discovery.discovery import Found

FASTEST_S = 0.05
SLOWEST_S = 10.0  # a newcomer finds us, and greets us, at its first look
_LARGEST_BYTES = 16 << 10
_PEER_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return sys.platform


def process_start(pid: int) -> str | None:
    """Something that tells two processes of one pid apart; None: no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if sys.platform == "linux":
            return None
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return ""
    # The second field, the command, may itself contain spaces and brackets; field 22 is the start time.
    return status.rpartition(")")[2].split()[19]


class LocalHostDiscoverer:
    name = "local"
    minimum_s = 0.0

    def __init__(self, directory: Path) -> None:
        """``directory``: per namespace; it is made if missing, its parents too."""
        self._directory = directory
        self._own: Path | None = None

    async def announce(self, peer_id: str, addresses: Sequence[str]) -> None:
        """Raises ``PermissionError`` when the directory is not ours alone."""
        if not _PEER_ID.fullmatch(peer_id):
            raise ValueError(f"{peer_id!r} is not a peer id")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._is_ours():
            raise PermissionError(f"{self._directory} can be written by others: it is not used for discovery")
        pid = os.getpid()
        record = {"addresses": list(addresses), "pid": pid, "boot": boot_id(), "start": process_start(pid)}
        target = self._directory / f"{peer_id}.json"
        temporary = self._directory / f".{peer_id}.{pid}"
        with suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(record, file)
        temporary.rename(target)
        self._own = target

    async def withdraw(self) -> None:
        if self._own is not None:
            self._own.unlink(missing_ok=True)
            self._own = None

    async def find(self) -> AsyncIterator[Found]:
        told: dict[str, tuple[str, ...]] = {}
        pause_s = FASTEST_S
        while True:
            for found in self.look():
                if found.peer_id is not None and told.get(found.peer_id) != found.addresses:
                    told[found.peer_id] = found.addresses
                    pause_s = FASTEST_S
                    yield found
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, SLOWEST_S)

    def look(self) -> list[Found]:
        """Who is there now, without ourselves."""
        if not self._is_ours():
            return []
        found = []
        for path in sorted(self._directory.glob("*.json")):
            if path == self._own:
                continue
            addresses = self._read(path)
            if addresses is not None:
                found.append(Found(path.stem, addresses, is_running=True))
        return found

    def _is_ours(self) -> bool:
        try:
            status = self._directory.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022

    def _read(self, path: Path) -> tuple[str, ...] | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
                return None
            data = file.read(_LARGEST_BYTES + 1)
        try:
            record = json.loads(data)
            addresses = tuple(str(address) for address in record["addresses"])
            pid, boot, start = int(record["pid"]), record["boot"], record["start"]
        except (ValueError, TypeError, KeyError):
            return None
        if boot != boot_id() or process_start(pid) != start:
            path.unlink(missing_ok=True)
            return None
        return addresses
