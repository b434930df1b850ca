"""The facades' own: options checked without I/O, what a cluster knows of itself, and that its twins are what their sources say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tauraft import errors, twin
from tauraft._blocking.cluster import Client, Cluster, Node
from tauraft.cluster import AsyncCluster
from tauraft.types import Member
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_plugins.locks.fsm import Locks
from tauraft_primitives.kv.messages import Put
from tests.session.machine_replica import MachineHost

NAMESPACE = "/raft/test"


class NodeHost(MachineHost):
    peer_id = "A"
    addresses = ("/memory/A",)
    state = "follower"
    leader = Member("B", (), "voter", "host2", True)


@pytest.fixture
def host() -> NodeHost:
    return NodeHost([KeyValue, Locks])


def test_a_constructor_checks_and_starts_nothing() -> None:
    with pytest.raises(errors.InvalidNamespace):
        Cluster("test")
    with pytest.raises(errors.InvalidOption):
        Cluster(NAMESPACE, preset="lunar")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Cluster(NAMESPACE, colour="red")  # type: ignore[call-arg]
    cluster = Cluster(NAMESPACE, timeout=3)
    assert cluster.options.timeout == 3
    assert cluster.state == "stopped"
    assert cluster.leader is None
    with pytest.raises(errors.Shutdown):
        cluster.get("k")
    with pytest.raises(errors.Shutdown):
        _ = cluster.peer_id
    cluster.close()
    with pytest.raises(errors.AlreadyClosed):
        cluster.get("k")


@pytest.mark.parametrize(
    ("namespace", "says"),
    [
        ("", "must start with /raft/"),
        ("raft/a", "must start with /raft/"),
        ("/other/a", "must start with /raft/"),
        ("/raft", "must start with /raft/"),
        ("/raft/", "empty part"),
        ("/raft/a//b", "empty part"),
        ("/raft/a/", "empty part"),
        ("/raft/../a", "cannot be . or .."),
        ("/raft/a/./b", "cannot be . or .."),
        ("/raft/a/transport", "last part cannot be 'transport'"),
        ("/raft/" + "x" * 250, "longer than 255 bytes"),
        ("/raft/" + "\u00e9" * 125, "longer than 255 bytes"),
        ("/raft/a b", "only letters, digits"),
        ("/raft/a\0", "only letters, digits"),
    ],
)
def test_namespaces_are_checked_by_the_constructor(namespace: str, says: str) -> None:
    with pytest.raises(errors.InvalidNamespace, match=says):
        Cluster(namespace)
    with pytest.raises(errors.InvalidNamespace):
        Client(namespace)
    with pytest.raises(TypeError):
        Cluster(namespace.encode())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "namespace", ["/raft/a", "/raft/a/b.c-d_e", "/raft/transport/a", "/raft/" + "x" * 249, "/raft/\u00e9\u4e2d"]
)
def test_namespaces_of_any_script_and_depth_are_taken(namespace: str) -> None:
    assert Cluster(namespace).namespace == Client(namespace).namespace == namespace


def test_a_client_takes_its_addresses_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAURAFT_ADDRESSES", "/ip4/10.0.0.5/tcp/4001, /ip4/10.0.0.6/tcp/4001")
    assert Client(NAMESPACE).options.addresses == ("/ip4/10.0.0.5/tcp/4001", "/ip4/10.0.0.6/tcp/4001")
    assert Client(NAMESPACE, ["/ip4/10.0.0.7/tcp/4001"]).options.addresses == ("/ip4/10.0.0.7/tcp/4001",)
    assert Client(NAMESPACE, data_dir="here").options.addresses == ()
    assert Cluster(NAMESPACE).options.peers == ()
    monkeypatch.setenv("TAURAFT_ADDRESSES", "10.0.0.5:4001")
    with pytest.raises(errors.InvalidOption, match="TAURAFT_ADDRESSES"):
        Client(NAMESPACE)


@pytest.mark.parametrize(
    ("listen", "credentials", "is_taken"),
    [
        ("/ip4/0.0.0.0/tcp/0", {}, False),
        ("/ip4/10.0.0.5/tcp/4001", {}, False),
        ("/dns/localhost/tcp/4001", {}, False),  # whatever that is on this machine
        ("/ip6/::/tcp/0", {}, False),
        ("/ip4/127.0.0.1/tcp/0", {}, True),
        ("/ip4/127.8.9.1/tcp/0", {}, True),
        ("/ip6/::1/tcp/0", {}, True),
        ("/ip4/0.0.0.0/tcp/0", {"encryption_key": bytes(32)}, True),
        ("/ip4/0.0.0.0/tcp/0", {"allow": ["12D3KooWSomebody"]}, True),
        ("/ip4/0.0.0.0/tcp/0", {"insecure": True}, True),
    ],
)
def test_who_listens_to_the_network_without_credentials_is_refused(
    listen: str, credentials: dict[str, Any], is_taken: bool
) -> None:
    if is_taken:
        Cluster(NAMESPACE, listen=["/ip4/127.0.0.1/tcp/0", listen], **credentials)
        Node(
            data_dir="somewhere",
            listen=[listen],
            **{k: v for k, v in credentials.items() if k != "allow"} or {"insecure": True},
        )
        return
    with pytest.raises(errors.InvalidOption, match="can be reached from other machines"):
        Cluster(NAMESPACE, listen=["/ip4/127.0.0.1/tcp/0", listen], **credentials)
    with pytest.raises(errors.InvalidOption, match="can be reached from other machines"):
        Node(data_dir="somewhere", listen=[listen])


def test_a_started_cluster_says_where_it_is(host: NodeHost) -> None:
    cluster = Cluster(NAMESPACE, _open_host=host.open)
    with cluster:
        assert (cluster.peer_id, cluster.addresses, cluster.state) == ("A", ("/memory/A",), "follower")
        assert not cluster.is_leader
        assert cluster.leader is not None
        with pytest.raises(errors.NotLeader) as caught:
            cluster.apply(Put("k", b"v"), forward=False)
        assert caught.value.leader == cluster.leader
        assert cluster.apply(Put("k", b"v"), timeout=60) > 0
        for timeout in (0, -1, 60.1):
            with pytest.raises(errors.InvalidTimeout):
                cluster.apply(Put("k", b"v"), timeout=timeout)
        with Client(NAMESPACE, _open_host=host.open) as client:
            assert client.get("k") == b"v"
            assert client.session.id != cluster.session.id
    assert cluster.state == "stopped"


def test_the_async_facade_is_the_same_awaited(host: NodeHost) -> None:
    async def story() -> None:
        async with AsyncCluster(NAMESPACE, _open_host=host.open) as cluster:
            await cluster.set("k", "v")
            async with cluster.kv.batch() as batch:
                batch.put("a", b"1")
            assert await cluster.keys() == ["a", "k"]
            assert (await cluster.status()).namespace == NAMESPACE
            assert not cluster.session.lost.is_set()

    asyncio.run(story())


def test_the_committed_twins_are_what_their_sources_give() -> None:
    assert twin.drift(write=False) == []


def test_a_twin_keeps_comments_and_drops_what_only_a_loop_needs() -> None:
    source = '''"""Await ``AsyncThing``: ``await thing.go()``."""

async def go(thing: AsyncThing) -> int:  # await it
    async with thing as one:
        async for item in one:
            return (await
                    item.value())
'''
    assert twin.blocking(source, "thing.py").splitlines() == [
        "# Generated from thing.py by `python -m tauraft.twin`; change that file, not this one.",
        '"""Await ``Thing``: ``thing.go()``."""',
        "",
        "def go(thing: Thing) -> int:  # it",
        "    with thing as one:",
        "        for item in one:",
        "            return (",
        "                    item.value())",
    ]


def test_a_module_that_leans_on_a_loop_has_no_twin() -> None:
    with pytest.raises(twin.NoTwin, match=r"handle\.py:1: asyncio has no blocking form"):
        twin.blocking("import asyncio\n", "handle.py")
    assert "def go() -> None: ..." in twin.blocking("async def go() -> None: ...\n", "handle.py")
