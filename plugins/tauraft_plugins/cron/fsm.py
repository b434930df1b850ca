"""The cron state machine: it decides that a tick is due, who runs it, and what became of it.

A tick is one row of ``ticks`` (the ledger), by job and the moment it was scheduled at: FIRED when it is due, RUNNING once its runner has
said that it begins, and over in OK, FAILED, LOST or SKIPPED.  Around the rows stand indexes:

    jobs       what was declared;  ``stands``: how far each has come (its mark), and when it is due next
    pending    (job, order) of ticks that nobody has;  ``stuck``: jobs whose first one waits for a runner
    live       (job, order) of ticks that somebody has, or that will be tried again: what ``overlap`` looks at
    runs       by token: a process that has a tick;  ``by_session``: the same of a session;  ``owed``: ticks for all still to be taken
    runners    processes that registered, in *crews* that registered the same jobs;  ``idle``: those that wait for a tick
    ledger     rows that are over, oldest first;  ``ended``: the same of a job.  Both are bounded

Decided once: the mark of a job only grows, and every tick up to it is decided; so a leader change, a second timer or a
changed spec cannot fire one twice.  When the cluster's wall clock is set back, what was decided ahead of it becomes an *island*
that is stepped over later, and the mark goes back: nothing fires twice, and nothing stands still for years.

No tick is pending while somebody who may run it is idle: whatever changes that settles the job in the same command.
Handlers take O(log n) steps, but for ticks that were missed: those are bounded by ``MAX_CAUGHT_UP`` and ``MAX_SKIPPED_ROWS``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from typing import Any, ClassVar, Final, Literal

from tauraft.errors import InvalidCommand, NotHolder, Refused
from tauraft.fsm import FSM, Context, QueryContext, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import JobInfo, Owner, TickRow
from tauraft_plugins.cron.calendar import latest_tick, micros, moment, next_tick, zone_of
from tauraft_plugins.cron.rows import JobRow, Owed, Run, Runner, Stand
from tauraft_primitives.cron.messages import (
    CRON,
    FIRST_MOMENT,
    LAST_MOMENT,
    LAST_MOMENT_US,
    SECOND_US,
    Again,
    Assigned,
    AwaitStop,
    Declare,
    Delete,
    Due,
    Finish,
    GetJob,
    GiveBack,
    GraceEnds,
    History,
    ListJobs,
    NextTicks,
    Overdue,
    Pause,
    Register,
    Schedule,
    Serve,
    Start,
    Tick,
    Trigger,
    as_row,
)

SECOND_NS: Final = 1_000_000_000
MAX_CAUGHT_UP: Final = 1_000  # missed ticks that are run, and ticks of one job that wait for a runner
MAX_SKIPPED_ROWS: Final = 20  # missed ticks with a row each; one more row stands for the rest
MAX_JOB_LEDGER: Final = 1_000  # rows that are over, of one job
MAX_LEDGER: Final = 50_000  # of all jobs together
MAX_ISLANDS: Final = 8
MAX_LOSSES: Final = 10  # a tick that its runners do not survive is not run for ever
LONGEST_BACKOFF_S: Final = 3_600.0
SKIP_GRACE_US: Final = 5 * SECOND_US  # how late is on time for misfire="skip": an election may come in between
END: Final = (1 << 63) - 1
ANYWHERE: Final = ""

Key = tuple[str, datetime]


class Cron(FSM, name=CRON, version=1):
    teardown: ClassVar[int] = 20  # a run is a claim on its tick
    sql_views: ClassVar[Mapping[str, str]] = {
        "cron_ticks": "SELECT key_0 AS job, key_1 AS scheduled_at, state FROM tauraft_cron_ticks"
    }
    jobs: Table[str, JobRow]
    stands: Table[str, Stand]
    ticks: Table[Key, Tick]
    pending: Table[tuple[str, int], datetime]  # (job, order)
    live: Table[tuple[str, int], datetime]  # (job, order)
    ended: Table[tuple[str, int], datetime]  # (job, order)
    ledger: Table[int, Key]  # by order
    stuck: Table[str, None]
    runs: Table[int, Run]  # by token
    by_session: Table[tuple[int, int], None]  # (session, token)
    runs_of: Table[tuple[int, int], None]  # (order, token)
    owed: Table[tuple[int, int], Owed]  # (session, order)
    runners: Table[int, Runner]  # by session
    crews: Table[int, tuple[str, ...]]
    crew_of: Table[tuple[str, ...], int]
    crews_of: Table[tuple[str, int], None]  # (job, crew)
    members: Table[tuple[int, str, int], None]  # (crew, place, session)
    waiting: Table[int, Ticket[Assigned]]  # by session
    idle: Table[tuple[int, str, int, int], int]  # (crew, place, rank, revision) -> session
    stops: Table[tuple[int, int], Ticket[None]]  # (token, revision)

    def is_held(self, token: int) -> bool:
        """Whether the run of that token is in force: what fencing asks."""
        return token in self.runs

    # ---- jobs ----

    @applies(Declare)
    def declare(self, command: Declare, context: Context) -> JobInfo:
        job, schedule, policy, wall_us = command.job, command.schedule, command.policy, context.wall_ns // 1_000
        try:
            zone_of(schedule.zone)
        except ValueError as error:
            raise InvalidCommand(f"{error}; nothing changed") from None
        row, stand = self.jobs.get(job), self.stands.get(job)
        if row is None or stand is None:
            # A moment that has passed already is a missed tick; of anything else nothing was missed before this.
            start = wall_us if schedule.at_us is None else min(wall_us, schedule.at_us - 1)
            row, stand = JobRow(schedule, policy, 1), Stand(start, start)
        else:
            stand = _set_back(stand, wall_us)
            is_same = _without_zone(row.schedule) == _without_zone(schedule)
            if is_same and row.schedule.zone_version >= schedule.zone_version:
                schedule = row.schedule  # its rules are as new, or newer
            if (row.schedule, row.policy) == (schedule, policy):
                return self._info(job, row, stand)
            if not is_same:
                start = wall_us if schedule.at_us is None else min(wall_us, schedule.at_us - 1)
                stand = replace(stand, mark_us=max(stand.mark_us, start))
            is_new = not is_same or row.policy != policy
            row = JobRow(schedule, policy, row.version + is_new)
        self.jobs[job] = row
        self._arm(job, row, stand, context)
        self._settle(job, context)
        return self._info(job, row, self.stands[job])

    @applies(Pause)
    def pause(self, command: Pause, context: Context) -> None:
        job = command.job
        row, stand = self._known(job)
        if stand.is_paused == command.paused:
            return
        wall_us = context.wall_ns // 1_000
        stand = replace(_set_back(stand, wall_us), is_paused=command.paused)
        if not command.paused:
            stand = replace(stand, mark_us=max(stand.mark_us, wall_us))
        self._arm(job, row, stand, context)
        if command.paused:
            self._skip_pending(job, "paused", context)

    @applies(Trigger)
    def trigger(self, command: Trigger, context: Context) -> TickRow:
        job = command.job
        row, _ = self._known(job)
        # Between the seconds, where no schedule has a tick.
        at_us = context.wall_ns // 1_000
        while at_us % SECOND_US == 0 or (job, moment(at_us)) in self.ticks:
            at_us += 1
        self._admit(job, row, moment(at_us), False, context, reason="triggered")
        self._settle(job, context)
        return as_row(job, moment(at_us), self.ticks[job, moment(at_us)])

    @applies(Delete)
    def delete(self, command: Delete, context: Context) -> bool:
        job = command.job
        if job not in self.jobs:
            return False
        self._skip_pending(job, "deleted", context)
        for (_, _), at in list(self.live.range((job, 0), (job, END))):
            if not self.ticks[job, at].open_runs:
                self._end((job, at), context, state="FAILED", reason="deleted")
        del self.jobs[job]
        del self.stands[job]
        self.stuck.pop(job, None)
        context.cancel(f"due/{job}")
        return True

    # ---- who runs ----

    @applies(Register)
    def register(self, command: Register, context: Context) -> None:
        session = _session(context)
        jobs = tuple(sorted(set(command.jobs)))
        before = self.runners.get(session)
        if before is None and not jobs:
            return
        had = () if before is None else self.crews[before.crew]
        ticket = None if before is None else self._unregister(session, before)
        if not jobs:
            self._drop_owed(session, context)
            self._settle_stuck(had, context)
            if ticket is not None:
                context.answer(ticket, InvalidCommand("nothing is registered any more; nothing is held"))
            return
        owner = Owner(session, command.peer_id, command.host, command.pid, command.label)
        crew = self.crew_of.get(jobs)
        if crew is None:
            crew = self.crew_of[jobs] = context.revision
            self.crews[crew] = jobs
            for job in jobs:
                self.crews_of[job, crew] = None
        place, is_own = ("", False) if before is None else (before.replica, before.is_own)
        self._enlist(session, Runner(owner, crew, place, is_own))
        if ticket is not None:
            self._be_idle(session, ticket)
        # A tick for all that nobody could take counts a runner that is registered, idle or not.
        self._settle_stuck(tuple(sorted({*had, *jobs})), context)

    @applies(Serve)
    def serve(self, command: Serve, context: Context) -> Ticket[Assigned]:
        session = _session(context)
        runner = self.runners.get(session)
        if runner is None:
            raise InvalidCommand("this session has registered no jobs; nothing is held")
        if session in self.waiting:
            raise InvalidCommand("this session waits for a tick already; nothing is held")
        if (runner.replica, runner.is_own) != (command.replica, command.is_own):
            self._leave_places(session, runner)
            runner = replace(runner, replica=command.replica, is_own=command.is_own)
            self._enlist(session, runner)
        ticket = context.wait(Serve)
        self._be_idle(session, ticket)
        self._pay(session, context)
        if session in self.waiting:
            self._settle_stuck(self.crews[runner.crew], context)
        return ticket

    @withdraws(Serve)
    def withdraw_serve(self, command: Serve, ticket: Ticket[Assigned], context: Context) -> None:
        if self.waiting.get(ticket.session) == ticket:
            self._no_longer_idle(ticket.session)
            return
        if context.session is None:
            return  # ``lose_runner`` sees to all that it had
        for token in self._tokens_of(ticket.session):
            run = self.runs[token]
            if run.sequence == ticket.sequence and not run.is_started:
                self._give_back(token, context)

    @session_ended
    def lose_runner(self, session: int, context: Context) -> None:
        runner = self.runners.get(session)
        jobs = () if runner is None else self.crews[runner.crew]
        if runner is not None:
            self._unregister(session, runner)
        for token in self._tokens_of(session):
            if self.runs[token].is_started:
                self._close(token, "lost", None, context)
            else:
                self._give_back(token, context)
        self._drop_owed(session, context)
        self._settle_stuck(jobs, context)  # what waited for this very one waits for it no longer

    # ---- a run, from its start to its end ----

    @applies(Start)
    def start(self, command: Start, context: Context) -> None:
        token = command.token
        run = self._run_of(token, context)
        if run.is_started:
            return
        self.runs[token] = replace(run, is_started=True)
        tick = self.ticks[run.job, run.at]
        self.ticks[run.job, run.at] = replace(tick, state="RUNNING", started=_wall(context), finished=None)
        context.cancel(f"grace/{tick.order}")
        row = self.jobs.get(run.job)
        if row is not None and row.policy.timeout is not None:
            context.schedule(f"run/{token}", context.now_ns + _ns(row.policy.timeout), Overdue(token))

    @applies(Finish)
    def finish(self, command: Finish, context: Context) -> None:
        self._run_of(command.token, context)
        self._close(command.token, "ok" if command.error is None else "failed", command.error, context)

    @applies(GiveBack)
    def give_back(self, command: GiveBack, context: Context) -> None:
        self._run_of(command.token, context)
        self._give_back(command.token, context)

    @applies(AwaitStop)
    def await_stop(self, command: AwaitStop, context: Context) -> Ticket[None] | None:
        if command.token not in self.runs:
            return None
        ticket = self.stops[command.token, context.revision] = context.wait(AwaitStop)
        return ticket

    @withdraws(AwaitStop)
    def withdraw_await_stop(self, command: AwaitStop, ticket: Ticket[None], context: Context) -> None:
        self.stops.pop((command.token, ticket.revision), None)

    # ---- time ----

    @applies(Due)
    def due(self, command: Due, context: Context) -> None:
        _only_timers(context)
        job = command.job
        row, stand = self.jobs.get(job), self.stands.get(job)
        if row is None or stand is None or stand.is_paused:
            return
        # On the wall clock a timer may come early: it was set back.
        wall_us = context.wall_ns // 1_000
        stand = _set_back(stand, wall_us)
        due, folded = self._what_is_due(job, row, stand, wall_us)
        on_time = [at for at in due if wall_us - at - self._jitter(job, row, stand, at) <= _grace_us(row)]
        chosen = {"latest": on_time[-1:], "earliest": on_time[:1]}.get(row.policy.misfire, on_time)
        self._arm(job, row, _after(stand, due, folded, chosen), context)
        makes_up = row.policy.misfire == "all" and len(chosen) > 1
        fired = set(chosen)
        for at_us in due:
            if folded is not None and at_us > folded[1]:
                self._skip(job, moment(folded[0]), "misfire", context, until=moment(folded[1]))
                folded = None
            if at_us in fired:
                self._admit(job, row, moment(at_us), makes_up, context)
            else:
                self._skip(job, moment(at_us), "misfire", context)
        if folded is not None:
            self._skip(job, moment(folded[0]), "misfire", context, until=moment(folded[1]))
        self._settle(job, context)

    @applies(Again)
    def again(self, command: Again, context: Context) -> None:
        _only_timers(context)
        at = moment(command.at_us)
        key, tick = (command.job, at), self.ticks.get((command.job, at))
        if tick is None or tick.order != command.order or (command.job, command.order) not in self.live:
            return
        if not command.session:
            self._back(key, tick, context)
        elif command.session in self.runners:
            self.owed[command.session, tick.order] = Owed(command.job, at, command.failures)
            self._pay(command.session, context)
        else:
            # Whoever had to try again is gone: its failure stands.
            self._part_ended(key, replace(tick, failures=tick.failures + 1), context)

    @applies(Overdue)
    def overdue(self, command: Overdue, context: Context) -> None:
        _only_timers(context)
        run = self.runs.get(command.token)
        if run is not None:
            row = self.jobs.get(run.job)
            limit = None if row is None else row.policy.timeout
            self._close(command.token, "failed", f"TimeoutError: it ran longer than {limit:g} s", context)

    @applies(GraceEnds)
    def grace_ends(self, command: GraceEnds, context: Context) -> None:
        _only_timers(context)
        key = command.job, moment(command.at_us)
        tick = self.ticks.get(key)
        if tick is None or tick.order != command.order or tick.losses or tick.failures:
            return
        if (command.job, command.order) in self.pending:
            self._end(key, context, state="SKIPPED", reason="misfire")
            self._settle(command.job, context)

    # ---- looking ----

    @answers(GetJob)
    def get_job(self, query: GetJob) -> JobInfo | None:
        row = self.jobs.get(query.job)
        return None if row is None else self._info(query.job, row, self.stands[query.job])

    @answers(ListJobs)
    def list_jobs(self, query: ListJobs) -> tuple[JobInfo, ...]:
        found = islice(self.jobs.range(query.after + "\0" if query.after else None), query.limit)
        return tuple(self._info(job, row, self.stands[job]) for job, row in found)

    @answers(NextTicks)
    def next_ticks(self, query: NextTicks, context: QueryContext) -> tuple[datetime, ...]:
        row, stand = self._known(query.job)
        found: list[datetime] = []
        at_us: int | None = max(stand.mark_us, context.wall_ns // 1_000) if stand.is_paused else stand.mark_us
        while at_us is not None and len(found) < query.n:
            at_us = self._next(row, stand, at_us)
            if at_us is not None:
                found.append(moment(at_us))
        return tuple(found)

    @answers(History)
    def history(self, query: History) -> tuple[TickRow, ...]:
        before = LAST_MOMENT if query.before_us is None else moment(query.before_us)
        rows = self.ticks.range((query.job, FIRST_MOMENT), (query.job, before), reverse=True)
        return tuple(as_row(job, at, tick) for (job, at), tick in islice(rows, query.n))

    # ---- when a job is due ----

    def _next(self, row: JobRow, stand: Stand, after_us: int) -> int | None:
        """The first tick later than that which is not decided."""
        policy = row.policy
        at_us = next_tick(row.schedule, after_us, policy.gap, policy.repeat)
        for low, high in stand.islands:
            if at_us is not None and low < at_us <= high:
                at_us = next_tick(row.schedule, high, policy.gap, policy.repeat)
        return at_us

    def _jitter(self, job: str, row: JobRow, stand: Stand, at_us: int) -> int:
        """The same for a tick whoever asks, and less than the time to the next, so that ticks stay in order."""
        most = int(row.policy.jitter * SECOND_US)
        if not most:
            return 0
        following = self._next(row, stand, at_us)
        if following is not None:
            most = min(most, following - at_us)
        digest = blake2b(f"{at_us}/{job}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % most

    def _arm(self, job: str, row: JobRow, stand: Stand, context: Context) -> None:
        """Write how far it has come, and have it looked at when it is due next."""
        next_us = None if stand.is_paused else self._next(row, stand, stand.mark_us)
        self.stands[job] = replace(stand, next_us=next_us)
        if next_us is None:
            context.cancel(f"due/{job}")
        else:
            due_ns = (next_us + self._jitter(job, row, stand, next_us)) * 1_000
            context.schedule(f"due/{job}", min(due_ns, END), Due(job), clock="wall")

    def _what_is_due(
        self, job: str, row: JobRow, stand: Stand, wall_us: int
    ) -> tuple[list[int], tuple[int, int] | None]:
        """Ticks to decide on one by one, and the stretch (first, last) of those among or behind them that one row stands for."""
        most = MAX_CAUGHT_UP if row.policy.misfire == "all" else MAX_SKIPPED_ROWS
        due: list[int] = []

        def is_due(at_us: int | None) -> bool:
            return at_us is not None and at_us + self._jitter(job, row, stand, at_us) <= wall_us

        at_us = self._next(row, stand, stand.mark_us)
        while at_us is not None and is_due(at_us) and len(due) < most:
            due.append(at_us)
            at_us = self._next(row, stand, at_us)
        if at_us is None or not is_due(at_us):
            return due, None
        last = self._latest(row, wall_us, at_us)
        if not is_due(last):
            last = self._latest(row, last - 1, at_us)
        if row.policy.misfire in ("all", "earliest"):
            return due, (at_us, last)
        due.append(last)
        return due, (at_us, self._latest(row, last - 1, at_us)) if last > at_us else None

    @staticmethod
    def _latest(row: JobRow, high_us: int, known_us: int) -> int:
        """The last tick not later than that; ``known_us`` is one."""
        found = latest_tick(row.schedule, known_us, high_us, row.policy.gap, row.policy.repeat)
        return known_us if found is None else found

    # ---- what becomes of a tick that is due ----

    def _admit(
        self, job: str, row: JobRow, at: datetime, makes_up: bool, context: Context, reason: str | None = None
    ) -> None:
        """Fire it, or skip it. Of those that were missed and are all made up for, each waits for the one before it."""
        if not self._is_open(job, at):
            return
        policy = row.policy
        is_busy = self._has(self.live, job)
        has_pending = self._has(self.pending, job)
        if is_busy and policy.overlap != "allow" and not makes_up:
            if policy.overlap == "replace":
                self._stop_all(job, context)
            elif policy.overlap == "forbid" or has_pending:
                self._skip(job, at, "overlap", context)
                return
        elif has_pending and not makes_up and policy.misfire != "all":
            # Nobody was there to take the one before: it was missed.
            if policy.misfire == "earliest":
                self._skip(job, at, "misfire", context)
                return
            self._skip_pending(job, "misfire", context)
        elif has_pending and self.pending.count((job, 0), (job, END)) >= MAX_CAUGHT_UP:
            self._skip(job, at, "misfire", context)
            return
        order = context.new_revision()
        self.ticks[job, at] = Tick("FIRED", order, reason=reason)
        self.pending[job, order] = at
        grace_us = _grace_us(row)
        if grace_us < LAST_MOMENT_US:
            late_us = context.wall_ns // 1_000 - micros(at)
            ends_ns = context.now_ns + max(0, grace_us - late_us) * 1_000
            context.schedule(f"grace/{order}", ends_ns, GraceEnds(job, micros(at), order))

    def _is_open(self, job: str, at: datetime) -> bool:
        """It has no row, or only that of a tick that was missed while the clock was ahead of it: that one is decided anew."""
        tick = self.ticks.get((job, at))
        if tick is None:
            return True
        if tick.state == "SKIPPED" and tick.reason == "misfire":
            self._forget((job, at), tick.order)
            return True
        return False

    def _skip(self, job: str, at: datetime, reason: str, context: Context, until: datetime | None = None) -> None:
        if not self._is_open(job, at):
            return
        tick = Tick("SKIPPED", context.new_revision(), finished=_wall(context), reason=reason, until=until)
        self.ticks[job, at] = tick
        self._to_ledger((job, at), tick)

    def _skip_pending(self, job: str, reason: str, context: Context) -> None:
        for (_, _), at in list(self.pending.range((job, 0), (job, END))):
            tick = self.ticks[job, at]
            began = tick.attempts or tick.failures
            self._end((job, at), context, state="LOST" if began else "SKIPPED", reason=reason)

    def _stop_all(self, job: str, context: Context) -> None:
        """``overlap="replace"``: what runs, or waits, makes room."""
        self._skip_pending(job, "overlap", context)
        for (_, _), at in list(self.live.range((job, 0), (job, END))):
            self._end((job, at), context, state="LOST", reason="replaced")

    # ---- who gets it ----

    def _settle(self, job: str, context: Context) -> None:
        """Give what is pending to whoever may and can run it."""
        row = self.jobs.get(job)
        while row is not None:
            first = next(self.pending.range((job, 0), (job, END)), None)
            if first is None or (row.policy.overlap != "allow" and self._has(self.live, job)):
                break
            (_, order), at = first
            if row.policy.run_on == "all":
                if not self._give_to_all(job, order, at, context):
                    self.stuck[job] = None
                    return
                continue
            session = self._choose(job, row.policy.run_on, context.proposer)
            if session is None:
                self.stuck[job] = None
                return
            self._assign(session, job, at, 0, False, context)
        self.stuck.pop(job, None)

    def _settle_stuck(self, jobs: tuple[str, ...], context: Context) -> None:
        """Somebody who runs these jobs, in order, came or went: what waited for that?"""
        for job in [job for job in jobs if job in self.stuck] if self.stuck else ():
            self._settle(job, context)

    def _choose(self, job: str, run_on: str, leader: str) -> int | None:
        """Who waits for a tick and may have this one, whoever waits longest first."""
        crews = [crew for (_, crew), _ in self.crews_of.range((job, 0), (job, END))]
        if run_on == "leader":
            found = self._first_idle(crews, f"peer/{leader}")
            is_there = any(self._any_member(crew, f"peer/{leader}") for crew in crews)
            # One that is there and has its hands full for the moment is waited for: it will ask for the next.
            return found if found is not None or is_there else self._first_idle(crews, ANYWHERE)
        return self._first_idle(crews, ANYWHERE if run_on == "any" else f"group/{run_on}")

    def _first_idle(self, crews: list[int], place: str) -> int | None:
        firsts = [next(self.idle.range((crew, place, 0, 0), (crew, place, 2, 0)), None) for crew in crews]
        found = min((((rank, since), session) for (_, _, rank, since), session in filter(None, firsts)), default=None)
        return None if found is None else found[1]

    def _any_member(self, crew: int, place: str) -> bool:
        return next(self.members.range((crew, place, 0), (crew, place, END)), None) is not None

    def _give_to_all(self, job: str, order: int, at: datetime, context: Context) -> bool:
        """Each process that is registered now has one run to do."""
        crews = [crew for (_, crew), _ in self.crews_of.range((job, 0), (job, END))]
        sessions = [
            session for crew in crews for (_, _, session), _ in self.members.range((crew, "", 0), (crew, "", END))
        ]
        if not sessions:
            return False
        del self.pending[job, order]
        self.live[job, order] = at
        self.ticks[job, at] = replace(self.ticks[job, at], open_runs=len(sessions))
        for session in sessions:
            self.owed[session, order] = Owed(job, at)
        for session in sessions:
            self._pay(session, context)
        return True

    def _pay(self, session: int, context: Context) -> None:
        """Give a process the first of the ticks for all that it has still to run, if it waits for one."""
        first = next(self.owed.range((session, 0), (session, END)), None)
        if first is not None and session in self.waiting:
            key, owed = first
            del self.owed[key]
            self._assign(session, owed.job, owed.at, owed.failures, True, context)

    def _assign(self, session: int, job: str, at: datetime, failures: int, is_for_all: bool, context: Context) -> None:
        ticket = self._no_longer_idle(session)
        token = context.new_revision()
        tick = self.ticks[job, at]
        row, runner = self.jobs.get(job), self.runners[session]
        tick = replace(tick, token=token, attempts=tick.attempts + 1, runner=runner.owner)
        if not is_for_all:
            del self.pending[job, tick.order]
            self.live[job, tick.order] = at
            tick = replace(tick, open_runs=1)
        self.ticks[job, at] = tick
        self.runs[token] = Run(job, at, tick.order, session, ticket.sequence, is_for_all, failures)
        self.runs_of[tick.order, token] = None
        self.by_session[session, token] = None
        policy = None if row is None else row.policy
        timeout = None if policy is None else policy.timeout
        may_be_stopped = policy is not None and policy.overlap == "replace"
        context.answer(ticket, Assigned(job, at, token, tick.attempts, timeout, may_be_stopped))

    # ---- how a run ends ----

    def _close(self, token: int, how: Literal["ok", "failed", "lost"], error: str | None, context: Context) -> None:
        run = self._forget_run(token, context)
        key = run.job, run.at
        tick, row = self.ticks[key], self.jobs.get(run.job)
        policy = None if row is None else row.policy
        failures = run.failures + 1 if run.is_for_all else tick.failures + 1
        if how == "failed":
            tick = replace(tick, error=error)
            if policy is not None and failures <= policy.retries:
                kept = tick if run.is_for_all else replace(tick, state="FIRED", failures=failures, open_runs=0)
                self.ticks[key] = kept
                delay_s = min(policy.backoff * 2.0 ** min(failures - 1, 40), LONGEST_BACKOFF_S)
                whose = run.session if run.is_for_all else 0
                again = Again(run.job, micros(run.at), tick.order, whose, failures)
                context.schedule(f"again/{tick.order}/{whose}", context.now_ns + _ns(delay_s), again)
                return
        if run.is_for_all:
            failed, lost = tick.failures + (how == "failed"), tick.losses + (how == "lost")
            self._part_ended(key, replace(tick, failures=failed, losses=lost), context)
        elif how == "ok":
            self._end(key, context, state="OK", error=None)
            self._settle(run.job, context)
        elif how == "failed":
            self._end(key, context, state="FAILED", failures=failures, error=error)
            self._settle(run.job, context)
        else:
            tick = replace(tick, losses=tick.losses + 1)
            if policy is None or policy.delivery == "at_most_once" or tick.losses >= MAX_LOSSES:
                self._end(key, context, state="LOST", losses=tick.losses, reason="the runner was lost")
                self._settle(run.job, context)
            else:
                self._back(key, tick, context)

    def _give_back(self, token: int, context: Context) -> None:
        """Its function did not run: as if it had not been given away."""
        run = self._forget_run(token, context)
        key = run.job, run.at
        tick = self.ticks[key]
        tick = replace(tick, attempts=tick.attempts - 1, started=None, runner=None)
        if not run.is_for_all:
            self._back(key, tick, context)
        elif run.session in self.runners:
            self.ticks[key] = tick
            self.owed[run.session, tick.order] = Owed(run.job, run.at, run.failures)
            self._pay(run.session, context)
        else:
            self._part_ended(key, tick, context)

    def _drop_owed(self, session: int, context: Context) -> None:
        """The process is gone: what it had not begun is one run less."""
        for place, owed in list(self.owed.range((session, 0), (session, END))):
            del self.owed[place]
            key = owed.job, owed.at
            self._part_ended(key, self.ticks[key], context)

    def _part_ended(self, key: Key, tick: Tick, context: Context) -> None:
        """One run less of a tick for all. Once there is none left, what became of it?"""
        tick = replace(tick, open_runs=tick.open_runs - 1)
        self.ticks[key] = tick
        if tick.open_runs:
            return
        if not (tick.attempts or tick.failures):
            self._back(key, tick, context)  # all went before they began
            return
        self._end(key, context, state="FAILED" if tick.failures else "LOST" if tick.losses else "OK")
        self._settle(key[0], context)

    def _back(self, key: Key, tick: Tick, context: Context) -> None:
        """To be run again, before all that was fired later."""
        job, at = key
        del self.live[job, tick.order]
        self.pending[job, tick.order] = at
        self.ticks[key] = replace(tick, state="FIRED", runner=None, open_runs=0)
        began = tick.attempts or tick.failures
        row = self.jobs.get(job)
        if row is None:
            self._end(key, context, state="LOST" if began else "SKIPPED", reason="deleted")
        elif not began and context.wall_ns // 1_000 - micros(at) > _grace_us(row):
            self._end(key, context, state="SKIPPED", reason="misfire")
        self._settle(job, context)

    def _end(self, key: Key, context: Context, **changes: Any) -> None:
        """Its last state. Whoever still has it has it no more."""
        job, _ = key
        before = self.ticks[key]
        order = before.order
        self.pending.pop((job, order), None)
        if self.live.pop((job, order), None) is not None:
            tokens = [token for (_, token), _ in self.runs_of.range((order, 0), (order, END))]
            for token in tokens:
                self._forget_run(token, context)
            if before.open_runs > len(tokens):
                for session in list(self.runners):
                    self.owed.pop((session, order), None)
        context.cancel(f"grace/{order}")
        context.cancel(f"again/{order}/0")
        tick = replace(before, finished=_wall(context), open_runs=0, **changes)
        self.ticks[key] = tick
        self._to_ledger(key, tick)

    def _forget_run(self, token: int, context: Context) -> Run:
        run = self.runs.pop(token)
        del self.by_session[run.session, token]
        del self.runs_of[run.order, token]
        context.cancel(f"run/{token}")
        for key, ticket in list(self.stops.range((token, 0), (token + 1, 0))):
            del self.stops[key]
            context.answer(ticket, None)
        return run

    def _to_ledger(self, key: Key, tick: Tick) -> None:
        job, at = key
        self.ended[job, tick.order] = at
        self.ledger[tick.order] = key
        if self.ended.count((job, 0), (job, END)) > MAX_JOB_LEDGER:
            (_, order), oldest = next(self.ended.range((job, 0), (job, END)))
            self._forget((job, oldest), order)
        if len(self.ledger) > MAX_LEDGER:
            first = self.ledger.first()
            assert first is not None
            self._forget(first[1], first[0])

    def _forget(self, key: Key, order: int) -> None:
        del self.ticks[key]
        del self.ended[key[0], order]
        del self.ledger[order]

    # ---- runners ----

    def _enlist(self, session: int, runner: Runner) -> None:
        self.runners[session] = runner
        for place, _ in _places(runner):
            self.members[runner.crew, place, session] = None

    def _leave_places(self, session: int, runner: Runner) -> None:
        for place, _ in _places(runner):
            del self.members[runner.crew, place, session]

    def _unregister(self, session: int, runner: Runner) -> Ticket[Assigned] | None:
        """Its ticket, if it waited."""
        ticket = self._no_longer_idle(session) if session in self.waiting else None
        self._leave_places(session, runner)
        del self.runners[session]
        if not self._any_member(runner.crew, ANYWHERE):
            jobs = self.crews.pop(runner.crew)
            del self.crew_of[jobs]
            for job in jobs:
                del self.crews_of[job, runner.crew]
        return ticket

    def _be_idle(self, session: int, ticket: Ticket[Assigned]) -> None:
        runner = self.runners[session]
        self.waiting[session] = ticket
        for place, rank in _places(runner):
            self.idle[runner.crew, place, rank, ticket.revision] = session

    def _no_longer_idle(self, session: int) -> Ticket[Assigned]:
        runner = self.runners[session]
        ticket = self.waiting.pop(session)
        for place, rank in _places(runner):
            del self.idle[runner.crew, place, rank, ticket.revision]
        return ticket

    def _tokens_of(self, session: int) -> list[int]:
        return [token for (_, token), _ in self.by_session.range((session, 0), (session, END))]

    def _run_of(self, token: int, context: Context) -> Run:
        run = self.runs.get(token)
        if run is None or run.session != context.session:
            raise NotHolder(f"the run {token} is over, or another process's; nothing changed")
        return run

    # ---- small ones ----

    def _known(self, job: str) -> tuple[JobRow, Stand]:
        row = self.jobs.get(job)
        if row is None:
            raise Refused("unknown-job", f"there is no job {job!r}; nothing changed")
        return row, self.stands[job]

    @staticmethod
    def _has(table: Table[tuple[str, int], datetime], job: str) -> bool:
        return next(table.range((job, 0), (job, END)), None) is not None

    @staticmethod
    def _info(job: str, row: JobRow, stand: Stand) -> JobInfo:
        next_at = None if stand.next_us is None else moment(stand.next_us)
        return JobInfo(job, row.schedule.text, row.schedule.timezone, stand.is_paused, next_at, row.version)


def _places(runner: Runner) -> Iterator[tuple[str, int]]:
    """Where it can be asked for, and who of several there is asked first."""
    yield ANYWHERE, 0
    if runner.replica:
        yield f"peer/{runner.replica}", 0 if runner.is_own else 1
    if runner.owner.label:
        yield f"group/{runner.owner.label}", 0


def _set_back(stand: Stand, wall_us: int) -> Stand:
    """Where the wall clock went back behind what is decided, that stays decided, and the job goes on from here."""
    if wall_us >= stand.mark_us:
        return stand
    return replace(stand, mark_us=wall_us, since_us=wall_us, islands=_with_island(stand, stand.mark_us))


def _after(stand: Stand, due: list[int], folded: tuple[int, int] | None, chosen: list[int]) -> Stand:
    """What is decided once those ``chosen`` of ``due`` were fired. What was missed is not: it may come again, if the clock is set back."""
    if not due:
        return stand
    mark_us = due[-1] if folded is None else max(due[-1], folded[1])
    if folded is None and len(chosen) == len(due):
        since_us, islands = stand.since_us, stand.islands
    elif chosen and chosen[0] == due[0]:
        since_us, islands = mark_us, _with_island(stand, chosen[-1])
    else:
        since_us, islands = (chosen[0] - 1 if chosen else mark_us), _with_island(stand, stand.mark_us)
    left = []
    for low, high in islands:
        if high > mark_us or high < since_us:
            left.append((low, high))
        else:
            since_us = min(since_us, low)  # the stretch has reached it
    return replace(stand, mark_us=mark_us, since_us=since_us, islands=tuple(left))


def _with_island(stand: Stand, high_us: int) -> tuple[tuple[int, int], ...]:
    if high_us <= stand.since_us:
        return stand.islands
    islands = sorted([*stand.islands, (stand.since_us, high_us)])
    if len(islands) > MAX_ISLANDS:
        # The oldest two become one: rather a tick that is not run than one that is run twice.
        islands[:2] = [(islands[0][0], max(islands[0][1], islands[1][1]))]
    return tuple(islands)


def _without_zone(schedule: Schedule) -> Schedule:
    return replace(schedule, zone=b"", zone_version="")


def _grace_us(row: JobRow) -> int:
    """How late a tick may begin."""
    if row.policy.grace is not None:
        return int(row.policy.grace * SECOND_US)
    return SKIP_GRACE_US if row.policy.misfire == "skip" else LAST_MOMENT_US


def _session(context: Context) -> int:
    if context.session is None:
        raise InvalidCommand("ticks are run by sessions; nothing changed")
    return context.session


def _wall(context: Context) -> datetime:
    return moment(context.wall_ns // 1_000)


def _ns(seconds: float) -> int:
    return int(seconds * SECOND_NS)


def _only_timers(context: Context) -> None:
    if context.session is not None:
        raise InvalidCommand("the time of ticks is told by their own timers; nothing changed")
