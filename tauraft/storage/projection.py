"""The state and its history in DuckDB, to be asked in SQL. In memory, made when the first query comes, thrown away at the end.

    internal.state (view, key, value)                        a row for each row of each plugin's table, as JSON
    internal.recent (revision, at, view, key, old, new)      the changes that are in no sealed file yet
    <fsm>_<table>, short names, history                      views: what a user sees

In:  rows and changes as lines, ``history``'s format (``load_rows``, ``add_changes``); the tables' shapes; paths of sealed files.
Out: ``run``: one statement that only reads, its rows packed for the wire.

*The past* is the present with the changes since undone: the value a key had at revision r is what the first change
after r replaced.  So it reaches as far back as history has no gap, and needs no copy of any state.

*Read-only* in depth: the one statement is a SELECT (or EXPLAIN) in a read-only transaction; DuckDB may open no file but the
history's own, load no extension, see no Python variable; its configuration is locked.

Lines are bound as one text of at most ``_PIECE_BYTES``, and cut up by DuckDB: it works without the GIL (4,096 lines in 7 ms, others
wait 2 ms at most).  Reading is concurrent, each query with a cursor of its own; writing is one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tauraft.errors import Compacted, Refused, TooLarge, Unavailable
from tauraft.sql_values import pack_rows
from tauraft.storage.history import HEAD
from tauraft.storage.sql_types import TableShape, identifier, literal

if TYPE_CHECKING:
    import duckdb

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_ROWS = 100_000
MAX_RESULT_BYTES = 7 << 20
MEMORY_LIMIT = "2GB"
_PIECE_BYTES = 512 << 10
_CHUNK_ROWS = 500
_TEXTS = "SELECT string_split(line, chr(9)) AS f FROM (SELECT unnest(string_split($lines, chr(10))) AS line) WHERE line <> ''"
_CHANGES = f"""
    SELECT CAST(f[1] AS UBIGINT) AS revision, CAST(f[2] AS BIGINT) AS "at", f[3] AS view, f[4] AS key,
        nullif(f[5], '') AS old, nullif(f[6], '') AS new
    FROM ({_TEXTS}) WHERE f[3] <> '{HEAD}'
"""
_TABLES = """
    CREATE SCHEMA internal;
    CREATE TABLE internal.state (view VARCHAR, key VARCHAR, value VARCHAR);
    CREATE TABLE internal.recent (revision UBIGINT, "at" BIGINT, view VARCHAR, key VARCHAR, old VARCHAR, new VARCHAR);
    CREATE TABLE internal.stand (revision UBIGINT, "index" UBIGINT, oldest UBIGINT, oldest_at BIGINT);
    INSERT INTO internal.stand VALUES (0, 0, 0, NULL);
    CREATE TEMP TABLE incoming (revision UBIGINT, "at" BIGINT, view VARCHAR, key VARCHAR, old VARCHAR, new VARCHAR);
    CREATE TEMP TABLE latest (view VARCHAR, key VARCHAR, value VARCHAR);
"""
_UPDATE = """
    INSERT INTO latest SELECT view, key, arg_max_null(new, revision) FROM incoming GROUP BY view, key;
    DELETE FROM internal.state USING latest WHERE state.view = latest.view AND state.key = latest.key;
    INSERT INTO internal.state SELECT * FROM latest WHERE value IS NOT NULL;
    INSERT INTO internal.recent SELECT * FROM incoming;
    DELETE FROM latest;
    DELETE FROM incoming;
"""
_HISTORY = """
    SELECT revision, make_timestamptz("at") AS "at", view,
        CASE WHEN key[1] = '"' THEN CAST(key AS JSON) ->> '$' ELSE key END AS key, CAST(new AS JSON) AS value
    FROM internal.changes
