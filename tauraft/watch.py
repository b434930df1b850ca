"""What a watch is, on the client's side of the protocol (docs/decisions/0006), and what it yields.

A watch follows the rows of one table in one range of keys.  It yields a ``Frame`` for each command that changed some of them, and a
``State`` where the frames begin or where some of them are gone: forget all you had, frames after that revision follow.

``Subscription`` is one watch in the engine's loop.  It asks whichever replica its session is linked to, puts together what comes in
parts, and keeps the *cursor*, how far everything has arrived; on the next link it asks for what is after it.  Its
``feed`` crosses to the caller's loop or thread; ``credit`` follows from what was taken there, so what waits here is bounded.
``Subscriptions`` are all of one session.

Not here: how a caller iterates (``handle.AsyncWatch``), and how a replica serves it (``watch_service``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from tauraft import errors
from tauraft.bridge import Feed
from tauraft.codec import CodecError, compile_codec
from tauraft.command_protocol import Credit, Events, Link, Unwatch, Watch, Watching, WatchStart, decode_records
from tauraft.fsm import TableName

K = TypeVar("K")
V = TypeVar("V")

WINDOW_BYTES: Final = 256 << 10  # what the replica may send beyond what was taken
REPORT_BYTES: Final = 64 << 10  # received, until the replica is told so

Opened: TypeAlias = Callable[[BaseException | None], object]


@dataclass(frozen=True, slots=True)
class RowChange(Generic[K, V]):
    """One row, before and after; None: there was none."""

    key: K
    old: V | None
    new: V | None


@dataclass(frozen=True, slots=True)
class Frame(Generic[K, V]):
    """What one command changed of the rows watched; of a transaction, all of it. Frames come in the order of their revisions.

    ``session``: whose command it was; None: a timer's, or it was done at a session's end. ``now_ns``: cluster time.
    """

    revision: int
    session: int | None
    now_ns: int
    changes: tuple[RowChange[K, V], ...]


@dataclass(frozen=True, slots=True)
class State(Generic[K, V]):
    """The rows watched as they are at ``revision``: first, where it was asked for, and after a gap."""

    revision: int
    now_ns: int
    rows: tuple[tuple[K, V], ...]


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """What to watch. ``low == high``: that one key; empty: no bound. ``since``: None for what comes from now on."""

    table: TableName[Any, Any]
    low: bytes
    high: bytes
    since: int | None
    with_state: bool

    @property
    def start(self) -> WatchStart:
        return WatchStart.STATE if self.with_state else WatchStart.NOW if self.since is None else WatchStart.REVISION


def watch_request(
    table: TableName[K, V],
    *,
    key: K | None,
    low: K | None,
    high: K | None,
    since_revision: int | None,
    with_state: bool,
) -> WatchRequest:
    """Checks the arguments. Raises ``TypeError``, ``InvalidArgument``."""
    if key is not None and (low is not None or high is not None):
        raise errors.InvalidArgument("give a key, or low and high; nothing was sent", option="key")
    if since_revision is not None:
        if isinstance(since_revision, bool) or not isinstance(since_revision, int):
            raise TypeError(f"since_revision must be int, not {type(since_revision).__name__}")
        if since_revision < 0 or with_state:
            raise errors.InvalidArgument(
                "since_revision must be at least 0, and goes without with_state; nothing was sent",
                option="since_revision",
            )
    codec = compile_codec(table.key)
    first = key if key is not None else low
    last = key if key is not None else high
    return WatchRequest(
        table,
        b"" if first is None else codec.encode(first),
        b"" if last is None else codec.encode(last),
        since_revision,
        with_state,
    )


# What a feed carries, undecoded: (is_state, revision, session, now_ns, rows).
Arrived: TypeAlias = tuple[bool, int, int | None, int, list[Any]]


def decode_arrived(table: TableName[Any, Any], arrived: Arrived) -> Frame[Any, Any] | State[Any, Any]:
    """In the caller's frame. Raises ``InvalidCommand`` where the rows have another shape than ``table`` says."""
    is_state, revision, session, now_ns, rows = arrived
    key_of, row_of = compile_codec(table.key).decode, compile_codec(table.row).decode
    try:
        if is_state:
            return State(revision, now_ns, tuple((key_of(key), row_of(row)) for key, row in rows))
        changes = tuple(
            RowChange(key_of(key), None if old is None else row_of(old), None if new is None else row_of(new))
            for key, old, new in rows
        )
    except CodecError as error:
        raise errors.InvalidCommand(
            f"the rows of {table.full} have another shape on this cluster than here: {error}; update this process"
        ) from error
    return Frame(revision, session, now_ns, changes)


