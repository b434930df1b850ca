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