"""


@dataclass(frozen=True, slots=True)
class Question:
    """One query. ``as_of``: a revision, a moment, or None for now."""

    query: str
    parameters: Sequence[Any] = ()
    as_of: int | datetime | None = None


@dataclass(frozen=True, slots=True)
class Told:
    columns: tuple[str, ...]
    types: tuple[str, ...]  # DuckDB's names of them
    chunks: tuple[bytes, ...]  # as ``sql_values.unpack_rows`` takes them
    index: int


class Database:
    """See the module. ``directory``: where the sealed files of history are; None: there are none."""

    def __init__(self, directory: str | None) -> None:
        import duckdb

        self._directory = directory
        # duckdb.connect's stub wants text for all options.
        config: dict[str, Any] = {
            "threads": 2,
            "memory_limit": MEMORY_LIMIT,
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": "",
        }
        self._writer = duckdb.connect(":memory:", config=config)
        self._views: set[str] = set()
        self.shapes: Sequence[TableShape] = ()
        self._short: Mapping[str, str] = {}
        self._writer.execute("SET TimeZone = 'UTC'")
        self._writer.execute(_TABLES)
        self.set_sealed([])
        if directory is not None:
            self._writer.execute(f"SET allowed_directories = [{literal(directory)}]")
        self._writer.execute("SET enable_external_access = false")
        self._writer.execute("SET lock_configuration = true")

    def close(self) -> None:
        self._writer.close()

    # Filling: one thread at a time.

    def load_rows(self, lines: bytes) -> None:
        """``view, key, value`` of the state, while nobody asks yet."""
        for piece in _pieces(lines):
            self._writer.execute(
                f"INSERT INTO internal.state SELECT f[1], f[2], f[3] FROM ({_TEXTS})", {"lines": piece}
            )

    def load_changes(self, lines: bytes) -> None:
        """Changes that the state shows already."""
        for piece in _pieces(lines):
            self._writer.execute(f"INSERT INTO internal.recent {_CHANGES}", {"lines": piece})

    def add_changes(self, lines: bytes, revision: int, index: int) -> None:
        """Changes after the state, which then stands at ``revision`` and ``index``. In one transaction."""
        self._writer.execute("BEGIN TRANSACTION")
        try:
            for piece in _pieces(lines):
                self._writer.execute(f"INSERT INTO incoming {_CHANGES}", {"lines": piece})
            if lines:
                self._writer.execute(_UPDATE)
            self._writer.execute('UPDATE internal.stand SET revision = ?, "index" = ?', [revision, index])
        except BaseException:
            self._writer.execute("ROLLBACK")
            raise
        self._writer.execute("COMMIT")

    def set_oldest(self, revision: int, at_us: int | None) -> None:
        """From there on history has no gap. ``at_us`` None: when that was is known by the change after it alone."""
        self._writer.execute("UPDATE internal.stand SET oldest = ?, oldest_at = ?", [revision, at_us])

    def set_sealed(self, paths: Sequence[str], *, sealed_up_to: int = 0) -> None:
        """The sealed files there are; ``recent`` gives up what they hold."""
        parts = "SELECT * FROM internal.recent"
        if paths:
            listed = ", ".join(literal(path) for path in paths)
            parts += f" UNION ALL SELECT * FROM read_parquet([{listed}])"
        self._writer.execute("BEGIN TRANSACTION")
        self._writer.execute(f"CREATE OR REPLACE VIEW internal.changes AS {parts}")
        self._writer.execute("DELETE FROM internal.recent WHERE revision <= ?", [sealed_up_to])
        self._writer.execute(f"CREATE OR REPLACE VIEW history AS {_HISTORY}")
        self._writer.execute("COMMIT")

    def forget_recent(self, up_to: int) -> None:
        """Of a history that is only in memory."""
        self._writer.execute("DELETE FROM internal.recent WHERE revision <= ?", [up_to])
        self.set_oldest(up_to, None)

    def set_shapes(self, shapes: Sequence[TableShape], short_names: Mapping[str, str]) -> list[str]:
        """The tables there are now. Returns what is wrong with short names that cannot be made."""
        import duckdb

        for view in self._views:
            self._writer.execute(f"DROP VIEW IF EXISTS {identifier(view)}")
        self._views = {"history"}
        self.shapes = tuple(shapes)
        for shape in shapes:
            self._writer.execute(_view(shape.view, shape.select.format(source="internal.state")))
            self._views.add(shape.view)
        problems = []
        self._short = {}
        for name, select in short_names.items():
            try:
                if name in self._views:
                    raise duckdb.CatalogException("the name is taken")
                self._writer.execute(_view(name, select))
            except duckdb.Error as error:
                problems.append(f"{name}: {_first_line(error)}")
            else:
                self._short = {**self._short, name: select}
                self._views.add(name)
        self._views.discard("history")
        return problems

    # Asking: any thread.

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """For one ``run``; ``interrupt()`` ends it early. Close it."""
        return self._writer.cursor()

    def run(self, cursor: duckdb.DuckDBPyConnection, question: Question) -> Told:
        """Raises ``Refused``, ``Compacted``, ``TooLarge``; ``Unavailable`` when interrupted."""
        import duckdb

        try:
            only_reads(quote_at(question.query))
            if question.as_of is not None:
                self._show_past(cursor, question.as_of)
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            try:
                return _fetch(cursor, question)
            finally:
                with suppress(duckdb.Error):
                    cursor.execute("ROLLBACK")
        except duckdb.InterruptException as error:
            raise Unavailable("the query took longer than its time-out; it was stopped: ask for less") from error
        except duckdb.Error as error:
            raise Refused("sql", _first_line(error)) from error

    def _show_past(self, cursor: duckdb.DuckDBPyConnection, as_of: int | datetime) -> None:
        """Views of this cursor alone hide those of the present."""
        revision, oldest, oldest_at = _one(cursor, "SELECT revision, oldest, oldest_at FROM internal.stand")
        if isinstance(as_of, datetime):
            us = (as_of - EPOCH) // timedelta(microseconds=1)
            (at,) = _one(
                cursor, f'SELECT max(revision) FROM internal.changes WHERE revision > {oldest} AND "at" <= {us}'
            )
            if at is None and (oldest_at is None or us < oldest_at):
                raise _compacted(oldest)
            at = oldest if at is None else at
        else:
            at = as_of
            if at > revision:
                raise Refused("not-reached", f"revision {at} is not reached: the last one is {revision}")
        if at < oldest:
            raise _compacted(oldest)
        cursor.execute(
            f"CREATE TEMP VIEW undone AS SELECT view, key, arg_min_null(old, revision) AS value FROM internal.changes "
            f"WHERE revision > {at} GROUP BY view, key"
        )
        cursor.execute(
            "CREATE TEMP VIEW past AS SELECT view, key, value FROM internal.state AS now WHERE NOT EXISTS "
            "(FROM undone WHERE undone.view = now.view AND undone.key = now.key) "
            "UNION ALL SELECT view, key, value FROM undone WHERE value IS NOT NULL"
        )
        for shape in self.shapes:
            cursor.execute(_view(shape.view, shape.select.format(source="past"), temporary=True))
        for name, select in self._short.items():
            cursor.execute(_view(name, select, temporary=True))
        cursor.execute(_view("history", f"{_HISTORY} WHERE revision <= {at}", temporary=True))


def only_reads(query: str) -> None:
    """Raises ``Refused`` unless it is one statement that only reads."""
    import duckdb

    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise Refused("sql", _first_line(error)) from error
    if len(statements) != 1:
        raise Refused("sql", f"one statement at a time, not {len(statements)}; nothing was run")
    kind = statements[0].type
    if kind not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise Refused(
            "sql", f"only SELECT: {kind.name} would change something, and SQL is for looking; nothing was run"
        )


def quote_at(query: str) -> str:
    """``at`` as the name it is in ``history``: DuckDB's grammar keeps the word for itself, even where only a column can stand."""
    import duckdb

    text = query.encode()
    tokens = duckdb.tokenize(query)
    if not tokens:
        return query
    ends = [offset for offset, _ in tokens[1:]] + [len(text)]
    words = [text[offset:end].strip().lower() for (offset, _), end in zip(tokens, ends, strict=True)]
    found = bytearray()
    for place, ((offset, kind), end) in enumerate(zip(tokens, ends, strict=True)):
        is_name = (
            words[place] == b"at"
            and kind == duckdb.token_type.keyword
            and words[place + 1 : place + 3] != [b"time", b"zone"]
            and words[max(0, place - 1) : place] != [b"$"]
        )
        token = text[offset:end]
        found += b'"at"' + token[2:] if is_name else token
    return (text[: tokens[0][0]] + found).decode()


