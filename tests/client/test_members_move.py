"""A client that has been linked for long knows where the members are now."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import trio

from tauraft.command_protocol import (
    PROTOCOL_VERSION,
    Attach,
    Attached,
    Hello,
    Open,
    Opened,
    Welcome,
    decode_to_client,
    encode,
)
from tauraft.simulator.world import World, run_world


def test_a_linked_client_is_told_when_a_member_is_elsewhere() -> None:
    async def story(world: World) -> None:
        world.start_all()
        node = await world.wait_for_leader()
        async with world.network.transport("somebody") as transport:
            stream = await transport.connect(
                world.namespace, peer_id=node.peer_id, addresses=[f"/memory/{node.peer_id}"]
            )

            async def hear(kind: type[Any]) -> Any:
                with trio.fail_after(10):
                    while True:
                        for frame in await stream.receive():
                            message = decode_to_client(frame)
                            if isinstance(message, kind):
                                return message

            stream.send(encode(Hello(PROTOCOL_VERSION, "somebody", "", 1)))
            await hear(Welcome)
            stream.send(encode(Open(b"n" * 16, sha256(b"secret").digest(), 10_000_000_000)))
            opened = await hear(Opened)
            stream.send(encode(Attach(opened.session, b"secret", 0)))
            await hear(Attached)

            assert node.replica is not None
            other = next(one for one in world.nodes if one is not node)
            assert other.replica is not None
            moved = replace(other.replica._announcement(), addresses=("/memory/elsewhere",))
            node.replica.propose_system(moved)
            welcome = await hear(Welcome)
            assert {member.peer_id: member.addresses for member in welcome.members}[other.peer_id] == (
                "/memory/elsewhere",
            )

    run_world(5, story)
