"""It keeps the rules, does what it says, and survives what a cluster survives."""

from __future__ import annotations

import subprocess
import sys

import acme_counter.handle
import pytest
from acme_counter import AcmeCounter
from acme_counter.fsm import AcmeCounterFSM, AcmeCounterFSM2

from tauraft.errors import Refused
from tauraft.fsm import FSM
from tauraft.testing import MemoryCluster, SimulatedCluster, check_fsm


@pytest.mark.parametrize("version", [AcmeCounterFSM, AcmeCounterFSM2])
def test_replicas_cannot_differ(version: type[FSM]) -> None:
    check_fsm(version)


def test_it_adds(tauraft_cluster: MemoryCluster) -> None:
    hits = AcmeCounter(tauraft_cluster, "hits")
    assert hits.get() == 0
    assert hits.add() == 1
    assert hits.add(41) == 42
    assert hits.get() == 42


def test_it_counts_additions(tauraft_cluster: MemoryCluster) -> None:
    hits = AcmeCounter(tauraft_cluster, "hits")
    hits.add(5)
    hits.add(-5)
    assert hits.additions() == 2


def test_what_is_refused_changes_nothing(tauraft_cluster: MemoryCluster) -> None:
    hits = AcmeCounter(tauraft_cluster, "hits")
    hits.add(5)
    with pytest.raises(Refused) as refused:
        hits.add(2**60)
    assert refused.value.code == "too-large"
    assert hits.get() == 5


def test_it_is_watched(tauraft_cluster: MemoryCluster) -> None:
    hits = AcmeCounter(tauraft_cluster, "hits")
    with hits.watch() as sums:
        assert sums.next(5) == 0
        hits.add(7)
        assert sums.next(5) == 7


def test_sql_sees_it(tauraft_cluster: MemoryCluster) -> None:
    AcmeCounter(tauraft_cluster, "hits").add(3)
    assert list(tauraft_cluster.sql("SELECT key, value FROM acme_counter_counts")) == [("hits", 3)]


def test_it_counts_once_although_its_leader_is_killed() -> None:
    with SimulatedCluster() as cluster:
        hits = AcmeCounter(cluster.client(), "hits")
        assert hits.add() == 1
        assert cluster.leader is not None
        cluster.kill(cluster.leader)
        assert hits.add(timeout=60) == 2


def test_the_blocking_twin_is_current() -> None:
    source = acme_counter.handle.__file__
    done = subprocess.run([sys.executable, "-m", "tauraft", "twin", source, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