def seal_lines(source: str, target: str) -> None:
    """A history file of lines as Parquet. Raises ``OSError``."""
    import duckdb

    with open(source, "rb") as file:
        longest = max(map(len, file), default=0) + 1
    connection = duckdb.connect(":memory:", config={"threads": 1})  # type: ignore[arg-type, unused-ignore]
    columns = "{'revision': 'UBIGINT', 'at': 'BIGINT', 'view': 'VARCHAR', 'key': 'VARCHAR', 'old': 'VARCHAR', 'new': 'VARCHAR'}"
    line = max(2 << 20, longest)
    try:
        connection.execute(
            f"COPY (SELECT * FROM read_csv($source, columns = {columns}, header = false, auto_detect = false, "
            f"delim = '\t', quote = '', escape = '', nullstr = '', parallel = false, max_line_size = {line}, "
            f"buffer_size = {4 * line}) WHERE view <> '{HEAD}') "
            f"TO {literal(target)} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 8192)",
            {"source": source},
        )
    except duckdb.Error as error:
        raise OSError(f"{source} could not be sealed: {error}") from error
    finally:
        connection.close()


def _view(name: str, select: str, *, temporary: bool = False) -> str:
    return f"CREATE OR REPLACE {'TEMP ' if temporary else ''}VIEW {identifier(name)} AS {select}"


