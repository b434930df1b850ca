"""Peers that the user named. Dead ones are no error: ``peers=`` are hints (API.md, Addresses)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from tauraft.discovery.discovery import Found
from tauraft.transport.transport import CONNECT_TIMEOUT_S, split_address


class StaticDiscoverer:
    name = "peers"

    def __init__(self, peers: Sequence[str]) -> None:
        self._peers = tuple(peers)
        # A named peer that starts in the same second is found by asking it again within the window.
        self.minimum_s = CONNECT_TIMEOUT_S if self._peers else 0.0

    async def announce(self, peer_id: str, addresses: Sequence[str]) -> None:
        """Nobody learns of us by it."""

    async def withdraw(self) -> None: ...

    def look(self) -> Sequence[Found]:
        return [Found(split_address(address)[1], (address,)) for address in self._peers]

    async def find(self) -> AsyncIterator[Found]:
        for found in self.look():
            yield found
