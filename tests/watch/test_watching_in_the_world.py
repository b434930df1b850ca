"""Watches on three nodes under one seed: links cut, nodes crashed, replicas that lag, snapshots installed. Covers: SAFETY 30."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import trio

from tauraft.errors import TauraftError
from tauraft.handle import Frame, RowChange, State
from tauraft.node.change_log import RevisionChanges
from tauraft.simulator.world import SimulatedClient, SimulatedNode, World, run_world
from tauraft.tables import ABSENT
from tauraft.watch import WINDOW_BYTES, WatchRequest, watch_request
from tests.watch.board import NOTES, Board, Clear, Note, Pin, PinMany
from tests.watch.roamer import Roamer

TABLE = "acme.board/notes"


def request(**options: Any) -> WatchRequest:
    given: dict[str, Any] = {"key": None, "low": None, "high": None, "since_revision": None, "with_state": False}
    return watch_request(NOTES, **(given | options))


def expected(node: SimulatedNode, after: int, low: str = "", high: str = "\U0010ffff") -> list[Frame[str, Note]]:
    """What a replica that never stopped has, as a watch would tell it."""
    assert node.replica is not None
    log = node.replica.machine.change_log
    assert log.base <= after, "the truth is gone: the test writes too much"
    found = [
        Frame(frame.revision, frame.session, frame.now_ns, changes)
        for frame in log.frames(log.number_after(after))
        if (changes := _changes(frame, low, high))
    ]
    return [frame for frame in found if frame.revision > after]


def _changes(frame: RevisionChanges, low: str, high: str) -> tuple[RowChange[str, Note], ...]:
    return tuple(
        RowChange(key, None if old is ABSENT else old, None if new is ABSENT else new)
        for table, key, old, new in frame.changes
        if table == TABLE and low <= key < high
    )


async def write(client: SimulatedClient, random: Random, size: int = 20) -> None:
    """One random command; what cannot be said now may still happen, once."""
    name = random.choice("abcdef")
    command: Any = random.choice(
        [
            Pin(name, "x" * random.randrange(size)),
            PinMany(name, random.randrange(5), "y"),
            Clear(name),
            Pin("one", name),
        ]
    )
    try:
        await client.submit(command, timeout_s=20)
    except TauraftError:
        pass


async def caught_up(world: World, nodes: Sequence[SimulatedNode]) -> None:
    def level() -> bool:
        indexes = {node.replica.applied_index if node.replica else -1 for node in nodes}
        return len(indexes) == 1 and -1 not in indexes

    await world.wait_until(level, 60)


@pytest.mark.middle
def test_reconnected_a_hundred_times_on_other_nodes_a_watch_has_no_gap_and_no_duplicate() -> None:
    async def story(world: World) -> None:
        random = Random(world.seed)
        world.plugins = [Board]
        world.snapshot_entries = 100_000
        world.start_all()
        await world.wait_for_leader()
        truth = world.nodes[2]  # never stopped: it has every frame
        world._clients += 1
        async with world.client() as writer, Roamer(world, "roamer", 10.0) as roamer, trio.open_nursery() as nursery:
            await writer.opened()
            await roamer.opened()
            await writer.submit(Pin("a", "before"))
            all_of_it = await roamer.watch(request())
            one = await roamer.watch(request(key="one"))
            some = await roamer.watch(request(low="b", high="d"))
            assert truth.replica is not None
            began = all_of_it.subscription._cursor
            assert began is not None
            for watched in (all_of_it, one, some):
                nursery.start_soon(watched.read_on)
            used: dict[str, int] = {}
            cuts = crashes = 0
            while cuts < 100:
                for _ in range(random.randrange(6)):
                    await write(writer, random)
                used[roamer.attached_to] = used.get(roamer.attached_to, 0) + 1
                victim = world.nodes[random.randrange(2)]
                if cuts % 10 == 5 and victim.is_up and all(node.is_up for node in world.nodes):
                    crashes += 1
                    await random.choice([victim.kill, victim.cut_power])()
                    victim.start()
                await roamer.cut()
                cuts += 1
                await trio.sleep(random.choice([0, 0.001, 0.05, 0.4]))
            for _ in range(5):
                await write(writer, random)
            await caught_up(world, world.nodes)
            await trio.sleep(5)
            assert len(used) == 3 and min(used.values()) >= 10 and crashes >= 5
            for watched, low, high in ((all_of_it, "", "\U0010ffff"), (one, "one", "one\0"), (some, "b", "d")):
                assert watched.seen == expected(truth, began[1], low, high)
            assert len(all_of_it.seen) > 100
            nursery.cancel_scope.cancel()

    for seed in range(3):
        run_world(seed, story)


def test_a_slow_watcher_costs_bounded_memory_on_both_sides() -> None:
    async def story(world: World) -> None:
        world.plugins = [Board]
        world.start_all()
        await world.wait_for_leader()
        for node in world.nodes:
            assert node.replica is not None
            node.replica.machine.change_log._max_bytes = 1 << 20
        async with world.client() as writer, Roamer(world, "roamer", 10.0) as roamer:
            await writer.opened()
            await roamer.opened()
            slow = await roamer.watch(request())
            slow.is_reading = False
            text = "x" * 20_000
            for number in range(400):
                last = await writer.submit(Pin(f"{number % 10}", text))
                if number % 100 == 50:
                    await roamer.cut()
                slow.read()
            await trio.sleep(5)
            slow.read()
            assert slow.most_buffered <= WINDOW_BYTES + (64 << 10) + len(text) * 2
            for node in world.nodes:
                assert node.replica is not None
                assert node.replica.machine.change_log._bytes <= 1 << 20
            slow.is_reading = True
            for _ in range(100):
                slow.read()
                await trio.sleep(0.1)
            *frames, state = slow.seen
            assert isinstance(state, State)
            assert state.revision >= last
            assert len(state.rows) == 10
            assert frames and all(isinstance(frame, Frame) for frame in frames)
            later = await writer.submit(Pin("later", "x"))
            await trio.sleep(1)
            slow.read()
            assert slow.seen[-1].revision == later

    run_world(1, story)


def test_a_replica_that_lags_behind_the_cursor_waits_rather_than_resyncs() -> None:
    async def story(world: World) -> None:
        world.plugins = [Board]
        world.start_all()
        leader = await world.wait_for_leader()
        followers = [node for node in world.nodes if node is not leader]
        async with world.client() as writer, Roamer(world, "roamer", 60.0) as roamer:
            await writer.opened()
            await roamer.opened()
            while roamer.attached_to != leader.peer_id:
                await roamer.cut()
                await trio.sleep(0.5)
            watched = await roamer.watch(request())
            lagging = world.nodes[(roamer.links + 1) % 3]
            assert lagging in followers
            # Peers of it are gone; clients still reach it.
            others = [node.peer_id for node in world.nodes if node is not lagging]
            world.network.partition([lagging.peer_id, "roamer"], [*others, "client-1"])
            world.network.heal()
            await writer.submit(Pin("a", "one"))
            await trio.sleep(1)
            watched.read()
            assert len(watched.seen) == 1
            world.network.partition([lagging.peer_id, "roamer"], [*others, "client-1"])
            await writer.submit(Pin("a", "two"), timeout_s=30)
            await roamer.cut()
            await trio.sleep(3)
            watched.read()
            assert len(watched.seen) == 1
            world.network.heal()
            await trio.sleep(10)
            watched.read()
            assert [type(frame) for frame in watched.seen] == [Frame, Frame]

    run_world(3, story)


def test_a_snapshot_that_is_installed_tells_the_state_to_whoever_watches_there() -> None:
    async def story(world: World) -> None:
        world.plugins = [Board]
        world.snapshot_entries = 40
        world.start_all()
        leader = await world.wait_for_leader()
        async with world.client() as writer, Roamer(world, "roamer", 600.0) as roamer:
            await writer.opened()
            await roamer.opened()
            while roamer.attached_to == leader.peer_id:
                await roamer.cut()
                await trio.sleep(0.5)
            watched = await roamer.watch(request())
            absent = next(node for node in world.nodes if node.peer_id == roamer.attached_to)
            roamer.stays_with = absent.peer_id
            await writer.submit(Pin("before", "x"))
            await trio.sleep(1)
            await absent.kill()
            for number in range(700):  # more than a leader keeps at hand
                last = await writer.submit(Pin(f"{number:03}", "y"), timeout_s=30)
            absent.start()
            await trio.sleep(20)
            assert absent.replica is not None
            assert absent.replica.machine.change_log.restarts == 1
            later = await writer.submit(Pin("later", "x"))
            await trio.sleep(2)
            watched.read()
            first, state, *rest = watched.seen
            assert isinstance(first, Frame)
            assert isinstance(state, State)
            assert first.revision < state.revision
            assert state.revision >= last - 40
            told = [key for key, _ in state.rows]
            told += [change.key for frame in rest if isinstance(frame, Frame) for change in frame.changes]
            assert sorted(told) == sorted(["before", *[f"{n:03}" for n in range(700)], "later"])
            assert rest[-1].revision == later

    run_world(5, story)
