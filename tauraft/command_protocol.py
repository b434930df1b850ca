"""What a client and the replica it is attached to say to each other (docs/decisions/0002), and its bytes.

A link carries frozen messages both ways.  In one process the objects themselves are passed; over a Unix
socket or a libp2p stream each is one frame: the msgpack array ``[tag, field, ...]``.  A tag and the order of
its fields are permanent (``tests/client/test_command_protocol.py`` holds the golden bytes); a new field
means a new tag, a new version.

``decode`` trusts nothing: a frame is bounded before it is read, every field has a type and a bound, and what does
not fit raises ``MalformedFrame``, upon which the link is closed.  So nothing that reaches a session or
the service needs to be looked at twice.

Not here: what the payloads mean (``codec``), when anything is sent (``session``, ``command_service``),
and how frames travel (``transport``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter
from typing import Any, Final, Protocol, TypeAlias

import msgpack

PROTOCOL_VERSION: Final = 1
MAX_FRAME_BYTES: Final = 8 << 20
MAX_PAYLOAD_BYTES: Final = MAX_FRAME_BYTES - 1024
MAX_TEXT_BYTES: Final = 4096
MAX_SECRET_BYTES: Final = 64
MAX_KEY_BYTES: Final = 64 << 10
MAX_ADDRESSES: Final = 64
MAX_MEMBERS: Final = 256
MAX_ARGUMENT_DEPTH: Final = 8
TRY_NS: Final = 1  # as ``Submit.wait_ns``: do not wait; what would have to is withdrawn in the entry that finds it so
_INT64: Final = 1 << 63


class AnswerKind(IntEnum):
    """How a command of a session ended: its value, an encoded error, or a confirmed withdrawal.

    STANDS answers a withdrawal only: it came after a command that knows none, whose value stands.
    """

    VALUE = 0
    ERROR = 1
    WITHDRAWN = 2
    STANDS = 3


class WatchStart(IntEnum):
    """Where a watch begins. CURSOR goes on after an earlier link; the others are confirmed with a quorum first."""

    NOW = 0
    STATE = 1
    REVISION = 2
    CURSOR = 3


class MalformedFrame(ValueError):
    """These bytes are no message of this protocol; the link they came by is not to be used any more."""


# ---- client to replica ----


@dataclass(frozen=True, slots=True)
class Hello:
    """First on every link: who connects. ``label``, ``host`` and ``pid`` are shown to operators, nothing more."""

    version: int
    label: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Open:
    """Make a session, or find the one that an earlier copy of this message made: ``nonce`` tells."""

    nonce: bytes
    secret_hash: bytes
    ttl_ns: int


@dataclass(frozen=True, slots=True)
class Attach:
    """Use an open session over this link, once the replica has applied ``seen_index``."""

    session: int
    secret: bytes
    seen_index: int


@dataclass(frozen=True, slots=True)
class Submit:
    """One command. ``message`` is its decoded form, which only a link inside one process carries."""

    session: int
    sequence: int
    acked_below: int
    wait_ns: int
    payload: bytes
    message: Any = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Withdraw:
    session: int
    sequence: int
    acked_below: int


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """``serial`` comes back in the ``Alive`` of the entry that renewed, so that the client knows when *that* one was sent."""

    session: int
    serial: int


@dataclass(frozen=True, slots=True)
class Close:
    session: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A query. ``request`` numbers asks and calls of one link; they are asked again on a new one."""

    request: int
    consistency: str
    payload: bytes
    seen_index: int
    message: Any = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    """Administration. ``arguments``: None, bool, int, float, str, bytes, and lists and str-keyed maps of these."""

    request: int
    method: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Watch:
    """Follow the rows of ``table`` with low <= key < high, as encoded keys; empty: no bound; equal: that one key.

    ``watch`` is a number as ``Ask.request`` is. ``start`` REVISION and CURSOR: after ``since``. ``credit``: how many bytes
    of events may come.
    """

    watch: int
    table: str
    low: bytes
    high: bytes
    start: WatchStart
    cluster_id: bytes
    since: int
    credit: int


