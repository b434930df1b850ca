"""History on disk: what every command changed, in files of lines that only grow.

``history-<number>-<start>-<c|g>.tsv`` is the live one; full ones are sealed as ``.parquet`` (a tenth of the size, open to any tool).
``start`` is the revision after which a file's changes begin; ``c``: it goes on where the one before ended, ``g``: something
is missing between (a *gap*).  The oldest are unlinked when all together exceed ``max_bytes``.

A live file is blocks, one an ``append``.  A block is a head line, ``revision, at, #, bytes, crc32c, index``, then its lines,
``revision, at (us), view, key, old, new`` with JSON in the last three (empty: no row), tab between.  The head says up to where history is
complete; its CRC covers the block, so ``open`` cuts off a torn end and all behind a damaged block.  One revision never spans two blocks.

Disposable (SAFETY 24): nothing else depends on it.  Appends are not synced: what a crash takes is applied, and so
recorded, again from the log; ``sync`` is owed only before the log below is given up.  Files of another cluster or format are
removed.  Why not DuckDB files, and the figures: docs/decisions/0010-sql.md.  Synchronous, one thread at a time.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from crc32c import crc32c

from tauraft.storage.file_system import File, FileSystem, read_whole, write_atomically

FORMAT = 1
HEAD = "#"
_FORMAT_FILE = "format"
_NAME = re.compile(r"history-(\d{8})-(\d{20})-([cg])\.(tsv|parquet)")
_MAX_FILE_BYTES = 16 << 20
_MIN_FILE_BYTES = 64 << 10

Seal = Callable[[str, str], object]


@dataclass(frozen=True, slots=True)
class Stand:
    """History is complete up to here: the changes of all entries up to ``index``, whose last revision was ``revision``."""

    revision: int
    index: int
    at_us: int = 0  # the cluster's wall clock then


@dataclass(frozen=True, slots=True)
class Part:
    """One file."""

    number: int
    start: int
    continues: bool
    is_sealed: bool
    path: str
    size_bytes: int


class HistoryFiles:
    """See the module. ``directory`` exists. ``seal(source, target)`` writes the lines of one file as Parquet to another."""

    def __init__(self, directory: str, cluster: bytes, *, files: FileSystem, max_bytes: int, seal: Seal) -> None:
        self._directory = directory
        self._cluster = cluster
        self._files = files
        self._max_bytes = max_bytes
        self._file_bytes = min(_MAX_FILE_BYTES, max(_MIN_FILE_BYTES, max_bytes // 8))
        self._seal = seal
        self._live: Part | None = None
        self._file: File | None = None
        self._size = 0
        self.stand = self._began = Stand(0, 0)

    # Opening.

    def open(self) -> Stand | None:
        """Verify what is there; None: nothing of this cluster. Then ``append`` goes on behind it, or ``begin`` anew."""
        self.close()
        mark = b"tauraft history %d %s\n" % (FORMAT, self._cluster.hex().encode())
        path = self._path(_FORMAT_FILE)
        if not self._files.exists(path) or read_whole(self._files, path) != mark:
            self.remove_all()
            write_atomically(self._files, path, mark)
            return None
        for name in self._files.list_directory(self._directory):
            if name.endswith(".tmp"):
                self._files.unlink(self._path(name))
        stand = self._open_live()
        parts = self.parts()
        sealed = {part.number for part in parts if part.is_sealed}
        live = None if self._live is None else self._live.number
        for part in parts:
            # What a crash left of ``begin``.
            if not part.is_sealed and part.number in sealed:
                self._files.unlink(part.path)
            elif not part.is_sealed and part.number != live:
                self._seal_part(part)
        return stand

    def _open_live(self) -> Stand | None:
        """The newest file that says where it stands; one that does not was never finished."""
        while parts := self.parts():
            live = parts[-1]
            if live.is_sealed:
                return None
            file = self._files.open(live.path)
            data = file.read(0, file.size())
            stand, self._size = sound_prefix(data)
            if stand is not None:
                if self._size < len(data):
                    file.truncate(self._size)
                self._live, self._file, self.stand = live, file, stand
                self._began = sound_prefix(data[: data.index(b"\n") + 1])[0] or stand
                return stand
            file.close()
            self._files.unlink(live.path)
        return None

    def remove_all(self) -> None:
        """Anything in the directory that could be ours, whoever wrote it."""
        self.close()
        for name in self._files.list_directory(self._directory):
            path = self._path(name)
            if not self._files.is_directory(path):
                self._files.unlink(path)

    # Looking.

    def parts(self) -> list[Part]:
        """Oldest first; the last one is live."""
        found = []
        for name in self._files.list_directory(self._directory):
            match = _NAME.fullmatch(name)
            if match is not None:
                number, start, continues, kind = match.groups()
                path = self._path(name)
                found.append(
                    Part(int(number), int(start), continues == "c", kind == "parquet", path, self._size_of(path))
                )
        return sorted(found, key=lambda part: (part.number, part.is_sealed))

    def oldest(self) -> tuple[int, int | None]:
        """The revision from which on nothing is missing up to now, and when it was reached, if that is known."""
        first = None
        for first in reversed(self.parts()):
            if not first.continues:
                break
        if first is None:
            return self.stand.revision, self.stand.at_us
        return first.start, None if first.is_sealed else self._began.at_us

    def live_lines(self) -> bytes:
        """All of the live file, heads included."""
        return b"" if self._file is None else self._file.read(0, self._size)

    # Writing.

    def begin(self, stand: Stand, *, continues: bool) -> None:
        """A new live file; the one before is sealed. Raises ``OSError``."""
        before, last = self._live, self.parts()
        self.sync()  # the new file will say that all before it is there
        self.close()
        number = 1 + max((part.number for part in last), default=0)
        kept = continues and bool(last)
        path = self._path(f"history-{number:08d}-{stand.revision:020d}-{'c' if kept else 'g'}.tsv")
        self._live = Part(number, stand.revision, kept, False, path, 0)
        self._file = self._files.open(path, create=True, exclusive=True)
        self._size = 0
        self._began = stand
        self.append(b"", stand)
        # It stands before the old one goes: a crash between leaves two, and the old one is sealed when they are opened.
        self._file.sync_data()
        self._files.sync_directory(self._directory)
        if before is not None:
            self._seal_part(before)
        self._reap()

    def append(self, lines: bytes, stand: Stand) -> None:
        """History is then complete up to ``stand``. Raises ``OSError``: ``begin`` anew after that."""
        assert self._file is not None
        block = _head(lines, stand) + lines
        self._file.write(self._size, block)
        self._size += len(block)
        self.stand = stand

    @property
    def is_full(self) -> bool:
        """The live file has grown enough: ``begin`` the next one, which continues it."""
        return self._size >= self._file_bytes

    def sync(self) -> None:
        if self._file is not None:
            self._file.sync_data()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._live = None

    def _seal_part(self, part: Part) -> None:
        target = part.path.removesuffix(".tsv") + ".parquet"
        temporary = target + ".tmp"
        with suppress(FileNotFoundError):
            self._files.unlink(temporary)
        self._seal(part.path, temporary)
        file = self._files.open(temporary)
        try:
            file.sync_data()
        finally:
            file.close()
        self._files.rename(temporary, target)
        self._files.sync_directory(self._directory)
        self._files.unlink(part.path)

    def _reap(self) -> None:
        parts = self.parts()
        total = sum(part.size_bytes for part in parts)
        for part in parts[:-1]:
            if total <= self._max_bytes:
                return
            self._files.unlink(part.path)
            total -= part.size_bytes

    def _path(self, name: str) -> str:
        return posixpath.join(self._directory, name)

    def _size_of(self, path: str) -> int:
        file = self._files.open(path, writable=False)
        try:
            return file.size()
        finally:
            file.close()


def _head(lines: bytes, stand: Stand) -> bytes:
    start = b"%d\t%d\t#\t%d\t" % (stand.revision, stand.at_us, len(lines))
    index = b"%d" % stand.index
    return b"%s%d\t%s\n" % (start, crc32c(lines, crc32c(start + index)), index)


def sound_prefix(data: bytes) -> tuple[Stand | None, int]:
    """How far the blocks of a file verify: where history stands there, and how many bytes that is."""
    stand, offset = None, 0
    while True:
        end = data.find(b"\n", offset, offset + 200)
        fields = data[offset:end].split(b"\t") if end >= 0 else []
        if len(fields) != 6 or fields[2] != HEAD.encode() or not all(fields[i].isdigit() for i in (0, 1, 3, 4, 5)):
            return stand, offset
        found = Stand(int(fields[0]), int(fields[5]), int(fields[1]))
        lines = data[end + 1 : end + 1 + int(fields[3])]
        if data[offset : end + 1] != _head(lines, found) or len(lines) != int(fields[3]):
            return stand, offset
        stand, offset = found, end + 1 + len(lines)
