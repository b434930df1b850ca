"""The nemesis: draws faults from the seed and undoes them, until told to stop; then everything is well again."""

from __future__ import annotations

from random import Random

import trio

from tauraft.simulator.world import SimulatedNode, World


class Nemesis:
    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.done: list[str] = []
        self._random = random

    async def torment(self, rounds: int) -> None:
        """``rounds`` faults, each healed after a while, then peace."""
        for _ in range(rounds):
            fault = self._random.choice(
                (
                    self._crash_one, self._crash_leader, self._crash_majority, self._crash_all, self._halves,
                    self._isolate_leader, self._one_way, self._flap, self._bad_network, self._jump_wall,
                )
            )  # fmt: skip
            self.done.append(f"{trio.current_time():.2f} {fault.__name__.strip('_')}")
            await fault()
            await trio.sleep(self._random.uniform(0.1, 2))
        await self.peace()

    async def peace(self) -> None:
        self.world.network.heal()
        names = [node.peer_id for node in self.world.nodes]
        for source in names:
            for target in names:
                if source != target:
                    self.world.network.set_faults(source, target, loss=0, duplication=0, delay_s=(0.0002, 0.002))
        for node in self.world.nodes:
            if not node.is_running:
                node.start()

    def _pause(self) -> float:
        return self._random.uniform(0.2, 4)

    async def _crash(self, nodes: list[SimulatedNode]) -> None:
        for node in nodes:
            await node.crash()
        await trio.sleep(self._pause())
        for node in nodes:
            node.start()

    async def _crash_one(self) -> None:
        await self._crash([self._random.choice(self.world.nodes)])

    async def _crash_leader(self) -> None:
        leader = self.world.leader
        await self._crash([leader or self.world.nodes[0]])

    async def _crash_majority(self) -> None:
        nodes = self.world.nodes
        await self._crash(self._random.sample(nodes, len(nodes) // 2 + 1))

    async def _crash_all(self) -> None:
        await self._crash(list(self.world.nodes))

    async def _split(self, *groups: list[str]) -> None:
        self.world.network.partition(*groups)
        await trio.sleep(self._pause())
        self.world.network.heal()

    async def _halves(self) -> None:
        names = [node.peer_id for node in self.world.nodes]
        self._random.shuffle(names)
        cut = self._random.randrange(1, len(names))
        await self._split(names[:cut], names[cut:])

    async def _isolate_leader(self) -> None:
        leader = (self.world.leader or self.world.nodes[0]).peer_id
        await self._split([leader], [node.peer_id for node in self.world.nodes if node.peer_id != leader])

    async def _one_way(self) -> None:
        source, target = self._random.sample([node.peer_id for node in self.world.nodes], 2)
        self.world.network.cut(source, target, both_ways=False)
        await trio.sleep(self._pause())
        self.world.network.heal()

    async def _flap(self) -> None:
        source, target = self._random.sample([node.peer_id for node in self.world.nodes], 2)
        for _ in range(self._random.randrange(2, 8)):
            self.world.network.cut(source, target)
            await trio.sleep(self._random.uniform(0.01, 0.4))
            self.world.network.heal()
            await trio.sleep(self._random.uniform(0.01, 0.4))

    async def _bad_network(self) -> None:
        names = [node.peer_id for node in self.world.nodes]
        pairs = [(source, target) for source in names for target in names if source != target]
        for source, target in pairs:
            self.world.network.set_faults(
                source, target, loss=self._random.choice((0, 0.05, 0.3)), duplication=self._random.choice((0, 0.2)),
                delay_s=(0.0, self._random.choice((0.002, 0.05, 0.3))),
            )  # fmt: skip
        await trio.sleep(self._pause())
        for source, target in pairs:
            self.world.network.set_faults(source, target, loss=0, duplication=0, delay_s=(0.0002, 0.002))

    async def _jump_wall(self) -> None:
        self._random.choice(self.world.nodes).clock.wall_offset_s += self._random.uniform(-7_200, 7_200)
