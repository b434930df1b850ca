"""The nemesis: draws faults from the seed and undoes them, until told to stop; then everything is well again.

What it can do to a machine: kill its process (what was written stays, synced or not), cut its power (what was not
synced is lost or torn), do either in the middle of a write, fail a sync or all of them, fill the disk, lose it whole, step
its wall clock.  To the network: split it, isolate the leader, cut one direction or one link of a mesh, flap, lose,
duplicate and delay, slow one follower down.  To the cluster: hand leadership over, take a member out and in again.  To
clients: kill one that may hold something.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random

import trio

from tauraft.core.messages import Member
from tauraft.errors import TauraftError
from tauraft.node.local_replica import LocalReplica
from tauraft.simulator.world import SimulatedClient, SimulatedNode, World

JOIN_S = 60.0  # a member that was taken out or lost its disk is in again by then


class Nemesis:
    """``victims``: the clients that may be killed, as they come and go. ``only``: the names of faults; else any."""

    def __init__(
        self, world: World, random: Random, victims: Sequence[SimulatedClient] = (), only: Sequence[str] = ()
    ) -> None:
        self.world = world
        self.done: list[str] = []
        self._random = random
        self._victims = victims
        self._faults: tuple[Callable[[], Awaitable[None]], ...] = (
            self._kill_one, self._kill_leader, self._power_off_leader, self._power_off_majority, self._power_off_all,
            self._kill_while_writing, self._cut_power_while_writing, self._fail_sync, self._lose_disk,
            self._halves, self._isolate_leader, self._one_way, self._flap, self._bad_network,
            self._step_wall, self._transfer, self._take_out_and_in, self._kill_client,
            self._kill_follower, self._kill_majority, self._kill_all, self._fail_all_syncs, self._fill_disk,
            self._cut_a_mesh, self._slow_follower,
        )  # fmt: skip
        if only:
            self._faults = tuple(getattr(self, f"_{name}") for name in only)

    async def torment(self, rounds: int) -> None:
        """``rounds`` faults, each healed after a while, then peace."""
        for _ in range(rounds):
            fault = self._random.choice(self._faults)
            self.done.append(f"{trio.current_time():.2f} {fault.__name__.strip('_')}")
            await fault()
            await trio.sleep(self._random.uniform(0.1, 1.5))
        await self.peace()

    async def peace(self) -> None:
        self.world.network.heal()
        self._all_links(lambda: (0, 0, (0.0002, 0.002)))
        for node in self.world.nodes:
            if not node.is_running:
                node.start()

    def _pause(self) -> float:
        return self._random.uniform(0.2, 3)

    def _names(self) -> list[str]:
        return [node.peer_id for node in self.world.nodes]

    def _leader(self) -> SimulatedNode:
        return self.world.leader or self._random.choice(self.world.nodes)

    # Machines.

    async def _down(self, nodes: Sequence[SimulatedNode], *, power: bool) -> None:
        for node in nodes:
            await (node.cut_power() if power else node.kill())
        await trio.sleep(self._pause())
        for node in nodes:
            node.start()

    async def _kill_one(self) -> None:
        await self._down([self._random.choice(self.world.nodes)], power=False)

    async def _kill_leader(self) -> None:
        await self._down([self._leader()], power=False)

    async def _kill_follower(self) -> None:
        leader = self._leader()
        await self._down([self._random.choice([node for node in self.world.nodes if node is not leader])], power=False)

    async def _kill_majority(self) -> None:
        nodes = self.world.nodes
        await self._down(self._random.sample(nodes, len(nodes) // 2 + 1), power=False)

    async def _kill_all(self) -> None:
        await self._down(self.world.nodes, power=False)

    async def _power_off_leader(self) -> None:
        await self._down([self._leader()], power=True)

    async def _power_off_majority(self) -> None:
        nodes = self.world.nodes
        await self._down(self._random.sample(nodes, len(nodes) // 2 + 1), power=True)

    async def _power_off_all(self) -> None:
        await self._down(self.world.nodes, power=True)

    async def _kill_while_writing(self) -> None:
        """The process dies between two operations on its disk, and the machine, a little after its restart, as well."""
        node = self._random.choice([self._leader(), *self.world.nodes])
        await self._die_writing(node)
        await node.kill()
        if self._random.random() < 0.5:
            node.start()
            await trio.sleep(self._random.uniform(0, 0.5))
        await self._down([node], power=True)

    async def _cut_power_while_writing(self) -> None:
        node = self._random.choice([self._leader(), *self.world.nodes])
        await self._die_writing(node)
        await self._down([node], power=True)

    async def _die_writing(self, node: SimulatedNode) -> None:
        node.is_doomed = True
        node.disk.lose_power_after(self._random.randrange(12))
        with trio.move_on_after(3):
            await node.ended()

    async def _fail_sync(self) -> None:
        """The node must stop; its process starts again over what the page cache pretends, and loses power later."""
        node = self._random.choice([self._leader(), *self.world.nodes])
        node.is_doomed = True
        node.disk.fail_syncs(1)
        with trio.move_on_after(3):
            await node.ended()
        node.disk.fail_syncs(0)
        await node.kill()
        await trio.sleep(self._pause() / 2)
        node.start()
        await trio.sleep(self._pause() / 2)
        await self._down([node], power=True)

    async def _fail_all_syncs(self) -> None:
        """A disk that is broken: each process on it stops, until the disk is replaced by a sound copy of what it holds."""
        node = self._random.choice([self._leader(), *self.world.nodes])
        node.disk.fail_syncs(None)
        for _ in range(3):
            node.is_doomed = True
            with trio.move_on_after(3):
                await node.ended()
            await node.kill()
            await trio.sleep(self._pause() / 3)
            node.start()
        node.is_doomed = True
        await node.kill()
        node.disk.fail_syncs(0)
        await self._down([node], power=True)

    async def _fill_disk(self) -> None:
        """It holds all it has acknowledged, takes nothing for a while, and goes on by itself."""
        node = self._random.choice([self._leader(), *self.world.nodes])
        node.disk.set_capacity(node.disk.used_bytes + self._random.randrange(2_000))
        await trio.sleep(self._pause())
        node.disk.set_capacity(1 << 40)

    async def _lose_disk(self) -> None:
        """It comes back empty: another member, which replaces the one that it was (SAFETY 14)."""
        node = self._random.choice(self.world.nodes)
        await node.lose_disk()
        await trio.sleep(self._pause())
        node.start()
        await self._join(node, replaces=True)

    async def _step_wall(self) -> None:
        self._random.choice(self.world.nodes).clock.wall_offset_s += self._random.uniform(-7_200, 7_200)

    # Members.

    async def _transfer(self) -> None:
        leader = self.world.leader
        if leader is not None and leader.replica is not None:
            try:
                await leader.replica.call("transfer_leadership", {})
            except TauraftError:
                pass  # it has just lost it by itself

    async def _take_out_and_in(self) -> None:
        node = self._random.choice(self.world.nodes)
        await self._at_leader(lambda replica: replica.call("remove_server", {"peer_id": node.peer_id}))
        await trio.sleep(self._pause())
        await node.lose_disk()
        node.start()
        await self._join(node, replaces=False)

    async def _join(self, node: SimulatedNode, *, replaces: bool) -> None:
        """As formation does: asked again and again, by whoever leads, and a voter again once caught up."""
        member = Member(node.peer_id, node.incarnation)
        await self._at_leader(lambda replica: replica.add(member, is_voter=False, timeout_s=5.0))
        await self._at_leader(lambda replica: replica.add(member, is_voter=True, timeout_s=5.0))

    async def _at_leader(self, act: Callable[[LocalReplica], Awaitable[object]]) -> None:
        with trio.fail_after(JOIN_S):
            while True:
                leader = self.world.leader
                if leader is not None and leader.replica is not None:
                    try:
                        with trio.move_on_after(10):
                            await act(leader.replica)
                            return
                    except TauraftError:
                        pass
                await trio.sleep(0.2)

    # Clients.

    async def _kill_client(self) -> None:
        alive = [client for client in self._victims if client.is_alive]
        if alive:
            self._random.choice(alive).kill()
        await trio.sleep(self._pause())

    # The network.

    def _all_links(self, draw: Callable[[], tuple[float, float, tuple[float, float]]]) -> None:
        names = self._names()
        for source in names:
            for target in names:
                if source != target:
                    loss, duplication, delay_s = draw()
                    self.world.network.set_faults(source, target, loss=loss, duplication=duplication, delay_s=delay_s)

    async def _split(self, *groups: list[str]) -> None:
        self.world.network.partition(*groups)
        await trio.sleep(self._pause())
        self.world.network.heal()

    async def _halves(self) -> None:
        names = self._names()
        self._random.shuffle(names)
        cut = self._random.randrange(1, len(names))
        await self._split(names[:cut], names[cut:])

    async def _isolate_leader(self) -> None:
        leader = self._leader().peer_id
        await self._split([leader], [name for name in self._names() if name != leader])

    async def _one_way(self) -> None:
        source, target = self._random.sample(self._names(), 2)
        self.world.network.cut(source, target, both_ways=False)
        await trio.sleep(self._pause())
        self.world.network.heal()

    async def _cut_a_mesh(self) -> None:
        """One link, both ways: its ends see each other no more, and everybody else sees both."""
        source, target = self._random.sample(self._names(), 2)
        self.world.network.cut(source, target)
        await trio.sleep(self._pause())
        self.world.network.heal()

    async def _slow_follower(self) -> None:
        """Everything to and from it takes half a second: what others send it must not pile up without bound."""
        leader = self._leader().peer_id
        slow = self._random.choice([name for name in self._names() if name != leader])
        for other in self._names():
            if other != slow:
                for source, target in ((other, slow), (slow, other)):
                    self.world.network.set_faults(source, target, loss=0, duplication=0, delay_s=(0.3, 0.6))
        await trio.sleep(2 * self._pause())
        self._all_links(lambda: (0, 0, (0.0002, 0.002)))

    async def _flap(self) -> None:
        source, target = self._random.sample(self._names(), 2)
        for _ in range(self._random.randrange(2, 8)):
            self.world.network.cut(source, target)
            await trio.sleep(self._random.uniform(0.01, 0.4))
            self.world.network.heal()
            await trio.sleep(self._random.uniform(0.01, 0.4))

    async def _bad_network(self) -> None:
        choose = self._random.choice
        self._all_links(lambda: (choose((0, 0.05, 0.3)), choose((0, 0.2, 0.9)), (0.0, choose((0.002, 0.05, 0.3)))))
        await trio.sleep(self._pause())
        self._all_links(lambda: (0, 0, (0.0002, 0.002)))
