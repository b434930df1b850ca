"""Values of SQL on the wire: what a query's rows hold, and its parameters.

msgpack says None, booleans, numbers of 64 bits, text, bytes and lists by itself; everything else is a map with one key, its kind:
``{"time": ...}``.  Instants have a zone: SQL's are read as UTC.  No DuckDB here: clients import this.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

import msgpack

_PLAIN: Final = frozenset((type(None), bool, float, str, bytes))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_wire(value: Any) -> Any:
    """Raises ``TypeError`` for what SQL has no value for."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 63 else {"int": str(value)}
    if kind is list or kind is tuple:
        return [to_wire(item) for item in value]
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return {"datetime": (aware - _EPOCH) // _MICROSECOND}
    if isinstance(value, timedelta):
        return {"timedelta": value // _MICROSECOND}
    if isinstance(value, Mapping):
        return {"map": [[to_wire(key), to_wire(item)] for key, item in value.items()]}
    for name, (type_, _) in _AS_TEXT.items():
        if isinstance(value, type_):
            return {name: str(value)}
    raise TypeError(f"{kind.__name__} is no value that SQL knows")


def from_wire(value: Any) -> Any:
    if type(value) is list:
        return [from_wire(item) for item in value]
    if type(value) is not dict:
        return value
    ((kind, told),) = value.items()
    match kind:
        case "datetime":
            return _EPOCH + timedelta(microseconds=told)
        case "timedelta":
            return timedelta(microseconds=told)
        case "map":
            return {from_wire(key): from_wire(item) for key, item in told}
        case "int":
            return int(told)
    return _AS_TEXT[kind][1](told)


_AS_TEXT: Final[Mapping[str, tuple[type, Callable[[str], Any]]]] = {
    "date": (date, date.fromisoformat),
    "time": (time, time.fromisoformat),
    "decimal": (Decimal, Decimal),
    "uuid": (uuid.UUID, uuid.UUID),
}


def pack_rows(rows: Sequence[Sequence[Any]]) -> bytes:
    packed: bytes = msgpack.packb([[to_wire(cell) for cell in row] for row in rows])
    return packed


def unpack_rows(data: bytes) -> list[tuple[Any, ...]]:
    return [tuple([from_wire(cell) for cell in row]) for row in msgpack.unpackb(data, strict_map_key=False)]
