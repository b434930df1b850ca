"""How a table's keys and rows look in SQL: a type hint becomes columns, a value becomes JSON text.

History and state hold keys and rows as JSON, objects by field name, so that rows of an older version of a plugin stay
readable under a newer one: a field that is new is NULL in them.  ``describe_table`` gives the SELECT that turns them into typed
columns: int BIGINT, float DOUBLE, bool BOOLEAN, str VARCHAR, bytes BLOB, datetime TIMESTAMPTZ, ``X | None`` as X, sequences X[],
mappings MAP, dataclasses STRUCT, fixed tuples STRUCT(_0, _1...).  What SQL has no one type for (other unions, Any) is JSON.

Bytes in JSON are written as DuckDB writes a BLOB as text: printable ASCII as it stands, else each byte as ``\\xNN``;
so casting the text to BLOB gives them back, wherever they are nested.  Infinite floats and NaN are strings.

A dataclass gets one generated function, as in ``tauraft.codec``: a loop over its fields takes three times as long.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from tauraft.codec import field_codecs

ToJSON = Callable[[Any], str]
_quote: Callable[[str], str] = json.encoder.encode_basestring


@dataclasses.dataclass(frozen=True, slots=True)
class SqlType:
    """``raw``: the type its JSON is read as; ``name``: what that is cast to (the same but for bytes and datetimes)."""

    raw: str
    name: str
    to_json: ToJSON
    fields: tuple[tuple[str, SqlType], ...] = ()  # of a dataclass or a fixed tuple


@dataclasses.dataclass(frozen=True, slots=True)
class TableShape:
    """One table in SQL: ``select`` reads (key, value) rows of JSON from ``{source}`` and gives typed columns."""

    view: str
    columns: tuple[tuple[str, str], ...]  # name, type
    select: str
    key_to_json: ToJSON
    row_to_json: ToJSON


def view_name(table: str) -> str:
    """Of ``fsm.name/table``: dots and slashes as ``_``."""
    return table.replace(".", "_").replace("/", "_")


def describe_table(table: str, key_hint: Any, row_hint: Any) -> TableShape:
    key, row = sql_type(key_hint), sql_type(row_hint)
    columns: list[tuple[str, str, str]] = []  # name, type, expression
    if key.fields and not _is_dataclass(key_hint):
        columns += [(f"key_{place}", f.name, f"k._{place}") for place, (_, f) in enumerate(key.fields)]
    else:
        columns.append(("key", key.name, "k"))
    taken = {name for name, _, _ in columns}
    if _is_dataclass(row_hint):
        for name, field in row.fields:
            # SQL's names know no upper and lower case, and the key stands beside them.
            shown = name
            while shown.lower() in taken:
                shown = f"value_{shown}"
            taken.add(shown.lower())
            columns.append((shown, field.name, f"v.{identifier(name)}"))
    else:
        columns.append(("value", row.name, "v"))
    listed = ", ".join(f"CAST({e} AS {kind}) AS {identifier(name)}" for name, kind, e in columns)
    select = (
        f"SELECT {listed} FROM (SELECT {_read('key', key)} AS k, {_read('value', row)} AS v FROM {{source}} "
        f"WHERE view = {literal(view_name(table))})"
    )
    shown_columns = tuple((name, kind) for name, kind, _ in columns)
    return TableShape(view_name(table), shown_columns, select, key.to_json, row.to_json)


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _read(column: str, kind: SqlType) -> str:
    if kind.raw == "JSON":
        return f"CAST({column} AS JSON)"
    return f"from_json({column}, {literal(json.dumps(kind.raw, ensure_ascii=False))})"


@lru_cache(maxsize=4_096)
def sql_type(hint: Any) -> SqlType:
    """Of any hint that ``tauraft.codec`` takes."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union([a for a in arguments if a is not type(None)])
    if origin is Literal:
        return _same([type(a) for a in arguments])
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return _struct([(f"_{place}", sql_type(a)) for place, a in enumerate(arguments) if a != ()], None)
    if origin in (tuple, list, Sequence):
        return _list(sql_type(arguments[0]))
    if origin in (dict, Mapping):
        return _map(sql_type(arguments[1]))
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        inner = _same([type(member.value) for member in kind])
        to_json = inner.to_json
        return SqlType(inner.raw, inner.name, lambda value: to_json(value.value))
    if _is_dataclass(hint):
        return _struct([(field.name, sql_type(codec.hint)) for field, codec in field_codecs(kind, arguments)], kind)
    return SqlType("JSON", "JSON", any_to_json)


