"""Cron on three nodes whose leader changes all the time, with runners that die while they run. Covers: G cron-rows."""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
import trio

from tauraft.errors import Refused, SessionLost, TauraftError
from tauraft.simulator.checkers.exclusion import Exclusion
from tauraft.simulator.world import SimulatedClient, World, run_world
from tauraft_plugins.cron import fsm as cron_fsm
from tauraft_primitives.cron.messages import Assigned, Declare, Finish, Pause, Policy, Register, Serve, Start
from tauraft_primitives.cron.specs import read_spec

OVER = ("OK", "FAILED", "LOST", "SKIPPED")


@dataclass
class Story:
    jobs: int
    seconds: int
    leader_changes: int
    exclusion: Exclusion = field(default_factory=Exclusion)
    finished: Tally[tuple[str, datetime]] = field(default_factory=Tally)
    changed: int = 0
    rows: int = 0
    skipped: int = 0
    again: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"job-{number}" for number in range(self.jobs))

    async def play(self, world: World) -> None:
        world.start_all()
        await world.wait_for_leader()
        async with world.client(ttl_s=1e6) as operator, trio.open_nursery() as others:
            await operator.opened()
            for number, name in enumerate(self.names):
                policy = Policy(run_on="any", misfire="all" if number % 2 else "latest")
                await operator.submit(Declare(name, read_spec("@every 1s"), policy), 60.0)
            for _ in range(4):
                others.start_soon(self.employ, world)
            others.start_soon(self.step_clocks, world)
            for _ in range(self.leader_changes):
                await trio.sleep(self.seconds / self.leader_changes)
                await self.change_leader(world)
            for name in self.names:
                await operator.submit(Pause(name, True), 60.0)
            await world.wait_until(lambda: is_quiet(world), 100)
            others.cancel_scope.cancel()
        leader = await world.wait_for_leader()
        assert leader.replica is not None
        self.check(leader.replica.machine._fsms["tauraft.cron"])
        await world.wait_until(lambda: len({_applied(node) for node in world.nodes}) == 1)
        world.observe()

    async def change_leader(self, world: World) -> None:
        leader = await world.wait_for_leader()
        match world.random.choice(("transfer", "kill", "power")):
            case "transfer":
                try:
                    assert leader.replica is not None
                    with trio.move_on_after(5):
                        await leader.replica.call("transfer_leadership", {})
                except TauraftError:
                    pass
            case "kill":
                await leader.kill()
            case _:
                await leader.cut_power()
        await world.wait_for_leader()
        self.changed += 1
        for node in world.nodes:
            if not node.is_running:
                node.start()

    async def step_clocks(self, world: World) -> None:
        """Of one node at a time: the others keep the cluster's clock where it is, as soon as they are heard again."""
        while True:
            await trio.sleep(world.random.uniform(5, 20))
            for node in world.nodes:
                node.clock.wall_offset_s = 0.0
            await trio.sleep(5)
            world.random.choice(world.nodes).clock.wall_offset_s = world.random.uniform(-7_200, 7_200)

    async def employ(self, world: World) -> None:
        while True:
            async with world.client(ttl_s=2.0) as client:
                with trio.move_on_after(world.random.uniform(5, 40)):  # then it is gone, without a word
                    await client.opened()
                    try:
                        await self.work(world, client)
                    except TauraftError:
                        pass  # its session is lost: a new one

    async def work(self, world: World, client: SimulatedClient) -> None:
        held: dict[int, str] = {}

        def give_all_up() -> None:
            for token, job in list(held.items()):
                self.exclusion.gave_up(job, client.name, token)

        client.on_lost = give_all_up
        await client.submit(Register(self.names, client.name, client.name, 1), 30.0)
        async with trio.open_nursery() as runs:
            while True:
                assigned = await client.submit(Serve(), timeout_s=1e6, waits=True)
                runs.start_soon(self.run, world, client, assigned, held)

    async def run(self, world: World, client: SimulatedClient, assigned: Assigned, held: dict[int, str]) -> None:
        try:
            await client.submit(Start(assigned.token), 5.0)
        except TauraftError:
            return  # not certain: it does not run. (A careful one gives it back; this one's session ends sooner or later.)
        if client.is_past_deadline:
            return
        held[assigned.token] = assigned.job
        self.exclusion.acquired(assigned.job, client.name, assigned.token)
        self.again += assigned.attempt > 1
        await trio.sleep(world.random.uniform(0, 0.4) if world.random.random() < 0.9 else 1.5)
        self.exclusion.gave_up(assigned.job, client.name, assigned.token)
        del held[assigned.token]
        while not client.is_lost:
            try:
                await client.submit(Finish(assigned.token), 5.0)
            except (Refused, SessionLost):
                return
            except TauraftError:
                continue
            self.finished[assigned.job, assigned.scheduled_at] += 1
            return

    def check(self, fsm: Any) -> None:
        """Each second has exactly one row, and that one is over; a row in the name of several says which."""
        assert not fsm.live and not fsm.pending and not fsm.runs
        for name in self.names:
            rows = [(at, tick) for (job, at), tick in fsm.ticks.items() if job == name]
            self.rows += len(rows)
            expected = rows[0][0]
            for at, tick in rows:
                assert tick.state in OVER, (name, at, tick)
                assert at == expected, f"{name} has no row at {expected}"
                assert self.finished[name, at] <= (tick.state == "OK"), f"{name} at {at} is {tick.state}, and finished"
                self.skipped += tick.state == "SKIPPED"
                expected = (tick.until or at) + timedelta(seconds=1)
            assert (rows[-1][0] - rows[0][0]).total_seconds() > self.seconds * 0.9
        assert max(self.finished.values()) == 1


