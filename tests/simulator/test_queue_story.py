"""A queue on three nodes that crash, with consumers that die in the middle of their work. Covers: G queue-delivery, F client-killed."""

from __future__ import annotations

from collections import Counter as Tally

import pytest
import trio

from tauraft.errors import Refused, TauraftError
from tauraft.simulator.world import World, run_world
from tauraft_primitives.queues.messages import Ack, Enqueue, Length, TakeItems

ITEMS = 40


@pytest.mark.middle
@pytest.mark.parametrize("seed", range(2))
def test_every_item_ends_once_whoever_dies(seed: int) -> None:
    run_world(seed, story)


async def story(world: World) -> None:
    acknowledged: Tally[str] = Tally()
    refused = 0
    world.start_all()
    await world.wait_for_leader()

    async def consume() -> None:
        nonlocal refused
        while True:
            async with world.client(ttl_s=2.0) as client:
                with trio.move_on_after(world.random.uniform(1, 6)):  # then it is gone, without a word
                    try:
                        while True:
                            take = TakeItems("jobs", visibility=1.0, count=2, wait=True)
                            for item in await client.submit(take, timeout_s=30, waits=True):
                                await trio.sleep(world.random.uniform(0, 1.3))
                                try:
                                    await client.submit(Ack(item.token), timeout_s=30)
                                except Refused:
                                    refused += 1
                                else:
                                    acknowledged[item.id] += 1
                    except TauraftError:
                        pass  # its session is lost: a new one

    async def crash_nodes() -> None:
        while True:
            await trio.sleep(world.random.uniform(3, 8))
            node = world.leader or world.nodes[0]
            await node.cut_power()
            await trio.sleep(world.random.uniform(0.5, 2))
            node.start()

    async with world.client() as producer, trio.open_nursery() as others:
        await producer.opened()
        for _ in range(5):
            others.start_soon(consume)
        others.start_soon(crash_nodes)
        for number in range(ITEMS):
            await producer.submit(
                Enqueue("jobs", b"x", str(number), group=f"g{number % 2}" if number % 4 else None), 60.0
            )
        with trio.fail_after(1_000):
            while await producer.query(Length("jobs"), 60.0):
                await trio.sleep(1)
        others.cancel_scope.cancel()
    assert max(acknowledged.values()) == 1
    assert refused, "no claim ever ran out: nothing was put to the test"
    await world.wait_until(lambda: all(node.replica is not None for node in world.nodes) or _start_all(world))
    leader = await world.wait_for_leader()
    assert leader.replica is not None
    rows = leader.replica.machine._fsms["tauraft.queues"].items  # type: ignore[attr-defined]
    assert {key[1]: row.state for key, row in rows.items()} == {str(number): "acked" for number in range(ITEMS)}
    assert set(acknowledged) <= {str(number) for number in range(ITEMS)}
    await world.wait_until(lambda: len({_applied(node) for node in world.nodes}) == 1)
    world.observe()


def _start_all(world: World) -> bool:
    for node in world.nodes:
        if not node.is_running:
            node.start()
    return False


def _applied(node: object) -> int:
    return node.replica.machine.applied_index  # type: ignore[attr-defined, no-any-return]
