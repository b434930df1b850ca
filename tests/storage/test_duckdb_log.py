"""What is particular to the log in DuckDB: SQL over it, kill -9, damaged WALs, and a disk that is nearly full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from tauraft.core.messages import HardState
from tauraft.storage.duckdb_log import DuckDBLog
from tauraft.storage.log_store import LogCorrupt, Recovered, StorageFull
from tauraft.testing.log_store_suite import EVERYTHING, Model, make_entries


def opened(directory: Path, **options: int) -> tuple[DuckDBLog, Recovered]:
    log = DuckDBLog(str(directory), **options)  # type: ignore[arg-type]
    return log, log.open()


def test_the_log_is_open_to_sql(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    log.append(make_entries(1, 3), HardState(1, None, 2))
    log.append(make_entries(3, 4, term=2))
    log.close()
    with duckdb.connect(str(tmp_path / "0000000001.duckdb")) as connection:
        rows = connection.execute('SELECT record, "index", term FROM entries ORDER BY ALL').fetchall()
    assert rows == [(1, 1, 1), (1, 2, 1), (1, 3, 1), (2, 3, 2), (2, 4, 2)]


def test_no_checkpoint_ever_happens(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    size = (tmp_path / "0000000001.duckdb").stat().st_size
    for index in range(1, 30):
        log.append(make_entries(index, index, size=50_000))
    log.close()
    log, _ = opened(tmp_path)
    log.close()
    assert (tmp_path / "0000000001.duckdb").stat().st_size == size
    assert (tmp_path / "0000000001.duckdb.wal").stat().st_size > 29 * 50_000


def test_a_killed_process_loses_nothing_acknowledged(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from tauraft.core.messages import HardState
        from tauraft.storage.duckdb_log import DuckDBLog
        from tauraft.testing.log_store_suite import make_entries
        log = DuckDBLog(sys.argv[1], segment_bytes=20_000)
        log.open()
        for index in range(1, 100_000):
            log.append(make_entries(index, index), HardState(1, None, index))
            print(index, flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as writer:
        assert writer.stdout is not None
        acknowledged = 0
        while acknowledged < 100:
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
    log, recovered = opened(tmp_path)
    assert acknowledged <= recovered.last_index <= acknowledged + 1
    assert recovered.hard_state.commit == recovered.last_index
    assert log.read(1, acknowledged + 1, EVERYTHING) == make_entries(1, acknowledged)
    log.close()


@pytest.mark.parametrize("name", ["0000000001.duckdb.wal", "0000000001.duckdb.check"])
def test_a_flipped_byte_is_found_or_changes_nothing(tmp_path: Path, name: str) -> None:
    """DuckDB alone drops a record with a damaged length, and all behind it, without a word."""
    home = tmp_path / "log"
    home.mkdir()
    log, model = DuckDBLog(str(home)), Model()
    log.open()
    for target in (log, model):
        target.append(make_entries(1, 3), HardState(1, None, 2))
        target.append(make_entries(4, 4))
    log.close()
    content = (home / name).read_bytes()
    found = 0
    for offset in range(0, len(content), 13):
        copy = tmp_path / "copy"
        shutil.copytree(home, copy)
        changed = bytearray(content)
        changed[offset] ^= 0x10
        (copy / name).write_bytes(changed)
        try:
            log, recovered = opened(copy)
        except LogCorrupt:
            found += 1
        else:
            assert model.describes(log, recovered), offset
            log.close()
        shutil.rmtree(copy)
    assert found == (len(range(0, len(content), 13)) if name.endswith("wal") else 0)


def test_a_commit_that_was_never_answered_may_be_there(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    log.append(make_entries(1, 2))
    check = (tmp_path / "0000000001.duckdb.check").read_bytes()
    log.append(make_entries(3, 3))
    log.close()
    (tmp_path / "0000000001.duckdb.check").write_bytes(check)
    log, recovered = opened(tmp_path)
    assert recovered.last_index == 3
    log.append(make_entries(4, 4))
    log.close()
    log, recovered = opened(tmp_path)
    assert recovered.last_index == 4
    log.close()


def test_what_open_finds_is_durable_although_nobody_answered_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from the page cache of a process that died before its sync; the restarted replica says that it has it."""
    log, _ = opened(tmp_path)
    log.append(make_entries(1, 2))
    check = (tmp_path / "0000000001.duckdb.check").read_bytes()
    log.append(make_entries(3, 3))
    log.close()
    (tmp_path / "0000000001.duckdb.check").write_bytes(check)
    synced: list[str] = []

    def noting(sync: Callable[[int], None]) -> Callable[[int], None]:
        def note(descriptor: int) -> None:
            synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
            sync(descriptor)

        return note

    for name in ("fdatasync", "fsync"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    log, recovered = opened(tmp_path)
    log.close()
    assert recovered.last_index == 3
    assert synced[:3] == [tmp_path.name, "0000000001.duckdb.wal", "0000000001.duckdb.check"]


@pytest.mark.parametrize(
    "lost", ["0000000001.duckdb.wal", "0000000002.duckdb", "0000000003.duckdb.wal", "0000000003.duckdb.check"]
)
def test_a_file_that_is_gone_is_noticed(tmp_path: Path, lost: str) -> None:
    log, _ = opened(tmp_path, segment_bytes=10_000)
    for index in range(1, 31):
        log.append(make_entries(index, index, size=1000))
    log.close()
    assert (tmp_path / "0000000003.duckdb").exists()
    (tmp_path / lost).unlink()
    with pytest.raises(LogCorrupt):
        opened(tmp_path)


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path) -> None:
    free = 1 << 40
    log = DuckDBLog(str(tmp_path), free_bytes=lambda path: free)
    log.open()
    log.append(make_entries(1, 2))
    free = 1 << 20
    with pytest.raises(StorageFull):
        log.append(make_entries(3, 3))
    free = 1 << 40
    log.append(make_entries(3, 3))
    assert log.read(1, 4, EVERYTHING) == make_entries(1, 3)
    log.close()


@pytest.mark.parametrize("cut", [1, 40, 150])
def test_a_torn_commit_is_cut_and_the_log_goes_on(tmp_path: Path, cut: int) -> None:
    log, _ = opened(tmp_path)
    log.append(make_entries(1, 2))
    check = (tmp_path / "0000000001.duckdb.check").read_bytes()
    log.append(make_entries(3, 3, size=300))
    log.close()
    (tmp_path / "0000000001.duckdb.check").write_bytes(check)
    os.truncate(tmp_path / "0000000001.duckdb.wal", (tmp_path / "0000000001.duckdb.wal").stat().st_size - cut)
    log, recovered = opened(tmp_path)
    assert recovered.last_index == 2
    for index in (3, 4):
        log.append(make_entries(index, index, term=2))
    log.close()
    log, recovered = opened(tmp_path)
    assert log.read(1, recovered.last_index + 1, EVERYTHING) == make_entries(1, 2) + make_entries(3, 4, term=2)
    log.close()


def test_leftovers_of_a_crash_are_swept(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    log.append(make_entries(1, 2))
    log.close()
    for name in ("0000000002.duckdb.new", "0000000002.duckdb.new.wal", "0000000002.duckdb.wal"):
        (tmp_path / name).write_bytes(b"half")
    log, recovered = opened(tmp_path)
    log.close()
    assert recovered.last_index == 2
    assert sorted(os.listdir(tmp_path)) == ["0000000001.duckdb", "0000000001.duckdb.check", "0000000001.duckdb.wal"]


def test_a_log_that_must_exist_is_not_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(LogCorrupt, match="gone"):
        DuckDBLog(str(tmp_path), must_exist=True).open()
