"""The state machines of gates, latches, double and cyclic barriers, command by command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tauraft.errors import BrokenBarrier, InvalidArgument, Mismatch, NotHolder, TooLarge
from tauraft.fsm import FSM
from tauraft.testing import check_fsm
from tauraft_plugins.barriers.cyclics import CyclicBarriers
from tauraft_plugins.barriers.doubles import DoubleBarriers
from tauraft_plugins.barriers.gates import Gates
from tauraft_plugins.barriers.latches import Latches
from tauraft_primitives.barriers.messages import (
    Abort,
    Acted,
    Arrive,
    AskCyclic,
    AskDouble,
    AskGate,
    AskLatch,
    AwaitLatch,
    CloseGate,
    CountDown,
    Depart,
    Enter,
    GiveBackPlace,
    GiveUp,
    Leave,
    OpenGate,
    PassGate,
    Reset,
    ResetLatch,
)
from tauraft_primitives.locks.messages import WouldWait
from tests.primitives.harness import Harness, Reply, SessionOf

ALL: list[type[FSM]] = [Gates, Latches, DoubleBarriers, CyclicBarriers]


@pytest.fixture
def replica() -> Harness:
    return Harness(*ALL)


def done(replies: Iterable[Reply[Any]]) -> list[bool]:
    return [reply.is_done for reply in replies]


def who_broke(reply: Reply[Any]) -> int | None:
    """The session that broke it; None: nobody's loss."""
    with pytest.raises(BrokenBarrier) as error:
        _ = reply.value
    return None if error.value.who is None else int(error.value.who["session"])


# ---- gates ----


def test_a_gate_lets_all_pass_at_once_when_it_opens_and_holds_up_who_comes_after_it_closed(replica: Harness) -> None:
    sessions = [replica.open() for _ in range(4)]
    waits = [session.run(PassGate("g")) for session in sessions]
    assert done(waits) == [False] * 4
    assert [owner.session for owner in replica.query(AskGate("g")).waiters] == [session.id for session in sessions]
    before = replica.machine.applied_index
    sessions[0].run(OpenGate("g"))
    assert done(waits) == [True] * 4 and replica.machine.applied_index == before + 1
    assert replica.query(AskGate("g")).is_open
    assert sessions[0].run(PassGate("g")).is_done
    sessions[0].end()
    assert replica.query(AskGate("g")).is_open, "a gate belongs to nobody"
    sessions[1].run(CloseGate("g"))
    assert not sessions[1].run(PassGate("g")).is_done
    with pytest.raises(WouldWait):
        _ = sessions[1].run(PassGate("g", patience=0.0)).value


