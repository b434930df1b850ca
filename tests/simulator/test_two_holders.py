"""Two holders never: workers that write under a lock, killed, cut off, and written off while they sleep.

Half of the workers are careful: they look at their deadline before each write.  The others are like a process that was
stopped in the middle of a write: they are cut off for longer than their session lasts, and write all the same when they
are back.  The resource looks at tokens.  What must come out: careful holders never overlap, not even in what they know; no
write is taken whose token is behind one that was; and stale writes were really tried, and refused.

Covers: G mutual-exclusion, G tokens-increase, E local-clock-expiry.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio

from tauraft.errors import StaleToken, TauraftError
from tauraft.fencing import FencedResource
from tauraft.simulator.checkers.exclusion import Exclusion
from tauraft.simulator.world import SimulatedClient, World, run_world
from tauraft_primitives.locks.messages import Acquire, Release, Renew

SESSION_TTL_S = 2.0
LOCK_TTL_S = 1.5
ROUNDS = 40


@dataclass
class Resource:
    """What the lock protects. ``taken``: the tokens of the writes that it took."""

    guard: FencedResource = field(default_factory=FencedResource)
    taken: list[int] = field(default_factory=list)
    refused: int = 0

    def write(self, token: int) -> None:
        try:
            self.guard.check(token)
        except StaleToken:
            self.refused += 1
        else:
            self.taken.append(token)


class Story:
    def __init__(self, world: World) -> None:
        self.world = world
        self.resource = Resource()
        self.exclusion = Exclusion()
        self.killed = 0
        self.cut_off = 0

    async def play(self) -> None:
        world = self.world
        world.start_all()
        await world.wait_for_leader()
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(self.work, number % 2 == 0)
            nursery.start_soon(self.hurt_nodes)
            with trio.fail_after(2_000):
                while self.exclusion.holds < ROUNDS or not (self.resource.refused and self.killed and self.cut_off):
                    await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert self.resource.taken == sorted(self.resource.taken), "a stale write was taken"

    async def work(self, is_careful: bool) -> None:
        random = self.world.random
        while True:
            async with self.world.client(ttl_s=SESSION_TTL_S) as client:
                try:
                    while not client.is_lost:
                        ttl = LOCK_TTL_S if random.random() < 0.5 else None
                        await self.hold(client, ttl, is_careful)
                except TauraftError:
                    pass  # lost, or its outcome is unknown: a new session
                if random.random() < 0.3:
                    self.killed += 1
                    client.kill()

    async def hold(self, client: SimulatedClient, ttl: float | None, is_careful: bool) -> None:
        random = self.world.random
        started = client.clock.boottime_ns()
        grant = await client.submit(Acquire("x", ttl=ttl), timeout_s=60, waits=True)
        if ttl is not None and grant.waited:
            started = client.clock.boottime_ns()
            await client.submit(Renew("x", grant.token))
        margin_s = 0.0 if ttl is None else max(0.1, 0.03 * ttl)
        ends_ns = None if ttl is None else started + int((ttl - margin_s) * 1e9)

        def may_write() -> bool:
            return not client.is_past_deadline and (ends_ns is None or client.clock.boottime_ns() < ends_ns)

        if not may_write():
            return
        if is_careful:
            self.exclusion.acquired("x", client.name, grant.token)
            client.on_lost = lambda: self.exclusion.gave_up("x", client.name, grant.token)
        try:
            for _ in range(3):
                if not is_careful and random.random() < 0.5:
                    await self.fall_asleep(client)
                if is_careful and not may_write():
                    return
                self.resource.write(grant.token)
                pause_s = random.uniform(0, 0.3)
                left_s = pause_s if ends_ns is None else (ends_ns - client.clock.boottime_ns()) / 1e9
                # One that looks at its deadline has ended by then, whatever it was about to do.
                await trio.sleep(max(0.0, min(pause_s, left_s / 1.02)) if is_careful else pause_s)
        finally:
            if is_careful:
                self.exclusion.gave_up("x", client.name, grant.token)
        await client.submit(Release("x", grant.token))

    async def fall_asleep(self, client: SimulatedClient) -> None:
        """As if stopped: nothing of it gets out or in until its session and its lock are long gone."""
        self.cut_off += 1
        nodes = [node.peer_id for node in self.world.nodes]
        self.world.network.partition([client.name], nodes)
        await trio.sleep(self.world.random.uniform(1, 3) * SESSION_TTL_S)
        for node in nodes:
            self.world.network.heal(client.name, node)

    async def hurt_nodes(self) -> None:
        random = self.world.random
        while True:
            await trio.sleep(random.uniform(2, 6))
            node = self.world.leader or random.choice(self.world.nodes)
            others = [other.peer_id for other in self.world.nodes if other is not node]
            if random.random() < 0.5:
                await node.kill()
                await trio.sleep(random.uniform(0.2, 2))
                node.start()
            else:
                self.world.network.partition([node.peer_id], others)
                await trio.sleep(random.uniform(0.5, 4))
                for other in others:
                    self.world.network.heal(node.peer_id, other)


@pytest.mark.middle
@pytest.mark.parametrize("seed", range(3))
def test_no_stale_write_is_taken_and_stale_holders_were_refused(seed: int) -> None:
    async def story(world: World) -> None:
        await Story(world).play()

    run_world(seed, story)