@dataclass(frozen=True, slots=True)
class Credit:
    """Of a watch, counted from its ``Watch`` on this link: the bytes that may come, and that have come."""

    watch: int
    credit: int
    received: int


@dataclass(frozen=True, slots=True)
class Unwatch:
    watch: int


# ---- replica to client ----


@dataclass(frozen=True, slots=True)
class MemberAddress:
    peer_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to ``Hello``. ``leader``: its peer id, empty when none is known."""

    version: int
    peer_id: str
    cluster_id: bytes
    leader: str
    members: tuple[MemberAddress, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    nonce: bytes
    session: int
    index: int


@dataclass(frozen=True, slots=True)
class Attached:
    session: int
    index: int


@dataclass(frozen=True, slots=True)
class Answer:
    session: int
    sequence: int
    index: int
    kind: AnswerKind
    data: bytes


@dataclass(frozen=True, slots=True)
class Waiting:
    session: int
    sequence: int
    index: int


@dataclass(frozen=True, slots=True)
class Alive:
    session: int
    serial: int


@dataclass(frozen=True, slots=True)
class RenewNow:
    pass


@dataclass(frozen=True, slots=True)
class Closed:
    session: int


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no such session (any more): its client has lost it."""

    session: int


@dataclass(frozen=True, slots=True)
class Told:
    request: int
    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """Of an ask or call (``request``), or of a submission (``request`` 0) that this replica did *not* take."""

    request: int
    session: int
    sequence: int
    error: bytes


@dataclass(frozen=True, slots=True)
class LeaderIs:
    peer_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Watching:
    """The watch is registered: what changes after ``revision`` will come."""

    watch: int
    revision: int
    index: int
    cluster_id: bytes


@dataclass(frozen=True, slots=True)
class Events:
    """``data``: a list of records ``[is_state, is_last, revision, session, now_ns, rows]``, rows being ``[key, old, new]`` of
    a frame, ``[key, row]`` of a state. With them the watch is complete up to ``revision``, unless the last one is a part."""

    watch: int
    revision: int
    index: int
    data: bytes


ToReplica: TypeAlias = (
    Hello | Open | Attach | Submit | Withdraw | KeepAlive | Close | Ask | Call | Watch | Credit | Unwatch
)
ToClient: TypeAlias = (
    Welcome
    | Opened
    | Attached
    | Answer
    | Waiting
    | Alive
    | RenewNow
    | Closed
    | Gone
    | Told
    | Failed
    | LeaderIs
    | Watching
    | Events
)


class LinkUser(Protocol):
    """The client's end of a link. Called in the engine's loop, never from inside a ``send`` of its own."""

    def received(self, message: ToClient) -> None: ...

    def link_closed(self, reason: str) -> None:
        """Called once; nothing is received afterwards."""


class Link(Protocol):
    """A way to one replica. ``send`` never waits and never raises: what a broken link loses is sent again on the next."""

    @property
    def peer_id(self) -> str:
        """Whose replica it is; empty while not known."""

    @property
    def is_local(self) -> bool:
        """True when it stays within this process."""

    @property
    def is_of_host(self) -> bool:
        """The replica is that of the data directory this process works on: in this process, or at the directory's socket."""

    def send(self, message: ToReplica) -> None: ...

    def close(self) -> None:
        """The user hears nothing more, ``link_closed`` neither."""


# ---- bytes ----

_Check: TypeAlias = Callable[[Any], Any]


def _unsigned(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _INT64:
        raise MalformedFrame("an unsigned 63-bit number is missing")
    return value


def _bounded_bytes(most: int) -> _Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) > most:
            raise MalformedFrame(f"at most {most} bytes are expected")
        return value

    return check


