"""How a client that is no member reaches a cluster: at addresses, over a transport, following the leader.

``AddressHost`` is the ``Host`` of such a client (``tauraft.caller``).  It starts with the addresses it was given and learns
more from every replica it talks to: the members at the welcome, the leader when it changes.  A leader's known
addresses are tried first; when that one does not answer, whoever of all known addresses does, in a new order each time.

The host-local road (the Unix socket in a data directory) is a ``StreamDialer`` over ``transport.local_socket``; it never moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import trio

from tauraft.client import Dialer, Overhearing, Seen, StreamDialer
from tauraft.command_protocol import LeaderIs, Link, LinkUser
from tauraft.errors import WrongKey
from tauraft.transport.transport import MessageStream, PeerUnreachable, Transport


class AddressHost:
    """Dials ``addresses`` of ``namespace`` over ``transport``, which its maker enters and leaves."""

    trouble = ""

    def __init__(self, transport: Transport, namespace: str, addresses: Sequence[str], random: Random) -> None:
        self.problem: BaseException | None = None
        self.has_failed = trio.Event()
        self.seen = Seen()
        self._transport = transport
        self._namespace = namespace
        self._addresses = tuple(addresses)
        self._random = random
        self._dialer = _AddressDialer(self)

    @property
    def dialer(self) -> Dialer:
        return self._dialer

    async def raise_problem(self) -> None:
        """Never returns."""
        await self.has_failed.wait()
        assert self.problem is not None
        raise self.problem

    async def open(self, leader: LeaderIs | None) -> MessageStream:
        try:
            return await self._connect(leader)
        except WrongKey as error:
            # No member of that cluster will ever talk to us.
            self.problem = error
            self.has_failed.set()
            raise PeerUnreachable(str(error)) from error

    async def _connect(self, leader: LeaderIs | None) -> MessageStream:
        members = self.seen.members
        if leader is not None and leader.peer_id:
            addresses = leader.addresses or members.get(leader.peer_id, ())
            try:
                return await self._transport.connect(self._namespace, peer_id=leader.peer_id, addresses=addresses)
            except PeerUnreachable:
                pass  # it may be the one that died: any other will say who leads
        learned = [address for addresses in members.values() for address in addresses]
        known = list(dict.fromkeys([*self._addresses, *learned]))
        self._random.shuffle(known)
        return await self._transport.connect(self._namespace, addresses=known)


class _AddressDialer:
    """A stream dialer whose links are overheard."""

    has_choice = True

    def __init__(self, host: AddressHost) -> None:
        self._seen = host.seen
        self._inner = StreamDialer(host.open, has_choice=True)

    async def dial(self, user: LinkUser, leader: LeaderIs | None, nursery: trio.Nursery) -> Link:
        return await self._inner.dial(Overhearing(user, self._seen), leader, nursery)