class Subscription:
    """One watch of a session. ``opened(None)`` once it is registered; ``feed`` ends with the error that ended it."""

    def __init__(self, request: WatchRequest, make_feed: Callable[[Callable[[int], object]], Feed]) -> None:
        self.request = request
        self.feed = make_feed(self._taken)
        self.number = 0
        self.opened: Opened | None = None
        self._link: Link | None = None
        self._is_over = False
        self._cluster_id = b""  # of the replica that serves it
        self._cursor: tuple[bytes, int] | None = None
        self._parts: list[Any] = []
        self._parts_are: tuple[bool, int] | None = None  # (is_state, revision) of the parts at hand
        self._buffered = 0  # arrived and not taken
        # Of the registration on this link: what was granted and received, and what of it the replica was told.
        self._credit = self._credit_told = self._received = self._received_told = 0

    # ---- the link's side ----

    def link_up(self, link: Link) -> None:
        if self._is_over:
            return
        self._link = link
        self._drop_parts()
        self._received = self._received_told = 0
        self._credit = self._credit_told = max(0, WINDOW_BYTES - self._buffered)
        request, cursor = self.request, self._cursor
        start, cluster_id, since = request.start, b"", request.since or 0
        if cursor is not None:
            start, (cluster_id, since) = WatchStart.CURSOR, cursor
        link.send(
            Watch(
                self.number, request.table.full, request.low, request.high, start, cluster_id, since, self._credit
            )
        )  # fmt: skip

    def link_down(self) -> None:
        self._link = None
        self._drop_parts()

    def watching(self, message: Watching) -> None:
        self._cluster_id = message.cluster_id
        if self._cursor is None and not self.request.with_state:
            self._cursor = (message.cluster_id, message.revision)
        opened, self.opened = self.opened, None
        if opened is not None:
            opened(None)

    def events(self, message: Events) -> None:
        """Raises ``MalformedFrame``."""
        size = len(message.data)
        self._received += size
        self._buffered += size
        for is_state, is_last, revision, session, now_ns, rows in decode_records(message.data):
            if self._parts_are != (is_state, revision):
                # A walk over the state that began anew: the parts before it are of a revision that was given up.
                self._drop_parts()
                self._parts_are = (is_state, revision)
            self._parts += rows
            if is_last:
                whole, self._parts, self._parts_are = self._parts, [], None
                # All that came in this message counts as taken with what it completed.
                self.feed.put((is_state, revision, session, now_ns, whole), size)
                size = 0
                # A whole one is here for good, also if what follows it does not come by this link.
                self._cursor = (self._cluster_id, revision)
        if size:
            # Only parts: they wait here and not in the feed, and are not to stop the rest from coming.
            self._taken(size)
        if self._parts_are is None:
            self._cursor = (self._cluster_id, message.revision)
        if self._received - self._received_told >= REPORT_BYTES:
            self._report()

    def fail(self, error: BaseException) -> None:
        self._is_over = True
        self._link = None
        opened, self.opened = self.opened, None
        if opened is not None:
            opened(error)
        self.feed.end(error)

    # ---- the caller's side, in the engine's loop ----

    def end(self) -> None:
        link = self._link
        if link is not None:
            link.send(Unwatch(self.number))
        self.fail(errors.AlreadyClosed("this watch has ended; make a new one"))

    def _taken(self, size: int) -> None:
        self._buffered -= size
        self._credit += size
        if self._credit - self._credit_told >= WINDOW_BYTES // 2 or self._buffered == 0:
            self._report()

    def _report(self) -> None:
        if self._link is not None:
            self._credit_told, self._received_told = self._credit, self._received
            self._link.send(Credit(self.number, self._credit, self._received))

    def _drop_parts(self) -> None:
        self._parts, self._parts_are = [], None


class Subscriptions:
    """The watches of one session, by number."""

    def __init__(self) -> None:
        self._by_number: dict[int, Subscription] = {}
        self._link: Link | None = None

    def open(self, subscription: Subscription, number: int, opened: Opened) -> None:
        subscription.number, subscription.opened = number, opened
        self._by_number[number] = subscription
        if self._link is not None:
            subscription.link_up(self._link)

    def close(self, subscription: Subscription) -> None:
        if self._by_number.pop(subscription.number, None) is not None:
            subscription.end()

    def link_up(self, link: Link) -> None:
        self._link = link
        for subscription in list(self._by_number.values()):
            subscription.link_up(link)

    def link_down(self) -> None:
        self._link = None
        for subscription in self._by_number.values():
            subscription.link_down()

    def watching(self, message: Watching) -> None:
        found = self._by_number.get(message.watch)
        if found is not None:
            found.watching(message)

    def events(self, message: Events) -> None:
        found = self._by_number.get(message.watch)
        if found is not None:
            found.events(message)

    def failed(self, number: int, error: BaseException) -> bool:
        found = self._by_number.pop(number, None)
        if found is not None:
            found.fail(error)
        return found is not None

    def end_all(self, make_error: Callable[[], BaseException]) -> None:
        ended, self._by_number = self._by_number, {}
        for subscription in ended.values():
            subscription.fail(make_error())
