"""Where peers may be reached, and when to try again: ours, because the library tries a stale one first.

Addresses are kept newest first and one that failed goes to the end, so a peer that came back on another port is found
at the first try once anyone told us.  Pure, but for the ``random`` given to ``Backoff``.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from tauraft.transport.transport import split_address

MAX_ADDRESSES: Final = 16


class AddressBook:
    """Places (multiaddrs without ``/p2p/...``) by peer id."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[str, ...]] = {}

    def learn(self, peer_id: str, addresses: Sequence[str]) -> bool:
        """Put these first. True when one of them is new."""
        known = self._places.get(peer_id, ())
        # An address that names somebody else is of no use for reaching this peer.
        named = [split_address(address) for address in addresses]
        places = [place for place, owner in named if owner in (None, peer_id)]
        if not places:
            return False
        self._places[peer_id] = tuple(dict.fromkeys((*places, *known)))[:MAX_ADDRESSES]
        return any(place not in known for place in places)

    def places(self, peer_id: str) -> tuple[str, ...]:
        return self._places.get(peer_id, ())

    def addresses(self, peer_id: str) -> tuple[str, ...]:
        return tuple(f"{place}/p2p/{peer_id}" for place in self.places(peer_id))

    def failed(self, peer_id: str, place: str) -> None:
        known = self.places(peer_id)
        if place in known:
            self._places[peer_id] = (*(other for other in known if other != place), place)

    def worked(self, peer_id: str, place: str) -> None:
        self._places[peer_id] = tuple(dict.fromkeys((place, *self.places(peer_id))))[:MAX_ADDRESSES]


class Backoff:
    """Waits that double up to ``most_s``, each drawn from its upper half so that peers do not try in step."""

    def __init__(self, random: Random, first_s: float = 0.1, most_s: float = 3.0) -> None:
        self._random = random
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def next_s(self) -> float:
        wait, self._next_s = self._next_s, min(self._most_s, self._next_s * 2)
        return wait * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._next_s = self._first_s
