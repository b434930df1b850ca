"""A member is a peer and the disk it was made with: what is meant for another one is dropped and answered; copies and older
copies of a disk are found and taken out of service (SAFETY 14)."""

from __future__ import annotations

import copy

import msgpack
import pytest

from tauraft.core.messages import Heartbeat, Member, TimeoutNow
from tauraft.errors import DataDirectoryError
from tauraft.node import heartbeats, wire
from tauraft.node.heartbeats import Finding, LeaderSays, MemberSays, Watch
from tauraft.node.opening import load_member
from tauraft.simulator.world import World, run_world
from tauraft_primitives.kv.messages import Get, Put
from tests.node.cluster import CLUSTER_ID, Cluster

A, B, C = (Member(letter, 1) for letter in "abc")


def says(boot: int, last_index: int, *, is_tail_suspect: bool = False) -> MemberSays:
    return MemberSays(1, 0, 0, boot, last_index, is_tail_suspect)


# ---- the watch ----


def test_a_log_shorter_than_what_it_acknowledged_is_a_restored_one_unless_it_says_what_it_lost() -> None:
    watch = Watch()
    watch.start_round({B: 10})
    assert watch.heard(B, says(1, 10)) is Finding.SOUND
    assert watch.heard(B, says(1, 9)) is Finding.RESTORED
    assert watch.heard(B, says(1, 9, is_tail_suspect=True)) is Finding.LOST_TAIL
    assert watch.heard(C, says(1, 0)) is Finding.SOUND, "it never acknowledged anything"


def test_a_process_that_comes_back_after_another_had_its_place_is_a_copy() -> None:
    watch = Watch()
    boots = [1, 1, 2, 2, 3, 2]
    found = [watch.heard(B, says(boot, 0)) for boot in boots]
    assert found == [Finding.SOUND] * 5 + [Finding.CLONED]


def test_restarts_are_no_copies() -> None:
    watch = Watch()
    assert all(watch.heard(B, says(boot, 0)) is Finding.SOUND for boot in range(1_000))


@pytest.mark.parametrize("given", [LeaderSays(1, 2, 3, 4, 5, b"d"), MemberSays(1, 2, 3, 4, 5, True, 7, b"d")])
def test_what_heartbeats_carry_comes_out_as_it_went_in_and_nothing_else_does(given: LeaderSays | MemberSays) -> None:
    assert heartbeats.decode(type(given), given.encode()) == given
    values = msgpack.unpackb(given.encode())
    for wrong in ([*values, 1], values[:-1], [str(values[0]), *values[1:]], 5, [None] * len(values)):
        with pytest.raises(wire.WireError):
            heartbeats.decode(type(given), msgpack.packb(wrong))


# ---- messages for another incarnation ----


def answers_to(cluster: Cluster, sender: str) -> list[list[object]]:
    return [wire.items(frame) for _, to, frame in cluster.frames if to == sender and frame[0] == wire.MISMATCH]


@pytest.mark.parametrize(
    ("sender", "to"),
    [(B, Member("a", 99)), (Member("b", 99), A)],
    ids=["meant for another disk of mine", "from another disk than the member's"],
)
def test_a_message_of_another_incarnation_has_no_effect_and_is_answered(sender: Member, to: Member) -> None:
    cluster = Cluster("abc").start()
    replica = cluster["a"]
    frame = wire.encode_message(TimeoutNow(sender, to, 0, CLUSTER_ID))
    for _ in range(3):
        replica.driver.frames_received("b", [frame])
        replica.driver.turn()
    assert answers_to(cluster, "b") == [[CLUSTER_ID, 1, sender.incarnation, 1]], "once a second at most"


def test_another_clusters_message_is_not_answered() -> None:
    cluster = Cluster("abc").start()
    frame = wire.encode_message(Heartbeat(B, Member("a", 99), 1, b"another cluster.", 0))
    cluster["a"].driver.frames_received("b", [frame])
    cluster["a"].driver.turn()
    assert cluster.frames == []


