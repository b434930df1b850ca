"""A full disk suspends a replica until there is space; a failed sync ends it (SAFETY 32). Corruption and lost tails: SAFETY 23."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tauraft.errors import DataDirectoryError, Suspended, TauraftError
from tauraft.payloads import decode_answer, encode_message
from tauraft.simulator.world import NAMESPACE, SimulatedClient, SimulatedNode, World, run_world
from tauraft.storage.log_store import StorageFailed, StorageFull
from tauraft.storage.segment_log import SegmentLog
from tauraft.transport.transport import MessageStream
from tauraft_primitives.kv.messages import Get, Put


class ClientOf(SimulatedClient):
    """One that knows a single node, as the processes of its host do."""

    def __init__(self, world: World, node: SimulatedNode) -> None:
        super().__init__(world, f"client-of-{node.peer_id}", 10)
        self.node = node

    async def _open_stream(self, leader: Any) -> MessageStream:
        stream: MessageStream = await self.transport.connect(
            NAMESPACE, peer_id=self.node.peer_id, addresses=[f"/memory/{self.node.peer_id}"]
        )
        return stream


async def fill(world: World, client: SimulatedClient, number: int = 20) -> None:
    for count in range(number):
        await client.submit(Put(f"key-{count}", b"x" * 5_000))


def a_story(story: Callable[[World], Awaitable[None]], *, replicas: int = 3, snapshot_entries: int = 10_000) -> None:
    async def whole(world: World) -> None:
        world.snapshot_entries = snapshot_entries
        world.start_all()
        await world.wait_for_leader()
        await story(world)

    run_world(11, whole, replicas=replicas)


def suspended(node: SimulatedNode) -> bool:
    return node.replica is not None and node.replica.suspension is not None


def make_full(node: SimulatedNode) -> None:
    node.disk.set_capacity(node.disk.used_bytes)


def make_room(node: SimulatedNode) -> None:
    node.disk.set_capacity(1 << 40)


def test_a_leader_whose_disk_is_full_makes_way_and_the_cluster_serves_on() -> None:
    async def story(world: World) -> None:
        full = await world.wait_for_leader()
        async with world.client() as client:
            await client.opened()
            await client.submit(Put("before", b"1"))
            make_full(full)
            await fill(world, client, 30)
            assert suspended(full) and full.is_up
            assert full.replica is not None and not full.replica.is_leader
            leader = await world.wait_for_leader()
            assert leader is not full
            await client.submit(Put("meanwhile", b"2"))
            make_room(full)
            await world.wait_until(lambda: not suspended(full))
            assert leader.replica is not None
            there, here = leader.replica.machine, full.replica.machine
            await world.wait_until(lambda: here.applied_index >= there.applied_index)
            assert here.tables.digest() == there.tables.digest()

    a_story(story)


def test_while_the_disk_is_full_its_own_clients_are_told_and_may_read_what_is_there() -> None:
    async def story(world: World) -> None:
        leader = await world.wait_for_leader()
        node = next(node for node in world.nodes if node is not leader)
        async with world.client() as other, ClientOf(world, node) as client:
            await other.opened()
            await client.opened()
            await client.submit(Put("before", b"1"))
            assert node.replica is not None
            # The memory network's streams are those of strangers; this one is of the host, and has nowhere else to go.
            mark_as_local(node)
            make_full(node)
            with trio.move_on_after(3):
                await fill(world, other, 30)
            await world.wait_until(lambda: suspended(node))
            with pytest.raises(Suspended) as told:
                await client.submit(Put("now", b"2"))
            assert told.value.outcome == "not-applied" and "disk" in str(told.value)
            with pytest.raises(Suspended):
                await client.query(Get("before"))
            entry = await ask_stale(client, Get("before"))
            assert entry is not None and entry.value == b"1"
            make_room(node)
            await world.wait_until(lambda: not suspended(node))
            assert await client.submit(Put("after", b"3")) is not None

    a_story(story)


def mark_as_local(node: SimulatedNode) -> None:
    for end in node.service._ends:
        end.is_of_host = True


async def ask_stale(client: SimulatedClient, query: Any) -> Any:
    done = trio.Event()
    told: list[Any] = []

    def finish(data: bytes | None, error: BaseException | None) -> None:
        told.extend((data, error))
        done.set()

    client.connector.session.ask(
        encode_message(query), None, consistency="stale", timeout_ns=5_000_000_000, done=finish
    )
    await done.wait()
    if told[1] is not None:
        raise told[1]
    return decode_answer(query, told[0])


def test_a_client_from_elsewhere_goes_to_another_replica() -> None:
    async def story(world: World) -> None:
        leader = await world.wait_for_leader()
        node = next(node for node in world.nodes if node is not leader)
        async with world.client() as client:
            await client.opened()
            make_full(node)
            await fill(world, client, 30)
            await client.submit(Put("last", b"1"))
            assert client.connector.session.replica != node.peer_id

    a_story(story)


def test_when_all_disks_are_full_nothing_is_acknowledged_and_all_come_back_by_themselves() -> None:
    async def story(world: World) -> None:
        async with world.client(ttl_s=120) as client:
            await client.opened()
            await client.submit(Put("before", b"1"))
            for node in world.nodes:
                make_full(node)
            acknowledged = 0
            with pytest.raises(TauraftError):
                for number in range(100):
                    await client.submit(Put(f"key-{number}", b"x" * 5_000), timeout_s=3)
                    acknowledged += 1
            assert acknowledged < 100
            await trio.sleep(5)
            for node in world.nodes:
                make_room(node)
            await world.wait_until(lambda: not any(map(suspended, world.nodes)))
            await client.submit(Put("after", b"1"), timeout_s=30)
            for number in range(acknowledged):
                assert await client.query(Get(f"key-{number}")) is not None

    a_story(story)


def test_a_snapshot_that_finds_no_space_waits_and_stops_nothing() -> None:
    async def story(world: World) -> None:
        leader = await world.wait_for_leader()
        assert leader.replica is not None
        async with world.client(ttl_s=60) as client:
            await client.opened()
            make_full(leader)
            # The log's segment is there already; the snapshot's files are not.
            for number in range(30):
                await client.submit(Put("key", b"%d" % number))
            assert leader.is_up and not suspended(leader)
            with pytest.raises(StorageFull):
                await leader.replica.take_snapshot()
            make_room(leader)
            await trio.sleep(15)
            await client.submit(Put("key", b"again"))
            await world.wait_until(lambda: bool(leader.disk.list_directory("/node/snapshots")))

    a_story(story, snapshot_entries=20)


def test_a_failed_sync_stops_the_node_and_is_not_tried_again() -> None:
    async def story(world: World) -> None:
        leader = await world.wait_for_leader()
        world.may_stop = lambda node, error: node is leader
        async with world.client() as client:
            await client.opened()
            await client.submit(Put("before", b"1"))
            leader.disk.fail_syncs(1)
            await client.submit(Put("after", b"2"))
            assert not leader.is_up
            error: BaseException | None = leader.stopped_by
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            assert isinstance(error, StorageFailed)
            entry = await client.query(Get("before"))
            assert entry is not None

    a_story(story)


# ---- a tail that may have been acknowledged (SAFETY 23) ----


def damage_tail(node: SimulatedNode) -> None:
    """Flip a byte within the last record of the log; its header and trailer stay."""
    names = sorted(name for name in node.disk.list_directory("/node/log") if name.endswith(".segment"))
    for name in reversed(names):
        path = f"/node/log/{name}"
        file = node.disk.open(path)
        content = file.read(0, file.size())
        file.close()
        end = len(content.rstrip(b"\0"))
        if not end:
            continue
        # Well within the last record, which holds a value of thousands of bytes.
        node.disk.flip(path, end - 2_000)
        log = SegmentLog("/node/log", files=node.disk, segment_bytes=1 << 16, must_exist=True)
        assert log.open().is_tail_suspect
        log.close()
        return


def test_a_voter_whose_tail_may_be_lost_votes_only_after_a_leader_has_resynced_it() -> None:
    async def story(world: World) -> None:
        leader = await world.wait_for_leader()
        lost, third = (node for node in world.nodes if node is not leader)
        async with world.client(ttl_s=60) as client:
            await client.opened()
            # The third has not got what the other two acknowledge.
            world.network.cut(leader.peer_id, third.peer_id)
            world.network.cut(lost.peer_id, third.peer_id)
            await client.submit(Put("acknowledged", b"x" * 8_000))
            await lost.cut_power()
            await leader.cut_power()
            damage_tail(lost)
            world.network.heal()
            lost.start()
            await trio.sleep(20)
            assert world.leader is None, "the third must not lead: it lacks what was acknowledged"
            assert lost.replica is not None
            assert lost.replica.driver.is_tail_suspect
            assert any("does not vote" in line for line in (await lost.replica.call("status", {}))["warnings"])
            leader.start()
            await world.wait_for_leader()
            await world.wait_until(lambda: lost.replica is not None and not lost.replica.driver.is_tail_suspect)
            await leader.cut_power()
            await world.wait_for_leader()
            entry = await client.query(Get("acknowledged"), timeout_s=30)
            assert entry is not None and entry.value == b"x" * 8_000

    a_story(story)


def test_a_leader_sends_again_what_a_follower_lost_after_acknowledging_it() -> None:
    async def story(world: World) -> None:
        leader = await world.wait_for_leader()
        lost = next(node for node in world.nodes if node is not leader)
        async with world.client(ttl_s=60) as client:
            await client.opened()
            await client.submit(Put("acknowledged", b"x" * 8_000))
            assert leader.replica is not None
            raft = leader.replica.driver.raft
            await world.wait_until(lambda: all(m == raft.log.last_index for m in raft.acknowledged().values()))
            await lost.cut_power()
            damage_tail(lost)
            lost.start()
            await world.wait_until(lambda: lost.replica is not None and not lost.replica.driver.is_tail_suspect)
            assert not lost.disk.exists("/node/halted")
            assert world.leader is leader, "the same leader did it"

    a_story(story)


def test_a_lone_voter_whose_tail_may_be_lost_refuses_and_names_the_way_out() -> None:
    async def story(world: World) -> None:
        (node,) = world.nodes
        world.may_stop = lambda node, error: True
        async with world.client(ttl_s=60) as client:
            await client.opened()
            await client.submit(Put("acknowledged", b"x" * 8_000))
        await node.cut_power()
        damage_tail(node)
        node.start()
        await world.wait_until(lambda: not node.is_running)
        error: BaseException | None = node.stopped_by
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, DataDirectoryError) and "tauraft recover" in str(error)

    a_story(story, replicas=1)
