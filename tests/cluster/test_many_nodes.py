"""Many nodes of one namespace on one machine, joining at once, one after another, and in phases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import tauraft
from tests.cluster.harness import eventually
from tests.cluster.nodes import Nodes

# Twenty are 190 connections, whose handshakes keep a processor busy for half a minute.
COUNTS = [5, 10, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
pytestmark = pytest.mark.middle


def at_once(nodes: Nodes, names: list[str]) -> list[tauraft.Cluster]:
    return nodes.start(*names, patience_s=300)


def one_by_one(nodes: Nodes, names: list[str]) -> list[tauraft.Cluster]:
    return [nodes.start(name, patience_s=60)[0] for name in names]


def in_phases(nodes: Nodes, names: list[str]) -> list[tauraft.Cluster]:
    """One, then a third of the others at once, and so on."""
    started = nodes.start(names[0])
    size = -(-(len(names) - 1) // 3)
    for begin in range(1, len(names), size):
        started += nodes.start(*names[begin : begin + size], patience_s=120)
    return started


def end_as_one_cluster(nodes: Nodes, count: int, how: Callable[[Nodes, list[str]], list[tauraft.Cluster]]) -> None:
    started = how(nodes, [f"n{number:02}" for number in range(count)])
    assert len({node.status().cluster_id for node in started}) == 1
    eventually(lambda: len(started[0].members()) == count, "all are members", 120)
    eventually(lambda: [m.role for m in started[0].members()].count("voter") == 5, "five of them vote", 60)
    for number, node in enumerate(started):
        node.set(f"k{number}", str(number))
    expected = sorted(f"k{number}" for number in range(count))
    assert [node.keys() for node in started] == [expected] * count
    eventually(lambda: len({node.leader and node.leader.peer_id for node in started} - {None}) == 1, "one leader")


@pytest.mark.parametrize("count", COUNTS)
def test_nodes_that_join_at_once_are_one_cluster_with_one_leader_and_the_same_data(nodes: Nodes, count: int) -> None:
    end_as_one_cluster(nodes, count, at_once)


@pytest.mark.parametrize("count", COUNTS)
def test_nodes_that_join_one_after_another_end_so_too(nodes: Nodes, count: int) -> None:
    end_as_one_cluster(nodes, count, one_by_one)


@pytest.mark.parametrize("count", COUNTS[::2])
def test_nodes_that_join_in_phases_end_so_too(nodes: Nodes, count: int) -> None:
    end_as_one_cluster(nodes, count, in_phases)
