"""``SimulatedCluster``: what a user's test sees of three replicas that can be hurt."""

from __future__ import annotations

import pytest

from tauraft import errors
from tauraft.testing import SimulatedCluster


def test_a_write_survives_the_kill_of_its_leader() -> None:
    with SimulatedCluster() as cluster:
        client = cluster.client()
        client.kv.put("k", b"v")
        first = cluster.leader
        assert first is not None
        cluster.kill(first)
        entry = client.kv.get("k")
        assert entry is not None
        assert entry.value == b"v"
        assert cluster.leader not in (first, None)
        cluster.restart(first)
        cluster.advance(5)
        assert cluster.client(first).kv.get("k") is not None


def test_a_minority_answers_nothing_and_loses_what_it_held() -> None:
    with SimulatedCluster(seed=3) as cluster:
        leader = cluster.leader
        assert leader is not None
        holder = cluster.client(leader)
        hold = holder.lock("l").acquire()
        cluster.partition({leader})
        with pytest.raises(errors.Unavailable):
            holder.kv.put("k", b"lost", timeout=5)
        cluster.advance(20)
        with pytest.raises(errors.LockLost):
            hold.check()
        other = cluster.client((leader + 1) % 3)
        assert other.lock("l").acquire(timeout=30).token > hold.token
        cluster.heal()


@pytest.mark.parametrize("seed", range(5))
def test_a_client_that_can_reach_another_leaves_a_replica_that_is_cut_off(seed: int) -> None:
    """In time for its session, so that it keeps what it holds."""
    with SimulatedCluster(seed=seed) as cluster:
        client = cluster.client()
        hold = client.lock("l").acquire()
        leader = cluster.leader  # whom it talks to
        assert leader is not None
        cluster.partition({leader})
        client.kv.put("k", b"v", timeout=20)
        cluster.advance(30)
        hold.check()
        hold.verify()


def test_without_a_majority_nothing_is_written_and_with_it_again_all_is_there() -> None:
    with SimulatedCluster(seed=1) as cluster:
        client = cluster.client()
        client.kv.put("a", b"1")
        cluster.kill(0)
        cluster.kill(1)
        with pytest.raises(errors.Unavailable):
            client.kv.put("b", b"2", timeout=5)
        cluster.restart(0)
        assert client.kv.get("a", timeout=60) is not None


def test_one_seed_is_one_story() -> None:
    def story() -> tuple[int | None, int, int | None]:
        with SimulatedCluster(seed=9) as cluster:
            client = cluster.client()
            first = cluster.leader
            assert first is not None
            cluster.kill(first)
            return first, client.kv.put("k", b"v"), cluster.leader

    assert story() == story()


def test_a_replica_that_is_not_there_is_refused() -> None:
    with SimulatedCluster(replicas=1) as cluster:
        with pytest.raises(errors.InvalidArgument):
            cluster.kill(1)
        with pytest.raises(TypeError):
            cluster.kill("0")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument):
        SimulatedCluster(replicas=0)
