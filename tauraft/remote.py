"""How a client that is no member reaches a cluster: at addresses, over a transport, following the leader.

``AddressHost`` is the ``Host`` of such a client (``tauraft.caller``).  It starts with the addresses it was given and learns
more from every replica it talks to: the members at the welcome, the leader when it changes.  A leader's known
addresses are tried first; when that one does not answer, whoever of all known addresses does.

The host-local road (the Unix socket in a data directory) is a ``StreamDialer`` over ``transport.local_socket``; it never moves.
"""

from __future__ import annotations

from collections.abc import Sequence

from tauraft.client import Dialer, StreamDialer
from tauraft.command_protocol import LeaderIs
from tauraft.transport.transport import MessageStream, PeerUnreachable, Transport


class AddressHost:
    """Dials ``addresses`` of ``namespace`` over ``transport``, which its maker enters and leaves."""

    problem: BaseException | None = None

    def __init__(self, transport: Transport, namespace: str, addresses: Sequence[str]) -> None:
        self._transport = transport
        self._namespace = namespace
        self._addresses = tuple(addresses)
        self._known: dict[str, tuple[str, ...]] = {}
        self._dialer = StreamDialer(self._open, has_choice=True)
        transport.on_problem(self._note_problem)

    @property
    def dialer(self) -> Dialer:
        return self._dialer

    def _note_problem(self, peer_id: str, problem: Exception) -> None:
        self.problem = problem

    async def _open(self, leader: LeaderIs | None) -> MessageStream:
        if leader is not None and leader.peer_id:
            addresses = leader.addresses or self._known.get(leader.peer_id, ())
            self._known[leader.peer_id] = addresses
            try:
                return await self._transport.connect(self._namespace, peer_id=leader.peer_id, addresses=addresses)
            except PeerUnreachable:
                pass  # anyone else can serve as well
        known = dict.fromkeys([*self._addresses, *(a for addresses in self._known.values() for a in addresses)])
        return await self._transport.connect(self._namespace, addresses=tuple(known))
