"""Rows of SQL as an Arrow table."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

import tauraft


@pytest.fixture(scope="module")
def cluster() -> Iterator[tauraft.Cluster]:
    with tauraft.Cluster("/raft/arrow", storage="memory") as cluster:
        cluster.sql("SELECT 1")  # a history in memory begins with the first query
        cluster.kv.put("a", b"\0\xff")
        cluster.kv.put("b", b"")
        yield cluster


def test_a_result_is_a_table_with_its_own_types(cluster: tauraft.Cluster) -> None:
    table = cluster.sql("SELECT key, value, revision, length(key) AS n FROM kv ORDER BY key").to_arrow()
    assert table.schema == pa.schema(
        [("key", pa.string()), ("value", pa.binary()), ("revision", pa.int64()), ("n", pa.int64())]
    )
    assert table.column("key").to_pylist() == ["a", "b"]
    assert table.column("value").to_pylist() == [b"\0\xff", b""]


@pytest.mark.parametrize("columns", ["*", "at, value, view", "count(*), max(at), avg(revision)"])
def test_an_empty_result_has_the_columns_of_a_full_one(cluster: tauraft.Cluster, columns: str) -> None:
    cluster.kv.put("a", b"again")
    full = cluster.sql(f"SELECT {columns} FROM history LIMIT 1").to_arrow()
    none = cluster.sql(f"SELECT {columns} FROM history LIMIT 0").to_arrow()
    assert (full.num_rows, none.num_rows) == (1, 0)
    assert none.schema == full.schema
    assert all(field.type != pa.null() for field in none.schema)


PLAIN = {
    "true": (pa.bool_(), True),
    "-1::TINYINT": (pa.int8(), -1),
    "-1::SMALLINT": (pa.int16(), -1),
    "1::INTEGER": (pa.int32(), 1),
    "1::UTINYINT": (pa.uint8(), 1),
    "1::USMALLINT": (pa.uint16(), 1),
    "1::UINTEGER": (pa.uint32(), 1),
    "18446744073709551615::UBIGINT": (pa.uint64(), 2**64 - 1),
    "170141183460469231731687303715884105727::HUGEINT": (pa.decimal256(39, 0), Decimal(2**127 - 1)),
    "1::UHUGEINT": (pa.decimal256(39, 0), Decimal(1)),
    "0.5::FLOAT": (pa.float32(), 0.5),
    "0.5::DOUBLE": (pa.float64(), 0.5),
    "1.50": (pa.decimal128(3, 2), Decimal("1.50")),
    "'{\"a\": 1}'::JSON": (pa.string(), '{"a": 1}'),
    "'c0ffee00-0000-4000-8000-000000000000'::UUID": (pa.string(), str(uuid.UUID(int=0xC0FFEE00 << 96 | 4 << 76 | 8 << 60))),
    "DATE '2026-01-27'": (pa.date32(), date(2026, 1, 27)),
    "TIME '10:00'": (pa.time64("us"), time(10)),
    "TIMESTAMP '2026-01-27 14:03'": (pa.timestamp("us", "UTC"), datetime(2026, 1, 27, 14, 3, tzinfo=UTC)),
    "TIMESTAMPTZ '2026-01-27 14:03+00'": (pa.timestamp("us", "UTC"), datetime(2026, 1, 27, 14, 3, tzinfo=UTC)),
    "INTERVAL 3 HOURS": (pa.duration("us"), timedelta(hours=3)),
    "NULL": (pa.null(), None),
}  # fmt: skip
NESTED = {
    "[1, NULL]": (pa.list_(pa.int64()), [1, None]),
    "{'a': 1, 'b': 'x'}": (pa.struct([("a", pa.int64()), ("b", pa.string())]), {"a": 1, "b": "x"}),
    "MAP {'k': 1, 'l': 2}": (pa.map_(pa.string(), pa.int64()), [("k", 1), ("l", 2)]),
}


def test_every_type_that_sql_knows(cluster: tauraft.Cluster) -> None:
    expected = PLAIN | NESTED
    selected = ", ".join(f"{term} AS c{place}" for place, term in enumerate(expected))
    table = cluster.sql(f"SELECT {selected}").to_arrow()
    found = {term: (table.schema.field(place).type, table.column(place)[0].as_py())
             for place, term in enumerate(expected)}  # fmt: skip
    assert found == expected


def test_nothing_is_said_as_null_in_every_type(cluster: tauraft.Cluster) -> None:
    terms = PLAIN | NESTED
    selected = ", ".join(f"CASE WHEN false THEN {term} END AS c{place}" for place, term in enumerate(terms))
    table = cluster.sql(f"SELECT {selected}").to_arrow()
    assert [column.null_count for column in table.columns] == [1] * len(terms)
    assert [table.schema.field(place).type for place in range(len(PLAIN))] == [kind for kind, _ in PLAIN.values()]


def test_columns_of_one_name_are_both_there(cluster: tauraft.Cluster) -> None:
    table = cluster.sql("SELECT 1 AS n, 'x' AS n").to_arrow()
    assert table.column_names == ["n", "n"]
    assert [column[0].as_py() for column in table.columns] == [1, "x"]


def test_rows_of_a_node_that_tells_no_types_take_them_from_their_values() -> None:
    table = tauraft.Rows(("n", "text"), ((1, "x"), (2, None)), 7).to_arrow()
    assert table.schema == pa.schema([("n", pa.int64()), ("text", pa.string())])


def test_without_the_extra_it_says_what_to_install(cluster: tauraft.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    rows = cluster.sql("SELECT key FROM kv")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tauraft\[arrow\]'"):
        rows.to_arrow()
    assert len(rows) == 2
