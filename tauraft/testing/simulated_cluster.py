"""Several replicas in one process, on a network and disks in memory that can be hurt: for tests of what survives.

The real node, log, Raft and sessions, as in the simulator; only sockets, disks and clocks are others.  Time passes while a call
waits for its answer and in ``advance``, never between: a test of one thread is the same story each time, and hours take seconds.
A ``seed`` decides delays, elections and what a kill leaves undone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from types import TracebackType
from typing import Any, Self

import trio
import trio.testing

from tauraft import errors
from tauraft._blocking.cluster import Client
from tauraft.client import Dialer, StreamDialer
from tauraft.command_protocol import LeaderIs
from tauraft.engine import Engine
from tauraft.simulator.world import SimulatedNode, World, deterministic_scheduling, reseed_scheduling
from tauraft.testing.stepped_engine import SteppedEngine
from tauraft.transport.transport import MessageStream, PeerUnreachable

PATIENCE_S = 60.0  # of cluster time: how long a leader may take to be there


class SimulatedCluster:
    """Replicas are 0, 1, 2, ...; ``with`` starts them and waits for a leader.

    with SimulatedCluster() as cluster:
        client = cluster.client()
        client.kv.put("k", b"v")
        cluster.kill(cluster.leader)
        assert client.kv.get("k").value == b"v"

    Raises what a replica stopped with, from the next call on.  Not for several threads.
    """

    def __init__(
        self, *, replicas: int = 3, seed: int = 0, namespace: str = "/raft/test", plugins: Sequence[object] = ()
    ) -> None:
        if replicas < 1:
            raise errors.InvalidArgument(f"replicas={replicas}: at least one is needed", option="replicas")
        self.namespace = namespace
        self._replicas, self._seed, self._plugins = replicas, seed, tuple(plugins)
        self._random = Random(seed)
        self._engine: SteppedEngine | None = None
        self._world: World
        self._failure: BaseException | None = None
        self._is_over: trio.Event
        self._clients: list[_Client] = []
        self._scheduling = deterministic_scheduling(seed)

    def __enter__(self) -> Self:
        if self._engine is not None:
            raise errors.Shutdown("a SimulatedCluster runs once; make a new one")
        self._scheduling.__enter__()
        self._engine = SteppedEngine(passes_in_calls=True, entropy=self._random.randbytes)
        self._engine.start()
        self._engine.do(self._begin)
        self._engine.do(lambda: self._world.wait_for_leader(PATIENCE_S), passes=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        engine = self._running()
        for client in self._clients:
            client.close()
        engine.post(lambda _: self._is_over.set(), None)
        engine.stop()
        self._scheduling.__exit__(None, None, None)
        if self._failure is not None and error is None:
            raise self._failure

    @property
    def leader(self) -> int | None:
        """Who leads, in the highest term; None while nobody does."""

        async def look() -> int | None:
            leader = self._world.leader
            return None if leader is None else leader.number

        found: int | None = self._do(look)
        return found

    def client(self, replica: int | None = None) -> Client:
        """A started client with a session of its own, closed with the cluster at the latest.

        ``replica``: the one it always talks to; None: any that answers, by preference the leader.
        """
        node = None if replica is None else self._node(replica)
        client = _Client(self, node, self._running(), self._random.getrandbits(64))
        self._clients.append(client)
        return client.start()

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass. Everything due on the way happens before it returns."""
        self._running().advance(seconds)

    def kill(self, replica: int) -> None:
        """As kill -9: what it wrote stays on its disk. Killing one that is down does nothing."""
        self._do(self._node(replica).kill)

    def restart(self, replica: int) -> None:
        """Up again, from its disk; one that runs is killed first."""
        node = self._node(replica)

        async def again() -> None:
            await node.kill()
            node.start()

        self._do(again)

    def partition(self, *groups: set[int]) -> None:
        """Replicas of different groups do not hear each other; those in no group are one more. Clients reach all."""
        named = [sorted(self._node(one).peer_id for one in group) for group in groups]
        rest = [node.peer_id for node in self._world.nodes if not any(node.peer_id in group for group in named)]

        async def cut() -> None:
            self._world.network.heal()
            self._world.network.partition(*named, rest)

        self._do(cut)

    def heal(self) -> None:
        async def heal() -> None:
            self._world.network.heal()

        self._do(heal)

    # ---- the rest ----

    def _node(self, replica: int) -> SimulatedNode:
        self._running()
        if type(replica) is not int:
            raise TypeError(f"a replica is a number, not {replica!r}")
        if not 0 <= replica < self._replicas:
            raise errors.InvalidArgument(
                f"there are replicas 0 to {self._replicas - 1}, not {replica}", option="replica"
            )
        return self._world.nodes[replica]

    def _running(self) -> SteppedEngine:
        if self._engine is None:
            raise errors.Shutdown("not started yet: use `with`")
        if self._failure is not None:
            raise self._failure
        return self._engine

    def _do(self, task: Callable[[], Awaitable[Any]]) -> Any:
        return self._running().do(task)

    async def _begin(self) -> None:
        # How the engine's own tasks came up is real threads' doing: the story begins here.
        await trio.testing.wait_all_tasks_blocked()
        reseed_scheduling(self._seed)
        ready = trio.Event()
        self._is_over = trio.Event()
        assert self._engine is not None
        self._engine.spawn(lambda: self._live(ready), self._ended)
        await ready.wait()

    async def _live(self, ready: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            self._world = World(self._seed, self._replicas, nursery, self.namespace)
            self._world.plugins = self._plugins
            self._world.start_all()
            ready.set()
            await self._is_over.wait()
            nursery.cancel_scope.cancel()

    def _ended(self, result: Any, error: BaseException | None) -> None:
        if not self._is_over.is_set():
            self._failure = error

    @property
    def world(self) -> World:
        """The simulator underneath, for what this face does not offer. Touch it in the engine's thread only."""
        return self._world


class _Host:
    problem = None
    trouble = ""

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer


class _Client(Client):
    """A client on the memory network."""

    def __init__(self, cluster: SimulatedCluster, node: SimulatedNode | None, engine: SteppedEngine, seed: int) -> None:
        super().__init__(cluster.namespace, ["/ip4/127.0.0.1/tcp/1"], _open_host=self._enter)
        self._caller.own_engine = engine
        self._cluster, self._node = cluster, node
        self._random = Random(seed)
        self._name = f"client-{len(cluster._clients)}"

    @asynccontextmanager
    async def _enter(self, engine: Engine) -> AsyncIterator[Any]:
        world = self._cluster.world
        async with world.network.transport(self._name) as transport:

            async def open_stream(leader: LeaderIs | None) -> MessageStream:
                nodes = list(world.nodes) if self._node is None else [self._node]
                self._random.shuffle(nodes)
                if leader is not None:
                    nodes.sort(key=lambda node: node.peer_id != leader.peer_id)
                failure = PeerUnreachable("no replica runs")
                for node in nodes:
                    try:
                        stream: MessageStream = await transport.connect(
                            world.namespace, peer_id=node.peer_id, addresses=[f"/memory/{node.peer_id}"]
                        )
                    except PeerUnreachable as error:
                        failure = error
                    else:
                        return stream
                raise failure

            yield _Host(StreamDialer(open_stream, has_choice=self._node is None))
