"""Locks, permits, readers and writers against a simple model, over random stories of sessions.

The model is what a person would write on paper: queues, holders, permits.  After each step the real machine must have
granted just what the model says, no two may hold what excludes the other, tokens must have grown, permits must add up; and
when everybody has left, nothing may be left in any table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tauraft_plugins.locks.fsm import Locks
from tauraft_plugins.locks.rwlocks import RwLocks
from tauraft_plugins.locks.semaphores import Semaphores
from tauraft_primitives.locks.messages import Acquire, AcquireAll, Break, Release
from tauraft_primitives.rwlocks.messages import AcquireRw, Downgrade, ReleaseRw
from tauraft_primitives.semaphores.messages import AcquirePermits, ReleasePermits
from tests.primitives.harness import Harness, Reply, SessionOf

NAMES = ("a", "b", "c")
PERMITS = 3


@dataclass(eq=False)
class Wanted:
    """One request of the model. ``weight``: permits; PERMITS is alone, for writers and locks."""

    kind: str  # lock, permits, rw
    names: tuple[str, ...]
    weight: int
    session: SessionOf
    reply: Reply[Any]
    held: dict[str, int] = field(default_factory=dict)  # name -> token


class Locking(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.replica = Harness(Locks, Semaphores, RwLocks)
        self.sessions = [self.replica.open() for _ in range(3)]
        self.waiting: list[Wanted] = []
        self.holding: list[Wanted] = []
        self.tokens: list[int] = []
        self.last: dict[tuple[str, str], int] = {}
        self.party = 0

    # ---- the model ----

    def room(self, kind: str, name: str) -> int:
        return PERMITS - sum(one.weight for one in self.holding if one.kind == kind and name in one.held)

    def settle(self) -> None:
        """Whoever is first in all its queues and has room is granted; in any order, since first ones do not compete."""
        moved = True
        while moved:
            moved = False
            for one in self.waiting:
                before = self.waiting[: self.waiting.index(one)]
                is_first = not any(other.kind == one.kind and set(other.names) & set(one.names) for other in before)
                if is_first and all(self.room(one.kind, name) >= one.weight for name in one.names):
                    self.waiting.remove(one)
                    self.granted(one)
                    moved = True
                    break

    def granted(self, one: Wanted) -> None:
        assert one.reply.is_done, f"{one.kind} {one.names} should have been granted"
        tokens = one.reply.value.tokens
        one.held = dict(zip(one.names, tokens, strict=True))
        for name, token in one.held.items():
            assert token > self.last.get((one.kind, name), 0), f"the tokens of {name} do not grow"
            self.last[one.kind, name] = token
        self.holding.append(one)
        self.tokens += tokens

    def asked(self, kind: str, names: tuple[str, ...], weight: int, session: SessionOf, command: Any) -> None:
        one = Wanted(kind, names, weight, session, session.run(command))
        self.waiting.append(one)
        self.settle()

    def new_party(self) -> int:
        # Each request of its own: who waits for itself, or in a circle, is the business of other tests.
        self.party += 1
        return self.party

    # ---- what happens ----

    @rule(who=st.integers(0, 2), name=st.sampled_from(NAMES))
    def lock(self, who: int, name: str) -> None:
        self.asked("lock", (name,), PERMITS, self.sessions[who], Acquire(name, party=self.new_party()))

    @rule(who=st.integers(0, 2), names=st.permutations(NAMES), count=st.integers(1, 3))
    def lock_all(self, who: int, names: list[str], count: int) -> None:
        chosen = tuple(names[:count])
        self.asked("lock", chosen, PERMITS, self.sessions[who], AcquireAll(chosen, party=self.new_party()))

    @rule(who=st.integers(0, 2), name=st.sampled_from(NAMES), count=st.integers(1, PERMITS))
    def permits(self, who: int, name: str, count: int) -> None:
        self.asked("permits", (name,), count, self.sessions[who], AcquirePermits(name, PERMITS, count))

    @rule(who=st.integers(0, 2), name=st.sampled_from(NAMES), writes=st.booleans())
    def rwlock(self, who: int, name: str, writes: bool) -> None:
        # At most three readers, so that the model's permits fit.
        if not writes and sum(one.kind == "rw" and name in one.names for one in self.holding + self.waiting) >= 3:
            return
        command = AcquireRw(name, "write" if writes else "read", party=self.new_party())
        self.asked("rw", (name,), PERMITS if writes else 1, self.sessions[who], command)

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.holding))
        name = data.draw(st.sampled_from(sorted(one.held)))
        kind = {"lock": Release, "permits": ReleasePermits, "rw": ReleaseRw}[one.kind]
        assert one.session.run(kind(name, one.held.pop(name))).value is None
        if not one.held:
            self.holding.remove(one)
        self.settle()

    @precondition(lambda self: any(one.kind == "rw" for one in self.holding))
    @rule(data=st.data())
    def downgrade(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.holding if one.kind == "rw"]))
        one.session.run(Downgrade(one.names[0], one.held[one.names[0]]))
        one.weight = 1
        self.settle()

    @precondition(lambda self: any(one.kind == "lock" for one in self.holding))
    @rule(data=st.data())
    def break_(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.holding if one.kind == "lock"]))
        name = data.draw(st.sampled_from(sorted(one.held)))
        assert self.sessions[0].run(Break(name, "model")).value is True
        del one.held[name]
        if not one.held:
            self.holding.remove(one)
        self.settle()

    @precondition(lambda self: self.waiting or self.holding)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.waiting + self.holding))
        one.session.withdraw(one.reply)
        (self.waiting if one in self.waiting else self.holding).remove(one)
        self.settle()

    @rule(who=st.integers(0, 2))
    def lose_session(self, who: int) -> None:
        lost, self.sessions[who] = self.sessions[who], self.replica.open()
        lost.end()
        self.waiting = [one for one in self.waiting if one.session is not lost]
        self.holding = [one for one in self.holding if one.session is not lost]
        self.settle()

    # ---- what is always so ----

    @invariant()
    def nobody_else_was_granted(self) -> None:
        for one in self.waiting:
            assert not one.reply.is_done, f"{one.kind} {one.names} jumped the queue"

    @invariant()
    def nothing_is_held_twice(self) -> None:
        for kind in ("lock", "permits", "rw"):
            for name in NAMES:
                assert self.room(kind, name) >= 0

    @invariant()
    def no_token_was_given_twice(self) -> None:
        assert len(set(self.tokens)) == len(self.tokens)

    @invariant()
    def permits_add_up(self) -> None:
        pools = self.replica.fsm(Semaphores).pools
        for name, pool in pools.items():
            assert pool.permits - pool.used == self.room("permits", name)

    def teardown(self) -> None:
        for session in self.sessions:
            session.end()
        tables = [
            table.name
            for fsm in (Locks, Semaphores, RwLocks)
            for table in self.replica.fsm(fsm).tables()
            if len(table) and not table.name.endswith(("/pools", "/idle", "/breaks", "/broken"))
        ]
        assert tables == []
        timers = self.replica.machine.system.timers
        assert not [row for row in timers.values() if row.fsm != "tauraft.system"]


@pytest.mark.middle
def test_random_stories_follow_the_model() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Locking,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
