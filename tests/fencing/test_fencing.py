"""The guards that refuse a stale token: in a process, and in a database."""

from __future__ import annotations

import doctest
import threading

import duckdb
import pytest

from tauraft import fencing
from tauraft.errors import InvalidArgument, StaleToken
from tauraft.fencing import DUCKDB, POSTGRES, FencedResource


def test_a_token_as_great_as_any_seen_passes_and_a_smaller_one_does_not() -> None:
    resource = FencedResource()
    for token in (3, 3, 5):
        resource.check(token)
    with pytest.raises(StaleToken) as error:
        resource.check(4)
    assert error.value.greatest == resource.greatest == 5
    with pytest.raises(TypeError):
        resource.check("6")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        resource.check(-1)


def test_threads_never_take_it_back() -> None:
    resource = FencedResource()
    accepted: list[int] = []

    def write(tokens: range) -> None:
        for token in tokens:
            try:
                resource.check(token)
                accepted.append(token)
            except StaleToken:
                pass

    threads = [threading.Thread(target=write, args=(range(start, 2_000, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resource.greatest == 1_999


def test_the_example_runs() -> None:
    assert doctest.testmod(fencing).failed == 0


def test_duckdb_takes_no_write_of_a_stale_token() -> None:
    with duckdb.connect() as database:
        database.execute(DUCKDB.create)
        database.execute("CREATE TABLE reports (id INTEGER PRIMARY KEY, body TEXT)")

        def write(token: int, body: str) -> bool:
            database.begin()
            admitted = database.execute(DUCKDB.admit, {"resource": "reports", "token": token}).fetchone()
            if admitted is None:
                database.rollback()
                return False
            database.execute("INSERT OR REPLACE INTO reports VALUES (1, $body)", {"body": body})
            database.commit()
            return True

        assert write(7, "first")
        assert write(7, "the same holder again")
        assert write(9, "the next holder")
        assert not write(7, "woke up too late")
        assert database.execute("SELECT body FROM reports").fetchall() == [("the next holder",)]
        assert database.execute("SELECT * FROM tauraft_fences").fetchall() == [("reports", 9)]


def test_duckdb_updates_a_row_with_a_fence_of_its_own_or_leaves_it() -> None:
    with duckdb.connect() as database:
        database.execute("CREATE TABLE jobs (id INTEGER, state TEXT, fence BIGINT DEFAULT 0)")
        database.execute("INSERT INTO jobs (id, state) VALUES (1, 'new'), (2, 'new')")
        update = DUCKDB.conditional_update("jobs", "state = $state", "id = $id")

        def set_state(token: int, state: str) -> bool:
            parameters = {"state": state, "id": 1, "token": token}
            return database.execute(update, parameters).fetchone() is not None

        assert set_state(5, "running")
        assert not set_state(4, "stale")
        assert set_state(5, "done")
        assert database.execute("SELECT state, fence FROM jobs ORDER BY id").fetchall() == [("done", 5), ("new", 0)]


def test_the_statements_for_postgres_differ_in_their_parameters_alone() -> None:
    assert POSTGRES.create == DUCKDB.create
    assert POSTGRES.admit == DUCKDB.admit.replace("$resource", "%(resource)s").replace("$token", "%(token)s")
    assert "%(token)s" in POSTGRES.conditional_update("t", "a = 1", "id = %(id)s")
