"""Elections, barriers, groups, partitions, once and rate limits as a user writes them; every type is what the call says."""

from __future__ import annotations

from typing import assert_type

import tauraft


def leading(cluster: tauraft.Cluster) -> None:
    election = cluster.election("x", min_tenure=5, on_lost=lambda term: print(term.token))
    with election.leadership("me", priority=1) as term, cluster.raft_leadership() as also:
        assert_type(term, tauraft.Term)
        assert_type(also, tauraft.Term)
        assert_type(term.value, bytes)

    def main(term: tauraft.Term) -> int:
        return term.token

    assert_type(election.run(main), int)
    assert_type(election.leader(), tauraft.Leader | None)
    assert_type(election.info().candidates, tuple[tauraft.Owner, ...])
    with election.observe() as leaders:
        assert_type(leaders.next(), tauraft.Leader | None)


async def leading_awaited(cluster: tauraft.AsyncCluster) -> None:
    async def main(term: tauraft.AsyncTerm) -> str:
        await term.proclaim("busy")
        return "done"

    assert_type(await cluster.election("x").run(main), str)
    assert_type(await cluster.raft_leadership().run(main), str)
    async with cluster.leadership("x") as term:
        assert_type(term, tauraft.AsyncTerm)
    async with cluster.election("x").observe() as leaders:
        async for leader in leaders:
            assert_type(leader, tauraft.Leader | None)


def meeting(client: tauraft.Client) -> None:
    assert_type(client.cyclic_barrier("c", 2, lambda: print("here"), on_loss="shrink").wait(timeout=5), int)
    with client.double_barrier("d", 2) as barrier:
        assert_type(barrier, tauraft.DoubleBarrier)
        assert_type(barrier.info(), tauraft.BarrierInfo)
    assert_type(client.gate("g").is_open(), bool)
    assert_type(client.latch("l", 3).count_down(), int)


async def sharing(client: tauraft.AsyncClient) -> None:
    async with client.group("g").join(b"me") as member:
        assert_type(member, tauraft.AsyncMembership)
    assert_type(await client.group("g").join(), tauraft.AsyncMembership)
    async with client.group("g").watch() as present:
        assert_type(await present.next(), tuple[tauraft.GroupMember, ...])
    async with client.partitioner("p", 4) as mine:
        async for partition in mine:
            async with partition:
                assert_type(partition.partition, int)

    async def work(turn: tauraft.AsyncTurn) -> bytes:
        return b"done"

    assert_type(await client.once("o").run(work), bytes)
    limit = client.rate_limit("r", rate=10, burst=5)
    assert_type(await limit.try_acquire(), bool)
    async with limit:
        pass


def sharing_blocking(client: tauraft.Client) -> None:
    with client.group("g").join(id="a") as member:
        assert_type(member, tauraft.Membership)
    with client.partitioner("p", 4) as mine, mine.next() as partition:
        assert_type(partition, tauraft.Partition)
    assert_type(client.once("o").run(lambda turn: turn.name.encode()), bytes)
