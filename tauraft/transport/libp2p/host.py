"""The libp2p host as we use it: Noise only, our guard under every connection, our own dialling.

A default ``new_host`` accepts impersonation (it negotiates plaintext inbound), dials on its own and retries refused
ports for 0.7 s (FACTS.md).  ``PeerHost`` is all that other modules see of the library: an identity, dialling one
address, opening and accepting streams.  What goes wrong in the library comes out as ``PeerUnreachable``.

Importing this module imports libp2p (0.8 s): only the transport does, when it starts.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
import trio
from libp2p import ConnectionConfig, new_host
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import RetryConfig
from libp2p.peer.id import ID
from libp2p.rcmgr import new_resource_manager
from libp2p.rcmgr.manager import ResourceLimits
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL, Transport as NoiseTransport
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from tauraft.errors import InvalidOption
from tauraft.transport.libp2p.guarded_tcp import GuardedTCP, bind_exclusively, guarded_stream_of
from tauraft.transport.transport import CONNECT_TIMEOUT_S, PeerUnreachable

# The library warns about every refused port; without a handler that goes to stderr.
logging.getLogger("libp2p").addHandler(logging.NullHandler())

log = logging.getLogger("tauraft.transport.libp2p")

MAX_CONNECTIONS = 4000
MAX_STREAMS = 50_000


class PeerHost:
    """One libp2p host, running inside ``async with``."""

    def __init__(self, private_key: bytes, listen: Sequence[str]) -> None:
        self.key_pair: KeyPair = ed25519_key_pair(private_key)
        self.id = ID.from_pubkey(self.key_pair.public_key)
        self.peer_id = str(self.id)
        self._listen = [Multiaddr(address) for address in listen]
        # Mutable attributes of the library's classes are reached here alone, hence Any.
        self.library_host: Any = new_host(
            key_pair=self.key_pair,
            listen_addrs=self._listen,
            transports=[GuardedTCP()],
            sec_opt={
                TProtocol(NOISE_PROTOCOL): NoiseTransport(self.key_pair, noise_privkey=x25519_key_pair().private_key)
            },
            resource_manager=_resource_manager(),
            connection_config=ConnectionConfig(
                min_connections=0,
                low_watermark=0,
                high_watermark=2000,
                max_connections=MAX_CONNECTIONS,
                inbound_upgrade_timeout=CONNECT_TIMEOUT_S,
                outbound_upgrade_timeout=CONNECT_TIMEOUT_S,
                outbound_stream_protocol_negotiation_timeout=CONNECT_TIMEOUT_S,
                inbound_stream_protocol_negotiation_timeout=CONNECT_TIMEOUT_S,
            ),
        )
        self._network: Any = self.library_host.get_network()
        self._network.retry_config = RetryConfig(max_retries=0)
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Raises ``InvalidOption`` when a port is occupied."""
        for address in self._listen:
            host, port = str(address.value_for_protocol(address.protocols()[0].code)), tcp_port(address)
            try:
                bind_exclusively(host, port).close()
            except OpenConnectionError as error:
                raise InvalidOption(
                    f"cannot listen on {address} ({error}); nothing was started: free the port, or choose another",
                    option="listen",
                ) from None
        await self._stack.enter_async_context(self.library_host.run(self._listen))
        # Whatever the watermarks, it dials peers it has heard of up to the middle between the two: we dial our own.
        await self._network.auto_connector.stop()

    async def stop(self) -> None:
        # Its listeners run in system tasks, which would accept connections for ever after the host has ended.
        with trio.CancelScope(shield=True):
            for listener in list(self._network.listeners.values()):
                await listener.close()
        for connection in list(self._network.get_connections()):
            self._close_raw(connection)
        await self._stack.aclose()

    def listen_addresses(self) -> tuple[str, ...]:
        found = []
        for listener in self._network.listeners.values():
            found += [str(address) for address in listener.get_addrs()]
        return tuple(dict.fromkeys(found))

    def accept(self, protocol: str, handler: Callable[[Any, str], Awaitable[None]]) -> None:
        """``handler(stream, peer id)`` runs for each stream opened to us; the library's host ends if it raises."""

        async def guarded(stream: Any) -> None:
            try:
                await handler(stream, str(stream.muxed_conn.peer_id))
            except Exception:
                log.exception("a stream of %s failed", protocol)
                await reset_stream(stream)

        self.library_host.set_stream_handler(TProtocol(protocol), guarded)

    def stop_accepting(self, protocol: str) -> None:
        self.library_host.remove_stream_handler(TProtocol(protocol))

    def is_connected(self, peer_id: str) -> bool:
        return any(not connection.is_closed for connection in self._connections(peer_id))

    def connected_peers(self) -> list[str]:
        peers = {str(connection.muxed_conn.peer_id) for connection in self._network.get_connections()}
        return sorted(peer for peer in peers if self.is_connected(peer))

    def disconnect(self, peer_id: str) -> None:
        """Close its raw connections now; the library's own way waits for the peer."""
        for connection in self._connections(peer_id):
            self._close_raw(connection)

    async def dial(self, peer_id: str, place: str) -> None:
        """One address, one try. Raises ``PeerUnreachable``. Does nothing when connected."""
        if self.is_connected(peer_id):
            return
        try:
            with anyio.fail_after(CONNECT_TIMEOUT_S):
                await self._network.dial_addr(Multiaddr(place), ID.from_string(peer_id))
        except TimeoutError:
            raise PeerUnreachable(f"{place} did not answer in {CONNECT_TIMEOUT_S:g} s") from None
        except Exception as error:  # the library's edge: it raises what its parts raise
            raise PeerUnreachable(_explain(error, peer_id, place)) from error

    async def open_stream(self, peer_id: str, protocol: str) -> Any:
        """On a connection that is there. Raises ``PeerUnreachable``."""
        if not self.is_connected(peer_id):
            raise PeerUnreachable(f"{peer_id} is not connected")
        try:
            with anyio.fail_after(CONNECT_TIMEOUT_S):
                return await self.library_host.new_stream(ID.from_string(peer_id), [TProtocol(protocol)])
        except TimeoutError:
            # A stopped process answers nothing and never will on this connection.
            self.disconnect(peer_id)
            raise PeerUnreachable(f"{peer_id} did not answer in {CONNECT_TIMEOUT_S:g} s") from None
        except Exception as error:  # the library's edge
            raise PeerUnreachable(f"{peer_id} does not serve {protocol}") from error

    def _connections(self, peer_id: str) -> list[Any]:
        return list(self._network.get_connections(ID.from_string(peer_id)))

    @staticmethod
    def _close_raw(connection: Any) -> None:
        raw = guarded_stream_of(connection.muxed_conn)
        if raw is not None:
            raw.close_now()


