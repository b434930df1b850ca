"""Every log store passes the one suite, and those on ``FileSystem`` survive a power cut at every operation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from tauraft.storage.duckdb_log import DuckDBLog
from tauraft.storage.file_system import FileSystem, MemoryFileSystem
from tauraft.storage.log_store import LogStore
from tauraft.storage.memory_log import MemoryLog
from tauraft.storage.segment_log import SegmentLog
from tauraft.testing.log_store_suite import CHECKS, Home, Place, check_log_store, check_power_cuts


def small_log(directory: str, files: FileSystem | None = None) -> SegmentLog:
    """Small enough to go on to a new segment, and to read from disk, every few entries."""
    return SegmentLog(directory, files=files, segment_bytes=2048, first_segment_bytes=512, cache_bytes=600)


def small_segment_log(files: FileSystem) -> LogStore:
    files.make_directory("/log")
    files.sync_directory("/")
    return small_log("/log", files)


def place_of(kind: str, tmp_path: Path) -> Place:
    numbers = itertools.count()

    def new_home() -> Home:
        if kind == "memory":
            log = MemoryLog()
            return lambda: log
        if kind == "segment, memory":
            files = MemoryFileSystem()
            return lambda: small_segment_log(files)
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        if kind == "duckdb":
            return lambda: DuckDBLog(str(directory))
        if kind == "duckdb, small":
            return lambda: DuckDBLog(str(directory), segment_bytes=16_000, cache_bytes=2000)
        if kind == "segment, small":
            return lambda: small_log(str(directory))
        return lambda: SegmentLog(str(directory))

    return new_home


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["memory", "segment", "segment, small", "segment, memory", "duckdb", "duckdb, small"])
def test_conformance(kind: str, check: Callable[[Place], None], tmp_path: Path) -> None:
    check(place_of(kind, tmp_path))


def test_the_suite_finds_a_log_that_forgets() -> None:
    with pytest.raises(AssertionError, match="what_was_appended_is_there_after_a_restart"):
        check_log_store(lambda: MemoryLog)


def test_a_power_cut_at_any_operation_loses_nothing_acknowledged() -> None:
    assert check_power_cuts(small_segment_log) > 100
