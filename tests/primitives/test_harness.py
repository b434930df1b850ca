"""The harness that the primitives' tests stand on does what a replica would."""

from __future__ import annotations

import pytest

from tauraft.errors import NotHolder
from tauraft_plugins.locks.fsm import Locks
from tauraft_primitives.locks.messages import Acquire, Release
from tests.primitives.harness import Harness


def test_a_wait_is_answered_by_a_later_command() -> None:
    replica = Harness(Locks)
    alice, bob = replica.open(), replica.open()
    first = alice.run(Acquire("x"))
    second = bob.run(Acquire("x"))
    assert not second.is_done
    alice.run(Release("x", first.value.token))
    assert second.value.token > first.value.token
    with pytest.raises(NotHolder):
        _ = alice.run(Release("x", first.value.token)).value


def test_time_fires_timers_and_patience() -> None:
    replica = Harness(Locks)
    alice, bob, carol = replica.open(), replica.open(), replica.open()
    alice.run(Acquire("x", ttl=10.0))
    second = bob.run(Acquire("x"), wait_s=5)
    third = carol.run(Acquire("x"))
    replica.advance(6)
    assert second.is_withdrawn
    assert not third.is_done
    replica.advance(5)
    assert third.value.token


def test_withdrawing_an_answer_gives_the_grant_back() -> None:
    replica = Harness(Locks)
    alice, bob = replica.open(), replica.open()
    first = alice.run(Acquire("x"))
    second = bob.run(Acquire("x"))
    alice.withdraw(first)
    assert first.is_withdrawn
    assert second.value.token
    bob.end()
    assert alice.run(Acquire("x")).is_done