def _fetch(cursor: duckdb.DuckDBPyConnection, question: Question) -> Told:
    (index,) = _one(cursor, 'SELECT "index" FROM internal.stand')
    parameters = list(question.parameters)
    query = _with_zoneless_times(cursor, quote_at(question.query), parameters)
    cursor.execute(query, parameters)
    described = cursor.description or ()
    columns, types = tuple(column[0] for column in described), tuple(str(column[1]) for column in described)
    chunks, rows, size = [], 0, 0
    while chunk := cursor.fetchmany(_CHUNK_ROWS):
        try:
            packed = pack_rows(chunk)
        except TypeError as error:
            raise Refused("sql", f"{error}; cast it to VARCHAR") from error
        chunks.append(packed)
        rows += len(chunk)
        size += len(packed)
        if rows > MAX_ROWS or size > MAX_RESULT_BYTES:
            raise TooLarge(
                f"the result has more than {MAX_ROWS} rows or {MAX_RESULT_BYTES >> 20} MiB; nothing is returned: "
                "add LIMIT, or let SQL do the counting",
                option="query",
            )
    return Told(columns, types, tuple(chunks), index)


def _with_zoneless_times(cursor: duckdb.DuckDBPyConnection, query: str, parameters: list[Any]) -> str:
    """DuckDB gives instants with a zone to Python only through pytz; without one (the session's is UTC) it needs nothing."""
    import duckdb

    zoned = "TIMESTAMP WITH TIME ZONE"
    if duckdb.extract_statements(query)[0].type is not duckdb.StatementType.SELECT:
        return query
    inner = query.strip().rstrip(";")
    described = cursor.execute(f"DESCRIBE FROM ({inner}\n)", parameters).fetchall()
    if not any(zoned in kind for _, kind, *_ in described):
        return query
    casts = ", ".join(
        f"CAST(c{place} AS {kind.replace(zoned, 'TIMESTAMP')}) AS {identifier(name)}"
        if zoned in kind
        else f"c{place} AS {identifier(name)}"
        for place, (name, kind, *_) in enumerate(described)
    )
    names = ", ".join(f"c{place}" for place in range(len(described)))
    return f"SELECT {casts} FROM ({inner}\n) AS q({names})"


def _one(cursor: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    found = cursor.execute(query).fetchone()
    assert found is not None
    row: tuple[Any, ...] = found
    return row


def _compacted(oldest: int) -> Compacted:
    return Compacted(f"history reaches back to revision {oldest} without a gap, not further", oldest=oldest)


def _first_line(error: Exception) -> str:
    """DuckDB's message, and where in the query, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[0] if lines else type(error).__name__


def _pieces(lines: bytes) -> Iterator[str]:
    start = 0
    while start < len(lines):
        end = lines.find(b"\n", min(start + _PIECE_BYTES, len(lines) - 1)) + 1 or len(lines)
        yield lines[start:end].decode()
        start = end
