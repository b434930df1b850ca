"""Everything in this directory starts processes or real nodes: it is ``middle``, and cleaned up also when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import Processes
from tests.cluster.nodes import Nodes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    try:
        yield started
    finally:
        started.end()


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    monkeypatch.setenv("TAURAFT_STATE_DIR", str(state))
    started = Nodes(tmp_path)
    try:
        yield started
    finally:
        started.end()
