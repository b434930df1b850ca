"""The queue state machine, driven by hand: who is given what, when it comes back, and where it ends."""

from __future__ import annotations

import dataclasses
from collections import Counter as Tally
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from tauraft import errors
from tauraft.node.apply import RevisionChanges
from tauraft.node.replica import AnswerKind
from tauraft.system.messages import Transaction
from tauraft.tables import Table
from tauraft.types import QueueStats
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_plugins.queues import fsm
from tauraft_plugins.queues.fsm import Queues
from tauraft_primitives.fencing.messages import CheckHold
from tauraft_primitives.kv.messages import Get, Put
from tauraft_primitives.locks.messages import Acquire
from tauraft_primitives.queues.messages import (
    Ack,
    Bury,
    Claimed,
    Dead,
    Declare,
    Due,
    Enqueue,
    Extend,
    GiveBack,
    Length,
    Nack,
    Pause,
    Peek,
    Pop,
    Purge,
    Redrive,
    Stats,
    TakeItems,
)
from tests.primitives.harness import Harness, Reply, SessionOf


@pytest.fixture
def replica() -> Harness:
    return Harness(Queues)


def put(session: SessionOf, body: str = "x", queue: str = "q", **options: Any) -> Any:
    return session.run(Enqueue(queue, body.encode(), **options)).value


def claim(session: SessionOf, queue: str = "q", **options: Any) -> Claimed | None:
    taken = session.run(TakeItems(queue, **options)).value
    return taken[0] if taken else None


def wait_for_claim(session: SessionOf, queue: str = "q", **options: Any) -> Reply[tuple[Claimed, ...]]:
    return session.run(TakeItems(queue, wait=True, **options))


def claim_bodies(session: SessionOf, queue: str = "q", count: int = 1_000) -> list[str]:
    return [item.body.decode() for item in session.run(TakeItems(queue, count=count)).value]


def state_of(replica: Harness, id_: str, queue: str = "q") -> str | None:
    row = replica.fsm(Queues).items.get((queue, id_))
    return None if row is None else str(row.state)


def stats(session: SessionOf, queue: str = "q") -> QueueStats:
    return session.run(Stats(queue)).value


def dead(replica: Harness, queue: str = "q") -> list[tuple[str, str | None]]:
    return [(item.id, item.reason) for item in replica.query(Dead(queue, 100)).items]


# ---- order ----


def test_items_are_claimed_by_priority_then_in_put_order(replica: Harness) -> None:
    alice = replica.open()
    for body, priority in (("a", 0), ("b", 5), ("c", 0), ("d", -1), ("e", 5)):
        put(alice, body, priority=priority)
    assert claim_bodies(alice) == ["b", "e", "a", "c", "d"]


