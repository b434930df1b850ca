"""A plugin's new version rolls through a cluster that works all the while, and a replica that lacks it. Covers: SAFETY 27."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import trio

from tauraft.errors import InvalidCommand, PluginMissing, TauraftError
from tauraft.fsm import FSM, Command, Context, Query, Table, answers, applies
from tauraft.simulator.world import SimulatedNode, World, run_world

NAME = "acme.tally"


@dataclass(frozen=True, slots=True)
class Add(Command[int], fsm=NAME):
    name: str
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Upgrades(Query[int], fsm=NAME):
    """How often ``upgrade`` has run on this state."""


class TallyV1(FSM, name=NAME, version=1):
    sums: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        self.sums[command.name] = self.sums.get(command.name, 0) + command.amount
        return self.sums[command.name]

    @answers(Upgrades)
    def upgrades(self, query: Upgrades) -> int:
        return 0


class TallyV2(FSM, name=NAME, version=2):
    """Counts in tenths."""

    sums: Table[str, int]
    upgraded: Table[int, int]

    def upgrade(self, from_version: int, context: Context) -> None:
        assert from_version == 1
        self.upgraded[context.revision] = from_version
        for name, total in list(self.sums.items()):
            self.sums[name] = 10 * total

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        self.sums[command.name] = self.sums.get(command.name, 0) + 10 * command.amount
        return self.sums[command.name]

    @answers(Upgrades)
    def upgrades(self, query: Upgrades) -> int:
        return len(self.upgraded)


BOTH = (TallyV1, TallyV2)


def version_of(node: SimulatedNode) -> int:
    assert node.replica is not None
    row = node.replica.machine.system.manifest.get(NAME)
    return 0 if row is None else row.version


async def restart_with(node: SimulatedNode, plugins: Any) -> None:
    await node.kill()
    node.plugins = plugins
    node.start()


async def started(world: World) -> None:
    world.plugins = (TallyV1,)
    world.start_all()
    await world.wait_for_leader()


async def is_serving(world: World, node: SimulatedNode) -> None:
    leader = await world.wait_for_leader()
    assert leader.replica is not None
    index = leader.replica.machine.applied_index
    await world.wait_until(lambda: node.replica is not None and node.replica.machine.applied_index >= index)


@pytest.mark.parametrize("seed", range(5))
def test_a_rolling_upgrade_runs_once_while_commands_go_on(seed: int) -> None:
    async def story(world: World) -> None:
        world.snapshot_entries = world.random.choice((5, 1_000))
        await started(world)
        sums: list[int] = []
        async with world.client() as client, trio.open_nursery() as nursery:
            await client.opened()

            async def work() -> None:
                while True:
                    sums.append(await client.submit(Add("a")))
                    await trio.sleep(0.05)

            nursery.start_soon(work)
            for node in world.nodes:
                await trio.sleep(1)
                assert {version_of(other) for other in world.nodes} == {1}, "activated before every voter has it"
                await restart_with(node, BOTH)
                await is_serving(world, node)
            await world.wait_until(lambda: all(version_of(node) == 2 for node in world.nodes))
            await trio.sleep(1)
            assert await client.query(Upgrades()) == 1
            nursery.cancel_scope.cancel()
        # Each answer follows from the one before; at one place, once, the unit changes.
        steps = [after - before for before, after in pairwise(sums)]
        changes = [place for place, step in enumerate(steps) if step not in (1, 10)]
        assert len(changes) == 1
        place = changes[0]
        assert set(steps[:place]) == {1}
        assert set(steps[place + 1 :]) <= {10}
        assert sums[place + 1] == 10 * (sums[place] + 1)
        world.observe()

    run_world(seed, story)


async def upgraded_without(world: World, laggard: SimulatedNode) -> None:
    """Everyone had version 2, then ``laggard`` comes back with version 1 only, before the activation reaches it."""
    await started(world)
    others = [node for node in world.nodes if node is not laggard]
    await restart_with(laggard, BOTH)
    await is_serving(world, laggard)
    await trio.sleep(1.5)
    await laggard.kill()
    laggard.plugins = (TallyV1,)
    for node in others:
        await restart_with(node, BOTH)
        await is_serving(world, others[0])
    await world.wait_until(lambda: all(node.replica is not None and version_of(node) == 2 for node in others))


@pytest.mark.parametrize("seed", range(3))
def test_a_replica_without_the_version_stops_before_it_persists_on_and_never_leads(seed: int) -> None:
    async def story(world: World) -> None:
        laggard = world.nodes[seed]
        await upgraded_without(world, laggard)
        laggard.start()
        await world.wait_until(lambda: laggard.replica is not None and laggard.replica.stopped.is_set())
        replica = laggard.replica
        assert replica is not None
        missing = replica.driver.stopped_by
        assert isinstance(missing, PluginMissing)
        assert NAME in str(missing)
        assert "version 2" in str(missing)
        assert missing.package == __name__.partition(".")[0]
        assert version_of(laggard) == 1
        stopped_at = replica.machine.applied_index

        async with world.client() as client:
            await client.opened()
            before = replica.driver.raft.log.stable
            # With one of the others gone, its disk and its vote are needed for every commit and election.
            leader = await world.wait_for_leader()
            await leader.kill()
            for _ in range(5):
                await client.submit(Add("a"), timeout_s=30)
            await trio.sleep(2)
            assert not replica.is_leader
            assert replica.driver.raft.log.stable > before
            assert replica.machine.applied_index == stopped_at
            leader.start()
            await is_serving(world, leader)

            await restart_with(laggard, BOTH)  # the package is installed
            await world.wait_until(lambda: laggard.replica is not None and version_of(laggard) == 2)
            await is_serving(world, laggard)
        world.observe()

    run_world(seed, story)


def test_a_replica_that_is_sent_a_snapshot_of_a_version_it_lacks_keeps_it_and_votes_on() -> None:
    async def story(world: World) -> None:
        world.snapshot_entries = 5
        laggard = world.nodes[0]
        await upgraded_without(world, laggard)
        async with world.client() as client:
            await client.opened()
            for _ in range(30):
                await client.submit(Add("a"))
            laggard.start()
            await world.wait_until(lambda: laggard.replica is not None and laggard.replica.stopped.is_set())
            leader = await world.wait_for_leader()
            await leader.kill()
            total = await client.submit(Add("a"), timeout_s=30)
            assert total == 310
            assert laggard.replica is not None
            assert not laggard.replica.is_leader

    run_world(3, story)


def test_a_downgrade_of_what_a_snapshot_holds_is_refused_at_the_start() -> None:
    async def story(world: World) -> None:
        world.snapshot_entries = 5
        world.plugins = BOTH
        world.start_all()
        await world.wait_for_leader()
        async with world.client() as client:
            await client.opened()
            for _ in range(20):
                await client.submit(Add("a"))
        stopped: list[BaseException] = []
        world.may_stop = lambda node, error: node.is_doomed or stopped.append(error) is None
        await restart_with(world.nodes[0], (TallyV1,))
        await world.nodes[0].ended()
        (refusal,) = stopped
        while isinstance(refusal, BaseExceptionGroup):
            refusal = refusal.exceptions[0]
        assert isinstance(refusal, PluginMissing)
        await restart_with(world.nodes[0], BOTH)
        await is_serving(world, world.nodes[0])

    run_world(1, story)


def test_a_command_of_a_plugin_that_was_never_active_is_refused() -> None:
    @dataclass(frozen=True, slots=True)
    class Other(Command[int], fsm="acme.other"):
        pass

    async def story(world: World) -> None:
        await started(world)
        async with world.client() as client:
            await client.opened()
            with pytest.raises(TauraftError) as refused:
                await client.submit(Other())
            assert isinstance(refused.value, InvalidCommand)

    run_world(0, story)
