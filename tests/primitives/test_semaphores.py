"""The semaphore state machine, command by command."""

from __future__ import annotations

import pytest

from tauraft.errors import InvalidArgument, Mismatch, NotHolder
from tauraft_plugins.locks.semaphores import Semaphores
from tauraft_primitives.locks.messages import WouldWait
from tauraft_primitives.semaphores.messages import (
    AcquirePermits,
    GiveBackPermits,
    HoldsPermits,
    PermitsInfo,
    PermitsStanding,
    ReleasePermits,
    Resize,
)
from tests.primitives.harness import Harness


@pytest.fixture
def replica() -> Harness:
    return Harness(Semaphores)


def available(replica: Harness, name: str = "x") -> int:
    found = replica.query(PermitsInfo(name))
    assert found is not None
    return found.available


def test_no_more_permits_than_there_are_first_come_first_served(replica: Harness) -> None:
    sessions = [replica.open() for _ in range(4)]
    replies = [session.run(AcquirePermits("x", 2)) for session in sessions]
    assert [reply.is_done for reply in replies] == [True, True, False, False]
    sessions[1].run(ReleasePermits("x", replies[1].value.token))
    assert [reply.is_done for reply in replies] == [True, True, True, False]
    assert len({reply.value.token for reply in replies[:3]}) == 3


def test_one_that_wants_many_is_not_overtaken(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    first = alice.run(AcquirePermits("x", 3, 2))
    many = bob.run(AcquirePermits("x", 3, 3))
    one = carol.run(AcquirePermits("x", 3, 1))
    assert not many.is_done and not one.is_done, "a permit is free, and kept for who came first"
    alice.run(ReleasePermits("x", first.value.token))
    assert many.is_done and not one.is_done
    bob.withdraw(many)
    assert one.is_done


def test_another_number_of_permits_is_a_mismatch(replica: Harness) -> None:
    alice = replica.open()
    first = alice.run(AcquirePermits("x", 2))
    for permits, count in ((3, 1), (2, 3)):
        with pytest.raises(Mismatch):
            _ = alice.run(AcquirePermits("x", permits, count)).value
    alice.run(ReleasePermits("x", first.value.token))
    with pytest.raises(Mismatch):
        _ = alice.run(AcquirePermits("x", 3)).value
    for make in (lambda: AcquirePermits("x", 0), lambda: AcquirePermits("x", 1, 0), lambda: Resize("x", 0)):
        with pytest.raises(InvalidArgument):
            make()


def test_a_resize_lets_the_next_ones_in_and_takes_from_nobody(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    first = alice.run(AcquirePermits("x", 1))
    second = bob.run(AcquirePermits("x", 1))
    carol.run(Resize("x", 3))
    assert second.is_done
    third = carol.run(AcquirePermits("x", 3, 1))
    assert third.is_done
    big = carol.run(AcquirePermits("x", 3, 3))
    carol.run(Resize("x", 2))
    with pytest.raises(Mismatch):
        _ = big.value
    assert available(replica) == -1
    assert replica.query(HoldsPermits("x", first.value.token))
    fourth = carol.run(AcquirePermits("x", 1))
    assert not fourth.is_done, "who knows it as it was made may go on using it, within what there is"
    alice.run(ReleasePermits("x", first.value.token))
    assert not fourth.is_done
    bob.run(ReleasePermits("x", second.value.token))
    assert fourth.is_done


def test_a_pool_may_be_sized_before_it_is_used(replica: Harness) -> None:
    alice = replica.open()
    alice.run(Resize("x", 2))
    assert alice.run(AcquirePermits("x", 2)).is_done
    with pytest.raises(Mismatch):
        _ = alice.run(AcquirePermits("x", 3)).value


def test_tries_stale_releases_and_interrupted_attempts(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    first = alice.run(AcquirePermits("x", 1, attempt=4))
    with pytest.raises(WouldWait):
        _ = bob.run(AcquirePermits("x", 1, patience=0.0)).value
    waiting = bob.run(AcquirePermits("x", 1, attempt=4))
    standing = replica.query(PermitsStanding("x", bob.id, 4))
    assert standing is not None and standing.ahead == 0
    assert replica.query(PermitsStanding("x", alice.id, 4)) is None
    bob.run(GiveBackPermits("x", 4))
    assert replica.query(HoldsPermits("x", first.value.token))
    alice.run(GiveBackPermits("x", 4))
    assert waiting.is_done
    with pytest.raises(NotHolder):
        _ = alice.run(ReleasePermits("x", first.value.token)).value


def test_a_lost_session_gives_all_its_permits_back(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    alice.run(AcquirePermits("x", 2))
    alice.run(AcquirePermits("x", 2))
    replies = [bob.run(AcquirePermits("x", 2)) for _ in range(2)]
    alice.end()
    assert all(reply.is_done for reply in replies)
    bob.end()
    assert available(replica) == 2
    assert [t.name for t in replica.fsm(Semaphores).tables() if len(t)] == [
        "tauraft.semaphores/pools",
        "tauraft.semaphores/idle",
    ]


def test_the_number_of_idle_pools_is_bounded(replica: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft_plugins.locks.semaphores.MAX_IDLE", 2)
    alice = replica.open()
    for name in "abcd":
        reply = alice.run(AcquirePermits(name, 1))
        if name != "a":
            alice.run(ReleasePermits(name, reply.value.token))
    assert list(replica.fsm(Semaphores).pools) == ["a", "c", "d"]
    assert replica.query(PermitsInfo("b")) is None
