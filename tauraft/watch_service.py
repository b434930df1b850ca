"""The replica's side of watches (docs/decisions/0006): who watches what, and what of the change log each of them is sent.

A watcher is a *position* in the replica's change log; nothing is queued for it.  *Live* ones have all there is: what an entry
changed goes to them as soon as it is applied (``applied``), found by exact key or, for ranges, by trying each range
of the table.  The others are *behind*: new, resumed, slow, or cut off by a full link.  One task walks the log for them in
slices, as far as their credit goes.  Whose position has left the log is sent the state, and goes on from its revision.

Credit is the client's (bytes it has room for).  Apart from it, of each link at most ``IN_FLIGHT_BYTES`` may be under way
unreceived: events share the link with answers, and must not fill its queue.

All of it in the engine's loop.  ``CommandService`` hands messages in and owns the links; nothing here knows a session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

import trio

from tauraft import errors
from tauraft.codec import CodecError
from tauraft.command_protocol import (
    MAX_PAYLOAD_BYTES,
    Credit,
    Events,
    Failed,
    Record,
    ToClient,
    Unwatch,
    Watch,
    Watching,
    WatchStart,
    encode_records,
)
from tauraft.node.change_log import ChangeLog, RevisionChanges
from tauraft.node.replica import Replica
from tauraft.tables import ABSENT, Change, Table

MESSAGE_BYTES: Final = 64 << 10  # of events, about; a larger row goes alone
IN_FLIGHT_BYTES: Final = 4 << 20
FRAMES_A_SLICE: Final = 2_000
BOOKMARK_BYTES: Final = 16 << 20  # of changes, after which idle watches are told how far they are
MAX_WATCHES: Final = 10_000  # of one link


class End(Protocol):
    """A link's end, as far as watches go."""

    is_closed: bool

    def deliver(self, message: ToClient) -> None: ...