def _text(value: Any) -> str:
    # A character is at most 4 bytes: the encoding is only made where it could be too long.
    if type(value) is not str or (len(value) * 4 > MAX_TEXT_BYTES and len(value.encode()) > MAX_TEXT_BYTES):
        raise MalformedFrame("text is missing or too long")
    return value


def _addresses(value: Any) -> tuple[str, ...]:
    if type(value) is not tuple or len(value) > MAX_ADDRESSES:
        raise MalformedFrame("a bounded list of addresses is missing")
    return tuple(_text(address) for address in value)


def _members(value: Any) -> tuple[MemberAddress, ...]:
    if type(value) is not tuple or len(value) > MAX_MEMBERS:
        raise MalformedFrame("a bounded list of members is missing")
    members = []
    for item in value:
        if type(item) is not tuple or len(item) != 2:
            raise MalformedFrame("a member is a peer id and its addresses")
        members.append(MemberAddress(_text(item[0]), _addresses(item[1])))
    return tuple(members)


def _consistency(value: Any) -> str:
    if value not in ("linearizable", "lease", "stale"):
        raise MalformedFrame("unknown consistency")
    return str(value)


def _answer_kind(value: Any) -> AnswerKind:
    try:
        return AnswerKind(_unsigned(value))
    except ValueError as error:
        raise MalformedFrame("unknown kind of answer") from error


