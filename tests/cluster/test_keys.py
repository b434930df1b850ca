"""The shared key on real nodes: a whole cluster with it, and everyone without it refused by name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import tauraft
from tests.cluster.nodes import NAMESPACE, Nodes

pytestmark = pytest.mark.middle

KEY, OTHER = bytes(range(32)), bytes(reversed(range(32)))


def outcome(cluster: tauraft.Cluster, patience_s: float = 12) -> Any:
    try:
        cluster.start(timeout=patience_s)
    except tauraft.TauraftError as error:
        return error
    return cluster.state


def test_a_cluster_with_a_key_replicates_forwards_and_serves(nodes: Nodes) -> None:
    leader, follower, third = nodes.voters("a", "b", "c", encryption_key=KEY)
    follower.set("large", b"x" * 1_000_000)
    assert third.get("large") == b"x" * 1_000_000
    follower.transfer_leadership(follower.peer_id)
    with nodes.keep(tauraft.Client(NAMESPACE, leader.addresses, encryption_key=KEY)) as client:
        client.set("k", "v")
        assert third.get("k") == b"v"


def test_two_nodes_with_different_keys_both_fail_to_start_naming_the_key(nodes: Nodes) -> None:
    made = [nodes.make("a", encryption_key=KEY, expect=2), nodes.make("b", encryption_key=OTHER, expect=2)]
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(outcome, made))
    assert [type(found) for found in outcomes] == [tauraft.WrongKey] * 2, outcomes
    assert all(cluster.state == "stopped" for cluster in made)


@pytest.mark.parametrize("theirs", [OTHER, None], ids=["another key", "no key"])
def test_a_node_with_another_key_does_not_start_beside_a_running_one(nodes: Nodes, theirs: bytes | None) -> None:
    (running,) = nodes.start("a", encryption_key=KEY)
    running.set("k", "v")
    found = outcome(nodes.make("b", encryption_key=theirs))
    assert type(found) is tauraft.WrongKey, found
    # Who is running is not disturbed by one that knocks with another key.
    assert running.get("k") == b"v" and len(running.members()) == 1


@pytest.mark.parametrize("theirs", [OTHER, None], ids=["another key", "no key"])
def test_a_client_with_another_key_is_told_so(nodes: Nodes, theirs: bytes | None) -> None:
    (running,) = nodes.start("a", encryption_key=KEY)
    client = nodes.keep(tauraft.Client(NAMESPACE, running.addresses, encryption_key=theirs))
    with pytest.raises(tauraft.WrongKey):
        client.start(timeout=10)


def test_a_short_key_is_refused_by_the_constructor(nodes: Nodes) -> None:
    for wrong in (b"short", b"", b"x" * 31, b"x" * 33, [b"x" * 16], []):
        with pytest.raises(tauraft.InvalidOption):
            nodes.make("a", encryption_key=wrong)
    with pytest.raises(TypeError):
        nodes.make("a", encryption_key="0" * 64)


def test_a_key_is_rotated_by_a_list_of_which_the_first_encrypts(nodes: Nodes) -> None:
    leader, follower, third = nodes.voters("a", "b", "c", encryption_key=[KEY, OTHER])
    leader.set("k", "v")
    third.close()
    back = nodes.make(str(third.options.label), encryption_key=[OTHER, KEY]).start(timeout=30)
    assert back.get("k") == b"v"
    assert follower.get("k") == b"v"


def test_a_stranger_neither_joins_nor_commands_where_an_allow_list_is_set(nodes: Nodes) -> None:
    (running,) = nodes.start("a", allow=["12D3KooWSomebodyElse"])
    running.set("k", "v")
    with pytest.raises(tauraft.TauraftError, match="does not admit this node"):
        nodes.make("b").start(timeout=10)
    assert len(running.members()) == 1
    client = nodes.keep(tauraft.Client(NAMESPACE, running.addresses))
    with pytest.raises(tauraft.NoLeader):
        client.start(timeout=3)
