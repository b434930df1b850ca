"""``tauraft.Node``: many namespaces on one directory, identity and host, in one process and in several."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

import tauraft
from tests.cluster.harness import Processes, WorkerError, eventually
from tests.cluster.nodes import Nodes, roles

pytestmark = pytest.mark.middle

PLUGIN = """
from dataclasses import dataclass
from tauraft import hookimpl
from tauraft.fsm import FSM, Command, Context, Table, applies

@dataclass(frozen=True, slots=True)
class Add(Command[int], fsm="acme.counter"):
    name: str

class Counter(FSM, name="acme.counter", version=1):
    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        total = self.counts.get(command.name, 0) + 1
        self.counts[command.name] = total
        return total

@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Counter]
"""


def test_namespaces_of_one_node_share_its_identity_and_see_nothing_of_each_other(nodes: Nodes, tmp_path: Path) -> None:
    node = nodes.keep(tauraft.Node(data_dir=tmp_path / "node", preset="local"))
    with pytest.raises(tauraft.Shutdown):
        node.cluster("/raft/a").start()
    with node, node.cluster("/raft/a") as a, node.cluster("/raft/b") as b:
        assert a.peer_id == b.peer_id == node.peer_id
        assert a.addresses == b.addresses == node.addresses
        a.set("k", "of a")
        b.set("k", "of b")
        assert (a.get("k"), b.get("k")) == (b"of a", b"of b")
        assert a.delete("k")
        assert (a.get("k"), b.get("k")) == (None, b"of b")
        assert a.status().cluster_id != b.status().cluster_id
        with node.cluster("/raft/b") as same:
            assert same.get("k") == b"of b"
        assert b.get("k") == b"of b", "the other handle's end is not the namespace's"
    assert a.state == b.state == "stopped"
    with nodes.keep(tauraft.Node(data_dir=tmp_path / "node", preset="local")) as again:
        assert again.cluster("/raft/b").start().get("k") == b"of b"


def test_namespaces_over_several_nodes_are_clusters_of_their_own(nodes: Nodes, tmp_path: Path) -> None:
    opened = [nodes.keep(tauraft.Node(data_dir=tmp_path / name, preset="local")).start() for name in "abc"]
    clusters = {name: [node.cluster(f"/raft/{name}").start(timeout=30) for node in opened] for name in "xyz"}
    for name, members in clusters.items():
        eventually(lambda members=members: roles(members[0]) == ["voter"] * 3, "three voters in each namespace")
        members[0].set("k", name)
    assert [one.get("k") for one in clusters["x"]] == [b"x"] * 3
    clusters["x"][1].delete("k")
    assert [one.get("k") for one in clusters["y"]] == [b"y"] * 3
    assert {one.peer_id for one in clusters["x"]} == {one.peer_id for one in clusters["y"]}

    for number, members in enumerate(clusters.values()):
        members[0].transfer_leadership(opened[number].peer_id)
        eventually(lambda number=number, members=members: members[number].is_leader, "each node leads one of them")
    for number, members in enumerate(clusters.values()):
        assert [one.is_leader for one in members] == [place == number for place in range(3)]
        members[number - 1].set("k", str(number))
        assert [one.get("k") for one in members] == [str(number).encode()] * 3


def test_an_async_node_is_the_same_awaited(nodes: Nodes, tmp_path: Path) -> None:
    async def story() -> None:
        node = tauraft.AsyncNode(data_dir=tmp_path / "node", preset="local")
        async with node, node.cluster("/raft/a") as cluster:
            await cluster.set("k", "v")
            assert await cluster.get("k") == b"v"
            assert node.peer_id == cluster.peer_id

    asyncio.run(story())


def test_a_node_of_many_namespaces_holds_one_lock_and_one_socket(nodes: Nodes, tmp_path: Path) -> None:
    directory = tmp_path / "node"
    with nodes.keep(tauraft.Node(data_dir=directory, preset="local")) as node:
        clusters = [node.cluster(f"/raft/many/{number}").start(timeout=30) for number in range(30)]
        for number, cluster in enumerate(clusters):
            cluster.set("k", str(number))
        assert [cluster.get("k") for cluster in clusters] == [str(number).encode() for number in range(30)]
        open_files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        assert open_files.count(str(directory / "lock")) == 1
        assert (directory / "socket").is_socket()


def test_a_namespace_that_the_holder_lacks_is_opened_there_for_a_standby(processes: Processes) -> None:
    directory = str(processes.directory / "node")
    holder = processes.node("/raft/a", data_dir=directory)
    standby = processes.node("/raft/b", data_dir=directory)
    assert standby.ask("cluster.state") == "standby"
    assert standby.ask("cluster.status().holder_pid") == holder.pid
    standby.ask("cluster.set('k', 'v')")
    assert holder.ask("cluster.keys()") == []
    holder.kill()
    assert standby.ask("cluster.get('k')") == "v"
    assert eventually(lambda: standby.ask("cluster.state") == "leader", "it takes over")


def test_what_a_standby_expects_of_a_new_cluster_binds_the_holder(processes: Processes) -> None:
    directory = str(processes.directory / "node")
    processes.node("/raft/a", data_dir=directory)
    lone = processes.begin("/raft/b", data_dir=directory, expect=3, start_timeout=6)
    with pytest.raises(WorkerError, match="NoLeader"):
        lone.answer()


def test_a_standby_with_a_plugin_that_the_holder_lacks_is_told_whose_process_lacks_it(processes: Processes) -> None:
    (processes.directory / "acme.py").write_text(PLUGIN, encoding="utf-8")
    holder = processes.node()
    paths = f"{processes.directory}{os.pathsep}{processes.environment['PYTHONPATH']}"
    source = """
import tauraft, acme
try:
    with tauraft.Cluster("/raft/test", plugins=[acme]) as cluster:
        print(cluster.submit(acme.Add("x")), flush=True)
except tauraft.PluginMissing as error:
    print(error.package, error, flush=True)
"""
    (processes.directory / "with_plugin.py").write_text(source, encoding="utf-8")
    refused = processes.start(["with_plugin.py"], PYTHONPATH=paths)
    said = refused.line()
    assert said.startswith("acme.counter ") and f"process {holder.pid}" in said
    holder.kill()
    served = processes.start(["with_plugin.py"], PYTHONPATH=paths)
    assert served.line() == "1"


def test_a_standby_knows_its_leader_and_the_identity_it_stands_by_for(processes: Processes) -> None:
    holder = processes.node()
    standby = processes.node()
    peer_id = holder.ask("cluster.peer_id")
    assert standby.ask("cluster.peer_id") == peer_id
    assert standby.ask("cluster.addresses") == holder.ask("cluster.addresses")
    assert standby.ask("cluster.is_leader") is False
    leader = standby.ask("cluster.leader")
    assert leader["peer_id"] == peer_id and leader["is_leader"] and leader["host"] == os.uname().nodename
    assert leader["addresses"] == holder.ask("cluster.addresses")
