"""Rows of tables as a Parquet file that any tool reads: columns ``"table"`` VARCHAR, ``key`` BLOB, ``value`` BLOB.

Written and read through DuckDB alone (no pyarrow, no numpy).  What is quick there, measured with a million rows of
74 bytes: rows as hex lines in a text file that DuckDB reads by itself 1.2-1.7 s, lists bound to ``unnest`` 3.5 s;
reading back 0.4 s.  Above all the GIL stays free: binding a list of 10,000 holds it for 30 ms, while DuckDB reads
the text without it.

DuckDB is imported when it is first used.  All here is synchronous and meant for a worker thread.  Other threads
waited for the GIL at most 2 ms beside ``add`` (1,000 rows a call) and ``finish``; beside ``read_parquet`` 6-10 ms
with chunks of 8,192 rows, and 20 ms with smaller ones: calls shorter than the switch interval give the GIL up and
take it back before anyone else wakes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from tauraft.storage.log_store import final_failures
from tauraft.storage.snapshot_store import SnapshotCorrupt

if TYPE_CHECKING:
    import duckdb

_LINE_BYTES = 2 << 20
_WRITE = """
    COPY (
        SELECT decode(unhex(name)) AS "table", unhex(key) AS key, unhex(value) AS value
        FROM read_csv($rows, columns = {{'name': 'VARCHAR', 'key': 'VARCHAR', 'value': 'VARCHAR'}}, header = false,
            auto_detect = false, delim = ',', quote = '', escape = '', nullstr = '-', parallel = false,
            max_line_size = {line}, buffer_size = {buffer})
    ) TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 8192)
"""


class ParquetWriter:
    """One file being written at ``path``, which does not exist.

    ``add`` as often as needed, then ``finish`` or ``cancel``.

    Beside it, until then, is ``path + ".rows"``. Nothing is synced: ``SnapshotWriter.commit`` does that.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._rows_path = path + ".rows"
        self._longest = 0
        self.row_count = 0
        with final_failures(path):
            self._rows = open(self._rows_path, "x", encoding="ascii", buffering=1 << 20, newline="\n")  # noqa: SIM115

    def add(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Append rows (key, value) of one table, in the order they are to have in the file."""
        head = table.encode().hex() + ","
        lines = [f"{head}{key.hex()},{value.hex()}\n" for key, value in rows]
        if not lines:
            return
        self._longest = max(self._longest, max(map(len, lines)))
        self.row_count += len(lines)
        with final_failures(self._path):
            self._rows.write("".join(lines))

    def finish(self) -> None:
        """Make the Parquet file. Raises ``StorageFull``, ``StorageFailed``."""
        import duckdb

        with final_failures(self._path):
            self._rows.close()
        line = max(_LINE_BYTES, self._longest + 1)
        statement = _WRITE.format(path=self._path.replace("'", "''"), line=line, buffer=4 * line)
        connection = _connect()
        try:
            connection.execute(statement, {"rows": self._rows_path})
        except duckdb.IOException as error:
            with final_failures(self._path):
                raise OSError(_errno_in(str(error)), str(error)) from error
        finally:
            connection.close()
            os.unlink(self._rows_path)

    def cancel(self) -> None:
        self._rows.close()
        for path in (self._rows_path, self._path):
            with suppress(FileNotFoundError):
                os.unlink(path)


def read_parquet(path: str, chunk_rows: int = 8192) -> Iterator[list[tuple[str, bytes, bytes]]]:
    """The rows (table, key, value) in the order they were written. Raises ``SnapshotCorrupt``."""
    import duckdb

    connection = _connect()
    try:
        cursor = connection.execute('SELECT "table", key, value FROM read_parquet($path)', {"path": path})
        while chunk := cursor.fetchmany(chunk_rows):
            yield chunk
    except duckdb.Error as error:
        raise SnapshotCorrupt(f"{path} cannot be read as Parquet: {error}") from error
    finally:
        connection.close()


def _connect() -> duckdb.DuckDBPyConnection:
    import duckdb

    # One thread, so that the order is kept and the application keeps its processors; never an extension from the
    # network.
    config = {"threads": 1, "autoinstall_known_extensions": False, "autoload_known_extensions": False}
    return duckdb.connect(":memory:", config=config)  # type: ignore[arg-type, unused-ignore]


def _errno_in(message: str) -> int:
    return errno.ENOSPC if os.strerror(errno.ENOSPC).lower() in message.lower() else errno.EIO
