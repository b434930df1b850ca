"""Snapshots of one replica: taken while it works, restored from, and fetched from a leader.

*Taking*: a copy-on-write view of the state at one index is walked in slices of about 1 ms, so heartbeats never wait;
rows are encoded, hashed and written in a worker; what was written must have the digest that the state had.  The directory appears at once (``storage.snapshot_store``), and only then may the log be compacted.

*Fetching*: the core is not told of an ``InstallSnapshot`` until its bytes are here and verified.  The receiver sets the
pace: it asks for pieces (``PULL``), a few at a time, and asks again for what did not come; the sender only answers, on
the bulk stream.  A fetch without progress for ``PATIENCE_S`` is dropped; the leader offers again.

*Installing*: a worker reads the rows into tables of their own and checks their digest; only then is the core told, and the
machine changes over to them at once.  Old rows are taken apart in a worker too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import anyio
import anyio.lowlevel
import msgpack

from tauraft.core.messages import InstallSnapshot, Member, SnapshotMeta
from tauraft.errors import PluginMissing
from tauraft.node import wire
from tauraft.node.apply import SESSIONS, Machine, PreparedState
from tauraft.node.clock import SECOND_NS, Clock
from tauraft.storage.log_store import StorageError, StorageFull
from tauraft.storage.snapshot_store import (
    SnapshotCorrupt,
    SnapshotNotFound,
    SnapshotReader,
    SnapshotReceiver,
    SnapshotStore,
    SnapshotWriter,
)
from tauraft.tables import DIGEST_BITS, row_hash

PIECE_BYTES: Final = 60 << 10
WINDOW: Final = 8
ASK_AGAIN_NS: Final = SECOND_NS // 2
PATIENCE_NS: Final = 10 * SECOND_NS
ROWS_A_SLICE: Final = 500  # walked in about 0.5 ms
ROWS_A_WRITE: Final = 2_000
ROWS_A_FOLD: Final = 400  # about 1 ms of hashing
KEPT: Final = 3

Row = tuple[str, bytes, bytes]
RunInWorker = Callable[[Callable[[], Any]], Coroutine[Any, Any, Any]]
_log = logging.getLogger("tauraft.node")


class RowFile(Protocol):
    """How the rows of a snapshot are written and read. Writing and reading run in a worker."""

    def begin(self, writer: SnapshotWriter) -> Any: ...

    def add(self, file: Any, rows: Sequence[Row]) -> None: ...

    def finish(self, file: Any) -> None: ...

    def read(self, reader: SnapshotReader) -> Iterable[Sequence[Row]]: ...


class ParquetRows:
    """On a real disk: a Parquet file that any tool reads."""

    NAME = "rows.parquet"

    def begin(self, writer: SnapshotWriter) -> Any:
        from tauraft.storage.parquet import ParquetWriter

        return ParquetWriter(writer.external_path(self.NAME))

    def add(self, file: Any, rows: Sequence[Row]) -> None:
        start = 0
        while start < len(rows):
            table = rows[start][0]
            end = start
            while end < len(rows) and rows[end][0] == table:
                end += 1
            file.add(table, [(key, row) for _, key, row in rows[start:end]])
            start = end

    def finish(self, file: Any) -> None:
        file.finish()

    def read(self, reader: SnapshotReader) -> Iterable[Sequence[Row]]:
        from tauraft.storage.parquet import read_parquet

        return read_parquet(reader.path(self.NAME))


class PlainRows:
    """On a disk in memory, which other libraries cannot write to: msgpack, a chunk a slice."""

    NAME = "rows.msgpack"

    def begin(self, writer: SnapshotWriter) -> Any:
        writer.add_file(self.NAME)
        return writer

    def add(self, file: SnapshotWriter, rows: Sequence[Row]) -> None:
        file.write(msgpack.packb(list(rows)))

    def finish(self, file: SnapshotWriter) -> None:
        pass

    def read(self, reader: SnapshotReader) -> Iterable[Sequence[Row]]:
        unpacker = msgpack.Unpacker(max_buffer_size=1 << 31)
        unpacker.feed(reader.read_file(self.NAME))
        yield from unpacker


@dataclass(slots=True)
class _Fetch:
    """One snapshot on its way here."""

    message: InstallSnapshot
    arrived: Callable[[InstallSnapshot], object]
    machine: Machine
    receiver: SnapshotReceiver | None
    asked: dict[int, int]  # offset -> when
    progress_ns: int


@dataclass(frozen=True, slots=True)
class _Ready:
    """A snapshot read into tables, or why it cannot be run here."""

    meta: SnapshotMeta
    prepared: PreparedState | None
    missing: PluginMissing | None

    def state(self) -> PreparedState:
        if self.missing is not None:
            raise self.missing
        assert self.prepared is not None
        return self.prepared


class _Written:
    """The digest of the tables' rows that went into a snapshot."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, rows: Sequence[Row]) -> None:
        self._sum += sum(row_hash(name, key, row) for name, key, row in rows if name != SESSIONS)

    @property
    def digest(self) -> int:
        return self._sum % (1 << DIGEST_BITS)