def test_who_gives_up_or_goes_waits_at_no_gate(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    alice.withdraw(alice.run(PassGate("g")))
    bob.run(PassGate("g"))
    bob.end()
    assert replica.query(AskGate("g")).waiters == ()


# ---- latches ----


def test_a_latch_opens_at_zero_for_good(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    waits = [bob.run(AwaitLatch("l", 3)), carol.run(AwaitLatch("l", 3))]
    assert alice.run(CountDown("l", 3, 2)).value == 1
    assert done(waits) == [False, False]
    alice.end()
    before = replica.machine.applied_index
    assert bob.run(CountDown("l", 3)).value == 0, "who counted and went has counted"
    assert done(waits) == [True, True] and replica.machine.applied_index == before + 1
    assert bob.run(CountDown("l", 3)).value == 0, "never below"
    assert bob.run(AwaitLatch("l", 3)).is_done
    replica.restore()
    assert carol.run(AwaitLatch("l", 3)).is_done
    with pytest.raises(Mismatch):
        _ = bob.run(CountDown("l", 4)).value
    with pytest.raises(Mismatch):
        _ = bob.run(AwaitLatch("l", 4)).value


def test_a_latch_that_is_reset_tells_who_waits_and_one_that_nobody_used_is_forgotten(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    wait = alice.run(AwaitLatch("l", 2))
    assert bob.run(ResetLatch("l")).value is True
    assert who_broke(wait) is None
    assert bob.run(ResetLatch("l")).value is False
    bob.withdraw(bob.run(AwaitLatch("l", 5)))
    assert replica.query(AskLatch("l")) is None
    bob.run(CountDown("l", 2))
    alice.withdraw(alice.run(AwaitLatch("l", 2)))
    assert replica.query(AskLatch("l")).left == 1  # type: ignore[union-attr]
    with pytest.raises(WouldWait):
        _ = alice.run(AwaitLatch("l", 2, patience=0.0)).value


# ---- double barriers ----


def enter(session: SessionOf, parties: int = 3, **options: Any) -> Reply[Any]:
    return session.run(Enter("d", parties, **options))


def in_round(replica: Harness, count: int, **options: Any) -> tuple[list[SessionOf], list[Reply[Any]]]:
    sessions = [replica.open() for _ in range(count)]
    return sessions, [enter(session, count, **options) for session in sessions]


def test_all_enter_together_and_all_leave_together_each_by_one_commit(replica: Harness) -> None:
    sessions = [replica.open() for _ in range(3)]
    entered = [enter(session) for session in sessions[:2]]
    assert done(entered) == [False, False]
    before = replica.machine.applied_index
    entered.append(enter(sessions[2]))
    assert done(entered) == [True] * 3 and replica.machine.applied_index == before + 1
    assert replica.query(AskDouble("d")).generation == 1  # type: ignore[union-attr]
    left = [session.run(Leave("d", reply.value.place)) for session, reply in zip(sessions, entered, strict=True)][:2]
    assert replica.query(AskDouble("d")) is None, "nobody is there any more"
    assert done(left) == [True, True]


def test_nobody_leaves_before_all_do(replica: Harness) -> None:
    sessions, entered = in_round(replica, 3)
    left = []
    for place in range(3):
        assert done(left) == [False] * place
        left.append(sessions[place].run(Leave("d", entered[place].value.place)))
    assert done(left) == [True] * 3
    with pytest.raises(NotHolder):
        _ = sessions[0].run(Leave("d", entered[0].value.place)).value


def test_who_comes_while_others_are_in_waits_for_the_next_round(replica: Harness) -> None:
    sessions, entered = in_round(replica, 2)
    late = [replica.open() for _ in range(2)]
    waits = [enter(session, 2) for session in late]
    assert done(waits) == [False, False], "nobody of the next round is in before all of this one are out"
    sessions[0].run(Leave("d", entered[0].value.place))
    assert done(waits) == [False, False]
    sessions[1].run(Leave("d", entered[1].value.place))
    assert done(waits) == [True, True]
    assert waits[0].value.generation == 2


def test_a_try_that_does_not_complete_the_round_does_not_enter(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    with pytest.raises(WouldWait):
        _ = enter(alice, 2, patience=0.0).value
    assert replica.query(AskDouble("d")) is None
    first = enter(alice, 2)
    second = enter(bob, 2, patience=0.0)
    assert done([first, second]) == [True, True]
    with pytest.raises(WouldWait):
        _ = alice.run(Leave("d", first.value.place, patience=0.0)).value
    assert bob.run(Leave("d", second.value.place)).is_done, "who tried to leave has left"


def test_who_gives_up_entering_has_not_arrived(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    first = enter(alice, 2)
    alice.withdraw(first)
    second = enter(bob, 2)
    assert not second.is_done
    enter(carol, 2)
    assert second.is_done


@pytest.mark.parametrize("how", ["gives up leaving", "never learned it was in", "departs", "is given back"])
def test_nobody_waits_for_who_does_not_come_back(replica: Harness, how: str) -> None:
    (alice, bob), (first, second) = in_round(replica, 2, attempt=7)
    place = first.value.place
    if how == "gives up leaving":
        alice.withdraw(alice.run(Leave("d", place)))
    elif how == "never learned it was in":
        alice.withdraw(first)
    elif how == "departs":
        bob.run(Depart("d", place))  # not its own
        assert replica.query(AskDouble("d")).arrived == 2  # type: ignore[union-attr]
        alice.run(Depart("d", place))
    else:
        alice.run(GiveBackPlace("d", 8))
        assert replica.query(AskDouble("d")).arrived == 2  # type: ignore[union-attr]
        alice.run(GiveBackPlace("d", 7))
    assert bob.run(Leave("d", second.value.place)).is_done


def test_a_party_lost_before_all_are_there_breaks_it_for_those_who_wait(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    waits = [enter(session) for session in (alice, bob)]
    alice.end()
    assert who_broke(waits[1]) == alice.id
    again = [enter(session) for session in (bob, carol, replica.open())]
    assert done(again) == [True] * 3, "the next round is a new one"


def test_a_party_lost_inside_breaks_it_for_all_who_are_in(replica: Harness) -> None:
    (alice, bob, carol), entered = in_round(replica, 3)
    leaves = bob.run(Leave("d", entered[1].value.place))
    late = enter(bob)
    alice.end()
    assert who_broke(leaves) == alice.id
    assert replica.query(AskDouble("d")).broken  # type: ignore[union-attr]
    assert not late.is_done, "who waits for the next round is none of it"
    assert who_broke(carol.run(Leave("d", entered[2].value.place))) == alice.id
    assert not replica.query(AskDouble("d")).broken  # type: ignore[union-attr]


def test_it_shrinks_by_a_lost_party(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    waits = [enter(session, on_loss="shrink") for session in (alice, bob)]
    alice.end()
    assert not waits[1].is_done and replica.query(AskDouble("d")).parties == 2  # type: ignore[union-attr]
    third = enter(carol, on_loss="shrink")
    assert done([waits[1], third]) == [True, True]
    leaves = bob.run(Leave("d", waits[1].value.place))
    carol.end()
    assert leaves.value is None


def test_a_lost_party_may_be_ignored(replica: Harness) -> None:
    alice, bob, carol, dave = (replica.open() for _ in range(4))
    waits = [enter(session, on_loss="ignore") for session in (alice, bob)]
    alice.end()
    third = enter(carol, on_loss="ignore")
    assert not third.is_done, "it is as if it had not arrived"
    enter(dave, on_loss="ignore")
    assert third.is_done
    leaves = [bob.run(Leave("d", waits[1].value.place)), carol.run(Leave("d", third.value.place))]
    assert done(leaves) == [False, False]
    dave.end()
    assert done(leaves) == [True, True]


# ---- cyclic barriers ----


def arrive(session: SessionOf, parties: int = 3, **options: Any) -> Reply[Any]:
    return session.run(Arrive("c", parties, **options))


def cyclic(replica: Harness) -> Any:
    return replica.query(AskCyclic("c"))


def test_it_gives_the_order_of_arrival_again_and_again_by_one_commit(replica: Harness) -> None:
    sessions = [replica.open() for _ in range(3)]
    for generation in range(1, 4):
        replies = [arrive(session) for session in sessions[:2]]
        assert done(replies) == [False, False]
        before = replica.machine.applied_index
        replies.append(arrive(sessions[2]))
        assert replica.machine.applied_index == before + 1
        assert [reply.value.index for reply in replies] == [0, 1, 2]
        assert (cyclic(replica).generation, cyclic(replica).arrived) == (generation, 0)
        sessions.reverse()
        replica.restore()


def test_the_last_that_has_an_action_runs_it_before_anyone_goes_on(replica: Harness) -> None:
    alice, bob, carol, dave = (replica.open() for _ in range(4))
    waits = [arrive(alice, has_action=True), arrive(bob, has_action=True), arrive(carol)]
    assert done(waits) == [False, True, False]
    acts = waits[1].value
    assert acts.index == 1 and acts.act > 0
    late = arrive(dave)
    assert not late.is_done and cyclic(replica).generation == 0
    with pytest.raises(WouldWait):
        _ = arrive(dave, patience=0.0).value
    with pytest.raises(BrokenBarrier):
        _ = bob.run(Acted("c", acts.act + 1)).value
    before = replica.machine.applied_index
    assert bob.run(Acted("c", acts.act)).value is None
    assert replica.machine.applied_index == before + 1
    assert [waits[0].value.index, waits[2].value.index] == [0, 2]
    assert not late.is_done and cyclic(replica).arrived == 1
    with pytest.raises(BrokenBarrier):
        _ = bob.run(Acted("c", acts.act)).value


def test_an_action_that_fails_breaks_it_for_all(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    waits = [arrive(alice, 2), arrive(bob, 2, has_action=True, attempt=5)]
    alice.run(GiveUp("c", 5))
    bob.run(GiveUp("c", 4))
    assert not waits[0].is_done
    bob.run(GiveUp("c", 5))
    assert who_broke(waits[0]) == bob.id
    assert who_broke(arrive(alice, 2)) == bob.id, "until it is reset"
    alice.run(Reset("c"))
    assert not arrive(alice, 2).is_done


@pytest.mark.parametrize("on_loss", ["break", "shrink", "ignore"])
def test_one_lost_while_it_acts_breaks_it_whatever_is_done_about_losses(replica: Harness, on_loss: str) -> None:
    alice, bob = replica.open(), replica.open()
    wait = arrive(alice, 2, on_loss=on_loss)
    arrive(bob, 2, on_loss=on_loss, has_action=True)
    bob.end()
    assert who_broke(wait) == bob.id


def test_one_that_was_told_to_act_and_never_learned_it_breaks_it(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    wait = arrive(alice, 2)
    acts = arrive(bob, 2, has_action=True)
    bob.withdraw(acts)
    assert who_broke(wait) == bob.id


def test_one_lost_while_another_acts(replica: Harness) -> None:
    sessions = [replica.open() for _ in range(3)]
    waits = [arrive(session, on_loss="ignore", has_action=session is sessions[0]) for session in sessions]
    late = arrive(replica.open(), on_loss="ignore")
    sessions[1].end()
    sessions[0].run(Acted("c", waits[0].value.act))
    assert waits[2].value.index == 2
    assert not late.is_done


def test_one_that_gives_up_breaks_it_for_all_and_for_who_comes(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    waits = [arrive(alice), arrive(bob)]
    alice.withdraw(waits[0])
    assert who_broke(waits[1]) == alice.id
    assert cyclic(replica).broken
    assert who_broke(arrive(carol)) == alice.id
    replica.restore()
    carol.run(Reset("c"))
    assert cyclic(replica) is None
    assert done([arrive(session) for session in (alice, bob, carol)]) == [True] * 3


def test_abort_and_reset_break_it_for_those_inside(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    wait = arrive(alice)
    bob.run(Reset("c"))
    assert who_broke(wait) is None
    wait = arrive(alice)
    assert not wait.is_done, "a reset one is new"
    bob.run(Abort("c", 3))
    assert who_broke(wait) is None and who_broke(arrive(bob)) is None
    bob.run(Reset("c"))
    bob.run(Abort("c", 3))
    assert who_broke(arrive(alice)) is None, "also where nobody had waited"
    bob.run(Reset("c"))
    bob.run(Reset("c"))
    assert done([arrive(alice, 2), arrive(bob, 2)]) == [True, True], "with other parties too"


def test_a_party_lost_between_two_rounds_breaks_the_next_one_too(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    assert done([arrive(session) for session in (alice, bob, carol)]) == [True] * 3
    wait = arrive(alice)
    carol.end()
    assert who_broke(wait) == carol.id
    assert who_broke(arrive(bob)) == carol.id
    alice.end()
    bob.end()
    assert cyclic(replica) is None, "a job that is run again finds a fresh one"


def test_a_party_that_no_longer_takes_part_is_not_missed(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    for session in (alice, bob, bob, carol):
        arrive(session, 2)
    assert cyclic(replica).generation == 2
    alice.end()
    assert not cyclic(replica).broken


def test_a_cyclic_barrier_shrinks_by_those_who_are_lost_wherever_they_are(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    for session in (alice, bob, carol, carol):
        arrive(session, 4, on_loss="shrink")
    waits = [arrive(alice, 4, on_loss="shrink"), arrive(carol, 4, on_loss="shrink")]
    carol.end()
    assert cyclic(replica).parties == 2 and not waits[0].is_done, "both of its parties are gone, arrived or not"
    last = arrive(bob, 4, on_loss="shrink")
    assert [waits[0].value.index, last.value.index] == [0, 1]
    bob.end()
    assert arrive(alice, 4, on_loss="shrink").value.index == 0, "alone"


def test_the_place_of_a_lost_party_is_taken_by_another_when_losses_are_ignored(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    first = arrive(alice, 2, on_loss="ignore")
    alice.end()
    assert not arrive(bob, 2, on_loss="ignore").is_done, "the dead do not count as arrived"
    assert arrive(carol, 2, on_loss="ignore").value.index == 1
    assert not first.is_done


def test_another_number_of_parties_or_another_rule_is_a_mismatch(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    arrive(alice)
    enter(alice)
    for command in (
        Arrive("c", 4), Arrive("c", 3, "shrink"), Enter("d", 2), Enter("d", 3, "ignore"),
    ):  # fmt: skip
        with pytest.raises(Mismatch):
            _ = bob.run(command).value
    assert cyclic(replica).arrived == 1


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: OpenGate(""), InvalidArgument),
        (lambda: PassGate("x" * 600), TooLarge),
        (lambda: CountDown("x", 0), InvalidArgument),
        (lambda: CountDown("x", 1, -1), InvalidArgument),
        (lambda: AwaitLatch("x", True), TypeError),
        (lambda: Enter("x", 0), InvalidArgument),
        (lambda: Enter("x", 2, "explode"), InvalidArgument),  # type: ignore[arg-type]
        (lambda: Arrive("x", 1 << 20), InvalidArgument),
        (lambda: Abort("x", 2.0), TypeError),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_made(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


@pytest.mark.middle
@pytest.mark.parametrize("fsm", ALL)
def test_they_replicate(fsm: type[FSM]) -> None:
    check_fsm(fsm, examples=30)