def _arguments(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise MalformedFrame("arguments are a map")
    _plain(value, MAX_ARGUMENT_DEPTH)
    return value


def _plain(value: Any, depth: int) -> None:
    if depth == 0:
        raise MalformedFrame("arguments nest too deep")
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            _text(key)
            _plain(item, depth - 1)
    elif kind is tuple:
        for item in value:
            _plain(item, depth - 1)
    elif value is not None and kind not in (bool, int, float, str, bytes):
        raise MalformedFrame(f"arguments hold no {kind.__name__}")


def _watch_start(value: Any) -> WatchStart:
    try:
        return WatchStart(_unsigned(value))
    except ValueError as error:
        raise MalformedFrame("unknown start of a watch") from error


_NONCE = _bounded_bytes(MAX_SECRET_BYTES)
_PAYLOAD = _bounded_bytes(MAX_PAYLOAD_BYTES)
_KEY = _bounded_bytes(MAX_KEY_BYTES)

# tag -> the class and a check for each field, in the order of the fields. Tags are never used again.
_TO_REPLICA: Final[dict[int, tuple[type[Any], tuple[_Check, ...]]]] = {
    1: (Hello, (_unsigned, _text, _text, _unsigned)),
    2: (Open, (_NONCE, _NONCE, _unsigned)),
    3: (Attach, (_unsigned, _NONCE, _unsigned)),
    4: (Submit, (_unsigned, _unsigned, _unsigned, _unsigned, _PAYLOAD)),
    5: (Withdraw, (_unsigned, _unsigned, _unsigned)),
    6: (KeepAlive, (_unsigned, _unsigned)),
    7: (Close, (_unsigned,)),
    8: (Ask, (_unsigned, _consistency, _PAYLOAD, _unsigned)),
    9: (Call, (_unsigned, _text, _arguments)),
    10: (Watch, (_unsigned, _text, _KEY, _KEY, _watch_start, _NONCE, _unsigned, _unsigned)),
    11: (Credit, (_unsigned, _unsigned, _unsigned)),
    12: (Unwatch, (_unsigned,)),
}
_TO_CLIENT: Final[dict[int, tuple[type[Any], tuple[_Check, ...]]]] = {
    33: (Welcome, (_unsigned, _text, _NONCE, _text, _members)),
    34: (Opened, (_NONCE, _unsigned, _unsigned)),
    35: (Attached, (_unsigned, _unsigned)),
    36: (Answer, (_unsigned, _unsigned, _unsigned, _answer_kind, _PAYLOAD)),
    37: (Waiting, (_unsigned, _unsigned, _unsigned)),
    38: (Alive, (_unsigned, _unsigned)),
    39: (RenewNow, ()),
    40: (Closed, (_unsigned,)),
    41: (Gone, (_unsigned,)),
    42: (Told, (_unsigned, _unsigned, _PAYLOAD)),
    43: (Failed, (_unsigned, _unsigned, _unsigned, _PAYLOAD)),
    44: (LeaderIs, (_text, _addresses)),
    45: (Watching, (_unsigned, _unsigned, _unsigned, _NONCE)),
    46: (Events, (_unsigned, _unsigned, _unsigned, _PAYLOAD)),
}


def _writer(kind: type[Any], tag: int, count: int) -> Callable[[Any], list[Any]]:
    names = tuple(kind.__dataclass_fields__)[:count]
    if count == 0:
        return lambda message: [tag]
    if count == 1:
        single = attrgetter(names[0])
        return lambda message: [tag, single(message)]
    several = attrgetter(*names)
    return lambda message: [tag, *several(message)]


_WRITERS: Final = {
    kind: _writer(kind, tag, len(checks))
    for table in (_TO_REPLICA, _TO_CLIENT)
    for tag, (kind, checks) in table.items()
}


def _flatten(value: Any) -> Any:
    if type(value) is MemberAddress:
        return [value.peer_id, value.addresses]
    raise TypeError(f"{type(value).__name__} cannot be in a message")


def encode(message: ToReplica | ToClient) -> bytes:
    """The frame of ``message``."""
    frame: bytes = msgpack.packb(_WRITERS[type(message)](message), default=_flatten)
    return frame


def decode_to_replica(frame: bytes) -> ToReplica:
    """A client's message. Raises ``MalformedFrame``."""
    message: ToReplica = _decode(frame, _TO_REPLICA)
    return message


def decode_to_client(frame: bytes) -> ToClient:
    """A replica's message. Raises ``MalformedFrame``."""
    message: ToClient = _decode(frame, _TO_CLIENT)
    return message


# (is_state, is_last, revision, session, now_ns, rows), a row being its encoded parts: Events.data.
Record: TypeAlias = tuple[bool, bool, int, int | None, int, list[Any]]


def encode_records(records: Sequence[Record]) -> bytes:
    data: bytes = msgpack.packb(records)
    return data


def decode_records(data: bytes) -> list[Record]:
    """Raises ``MalformedFrame``."""
    try:
        records = msgpack.unpackb(data, max_ext_len=0)
        for is_state, is_last, revision, session, now_ns, rows in records:
            if type(is_state) is not bool or type(is_last) is not bool or type(rows) is not list:
                raise MalformedFrame("a record of a watch has other fields")
            for number in (revision, now_ns, 0 if session is None else session):
                _unsigned(number)
            size = 2 if is_state else 3
            for row in rows:
                if type(row) is not list or len(row) != size or type(row[0]) is not bytes:
                    raise MalformedFrame("a row of a watch has other fields")
                for part in row[1:]:
                    if type(part) is not bytes and (part is not None or is_state):
                        raise MalformedFrame("a row of a watch is bytes")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedFrame("the records of a watch do not decode") from error
    return [tuple(record) for record in records]


def _decode(frame: bytes, table: dict[int, tuple[type[Any], tuple[_Check, ...]]]) -> Any:
    if len(frame) > MAX_FRAME_BYTES:
        raise MalformedFrame(f"a frame of {len(frame)} bytes is over the limit")
    try:
        parts = msgpack.unpackb(frame, use_list=False, max_ext_len=0, max_map_len=1024, max_array_len=4096)
    except (ValueError, msgpack.UnpackException) as error:
        raise MalformedFrame("not msgpack") from error
    if type(parts) is not tuple or not parts or type(parts[0]) is not int or parts[0] not in table:
        raise MalformedFrame("unknown message")
    kind, checks = table[parts[0]]
    if len(parts) != len(checks) + 1:
        raise MalformedFrame(f"{kind.__name__} has {len(checks)} fields")
    return kind(*[check(part) for check, part in zip(checks, parts[1:], strict=True)])