def is_quiet(world: World) -> bool:
    leader = world.leader
    if leader is None or leader.replica is None:
        return False
    fsm: Any = leader.replica.machine._fsms["tauraft.cron"]
    return not (fsm.live or fsm.pending)


def _applied(node: Any) -> Any:
    return node.replica and node.replica.machine.applied_index


TEN_YEARS_S = 3_652 * 86_400.0


async def clocks_run_ahead_and_are_set_back(world: World) -> None:
    """As on machines whose clock was wrong when they started, and an operator's or NTP's hand."""
    ran: list[datetime] = []
    world.start_all()
    await world.wait_for_leader()

    async def work(client: SimulatedClient) -> None:
        await client.submit(Register(("job",)), 60.0)
        while True:
            assigned = await client.submit(Serve(), timeout_s=1e6, waits=True)
            await client.submit(Start(assigned.token), 60.0)
            await client.submit(Finish(assigned.token), 60.0)
            ran.append(assigned.scheduled_at)

    async with world.client(ttl_s=1e6) as client, trio.open_nursery() as others:
        await client.opened()
        await client.submit(Declare("job", read_spec("@every 1s"), Policy(run_on="any")), 60.0)
        others.start_soon(work, client)
        await trio.sleep(10)
        assert 9 <= len(ran) <= 11
        for node in world.nodes:
            node.clock.wall_offset_s = TEN_YEARS_S
        await trio.sleep(10)
        ahead = len(ran)
        assert 19 <= ahead <= 23, "one for all that was missed, then one a second"
        for node in world.nodes:
            node.clock.wall_offset_s = 0.0
        leader = await world.wait_for_leader()
        await leader.kill()
        leader.start()
        await trio.sleep(10)
        others.cancel_scope.cancel()
    assert len(ran) - ahead >= 6, "it goes on, but for the time without a leader"
    assert len(ran) == len(set(ran))
    assert ran[-1] - ran[0] < timedelta(minutes=1)
    leader = await world.wait_for_leader()
    assert leader.replica is not None
    machine = leader.replica.machine
    steps = list(machine.system.wall_steps.values())
    assert steps and steps[-1].from_ns - steps[-1].to_ns > 3_650 * 86_400 * 10**9
    assert len(machine._fsms["tauraft.cron"].ticks) < 80  # type: ignore[attr-defined]


@pytest.mark.middle
def test_clocks_ten_years_ahead_and_back_make_no_storm_and_no_standstill() -> None:
    run_world(0, clocks_run_ahead_and_are_set_back)


@pytest.mark.middle
def test_each_tick_has_one_row_that_is_over_whoever_leads_and_whoever_dies() -> None:
    story = Story(jobs=4, seconds=45, leader_changes=9)
    run_world(0, story.play)
    assert story.changed == 9
    assert story.rows > 150
    assert story.again, "nobody died in the middle of a run: nothing was put to the test"


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_ten_thousand_ticks_over_two_hundred_leader_changes_have_one_row_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cron_fsm, "MAX_JOB_LEDGER", 10_000)
    story = Story(jobs=10, seconds=1_000, leader_changes=200)
    run_world(0, story.play)
    assert story.changed == 200
    assert story.rows >= 10_000
    print(
        f"{story.rows} ticks over {story.changed} leader changes: {sum(story.finished.values())} finished, "
        f"{story.skipped} skipped, {story.again} runs that were lost and begun again, no overlap"
    )
