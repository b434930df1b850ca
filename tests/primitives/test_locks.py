"""The lock state machine, command by command."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from tauraft.errors import Deadlock, InvalidArgument, InvalidCommand, NotHolder
from tauraft_plugins.locks.fsm import Locks
from tauraft_primitives.locks.messages import (
    LOCKS,
    Acquire,
    AcquireAll,
    AskStanding,
    AwaitEnd,
    Break,
    ExplainLock,
    GiveBack,
    Grant,
    HoldEnds,
    Holds,
    Info,
    ListLocks,
    Release,
    Renew,
    WouldWait,
)
from tests.primitives.harness import Harness, Reply, SessionOf


@pytest.fixture
def replica() -> Harness:
    return Harness(Locks)


def take(session: SessionOf, *names: str, **options: object) -> list[Reply[Grant]]:
    return [session.run(Acquire(name, **options)) for name in names]  # type: ignore[arg-type]


def tokens(replies: Iterable[Reply[Grant]]) -> list[int]:
    return [reply.value.token for reply in replies]


# ---- one lock ----


def test_one_holds_and_waiters_are_served_in_order(replica: Harness) -> None:
    sessions = [replica.open() for _ in range(4)]
    replies = [session.run(Acquire("x")) for session in sessions]
    assert [reply.is_done for reply in replies] == [True, False, False, False]
    for place in range(3):
        sessions[place].run(Release("x", replies[place].value.token))
        assert [reply.is_done for reply in replies] == [n <= place + 1 for n in range(4)]
    assert tokens(replies) == sorted(set(tokens(replies)))


def test_higher_priority_is_served_first(replica: Harness) -> None:
    holder, low, high, other_high = (replica.open() for _ in range(4))
    (first,) = take(holder, "x")
    (waits_low,) = take(low, "x", priority=0)
    (waits_high,) = take(high, "x", priority=5)
    (also_high,) = take(other_high, "x", priority=5)
    holder.run(Release("x", first.value.token))
    assert waits_high.is_done and not also_high.is_done and not waits_low.is_done
    high.run(Release("x", waits_high.value.token))
    assert also_high.is_done and not waits_low.is_done


def test_a_hand_over_is_one_commit(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    (first,) = take(alice, "x")
    (second,) = take(bob, "x")
    before = replica.machine.applied_index
    alice.run(Release("x", first.value.token))
    assert replica.machine.applied_index == before + 1
    assert second.value.waited and not first.value.waited


def test_what_a_lost_session_held_goes_to_its_waiters_each_with_a_token_of_its_own(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    take(alice, "x", "y")
    (of_bob,) = take(bob, "x")
    (of_carol,) = take(carol, "y")
    alice.end()
    assert of_bob.value.token != of_carol.value.token
    bob.run(Release("x", of_bob.value.token))
    assert replica.fsm(Locks).is_held(of_carol.value.token)
    assert not replica.fsm(Locks).is_held(of_bob.value.token)


def test_a_try_is_refused_at_once_and_leaves_nothing(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    take(alice, "x")
    before = replica.machine.applied_index
    with pytest.raises(WouldWait):
        _ = bob.run(Acquire("x", patience=0.0)).value
    assert replica.machine.applied_index == before + 1
    assert not replica.query(Info("x")).waiters


def test_release_and_renewal_with_an_old_token_change_nothing(replica: Harness) -> None:
    alice = replica.open()
    (first,) = take(alice, "x")
    alice.run(Release("x", first.value.token))
    (second,) = take(alice, "x")
    for command in (Release("x", first.value.token), Renew("x", first.value.token), Release("y", second.value.token)):
        with pytest.raises(NotHolder):
            _ = alice.run(command).value
    assert replica.query(Holds("x", second.value.token))


def test_a_ttl_runs_out_by_cluster_time_and_a_renewal_gives_it_whole_again(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    (first,) = take(alice, "x", ttl=10.0)
    (second,) = take(bob, "x")
    replica.advance(9)
    alice.run(Renew("x", first.value.token))
    replica.advance(9)
    assert not second.is_done
    replica.advance(2)
    assert second.is_done
    with pytest.raises(NotHolder):
        _ = alice.run(Renew("x", first.value.token)).value


def test_timers_are_nobody_elses_command(replica: Harness) -> None:
    alice = replica.open()
    (first,) = take(alice, "x", ttl=10.0)
    with pytest.raises(InvalidCommand):
        _ = alice.run(HoldEnds("x", first.value.token)).value


@pytest.mark.parametrize("how", ["ttl", "session"])
def test_a_lost_lock_cools_down(replica: Harness, how: str) -> None:
    alice, bob = replica.open(), replica.open()
    take(alice, "x", ttl=10.0 if how == "ttl" else None, lock_delay=5.0)
    (second,) = take(bob, "x")
    if how == "ttl":
        replica.advance(10)
    else:
        alice.end()
    replica.advance(4.9)
    assert not second.is_done
    assert "cools down" in replica.query(ExplainLock("x")).ends
    with pytest.raises(WouldWait):
        _ = bob.run(Acquire("x", patience=0.0, party=1)).value
    replica.advance(0.2)
    assert second.is_done


def test_a_lock_released_cleanly_does_not_cool_down(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    (first,) = take(alice, "x", lock_delay=5.0)
    (second,) = take(bob, "x")
    alice.run(Release("x", first.value.token))
    assert second.is_done


def test_an_interrupted_attempt_is_given_back_without_its_token(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    alice.run(Acquire("x", attempt=7))
    bob.run(GiveBack(("x",), 7))
    alice.run(GiveBack(("x",), 6))
    assert replica.query(Info("x")).token is not None
    alice.run(GiveBack(("x", "y"), 7))
    assert replica.query(Info("x")).token is None


def test_a_break_is_on_record(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    (first,) = take(alice, "x", host="host1", label="worker")
    assert bob.run(Break("x", "it hangs", "peer", "host2", 12, "operator")).value is True
    assert bob.run(Break("x", "again")).value is False
    told = replica.query(Info("x")).last_break
    assert told is not None
    assert (told.reason, told.by.label, told.by.session, told.holder.label, told.token) == (
        "it hangs", "operator", bob.id, "worker", first.value.token,
    )  # fmt: skip
    with pytest.raises(InvalidArgument):
        Break("x", "")


def test_the_records_of_breaks_are_bounded(replica: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauraft_plugins.locks.fsm.MAX_BREAKS", 3)
    alice = replica.open()
    for name in ("a", "b", "b", "c", "d"):
        take(alice, name)
        alice.run(Break(name, "test"))
    assert list(replica.fsm(Locks).breaks) == ["b", "c", "d"]
    assert len(replica.fsm(Locks).broken) == 3


def test_a_holder_may_wait_for_its_holds_end(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    (first,) = take(alice, "x")
    told, gives_up = alice.run(AwaitEnd("x", first.value.token)), alice.run(AwaitEnd("x", first.value.token))
    alice.withdraw(gives_up)
    assert not told.is_done
    bob.run(Break("x", "it hangs"))
    assert told.is_done
    assert alice.run(AwaitEnd("x", first.value.token)).is_done, "it has ended already"
    assert not replica.fsm(Locks).watchers


def test_info_list_standing_and_explanation(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    (first,) = take(alice, "x", ttl=30.0, renews=True, reason="backfill", label="worker-3", host="host2", pid=812)
    take(alice, "y")
    take(bob, "x", attempt=1, reason="deploy")
    take(carol, "x", attempt=1)
    info = replica.query(Info("x"))
    assert (info.token, info.reason) == (first.value.token, "backfill")
    assert info.holder is not None and (info.holder.label, info.holder.pid) == ("worker-3", 812)
    assert [owner.session for owner in info.waiters] == [bob.id, carol.id]
    assert [found.name for found in replica.query(ListLocks())] == ["x", "y"]
    assert [found.name for found in replica.query(ListLocks("x"))] == ["y"]
    assert [found.name for found in replica.query(ListLocks("", 1))] == ["x"]
    standing = replica.query(AskStanding("x", carol.id, 1))
    assert standing is not None and standing.ahead == 1 and standing.reason == "backfill"
    assert replica.query(AskStanding("x", carol.id, 2)) is None
    told = replica.query(ExplainLock("x"))
    assert told.ttl == 30.0 and told.expires is not None and "renewed before" in told.ends
    assert [wait.reason for wait in told.waits] == ["deploy", None]
    assert replica.query(ExplainLock("nothing")).ends == "nobody holds it"


@pytest.mark.parametrize("clean", [True, False])
def test_nothing_is_left_when_all_is_over(replica: Harness, clean: bool) -> None:
    alice, bob = replica.open(), replica.open()
    held = take(alice, "x", "y", ttl=10.0)
    waiting = [bob.run(Acquire("x")), bob.run(AcquireAll(("x", "y")))]
    if clean:
        for reply in waiting:
            bob.withdraw(reply)
        for name, reply in zip("xy", held, strict=True):
            alice.run(Release(name, reply.value.token))
    else:
        bob.end()
        alice.end()
    assert [table.name for table in replica.fsm(Locks).tables() if len(table)] == []
    assert not [row for row in replica.machine.system.timers.values() if row.fsm == LOCKS]


# ---- several locks at once ----


def test_lock_all_takes_all_or_none(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    (of_alice,) = take(alice, "b")
    both = bob.run(AcquireAll(("a", "b")))
    assert not both.is_done
    assert replica.query(Info("a")).token is None
    alice.run(Release("b", of_alice.value.token))
    assert len(set(both.value.tokens)) == 2
    assert all(replica.query(Holds(name, token)) for name, token in zip("ab", both.value.tokens, strict=True))


def test_lock_all_does_not_starve(replica: Harness) -> None:
    alice, bob, carol, dave = (replica.open() for _ in range(4))
    (of_alice,) = take(alice, "b")
    both = bob.run(AcquireAll(("a", "b")))
    (later,) = take(carol, "a")
    (later_b,) = take(dave, "b")
    assert not later.is_done, "a is kept for the one that came before"
    alice.run(Release("b", of_alice.value.token))
    assert both.is_done and not later.is_done and not later_b.is_done
    bob.run(Release("a", both.value.tokens[0]))
    assert later.is_done and not later_b.is_done


def test_two_that_want_all_in_other_orders_both_get_it(replica: Harness) -> None:
    holder, alice, bob = (replica.open() for _ in range(3))
    held = take(holder, "a", "b", "c")
    first = alice.run(AcquireAll(("c", "a")))
    second = bob.run(AcquireAll(("a", "b", "c")))
    for name, reply in zip("abc", held, strict=True):
        holder.run(Release(name, reply.value.token))
    assert first.is_done and not second.is_done
    for name, token in zip("ca", first.value.tokens, strict=True):
        alice.run(Release(name, token))
    assert second.is_done


def test_a_withdrawn_lock_all_lets_the_next_ones_on(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    take(alice, "b")
    both = bob.run(AcquireAll(("a", "b")))
    (of_carol,) = take(carol, "a")
    bob.withdraw(both)
    assert of_carol.is_done


def test_who_holds_what_lock_all_waits_for_is_let_past(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    (held,) = take(alice, "b")
    both = bob.run(AcquireAll(("a", "b")))
    (nested,) = take(alice, "a")
    assert nested.is_done, "lock_all cannot go on before alice does"
    assert not both.is_done
    alice.run(Release("a", nested.value.token))
    alice.run(Release("b", held.value.token))
    assert both.is_done


def test_lock_all_is_passed_also_by_one_that_its_holder_waits_for(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    take(alice, "c")
    take(bob, "d")
    all_of_it = carol.run(AcquireAll(("a", "c")))
    (of_bob,) = take(bob, "a")
    assert not of_bob.is_done
    take(alice, "d")  # from here on carol waits for alice, who waits for bob, who waits for carol
    assert of_bob.is_done
    assert not all_of_it.is_done


def test_lock_all_is_passed_when_the_lock_becomes_free_later(replica: Harness) -> None:
    alice, bob, dave = (replica.open() for _ in range(3))
    (of_dave,) = take(dave, "a")
    take(alice, "b")
    both = bob.run(AcquireAll(("a", "b")))
    (nested,) = take(alice, "a")
    dave.run(Release("a", of_dave.value.token))
    assert nested.is_done and not both.is_done


def test_names_are_given_once_each() -> None:
    for names in ((), ("a", "a"), ("",)):
        with pytest.raises(InvalidArgument):
            AcquireAll(names)
    with pytest.raises(TypeError):
        AcquireAll(["a"])  # type: ignore[arg-type]


# ---- deadlock ----


def test_the_youngest_waiter_of_a_cycle_is_told(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    take(alice, "a")
    (of_bob,) = take(bob, "b")
    take(carol, "c")
    (first,) = take(alice, "b")
    (second,) = take(bob, "c")
    (third,) = take(carol, "a")
    with pytest.raises(Deadlock) as told:
        _ = third.value
    assert set(told.value.cycle) == {"a", "b", "c"}
    assert not first.is_done and not second.is_done
    carol.end()
    assert second.is_done
    bob.run(Release("b", of_bob.value.token))
    assert first.is_done


def test_waiting_for_ever_for_what_one_holds_oneself_is_a_deadlock(replica: Harness) -> None:
    alice = replica.open()
    take(alice, "a")
    with pytest.raises(Deadlock) as told:
        _ = alice.run(Acquire("a")).value
    assert told.value.cycle == ("a",)
    assert not alice.run(Acquire("a", patience=5.0)).is_done, "a time-out is not for ever"


def test_threads_of_one_session_are_not_in_each_others_way(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    take(alice, "a", party=1)
    take(bob, "b", party=1)
    (first,) = take(alice, "b", party=2)
    (second,) = take(bob, "a", party=2)
    assert not first.is_done and not second.is_done
    with pytest.raises(Deadlock):
        _ = (take(bob, "a", party=1) + take(alice, "b", party=1))[1].value


def test_a_hold_that_runs_out_by_itself_keeps_nobody_for_ever(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    take(alice, "a", ttl=10.0)
    take(bob, "b")
    (first,) = take(alice, "b")
    (second,) = take(bob, "a")
    assert not first.is_done and not second.is_done
    replica.advance(10)
    assert second.is_done


def test_a_renewed_ttl_is_as_good_as_none_in_a_cycle(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    take(alice, "a", ttl=10.0, renews=True)
    take(bob, "b")
    take(alice, "b")
    with pytest.raises(Deadlock):
        _ = take(bob, "a")[0].value


def test_a_cycle_through_lock_all_has_its_victim_too(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    take(alice, "a")
    take(bob, "b")
    both = bob.run(AcquireAll(("a", "c")))
    (nested,) = take(alice, "b")
    with pytest.raises(Deadlock):
        _ = nested.value
    assert not both.is_done


def test_a_cycle_closed_by_a_grant_is_found(replica: Harness) -> None:
    """A party that waits twice is granted one of the two, and with it closes the cycle."""
    alice, bob, carol = (replica.open() for _ in range(3))
    (of_carol,) = take(carol, "a")
    take(bob, "b")
    (first,) = take(alice, "a")
    (also,) = take(alice, "b")
    (second,) = take(bob, "a")
    assert not second.is_done
    carol.run(Release("a", of_carol.value.token))
    assert first.is_done and not also.is_done
    with pytest.raises(Deadlock):
        _ = second.value


# ---- size ----


def hand_over_ns(waiters: int) -> float:
    """Nanoseconds a hand-over takes with that many in the queue: the best of some, since the machine has other work."""
    replica = Harness(Locks)
    sessions = [replica.open() for _ in range(20)]
    holder = replica.open()
    token = holder.run(Acquire("x")).value.token
    replies = [sessions[n % 20].run(Acquire("x", party=n + 1)) for n in range(waiters)]
    best = float("inf")
    for place in range(40):
        started = time.perf_counter_ns()
        holder.run(Release("x", token))
        best = min(best, time.perf_counter_ns() - started)
        token = replies[place].value.token
        holder = sessions[place % 20]
    return best


@pytest.mark.middle
def test_a_hand_over_among_ten_thousand_waiters_costs_little_more_than_among_a_hundred() -> None:
    few, many = hand_over_ns(100), hand_over_ns(10_000)
    assert many < 4 * few, f"{few} ns with 100 waiters, {many} ns with 10,000"
