"""The simulated world itself: time that must move, and single faults with what must follow.

Covers: SAFETY 18.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio

from tauraft.fsm import FSM, Command, Context, applies
from tauraft.simulator.world import SeedFailed, World, run_world


def test_a_world_in_which_time_stands_still_is_reported_with_its_seed() -> None:
    async def story(world: World) -> None:
        while True:
            await trio.lowlevel.checkpoint()

    with pytest.raises(SeedFailed, match=r"seed 5: Livelock.*time stands still"):
        run_world(5, story)


def test_a_leader_cut_off_with_a_due_timer_sleeps_until_a_quorum_is_back() -> None:
    """It proposed the tick, could not commit it, and woke for the same timer without end."""

    async def story(world: World) -> None:
        world.start_all()
        leader = await world.wait_for_leader()
        async with world.client(ttl_s=1.0) as client:
            await client.opened()
        # The client is gone and its session's expiry is the timer: it comes due within the leader's last second.
        await trio.sleep(0.6)
        others = [node.peer_id for node in world.nodes if node is not leader]
        world.network.partition([leader.peer_id], others)
        await trio.sleep(5)
        world.network.heal()
        await world.wait_until(lambda: _no_session_is_left(world))

    for seed in range(3):
        run_world(seed, story)


def _no_session_is_left(world: World) -> bool:
    return all(node.replica is not None and not len(node.replica.machine.sessions) for node in world.nodes)


@dataclass(frozen=True, slots=True)
class Who(Command[str], fsm="test.who"): ...


class Proposers(FSM, name="test.who", version=1):
    @applies(Who)
    def who(self, command: Who, context: Context) -> str:
        return context.proposer


def test_an_entry_names_the_leader_that_proposed_it_whoever_forwarded_the_command() -> None:
    async def story(world: World) -> None:
        world.plugins = (Proposers,)
        world.start_all()
        said = []
        async with world.client() as client:
            await client.opened()
            for _ in range(3):
                leader = await world.wait_for_leader()
                said.append(await client.submit(Who()))
                assert said[-1] == leader.peer_id
                others = [node.peer_id for node in world.nodes if node is not leader]
                world.network.partition([leader.peer_id], others)
                await world.wait_until(lambda was=leader: world.leader not in (was, None))  # type: ignore[misc]
                world.network.heal()
                await trio.sleep(1)
        assert len(set(said)) > 1

    run_world(1, story)
