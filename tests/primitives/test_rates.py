"""The rate limit state machine, command by command and against the arithmetic of a bucket."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tauraft.errors import InvalidArgument, InvalidCommand, Mismatch
from tauraft.testing import check_fsm
from tauraft_plugins.rates.fsm import Rates
from tauraft_primitives.locks.messages import WouldWait
from tauraft_primitives.rates.messages import AskRate, Retune, TakeTokens, TokensDue, TryTokens
from tests.primitives.harness import Harness


@pytest.fixture
def replica() -> Harness:
    return Harness(Rates)


def test_a_burst_and_then_so_many_a_second(replica: Harness) -> None:
    alice = replica.open()
    tries = [alice.run(TryTokens("r", 2.0, 3)).value for _ in range(4)]
    assert tries == [True, True, True, False]
    for _ in range(4):
        replica.advance(0.5)
        assert [alice.run(TryTokens("r", 2.0, 3)).value for _ in range(2)] == [True, False]
    replica.advance(100)
    assert replica.query(AskRate("r")).available == 3, "it never holds more than the burst"  # type: ignore[union-attr]


def test_waiters_are_served_in_their_order_as_tokens_come(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    assert alice.run(TakeTokens("r", 1.0, 5, 5)).is_done
    many = alice.run(TakeTokens("r", 1.0, 5, 3))
    few = bob.run(TakeTokens("r", 1.0, 5, 1))
    assert not bob.run(TryTokens("r", 1.0, 5)).value
    replica.advance(2.9)
    assert not many.is_done and not few.is_done, "one that wants many is not overtaken"
    assert replica.query(AskRate("r")).waiters == 2  # type: ignore[union-attr]
    replica.advance(0.2)
    assert many.is_done and not few.is_done
    replica.restore()
    replica.advance(1)
    assert few.is_done


def test_who_gives_up_takes_nothing_and_makes_way(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    alice.run(TakeTokens("r", 1.0, 4, 4))
    first, second = alice.run(TakeTokens("r", 1.0, 4, 4)), bob.run(TakeTokens("r", 1.0, 4, 1))
    replica.advance(1)
    alice.withdraw(first)
    assert second.is_done
    with pytest.raises(WouldWait):
        _ = alice.run(TakeTokens("r", 1.0, 4, patience=0.0)).value
    bob.withdraw(second)
    assert alice.run(TryTokens("r", 1.0, 4)).value, "what was granted and never learned of is there again"
    third = alice.run(TakeTokens("r", 1.0, 4))
    alice.end()
    assert not third.is_done and replica.query(AskRate("r")).waiters == 0  # type: ignore[union-attr]


def test_what_a_lost_session_was_granted_counts_as_used(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    assert alice.run(TakeTokens("r", 1.0, 2, 2)).is_done
    alice.end()
    assert not bob.run(TryTokens("r", 1.0, 2)).value


def test_another_rate_is_a_mismatch_until_it_is_retuned(replica: Harness) -> None:
    alice = replica.open()
    alice.run(TakeTokens("r", 1.0, 4, 4))
    for command in (TryTokens("r", 2.0, 4), TakeTokens("r", 1.0, 5)):
        with pytest.raises(Mismatch):
            _ = alice.run(command).value
    waits, too_many = alice.run(TakeTokens("r", 1.0, 4)), alice.run(TakeTokens("r", 1.0, 4, 3))
    alice.run(Retune("r", 10.0, 2, 1.0, 4))
    with pytest.raises(Mismatch):
        _ = too_many.value
    assert not waits.is_done
    replica.advance(0.15)
    assert waits.is_done, "its rate is the new one"
    assert not alice.run(TryTokens("r", 1.0, 4)).value, "who names the old one goes on"
    with pytest.raises(Mismatch):
        _ = alice.run(TryTokens("r", 1.0, 4, 3)).value
    replica.advance(60)
    alice.run(TryTokens("other", 1.0, 1))
    assert replica.query(AskRate("r")).rate == 10.0  # type: ignore[union-attr]


def test_one_that_is_full_is_retuned_all_the_same(replica: Harness) -> None:
    alice = replica.open()
    alice.run(Retune("r", 10.0, 2, 1.0, 4))
    replica.advance(100)
    tries = [alice.run(TryTokens("r", 1.0, 4)).value for _ in range(3)]
    assert tries == [True, True, False], "its burst is the new one, for who names the old one too"


def test_a_full_bucket_is_forgotten(replica: Harness) -> None:
    alice = replica.open()
    for number in range(50):
        alice.run(TryTokens(f"user/{number}", 1.0, 2))
    assert len(replica.fsm(Rates).buckets) == 50
    replica.advance(10)
    for _ in range(50):
        alice.run(TryTokens("busy", 1.0, 2))
    assert list(replica.fsm(Rates).buckets) == ["busy"]
    assert len(replica.fsm(Rates).full) == 1


def test_timers_are_nobody_elses_command(replica: Harness) -> None:
    with pytest.raises(InvalidCommand):
        _ = replica.open().run(TokensDue("r")).value


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 2_000), st.integers(1, 4)), max_size=30), st.sampled_from([0.7, 1.0, 3.0]))
def test_it_never_gives_more_than_a_bucket_would(steps: list[tuple[int, int]], rate: float) -> None:
    replica = Harness(Rates)
    alice = replica.open()
    burst = 4
    level = Fraction(burst)  # of an exact bucket; ours counts in nanoseconds
    for milliseconds, n in steps:
        replica.advance(milliseconds / 1_000)
        level = min(Fraction(burst), level + Fraction(milliseconds, 1_000) * Fraction(rate))
        if alice.run(TryTokens("r", rate, burst, n)).value:
            level -= n
            assert level > -Fraction(1, 1_000_000)
        else:
            assert level < n + Fraction(1, 1_000_000)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TryTokens("", 1.0, 1),
        lambda: TryTokens("r", 0.0, 1),
        lambda: TryTokens("r", float("nan"), 1),
        lambda: TryTokens("r", 1.0, 0),
        lambda: TryTokens("r", 1.0, 2, 3),
        lambda: TryTokens("r", 1e-6, 1_000_000),
        lambda: Retune("r", -1.0, 1, 1.0, 1),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_made(make: Any) -> None:
    with pytest.raises(InvalidArgument):
        make()


@pytest.mark.middle
def test_it_replicates() -> None:
    check_fsm(Rates, examples=40)
