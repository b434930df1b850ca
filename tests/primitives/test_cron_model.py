"""Cron against a model that is nothing but lists: any sequence of commands, times and losses gives what the model says.

The model knows no index, no timer and no crew: it looks at all its ticks each time. Durations never end at one moment (each has
its own microseconds), so there is one order of events.  Covers: G cron-rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tauraft import errors
from tauraft.system.messages import Tick
from tauraft.testing import check_fsm
from tauraft_plugins.cron.calendar import moment
from tauraft_plugins.cron.fsm import Cron
from tauraft_primitives.cron.messages import (
    Assigned,
    Declare,
    Delete,
    Finish,
    GiveBack,
    Pause,
    Policy,
    Register,
    Serve,
    Start,
    Trigger,
)
from tauraft_primitives.cron.specs import read_spec
from tests.primitives.harness import Harness, Reply, SessionOf

EVERY_US = {"a": 10_000_000, "b": 7_300_000}


@dataclass(eq=False)
class ModelTick:
    job: str
    at: int  # us
    number: int
    state: str = "FIRED"
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    where: str = "pending"  # pending, held, resting or over
    token: int = 0
    session: SessionOf | None = None
    given_by: Reply[Any] | None = None
    due: int | None = None  # us: its back-off or its time-out ends
    reason: str | None = None

    @property
    def began(self) -> bool:
        return bool(self.attempts or self.failures)


@dataclass(eq=False)
class ModelJob:
    policy: Policy
    mark: int  # us
    is_paused: bool = False


@dataclass(eq=False)
class ModelRunner:
    session: SessionOf
    served: Reply[Assigned] | None = None
    waits: bool = False
    given: list[ModelTick] = field(default_factory=list)


class CronAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.replica = Harness(Cron)
        self.operator = self.replica.open()
        self.jobs: dict[str, ModelJob] = {}
        self.ticks: list[ModelTick] = []
        self.runners = [self.new_runner() for _ in range(3)]
        self.line: list[ModelRunner] = []  # of those that wait
        self.tokens: list[tuple[int, ModelRunner]] = []
        self.durations = 0

    @property
    def fsm(self) -> Any:
        return self.replica.fsm(Cron)

    @property
    def now(self) -> int:
        return self.replica.wall_ns // 1_000

    def new_runner(self) -> ModelRunner:
        runner = ModelRunner(self.replica.open())
        runner.session.run(Register(("a", "b")))
        return runner

    def lasting(self, whole: float) -> float:
        """A duration that ends when no other does."""
        self.durations += 1
        return whole + self.durations * 1e-5

    # ---- the model ----

    def of(self, job: str, *where: str) -> list[ModelTick]:
        return sorted((t for t in self.ticks if t.job == job and t.where in where), key=lambda tick: tick.number)

    def end(self, tick: ModelTick, state: str, reason: str | None = None) -> None:
        tick.state, tick.where, tick.due, tick.session = state, "over", None, None
        tick.reason = reason

    def write(self, job: str, at: int, state: str = "FIRED", reason: str | None = None) -> None:
        tick = ModelTick(job, at, len(self.ticks), reason=reason)
        self.ticks.append(tick)
        if state != "FIRED":
            self.end(tick, state, reason)

    def admit(self, job: str, at: int, makes_up: bool, reason: str | None = None) -> None:
        policy = self.jobs[job].policy
        busy, pending = self.of(job, "held", "resting"), self.of(job, "pending")
        if busy and policy.overlap != "allow" and not makes_up:
            if policy.overlap == "replace":
                for tick in pending:
                    self.end(tick, "LOST" if tick.began else "SKIPPED", "overlap")
                for tick in busy:
                    self.end(tick, "LOST", "replaced")
            elif policy.overlap == "forbid" or pending:
                return self.write(job, at, "SKIPPED", "overlap")
        elif pending and not makes_up and policy.misfire != "all":
            if policy.misfire == "earliest":
                return self.write(job, at, "SKIPPED", "misfire")
            for tick in pending:
                self.end(tick, "LOST" if tick.began else "SKIPPED", "misfire")
        return self.write(job, at, reason=reason)

    def come_due(self, job: str) -> None:
        """All that the wall clock has passed."""
        known = self.jobs[job]
        every = EVERY_US[job]
        due = list(range((known.mark // every + 1) * every, self.now + 1, every))
        if not due or known.is_paused:
            return
        known.mark = due[-1]
        misfire = known.policy.misfire
        chosen = {"latest": due[-1:], "earliest": due[:1]}.get(misfire, due)
        for at in due:
            if at in chosen:
                self.admit(job, at, misfire == "all" and len(chosen) > 1)
            else:
                self.write(job, at, "SKIPPED", "misfire")

    def settle(self) -> None:
        for job in sorted(self.jobs):
            while self.line:
                pending = self.of(job, "pending")
                allowed = self.jobs[job].policy.overlap == "allow"
                if not pending or (self.of(job, "held", "resting") and not allowed):
                    break
                tick, runner = pending[0], self.line.pop(0)
                tick.where, tick.attempts, tick.session, tick.given_by = (
                    "held", tick.attempts + 1, runner.session, runner.served,
                )  # fmt: skip
                runner.waits = False
                runner.given.append(tick)
        for runner in self.runners:
            self.learn(runner)

    def learn(self, runner: ModelRunner) -> None:
        """Compare what a runner was given with what the machine gave it, and note the token."""
        for tick in runner.given:
            if tick.given_by is runner.served and tick.where == "held" and runner.served is not None and not tick.token:
                given = runner.served.value
                assert (given.job, given.scheduled_at, given.attempt) == (tick.job, moment(tick.at), tick.attempts)
                tick.token = given.token
                self.tokens.append((given.token, runner))

    def back(self, tick: ModelTick) -> None:
        tick.state, tick.where, tick.session, tick.token, tick.due = "FIRED", "pending", None, 0, None
        if tick.job not in self.jobs:
            self.end(tick, "LOST" if tick.began else "SKIPPED", "deleted")

    def not_begun(self, tick: ModelTick) -> None:
        tick.attempts -= 1
        self.back(tick)

    def failed(self, tick: ModelTick) -> None:
        job = self.jobs.get(tick.job)
        tick.failures += 1
        tick.token = 0
        if job is not None and tick.failures <= job.policy.retries:
            delay = job.policy.backoff * 2 ** (tick.failures - 1)
            tick.state, tick.where, tick.session = "FIRED", "resting", None
            tick.due = self.replica.now_ns // 1_000 + int(delay * 1_000_000)
        else:
            self.end(tick, "FAILED", tick.reason)

    def lost(self, tick: ModelTick) -> None:
        job = self.jobs.get(tick.job)
        tick.losses += 1
        if job is None or job.policy.delivery == "at_most_once":
            self.end(tick, "LOST", "the runner was lost")
        else:
            self.back(tick)

    def held_by(self, token: int, runner: ModelRunner) -> ModelTick | None:
        return next(
            (t for t in self.ticks if t.where == "held" and t.token == token and t.session is runner.session), None
        )

    # ---- what happens ----

    @rule(
        job=st.sampled_from("ab"),
        overlap=st.sampled_from(["forbid", "allow", "queue_one", "replace"]),
        misfire=st.sampled_from(["latest", "all", "earliest"]),
        delivery=st.sampled_from(["at_least_once", "at_least_once", "at_most_once"]),
        retries=st.integers(0, 2),
        with_timeout=st.booleans(),
    )
    def declare(self, job: str, overlap: Any, misfire: Any, delivery: Any, retries: int, with_timeout: bool) -> None:
        policy = Policy(
            "any",
            delivery,
            misfire,
            None,
            overlap,
            0 if delivery == "at_most_once" else retries,
            self.lasting(3),
            self.lasting(6) if with_timeout else None,
        )
        spec = read_spec(f"@every {EVERY_US[job] // 1_000}ms")
        info = self.operator.run(Declare(job, spec, policy)).value
        known = self.jobs.get(job)
        if known is None:
            self.jobs[job] = ModelJob(policy, self.now)
        else:
            known.policy = policy
        every = EVERY_US[job]
        expected = None if self.jobs[job].is_paused else moment((self.jobs[job].mark // every + 1) * every)
        assert info.next_at == expected
        self.settle()

    @rule(place=st.integers(0, 2))
    def serve(self, place: int) -> None:
        runner = self.runners[place]
        reply = runner.session.run(Serve())
        if runner.waits:
            with pytest.raises(errors.InvalidCommand):
                _ = reply.value
            return
        runner.served, runner.waits = reply, True
        self.line.append(runner)
        self.settle()
        assert reply.is_done is not runner.waits

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), how=st.sampled_from(["start", "start", "ok", "ok", "error", "give back"]))
    def of_a_run(self, data: st.DataObject, how: str) -> None:
        token, runner = data.draw(st.sampled_from(self.tokens[-6:]))
        commands: dict[str, Any] = {
            "start": Start(token), "ok": Finish(token), "error": Finish(token, "no"), "give back": GiveBack(token),
        }  # fmt: skip
        if runner not in self.runners:
            return
        tick = self.held_by(token, runner)
        reply = runner.session.run(commands[how])
        if tick is None:
            with pytest.raises(errors.NotHolder):
                _ = reply.value
            return
        assert reply.value is None
        if how == "start":
            timeout = self.jobs[tick.job].policy.timeout if tick.job in self.jobs else None
            if tick.state != "RUNNING" and timeout is not None:
                tick.due = self.replica.now_ns // 1_000 + int(timeout * 1_000_000)
            tick.state = "RUNNING"
        elif how == "ok":
            self.end(tick, "OK", tick.reason)
        elif how == "error":
            self.failed(tick)
        else:
            self.not_begun(tick)
        self.settle()

    @rule(place=st.integers(0, 2))
    def session_is_lost(self, place: int) -> None:
        gone, self.runners[place] = self.runners[place], self.new_runner()
        gone.session.end()
        self.line = [runner for runner in self.line if runner is not gone]
        held = [tick for tick in self.ticks if tick.where == "held" and tick.session is gone.session]
        for tick in sorted(held, key=lambda tick: tick.token):
            self.lost(tick) if tick.state == "RUNNING" else self.not_begun(tick)
            self.settle()

    @rule(place=st.integers(0, 2))
    def runner_gives_up(self, place: int) -> None:
        """Waiting, or answered and never told."""
        runner = self.runners[place]
        if runner.served is None:
            return
        runner.session.withdraw(runner.served)
        if runner.waits:
            self.line.remove(runner)
            runner.waits = False
        for tick in [t for t in runner.given if t.given_by is runner.served and t.where == "held"]:
            if tick.state != "RUNNING":
                self.not_begun(tick)
        runner.served = None
        self.settle()

    @rule(seconds=st.integers(1, 15))
    def time_passes(self, seconds: int) -> None:
        target = self.now + int(self.lasting(seconds) * 1_000_000)
        while self.now < target:
            step = min([target - self.now, *(max(0, due - self.cluster_now) for due, _ in self.deadlines())])
            step = min([step, *(max(0, due - self.now) for due, _ in self.comings())])
            self.replica.now_ns += step * 1_000
            self.replica.wall_ns += step * 1_000
            self.replica.system(Tick())
            self.catch_up()

    @rule(seconds=st.integers(11, 60))
    def nobody_leads_for_a_while(self, seconds: int) -> None:
        ns = int(self.lasting(seconds) * 1_000_000) * 1_000
        self.replica.now_ns += ns
        self.replica.wall_ns += ns
        self.replica.system(Tick())
        self.catch_up()

    @property
    def cluster_now(self) -> int:
        return self.replica.now_ns // 1_000

    def deadlines(self) -> list[tuple[int, ModelTick]]:
        return sorted(((t.due, t) for t in self.ticks if t.due is not None), key=lambda pair: pair[0])

    def comings(self) -> list[tuple[int, str]]:
        times = [
            (job.mark // EVERY_US[name] + 1) * EVERY_US[name] for name, job in self.jobs.items() if not job.is_paused
        ]
        names = [name for name, job in self.jobs.items() if not job.is_paused]
        return sorted(zip(times, names, strict=True))

    def catch_up(self) -> None:
        """What the cluster's clock brings comes before what the wall clock does, each in its order."""
        while (first := next(iter(self.deadlines()), None)) is not None and first[0] <= self.cluster_now:
            tick = first[1]
            tick.due = None
            if tick.where == "resting":
                self.back(tick)
            else:
                self.failed(tick)
            self.settle()
        while (coming := next(iter(self.comings()), None)) is not None and coming[0] <= self.now:
            self.come_due(coming[1])
            self.settle()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def trigger(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        at = self.now
        while at % 1_000_000 == 0 or any((tick.job, tick.at) == (job, at) for tick in self.ticks):
            at += 1
        row = self.operator.run(Trigger(job)).value
        assert row.scheduled_at == moment(at)
        self.admit(job, at, False, "triggered")
        self.settle()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def pause_or_resume(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[name]
        job.is_paused = not job.is_paused
        self.operator.run(Pause(name, job.is_paused))
        if job.is_paused:
            for tick in self.of(name, "pending"):
                self.end(tick, "LOST" if tick.began else "SKIPPED", "paused")
        else:
            job.mark = max(job.mark, self.now)
        self.settle()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        del self.jobs[name]
        assert self.operator.run(Delete(name)).value is True
        for tick in self.of(name, "pending"):
            self.end(tick, "LOST" if tick.began else "SKIPPED", "deleted")
        for tick in self.of(name, "resting"):
            self.end(tick, "FAILED", "deleted")

    @rule()
    def snapshot(self) -> None:
        self.replica.restore()

    # ---- what is so at any time ----

    @invariant()
    def each_tick_has_the_row_that_the_model_says(self) -> None:
        rows = {key: (tick.state, tick.reason, tick.attempts) for key, tick in self.fsm.ticks.items()}
        expected = {(t.job, moment(t.at)): (t.state, t.reason, t.attempts) for t in self.ticks}
        assert rows == expected

    @invariant()
    def no_index_has_more(self) -> None:
        fsm = self.fsm
        assert sorted(fsm.pending) == sorted((t.job, self.order(t)) for t in self.ticks if t.where == "pending")
        live = [t for t in self.ticks if t.where in ("held", "resting")]
        assert sorted(fsm.live) == sorted((t.job, self.order(t)) for t in live)
        held = [t for t in live if t.where == "held"]
        assert len(fsm.runs) == len(fsm.by_session) == len(fsm.runs_of) == len(held)
        assert len(fsm.ledger) == len(fsm.ended) == len([t for t in self.ticks if t.where == "over"])
        assert len(fsm.waiting) == len(self.line)
        assert len(fsm.idle) == len(self.line)
        assert not fsm.owed and not fsm.stops
        timers = len([t for t in self.ticks if t.due is not None])
        assert len(self.replica.machine.system.timers) == timers + 4, "one a session besides"
        coming = [job for job in self.jobs.values() if not job.is_paused]
        assert len(self.replica.machine.system.wall_timers) == len(coming)

    def order(self, tick: ModelTick) -> int:
        order: int = self.fsm.ticks[tick.job, moment(tick.at)].order
        return order


@pytest.mark.middle
def test_any_sequence_of_commands_times_and_losses_gives_what_the_model_says() -> None:
    chosen = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
    run_state_machine_as_test(CronAgainstModel, settings=chosen)


@pytest.mark.middle
def test_it_replicates() -> None:
    check_fsm(Cron, examples=40)
