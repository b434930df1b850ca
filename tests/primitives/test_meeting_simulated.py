"""Elections and barriers over three replicas that are cut off and killed."""

from __future__ import annotations

import pytest

from tauraft import errors
from tauraft.testing import SimulatedCluster

pytestmark = pytest.mark.middle


def test_a_leader_that_is_cut_off_knows_it_before_another_is_elected() -> None:
    with SimulatedCluster(seed=3) as cluster:
        raft_leader = cluster.leader
        assert raft_leader is not None
        first = cluster.client(raft_leader)
        term = first.election("x").campaign(b"first")
        cluster.partition({raft_leader})
        cluster.advance(20)
        with pytest.raises(errors.LeadershipLost):
            term.check()
        second = cluster.client((raft_leader + 1) % 3)
        following = second.election("x").campaign(timeout=30)
        assert following.token > term.token
        cluster.heal()
        with pytest.raises(errors.NotHolder):
            cluster.client().fenced(term.token).put("k", b"stale")
        cluster.client().fenced(following.token).put("k", b"good")


def test_a_term_and_a_barrier_survive_the_kill_of_the_raft_leader() -> None:
    with SimulatedCluster(seed=5) as cluster:
        raft_leader = cluster.leader
        assert raft_leader is not None
        stays = cluster.client((raft_leader + 1) % 3)
        term = stays.election("x").campaign()
        gate = stays.gate("g")
        gate.open()
        stays.latch("l", 2).count_down()
        cluster.kill(raft_leader)
        cluster.advance(3)
        term.verify()
        assert gate.is_open() and stays.latch("l", 2).count_down() == 0


def test_raft_leadership_goes_where_raft_leads() -> None:
    with SimulatedCluster(seed=11) as cluster:
        raft_leader = cluster.leader
        assert raft_leader is not None
        first = cluster.client(raft_leader).raft_leadership()
        term = first.__enter__()
        cluster.kill(raft_leader)
        cluster.advance(20)
        following = cluster.leader
        assert following not in (None, raft_leader)
        with cluster.client(following).raft_leadership() as after:
            assert after.token > term.token
            found = cluster.client(3 - raft_leader - following).raft_leadership().leader()  # type: ignore[operator]
            assert found is not None and found.token == after.token
        with pytest.raises(errors.LeadershipLost):
            term.check()


def test_partitions_of_a_worker_that_is_cut_off_go_to_another_after_it_stopped() -> None:
    with SimulatedCluster(seed=13) as cluster:
        raft_leader = cluster.leader
        assert raft_leader is not None
        cut_off = (raft_leader + 1) % 3
        theirs = cluster.client(cut_off).partitioner("p", 2)
        theirs.__enter__()
        held = [theirs.next(5), theirs.next(5)]
        cluster.partition({cut_off})
        cluster.advance(20)
        for partition in held:
            with pytest.raises(errors.LockLost):
                partition.check()
        with cluster.client(raft_leader).partitioner("p", 2) as mine:
            taken = [mine.next(30), mine.next(30)]
            assert sorted(partition.partition for partition in taken) == [0, 1]
            assert min(partition.token for partition in taken) > max(partition.token for partition in held)


def test_the_logs_barrier_waits_until_what_was_committed_is_applied_here() -> None:
    with SimulatedCluster(seed=7) as cluster:
        raft_leader = cluster.leader
        assert raft_leader is not None
        behind = (raft_leader + 1) % 3
        reader = cluster.client(behind)
        cluster.partition({behind})
        cluster.client(raft_leader).kv.put("k", b"v")
        assert reader.kv.get("k", consistency="stale") is None
        cluster.heal()
        reader.barrier(timeout=30)
        assert reader.kv.get("k", consistency="stale") is not None
