"""Keys and rows as SQL columns: what goes in comes out of DuckDB, in a column of its type."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import duckdb
import pytest

from tauraft.fsm import Ticket
from tauraft.storage.sql_types import TableShape, describe_table


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    data: bytes
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    Key: str  # SQL's names know no case: the key's own column is there already
    inner: Inner
    many: tuple[Inner, ...]
    named: Mapping[str, bytes]
    ticket: Ticket[int]
    pair: tuple[int, str]
    colour: Colour
    either: int | str  # no one type of SQL
    anything: Any
    mode: Literal["a", "b"]
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Empty:
    pass


def rows_of(shape: TableShape, key: Any, row: Any) -> tuple[list[str], list[str], tuple[Any, ...]]:
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("CREATE TABLE s (view VARCHAR, key VARCHAR, value VARCHAR)")
        connection.execute(
            "INSERT INTO s VALUES (?, ?, ?)", [shape.view, shape.key_to_json(key), shape.row_to_json(row)]
        )
        casts = ", ".join(
            f'CAST("{name}" AS TIMESTAMP) AS "{name}"' if kind == "TIMESTAMPTZ" else f'"{name}"'
            for name, kind in shape.columns
        )
        found = connection.execute(f"SELECT {casts} FROM ({shape.select.format(source='s')})")
        names = [column[0] for column in found.description]
        row_found = found.fetchone()
        assert row_found is not None
        return names, [str(column[1]) for column in found.description], row_found


@pytest.mark.parametrize(
    ("hint", "value", "kind"),
    [
        (int, -(1 << 63), "BIGINT"),
        (int, (1 << 63) - 1, "BIGINT"),
        (float, 0.1, "DOUBLE"),
        (float, math.inf, "DOUBLE"),
        (float, -1e308, "DOUBLE"),
        (bool, True, "BOOLEAN"),
        (str, 'a"b\\c\n\t\0é\u2028🦆', "VARCHAR"),
        (str, "", "VARCHAR"),
        (bytes, bytes(range(256)), "BLOB"),
        (bytes, b"plain 'text' \"quoted\"", "BLOB"),
        (bytes, rb"a\x41", "BLOB"),
        (bytes, b"", "BLOB"),
        (int | None, None, "BIGINT"),
        (tuple[int, ...], (1, 2), "BIGINT[]"),
        (tuple[bytes, ...], (b"\0", b"a"), "BLOB[]"),
        (tuple[bytes, ...], (), "BLOB[]"),
        (type(None), None, "VARCHAR"),
    ],
)
def test_a_value_keeps_its_type_and_itself(hint: Any, value: Any, kind: str) -> None:
    names, kinds, row = rows_of(describe_table("acme.thing/rows", str, hint), "k", value)
    assert names == ["key", "value"]
    assert kinds == ["VARCHAR", kind]
    assert row == ("k", list(value) if isinstance(value, tuple) else value)


def test_nan_is_nan() -> None:
    _, _, row = rows_of(describe_table("a/b", str, float), "k", math.nan)
    assert math.isnan(row[1])


def test_a_rows_fields_are_columns_nested_as_they_are() -> None:
    at = datetime(2026, 1, 27, 14, 3, 0, 5, tzinfo=UTC)
    value = Row(
        "x", Inner(b"\xff", 0.5), (Inner(b"a"),), {"k": b"\0"}, Ticket(1, 2, 3), (7, "seven"), Colour.BLUE, "text",
        {"deep": (1, b"b")}, "a", at,
    )  # fmt: skip
    names, kinds, row = rows_of(describe_table("acme.thing/rows", str, Row), "k", value)
    found = dict(zip(names, row, strict=True))
    assert found == {
        "key": "k",
        "value_Key": "x",
        "inner": {"data": b"\xff", "ratio": 0.5},
        "many": [{"data": b"a", "ratio": None}],
        "named": {"k": b"\0"},
        "ticket": {"session": 1, "sequence": 2, "revision": 3},
        "pair": {"_0": 7, "_1": "seven"},
        "colour": "blue",
        "either": '"text"',
        "anything": '{"deep":[1,"b"]}',
        "mode": "a",
        "at": at.replace(tzinfo=None),
    }
    assert dict(zip(names, kinds, strict=True))["either"] == "JSON"


def test_a_tuple_as_key_is_a_column_for_each_part() -> None:
    names, kinds, row = rows_of(describe_table("a.b/c", tuple[str, int], int), ("x", -1), 5)
    assert (names, kinds, row) == (["key_0", "key_1", "value"], ["VARCHAR", "BIGINT", "BIGINT"], ("x", -1, 5))


def test_a_dataclass_without_fields_has_a_key() -> None:
    names, _, row = rows_of(describe_table("a/b", int, Empty), 3, Empty())
    assert (names, row) == (["key"], (3,))
