"""The README's state machine, pasted into a package of its own: what it says comes with it does."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tauraft import Cluster
from tauraft.handle import Frame, State, TableName
from tauraft.testing import MemoryCluster, SimulatedCluster, check_fsm

README = Path(__file__).parent.parent.parent / "README.md"
ENTRY_POINTS = "[tauraft]\nacme_tally = acme_tally:Tally\n"


def snippets() -> tuple[str, str]:
    section = README.read_text(encoding="utf-8").partition("## Your own state machine\n")[2].partition("\n## ")[0]
    machine, use = re.findall(r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    return machine, use


@pytest.fixture
def tally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package, as if it was installed."""
    site = tmp_path / "site"
    about = site / "acme_tally-1.dist-info"
    about.mkdir(parents=True)
    (site / "acme_tally.py").write_text(snippets()[0], encoding="utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-tally\nVersion: 1\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    monkeypatch.syspath_prepend(site)
    module = importlib.import_module("acme_tally")
    yield module
    monkeypatch.delitem(importlib.import_module("sys").modules, "acme_tally")


def test_it_is_at_most_thirty_lines() -> None:
    assert len(snippets()[0].splitlines()) <= 30


def test_it_keeps_the_rules(tally: ModuleType) -> None:
    check_fsm(tally.Tally)


def test_it_is_found_counts_and_is_in_sql_and_watched(tally: ModuleType) -> None:
    with MemoryCluster() as cluster, cluster.watch(TableName("acme.tally", "sums", str, int), key="hits") as watch:
        assert cluster.submit(tally.Add("hits")) == 1
        assert cluster.submit(tally.Add("hits", 2)) == 3
        assert cluster.query(tally.Total("hits")) == 3
        assert list(cluster.sql("SELECT key, value FROM acme_tally_sums")) == [("hits", 3)]
        changes = [watch.next(5), watch.next(5)]
        assert all(isinstance(change, Frame) and not isinstance(change, State) for change in changes)
        assert [change.changes[0].new for change in changes if isinstance(change, Frame)] == [1, 3]
        with pytest.raises(TypeError, match="amount"):
            cluster.submit(tally.Add("hits", "three"))


@pytest.mark.middle
def test_it_comes_back_from_its_snapshot(tally: ModuleType, tmp_path: Path) -> None:
    with Cluster("/raft/tally", data_dir=tmp_path / "node", force_bootstrap=True, preset="local") as cluster:
        cluster.submit(tally.Add("hits", 5))
        assert cluster.snapshot() > 0
        cluster.submit(tally.Add("hits"))
    with Cluster("/raft/tally", data_dir=tmp_path / "node", preset="local") as cluster:
        assert cluster.query(tally.Total("hits")) == 6


def test_it_survives_its_leader(tally: ModuleType) -> None:
    with SimulatedCluster() as cluster:
        client = cluster.client()
        client.submit(tally.Add("hits"))
        leader = cluster.leader
        assert leader is not None
        cluster.kill(leader)
        assert client.submit(tally.Add("hits"), timeout=60) == 2
        cluster.restart(leader)


def test_the_use_that_is_shown_runs(tally: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import tauraft

    monkeypatch.setattr(tauraft, "Cluster", MemoryCluster)
    exec(compile(snippets()[1], "README.md", "exec"), {})