def _resource_manager() -> Any:
    """Bounds without tempers: by default a peer that reconnects often, or a few refused dials, close the host to it."""
    manager: Any = new_resource_manager(
        limits=ResourceLimits(max_connections=MAX_CONNECTIONS, max_streams=MAX_STREAMS),
        enable_circuit_breaker=False,
        enable_graceful_degradation=False,
    )
    manager.connection_rate_limiter = None
    return manager


def peer_id_of(private_key: bytes) -> str:
    """The peer id of a 32-byte Ed25519 seed."""
    return str(ID.from_pubkey(ed25519_key_pair(private_key).public_key))


def tcp_port(address: Multiaddr) -> int:
    return int(str(address.value_for_protocol("tcp")))


async def reset_stream(stream: Any) -> None:
    """End it without waiting for the peer; what that raises has no meaning any more."""
    with trio.CancelScope(shield=True), trio.move_on_after(1.0):
        try:
            await stream.reset()
        except Exception as error:  # the library's edge
            log.debug("resetting a stream: %r", error)


def _explain(error: BaseException, peer_id: str, place: str) -> str:
    seen: BaseException | None = error
    while seen is not None:
        text = f"{type(seen).__name__} {seen}"
        if "mismatch" in text.lower():
            return f"at {place} is another peer, not {peer_id}"
        if isinstance(seen, OSError):
            return f"nobody listens at {place} ({seen.strerror or seen})"
        seen = seen.__cause__
    return f"{place} could not be reached ({error})"
