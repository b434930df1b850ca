"""The state machine of locks for readers and writers, command by command."""

from __future__ import annotations

import pytest

from tauraft.errors import Deadlock, InvalidArgument, NotHolder, UpgradeRefused
from tauraft_plugins.locks.rwlocks import RwLocks
from tauraft_primitives.locks.messages import Grant, WouldWait
from tauraft_primitives.rwlocks.messages import AcquireRw, Downgrade, GiveBackRw, HoldsRw, ReleaseRw, RwStanding
from tests.primitives.harness import Harness, Reply, SessionOf


@pytest.fixture
def replica() -> Harness:
    return Harness(RwLocks)


def read(session: SessionOf, party: int = 0) -> Reply[Grant]:
    return session.run(AcquireRw("x", "read", party=party))


def write(session: SessionOf, party: int = 0) -> Reply[Grant]:
    return session.run(AcquireRw("x", "write", party=party))


def test_readers_share_and_a_writer_is_alone(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    first, second = read(alice), read(bob)
    assert first.is_done and second.is_done
    writer = write(carol)
    alice.run(ReleaseRw("x", first.value.token))
    assert not writer.is_done
    bob.run(ReleaseRw("x", second.value.token))
    assert writer.is_done
    assert not read(alice).is_done


def test_a_reader_that_comes_after_a_waiting_writer_is_behind_it(replica: Harness) -> None:
    alice, bob, carol, dave = (replica.open() for _ in range(4))
    first = read(alice)
    writer = write(bob)
    later = read(carol)
    last = write(dave)
    assert not later.is_done, "or writers would starve"
    alice.run(ReleaseRw("x", first.value.token))
    assert writer.is_done and not later.is_done
    bob.run(ReleaseRw("x", writer.value.token))
    assert later.is_done and not last.is_done


def test_readers_in_a_row_get_in_together(replica: Harness) -> None:
    holder, *others = (replica.open() for _ in range(6))
    writer = write(holder)
    readers = [read(session) for session in others[:4]]
    second = write(others[4])
    before = replica.machine.applied_index
    holder.run(ReleaseRw("x", writer.value.token))
    assert replica.machine.applied_index == before + 1
    assert all(reader.is_done for reader in readers) and not second.is_done
    assert len({reader.value.token for reader in readers}) == 4


def test_upgrading_is_refused_and_what_is_held_stays(replica: Harness) -> None:
    alice = replica.open()
    reader = read(alice)
    with pytest.raises(UpgradeRefused):
        _ = write(alice).value
    assert replica.query(HoldsRw("x", reader.value.token))
    assert not write(alice, party=2).is_done, "another thread of the session just waits"


def test_a_writer_that_asks_again_for_ever_is_told(replica: Harness) -> None:
    alice = replica.open()
    write(alice)
    for again in (read, write):
        with pytest.raises(Deadlock):
            _ = again(alice).value
    assert not alice.run(AcquireRw("x", "read", patience=5.0)).is_done


def test_a_reader_may_read_again_past_a_waiting_writer(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    read(alice)
    writer = write(bob)
    assert read(alice).is_done, "the writer waits for alice in any case"
    assert not writer.is_done


def test_downgrading_lets_readers_in_and_no_writer_between(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    writer = write(alice)
    reader = read(bob)
    second = write(carol)
    alice.run(Downgrade("x", writer.value.token))
    assert reader.is_done and not second.is_done
    assert replica.query(HoldsRw("x", writer.value.token)), "the token stays"
    alice.run(ReleaseRw("x", writer.value.token))
    bob.run(ReleaseRw("x", reader.value.token))
    assert second.is_done
    with pytest.raises(NotHolder):
        _ = alice.run(Downgrade("x", writer.value.token)).value


def test_a_writer_that_gives_up_lets_the_readers_behind_it_in(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    read(alice)
    writer = write(bob)
    reader = read(carol)
    bob.withdraw(writer)
    assert reader.is_done


def test_tries_interrupted_attempts_and_lost_sessions_leave_nothing(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    alice.run(AcquireRw("x", "write", attempt=3))
    with pytest.raises(WouldWait):
        _ = bob.run(AcquireRw("x", "read", patience=0.0)).value
    waiting = bob.run(AcquireRw("x", "read", attempt=5))
    assert replica.query(RwStanding("x", bob.id, 5)) is not None
    alice.run(GiveBackRw("x", 3))
    assert waiting.is_done
    granted = alice.run(AcquireRw("x", "read"))
    alice.withdraw(granted)
    alice.run(AcquireRw("x", "read"))
    alice.end()
    bob.end()
    assert [table.name for table in replica.fsm(RwLocks).tables() if len(table)] == []
    with pytest.raises(InvalidArgument):
        AcquireRw("x", "upgrade")  # type: ignore[arg-type]
