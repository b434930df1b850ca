"""The cron state machine by hand: what is due, who runs it, what becomes of it. The clock moves when told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tauraft import errors
from tauraft.types import JobInfo, TickRow
from tauraft_plugins.cron import fsm as cron_fsm
from tauraft_plugins.cron.fsm import Cron
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_primitives.cron.messages import (
    Assigned,
    AwaitStop,
    Declare,
    Delete,
    Due,
    Finish,
    GetJob,
    GiveBack,
    History,
    ListJobs,
    NextTicks,
    Pause,
    Policy,
    Register,
    Serve,
    Start,
    Trigger,
)
from tauraft_primitives.cron.specs import read_spec
from tauraft_primitives.fencing.messages import CheckHold
from tests.primitives.harness import SECOND_NS, WALL_START_NS, Harness, Reply, SessionOf

START = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=WALL_START_NS // 1_000)
LEADER = "leader"  # who proposes the harness's entries


def done(reply: Reply[Any]) -> Any:
    """Raises what it was refused with."""
    return reply.value


class Runner:
    """A process that registered jobs, on the machine by hand."""

    def __init__(
        self, replica: Harness, *jobs: str, peer: str = LEADER, is_own: bool = False, label: str | None = None
    ) -> None:
        self.replica = replica
        self.session: SessionOf = replica.open()
        self.peer, self.is_own, self.label = peer, is_own, label
        self.register(*jobs)
        self.wait()

    def register(self, *jobs: str) -> None:
        done(self.session.run(Register(jobs, f"peer-of-{self.session.id}", "host", self.session.id, self.label)))

    def wait(self) -> None:
        self.served: Reply[Assigned] = self.session.run(Serve(self.peer, self.is_own))

    @property
    def has_one(self) -> bool:
        return self.served.is_done

    def take(self, *, start: bool = True) -> Assigned:
        """The tick it was given; it waits for the next at once, and starts this one."""
        assigned = self.served.value
        self.wait()
        if start:
            done(self.session.run(Start(assigned.token)))
        return assigned

    def finish(self, assigned: Assigned, error: str | None = None) -> None:
        done(self.session.run(Finish(assigned.token, error)))

    def run(self, error: str | None = None) -> Assigned:
        assigned = self.take()
        self.finish(assigned, error)
        return assigned


def declare(
    replica: Harness, spec: Any = "@every 10s", job: str = "job", timezone: str = "UTC", **policy: Any
) -> JobInfo:
    policy = {"run_on": "any", **policy}
    return replica.open().run(Declare(job, read_spec(spec, timezone), Policy(**policy))).value


def rows(replica: Harness, job: str = "job") -> list[TickRow]:
    """In the order of the schedule."""
    return list(reversed(replica.query(History(job, 1_000))))


def states(replica: Harness, job: str = "job") -> list[str]:
    return [row.state if row.reason is None else f"{row.state} {row.reason}" for row in rows(replica, job)]


def offsets(replica: Harness, job: str = "job") -> list[float]:
    """When the ticks were scheduled, in seconds after the start."""
    return [(row.scheduled_at - START).total_seconds() for row in rows(replica, job)]


# ---- one row a tick, one run a row ----


def test_a_due_tick_is_fired_once_run_once_and_has_one_row() -> None:
    replica = Harness(Cron)
    declare(replica)
    runner = Runner(replica, "job")
    replica.advance(9.9)
    assert not runner.has_one
    replica.advance(0.1)
    assigned = runner.take()
    assert (assigned.job, assigned.scheduled_at, assigned.attempt) == ("job", START + timedelta(seconds=10), 1)
    assert states(replica) == ["RUNNING"]
    runner.finish(assigned)
    (row,) = rows(replica)
    assert (row.state, row.token, row.attempts, row.error) == ("OK", assigned.token, 1, None)
    assert row.runner is not None and row.runner.session == runner.session.id
    assert row.started == row.finished == START + timedelta(seconds=10)
    replica.advance(0)
    assert len(rows(replica)) == 1


def test_of_many_identical_processes_one_runs_a_tick_and_they_take_turns() -> None:
    replica = Harness(Cron)
    declare(replica)
    runners = [Runner(replica, "job", "other") for _ in range(8)]
    ran = []
    for _ in range(16):
        replica.advance(10)
        with_one = [runner for runner in runners if runner.has_one]
        assert len(with_one) == 1
        with_one[0].run()
        ran.append(with_one[0])
    assert ran == runners * 2, "whoever waits longest is next"
    assert states(replica) == ["OK"] * 16


def test_a_tick_waits_for_a_runner_that_comes_later() -> None:
    replica = Harness(Cron)
    declare(replica)
    replica.advance(10)
    assert states(replica) == ["FIRED"]
    runner = Runner(replica, "job")
    assert runner.run().attempt == 1
    assert states(replica) == ["OK"]


def test_declaring_the_same_again_changes_nothing() -> None:
    replica = Harness(Cron)
    first = declare(replica)
    replica.advance(4)
    assert declare(replica) == first
    runner = Runner(replica, "job")
    replica.advance(6)
    assert runner.has_one


def test_a_tick_survives_a_snapshot_and_so_does_all_that_follows_from_it() -> None:
    replica = Harness(Cron)
    declare(replica, overlap="allow")
    runner = Runner(replica, "job")
    replica.advance(10)
    assigned = runner.take()
    replica.restore()
    replica.advance(10)
    runner.run()
    runner.finish(assigned)
    assert states(replica) == ["OK", "OK"]


def test_a_run_is_anothers_business_only_by_its_token_and_its_session() -> None:
    replica = Harness(Cron)
    declare(replica)
    runner = Runner(replica, "job")
    stranger = replica.open()
    replica.advance(10)
    assigned = runner.take(start=False)
    for command in (Start(assigned.token), Finish(assigned.token), GiveBack(assigned.token), Start(1)):
        with pytest.raises(errors.NotHolder):
            done(stranger.run(command))
    runner.finish(assigned)
    with pytest.raises(errors.NotHolder):
        runner.finish(assigned)


def test_a_tick_has_a_token_that_fences_and_grows() -> None:
    replica = Harness(*HOLDERS, Fencing)
    writer = replica.open()
    declare(replica)
    runner = Runner(replica, "job")
    tokens = []
    for _ in range(3):
        replica.advance(10)
        assigned = runner.take()
        done(writer.run(CheckHold(assigned.token)))
        runner.finish(assigned)
        with pytest.raises(errors.NotHolder):
            done(writer.run(CheckHold(assigned.token)))
        tokens.append(assigned.token)
    assert tokens == sorted(set(tokens))


def test_timers_are_not_for_sessions_and_serving_needs_a_registration() -> None:
    replica = Harness(Cron)
    session = replica.open()
    for command in (Due("job"), Serve()):
        with pytest.raises(errors.InvalidCommand):
            done(session.run(command))


# ---- runners that are lost ----


def test_a_lost_runner_of_at_least_once_runs_again_in_the_same_row_with_a_new_token() -> None:
    replica = Harness(Cron)
    declare(replica)
    first, second = Runner(replica, "job"), Runner(replica, "job")
    replica.advance(10)
    lost = first.take()
    first.session.end()
    again = second.take()
    assert (again.scheduled_at, again.attempt) == (lost.scheduled_at, 2)
    assert again.token > lost.token
    second.finish(again)
    (row,) = rows(replica)
    assert (row.state, row.attempts, row.token) == ("OK", 2, again.token)


def test_a_lost_runner_of_at_most_once_is_lost() -> None:
    replica = Harness(Cron)
    declare(replica, delivery="at_most_once")
    first, second = Runner(replica, "job"), Runner(replica, "job")
    replica.advance(10)
    first.take()
    first.session.end()
    assert states(replica) == ["LOST the runner was lost"]
    assert not second.has_one


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
def test_a_runner_lost_before_it_began_has_not_run(delivery: str) -> None:
    replica = Harness(Cron)
    declare(replica, delivery=delivery)
    first, second = Runner(replica, "job"), Runner(replica, "job")
    replica.advance(10)
    first.take(start=False)
    first.session.end()
    assert second.run().attempt == 1
    assert states(replica) == ["OK"]


def test_a_tick_that_its_caller_never_learned_of_goes_to_another() -> None:
    replica = Harness(Cron)
    declare(replica)
    first, second = Runner(replica, "job"), Runner(replica, "job")
    replica.advance(10)
    assert first.has_one
    first.session.withdraw(first.served)
    assert second.run().attempt == 1
    assert states(replica) == ["OK"]


def test_a_run_that_was_not_begun_is_given_back() -> None:
    replica = Harness(Cron)
    declare(replica)
    first = Runner(replica, "job")
    replica.advance(10)
    assigned = first.served.value
    second = Runner(replica, "job")
    done(first.session.run(Start(assigned.token)))
    done(first.session.run(GiveBack(assigned.token)))
    assert second.run().attempt == 1


def test_a_tick_that_kills_its_runners_is_not_run_for_ever() -> None:
    replica = Harness(Cron)
    declare(replica)
    replica.advance(10)
    for _ in range(cron_fsm.MAX_LOSSES):
        runner = Runner(replica, "job")
        runner.take()
        runner.session.end()
    assert not Runner(replica, "job").has_one
    assert states(replica) == ["LOST the runner was lost"]


def test_a_waiting_runner_that_goes_away_is_not_given_anything() -> None:
    replica = Harness(Cron)
    declare(replica)
    gone, left, stays = (Runner(replica, "job") for _ in range(3))
    gone.session.end()
    left.session.withdraw(left.served)
    replica.advance(10)
    assert stays.has_one
    assert not left.served.is_done or left.served.is_withdrawn


# ---- failures ----


def test_an_exception_is_failed_with_its_text() -> None:
    replica = Harness(Cron)
    declare(replica)
    runner = Runner(replica, "job")
    replica.advance(10)
    runner.run("ValueError: text")
    (row,) = rows(replica)
    assert (row.state, row.error, row.attempts) == ("FAILED", "ValueError: text", 1)


def test_a_failure_is_tried_again_after_a_back_off_that_doubles() -> None:
    replica = Harness(Cron)
    declare(replica, "@every 1h", retries=2, backoff=2.0)
    runner = Runner(replica, "job")
    begin = 3_600 - START.timestamp() % 3_600
    replica.advance(begin)
    first = runner.run("no")
    assert states(replica) == ["FIRED"]
    replica.advance(1.9)
    assert not runner.has_one
    replica.advance(0.2)
    second = runner.run("no")
    replica.advance(3.8)
    assert not runner.has_one
    replica.advance(0.4)
    third = runner.run("still no")
    assert [first.attempt, second.attempt, third.attempt] == [1, 2, 3]
    assert first.token < second.token < third.token
    (row,) = rows(replica)
    assert (row.state, row.error, row.attempts) == ("FAILED", "still no", 3)
    replica.advance(100)
    assert not runner.has_one


def test_a_retry_that_goes_well_leaves_no_error() -> None:
    replica = Harness(Cron)
    declare(replica, retries=1, backoff=0)
    runner = Runner(replica, "job")
    replica.advance(10)
    runner.run("no")
    replica.advance(0)
    runner.run()
    (row,) = rows(replica)
    assert (row.state, row.error, row.attempts) == ("OK", None, 2)


def test_a_run_past_its_time_out_has_failed_and_cannot_finish() -> None:
    replica = Harness(Cron)
    declare(replica, timeout=5)
    runner = Runner(replica, "job")
    replica.advance(10)
    assigned = runner.take()
    assert assigned.timeout == 5
    replica.advance(5)
    (row,) = rows(replica)
    assert (row.state, row.error) == ("FAILED", "TimeoutError: it ran longer than 5 s")
    with pytest.raises(errors.NotHolder):
        runner.finish(assigned)


# ---- overlap ----


def overlapping(overlap: str) -> tuple[Harness, Runner, Assigned]:
    """The first tick runs, and three more have come due."""
    replica = Harness(Cron)
    declare(replica, overlap=overlap)
    runner = Runner(replica, "job")
    replica.advance(10)
    running = runner.take()
    for _ in range(3):
        replica.advance(10)
    return replica, runner, running


def test_forbidden_overlap_skips_what_comes_due_meanwhile() -> None:
    replica, runner, running = overlapping("forbid")
    assert states(replica) == ["RUNNING", *["SKIPPED overlap"] * 3]
    runner.finish(running)
    assert not runner.has_one
    replica.advance(10)
    assert runner.has_one


def test_allowed_overlap_runs_beside() -> None:
    replica, runner, running = overlapping("allow")
    # Of the two that found no runner free the older was missed.
    assert states(replica) == ["RUNNING", "FIRED", "SKIPPED misfire", "FIRED"]
    runner.run()
    assert runner.take().scheduled_at == running.scheduled_at + timedelta(seconds=30)
    assert states(replica) == ["RUNNING", "OK", "SKIPPED misfire", "RUNNING"]


def test_queue_one_keeps_one_waiting() -> None:
    replica, runner, running = overlapping("queue_one")
    assert states(replica) == ["RUNNING", "FIRED", "SKIPPED overlap", "SKIPPED overlap"]
    assert not runner.has_one
    runner.finish(running)
    assert runner.run().scheduled_at == running.scheduled_at + timedelta(seconds=10)


def test_replace_stops_what_runs_and_tells_its_runner() -> None:
    replica = Harness(Cron)
    declare(replica, overlap="replace")
    runner = Runner(replica, "job")
    replica.advance(10)
    first = runner.take()
    assert first.may_be_stopped
    stopped = runner.session.run(AwaitStop(first.token))
    assert not stopped.is_done
    replica.advance(10)
    assert stopped.value is None
    assert states(replica) == ["LOST replaced", "FIRED"]
    with pytest.raises(errors.NotHolder):
        runner.finish(first)
    runner.run()
    assert states(replica) == ["LOST replaced", "OK"]


def test_whoever_waits_for_a_stop_is_told_when_the_run_is_over() -> None:
    replica = Harness(Cron)
    declare(replica, overlap="replace")
    runner = Runner(replica, "job")
    replica.advance(10)
    assigned = runner.take()
    told = runner.session.run(AwaitStop(assigned.token))
    given_up = runner.session.run(AwaitStop(assigned.token))
    runner.session.withdraw(given_up)
    runner.finish(assigned)
    assert told.value is None
    assert runner.session.run(AwaitStop(assigned.token)).value is None
    assert not replica.fsm(Cron).stops


def test_a_retry_counts_as_running() -> None:
    replica = Harness(Cron)
    declare(replica, retries=1, backoff=25)
    runner = Runner(replica, "job")
    replica.advance(10)
    runner.run("no")
    replica.advance(20)
    assert states(replica) == ["FIRED", "SKIPPED overlap", "SKIPPED overlap"]


# ---- misfires ----


def missed(misfire: str, seconds: float = 45, **policy: Any) -> tuple[Harness, Runner]:
    """The clock jumps over four ticks, as it does when nobody leads for so long."""
    replica = Harness(Cron)
    declare(replica, misfire=misfire, **policy)
    runner = Runner(replica, "job")
    jump(replica, seconds)
    return replica, runner


def jump(replica: Harness, seconds: float) -> None:
    replica.now_ns += int(seconds * SECOND_NS)
    replica.wall_ns += int(seconds * SECOND_NS)
    replica.advance(0)


def test_misfire_latest_runs_the_last_one_missed() -> None:
    replica, runner = missed("latest")
    assert states(replica) == [*["SKIPPED misfire"] * 3, "FIRED"]
    assert runner.run().scheduled_at == START + timedelta(seconds=40)


def test_misfire_earliest_runs_the_first_one_missed() -> None:
    replica, runner = missed("earliest")
    assert states(replica) == ["FIRED", *["SKIPPED misfire"] * 3]
    assert runner.run().scheduled_at == START + timedelta(seconds=10)


def test_misfire_all_runs_each_one_after_another() -> None:
    replica, runner = missed("all")
    for place in range(1, 5):
        assigned = runner.take()
        assert assigned.scheduled_at == START + timedelta(seconds=10 * place)
        assert not runner.has_one, "one after another, since they must not overlap"
        runner.finish(assigned)
    assert states(replica) == ["OK"] * 4


def test_misfire_skip_runs_only_what_is_on_time() -> None:
    replica, runner = missed("skip", 43)
    assert states(replica) == [*["SKIPPED misfire"] * 3, "FIRED"]
    replica, runner = missed("skip", 48)
    assert states(replica) == ["SKIPPED misfire"] * 4
    assert not runner.has_one


def test_grace_says_how_late_is_too_late() -> None:
    replica, _ = missed("all", 45, grace=20)
    assert states(replica) == ["SKIPPED misfire", "SKIPPED misfire", "FIRED", "FIRED"]


def test_a_tick_that_finds_no_runner_within_its_grace_is_skipped() -> None:
    replica = Harness(Cron)
    declare(replica, "@every 60s", grace=3)
    replica.advance(60 - START.timestamp() % 60 + 2.9)
    assert states(replica) == ["FIRED"]
    replica.advance(0.2)
    assert states(replica) == ["SKIPPED misfire"]
    assert not Runner(replica, "job").has_one


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [
        ("latest", ["SKIPPED misfire", "SKIPPED misfire", "FIRED"]),
        ("earliest", ["FIRED", "SKIPPED misfire", "SKIPPED misfire"]),
        ("all", ["FIRED", "FIRED", "FIRED"]),
    ],
)
def test_ticks_that_nobody_was_there_to_run_were_missed(misfire: str, expected: list[str]) -> None:
    replica = Harness(Cron)
    declare(replica, misfire=misfire)
    replica.advance(30)
    assert states(replica) == expected


def test_many_missed_ticks_are_bounded_and_the_rest_is_one_row() -> None:
    replica, runner = missed("all", 10 * 86_400)
    fsm = replica.fsm(Cron)
    assert len(fsm.ticks) == cron_fsm.MAX_CAUGHT_UP + 1
    folded = fsm.ticks["job", START + timedelta(seconds=10 * (cron_fsm.MAX_CAUGHT_UP + 1))]
    assert folded.state == "SKIPPED"
    assert folded.until == START + timedelta(days=10)
    assert runner.has_one


def test_ten_years_missed_by_a_job_of_every_second_is_a_handful_of_rows() -> None:
    replica = Harness(Cron)
    declare(replica, "* * * * * *")
    jump(replica, 10 * 365 * 86_400)
    runner = Runner(replica, "job")
    assert len(rows(replica)) == cron_fsm.MAX_SKIPPED_ROWS + 2
    *skipped, folded, last = rows(replica)
    assert {row.state for row in skipped} == {"SKIPPED"}
    assert folded.until == last.scheduled_at - timedelta(seconds=1)
    assert runner.run().scheduled_at == START + timedelta(days=3_650)


# ---- jitter ----


def test_jitter_is_the_same_for_everybody_less_than_said_and_keeps_ticks_in_order() -> None:
    began = []
    for _ in range(2):
        replica = Harness(Cron)
        declare(replica, jitter=60)
        runner = Runner(replica, "job")
        seen = []
        for _ in range(200):
            replica.advance(0.5)
            if runner.has_one:
                assigned = runner.run()
                seen.append((assigned.scheduled_at, replica.wall_ns))
        began.append(seen)
    assert began[0] == began[1]
    scheduled = [at for at, _ in began[0]]
    assert scheduled == [START + timedelta(seconds=10 * place) for place in range(1, len(scheduled) + 1)]
    late = {wall_ns // SECOND_NS - int(at.timestamp()) for at, wall_ns in began[0]}
    assert len(late) > 3, "all at the same moment"
    assert min(late) >= 0 and max(late) <= 10, "never as late as the next tick"


# ---- who runs ----


def test_on_the_leader_its_own_process_runs_then_its_stand_bys_then_anybody() -> None:
    replica = Harness(Cron)
    declare(replica, run_on="leader")
    anybody = Runner(replica, "job", peer="follower", is_own=True)
    replica.advance(10)
    assert anybody.run()
    stand_by = Runner(replica, "job", peer=LEADER)
    replica.advance(10)
    assert not anybody.has_one
    assert stand_by.run()
    own = Runner(replica, "job", peer=LEADER, is_own=True)
    replica.advance(10)
    assert (anybody.has_one, stand_by.has_one) == (False, False)
    assert own.run()
    own.session.end()
    stand_by.session.end()
    replica.advance(10)
    assert anybody.run()


def test_a_leaders_process_with_its_hands_full_is_waited_for() -> None:
    replica = Harness(Cron)
    declare(replica, run_on="leader")
    own = Runner(replica, "job", is_own=True)
    own.session.withdraw(own.served)  # between two waits
    other = Runner(replica, "job", peer="follower")
    replica.advance(10)
    assert not other.has_one
    own.wait()
    assert own.run()


@pytest.mark.parametrize("leaves", [True, False])
def test_a_leaders_process_that_goes_is_not_waited_for_any_longer(leaves: bool) -> None:
    replica = Harness(Cron)
    declare(replica, run_on="leader")
    own = Runner(replica, "job", is_own=True)
    own.session.withdraw(own.served)  # it hangs between two waits
    other = Runner(replica, "job", peer="follower")
    replica.advance(10)
    assert not other.has_one
    if leaves:
        own.register("another")
    else:
        own.session.end()
    assert other.run()


def test_any_runs_on_any_and_a_group_on_those_who_call_themselves_so() -> None:
    replica = Harness(Cron)
    declare(replica, run_on="workers")
    outsider = Runner(replica, "job")
    replica.advance(10)
    assert not outsider.has_one
    worker = Runner(replica, "job", peer="elsewhere", label="workers")
    assert worker.run()
    assert not outsider.has_one


def test_all_run_on_every_process_that_registered_and_make_one_row() -> None:
    replica = Harness(Cron)
    declare(replica, run_on="all")
    runners = [Runner(replica, "job") for _ in range(3)]
    runners[2].session.withdraw(runners[2].served)
    replica.advance(10)
    taken = [runner.take() for runner in runners[:2]]
    runners[2].wait()
    taken.append(runners[2].take())
    assert len({assigned.token for assigned in taken}) == 3
    for runner, assigned in zip(runners, taken, strict=True):
        assert states(replica) == ["RUNNING"]
        runner.finish(assigned)
    (row,) = rows(replica)
    assert (row.state, row.attempts) == ("OK", 3)


def test_all_have_failed_when_one_has_and_each_tries_again_itself() -> None:
    replica = Harness(Cron)
    declare(replica, run_on="all", retries=1, backoff=1)
    good, bad = Runner(replica, "job"), Runner(replica, "job")
    replica.advance(10)
    good.run()
    bad.run("no")
    assert not good.has_one
    replica.advance(1.1)
    assert not good.has_one
    bad.run("again no")
    (row,) = rows(replica)
    assert (row.state, row.error, row.attempts) == ("FAILED", "again no", 3)


@pytest.mark.parametrize("begun", [True, False])
def test_of_all_those_that_are_lost_do_not_hold_up_the_rest(begun: bool) -> None:
    replica = Harness(Cron)
    declare(replica, run_on="all", retries=1, backoff=5)
    stays, goes, tries = (Runner(replica, "job") for _ in range(3))
    late = Runner(replica, "job")
    late.session.withdraw(late.served)
    replica.advance(10)
    if begun:
        goes.take()
    stays.run()
    tries.run("no")
    for gone in (goes, late, tries):
        gone.session.end()
    replica.advance(6)
    (row,) = rows(replica)
    assert row.state == "FAILED"
    replica.advance(4)
    assert stays.run()


def test_all_wait_for_the_first_to_come() -> None:
    replica = Harness(Cron)
    declare(replica, run_on="all")
    replica.advance(10)
    gone = Runner(replica, "job")
    gone.session.end()
    runner = Runner(replica, "job")
    assert runner.run()
    assert states(replica) == ["OK"]


def test_registering_anew_moves_a_waiting_runner() -> None:
    replica = Harness(Cron)
    declare(replica)
    declare(replica, job="later")
    runner = Runner(replica, "job")
    runner.register("later")
    replica.advance(10)
    assert runner.run().job == "later"
    runner.register()
    with pytest.raises(errors.InvalidCommand):
        done(runner.served)
    fsm = replica.fsm(Cron)
    assert not (fsm.runners or fsm.crews or fsm.crew_of or fsm.crews_of or fsm.members or fsm.idle or fsm.waiting)


# ---- operators ----


def test_a_paused_job_is_not_due_and_makes_up_for_nothing() -> None:
    replica = Harness(Cron)
    declare(replica, misfire="all")
    operator = replica.open()
    runner = Runner(replica, "job")
    done(operator.run(Pause("job", True)))
    paused = replica.query(GetJob("job"))
    assert paused is not None and (paused.paused, paused.next_at) == (True, None)
    replica.advance(35)
    assert not runner.has_one
    done(operator.run(Pause("job", False)))
    replica.advance(5)
    assert runner.run().scheduled_at == START + timedelta(seconds=40)
    assert len(rows(replica)) == 1


def test_pausing_skips_what_waits_for_a_runner() -> None:
    replica = Harness(Cron)
    declare(replica)
    replica.advance(10)
    done(replica.open().run(Pause("job", True)))
    assert states(replica) == ["SKIPPED paused"]
    assert not Runner(replica, "job").has_one


def test_a_triggered_tick_is_one_more_and_obeys_overlap() -> None:
    replica = Harness(Cron)
    declare(replica)
    operator = replica.open()
    runner = Runner(replica, "job")
    replica.advance(5)
    row = operator.run(Trigger("job")).value
    assert (row.state, row.reason) == ("FIRED", "triggered")
    assigned = runner.take()
    assert assigned.scheduled_at == row.scheduled_at
    refused = operator.run(Trigger("job")).value
    assert (refused.state, refused.reason) == ("SKIPPED", "overlap")
    runner.finish(assigned)
    replica.advance(5)
    assert runner.run().scheduled_at == START + timedelta(seconds=10)


def test_a_deleted_job_is_gone_but_for_what_it_did() -> None:
    replica = Harness(Cron)
    declare(replica)
    runner, operator = Runner(replica, "job"), replica.open()
    replica.advance(10)
    running = runner.take()
    assert operator.run(Delete("job")).value is True
    assert operator.run(Delete("job")).value is False
    replica.advance(20)
    runner.finish(running)
    assert not runner.has_one
    assert states(replica) == ["OK"]
    assert replica.query(GetJob("job")) is None
    assert replica.machine.next_wall_deadline_ns() is None


def test_deleting_ends_what_waits() -> None:
    replica = Harness(Cron)
    declare(replica, retries=1, backoff=100, overlap="allow", misfire="all")
    runner = Runner(replica, "job")
    replica.advance(10)
    runner.run("no")
    lost = runner.served
    runner.session.withdraw(lost)
    replica.advance(20)
    done(replica.open().run(Delete("job")))
    assert states(replica) == ["FAILED deleted", "SKIPPED deleted", "SKIPPED deleted"]
    replica.advance(200)
    fsm = replica.fsm(Cron)
    assert not (fsm.live or fsm.pending or fsm.stuck)


def test_a_runner_lost_after_its_job_was_deleted_leaves_a_lost_tick() -> None:
    replica = Harness(Cron)
    declare(replica)
    runner = Runner(replica, "job")
    replica.advance(10)
    runner.take()
    done(replica.open().run(Delete("job")))
    runner.session.end()
    assert [row.state for row in rows(replica)] == ["LOST"]


def test_what_is_asked_of_a_job_that_is_not_there_is_refused() -> None:
    replica = Harness(Cron)
    session = replica.open()
    for command in (Pause("no", True), Trigger("no")):
        with pytest.raises(errors.Refused, match="no job 'no'"):
            done(session.run(command))
    with pytest.raises(errors.Refused, match="no job 'no'"):
        replica.query(NextTicks("no"))


def test_next_says_what_will_be_and_history_what_was() -> None:
    replica = Harness(Cron)
    declare(replica, "30 2 * * *", timezone="Europe/Berlin")
    declare(replica)
    ahead = replica.query(NextTicks("job", 3))
    assert ahead == tuple(START + timedelta(seconds=seconds) for seconds in (10, 20, 30))
    runner = Runner(replica, "job")
    for _ in range(3):
        replica.advance(10)
        runner.run()
    newest_first = [row.scheduled_at for row in replica.query(History("job", 2))]
    assert newest_first == [ahead[2], ahead[1]]
    before = int(ahead[1].timestamp() * 1e6)
    assert [row.scheduled_at for row in replica.query(History("job", 2, before))] == [ahead[0]]


def test_jobs_are_listed_by_name_a_page_at_a_time() -> None:
    replica = Harness(Cron)
    for name in "cab":
        declare(replica, job=name)
    assert [info.name for info in replica.query(ListJobs("", 2))] == ["a", "b"]
    assert [info.name for info in replica.query(ListJobs("b", 2))] == ["c"]


def test_a_moment_runs_once_also_one_that_has_passed() -> None:
    replica = Harness(Cron)
    declare(replica, START + timedelta(seconds=7), job="once")
    declare(replica, START - timedelta(days=1), job="late")
    runner = Runner(replica, "once", "late")
    replica.advance(0)
    assert runner.run().job == "late"
    replica.advance(6.9)
    assert not runner.has_one
    replica.advance(0.1)
    assert runner.run().job == "once"
    declare(replica, START + timedelta(seconds=7), job="once")
    declare(replica, START - timedelta(days=1), job="late")
    replica.advance(1_000_000)
    assert not runner.has_one
    info = replica.query(GetJob("once"))
    assert info is not None and info.next_at is None


# ---- versions ----


def test_a_changed_schedule_is_a_new_version_and_fires_no_tick_twice() -> None:
    replica = Harness(Cron)
    assert declare(replica).version == 1
    runner = Runner(replica, "job")
    replica.advance(10)
    runner.run()
    changed = declare(replica, "@every 5s")
    assert (changed.version, changed.next_at) == (2, START + timedelta(seconds=15))
    assert declare(replica, "@every 5s").version == 2
    replica.advance(5)
    runner.run()
    assert declare(replica, "@every 10s").version == 3
    replica.advance(5)
    runner.run()
    assert offsets(replica) == [10, 15, 20]
    assert states(replica) == ["OK"] * 3


def test_a_tick_due_in_the_entry_that_changes_the_schedule_is_fired_once() -> None:
    replica = Harness(Cron)
    declare(replica)
    runner = Runner(replica, "job")
    session = replica.open()
    replica.now_ns += 10 * SECOND_NS
    replica.wall_ns += 10 * SECOND_NS
    done(session.run(Declare("job", read_spec("@every 2s"), Policy(run_on="any"))))
    runner.run()
    replica.advance(0)
    assert not runner.has_one
    assert offsets(replica) == [10]


def test_a_changed_policy_keeps_a_tick_that_jitter_holds_back() -> None:
    replica = Harness(Cron)
    declare(replica, "@every 1h", jitter=3_000)
    runner = Runner(replica, "job")
    replica.advance(3_600 - START.timestamp() % 3_600)
    assert not runner.has_one
    declare(replica, "@every 1h")
    replica.advance(0)
    assert runner.has_one


def test_newer_rules_of_a_zone_take_the_place_of_older_ones_and_older_ones_do_not() -> None:
    replica = Harness(Cron)
    session = replica.open()
    berlin = read_spec("0 12 * * *", "Europe/Berlin")
    lisbon = read_spec("0 12 * * *", "Europe/Lisbon")
    policy = Policy()

    def with_rules(zone: bytes, release: str) -> JobInfo:
        from dataclasses import replace

        return session.run(Declare("job", replace(berlin, zone=zone, zone_version=release), policy)).value

    first = with_rules(berlin.zone, "2026a")
    later = with_rules(lisbon.zone, "2026b")
    assert first.next_at is not None
    assert later.next_at == first.next_at + timedelta(hours=1)
    assert (first.version, later.version) == (1, 1)
    assert with_rules(berlin.zone, "2026a") == later


# ---- the wall clock ----

YEARS = 10 * 365 * 86_400.0


def jump_wall(replica: Harness, seconds: float) -> None:
    """The clocks of the machines were set ahead."""
    replica.wall_ns += int(seconds * SECOND_NS)
    replica.advance(0)


@pytest.mark.parametrize("misfire", ["latest", "earliest", "skip", "all"])
def test_a_clock_ten_years_ahead_and_back_makes_no_storm_and_no_standstill(misfire: str) -> None:
    replica = Harness(Cron)
    declare(replica, "@every 1d", misfire=misfire)
    jump(replica, 86_400 - START.timestamp() % 86_400)
    runner = Runner(replica, "job")
    runner.run()
    jump_wall(replica, YEARS)
    ran = []
    while runner.has_one:
        ran.append(runner.run().scheduled_at)
    assert len(ran) == (1_000 if misfire == "all" else 1)
    replica.set_wall_back(YEARS)
    assert not runner.has_one
    today = START + timedelta(seconds=86_400 - START.timestamp() % 86_400)
    for days in range(1, 11):
        replica.advance(86_400)
        at = today + timedelta(days=days)
        if at in ran:
            assert not runner.has_one, "it ran already"
        else:
            assert runner.run().scheduled_at == at
    assert len(replica.fsm(Cron).ticks) < 2_000


@pytest.mark.parametrize("misfire", ["latest", "earliest", "skip", "all"])
def test_nothing_that_ran_while_the_clock_was_ahead_runs_again_when_it_gets_there(
    misfire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cron_fsm, "MAX_JOB_LEDGER", 3)  # rows do not help
    monkeypatch.setattr(cron_fsm, "MAX_CAUGHT_UP", 30)
    replica = Harness(Cron)
    declare(replica, misfire=misfire)
    runner = Runner(replica, "job")
    replica.advance(10)
    ran = [runner.run().scheduled_at]

    def pass_by(ticks: int) -> None:
        for _ in range(ticks):
            replica.advance(10)
            while runner.has_one:
                ran.append(runner.run().scheduled_at)

    jump_wall(replica, 3_000)  # enough that one row stands for most of what was missed
    while runner.has_one:
        ran.append(runner.run().scheduled_at)
    pass_by(5)
    replica.set_wall_back(3_000)
    pass_by(330)
    assert len(ran) == len(set(ran))
    assert set(ran) >= {START + timedelta(seconds=10 * place) for place in range(7, 330)}


def test_a_clock_set_back_a_little_fires_nothing_twice() -> None:
    replica = Harness(Cron)
    declare(replica)
    runner = Runner(replica, "job")
    for _ in range(6):
        replica.advance(10)
        runner.run()
    replica.set_wall_back(35)
    for _ in range(10):
        replica.advance(10)
        if runner.has_one:
            runner.run()
    assert offsets(replica) == [10.0 * place for place in range(1, 13)]


def test_a_pause_and_a_new_schedule_do_not_carry_a_clock_that_was_ahead_along() -> None:
    replica = Harness(Cron)
    declare(replica, job="paused")
    declare(replica, job="changed")
    operator = replica.open()
    jump_wall(replica, YEARS)
    done(operator.run(Pause("paused", True)))
    replica.set_wall_back(YEARS)
    done(operator.run(Pause("paused", False)))
    declare(replica, "@every 20s", job="changed")
    for name in ("paused", "changed"):
        info = replica.query(GetJob(name))
        assert info is not None and info.next_at is not None
        assert info.next_at < START + timedelta(days=1)


def test_stretches_decided_ahead_of_the_clock_are_bounded_in_number() -> None:
    replica = Harness(Cron)
    declare(replica, "@every 1h")
    for years in range(1, 14):
        jump_wall(replica, years * YEARS / 10)
        replica.set_wall_back(years * YEARS / 10)
    assert len(replica.fsm(Cron).stands["job"].islands) <= cron_fsm.MAX_ISLANDS


def test_the_ledger_is_bounded_by_job_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cron_fsm, "MAX_JOB_LEDGER", 3)
    monkeypatch.setattr(cron_fsm, "MAX_LEDGER", 4)
    replica = Harness(Cron)
    declare(replica, job="a", overlap="allow")
    declare(replica, "@every 20s", job="b")
    runner = Runner(replica, "a", "b")
    for _ in range(8):
        replica.advance(10)
        while runner.has_one:
            runner.run()
    fsm = replica.fsm(Cron)
    assert len(fsm.ticks) == len(fsm.ledger) == len(fsm.ended) == 4
    assert len(rows(replica, "a")) <= 3
    assert offsets(replica, "a")[-1] == 80
