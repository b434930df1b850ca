"""The state machine of ``once``, command by command."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

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


class Doing(RuleBasedStateMachine):
    """Sessions that ask, finish, give up and die: one runs at a time, in order, and once it is done all have its result."""

    def __init__(self) -> None:
        super().__init__()
        self.replica = Harness(Once)
        self.sessions = [self.replica.open() for _ in range(3)]
        self.asking: list[tuple[SessionOf, Reply[Begun]]] = []  # the first of them runs it
        self.result: bytes | None = None
        self.last_token = 0

    def settle(self) -> None:
        if self.asking:
            token = self.asking[0][1].value.token
            assert token >= self.last_token and token
            self.last_token = token

    @rule(who=st.integers(0, 2))
    def ask(self, who: int) -> None:
        reply = self.sessions[who].run(Begin("x"))
        if self.result is not None:
            assert reply.value == Begun(0, self.result)
            return
        self.asking.append((self.sessions[who], reply))
        self.settle()

    @precondition(lambda self: self.asking)
    @rule(result=st.sampled_from([b"", b"1"]))
    def finish(self, result: bytes) -> None:
        (session, reply), *others = self.asking
        session.run(Finish("x", reply.value.token, result))
        assert [other.value for _, other in others] == [Begun(0, result)] * len(others)
        self.asking, self.result = [], result

    @precondition(lambda self: self.asking)
    @rule()
    def give_up(self) -> None:
        session, reply = self.asking.pop(0)
        session.run(GiveUpTurn("x", reply.value.token))
        self.settle()

    @precondition(lambda self: self.asking)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        session, reply = one = data.draw(st.sampled_from(self.asking))
        session.withdraw(reply)
        self.asking.remove(one)
        self.settle()

    @rule(who=st.integers(0, 2), learned=st.booleans())
    def lose_session(self, who: int, learned: bool) -> None:
        lost, self.sessions[who] = self.sessions[who], self.replica.open()
        if learned:
            lost.learn()
        lost.end()
        self.asking = [one for one in self.asking if one[0] is not lost]
        self.settle()

    @precondition(lambda self: self.result is not None)
    @rule(who=st.integers(0, 2))
    def forget(self, who: int) -> None:
        assert self.sessions[who].run(ForgetOnce("x")).value is True
        self.result = None

    @rule()
    def restore(self) -> None:
        self.replica.restore()

    @invariant()
    def only_the_first_runs_it(self) -> None:
        assert [reply.is_done for _, reply in self.asking] == [place == 0 for place in range(len(self.asking))]

    def teardown(self) -> None:
        for session in self.sessions:
            session.end()
        left = [table.name for table in self.replica.fsm(Once).tables() if len(table)]
        assert left == ([] if self.result is None else ["tauraft.once/runs"])


@pytest.mark.middle
def test_random_stories_follow_the_model() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Doing,
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.middle
def test_it_replicates() -> None:
    check_fsm(Once, examples=40)
