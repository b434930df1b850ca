"""Elections against a simple model, over random stories of sessions.

The model is a list of who stands, in order, a leader, and until when the next must wait.  After each step the real machine must have
elected just whom the model says, tokens must have grown; and when everybody has left, nothing may be left in any table.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tauraft.errors import NoCandidate
from tauraft_plugins.elections.fsm import Elections
from tauraft_primitives.elections.messages import Campaign, GetLeader, Resign, Transfer
from tauraft_primitives.locks.messages import Grant
from tests.primitives.harness import Harness, Reply, SessionOf


@dataclass(eq=False)
class Standing:
    session: SessionOf
    priority: int
    min_tenure: int
    order: int
    reply: Reply[Grant]


class Electing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.replica = Harness(Elections)
        self.sessions = [self.replica.open() for _ in range(3)]
        self.standing: list[Standing] = []
        self.leader: Standing | None = None
        self.now = 0
        self.elected_at = 0
        self.closed_until = 0
        self.last_token = 0
        self.count = 0

    # ---- the model ----

    def elect(self, one: Standing) -> None:
        self.standing.remove(one)
        self.leader = one
        self.elected_at = self.now
        assert one.reply.is_done, "it should have been elected"
        token = one.reply.value.token
        assert token > self.last_token, "tokens grow"
        self.last_token = token

    def settle(self) -> None:
        if self.leader is None and self.now >= self.closed_until and self.standing:
            self.elect(min(self.standing, key=lambda one: (-one.priority, one.order)))

    def ends(self) -> None:
        assert self.leader is not None
        self.closed_until = self.elected_at + self.leader.min_tenure
        self.leader = None

    # ---- what happens ----

    @rule(who=st.integers(0, 2), priority=st.integers(0, 2), min_tenure=st.sampled_from([0, 0, 5]))
    def stand(self, who: int, priority: int, min_tenure: int) -> None:
        self.count += 1
        session = self.sessions[who]
        reply = session.run(Campaign("x", priority=priority, min_tenure=float(min_tenure)))
        self.standing.append(Standing(session, priority, min_tenure, self.count, reply))
        self.settle()

    @precondition(lambda self: self.leader is not None)
    @rule()
    def resign(self) -> None:
        assert self.leader is not None
        self.leader.session.run(Resign("x", self.leader.reply.value.token))
        self.ends()
        self.settle()

    @precondition(lambda self: self.leader is not None)
    @rule(who=st.integers(0, 2))
    def transfer(self, who: int) -> None:
        assert self.leader is not None
        to = self.sessions[who]
        done = self.leader.session.run(Transfer("x", self.leader.reply.value.token, to.id))
        candidates = [one for one in self.standing if one.session is to]
        if not candidates:
            with pytest.raises(NoCandidate):
                _ = done.value
            return
        self.elect(min(candidates, key=lambda one: (-one.priority, one.order)))

    @precondition(lambda self: self.standing or self.leader)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.standing + ([self.leader] if self.leader else [])))
        one.session.withdraw(one.reply)
        if one is self.leader:
            self.ends()
        else:
            self.standing.remove(one)
        self.settle()

    @rule(who=st.integers(0, 2), learned=st.booleans())
    def lose_session(self, who: int, learned: bool) -> None:
        lost, self.sessions[who] = self.sessions[who], self.replica.open()
        if learned:
            lost.learn()
        lost.end()
        self.standing = [one for one in self.standing if one.session is not lost]
        if self.leader is not None and self.leader.session is lost:
            self.ends()
        self.settle()

    @rule(seconds=st.integers(1, 6))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):  # the model's clock ticks in seconds, so it elects when the machine does
            self.now += 1
            self.replica.advance(1)
            self.settle()

    @rule()
    def restore(self) -> None:
        self.replica.restore()

    # ---- what is always so ----

    @invariant()
    def the_leader_is_the_models(self) -> None:
        found = self.replica.query(GetLeader("x"))
        expected = None if self.leader is None else self.leader.reply.value.token
        assert (None if found is None else found.token) == expected
        for one in self.standing:
            assert not one.reply.is_done, "elected before its turn"

    def teardown(self) -> None:
        for session in self.sessions:
            session.end()
        self.replica.advance(10)
        assert [table.name for table in self.replica.fsm(Elections).tables() if len(table)] == []
        assert not [row for row in self.replica.machine.system.timers.values() if row.fsm != "tauraft.system"]


@pytest.mark.middle
def test_random_stories_follow_the_model() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Electing,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