class _Link:
    """What is under way on one link, and who waits for room on it."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.in_flight = 0
        self.watchers: dict[int, _Watcher] = {}
        self.blocked: list[_Watcher] = []


class _Watcher:
    __slots__ = (
        "credit", "is_live", "is_over", "is_queued", "link", "message", "number", "outbox", "outbox_bytes", "part", "position",
        "range", "received", "sent", "state_next", "state_revision", "told",
    )  # fmt: skip

    def __init__(self, link: _Link, message: Watch) -> None:
        self.link = link
        self.message = message
        self.number = message.watch
        self.credit = message.credit
        self.sent = self.received = 0
        self.is_live = self.is_queued = self.is_over = False
        self.position = 0  # every frame up to this revision was sent, or is not its concern
        self.part = 0  # of the first frame after it, so many changes were sent already
        self.state_revision: int | None = None  # the state is being sent, from ``state_next`` on
        self.state_next: Any = ABSENT
        self.told = 0  # the revision that its client knows
        self.range: _Range | None = None  # None: its start is not confirmed yet
        self.outbox: list[Record] = []
        self.outbox_bytes = 0


class _Range:
    """The keys that one watcher watches, decoded."""

    __slots__ = ("high", "is_exact", "low")

    def __init__(self, table: Table[Any, Any], low: bytes, high: bytes) -> None:
        self.is_exact = bool(low) and low == high
        self.low = table.key_codec.decode(low) if low else ABSENT
        self.high = table.key_codec.decode(high) if high else ABSENT

    def holds(self, key: Any) -> bool:
        if self.is_exact:
            return bool(key == self.low)
        return (self.low is ABSENT or key >= self.low) and (self.high is ABSENT or key < self.high)


class WatchService:
    """The watches of all links of one replica."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._links: dict[End, _Link] = {}
        self._unconfirmed: list[_Watcher] = []
        self._exact: dict[str, dict[Any, dict[_Watcher, None]]] = {}
        self._ranges: dict[str, dict[_Watcher, _Range]] = {}
        self._behind: deque[_Watcher] = deque()
        self._wake = trio.Event()
        self._next_frame = self._log.end  # live watchers have all before it
        self._restarts = self._log.restarts
        self._seen = 0  # the revision up to which live watchers have been told what concerns them
        self._bookmark_at = BOOKMARK_BYTES

    @property
    def _log(self) -> ChangeLog:
        return self._replica.change_log

    @property
    def is_confirming(self) -> bool:
        """Some wait for a leader to confirm their start."""
        return bool(self._unconfirmed)

    # ---- what clients say ----

    def watch(self, end: End, message: Watch) -> None:
        link = self._links.setdefault(end, _Link(end))
        if len(link.watchers) >= MAX_WATCHES:
            full = errors.Overloaded(f"{MAX_WATCHES} watches are open on this connection", retry_after=1.0)
            self._refuse(end, message.watch, full)
            return
        watcher = _Watcher(link, message)
        self._drop(link.watchers.get(message.watch))
        link.watchers[message.watch] = watcher
        if message.start is WatchStart.CURSOR:
            self._begin(watcher)
        else:
            self._unconfirmed.append(watcher)

    def credit(self, end: End, message: Credit) -> None:
        link = self._links.get(end)
        watcher = None if link is None else link.watchers.get(message.watch)
        if link is None or watcher is None:
            return
        received = min(message.received, watcher.sent)
        if received > watcher.received:
            link.in_flight -= received - watcher.received
            watcher.received = received
        watcher.credit = max(watcher.credit, message.credit)
        self._queue(watcher)
        if link.in_flight < IN_FLIGHT_BYTES:
            blocked, link.blocked = link.blocked, []
            for other in blocked:
                self._queue(other)

    def unwatch(self, end: End, message: Unwatch) -> None:
        link = self._links.get(end)
        if link is not None:
            self._drop(link.watchers.get(message.watch))

    def forget(self, end: End) -> None:
        """The link is gone."""
        link = self._links.pop(end, None)
        if link is not None:
            for watcher in list(link.watchers.values()):
                self._drop(watcher)

    def confirm(self) -> None:
        """Once a turn: those that begin share one confirmation by a quorum."""
        if self._unconfirmed:
            starting, self._unconfirmed = self._unconfirmed, []
            self._replica.read_index(lambda index: self._confirmed(starting, index))

    def _confirmed(self, starting: list[_Watcher], index: int | None) -> None:
        starting = [watcher for watcher in starting if not watcher.is_over]
        if index is None:
            self._unconfirmed += starting
        else:
            for watcher in starting:
                self._begin(watcher)

    def _begin(self, watcher: _Watcher) -> None:
        message, log = watcher.message, self._log
        table = log.table(message.table)
        if table is None:
            missing = errors.InvalidCommand(f"there is no table {message.table} on this cluster: is its plugin active?")
            self._end(watcher, missing)
            return
        try:
            keys = watcher.range = _Range(table, message.low, message.high)
        except CodecError as error:
            self._end(watcher, errors.InvalidCommand(f"a key that {message.table} does not have: {error}"))
            return
        watcher.position = log.revision
        match message.start:
            case WatchStart.STATE:
                watcher.state_revision = log.revision
            case WatchStart.REVISION if message.since > log.revision:
                future = errors.InvalidArgument(
                    f"since_revision is {message.since}, and the newest revision is {log.revision}",
                    option="since_revision",
                )
                self._end(watcher, future)
                return
            case WatchStart.CURSOR if message.cluster_id != self._replica.cluster_id:
                watcher.state_revision = log.revision
            case WatchStart.REVISION | WatchStart.CURSOR:
                watcher.position = message.since
        watcher.told = watcher.position
        watcher.link.end.deliver(
            Watching(message.watch, watcher.position, self._replica.applied_index, self._replica.cluster_id)
        )
        if keys.is_exact:
            self._exact.setdefault(message.table, {}).setdefault(keys.low, {})[watcher] = None
        else:
            self._ranges.setdefault(message.table, {})[watcher] = keys
        self._queue(watcher)

    def _refuse(self, end: End, number: int, error: errors.TauraftError) -> None:
        end.deliver(Failed(number, 0, 0, errors.encode(error)))

    def _end(self, watcher: _Watcher, error: errors.TauraftError) -> None:
        self._drop(watcher)
        self._refuse(watcher.link.end, watcher.number, error)

    def _drop(self, watcher: _Watcher | None) -> None:
        if watcher is None or watcher.is_over:
            return
        watcher.is_over = True
        watcher.is_live = False
        link, table = watcher.link, watcher.message.table
        link.in_flight -= watcher.sent - watcher.received
        del link.watchers[watcher.number]
        self._ranges.get(table, {}).pop(watcher, None)
        keys = self._exact.get(table)
        if keys is not None and watcher.range is not None:
            same = keys.get(watcher.range.low)
            if same is not None:
                same.pop(watcher, None)
                if not same:
                    del keys[watcher.range.low]

    # ---- live: after each entry ----

    def applied(self) -> None:
        log = self._log
        start, self._next_frame = self._next_frame, log.end
        seen, self._seen = self._seen, log.revision
        if log.restarts != self._restarts or start < log.number_after(log.base):
            # The state was replaced, or one entry changed more than the log holds: the walk will find the gap.
            self._restarts = log.restarts
            for watcher in self._all():
                if watcher.is_live:
                    self._fall_behind(watcher, max(watcher.position, seen))
            return
        if start == log.end or not (self._exact or self._ranges):
            return
        told: dict[_Watcher, None] = {}
        for frame in log.frames(start):
            found: dict[_Watcher, list[Change]] = {}
            for change in frame.changes:
                for watcher in self._concerned(change):
                    found.setdefault(watcher, []).append(change)
            for watcher, changes in found.items():
                if watcher.is_live and self._tell(watcher, frame, changes):
                    told[watcher] = None
        for watcher in told:
            self._flush(watcher)
        if log.total_bytes >= self._bookmark_at:
            self._bookmark_at = log.total_bytes + BOOKMARK_BYTES
            self.bookmark()

    def _concerned(self, change: Change) -> list[_Watcher]:
        name, key = change[0], change[1]
        exact, ranges = self._exact.get(name), self._ranges.get(name)
        found = [] if exact is None else list(exact.get(key, ()))
        if ranges:
            found += [watcher for watcher, keys in ranges.items() if keys.holds(key)]
        return found

    def bookmark(self) -> None:
        """Tell clients how far they are, so that a cursor does not age out for want of events."""
        revision = self._log.revision
        for watcher in self._all():
            if watcher.is_live and watcher.told < revision:
                watcher.position = max(watcher.position, revision)
                self._flush(watcher, revision)

    def _all(self) -> list[_Watcher]:
        return [watcher for link in self._links.values() for watcher in link.watchers.values()]

    # ---- behind: in a task ----

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._behind:
                watcher = self._behind.popleft()
                watcher.is_queued = False
                if not watcher.is_over and self._advance(watcher):
                    self._queue(watcher)
                await trio.lowlevel.checkpoint()

    def _queue(self, watcher: _Watcher) -> None:
        if not (watcher.is_queued or watcher.is_live or watcher.is_over):
            watcher.is_queued = True
            self._behind.append(watcher)
            self._wake.set()

    def _fall_behind(self, watcher: _Watcher, position: int) -> None:
        watcher.position = position
        watcher.is_live = False
        self._queue(watcher)

    def _advance(self, watcher: _Watcher) -> bool:
        """Send one slice. True: there is more to do for it now; it is live, waits for credit or has ended otherwise."""
        log, keys = self._log, watcher.range
        if keys is None:
            return False
        if watcher.state_revision is None and watcher.position < log.base:
            watcher.state_revision, watcher.state_next = log.revision, ABSENT
        if watcher.state_revision is not None:
            return self._send_state(watcher, keys)
        start = log.number_after(watcher.position)
        frames = log.frames(start, FRAMES_A_SLICE)
        name, holds = watcher.message.table, keys.holds
        for frame in frames:
            changes = [change for change in frame.changes if change[0] == name and holds(change[1])]
            if changes and not self._tell(watcher, frame, changes):
                return False
            watcher.position = frame.revision
        self._flush(watcher)
        if watcher.is_over:
            return False
        watcher.is_live = start + len(frames) == log.end
        return not watcher.is_live

    def _send_state(self, watcher: _Watcher, keys: _Range) -> bool:
        log, table = self._log, self._log.table(watcher.message.table)
        revision = watcher.state_revision
        assert revision is not None
        if table is None or revision < log.base:
            # Too much changed while it was sent: begin again, with what is there now.
            watcher.state_revision, watcher.state_next = log.revision, ABSENT
            return table is not None
        if not self._has_room(watcher):
            return False
        past = log.at(table, revision)
        if keys.is_exact:
            row = past.get(keys.low)
            rows = iter([] if row is None else [(keys.low, row)])
        else:
            low = keys.low if watcher.state_next is ABSENT else watcher.state_next
            rows = past.range(None if low is ABSENT else low, None if keys.high is ABSENT else keys.high)
        sent: list[Any] = []
        size = 0
        for key, row in rows:
            if size >= MESSAGE_BYTES:
                watcher.state_next = key
                self._put(watcher, (True, False, revision, None, log.now_ns, sent), size)
                self._flush(watcher, watcher.told)
                return not watcher.is_over
            encoded = [table.key_codec.encode(key), table.row_codec.encode(row)]
            sent.append(encoded)
            size += len(encoded[0]) + len(encoded[1])
        watcher.state_revision = None
        watcher.position, watcher.part = revision, 0
        self._put(watcher, (True, True, revision, None, log.now_ns, sent), size)
        self._flush(watcher, revision)
        return not watcher.is_over

    # ---- sending ----

    def _tell(self, watcher: _Watcher, frame: RevisionChanges, changes: Sequence[Change]) -> bool:
        """Send a frame, in parts where it is large. False: there was no room for all of it; the rest is sent from the log."""
        if frame.revision <= watcher.position:
            return True  # from a cursor that this replica had not reached
        table = self._log.table(watcher.message.table)
        assert table is not None
        encode_key, encode_row = table.key_codec.encode, table.row_codec.encode
        rows: list[Any] = []
        size = 0
        for place in range(watcher.part, len(changes)):
            if size + watcher.outbox_bytes >= MESSAGE_BYTES:
                if rows:
                    self._put(watcher, (False, False, frame.revision, frame.session, frame.now_ns, rows), size)
                    rows, size = [], 0
                watcher.part = place
                self._flush(watcher)
            if not self._has_room(watcher):
                if watcher.is_live:
                    self._fall_behind(watcher, max(watcher.position, frame.first - 1))
                self._flush(watcher)
                return False
            _, key, old, new = changes[place]
            row = [
                encode_key(key),
                None if old is ABSENT else encode_row(old),
                None if new is ABSENT else encode_row(new),
            ]
            rows.append(row)
            size += sum(len(part) for part in row if part is not None)
        watcher.part = 0
        watcher.position = frame.revision
        self._put(watcher, (False, True, frame.revision, frame.session, frame.now_ns, rows), size)
        return True

    def _has_room(self, watcher: _Watcher) -> bool:
        if watcher.is_over or watcher.sent >= watcher.credit:
            return False
        link = watcher.link
        if link.in_flight >= IN_FLIGHT_BYTES:
            link.blocked.append(watcher)
            return False
        return True

    def _put(self, watcher: _Watcher, record: Record, size: int) -> None:
        watcher.outbox.append(record)
        watcher.outbox_bytes += size + 50

    def _flush(self, watcher: _Watcher, revision: int | None = None) -> None:
        """Send what is in the outbox; with a ``revision`` also when that is nothing."""
        if watcher.is_over or (revision is None and not watcher.outbox):
            return
        outbox, watcher.outbox, watcher.outbox_bytes = watcher.outbox, [], 0
        data = encode_records(outbox)
        if len(data) > MAX_PAYLOAD_BYTES:
            self._end(watcher, errors.TooLarge(f"a row of {watcher.message.table} is too large to be watched"))
            return
        watcher.sent += len(data)
        watcher.link.in_flight += len(data)
        watcher.told = watcher.position if revision is None else revision
        watcher.link.end.deliver(Events(watcher.number, watcher.told, self._replica.applied_index, data))
