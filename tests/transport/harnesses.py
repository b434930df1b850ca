"""How the suite starts nodes of each transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from random import Random

from tauraft.transport.memory import MemoryNetwork
from tauraft.transport.transport import Transport


class MemoryHarness:
    def __init__(self, delay_s: tuple[float, float] = (0.0, 0.0)) -> None:
        self.network = MemoryNetwork(Random(7), delay_s=delay_s)
        self._starts = 0

    @asynccontextmanager
    async def start(self, name: str) -> AsyncIterator[Transport]:
        self._starts += 1
        async with self.network.transport(name, address=f"place-{self._starts}") as transport:
            yield transport


class Libp2pHarness:
    """Real sockets on loopback."""

    def __init__(self, *, encryption_keys: Sequence[bytes] = (), lane: bool = True) -> None:
        self._keys = encryption_keys
        self._lane = lane

    @asynccontextmanager
    async def start(self, name: str) -> AsyncIterator[Transport]:
        from tauraft.transport.libp2p.transport import Libp2pTransport

        async with Libp2pTransport(
            private_key(name), random=Random(name), encryption_keys=self._keys, lanes=self._lane
        ) as transport:
            yield transport


def private_key(name: str) -> bytes:
    return sha256(name.encode()).digest()
