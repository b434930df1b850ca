"""The formation driver on the memory network, under seeds: who starts when, who dies when, and which links are cut.

Covers: SAFETY 10, SAFETY 11.
"""

from __future__ import annotations

from functools import partial
from random import Random

import pytest
import trio
import trio.testing

from tauraft.discovery.static import StaticDiscoverer
from tauraft.formation import messages
from tauraft.formation.decide import Options
from tauraft.formation.driver import Formation
from tauraft.formation.genesis import Genesis, Voter
from tauraft.simulator.checkers.one_cluster import OneCluster, TwoClusters
from tauraft.simulator.world import deterministic_scheduling
from tauraft.transport.memory import MemoryNetwork
from tests.formation.test_driver import Replica, Store

NAMESPACE = "/raft/forming"


class Forming:
    """One namespace's nodes: disks that survive, processes that come and go."""

    def __init__(self, seed: int, count: int, nursery: trio.Nursery) -> None:
        self.random = Random(seed)
        self.network = MemoryNetwork(Random(self.random.getrandbits(64)), delay_s=(0.0005, 0.05))
        self.names = [f"n{number:02}" for number in range(count)]
        self.disks = {name: Store() for name in self.names}
        self.one = OneCluster()
        self.members: set[str] = set()
        self.lives: dict[str, trio.CancelScope] = {}
        self._nursery = nursery

    def start(self, name: str, options: Options, after_s: float = 0.0, *, dies_with_genesis: bool = False) -> None:
        scope = self.lives[name] = trio.CancelScope()
        self._nursery.start_soon(partial(self._live, name, options, after_s, scope, dies_with_genesis))

    async def _live(
        self, name: str, options: Options, after_s: float, scope: trio.CancelScope, dies_with_genesis: bool
    ) -> None:
        with scope:
            await trio.sleep(after_s)
            began = trio.current_time()
            async with self.network.transport(name) as transport:
                known = [a for other in self.names if other != name for a in self.network.transport(other).addresses]
                formation = Formation(
                    transport,
                    NAMESPACE,
                    messages.JoinRequest(name, self.names.index(name) + 1, transport.addresses, "machine", 1),
                    self.disks[name],
                    options=options,
                    discoverers=[StaticDiscoverer(known)],
                    random=Random(self.random.getrandbits(64)),
                    age_s=lambda: trio.current_time() - began,
                    waiting=lambda reason: None,
                )
                formed = await formation.form()
                self.one.took_up(name, formed.genesis)
                if dies_with_genesis:
                    return  # on its disk, and nobody was told
                self.members.add(name)
                formation.became_member(Replica(formed.genesis))
                await trio.sleep_forever()

    def kill(self, name: str) -> None:
        self.members.discard(name)
        self.network.stop(name)
        self.lives[name].cancel()

    async def all_are_members(self, seconds: float = 120) -> None:
        with trio.fail_after(seconds):
            while len(self.members) < len(self.names):
                await trio.sleep(0.05)


def play(seed: int, count: int, story: object) -> None:
    async def main() -> None:
        with trio.fail_after(3_600):
            async with trio.open_nursery() as nursery:
                await story(Forming(seed, count, nursery))  # type: ignore[operator]
                nursery.cancel_scope.cancel()

    with deterministic_scheduling(seed):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def windows(forming: Forming, expect: int | None = None) -> Options:
    """Each node its own: what its operator wrote."""
    return Options(bootstrap_timeout_s=forming.random.choice((1.0, 2.0, 10.0)), expect=expect)


@pytest.mark.middle
@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("seed", range(4))
def test_founders_with_windows_of_their_own_end_in_one_cluster(seed: int, count: int) -> None:
    async def story(forming: Forming) -> None:
        gap_s = forming.random.choice((0.0, 0.0, 0.2, 1.0))
        for name in forming.names:
            forming.start(name, windows(forming), forming.random.uniform(0, gap_s))
        await forming.all_are_members()

    play(seed, count, story)


def test_two_founders_that_hold_each_other_to_be_late_do_not_wait_for_ever() -> None:
    """Their windows differ; the others have given their word to one of them, and the other wanted it."""
    test_founders_with_windows_of_their_own_end_in_one_cluster(137, 9)


@pytest.mark.middle
@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("seed", range(15))
def test_with_expect_no_kill_and_no_cut_makes_a_second_cluster(seed: int, count: int) -> None:
    async def story(forming: Forming) -> None:
        random = forming.random
        for name in forming.names:
            forming.start(name, windows(forming, count), random.uniform(0, 2))
        for _ in range(8):
            await trio.sleep(random.choice((0.05, 0.3, 2.0)))
            if random.random() < 0.5:
                victim = random.choice(forming.names)
                forming.kill(victim)
                await trio.sleep(random.uniform(0, 0.5))
                forming.start(victim, windows(forming, count), random.uniform(0, 1))
            else:
                cut = random.randrange(1, count)
                names = random.sample(forming.names, count)
                forming.network.partition(names[:cut], names[cut:])
                await trio.sleep(random.choice((0.1, 5.0)))
                forming.network.heal()
        await forming.all_are_members()

    play(seed, count, story)


@pytest.mark.parametrize("seed", range(5))
def test_an_author_that_dies_with_its_genesis_begins_no_second_cluster_when_expected(seed: int) -> None:
    """Chosen is chosen: the others finish what it proposed, and it finds on its disk what they are members of."""

    async def story(forming: Forming) -> None:
        for name in forming.names:
            # The lowest peer id proposes.
            forming.start(name, windows(forming, 3), dies_with_genesis=name == forming.names[0])
        while forming.disks[forming.names[0]].genesis is None:
            await trio.sleep(0.01)
        await trio.sleep(10)
        forming.start(forming.names[0], windows(forming, 3))
        await forming.all_are_members()

    play(seed, 3, story)


def test_the_checker_sees_two_clusters() -> None:
    one = OneCluster()
    first = Genesis(bytes(16), NAMESPACE, (Voter("a", 1),), "a")
    one.took_up("a", first)
    one.took_up("b", first)
    with pytest.raises(TwoClusters):
        one.took_up("c", Genesis(b"x" * 16, NAMESPACE, (Voter("c", 1),), "c"))
