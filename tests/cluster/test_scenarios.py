"""SCENARIOS A on real nodes over libp2p: forming, forwarding, operations, membership, reboots."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import tauraft
from tauraft.fsm import Command
from tauraft_primitives.kv.messages import Put
from tests.cluster.harness import eventually
from tests.cluster.nodes import NAMESPACE, Nodes, free_port, roles

pytestmark = pytest.mark.middle


@dataclass(frozen=True, slots=True)
class Unknown(Command[None], fsm="nobody.knows"):
    name: str


def test_three_nodes_elect_one_leader_and_read_what_it_wrote(nodes: Nodes) -> None:
    leader, *followers = nodes.voters("a", "b", "c")
    assert leader.is_leader and leader.state == "leader"
    assert [node.state for node in followers] == ["follower", "follower"]
    assert {node.leader and node.leader.peer_id for node in followers} == {leader.peer_id}
    leader.set("k", "v")
    assert [node.get("k") for node in followers] == [b"v", b"v"]

    with pytest.raises(tauraft.NotLeader) as caught:
        followers[0].apply(Put("k", b"w"), forward=False)
    assert caught.value.leader is not None and caught.value.leader.peer_id == leader.peer_id
    assert leader.apply(Put("k", b"w"), forward=False) > 0

    followers[0].set("k", "through a follower")
    assert leader.get("k") == b"through a follower"
    with nodes.keep(tauraft.Client(NAMESPACE, followers[1].addresses)) as client:
        client.set("k", "through a client")
        assert client.get("k") == b"through a client"
        assert {member.peer_id for member in client.members()} == {node.peer_id for node in (leader, *followers)}


@pytest.mark.parametrize("via", ["leader", "follower"])
@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["plain", "encrypted"])
def test_the_four_operations_work_on_the_leader_and_on_a_follower(nodes: Nodes, via: str, key: bytes | None) -> None:
    leader, follower, _ = nodes.voters("a", "b", "c", encryption_key=key)
    member = leader if via == "leader" else follower
    with nodes.keep(tauraft.Client(NAMESPACE, member.addresses, encryption_key=key)) as client:
        for one in (member, client):
            assert one.get("missing") is None
            assert one.keys() == []
            one.set("text", "t")
            one.set("bytes", b"\x00\xff")
            one.set("empty", b"")
            one.set("text/2", "u")
            assert (one.get("text"), one.get("bytes"), one.get("empty")) == (b"t", b"\x00\xff", b"")
            assert one.keys() == ["bytes", "empty", "text", "text/2"]
            assert one.keys("text") == ["text", "text/2"]
            assert one.delete("text") is True
            assert one.delete("text") is False
            for wrong in (lambda one=one: one.set("", "v"), lambda one=one: one.get("")):
                with pytest.raises(tauraft.InvalidArgument):
                    wrong()
            with pytest.raises(TypeError):
                one.set("k", None)
            with pytest.raises(TypeError):
                one.set("k")
            with pytest.raises(tauraft.InvalidCommand):
                one.submit(Unknown("x"))
            for name in ("bytes", "empty", "text/2"):
                assert one.delete(name)


def test_a_node_alone_forms_a_cluster_that_later_ones_join(nodes: Nodes) -> None:
    (first,) = nodes.start("a")
    assert first.is_leader and roles(first) == ["voter"]
    first.set("k", "v")
    (second,) = nodes.start("b")
    assert second.get("k") == b"v"
    (third,) = nodes.start("c")
    assert third.get("k") == b"v"
    eventually(lambda: roles(first) == ["voter"] * 3, "three members are three voters")
    assert {node.wait_for_leader(5).peer_id for node in (first, second, third)} == {first.peer_id}


@pytest.mark.parametrize("count", [2, 3])
def test_nodes_started_at_the_same_instant_are_one_cluster(nodes: Nodes, count: int) -> None:
    started = nodes.start(*"abc"[:count])
    assert len({node.status().cluster_id for node in started}) == 1
    eventually(lambda: len(started[0].members()) == count, "all are members")
    started[0].set("k", "v")
    assert [node.get("k") for node in started] == [b"v"] * count


def test_three_nodes_staggered_by_some_hundred_milliseconds_are_one_cluster(nodes: Nodes) -> None:
    started = nodes.start("a", "b", "c", delays_s=(0, 0.2, 0.5))
    assert len({node.status().cluster_id for node in started}) == 1
    eventually(lambda: roles(started[2]) == ["voter"] * 3, "all are voters")


def test_a_node_learns_of_a_third_from_a_second(nodes: Nodes) -> None:
    (first,) = nodes.start("a", discovery=())
    second = nodes.make("b", discovery=(), peers=first.addresses).start(timeout=30)
    third = nodes.make("c", discovery=(), peers=second.addresses).start(timeout=30)
    eventually(lambda: len(third.members()) == 3, "the third was told of the first")
    assert third.wait_for_leader(5).peer_id == first.peer_id
    assert len({node.status().cluster_id for node in (first, second, third)}) == 1


def test_with_expect_nobody_forms_a_cluster_before_all_are_there(nodes: Nodes) -> None:
    lone = nodes.make("a", expect=3)
    with pytest.raises(tauraft.NoLeader, match="1 of 3 expected nodes are running"):
        lone.start(timeout=10)
    started = nodes.start("a", "b", "c", expect=3)
    assert len({node.status().cluster_id for node in started}) == 1
    assert roles(started[0]) == ["voter"] * 3


def test_a_single_node_does_all_alone(nodes: Nodes) -> None:
    (node,) = nodes.start("a")
    assert node.is_leader and node.state == "leader"
    (member,) = node.members()
    assert (member.peer_id, member.role, member.is_leader) == (node.peer_id, "voter", True)
    assert node.leader is not None and node.leader.peer_id == node.peer_id
    node.set("k", "v")
    assert (node.get("k"), node.keys(), node.delete("k")) == (b"v", ["k"], True)
    assert node.barrier(timeout=30) > 0
    with pytest.raises(tauraft.Refused, match="no other voter"):
        node.transfer_leadership()
    with pytest.raises(tauraft.Refused, match="no other voter"):
        node.transfer_leadership("12D3KooWNobody")
    with pytest.raises(tauraft.Refused, match="is no member"):
        node.add_voter("12D3KooWNobody")
    node.remove_server("12D3KooWNobody")  # not a member, as was wanted
    with pytest.raises(tauraft.Refused):
        node.remove_server(node.peer_id)
    assert node.snapshot() > 0
    assert node.status().warnings == ("survives processes, not this disk: the one voter on one disk",)


def test_barriers_and_timeouts_out_of_bounds_are_refused_before_anything_is_sent(nodes: Nodes) -> None:
    (node,) = nodes.start("a")
    revision = node.status().revision
    for seconds in (0, -1, 30.1):
        with pytest.raises(tauraft.InvalidBarrier):
            node.barrier(timeout=seconds)
    for seconds in (0, -1, 60.1):
        with pytest.raises(tauraft.InvalidTimeout):
            node.apply(Put("k", b"v"), timeout=seconds)
        with pytest.raises(tauraft.InvalidTimeout):
            node.get("k", timeout=seconds)
    assert node.status().revision == revision
    assert node.barrier(timeout=30) > revision
    assert node.apply(Put("k", b"v"), timeout=60) > revision


def test_leadership_is_transferred_from_any_member_and_the_new_leader_serves(nodes: Nodes) -> None:
    leader, follower, other = nodes.voters("a", "b", "c")
    follower.transfer_leadership(follower.peer_id)
    eventually(lambda: follower.is_leader, "the follower was given the lead")
    follower.set("k", "v")
    assert [node.get("k") for node in (leader, other)] == [b"v", b"v"]
    follower.transfer_leadership()
    eventually(lambda: not follower.is_leader and follower.leader, "another leads")
    follower.set("k", "w")


def test_members_are_removed_and_added_from_a_node_that_does_not_lead(nodes: Nodes) -> None:
    leader, follower, third = nodes.voters("a", "b", "c")
    leader.set("k", "v")
    follower.remove_server(third.peer_id)
    eventually(lambda: len(leader.members()) == 2, "the third is out")
    follower.remove_server(third.peer_id)  # once more is the same
    third.close()
    back = nodes.again(third)
    assert back.get("k") == b"v"
    eventually(lambda: roles(leader) == ["voter"] * 3, "who starts again asks for its place, and is promoted")


def test_voters_are_made_by_the_leader_and_by_a_node_that_does_not_lead(nodes: Nodes) -> None:
    started = nodes.start("a", "b", "c", max_voters=1)
    eventually(lambda: roles(started[0]) == ["voter", "learner", "learner"], "one votes, as was asked for")
    leader, second, third = sorted(started, key=lambda node: not node.is_leader)
    assert third.state == "learner"
    leader.add_voter(second.peer_id)
    third.add_voter(third.peer_id)
    assert roles(leader) == ["voter"] * 3
    third.add_voter(second.peer_id)  # once more is the same
    third.set("k", "v")
    assert leader.get("k") == b"v"


def test_a_node_that_left_and_closed_rejoins_with_its_identity(nodes: Nodes) -> None:
    leader, follower, leaving = nodes.voters("a", "b", "c")
    identity = leaving.peer_id
    leader.remove_server(identity)
    leaving.close()
    leader.set("meanwhile", "v")
    back = nodes.again(leaving)
    assert back.peer_id == identity
    assert back.get("meanwhile") == b"v"
    assert follower.get("meanwhile") == b"v"


def test_the_leader_removes_itself_cleanly(nodes: Nodes) -> None:
    leader, *others = nodes.voters("a", "b", "c")
    leader.remove_server(leader.peer_id)
    eventually(lambda: any(node.is_leader for node in others), "another leads")
    others[0].set("k", "v")
    assert len(others[0].members()) == 2


def test_a_node_that_leaves_on_close_is_no_member_any_more(nodes: Nodes) -> None:
    leader, follower, third = nodes.voters("a", "b", "c", on_close="leave")
    third.close()
    assert len(leader.members()) == 2
    leader.close()
    eventually(lambda: len(follower.members()) == 1, "the leader left too")
    follower.set("k", "v")


def test_a_node_that_looks_for_a_cluster_is_called_in_by_its_address(nodes: Nodes) -> None:
    (leader,) = nodes.start("a", discovery=())
    port = free_port()
    lone = nodes.make("b", discovery=(), expect=2, listen=[f"/ip4/127.0.0.1/tcp/{port}"])
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(lone.start, 30)
        peer_id = eventually(lambda: _peer_id(lone), "it listens, and has found nobody")
        leader.add_voter(peer_id, f"/ip4/127.0.0.1/tcp/{port}")
        starting.result()
    assert roles(leader) == ["voter", "voter"]
    assert "two voters" in " ".join(leader.status().warnings)


def _peer_id(starting: tauraft.Cluster) -> str:
    try:
        return starting.peer_id
    except tauraft.Shutdown:
        return ""


def test_a_follower_a_leader_and_all_reboot_and_nothing_is_lost(nodes: Nodes) -> None:
    leader, follower, third = nodes.voters("a", "b", "c")
    leader.set("before", "1")

    follower.close()
    leader.set("while the follower was away", "2")
    follower = nodes.again(follower)
    assert follower.get("while the follower was away") == b"2"
    assert follower.state == "follower"

    old = leader.peer_id
    leader.close()
    third.set("while the old leader was away", "3", timeout=30)
    leader = nodes.again(leader)
    assert leader.peer_id == old
    assert leader.get("while the old leader was away") == b"3"

    for node in (leader, follower, third):
        node.close()
    again = nodes.start("a", "b", "c")
    expected = ["before", "while the follower was away", "while the old leader was away"]
    assert [node.keys() for node in again] == [expected] * 3


def test_snapshots_that_another_member_left_in_the_directory_are_set_aside(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = nodes.start("a", discovery=())
    first.set("of the other", "v")
    assert first.snapshot() > 0
    first.close()
    stale = tmp_path / "a" / "raft-test" / "snapshots"
    fresh = nodes.make("b", discovery=())
    shutil.copytree(stale, tmp_path / "b" / "raft-test" / "snapshots")
    shutil.copy(tmp_path / "a" / "format", tmp_path / "b" / "format")
    for directory in (tmp_path / "b", tmp_path / "b" / "raft-test"):
        directory.chmod(0o700)
    fresh.start(timeout=20)
    assert fresh.peer_id != first.peer_id and fresh.keys() == []
    fresh.set("k", "v")
    fresh.snapshot()
    fresh.close()
    assert nodes.make("b", discovery=()).start(timeout=20).keys() == ["k"]
    assert "held snapshots of another member" in caplog.text
    assert len(list((tmp_path / "b" / "raft-test" / "snapshots-of-another-1").iterdir())) == 1


def test_every_operation_on_a_closed_cluster_says_so(nodes: Nodes) -> None:
    fresh = nodes.make("a")
    operations = {
        "set": lambda c: c.set("k", "v"),
        "get": lambda c: c.get("k"),
        "delete": lambda c: c.delete("k"),
        "keys": lambda c: c.keys(),
        "apply": lambda c: c.apply(Put("k", b"v")),
        "submit": lambda c: c.submit(Put("k", b"v")),
        "barrier": lambda c: c.barrier(),
        "status": lambda c: c.status(),
        "members": lambda c: c.members(),
        "wait_for_leader": lambda c: c.wait_for_leader(1),
        "add_voter": lambda c: c.add_voter("x"),
        "remove_server": lambda c: c.remove_server("x"),
        "transfer_leadership": lambda c: c.transfer_leadership(),
        "snapshot": lambda c: c.snapshot(),
        "sql": lambda c: c.sql("select 1"),
        "lock": lambda c: c.lock("l").acquire(),
        "kv.items": lambda c: c.kv.items(),
        "session": lambda c: c.session.id,
        "transaction": lambda c: c.transaction(Put("k", b"v")),
    }
    for name, operation in operations.items():
        with pytest.raises(tauraft.Shutdown) as caught:
            operation(fresh)
        assert not isinstance(caught.value, tauraft.AlreadyClosed), name
    fresh.start(timeout=30)
    fresh.close()
    fresh.close()
    assert fresh.state == "stopped" and fresh.leader is None and not fresh.is_leader
    for name, operation in operations.items():
        with pytest.raises(tauraft.AlreadyClosed):
            operation(fresh)
        assert name
    with pytest.raises(tauraft.AlreadyClosed):
        fresh.start()


def test_without_a_quorum_waiting_ends_cleanly_and_says_who_is_missing(nodes: Nodes) -> None:
    leader, follower, third = nodes.voters("a", "b", "c")
    leader.set("k", "v")
    follower.close()
    third.close()
    eventually(lambda: leader.state != "leader", "it steps down when it hears no quorum")
    with pytest.raises(tauraft.NoLeader):
        leader.wait_for_leader(0.5)
    time.sleep(3)
    with pytest.raises(tauraft.NoLeader, match=r"waiting: 1 of 3 members running \(.* not reachable\)"):
        leader.set("k", "w", timeout=0.5)
    assert leader.kv.get("k", consistency="stale").value == b"v"
    assert any(text.startswith("waiting: 1 of 3") for text in leader.status().warnings)
