"""The state machine of ``once``, command by command."""

from __future__ import annotations

from typing import Any

import pytest

from tauraft.errors import InvalidArgument, NotHolder, TooLarge
from tauraft.testing import check_fsm
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_plugins.once.fsm import Once
from tauraft_primitives.fencing.messages import CheckHold
from tauraft_primitives.locks.messages import WouldWait
from tauraft_primitives.once.messages import (
    AskOnce,
    Begin,
    Begun,
    Finish,
    ForgetOnce,
    GiveBackTurn,
    GiveUpTurn,
    HasTurn,
)
from tests.primitives.harness import Harness, Reply, SessionOf


@pytest.fixture
def replica() -> Harness:
    return Harness(*HOLDERS, Fencing)


def three(replica: Harness) -> tuple[list[SessionOf], list[Reply[Begun]]]:
    sessions = [replica.open() for _ in range(3)]
    return sessions, [session.run(Begin("x")) for session in sessions]


def test_one_runs_it_and_all_who_wait_are_told_the_result_by_one_commit(replica: Harness) -> None:
    sessions, turns = three(replica)
    assert [turn.is_done for turn in turns] == [True, False, False]
    assert replica.query(AskOnce("x")).state == "running"
    token = turns[0].value.token
    before = replica.machine.applied_index
    sessions[0].run(Finish("x", token, b"done"))
    assert replica.machine.applied_index == before + 1
    assert [turn.value for turn in turns[1:]] == [Begun(0, b"done")] * 2
    replica.restore()
    for session in sessions:
        assert session.run(Begin("x")).value == Begun(0, b"done"), "for good"
    info = replica.query(AskOnce("x"))
    assert (info.state, info.result, info.runner.session) == ("done", b"done", sessions[0].id)  # type: ignore[union-attr]
    sessions[0].end()
    assert sessions[1].run(Begin("x")).value == Begun(0, b"done")
    with pytest.raises(NotHolder):
        _ = sessions[1].run(Finish("x", token, b"again")).value


@pytest.mark.parametrize(
    "how", ["gives up", "is lost", "is lost having learned it", "never learned it", "is given back"]
)
def test_a_runner_that_does_not_finish_makes_way_for_the_next(replica: Harness, how: str) -> None:
    sessions, turns = three(replica)
    token = turns[0].value.token
    if how == "gives up":
        sessions[0].run(GiveUpTurn("x", token))
    elif how.startswith("is lost"):
        if how.endswith("learned it"):
            sessions[0].learn()
        sessions[0].end()
    elif how == "never learned it":
        sessions[0].withdraw(turns[0])
    else:
        sessions[0].run(GiveBackTurn("x", 1))
        assert not turns[1].is_done
        sessions[0].run(GiveBackTurn("x", 0))
    assert turns[1].value.token > token and not turns[2].is_done
    for command in (Finish("x", token), GiveUpTurn("x", token)):
        with pytest.raises(NotHolder):
            _ = sessions[2].run(command).value
    sessions[1].run(Finish("x", turns[1].value.token, b"ok"))
    assert turns[2].value.result == b"ok"


def test_the_turn_fences(replica: Harness) -> None:
    sessions, turns = three(replica)
    token = turns[0].value.token
    assert sessions[1].run(CheckHold(token)).value is None
    assert replica.query(HasTurn("x", token)) and not replica.query(HasTurn("y", token))
    sessions[0].run(Finish("x", token))
    with pytest.raises(NotHolder):
        _ = sessions[1].run(CheckHold(token)).value


def test_who_gives_up_waiting_waits_no_more_and_a_try_does_not_wait(replica: Harness) -> None:
    sessions, turns = three(replica)
    sessions[1].withdraw(turns[1])
    with pytest.raises(WouldWait):
        _ = sessions[1].run(Begin("x", patience=0.0)).value
    sessions[0].run(GiveUpTurn("x", turns[0].value.token))
    assert turns[2].value.token and replica.query(AskOnce("x")).waiters == ()
    sessions[2].run(GiveUpTurn("x", turns[2].value.token))
    assert replica.query(AskOnce("x")).state == "idle"


def test_what_is_done_may_be_forgotten(replica: Harness) -> None:
    alice = replica.open()
    assert alice.run(ForgetOnce("x")).value is False
    token = alice.run(Begin("x")).value.token
    assert alice.run(ForgetOnce("x")).value is False, "it is not done"
    alice.run(Finish("x", token))
    assert alice.run(ForgetOnce("x")).value is True
    assert alice.run(Begin("x")).value.token > token


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Begin(""), InvalidArgument),
        (lambda: Finish("x", 1, "text"), TypeError),  # type: ignore[arg-type]
        (lambda: Finish("x", 1, b"x" * ((1 << 20) + 1)), TooLarge),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_made(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


@pytest.mark.middle
def test_it_replicates() -> None:
    check_fsm(Once, examples=40)
