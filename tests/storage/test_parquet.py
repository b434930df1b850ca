"""Rows survive the way through Parquet, in order and byte for byte, and any tool can read them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from tauraft.storage.parquet import ParquetWriter, read_parquet
from tauraft.storage.snapshot_store import SnapshotCorrupt

ROWS = [
    ("acme.counter/counts", [(b"", b""), (b"\0", b"\n,'\""), (bytes(range(256)), b"-")]),
    ('o\'dd "näme", one', [(f"{number:05d}".encode(), b"v" * (number % 50)) for number in range(5000)]),
    ("large", [(b"k", bytes(range(256)) * 20_000)]),
]


def write(path: Path) -> ParquetWriter:
    writer = ParquetWriter(str(path))
    for table, rows in ROWS:
        for start in range(0, len(rows), 1000):
            writer.add(table, rows[start : start + 1000])
    writer.add("nothing", [])
    return writer


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "it's a.parquet"
    writer = write(path)
    writer.finish()
    expected = [(table, key, value) for table, rows in ROWS for key, value in rows]
    assert [row for chunk in read_parquet(str(path), 700) for row in chunk] == expected
    assert writer.row_count == len(expected)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_columns_are_what_they_are_documented_to_be(tmp_path: Path) -> None:
    write(tmp_path / "rows.parquet").finish()
    described = duckdb.sql(f"DESCRIBE SELECT * FROM '{tmp_path}/rows.parquet'").fetchall()
    assert [(name, kind) for name, kind, *_ in described] == [("table", "VARCHAR"), ("key", "BLOB"), ("value", "BLOB")]


def test_no_rows_make_an_empty_file(tmp_path: Path) -> None:
    ParquetWriter(f"{tmp_path}/none.parquet").finish()
    assert list(read_parquet(f"{tmp_path}/none.parquet")) == []


def test_a_cancelled_file_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "rows.parquet").cancel()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all" * 10])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.parquet"
    path.write_bytes(content)
    with pytest.raises(SnapshotCorrupt):
        list(read_parquet(str(path)))