class SnapshotMover:
    """See the module. All but ``take`` is called in the driver's turn."""

    def __init__(
        self,
        store: SnapshotStore,
        rows: RowFile,
        clock: Clock,
        run_in_worker: RunInWorker,
    ) -> None:
        self._store = store
        self._rows = rows
        self._clock = clock
        self.run_in_worker = run_in_worker
        self._fetch: _Fetch | None = None
        self._serving: tuple[bytes, SnapshotReader] | None = None
        self._ready: _Ready | None = None  # read, and not yet adopted
        self._ready_ns = 0
        self._arriving: InstallSnapshot | None = None  # all here, being read
        # Starts a task, while the replica runs; without it all is done at once.
        self.spawn: Callable[[Callable[[], Coroutine[Any, Any, Any]]], object] | None = None
        self._offered: dict[Member, int] = {}  # to whom a snapshot was offered, and when it last asked for a piece
        self.send: Callable[[str, bytes, bool], bool] = lambda peer_id, frame, bulk: False
        self.on_failed: Callable[[Member], object] = lambda member: None
        self.offered_id: Callable[[], bytes] = lambda: b""  # of the snapshot that the core would offer now

    # Restoring.

    async def read_ahead(self, machine: Machine) -> None:
        """Before a replica is opened: read the newest one in a worker, so that ``restore_newest`` has nothing to wait for."""
        self._store.open()
        reader = await self.run_in_worker(lambda: self._store.newest(0))
        if reader is not None:
            self._ready = await self.run_in_worker(lambda: self._read(reader, machine))

    def restore_newest(self, machine: Machine, at_least: int) -> SnapshotMeta | None:
        """Into a fresh machine. Raises ``PluginMissing``."""
        ready, self._ready = self._ready, None
        if ready is None or ready.meta.index < at_least:
            self._store.open()
            reader = self._store.newest(max(0, at_least))
            if reader is None:
                return None
            ready = self._read(reader, machine)
        machine.adopt(ready.state())
        return ready.meta

    def restore(self, meta: SnapshotMeta, machine: Machine) -> None:
        """One that was fetched before. Raises ``PluginMissing``."""
        ready, self._ready = self._ready, None
        if ready is None or ready.meta.id != meta.id:
            ready = self._read(self._store.find(meta.id), machine)
        before = machine.adopt(ready.state())
        if self.spawn is not None:
            self.spawn(lambda: self.run_in_worker(lambda: _take_apart(before)))

    def _read(self, reader: SnapshotReader, machine: Machine) -> _Ready:
        """Rows into tables: for a million of them ten seconds, in whatever thread."""
        try:
            rows = (row for chunk in self._rows.read(reader) for row in chunk)
            return _Ready(reader.meta, machine.prepare(reader.meta, reader.manifest.extra, rows), None)
        except PluginMissing as missing:
            return _Ready(reader.meta, None, missing)
        finally:
            reader.close()

    # Taking.

    async def take(self, machine: Machine, still: Callable[[], bool]) -> SnapshotMeta:
        """Of the state as it is now; writes go on meanwhile. ``still``: false gives up (``SnapshotNotFound``).

        Raises ``SnapshotCorrupt`` when what was written is not what the digest says: the log must be kept then.
        """
        await self._fold_digest(machine)
        view = machine.freeze()
        writer = self._store.begin(SnapshotMeta(view.index, view.term, view.membership))
        written = _Written()

        def add(rows: list[tuple[str, Any, Any]]) -> None:
            encoded = view.encode(rows)
            written.add(encoded)
            self._rows.add(file, encoded)

        try:
            file = await self.run_in_worker(lambda: self._rows.begin(writer))
            gathered: list[tuple[str, Any, Any]] = []
            for rows in view.parts(ROWS_A_SLICE):
                gathered += rows
                if len(gathered) >= ROWS_A_WRITE:
                    batch, gathered = gathered, []
                    await self.run_in_worker(lambda batch=batch: add(batch))  # type: ignore[misc]
                else:
                    await anyio.lowlevel.checkpoint()
                if not still():
                    raise SnapshotNotFound("the state was replaced while the snapshot was taken")
            await self.run_in_worker(lambda: add(gathered))
            if written.digest.to_bytes(16, "big") != view.digest:
                raise SnapshotCorrupt("the rows that were walked are not those the digest was taken of")
            await self.run_in_worker(lambda: self._rows.finish(file))
            manifest = await self.run_in_worker(lambda: writer.commit(view.extra))
            await self.run_in_worker(lambda: self._store.reap(KEPT))
            meta: SnapshotMeta = manifest.meta
            return meta
        finally:
            view.close()
            writer.cancel()

    async def _fold_digest(self, machine: Machine) -> None:
        """So that freezing has next to nothing left to hash. Each slice takes more than came meanwhile, so it ends."""
        before = machine.tables.stale_rows
        while (stale := machine.tables.stale_rows) > ROWS_A_FOLD:
            machine.tables.fold(ROWS_A_FOLD + max(0, stale - before))
            before = machine.tables.stale_rows
            await anyio.lowlevel.checkpoint()

    # Fetching.

    def fetch(self, message: InstallSnapshot, arrived: Callable[[InstallSnapshot], object], machine: Machine) -> None:
        """Get the snapshot from the sender of ``message``, read it for ``machine``, then call ``arrived``."""
        if self._arriving is not None and self._arriving.meta.id == message.meta.id:
            self._arriving = message  # the leader repeats itself
            return
        if self._ready is not None and self._ready.meta.id == message.meta.id:
            arrived(message)
            return
        current = self._fetch
        if current is not None and current.message.meta.id == message.meta.id:
            current.message = message
            return
        if current is not None:
            self._drop_fetch()
        fetch = _Fetch(message, arrived, machine, None, {}, self._clock.monotonic_ns())
        try:
            self._store.find(message.meta.id).close()
        except SnapshotNotFound:
            self._fetch = fetch
            self._ask()
        else:
            self._arrive(fetch)

    def _arrive(self, fetch: _Fetch) -> None:
        """All its bytes are here."""
        self._fetch = None
        self._arriving = fetch.message

        def read() -> _Ready:
            if fetch.receiver is not None:
                fetch.receiver.commit()
            return self._read(self._store.find(fetch.message.meta.id), fetch.machine)

        if self.spawn is None:
            self._arrived(fetch, _attempt(read))
            return

        async def read_apart() -> None:
            self._arrived(fetch, await self.run_in_worker(lambda: _attempt(read)))

        self.spawn(read_apart)

    def _arrived(self, fetch: _Fetch, outcome: _Ready | Exception) -> None:
        message, self._arriving = self._arriving or fetch.message, None
        if isinstance(outcome, Exception):
            _log.warning("a snapshot from %s was dropped: %s", message.sender.peer_id, outcome)
            if fetch.receiver is not None:
                fetch.receiver.cancel()
            return
        self._ready, self._ready_ns = outcome, self._clock.monotonic_ns()
        fetch.arrived(message)

    def tick(self) -> None:
        """Ask again for what did not come; give up what does not move, on either side."""
        now = self._clock.monotonic_ns()
        if self._ready is not None and now - self._ready_ns > PATIENCE_NS:
            self._ready = None  # the core had no use for it: the log came first
        fetch = self._fetch
        if fetch is not None:
            if now - fetch.progress_ns > PATIENCE_NS:
                self._drop_fetch()
            else:
                self._ask()
        for member, asked_ns in list(self._offered.items()):
            if now - asked_ns > PATIENCE_NS // 2:
                del self._offered[member]
                self.on_failed(member)

    def offered(self, member: Member) -> None:
        """The core has sent ``member`` an InstallSnapshot."""
        self._offered[member] = self._clock.monotonic_ns()

    def forget_offers(self) -> None:
        self._offered.clear()

    def _drop_fetch(self) -> None:
        if self._fetch is not None and self._fetch.receiver is not None:
            self._fetch.receiver.cancel()
        self._fetch = None

    def _ask(self) -> None:
        fetch = self._fetch
        assert fetch is not None
        now = self._clock.monotonic_ns()
        peer_id, identifier = fetch.message.sender.peer_id, fetch.message.meta.id
        wanted: Iterator[int] = iter((-1,)) if fetch.receiver is None else _offsets(fetch.receiver.missing())
        under_way = sum(1 for asked_ns in fetch.asked.values() if now - asked_ns < ASK_AGAIN_NS)
        for offset in wanted:
            if under_way >= WINDOW:
                return
            if now - fetch.asked.get(offset, -ASK_AGAIN_NS) >= ASK_AGAIN_NS:
                fetch.asked[offset] = now
                under_way += 1
                self.send(peer_id, wire.pack(wire.PULL, [identifier, offset]), False)

    def take_frame(self, sender: str, frame: bytes) -> None:
        """A PULL or CHUNK of a peer. Raises ``WireError``."""
        try:
            if frame[0] == wire.PULL:
                identifier, offset = wire.unpack(frame)
                self._serve(sender, identifier, offset)
            else:
                identifier, offset, data = wire.unpack(frame)
                self._take_piece(sender, identifier, offset, data)
        except (ValueError, TypeError) as error:
            raise wire.WireError(f"not a piece of a snapshot: {error}") from error

    def _serve(self, peer_id: str, identifier: bytes, offset: int) -> None:
        if offset < 0 and identifier != self.offered_id():
            # A transfer that begins now had better begin with one that is there, and lasts. Were it served, or left
            # unanswered, the core would offer the same one for as long as it is asked for.
            self._give_up(peer_id)
            return
        for member in self._offered:
            if member.peer_id == peer_id:
                self._offered[member] = self._clock.monotonic_ns()
        if self._serving is None or self._serving[0] != identifier:
            try:
                reader = self._store.find(identifier)
            except SnapshotNotFound:
                self._give_up(peer_id)  # reaped half-way: it is offered a newer one
                return
            if self._serving is not None:
                self._serving[1].close()
            self._serving = (identifier, reader)
        reader = self._serving[1]
        data = reader.manifest.encoded if offset < 0 else reader.read(offset, PIECE_BYTES)
        self.send(peer_id, wire.pack(wire.CHUNK, [identifier, offset, data]), True)

    def _give_up(self, peer_id: str) -> None:
        for member in [one for one in self._offered if one.peer_id == peer_id]:
            del self._offered[member]
            self.on_failed(member)

    def _take_piece(self, peer_id: str, identifier: bytes, offset: int, data: bytes) -> None:
        fetch = self._fetch
        if fetch is None or fetch.message.meta.id != identifier or fetch.message.sender.peer_id != peer_id:
            return
        fetch.progress_ns = self._clock.monotonic_ns()
        fetch.asked.pop(offset, None)
        try:
            if fetch.receiver is None:
                if offset >= 0:
                    return
                receiver = self._store.receive(data)
                if receiver.manifest.meta.id != identifier:
                    receiver.cancel()
                    raise wire.WireError("a manifest of another snapshot")
                fetch.receiver = receiver
            elif offset >= 0:
                fetch.receiver.write(offset, data)
            if not fetch.receiver.missing():
                self._arrive(fetch)
                return
        except (SnapshotCorrupt, StorageFull) as error:
            _log.warning("a snapshot from %s was dropped: %s", peer_id, error)
            self._drop_fetch()
            return
        self._ask()

    def refused_frame(self, sender: str, error: Exception) -> None:
        _log.warning("a frame from %s was dropped: %s", sender, error)

    def close(self) -> None:
        self._drop_fetch()
        if self._serving is not None:
            self._serving[1].close()
            self._serving = None


def _attempt(read: Callable[[], _Ready]) -> _Ready | Exception:
    try:
        return read()
    except (SnapshotCorrupt, SnapshotNotFound, StorageFull) as error:
        return error


def _take_apart(before: list[Any]) -> None:
    """Row by row: freeing a million at once would hold the GIL for a fifth of a second."""
    for rows in before:
        while rows:
            rows.popitem()


def _offsets(missing: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The pieces in the missing ranges; ranges start and end at pieces, or at the end."""
    for start, end in missing:
        yield from range(start, end, PIECE_BYTES)


__all__ = ["ParquetRows", "PlainRows", "RowFile", "SnapshotMover", "StorageError"]
