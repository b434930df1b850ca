"""Each fault by itself, with clients at work: every one of them is met in each run of the suite.

The seeds of ``test_seeds`` mix them. The verdict is the same: linearizable, nobody held what another held, nothing
acknowledged was lost, all replicas alike, and all works again soon after the last fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
import trio

from tauraft.errors import TauraftError
from tauraft.fsm import FSM, Command, Context, Table, applies
from tauraft.simulator.runs import play
from tauraft.simulator.world import SimulatedClient, World, run_world
from tauraft_primitives.kv.messages import Get, Put

pytestmark = pytest.mark.middle

# (seed, rounds): where others are given, this run is known to find a replica that runs a command twice, or a leader that
# commits alone.
FAULTS: dict[str, tuple[int, int]] = {
    "kill_leader": (2, 2),
    "kill_follower": (1, 1),
    "kill_majority": (1, 1),
    "kill_all": (1, 1),
    "power_off_majority": (1, 1),
    "cut_power_while_writing": (1, 1),
    "kill_while_writing": (1, 1),
    "fail_sync": (1, 1),
    "fail_all_syncs": (1, 1),
    "fill_disk": (1, 1),
    "lose_disk": (1, 1),
    "halves": (1, 1),
    "isolate_leader": (2, 1),
    "one_way": (1, 1),
    "cut_a_mesh": (1, 1),
    "flap": (1, 1),
    "bad_network": (4, 2),
    "slow_follower": (1, 1),
    "step_wall": (1, 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_by_itself_breaks_no_promise(fault: str) -> None:
    seed, rounds = FAULTS[fault]
    outcome = play(seed, rounds=rounds, only=(fault,))
    assert outcome.acknowledged > 10, "the workload hardly worked"


def test_a_snapshot_installed_under_load_survives_kills_half_way() -> None:
    """A follower that was away is sent a snapshot while writes go on; its process, or its power, ends in the middle of it."""

    async def story(world: World) -> None:
        world.snapshot_entries = 10
        random = Random(world.seed)
        written: dict[str, bytes] = {}

        async def write(client: SimulatedClient) -> None:
            number = 0
            while True:
                number += 1
                key, value = f"k{number % 100}", random.randbytes(10_000)
                try:
                    await client.submit(Put(key, value))
                    written[key] = value
                except TauraftError:
                    pass
                await trio.sleep(0.04)

        world.start_all()
        await world.wait_for_leader()
        async with world.client(has_choice=True) as client, trio.open_nursery() as nursery:
            await client.opened()
            nursery.start_soon(write, client)
            await trio.sleep(3)
            leader = await world.wait_for_leader()
            slow = next(node for node in world.nodes if node is not leader)
            deaths = 0
            for _ in range(4):
                await slow.cut_power()
                await trio.sleep(3)
                slow.start()
                await world.wait_until(lambda: any(name.startswith("tmp-") for name in _names(slow)), 30)
                deaths += 1
                slow.is_doomed = True
                slow.disk.lose_power_after(random.randrange(6))
                with trio.move_on_after(3):
                    await slow.ended()
                await (slow.cut_power() if random.random() < 0.5 else slow.kill())
                slow.start()
            nursery.cancel_scope.cancel()
        assert deaths == 4
        async with world.client() as client:
            await client.opened()
            await client.submit(Put("last", b"word"))
            entry = await client.query(Get("k1"))
            assert entry is not None and entry.value == written["k1"]
        await world.wait_until(lambda: len({node.replica and node.replica.applied_index for node in world.nodes}) == 1)
        world.observe()

    run_world(0, story)


def _names(node: object) -> list[str]:
    disk = node.disk  # type: ignore[attr-defined]
    return list(disk.list_directory("/node/snapshots")) if disk.exists("/node/snapshots") else []


def test_two_hundred_clients_that_connect_at_once_are_all_served() -> None:
    async def story(world: World) -> None:
        world.start_all()
        served = []

        async def serve(number: int) -> None:
            async with world.client() as client:
                await client.opened()
                await client.submit(Put(f"k{number}", b"%d" % number))
                entry = await client.query(Get(f"k{(number + 1) % 200}"))
                assert entry is None or entry.value == b"%d" % ((number + 1) % 200)
                served.append(number)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(serve, number)
        assert sorted(served) == list(range(200))
        leader = await world.wait_for_leader()
        assert leader.replica is not None and len(leader.replica.machine.sessions) == 200

    run_world(1, story)


@dataclass(frozen=True, slots=True)
class Set(Command[None], fsm="test.alarms"):
    name: str
    in_ns: int


@dataclass(frozen=True, slots=True)
class Ring(Command[None], fsm="test.alarms"):
    name: str


class Alarms(FSM, name="test.alarms", version=1):
    rung: Table[str, int]

    @applies(Set)
    def set_one(self, command: Set, context: Context) -> None:
        context.schedule(command.name, context.now_ns + command.in_ns, Ring(command.name))

    @applies(Ring)
    def ring(self, command: Ring, context: Context) -> None:
        self.rung[command.name] = self.rung.get(command.name, 0) + 1


def test_timers_fire_once_whoever_leads_when_they_are_due() -> None:
    """Each leader proposes what is due by its own clock, the old one too, until it has heard of the new one."""

    async def story(world: World) -> None:
        world.plugins = (Alarms,)
        world.start_all()
        await world.wait_for_leader()
        async with world.client() as client:
            await client.opened()
            names = [f"a{number}" for number in range(60)]
            for number, name in enumerate(names):
                await client.submit(Set(name, 2_000_000_000 + number * 200_000_000))
            leaders = set()
            for _ in range(6):
                leader = await world.wait_for_leader()
                leaders.add(leader.peer_id)
                others = [node.peer_id for node in world.nodes if node is not leader]
                world.network.partition([leader.peer_id], others)
                await trio.sleep(2.5)
                world.network.heal()
            await trio.sleep(20)
            await client.submit(Put("last", b"word"))
        assert len(leaders) > 1
        await world.wait_until(lambda: len({node.replica and node.replica.applied_index for node in world.nodes}) == 1)
        for node in world.nodes:
            assert node.replica is not None
            (alarms,) = [fsm for fsm in node.replica.machine.active_fsms() if isinstance(fsm, Alarms)]
            assert dict(alarms.rung.items()) == dict.fromkeys(names, 1)

    run_world(3, story)