def test_who_is_answered_knows_and_says_it() -> None:
    cluster = Cluster("abc").start()
    leader = cluster.elect("a").driver
    leader.frames_received("b", [wire.pack(wire.MISMATCH, [CLUSTER_ID, 99, 1, 1])])
    leader.frames_received("c", [wire.pack(wire.MISMATCH, [CLUSTER_ID, 1, 1, 99])])
    leader.turn()
    assert "another disk" in leader.warnings["b"] and "replaced" in leader.warnings["c"]


def test_a_disk_that_comes_back_empty_takes_the_place_of_the_old_one_in_one_change() -> None:
    async def story(world: World) -> None:
        world.start_all()
        leader = await world.wait_for_leader()
        lost = next(node for node in world.nodes if node is not leader)
        await lost.cut_power()
        assert leader.replica is not None
        replica = leader.replica
        seen = []
        replica.driver.on_membership = lambda membership: seen.append(sorted(membership.all_members()))
        old, new = Member(lost.peer_id, lost.number + 1), Member(lost.peer_id, 99)
        await replica.add(new, is_voter=False, timeout_s=10)
        assert new in seen[0] and old not in replica.driver.raft.membership.voters
        assert old not in replica.driver.raft.membership.all_members()

    run_world(5, story)


# ---- copies ----


def test_a_restored_backup_is_taken_out_of_service_for_good_and_nothing_is_lost() -> None:
    async def story(world: World) -> None:
        world.start_all()
        leader = await world.wait_for_leader()
        old = next(node for node in world.nodes if node is not leader)
        world.may_stop = lambda node, error: node is old
        async with world.client(ttl_s=60) as client:
            await client.opened()
            await client.submit(Put("before", b"1"))
            await old.kill()
            backup = copy.deepcopy(old.disk)
            old.start()
            await client.submit(Put("after", b"2"))
            assert leader.replica is not None
            raft = leader.replica.driver.raft
            await world.wait_until(lambda: set(raft.acknowledged().values()) == {raft.log.last_index})
            await old.kill()
            old.disk = backup
            old.start()
            await world.wait_until(lambda: not old.is_running)
            with pytest.raises(DataDirectoryError, match="halted for good"):
                load_member(old.disk, "/node")
            await leader.cut_power()
            leader.start()
            entry = await client.query(Get("after"), timeout_s=30)
            assert entry is not None and entry.value == b"2"

    run_world(6, story)


def test_only_its_leader_takes_a_member_out_of_service() -> None:
    cluster = Cluster("abc").start()
    cluster.elect("a")
    frame = wire.pack(wire.EXCLUDED, [CLUSTER_ID, 1, "an older copy"])
    for sender, text in (("b", frame), ("a", wire.pack(wire.EXCLUDED, [CLUSTER_ID, 99, "of another disk"]))):
        cluster["c"].driver.frames_received(sender, [text])
        cluster["c"].driver.turn()
    cluster["c"].driver.frames_received("a", [frame])
    with pytest.raises(DataDirectoryError, match="an older copy"):
        cluster["c"].driver.turn()
    with pytest.raises(DataDirectoryError, match="an older copy"):
        load_member(cluster.nodes["c"].files, "/node")


def test_two_copies_that_answer_in_turns_are_both_told() -> None:
    cluster = Cluster("abc").start()
    leader = cluster.elect("a")
    driver = leader.driver
    copied = cluster["b"].driver
    first = copied._boot
    for boot in (first, 12345):
        copied._boot = boot
        cluster.tick()
    assert not driver.warnings
    copied._boot = first
    with pytest.raises(DataDirectoryError, match="copies of its disk"):
        cluster.tick(2)
    assert "copies of its disk" in driver.warnings["b"]
    assert "Move the namespace's folder in its data directory away" in driver.warnings["b"]
    assert cluster.nodes["b"].files.exists("/node/halted")
