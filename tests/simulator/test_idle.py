"""What is only waited for costs nothing: a cluster with thousands of waits and deadlines commits the sessions' keepalives, and nothing else."""

from __future__ import annotations

from collections import Counter

import trio

from tauraft.commands import Put
from tauraft.node.batch import decode_batch
from tauraft.simulator.world import SimulatedClient, SimulatedNode, World, run_world
from tauraft_primitives.locks.messages import Acquire

MANY = 1_000
TTL_S = 10.0
MINUTE_S = 60.0


def committed(node: SimulatedNode, after: int) -> Counter[str]:
    """How many messages of each kind the entries behind ``after`` hold."""
    replica = node.replica
    assert replica is not None
    log = replica.driver.raft.log
    entries = log.entries(after + 1, log.commit + 1, 1 << 30)
    items = [item for entry in entries for item in decode_batch(entry.data).items]
    return Counter(replica.decode(item[-1]).tag for item in items) + Counter({"entries": len(entries)})


def test_waiters_and_deadlines_commit_nothing_while_they_wait() -> None:
    async def story(world: World) -> None:
        world.snapshot_entries = 1_000_000
        world.start_all()
        await world.wait_for_leader()
        async with trio.open_nursery() as nursery:
            clients: list[SimulatedClient] = []
            for _ in world.nodes:
                client = world.client(ttl_s=TTL_S)
                await client.__aenter__()
                await client.opened()
                clients.append(client)
            await clients[0].submit(Acquire("lock"))
            async with trio.open_nursery() as putting:
                for number in range(MANY):
                    putting.start_soon(clients[0].submit, Put(f"key {number}", b"v", ttl=3_600.0))
            for number in range(MANY):
                waiter = clients[1 + number % 2]
                nursery.start_soon(lambda waiter=waiter: waiter.submit(Acquire("lock"), 7_200.0, waits=True))  # type: ignore[misc]
            await trio.sleep(TTL_S)

            leader = await world.wait_for_leader()
            assert leader.replica is not None
            before, revision = leader.replica.driver.raft.log.commit, leader.replica.machine.revision
            assert sum(len(session.tickets) for session in leader.replica.machine.sessions) == MANY
            await trio.sleep(MINUTE_S)
            told = committed(leader, before)
            renewals = len(clients) * MINUTE_S / (TTL_S / 3)
            assert set(told) == {"KeepAlive", "entries"}, told
            assert MINUTE_S / TTL_S <= told["entries"] <= renewals + len(clients)
            assert leader.replica.machine.revision - revision <= told["KeepAlive"]
            for client in clients:
                assert not client.is_lost
                client.kill()
            nursery.cancel_scope.cancel()

    run_world(11, story)
