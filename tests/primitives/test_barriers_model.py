"""Double and cyclic barriers against simple models, over random stories of sessions that come, give up, act and die.

After each step exactly those may have gone on whom the model lets go, which is never before all have arrived; whoever must be told that
the barrier broke has been told who broke it; and when everybody has left, nothing may be left in any table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tauraft.errors import BrokenBarrier
from tauraft.fsm import FSM
from tauraft_plugins.barriers.cyclics import CyclicBarriers
from tauraft_plugins.barriers.doubles import DoubleBarriers
from tauraft_primitives.barriers.messages import Abort, Acted, Arrive, Enter, Leave, Reset
from tests.primitives.harness import Harness, Reply, SessionOf

PARTIES = 3
SESSIONS = 4


@dataclass(eq=False)
class Party:
    session: SessionOf
    reply: Reply[Any]
    has_action: bool = False
    leaving: Reply[Any] | None = None


def told(reply: Reply[Any], who: SessionOf | None) -> None:
    """It was broken, and says by whom."""
    with pytest.raises(BrokenBarrier) as error:
        _ = reply.value
    assert (None if error.value.who is None else error.value.who["session"]) == (None if who is None else who.id)


class Meeting(RuleBasedStateMachine):
    fsm: type[FSM]

    def __init__(self) -> None:
        super().__init__()
        self.replica = Harness(self.fsm)
        self.sessions = [self.replica.open() for _ in range(SESSIONS)]
        self.on_loss = "break"
        self.arrivals: list[Party] = []
        self.fresh()

    @initialize(on_loss=st.sampled_from(["break", "shrink", "ignore"]))
    def begin(self, on_loss: str) -> None:
        self.on_loss = on_loss

    def fresh(self) -> None:
        self.parties = PARTIES

    @rule()
    def restore(self) -> None:
        self.replica.restore()

    @rule(who=st.integers(0, SESSIONS - 1), learned=st.booleans())
    def lose_session(self, who: int, learned: bool) -> None:
        lost, self.sessions[who] = self.sessions[who], self.replica.open()
        if learned:
            lost.learn()
        lost.end()
        self.lose(lost)

    def lose(self, lost: SessionOf) -> None:
        raise NotImplementedError

    @invariant()
    def nobody_goes_on_before_all_have_arrived(self) -> None:
        for party in self.arrivals:
            assert not party.reply.is_done

    def teardown(self) -> None:
        for session in self.sessions:
            session.end()
        assert [table.name for table in self.replica.fsm(self.fsm).tables() if len(table)] == []


class Doubling(Meeting):
    fsm = DoubleBarriers

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[Party] = []
        self.broken_by: SessionOf | None = None

    def settle(self) -> None:
        if self.inside and all(party.leaving is not None for party in self.inside):
            for party in self.inside:
                assert party.leaving is not None and party.leaving.value is None
            self.inside = []
        if not self.inside:
            self.broken_by = None
            if len(self.arrivals) >= self.parties:
                self.inside, self.arrivals = self.arrivals[: self.parties], self.arrivals[self.parties :]
                for party in self.inside:
                    assert party.reply.value.place > 0
        if not self.inside and not self.arrivals:
            self.fresh()

    @rule(who=st.integers(0, SESSIONS - 1))
    def enter(self, who: int) -> None:
        session = self.sessions[who]
        reply = session.run(Enter("b", PARTIES, self.on_loss))  # type: ignore[arg-type]
        self.arrivals.append(Party(session, reply))
        self.settle()

    @precondition(lambda self: any(party.leaving is None for party in self.inside))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        party = data.draw(st.sampled_from([party for party in self.inside if party.leaving is None]))
        party.leaving = party.session.run(Leave("b", party.reply.value.place))
        if self.broken_by is not None:
            told(party.leaving, self.broken_by)
            self.inside.remove(party)
        self.settle()

    @precondition(lambda self: self.arrivals or self.inside)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        party = data.draw(st.sampled_from(self.arrivals + self.inside))
        party.session.withdraw(party.reply if party.leaving is None else party.leaving)
        (self.arrivals if party in self.arrivals else self.inside).remove(party)
        self.settle()

    def lose(self, lost: SessionOf) -> None:
        outside = [party for party in self.arrivals if party.session is lost]
        inside = [party for party in self.inside if party.session is lost]
        self.arrivals = [party for party in self.arrivals if party.session is not lost]
        self.inside = [party for party in self.inside if party.session is not lost]
        if self.on_loss == "shrink":
            self.parties = max(1, self.parties - len(outside) - len(inside))
        if self.on_loss == "break" and outside:
            for party in self.arrivals:
                told(party.reply, lost)
            self.arrivals = []
        if self.on_loss == "break" and inside:
            for party in [party for party in self.inside if party.leaving is not None]:
                told(party.leaving, lost)  # type: ignore[arg-type]
                self.inside.remove(party)
            self.broken_by = lost
        self.settle()

    @invariant()
    def nobody_is_out_before_all_leave(self) -> None:
        for party in self.inside:
            assert party.leaving is None or not party.leaving.is_done


class Cycling(Meeting):
    fsm = CyclicBarriers

    def __init__(self) -> None:
        super().__init__()
        self.is_broken = False
        self.broken_by: SessionOf | None = None
        self.expected: dict[SessionOf, int] = {}
        self.actor: Party | None = None
        self.round: list[Party] = []  # while somebody acts
        self.acted = 0

    def fresh(self) -> None:
        super().fresh()
        self.is_broken = False
        self.broken_by = None

    def settle(self) -> None:
        while len(self.arrivals) >= self.parties and self.actor is None and not self.is_broken:
            self.round, self.arrivals = self.arrivals[: self.parties], self.arrivals[self.parties :]
            acts = [party for party in self.round if party.has_action]
            if acts:
                self.actor = acts[-1]
                assert self.actor.reply.value.act > 0
                return
            self.all_go_on()
        if not self.arrivals and not self.round and not self.expected:
            self.fresh()

    def all_go_on(self) -> None:
        indexes = [party.reply.value.index for party in self.round]
        assert indexes == sorted(set(indexes)), "in their order of arrival"
        self.expected = {}
        for party in self.round:
            self.expected[party.session] = self.expected.get(party.session, 0) + 1
        self.round, self.actor = [], None

    def breaks(self, who: SessionOf | None, but: Party | None = None) -> None:
        counts: dict[SessionOf, int] = {}
        for party in self.round + self.arrivals:
            counts[party.session] = counts.get(party.session, 0) + 1
            if party not in (self.actor, but):
                told(party.reply, who)
        for session, count in counts.items():
            self.expected[session] = max(count, self.expected.get(session, 0))
        self.arrivals, self.round, self.actor = [], [], None
        self.is_broken, self.broken_by = True, who

    @rule(who=st.integers(0, SESSIONS - 1), has_action=st.booleans())
    def arrive(self, who: int, has_action: bool) -> None:
        session = self.sessions[who]
        reply = session.run(Arrive("b", PARTIES, self.on_loss, has_action))  # type: ignore[arg-type]
        if self.is_broken:
            told(reply, self.broken_by)
            return
        self.arrivals.append(Party(session, reply, has_action))
        self.settle()

    @precondition(lambda self: self.actor is not None)
    @rule()
    def act(self) -> None:
        assert self.actor is not None
        for party in self.round:
            assert party is self.actor or not party.reply.is_done, "nobody goes on before it is done"
        assert self.actor.session.run(Acted("b", self.actor.reply.value.act)).value is None
        self.all_go_on()
        self.settle()

    @precondition(lambda self: self.arrivals or self.round)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        party = data.draw(st.sampled_from(self.arrivals + self.round))
        party.session.withdraw(party.reply)
        self.breaks(party.session, party)

    @rule(who=st.integers(0, SESSIONS - 1))
    def abort(self, who: int) -> None:
        session = self.sessions[who]
        session.run(Abort("b", PARTIES, self.on_loss))  # type: ignore[arg-type]
        self.expected.setdefault(session, 0)
        self.breaks(None)

    @precondition(lambda self: self.is_broken)
    @rule(who=st.integers(0, SESSIONS - 1))
    def reset(self, who: int) -> None:
        self.sessions[who].run(Reset("b"))
        self.expected = {}
        self.fresh()

    def lose(self, lost: SessionOf) -> None:
        mine = [party for party in self.round + self.arrivals if party.session is lost]
        count = max(self.expected.pop(lost, 0), len(mine))
        acted = self.actor in mine
        self.round = [party for party in self.round if party not in mine]
        self.arrivals = [party for party in self.arrivals if party not in mine]
        if self.on_loss == "shrink":
            self.parties = max(1, self.parties - count)
        if not self.is_broken and (acted or (self.on_loss == "break" and count)):
            self.breaks(lost)
        self.settle()


@pytest.mark.middle
@pytest.mark.parametrize("machine", [Doubling, Cycling])
def test_random_stories_follow_the_model(machine: type[Meeting]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
