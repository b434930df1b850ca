"""What the engine does with tables: undo, changes, copy-on-write views, digests."""

from __future__ import annotations

import subprocess
import sys
from random import Random
from typing import Any

import pytest

from tauraft.tables import ABSENT, Table, TableSet


def make(key_hint: Any = str, row_hint: Any = int) -> tuple[TableSet, Table[Any, Any]]:
    tables = TableSet()
    table: Table[Any, Any] = Table("acme", "rows", key_hint, row_hint)
    tables.add(table)
    tables.writer = "acme"
    return tables, table


def write(tables: TableSet, table: Table[Any, Any], rows: dict[Any, Any]) -> None:
    tables.begin()
    table.update(rows)
    tables.commit()


def all_rows(view: Any, size: int) -> list[tuple[str, Any, Any]]:
    return [row for rows in view.rows(size) for row in rows]


def test_a_rolled_back_command_leaves_no_trace() -> None:
    tables, table = make()
    write(tables, table, {"a": 1, "b": 2})
    before = tables.digest()
    tables.begin()
    table["a"] = 9
    del table["b"]
    table["c"] = 3
    tables.rollback()
    assert dict(table) == {"a": 1, "b": 2}
    assert tables.digest() == before


def test_commit_lists_each_changed_key_once_with_old_and_new() -> None:
    tables, table = make()
    write(tables, table, {"a": 1})
    tables.begin()
    table["a"] = 2
    table["a"] = 3
    table["b"] = 1
    del table["b"]
    assert tables.commit() == [("acme/rows", "a", 1, 3)]
    tables.begin()
    del table["a"]
    assert tables.commit() == [("acme/rows", "a", 3, ABSENT)]


def test_rows_and_keys_of_another_type_are_refused() -> None:
    tables, table = make()
    tables.begin()
    with pytest.raises(TypeError):
        table["a"] = "not a number"
    with pytest.raises(TypeError):
        table[1] = 1
    with pytest.raises(TypeError):
        table["a"] = True


def test_writing_without_a_command_or_in_anothers_table_is_refused() -> None:
    tables, table = make()
    with pytest.raises(RuntimeError):
        table["a"] = 1
    tables.begin()
    tables.writer = "somebody.else"
    with pytest.raises(RuntimeError):
        table["a"] = 1


def test_adding_while_iterating_is_refused() -> None:
    tables, table = make()
    write(tables, table, {"a": 1, "b": 2})
    tables.begin()
    with pytest.raises(RuntimeError):
        for key in table:
            table[key + "x"] = 1


@pytest.mark.parametrize("slice_size", [1, 2, 3, 7, 1000])
def test_a_view_shows_one_moment_whatever_is_written_meanwhile(slice_size: int) -> None:
    random = Random(slice_size)
    for _ in range(30):
        tables, table = make()
        write(tables, table, {f"{random.randrange(60):02}": random.randrange(9) for _ in range(40)})
        view = tables.freeze()
        still = tables.freeze()
        expected = all_rows(still, 1000)
        still.close()
        found = []
        for rows in view.rows(slice_size):
            found += rows
            tables.begin()
            for _ in range(random.randrange(6)):
                key = f"{random.randrange(60):02}"
                if random.random() < 0.5:
                    table.pop(key, None)
                else:
                    table[key] = random.randrange(9)
            tables.commit()
        view.close()
        assert found == expected


def test_a_view_of_a_table_of_one_row_ends() -> None:
    # Its key is None, which an ordered map takes for "no bound": the walk began again for ever.
    tables, table = make(None, int)
    write(tables, table, {None: 5})
    view = tables.freeze()
    assert len(all_rows(view, 1)) == 1
    view.close()


def test_a_view_is_not_disturbed_by_a_table_that_takes_the_place_of_one_of_its_own() -> None:
    """As an upgrade does in the middle of a snapshot."""
    tables, table = make()
    write(tables, table, {f"{number}": number for number in range(10)})
    view = tables.freeze()
    expected = list(table.items())
    tables.remove(table)
    fresh: Table[str, int] = Table(table.owner, table.name.rpartition("/")[2], str, int)
    tables.add(fresh)
    write(tables, fresh, {f"{number}": -1 for number in range(20)})
    assert [(key, row) for _, key, row in all_rows(view, 3)] == expected
    view.close()


def test_a_row_already_walked_costs_a_view_nothing() -> None:
    tables, table = make()
    write(tables, table, {f"{number}": number for number in range(10)})
    view = tables.freeze()
    walk = view.rows(5)
    next(walk)
    write(tables, table, {f"{number}": -1 for number in range(10)})
    assert [key for kept in view._kept.values() for key in kept] == ["5", "6", "7", "8", "9"]
    assert [row for rows in walk for _, _, row in rows] == [5, 6, 7, 8, 9]
    view.close()


def test_the_row_of_a_table_of_one_may_change_after_it_was_walked() -> None:
    tables, table = make(None, int)
    write(tables, table, {None: 5})
    view = tables.freeze()
    walk = view.rows(5)
    assert next(walk) == [(table.name, None, 5)]
    write(tables, table, {None: 6})
    assert list(walk) == []
    view.close()


def test_the_first_write_of_a_table_of_one_row_is_undone() -> None:
    # Taken out by a look among sorted keys, which compared None with None: it stopped every replica alike.
    tables, table = make(None, int)
    tables.begin()
    table[None] = 5
    tables.rollback()
    assert len(table) == 0
    write(tables, table, {None: 5})
    tables.begin()
    del table[None]
    tables.commit()
    assert list(table) == []


def test_the_digest_depends_on_the_rows_alone() -> None:
    one, first = make()
    write(one, first, {"a": 1, "b": 2})
    write(one, first, {"a": 5, "c": 3})
    other, second = make()
    write(other, second, {"c": 3})
    write(other, second, {"b": 2, "a": 5})
    assert one.digest() == other.digest()
    write(other, second, {"a": 6})
    assert one.digest() != other.digest()


def test_loading_the_rows_of_a_view_gives_the_same_digest() -> None:
    tables, table = make()
    write(tables, table, {f"{number}": number for number in range(100)})
    view = tables.freeze()
    rows = all_rows(view, 7)
    view.close()
    fresh, copy = make()
    fresh.load((name, table.key_codec.encode(key), table.row_codec.encode(row)) for name, key, row in rows)
    assert dict(copy) == dict(table)
    assert fresh.digest() == tables.digest()


def test_keys_of_a_range_are_counted() -> None:
    tables, table = make()
    write(tables, table, dict.fromkeys("abcde", 1))
    for low, high in ((None, None), ("b", None), (None, "b"), ("b", "d"), ("aa", "dd"), ("d", "b"), ("x", None)):
        assert table.count(low, high) == len(list(table.range(low, high))), (low, high)


def test_a_process_that_read_many_rows_leaves_without_complaint() -> None:
    """Frozen objects would be reported as leaks by extension modules, on stderr."""
    story = """
import duckdb
from tauraft import tables
tables.ROWS_A_FREEZE = 10
table = tables.Table("acme", "rows", int, int)
rows = [(table.name, table.key_codec.encode(n), table.row_codec.encode(n)) for n in range(100)]
assert len(tables.load_rows([table], rows).rows[table.name]) == 100
"""
    done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
