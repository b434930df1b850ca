"""The queue against a model that is nothing but lists: any sequence of commands, times and losses gives what the model says.

The model looks through all its items for each claim, so it has none of the indexes that it checks. Durations never end at one
moment (each has its own microseconds), so there is one order of events. Covers: G queue-delivery.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tauraft import errors
from tauraft.types import QueueStats
from tauraft_plugins.queues.fsm import MAX_ATTEMPTS, Queues
from tauraft_primitives.queues.messages import (
    Ack,
    Bury,
    Claimed,
    Dead,
    Declare,
    Enqueue,
    Extend,
    GiveBack,
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

PRESENT = ("ready", "delayed", "claimed")
groups = st.sampled_from([None, None, "g", "h"])
seconds = st.integers(1, 20)


@dataclass(eq=False)
class ModelItem:
    id: str
    order: int
    priority: int
    group: str | None
    put_at: float
    expires: float | None
    dedupe: float
    state: str = "ready"
    due: float | None = None
    attempts: int = 0
    token: int | None = None
    claimed_by: Any = None  # the reply of the claim
    forgotten_at: float = 0.0  # of an acknowledged one: when its id may be put again


@dataclass(eq=False)
class ModelWaiter:
    session: SessionOf
    reply: Reply[Any]
    count: int
    groups: tuple[str, ...] | None
    visibility: float
    got: list[ModelItem] = field(default_factory=list)
    is_compared: bool = False


class QueueAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.replica = Harness(Queues)
        self.fsm = self.replica.fsm(Queues)
        self.sessions = [self.replica.open() for _ in range(3)]
        self.items: list[ModelItem] = []
        self.waiters: list[ModelWaiter] = []
        self.answered: list[ModelWaiter] = []
        self.tokens: list[int] = []
        self.max_attempts: int | None = None
        self.paused = False
        self.now = 0.0
        self.durations = 0
        self.sequence = 0

    # ---- the model ----

    def lasting(self, whole: int) -> float:
        """A duration that ends when no other does."""
        self.durations += 1
        return whole + self.durations * 1e-5

    def present(self) -> list[ModelItem]:
        return [item for item in self.items if item.state in PRESENT]

    def best(self, wanted: tuple[str, ...] | None) -> ModelItem | None:
        found = [
            item
            for item in self.items
            if item.state == "ready"
            and (wanted is None or item.group in wanted)
            and not any(
                item.group is not None and other.group == item.group and other.order < item.order
                for other in self.present()
            )
        ]
        return min(found, key=lambda item: (-item.priority, item.order), default=None)

    def next_for(self, wanted: tuple[str, ...] | None) -> ModelItem | None:
        while not self.paused and (item := self.best(wanted)) is not None:
            if self.max_attempts is None or item.attempts < self.max_attempts:
                return item
            self.die(item)
        return None

    def die(self, item: ModelItem) -> None:
        item.state, item.due, item.expires, item.token = "dead", None, None, None

    def take(self, claimer: ModelWaiter) -> bool:
        while len(claimer.got) < claimer.count and (item := self.next_for(claimer.groups)) is not None:
            item.state, item.attempts, item.claimed_by = "claimed", item.attempts + 1, claimer
            item.due = self.now + claimer.visibility
            claimer.got.append(item)
        if claimer.got:
            self.answered.append(claimer)
        return bool(claimer.got)

    def settle(self) -> None:
        """Whoever waits is served, first come first served, as long as there is anything for anybody."""
        self.waiters = [waiter for waiter in self.waiters if not self.take(waiter)]
        self.learn()

    def learn(self) -> None:
        """Compare what claimers were given with what the machine gave them, and note the tokens."""
        for claimer in self.answered:
            if not claimer.is_compared:
                claimer.is_compared = True
                given: tuple[Claimed, ...] = claimer.reply.value
                assert [one.id for one in given] == [item.id for item in claimer.got]
                for one, item in zip(given, claimer.got, strict=True):
                    assert (one.attempts, one.group) == (item.attempts, item.group)
                    assert one.token not in self.tokens
                    item.token = one.token
                    self.tokens.append(one.token)

    def give_back(self, item: ModelItem, *, counts: bool = True, delay: float = 0) -> None:
        item.token, item.due = None, None
        if not counts:
            item.attempts -= 1
        if item.expires is not None and item.expires <= self.now:
            item.state = "expired"
        elif delay:
            item.state, item.due = "delayed", self.now + delay
        else:
            item.state = "ready"

    def held(self, token: int) -> ModelItem | None:
        return next((item for item in self.items if item.state == "claimed" and item.token == token), None)

    # ---- what happens ----

    @rule(
        id_=st.sampled_from([None, None, None, "a", "b"]),
        priority=st.integers(-1, 1),
        group=groups,
        delay=st.sampled_from([0, 0, 0, 3]),
        ttl=st.sampled_from([None, None, 15]),
        dedupe=st.sampled_from([0, 0, 10]),
    )
    def put(self, id_: str | None, priority: int, group: str | None, delay: int, ttl: int | None, dedupe: int) -> None:
        late = self.lasting(delay) if delay else 0
        lives = None if ttl is None else self.lasting(ttl)
        remembered = self.lasting(dedupe) if dedupe else 0
        command = Enqueue("q", b"x", id_, late, priority, group, remembered, lives)
        answer = self.sessions[0].run(command).value
        taken = [
            item
            for item in self.items
            if item.id == id_
            and (item.state in (*PRESENT, "dead") or (item.state == "acked" and self.now < item.forgotten_at))
        ]
        assert answer.duplicate == bool(taken)
        if taken:
            return
        expires = None if lives is None else self.now + lives
        item = ModelItem(answer.id, answer.revision, priority, group, self.now, expires, remembered)
        if late:
            item.state, item.due = "delayed", self.now + late
        self.items.append(item)
        self.settle()

    @rule(
        who=st.integers(0, 2),
        count=st.integers(1, 3),
        wanted=st.sampled_from([None, None, ("g",), ("g", "h")]),
        whole=seconds,
        wait=st.booleans(),
    )
    def claim(self, who: int, count: int, wanted: tuple[str, ...] | None, whole: int, wait: bool) -> None:
        visibility = self.lasting(whole)
        reply = self.sessions[who].run(TakeItems("q", visibility, count, wanted, wait))
        claimer = ModelWaiter(self.sessions[who], reply, count, wanted, visibility)
        if self.take(claimer):
            self.learn()
        elif wait:
            assert not reply.is_done
            self.waiters.append(claimer)
        else:
            assert reply.value == ()
        self.settle()

    @rule()
    def pop(self) -> None:
        popped = self.sessions[0].run(Pop("q")).value
        item = self.next_for(None)
        assert (None if popped is None else popped.id) == (None if item is None else item.id)
        if item is not None:
            self.acknowledge(item)
        self.settle()

    def acknowledge(self, item: ModelItem) -> None:
        item.state, item.token, item.due, item.expires = "acked", None, None, None
        item.forgotten_at = self.now + item.dedupe

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), how=st.sampled_from(["ack", "ack", "nack", "later", "bury", "give back", "extend"]))
    def end_claim(self, data: st.DataObject, how: str) -> None:
        token = data.draw(st.sampled_from(self.tokens))
        item = self.held(token)
        assert self.fsm.is_held(token) == (item is not None)
        delay = self.lasting(4) if how == "later" else 0.0
        longer = self.lasting(9)
        commands: dict[str, Any] = {
            "ack": Ack(token),
            "nack": Nack(token),
            "later": Nack(token, delay),
            "bury": Bury(token, "bad"),
            "give back": GiveBack(token),
            "extend": Extend((token,), longer),
        }
        reply = self.sessions[0].run(commands[how])
        if how == "extend":
            assert reply.value == ((token,) if item is not None else ())
        elif item is None:
            with pytest.raises(errors.StaleClaim):
                _ = reply.value
        else:
            assert reply.value is None
        if item is None:
            return
        if how == "ack":
            self.acknowledge(item)
        elif how == "bury":
            self.die(item)
        elif how == "extend":
            item.due = self.now + longer
        else:
            self.give_back(item, counts=how != "give back", delay=delay)
        self.settle()

    @rule(whole=seconds)
    def time_passes(self, whole: int) -> None:
        target = self.now + self.lasting(whole)
        self.replica.advance(target - self.now)
        while True:
            moments = [item.due for item in self.items if item.due is not None]
            moments += [item.expires for item in self.items if item.expires and item.state in ("ready", "delayed")]
            if not moments or min(moments) > target:
                break
            self.now = min(moments)
            # Claims of one command end together, each by a timer of its own, in the order they were made.
            ending = [item for item in self.items if self.now in (item.due, item.expires)]
            for item in sorted(ending, key=lambda item: item.claimed_by.got.index(item) if item.token else 0):
                if item.due == self.now and item.state == "claimed":
                    self.give_back(item)
                elif item.due == self.now:
                    item.state, item.due = "ready", None
                elif item.state in ("ready", "delayed"):
                    item.state, item.due = "expired", None
                self.settle()
        self.now = target

    @rule(who=st.integers(0, 2))
    def session_is_lost(self, who: int) -> None:
        gone, self.sessions[who] = self.sessions[who], self.replica.open()
        gone.end()
        self.waiters = [waiter for waiter in self.waiters if waiter.session is not gone]
        for item in self.items:
            if item.state == "claimed" and item.claimed_by.session is gone:
                self.give_back(item)
        self.answered = [claimer for claimer in self.answered if claimer.session is not gone]
        self.settle()

    @precondition(lambda self: self.waiters or self.answered)
    @rule(data=st.data())
    def caller_gives_up(self, data: st.DataObject) -> None:
        """Waiting, or answered and never told."""
        claimer = data.draw(st.sampled_from(self.waiters + self.answered))
        claimer.session.withdraw(claimer.reply)
        assert claimer.reply.is_withdrawn
        self.waiters = [waiter for waiter in self.waiters if waiter is not claimer]
        self.answered = [other for other in self.answered if other is not claimer]
        for item in claimer.got:
            if item.state == "claimed" and item.claimed_by is claimer:
                self.give_back(item, counts=False)
        self.settle()

    @rule(most=st.integers(1, 3))
    def declare(self, most: int) -> None:
        self.sessions[0].run(Declare("q", most))
        self.max_attempts = most

    @rule()
    def pause_or_resume(self) -> None:
        self.paused = not self.paused
        self.sessions[0].run(Pause("q", self.paused))
        self.settle()

    @rule(n=st.integers(1, 3))
    def redrive(self, n: int) -> None:
        dead = sorted((item for item in self.items if item.state == "dead"), key=lambda item: item.order)[:n]
        assert self.sessions[0].run(Redrive("q", n)).value.count == len(dead)
        for item in dead:
            item.state, item.attempts, item.put_at = "ready", 0, self.now
            item.order = self.fsm.items["q", item.id].order
            assert item.order > max((other.order for other in self.items if other not in dead), default=0)
        self.settle()

    @rule(dead=st.booleans())
    def purge(self, dead: bool) -> None:
        gone = [item for item in self.items if item.state in (("dead",) if dead else ("ready", "delayed"))]
        assert self.sessions[0].run(Purge("q", dead)).value.count == len(gone)
        for item in gone:
            item.state, item.due = "purged", None
        self.settle()

    @rule()
    def snapshot(self) -> None:
        self.replica.restore()
        self.fsm = self.replica.fsm(Queues)

    # ---- what is so at any time ----

    @invariant()
    def everyone_who_waits_still_waits(self) -> None:
        assert not any(waiter.reply.is_done for waiter in self.waiters)
        assert len(self.fsm.waiters) == len(self.waiters)
        assert len(self.fsm.wanted) == sum(len(waiter.groups or ("",)) for waiter in self.waiters)

    @invariant()
    def the_books_agree(self) -> None:
        states = [item.state for item in self.items]
        stats: QueueStats = self.sessions[0].run(Stats("q")).value
        assert (stats.ready, stats.delayed, stats.claimed, stats.dead) == tuple(
            states.count(state) for state in ("ready", "delayed", "claimed", "dead")
        )
        oldest = min((item.put_at for item in self.present()), default=None)
        assert stats.oldest_age == (None if oldest is None else pytest.approx(self.now - oldest, abs=1e-6))
        dead = self.replica.query(Dead("q", 1_000)).items
        assert {item.id for item in dead} == {item.id for item in self.items if item.state == "dead"}
        assert all(item.reason in (MAX_ATTEMPTS, "bad") for item in dead)
        peeked, best = self.replica.query(Peek("q")), self.best(None)
        assert (None if peeked is None else peeked.id) == (None if best is None else best.id)

    @invariant()
    def every_item_is_in_one_state_and_no_index_has_more(self) -> None:
        fsm, present = self.fsm, self.present()
        last = {item.id: item for item in self.items}
        assert {id_: row.state for (_, id_), row in fsm.items.items()} == {
            item.id: item.state for item in last.values()
        }
        assert set(fsm.contents) == {("q", i.id) for i in last.values() if i.state in (*PRESENT, "dead")}
        assert list(fsm.line) == sorted(("q", item.order) for item in present)
        assert list(fsm.lanes) == sorted(("q", i.group, i.order) for i in present if i.group is not None)
        claimed = [item for item in present if item.state == "claimed"]
        assert set(fsm.claims) == {item.token for item in claimed}
        assert len(fsm.by_session) == len(claimed)
        remembered = [i for i in last.values() if i.state == "acked" and i.dedupe and self.now < i.forgotten_at]
        assert len(fsm.ledger) == len(fsm.items) - len(present) - len(fsm.dead) - len(remembered)
        timers = [item.due for item in present if item.due is not None]
        timers += [item.expires for item in present if item.expires is not None]
        # One a session besides. A claimed item's ttl has fired when it passed, and is looked at when the item returns.
        fired = [item for item in claimed if item.expires is not None and item.expires <= self.now]
        assert len(self.replica.machine.system.timers) == 3 + len(timers) - len(fired) + len(remembered)


@pytest.mark.middle
def test_any_sequence_of_commands_times_and_losses_gives_what_the_model_says() -> None:
    chosen = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
    run_state_machine_as_test(QueueAgainstModel, settings=chosen)
