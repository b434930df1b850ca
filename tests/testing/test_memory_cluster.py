"""``MemoryCluster`` and the fixture: the real cluster, on time that a test moves."""

from __future__ import annotations

import threading

import pytest

from tauraft import errors
from tauraft.testing import MemoryCluster
from tauraft.testing.pytest_plugin import tauraft_cluster
from tauraft_primitives.locks.messages import Acquire

__all__ = ["tauraft_cluster"]


def test_it_is_a_cluster_and_time_stands(tauraft_cluster: MemoryCluster) -> None:
    tauraft_cluster.kv.put("k", b"v", ttl=30)
    entry = tauraft_cluster.kv.get("k")
    assert entry is not None
    assert entry.value == b"v"
    tauraft_cluster.advance(29)
    assert tauraft_cluster.kv.get("k") is not None
    tauraft_cluster.advance(1)
    assert tauraft_cluster.kv.get("k") is None


def test_its_session_lives_through_hours(tauraft_cluster: MemoryCluster) -> None:
    with tauraft_cluster.lock("l") as hold:
        tauraft_cluster.advance(7_200)
        hold.check()
        assert hold.remaining() > 0


def test_a_hold_with_a_ttl_is_lost_when_its_time_is_over(tauraft_cluster: MemoryCluster) -> None:
    hold = tauraft_cluster.lock("l", ttl=5, renew=False).acquire()
    tauraft_cluster.advance(4)
    hold.check()
    tauraft_cluster.advance(2)
    with pytest.raises(errors.LockLost):
        hold.check()


def test_a_wait_ends_when_another_thread_lets_its_time_pass(tauraft_cluster: MemoryCluster) -> None:
    ended: list[type[BaseException]] = []
    holder = tauraft_cluster.lock("l", reentrant="thread").acquire()
    began = threading.Event()

    def wait() -> None:
        began.set()
        try:
            tauraft_cluster.lock("l", timeout=60).acquire()
        except errors.WaitTimeout as error:
            ended.append(type(error))

    thread = threading.Thread(target=wait)
    thread.start()
    began.wait()
    while thread.is_alive():
        tauraft_cluster.advance(10)
        thread.join(0.05)
    assert ended == [errors.WaitTimeout]
    holder.release()


def test_what_is_not_to_wait_ends_although_time_stands(tauraft_cluster: MemoryCluster) -> None:
    """Of a command whose handler alone knows that it has to wait."""
    lock = tauraft_cluster.lock("l", reentrant="thread")
    with lock, pytest.raises(errors.WaitTimeout):
        tauraft_cluster.submit(Acquire("l"), timeout=0)
    assert not lock.info().waiters


@pytest.mark.tauraft(session_ttl=30)
def test_a_marker_gives_it_options(tauraft_cluster: MemoryCluster) -> None:
    assert tauraft_cluster.session.ttl == 30


def test_two_of_them_know_nothing_of_each_other() -> None:
    with MemoryCluster() as one, MemoryCluster() as other:
        one.kv.put("k", b"v")
        one.advance(100)
        assert other.kv.get("k") is None


def test_time_does_not_go_back_nor_on_when_closed() -> None:
    with MemoryCluster() as cluster, pytest.raises(ValueError, match="not back"):
        cluster.advance(-1)
    with pytest.raises(errors.AlreadyClosed):
        cluster.advance(1)
