"""An administrative call that arrived where the leader is not: sent on to the leader, once, and its answer brought back.

Over the namespace's command stream, as any client's call.  It is marked as forwarded, so that two replicas that each hold the
other for the leader do not send it back and forth.  Where the stream breaks after it was sent, nobody knows what became of it: ``Unavailable``
with the outcome unknown.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, Final

import anyio
import msgpack

from tauraft import errors
from tauraft.command_protocol import (
    PROTOCOL_VERSION,
    Call,
    Failed,
    Hello,
    MalformedFrame,
    Told,
    decode_to_client,
    encode,
)
from tauraft.node.replica import LeaderInfo
from tauraft.transport.transport import MessageStream, PeerUnreachable, StreamClosed, Transport

FORWARDED: Final = "forwarded"
PATIENCE_S: Final = 15.0


async def forward_call(
    transport: Transport, namespace: str, leader: LeaderInfo, method: str, arguments: Mapping[str, Any]
) -> Any:
    """What the leader answers. Raises what it raises; ``NoLeader`` when it cannot be reached; ``Unavailable``."""
    try:
        stream = await transport.connect(namespace, peer_id=leader.peer_id, addresses=leader.addresses)
    except PeerUnreachable as error:
        raise errors.NoLeader(f"the leader {leader.peer_id} cannot be reached ({error}); nothing was done") from error
    try:
        stream.send(encode(Hello(PROTOCOL_VERSION, "", socket.gethostname(), os.getpid())))
        stream.send(encode(Call(1, method, {**arguments, FORWARDED: True})))
        with anyio.fail_after(PATIENCE_S):
            return await _answer(stream)
    except (StreamClosed, MalformedFrame, TimeoutError) as error:
        raise errors.Unavailable(
            f"the leader {leader.peer_id} was asked for {method} and gave no answer; it may have been done: look at the "
            "members before asking again",
            outcome="unknown",
        ) from error
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()


async def _answer(stream: MessageStream) -> Any:
    while True:
        for frame in await stream.receive():
            match decode_to_client(frame):
                case Told(_, _, data):
                    return msgpack.unpackb(data, use_list=False)
                case Failed(_, _, _, error):
                    raise errors.decode(error)
                case _:
                    pass  # Welcome and the leader's news
