"""A simulated client that takes another node at each of its links, and whose link is cut when told; it keeps watches."""

from __future__ import annotations

from typing import Any

import trio

from tauraft.bridge import Completions, Feed
from tauraft.client import Connector, StreamDialer
from tauraft.command_protocol import Hello, LeaderIs
from tauraft.handle import Frame, State
from tauraft.simulator.world import NAMESPACE, SimulatedClient
from tauraft.transport.transport import MessageStream, PeerUnreachable
from tauraft.watch import Subscription, WatchRequest, decode_arrived


class Roamer(SimulatedClient):
    links = 0
    attached_to = ""
    stays_with = ""  # a peer id: it takes no other node
    _stream: MessageStream | None = None

    async def _live(self, task_status: Any) -> None:
        with self._scope:
            async with self._world.network.transport(self.name) as transport:
                self.transport = transport
                self.connector = Connector(
                    StreamDialer(self._open_stream, has_choice=False),
                    make_session=self._make_session,
                    clock=self.clock.boottime_ns,
                    random=self._random,
                    hello=Hello(1, self.name, self.name, 1),
                )
                task_status.started()
                await self.connector.run()

    async def _open_stream(self, leader: LeaderIs | None) -> MessageStream:
        for _ in self._world.nodes:
            self.links += 1
            node = self._world.nodes[self.links % len(self._world.nodes)]
            if not node.is_up or self.stays_with not in ("", node.peer_id):
                continue
            try:
                self._stream = await self.transport.connect(
                    NAMESPACE, peer_id=node.peer_id, addresses=[f"/memory/{node.peer_id}"]
                )
            except PeerUnreachable:
                continue
            self.attached_to = node.peer_id
            return self._stream
        raise PeerUnreachable("no node answers")

    async def cut(self) -> None:
        """The link dies; whatever was on it may be lost."""
        if self._stream is not None:
            await self._stream.aclose()

    async def watch(self, request: WatchRequest) -> Watched:
        watched = Watched(request)
        opened = trio.Event()
        failures: list[BaseException | None] = []

        def tell(error: BaseException | None) -> None:
            failures.append(error)
            opened.set()

        self.connector.session.watch(watched.subscription, tell)
        await opened.wait()
        if failures[0] is not None:
            raise failures[0]
        return watched


class Watched:
    """What a roamer's watch has seen. ``is_reading`` False: it takes nothing."""

    def __init__(self, request: WatchRequest) -> None:
        self._request = request
        self.subscription = Subscription(request, lambda taken: Feed(Completions(lambda: None), taken))
        self.seen: list[Frame[Any, Any] | State[Any, Any]] = []
        self.is_reading = True
        self.most_buffered = 0

    def read(self) -> None:
        self.most_buffered = max(self.most_buffered, self.subscription._buffered)
        while self.is_reading and (arrived := self.subscription.feed.take()) is not None:
            self.seen.append(decode_arrived(self._request.table, arrived))

    async def read_on(self) -> None:
        while True:
            self.read()
            await trio.sleep(0.002)