def test_an_item_is_claimed_by_one_at_a_time(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    put(alice, "a")
    put(alice, "b")
    first, second = claim(alice), claim(bob)
    assert first is not None and second is not None
    assert (first.body, second.body) == (b"a", b"b")
    assert claim(bob) is None


def test_queues_do_not_see_each_others_items(replica: Harness) -> None:
    alice = replica.open()
    put(alice, "a", queue="one", id="same")
    assert put(alice, "b", queue="two", id="same").duplicate is False
    assert claim_bodies(alice, "two") == ["b"]
    assert claim_bodies(alice, "one\0") == []
    assert claim_bodies(alice, "one") == ["a"]


def test_a_returned_item_keeps_its_place(replica: Harness) -> None:
    alice = replica.open()
    for body in "abc":
        put(alice, body)
    first = claim(alice)
    assert first is not None
    alice.run(Nack(first.token))
    assert claim_bodies(alice) == ["a", "b", "c"]


# ---- claims, tokens, time ----


def test_an_acknowledged_item_is_gone_and_its_body_with_it(replica: Harness) -> None:
    alice = replica.open()
    put(alice, id="i")
    job = claim(alice)
    assert job is not None
    assert alice.run(Ack(job.token)).value is None
    assert replica.query(Length("q")) == 0
    assert state_of(replica, "i") == "acked"
    assert len(replica.fsm(Queues).contents) == 0
    with pytest.raises(errors.StaleClaim):
        _ = alice.run(Ack(job.token)).value


def test_a_claim_that_ran_out_returns_by_cluster_time(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    put(alice, "a")
    put(alice, "b")
    job = claim(alice, visibility=10)
    assert job is not None
    replica.advance(9.9)
    assert stats(alice).claimed == 1
    replica.advance(0.1)
    again = claim(bob)
    assert again is not None
    assert (again.body, again.attempts) == (b"a", 2)
    assert again.token > job.token


@pytest.mark.parametrize(
    "end",
    [lambda t: Ack(t), lambda t: Nack(t), lambda t: Bury(t, "bad"), lambda t: GiveBack(t)],
    ids=lambda e: str(e(0)),
)
def test_what_ends_a_claim_is_stale_after_its_time_and_nothing_is_lost(replica: Harness, end: Any) -> None:
    alice, bob = replica.open(), replica.open()
    put(alice, "a")
    old = claim(alice, visibility=5)
    assert old is not None
    replica.advance(5)
    new = claim(bob)
    assert new is not None
    with pytest.raises(errors.StaleClaim):
        _ = alice.run(end(old.token)).value
    assert alice.run(Extend((old.token,), 30)).value == ()
    assert bob.run(Ack(new.token)).value is None


def test_an_extended_claim_runs_out_from_then(replica: Harness) -> None:
    alice = replica.open()
    put(alice)
    job = claim(alice, visibility=10)
    assert job is not None
    replica.advance(8)
    assert alice.run(Extend((job.token,), 10)).value == (job.token,)
    replica.advance(9)
    assert stats(alice).claimed == 1
    replica.advance(1)
    assert stats(alice) == QueueStats(1, 0, 0, 0, 18.0)


def test_a_claim_is_over_at_its_deadline_even_while_timers_lag_behind(replica: Harness) -> None:
    alice = replica.open()
    for _ in range(3):
        alice.run(Transaction(tuple(replica.registry.encode(Enqueue("q", b"")) for _ in range(200))))
    jobs = alice.run(TakeItems("q", visibility=5, count=600)).value
    replica.now_ns += 5_000_000_000
    assert alice.run(Extend((jobs[-1].token,), 5)).value == ()
    with pytest.raises(errors.StaleClaim):
        _ = alice.run(Ack(jobs[-1].token)).value


def test_every_claim_has_a_token_of_its_own_and_it_fences(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    for _ in range(4):
        put(alice)
    tokens = [item.token for item in alice.run(TakeItems("q", count=3)).value]
    waiting = [wait_for_claim(bob), wait_for_claim(bob), wait_for_claim(bob)]
    tokens.append(waiting[0].value[0].token)
    alice.end()  # three items go to two claimers, in one revision
    tokens += [reply.value[0].token for reply in waiting[1:]]
    assert tokens == sorted(set(tokens))
    held = replica.fsm(Queues).is_held
    assert [held(token) for token in tokens] == [False, False, False, True, True, True]
    bob.run(Ack(tokens[-1]))
    assert not held(tokens[-1])


def test_the_claims_of_a_lost_session_return_at_once(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    put(alice, "a")
    put(alice, "b")
    claim(alice, visibility=1_000)
    waiting = wait_for_claim(bob, count=1)
    assert waiting.value[0].body == b"b"
    second = wait_for_claim(bob)
    assert not second.is_done
    alice.end()
    assert (second.value[0].body, second.value[0].attempts) == (b"a", 2)


# ---- waiting ----


def test_a_put_wakes_one_claimer_first_come_first_served(replica: Harness) -> None:
    alice, bob, carol = replica.open(), replica.open(), replica.open()
    first, second = wait_for_claim(bob), wait_for_claim(carol)
    put(alice, "a")
    assert first.value[0].body == b"a"
    assert not second.is_done
    put(alice, "b")
    assert second.value[0].body == b"b"
    assert len(replica.fsm(Queues).waiters) == len(replica.fsm(Queues).wanted) == 0


def test_claimers_of_any_item_and_of_a_group_are_served_in_one_order(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    waiting = [wait_for_claim(bob, groups=groups) for groups in (("g",), None, ("h", "g"), None)]
    for body in "1234":
        put(alice, body, group="g")
        job = next(reply for reply in waiting if reply.is_done and reply.value[0].body == body.encode())
        alice.run(Ack(job.value[0].token))
    assert [reply.value[0].body for reply in waiting] == [b"1", b"2", b"3", b"4"]


def test_items_that_return_together_go_best_first(replica: Harness) -> None:
    alice, bob, carol = replica.open(), replica.open(), replica.open()
    put(alice, "low")
    put(alice, "high", priority=1)
    alice.run(TakeItems("q", count=2))
    first, second = wait_for_claim(bob), wait_for_claim(carol)
    alice.end()
    assert [first.value[0].body, second.value[0].body] == [b"high", b"low"]


def test_a_wait_that_ran_out_leaves_nothing_claimed(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    waiting = wait_for_claim(bob, groups=("a", "b", "a"))
    bob.withdraw(waiting)
    patient = bob.run(TakeItems("q", wait=True), wait_s=2)
    replica.advance(3)
    assert waiting.is_withdrawn and patient.is_withdrawn
    assert len(replica.fsm(Queues).waiters) == len(replica.fsm(Queues).wanted) == 0
    put(alice)
    assert stats(alice).ready == 1


def test_a_claim_whose_answer_was_never_learned_is_as_if_it_had_not_been_made(replica: Harness) -> None:
    alice, bob, carol = replica.open(), replica.open(), replica.open()
    at_once = bob.run(TakeItems("q", count=5))
    bob.withdraw(at_once)
    put(alice, "a")
    put(alice, "b")
    taken = bob.run(TakeItems("q", count=2))
    bob.run(Ack(taken.value[0].token))
    late = wait_for_claim(carol)
    bob.withdraw(taken)
    assert (late.value[0].body, late.value[0].attempts) == (b"b", 1)
    carol.withdraw(late)
    again = claim(alice)
    assert again is not None
    assert again.attempts == 1


def test_a_claim_given_back_does_not_count_as_an_attempt(replica: Harness) -> None:
    alice = replica.open()
    put(alice)
    for _ in range(3):
        job = claim(alice)
        assert job is not None and job.attempts == 1
        alice.run(GiveBack(job.token))


def test_a_session_that_ends_while_it_waits_is_given_nothing(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    put(alice)
    bob.run(TakeItems("q"))
    wait_for_claim(bob)
    bob.end()
    assert stats(alice) == QueueStats(1, 0, 0, 0, 0.0)
    assert len(replica.fsm(Queues).waiters) == 0


def test_a_claim_of_many_takes_what_there_is_and_waits_for_the_first(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    waiting = wait_for_claim(bob, count=3)
    put(alice, "a")
    assert [item.body for item in waiting.value] == [b"a"]
    put(alice, "b")
    put(alice, "c")
    assert claim_bodies(bob, count=3) == ["b", "c"]


def test_an_answer_holds_only_as_many_bodies_as_fit(replica: Harness) -> None:
    alice = replica.open()
    for _ in range(6):
        put(alice, "x" * (1 << 20))
    assert len(alice.run(TakeItems("q", count=6)).value) == 4
    assert stats(alice).ready == 2


def test_a_wait_inside_a_transaction_is_refused(replica: Harness) -> None:
    alice = replica.open()
    reply = alice.run(Transaction((replica.registry.encode(TakeItems("q", wait=True)),)))
    with pytest.raises(errors.InvalidCommand):
        _ = reply.value
    assert len(replica.fsm(Queues).waiters) == 0


# ---- delays and ttl ----


def test_a_delayed_item_is_not_there_before_its_time(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    put(alice, "late", delay=10)
    put(alice, "now")
    assert stats(alice) == QueueStats(1, 1, 0, 0, 0.0)
    assert claim_bodies(alice) == ["now"]
    waiting = wait_for_claim(bob)
    replica.advance(9.9)
    assert not waiting.is_done
    replica.advance(0.1)
    assert waiting.value[0].body == b"late"


def test_a_nack_with_a_delay_hides_the_item_for_so_long(replica: Harness) -> None:
    alice = replica.open()
    put(alice, "a")
    job = claim(alice)
    assert job is not None
    alice.run(Nack(job.token, 5.0, "not yet"))
    replica.advance(4.9)
    assert claim(alice) is None
    replica.advance(0.1)
    again = claim(alice)
    assert again is not None
    assert again.attempts == 2


def test_an_item_with_a_ttl_goes_where_nobody_claims_it(replica: Harness) -> None:
    alice = replica.open()
    put(alice, id="waits", ttl=10)
    put(alice, id="later", ttl=10, delay=20)
    replica.advance(10)
    assert (state_of(replica, "waits"), state_of(replica, "later")) == ("expired", "expired")
    assert stats(alice) == QueueStats(0, 0, 0, 0, None)
    assert replica.machine.next_deadline_ns() is not None  # the session's
    assert len(replica.machine.system.timers) == 1


def test_a_claimed_item_expires_only_when_it_returns(replica: Harness) -> None:
    alice = replica.open()
    put(alice, id="done", ttl=10)
    put(alice, id="returned", ttl=10)
    done, returned = alice.run(TakeItems("q", count=2)).value
    replica.advance(11)
    assert stats(alice).claimed == 2
    alice.run(Ack(done.token))
    alice.run(Nack(returned.token))
    assert (state_of(replica, "done"), state_of(replica, "returned")) == ("acked", "expired")


def test_an_acknowledged_item_leaves_no_timer(replica: Harness) -> None:
    alice = replica.open()
    put(alice, ttl=100)
    job = claim(alice)
    assert job is not None
    alice.run(Ack(job.token))
    assert len(replica.machine.system.timers) == 1  # the session's


# ---- the dead ----


def test_an_item_claimed_too_often_is_dead_with_its_history_and_comes_back_by_redrive(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    alice.run(Declare("q", 3))
    put(alice, "a", id="i")
    job = claim(alice)
    assert job is not None
    alice.run(Nack(job.token, reason="boom"))
    claim(alice, visibility=1)
    replica.advance(1)
    claim(bob)
    bob.end()
    assert stats(alice).ready == 1
    assert claim(alice) is None
    assert stats(alice) == QueueStats(0, 0, 0, 1, None)
    (item,) = replica.query(Dead("q", 10)).items
    assert (item.id, item.body, item.attempts, item.reason) == ("i", b"a", 3, "max-attempts")
    assert item.history == ("nack: boom", "visibility ran out", "session lost")
    assert put(alice, "b", id="i").duplicate is True
    assert alice.run(Redrive("q", 10)).value.count == 1
    again = claim(alice)
    assert again is not None
    assert again.attempts == 1


def test_the_last_declaration_holds(replica: Harness) -> None:
    alice = replica.open()
    alice.run(Declare("q", 1))
    alice.run(Declare("q", 2))
    put(alice)
    for _ in range(2):
        job = claim(alice)
        assert job is not None
        alice.run(Nack(job.token))
    assert claim(alice) is None


def test_a_waiting_claim_passes_over_what_is_exhausted(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    alice.run(Declare("q", 1))
    put(alice, "first", id="first", group="g")
    put(alice, "second", group="g")
    job = claim(alice)
    assert job is not None
    waiting = wait_for_claim(bob)
    alice.run(Nack(job.token))
    assert waiting.value[0].body == b"second"
    assert dead(replica) == [("first", "max-attempts")]


def test_what_burying_opens_up_is_offered_to_the_others_that_wait(replica: Harness) -> None:
    alice, bob, carol = replica.open(), replica.open(), replica.open()
    alice.run(Declare("q", 1))
    put(alice, "first", group="g")
    put(alice, "second", group="g")
    job = claim(alice)
    other = wait_for_claim(bob, groups=("h",))
    waiting = wait_for_claim(carol, groups=("g",))
    assert job is not None
    alice.run(Bury(job.token, "bad"))
    assert waiting.value[0].body == b"second"
    assert not other.is_done


def test_a_buried_item_stays_dead_with_its_reason_whatever_its_ttl(replica: Harness) -> None:
    alice = replica.open()
    put(alice, id="i", ttl=10)
    job = claim(alice)
    assert job is not None
    alice.run(Bury(job.token, "unreadable"))
    replica.advance(20)
    assert dead(replica) == [("i", "unreadable")]
    alice.run(Redrive("q", 1))
    replica.advance(20)
    assert stats(alice).ready == 1


def test_redrive_and_purge_go_in_steps_and_leave_alone_what_came_since(replica: Harness) -> None:
    alice = replica.open()
    fsm_ = replica.fsm(Queues)
    for _ in range(1_100 // 100):
        alice.run(Transaction(tuple(replica.registry.encode(Enqueue("q", b"")) for _ in range(100))))
    first = alice.run(Purge("q")).value
    assert first.count == 1_000
    put(alice, "new")
    second = alice.run(Purge("q", after=first.after, up_to=first.up_to)).value
    assert (second.count, second.after) == (100, None)
    assert claim_bodies(alice) == ["new"]
    assert len(fsm_.contents) == 1
    for _ in range(3):
        put(alice)
        job = claim(alice)
        assert job is not None
        alice.run(Bury(job.token, "bad"))
    assert alice.run(Redrive("q", 2)).value.count == 2
    assert stats(alice).dead == 1
    assert alice.run(Purge("q", dead=True)).value.count == 1
    assert stats(alice) == QueueStats(2, 0, 1, 0, 0.0)


# ---- groups ----


def test_a_group_is_in_order_one_in_flight_and_groups_are_parallel(replica: Harness) -> None:
    alice = replica.open()
    for body, group in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("free", None), ("a3", "a")):
        put(alice, body, group=group, priority=9 if body == "a2" else 0)
    first = alice.run(TakeItems("q", count=10)).value
    assert [item.body for item in first] == [b"a1", b"b1", b"free"]
    assert claim(alice) is None
    alice.run(Ack(first[0].token))
    assert claim_bodies(alice) == ["a2"]
    assert stats(alice) == QueueStats(1, 0, 3, 0, 0.0)


def test_a_returned_or_delayed_item_holds_up_its_group(replica: Harness) -> None:
    alice = replica.open()
    put(alice, "1", group="g")
    put(alice, "2", group="g")
    job = claim(alice)
    assert job is not None
    alice.run(Nack(job.token, 5.0))
    assert claim(alice) is None
    replica.advance(5)
    assert claim_bodies(alice) == ["1"]


def test_a_group_goes_on_past_what_expired_was_purged_or_is_dead(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    for body, ttl in (("expires", 5.0), ("dies", None), ("lives", None)):
        put(alice, body, group="g", ttl=ttl)
    replica.advance(5)
    job = claim(alice)
    assert job is not None and job.body == b"dies"
    waiting = wait_for_claim(bob, groups=("g",))
    alice.run(Bury(job.token, "bad"))
    assert waiting.value[0].body == b"lives"


def test_a_redriven_item_does_not_overtake_the_one_in_flight(replica: Harness) -> None:
    alice = replica.open()
    put(alice, "1", group="g")
    put(alice, "2", group="g")
    job = claim(alice)
    assert job is not None
    alice.run(Bury(job.token, "bad"))
    second = claim(alice)
    assert second is not None and second.body == b"2"
    alice.run(Redrive("q", 1))
    assert claim(alice) is None
    alice.run(Ack(second.token))
    assert claim_bodies(alice) == ["1"]


def test_a_claim_of_groups_takes_from_these_alone_best_first(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    put(alice, "none")
    put(alice, "a", group="a")
    put(alice, "b", group="b", priority=1)
    put(alice, "c", group="c", priority=2)
    assert [item.body for item in alice.run(TakeItems("q", count=9, groups=("a", "b", "b"))).value] == [b"b", b"a"]
    waiting = wait_for_claim(bob, groups=("d", "e"))
    put(alice, "f", group="f")
    assert not waiting.is_done
    put(alice, "e", group="e")
    assert waiting.value[0].body == b"e"
    assert len(replica.fsm(Queues).wanted) == 0


# ---- ids ----


def test_an_id_is_one_item_while_it_is_present(replica: Harness) -> None:
    alice = replica.open()
    first = put(alice, "a", id="i")
    again = put(alice, "b", id="i")
    assert (first.duplicate, again.duplicate, again.revision) == (False, True, first.revision)
    job = claim(alice)
    assert job is not None
    assert put(alice, "b", id="i").duplicate is True
    alice.run(Ack(job.token))
    assert put(alice, "b", id="i").duplicate is False
    assert claim_bodies(alice) == ["b"]


def test_an_id_is_remembered_for_dedupe_for_after_its_ack(replica: Harness) -> None:
    alice = replica.open()
    put(alice, "a", id="i", dedupe_for=60)
    replica.advance(100)
    job = claim(alice)
    assert job is not None
    alice.run(Ack(job.token))
    replica.advance(59.9)
    assert put(alice, "b", id="i").duplicate is True
    replica.advance(0.1)
    assert put(alice, "b", id="i").duplicate is False


def test_an_item_without_an_id_gets_one_that_nothing_else_has(replica: Harness) -> None:
    alice = replica.open()
    guessed = f"revision-{replica.machine.revision + 2}"
    put(alice, "a", id=guessed)
    made_up = put(alice, "b").id
    assert made_up == guessed + "'"
    assert claim_bodies(alice) == ["a", "b"]


# ---- the ledger ----


def test_the_ledger_keeps_the_last_of_what_has_ended_and_forgets_the_rest(
    replica: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsm, "MAX_LEDGER", 3)
    alice = replica.open()
    for number in range(5):
        put(alice, id=str(number))
        job = claim(alice)
        assert job is not None
        alice.run(Ack(job.token))
    put(alice, id="3")  # put again: its old end is overwritten, not kept beside it
    assert [state_of(replica, str(number)) for number in range(5)] == [None, None, "acked", "ready", "acked"]
    assert len(replica.fsm(Queues).ledger) == 2


def test_a_queue_of_which_there_is_nothing_to_say_has_no_row(replica: Harness) -> None:
    alice = replica.open()
    put(alice)
    alice.run(Pause("q", True))
    alice.run(Pause("q", False))
    alice.run(Pop("q"))
    assert len(replica.fsm(Queues).queues) == 0


# ---- operators, the reference's names ----


def test_a_paused_queue_takes_puts_and_acks_and_gives_nothing(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    put(alice, "a")
    job = claim(alice)
    alice.run(Pause("q", True))
    put(alice, "b")
    put(alice, "c")
    waiting = [wait_for_claim(bob), wait_for_claim(bob)]
    assert job is not None
    alice.run(Ack(job.token))
    assert claim(alice) is None
    assert alice.run(Pop("q")).value is None
    assert not waiting[0].is_done
    alice.run(Pause("q", False))
    assert [reply.value[0].body for reply in waiting] == [b"b", b"c"]


def test_purge_drops_what_nobody_holds_and_leaves_claims_to_their_claimers(replica: Harness) -> None:
    alice = replica.open()
    put(alice, "held", id="held")
    job = claim(alice)
    assert job is not None
    put(alice, id="ready", group="g")
    put(alice, id="behind", group="g")
    put(alice, id="delayed", delay=5)
    assert alice.run(Purge("q")).value.count == 3
    assert stats(alice) == QueueStats(0, 0, 1, 0, 0.0)
    assert [state_of(replica, id_) for id_ in ("ready", "behind", "delayed")] == ["purged"] * 3
    alice.run(Ack(job.token))
    replica.advance(10)
    assert state_of(replica, "held") == "acked"


def test_pop_peek_and_length(replica: Harness) -> None:
    alice = replica.open()
    assert replica.query(Peek("q")) is None
    assert alice.run(Pop("q")).value is None
    put(alice, "", id="empty", headers={"b": "2", "a": "1"})
    put(alice, "second")
    peeked = replica.query(Peek("q"))
    assert peeked is not None
    assert (peeked.id, peeked.body, peeked.headers, peeked.attempts) == ("empty", b"", {"a": "1", "b": "2"}, 0)
    popped = alice.run(Pop("q")).value
    assert popped == dataclasses.replace(peeked, attempts=1)
    assert replica.query(Length("q")) == 1


def test_stats_tell_the_age_of_the_oldest_item_that_is_not_done(replica: Harness) -> None:
    alice = replica.open()
    assert stats(alice) == QueueStats(0, 0, 0, 0, None)
    put(alice, "old")
    replica.advance(5)
    put(alice, "new", priority=1)
    replica.advance(1)
    assert stats(alice).oldest_age == 6
    claimed = claim_bodies(alice, count=2)
    assert claimed == ["new", "old"]
    assert stats(alice).oldest_age == 6


# ---- with the others ----


def test_an_outbox_is_one_step_or_nothing() -> None:
    replica = Harness(KeyValue, *HOLDERS, Fencing)
    alice, bob = replica.open(), replica.open()
    token = alice.run(Acquire("x")).value.token
    waiting = wait_for_claim(bob, "mails")
    parts = (Enqueue("mails", b"hello"), Put("greeted", b"yes"), CheckHold(token))
    encoded = Transaction(tuple(replica.registry.encode(part) for part in parts))
    _ = alice.run(encoded).value
    assert waiting.value[0].body == b"hello"
    alice.end()
    second = wait_for_claim(bob, "mails")
    with pytest.raises(errors.NotHolder):
        _ = bob.run(encoded).value
    assert not second.is_done
    assert replica.query(Length("mails")) == 1
    entry = replica.query(Get("greeted"))
    assert entry is not None and entry.version == 1


def test_a_write_may_depend_on_a_claim_still_being_in_force() -> None:
    replica = Harness(KeyValue, *HOLDERS, Fencing)
    alice = replica.open()
    put(alice)
    job = claim(alice, visibility=5)
    assert job is not None
    write = Transaction(tuple(replica.registry.encode(part) for part in (Put("k", b"v"), CheckHold(job.token))))
    assert alice.run(write).value
    replica.advance(5)
    with pytest.raises(errors.NotHolder):
        _ = alice.run(write).value


def test_timers_commands_are_refused_to_sessions(replica: Harness) -> None:
    alice = replica.open()
    put(alice, id="i", delay=5)
    with pytest.raises(errors.InvalidCommand):
        _ = alice.run(Due("q", "i", replica.machine.revision)).value
    assert stats(alice).delayed == 1


def test_a_queue_survives_a_snapshot_partly_claimed(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    for number in range(6):
        put(alice, str(number), group="g" if number < 3 else None)
    put(alice, "late", delay=5)
    job = claim(alice)
    assert job is not None
    wait_for_claim(bob, groups=("g",))
    digest = replica.machine.tables.digest()
    replica.restore()
    assert replica.machine.tables.digest() == digest
    assert alice.run(Ack(job.token)).value is None
    replica.advance(5)
    assert claim_bodies(alice) == ["3", "4", "5", "late"]


@pytest.mark.middle
def test_of_consumers_killed_at_random_no_item_is_lost_and_each_ends_once(replica: Harness) -> None:
    """The full size, with real processes: benchmarks/queue_soak.py."""
    terminal = {"acked", "dead", "expired"}
    ended: Tally[str] = Tally()
    items, draw = 1_000, Random(5)

    def note(frames: Sequence[RevisionChanges]) -> None:
        for frame in frames:
            for table, key, old, new in frame.changes:
                if table == "tauraft.queues/items":
                    assert getattr(old, "state", None) not in terminal or new.state == old.state, "an end is the end"
                    if new.state in terminal and getattr(old, "state", None) not in terminal:
                        ended[key[1]] += 1

    replica.machine.on_changes.append(note)
    producer = replica.open()
    consumers = [replica.open() for _ in range(16)]
    producer.run(Declare("q", 8))
    for number in range(items):
        group = f"g{number % 7}" if number % 3 == 0 else None
        ttl = 30.0 if number % 50 == 0 else None
        producer.run(Enqueue("q", b"x", str(number), group=group, ttl=ttl, priority=number % 3))
    working: list[list[Claimed]] = [[] for _ in consumers]
    while replica.query(Length("q")):
        place = draw.randrange(16)
        if draw.random() < 0.02:
            consumers[place].end()
            consumers[place], working[place] = replica.open(), []
        elif not working[place]:
            working[place] = list(consumers[place].run(TakeItems("q", visibility=5.0, count=draw.randint(1, 5))).value)
        else:
            job = working[place].pop()
            command = draw.choices([Ack(job.token), Nack(job.token, 1.0), Bury(job.token, "bad")], [90, 8, 2])[0]
            reply = consumers[place].run(command)
            if reply.outcome is not None and reply.outcome.kind is AnswerKind.ERROR:
                with pytest.raises(errors.StaleClaim):
                    _ = reply.value
        replica.advance(draw.choice([0.0, 0.0, 0.01, 0.3]))
    assert set(ended) == {str(number) for number in range(items)}
    assert set(ended.values()) == {1}


def test_no_operation_looks_through_the_items_of_a_queue(replica: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The million is measured by benchmarks/queue_scale.py; here it is counted how many rows a command walks over."""
    alice, bob = replica.open(), replica.open()
    for number in range(400):
        group = f"g{number % 20}" if number % 2 else None
        put(alice, id=str(number), group=group, delay=50.0 if number % 5 == 0 else 0.0, priority=number % 3)
    for _ in range(40):
        job = claim(bob)
        assert job is not None
        bob.run(Bury(job.token, "bad"))
    walked = 0
    plain_range = Table.range

    def counted(table: Table[Any, Any], *bounds: Any, **options: Any) -> Any:
        nonlocal walked
        for row in plain_range(table, *bounds, **options):
            walked += 1
            yield row

    monkeypatch.setattr(Table, "range", counted)

    def rows_walked(act: Any) -> int:
        nonlocal walked
        walked = 0
        act()
        return walked

    def work(end: Any) -> None:
        job = claim(alice, groups=("g1", "g2", "g3"))
        assert job is not None
        alice.run(Extend((job.token,), 20))
        alice.run(end(job.token))

    operations = {
        "put": lambda: put(alice, "new"),
        "put again": lambda: put(alice, id="1"),
        "ack": lambda: work(Ack),
        "nack": lambda: work(Nack),
        "bury": lambda: work(lambda token: Bury(token, "bad")),
        "give back": lambda: work(GiveBack),
        "claim": lambda: claim(alice),
        "pop": lambda: alice.run(Pop("q")),
        "redrive": lambda: alice.run(Redrive("q", 1)),
        "stats": lambda: stats(alice),
        "peek": lambda: replica.query(Peek("q")),
        "length": lambda: replica.query(Length("q")),
        "dead": lambda: replica.query(Dead("q", 2)),
        "a session lost": lambda: (claim(bob), bob.end()),
        "a delay over": lambda: replica.advance(51),
    }
    found = {name: rows_walked(act) for name, act in operations.items()}
    # The delays end one by one, each by its own timer: a few rows each.
    assert found.pop("a delay over") < 80 * 8
    assert max(found.values()) < 40, found
