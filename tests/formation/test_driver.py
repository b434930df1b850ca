from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from tauraft.discovery.discovery import Found
from tauraft.discovery.static import StaticDiscoverer
from tauraft.formation import messages
from tauraft.formation.decide import Options
from tauraft.formation.driver import Formation, FormationRefused, Formed
from tauraft.formation.genesis import AcceptedGenesis, AcceptorRecord, Ballot, Genesis, Voter
from tauraft.transport.memory import MemoryNetwork

NAMESPACE = "/raft/a"


class Store:
    def __init__(self) -> None:
        self.genesis: Genesis | None = None
        self.acceptor = AcceptorRecord()

    def load_genesis(self) -> Genesis | None:
        return self.genesis

    def save_genesis(self, genesis: Genesis) -> None:
        self.genesis = genesis

    def load_acceptor(self) -> AcceptorRecord:
        return self.acceptor

    def save_acceptor(self, record: AcceptorRecord) -> None:
        self.acceptor = record


class Replica:
    """Accepts everybody, as a leader does."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis

    def leader(self) -> messages.KnownPeer | None:
        return None

    async def join(self, request: messages.JoinRequest) -> messages.JoinAccepted:
        return messages.JoinAccepted(self.genesis, ())


class Leaderless(Replica):
    """Has no leader yet, so it can let nobody in."""

    async def join(self, request: messages.JoinRequest) -> messages.NotLeader:  # type: ignore[override]
        return messages.NotLeader(None)


class World:
    def __init__(self, seed: int = 0, replica: type[Replica] = Replica) -> None:
        self.replica = replica
        self.random = Random(seed)
        self.network = MemoryNetwork(Random(seed), delay_s=(0.001, 0.02))
        self.stores: dict[str, Store] = {}
        self.formed: dict[str, Formed] = {}

    async def node(
        self,
        name: str,
        seeds: list[str],
        *,
        after_s: float = 0.0,
        options: Options | None = None,
        discoverer: type[StaticDiscoverer] = StaticDiscoverer,
    ) -> None:
        await anyio.sleep(after_s)
        started = trio.current_time()
        async with self.network.transport(name) as transport:
            known = [address for seed in seeds for address in self.network.transport(seed).addresses if seed != name]
            formation = Formation(
                transport,
                NAMESPACE,
                messages.JoinRequest(name, len(self.stores) + 1, tuple(transport.addresses), "machine", 1),
                self.stores.setdefault(name, Store()),
                options=options or Options(),
                discoverers=[discoverer(known)],
                random=Random(self.random.random()),
                age_s=lambda: trio.current_time() - started,
            )
            formed = await formation.form()
            self.formed[name] = formed
            formation.became_member(self.replica(formed.genesis))
            await anyio.sleep_forever()


def run(story: Callable[[], Awaitable[Any]]) -> None:
    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("count", "gap_s"), [(1, 0.0), (2, 0.0), (3, 0.0), (3, 0.2), (3, 0.5), (5, 0.0), (5, 3.0), (20, 0.0), (20, 0.5)]
)
def test_nodes_that_know_one_another_end_in_one_cluster(count: int, gap_s: float) -> None:
    async def story() -> None:
        world = World(count)
        names = [f"n{number:02}" for number in range(count)]
        with anyio.move_on_after(60):
            async with anyio.create_task_group() as tasks:
                for number, name in enumerate(reversed(names)):
                    tasks.start_soon(partial(world.node, name, names, after_s=number * gap_s))
                while len(world.formed) < count:
                    await anyio.sleep(0.1)
                tasks.cancel_scope.cancel()
        assert set(world.formed) == set(names)
        assert len({formed.genesis.cluster_id for formed in world.formed.values()}) == 1

    run(story)


@pytest.mark.parametrize("count", [3, 5])
def test_nodes_that_hear_of_one_another_end_in_one_cluster(count: int) -> None:
    """Each is given the one before it, the first nobody: the others are known by hearsay."""

    async def story() -> None:
        world = World(count)
        names = [f"n{number:02}" for number in range(count)]
        with anyio.move_on_after(60):
            async with anyio.create_task_group() as tasks:
                for number, name in enumerate(names):
                    tasks.start_soon(
                        partial(world.node, name, names[max(0, number - 1) : number], options=Options(expect=count))
                    )
                while len(world.formed) < count:
                    await anyio.sleep(0.1)
                tasks.cancel_scope.cancel()
        assert set(world.formed) == set(names)
        assert len({formed.genesis.cluster_id for formed in world.formed.values()}) == 1

    run(story)


class SeesThemRun(StaticDiscoverer):
    """As the one of this host does of processes that are stopped, or have too little processor to answer."""

    def look(self) -> list[Found]:
        return [Found(found.peer_id, found.addresses, is_running=True) for found in super().look()]


@pytest.mark.parametrize(("discoverer", "window_s"), [(StaticDiscoverer, 10), (SeesThemRun, 60)])
def test_who_does_not_answer_is_waited_for_longer_when_it_is_seen_to_run(
    discoverer: type[StaticDiscoverer], window_s: float
) -> None:
    async def story() -> None:
        world = World()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(world.node, "a", ["a", "mute"], discoverer=discoverer))
            await anyio.sleep(window_s - 1)
            assert not world.formed
            await anyio.sleep(5)
            assert set(world.formed) == {"a"}
            tasks.cancel_scope.cancel()

    run(story)


@pytest.mark.parametrize("started", [2, 3, 4])
def test_expect_3_waits_for_two_forms_of_three_and_refuses_four(started: int) -> None:
    async def story() -> None:
        world = World(started)
        names = ["a", "b", "c", "d"][:started]
        refused = []

        async def node(name: str) -> None:
            try:
                await world.node(name, names, options=Options(expect=3))
            except* FormationRefused:
                refused.append(name)

        with anyio.move_on_after(60):
            async with anyio.create_task_group() as tasks:
                for name in names:
                    tasks.start_soon(node, name)
        ids = {formed.genesis.cluster_id for formed in world.formed.values()}
        assert len(ids) == (1 if started == 3 else 0)
        assert bool(refused) == (started == 4)
        assert started != 3 or len(world.formed) == 3

    run(story)


def test_the_voters_of_a_genesis_are_told_by_one_that_finds_it_chosen_and_is_none_of_them() -> None:
    """b and c had accepted it, a being away; then all stopped before b, its one voter, knew that it was chosen."""

    async def story() -> None:
        world = World(3)
        incarnation = 4  # as the world counts: three disks are there
        chosen = Genesis(bytes(16), NAMESPACE, (Voter("b", incarnation),), "b")
        ballot = Ballot(1, "b")
        for name in ("a", "b", "c"):
            world.stores[name] = Store()
        for name in ("b", "c"):
            world.stores[name].acceptor = AcceptorRecord(ballot, AcceptedGenesis(ballot, chosen))
        with anyio.move_on_after(60):
            async with anyio.create_task_group() as tasks:
                for name in ("a", "b", "c"):
                    tasks.start_soon(partial(world.node, name, ["a", "b", "c"], options=Options(expect=3)))
                while len(world.formed) < 3:
                    await anyio.sleep(0.1)
                tasks.cancel_scope.cancel()
        assert {formed.genesis for formed in world.formed.values()} == {chosen}
        assert [name for name, formed in sorted(world.formed.items()) if formed.is_founder] == ["b"]

    run(story)


def test_a_founder_takes_the_genesis_from_another_though_nobody_leads_yet() -> None:
    """Three voters were chosen and one has started: two are needed before anybody can lead and let others join."""

    async def story() -> None:
        world = World(3, replica=Leaderless)
        names = ["a", "b", "c"]
        with anyio.move_on_after(60):
            async with anyio.create_task_group() as tasks:
                for name in names:
                    tasks.start_soon(partial(world.node, name, names, options=Options(expect=3)))
                while len(world.formed) < 3:
                    await anyio.sleep(0.1)
                tasks.cancel_scope.cancel()
        assert set(world.formed) == set(names)
        assert all(formed.is_founder for formed in world.formed.values())

    run(story)