def _is_dataclass(hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _float_to_json(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'"{value}"'


def bytes_to_text(value: bytes) -> str:
    """As DuckDB casts a BLOB to VARCHAR, and back."""
    if value.isascii():
        text = value.decode("ascii")
        if "\\" not in text and text.isprintable():
            return text
    return "\\x" + value.hex(" ").replace(" ", "\\x") if value else ""


def any_to_json(value: Any) -> str:
    """By what the value is, where its type does not say."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return int.__repr__(value)
        case float():
            return _float_to_json(value)
        case str():
            return _quote(value)
        case bytes():
            return _quote(bytes_to_text(value))
        case datetime():
            return f'"{value.isoformat()}"'
        case enum.Enum():
            return any_to_json(value.value)
        case tuple() | list():
            return "[" + ",".join(map(any_to_json, value)) + "]"
        case Mapping():
            return "{" + ",".join(f"{_quote(name)}:{any_to_json(value[name])}" for name in sorted(value)) + "}"
    named = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    return "{" + ",".join(f"{_quote(name)}:{any_to_json(item)}" for name, item in named) + "}"


_SCALARS: Mapping[Any, SqlType] = {
    int: SqlType("BIGINT", "BIGINT", int.__repr__),
    float: SqlType("DOUBLE", "DOUBLE", lambda value: _float_to_json(float(value))),
    bool: SqlType("BOOLEAN", "BOOLEAN", lambda value: "true" if value else "false"),
    str: SqlType("VARCHAR", "VARCHAR", _quote),
    bytes: SqlType("VARCHAR", "BLOB", lambda value: _quote(bytes_to_text(value))),
    datetime: SqlType("VARCHAR", "TIMESTAMPTZ", lambda value: f'"{value.isoformat()}"'),
    None: SqlType("VARCHAR", "VARCHAR", lambda value: "null"),
    type(None): SqlType("VARCHAR", "VARCHAR", lambda value: "null"),
}


def _same(kinds: list[type]) -> SqlType:
    """Of values that are all of one type; else JSON."""
    return sql_type(kinds[0]) if len(set(kinds)) == 1 else SqlType("JSON", "JSON", any_to_json)


def _union(members: list[Any]) -> SqlType:
    if len(members) != 1:
        return SqlType("JSON", "JSON", any_to_json)
    inner = sql_type(members[0])
    to_json = inner.to_json
    return SqlType(inner.raw, inner.name, lambda value: "null" if value is None else to_json(value), inner.fields)


def _list(inner: SqlType) -> SqlType:
    to_json = inner.to_json
    return SqlType(f"{inner.raw}[]", f"{inner.name}[]", lambda value: "[" + ",".join(map(to_json, value)) + "]")


def _map(inner: SqlType) -> SqlType:
    to_json = inner.to_json
    return SqlType(
        f"MAP(VARCHAR, {inner.raw})",
        f"MAP(VARCHAR, {inner.name})",
        lambda value: "{" + ",".join(f"{_quote(name)}:{to_json(value[name])}" for name in sorted(value)) + "}",
    )


def _struct(fields: list[tuple[str, SqlType]], kind: type | None) -> SqlType:
    """``kind`` None: a tuple."""
    if not fields:
        return SqlType("JSON", "JSON", lambda value: "{}")
    raw = ", ".join(f"{identifier(name)} {field.raw}" for name, field in fields)
    final = ", ".join(f"{identifier(name)} {field.name}" for name, field in fields)
    scope = {f"j{place}": field.to_json for place, (_, field) in enumerate(fields)}
    parts = []
    for place, (name, _) in enumerate(fields):
        label = f"{_quote(name)}:".replace("{", "{{").replace("}", "}}")
        parts.append(f"{label}{{j{place}(v[{place}])}}" if kind is None else f"{label}{{j{place}(v.{name})}}")
    # Source made of field names, which are identifiers.
    to_json: ToJSON = eval(f"lambda v: f'{{{{{','.join(parts)}}}}}'", scope)
    return SqlType(f"STRUCT({raw})", f"STRUCT({final})", to_json, tuple(fields))
