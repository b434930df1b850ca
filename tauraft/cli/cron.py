"""`tauraft cron list|put|show|next|history|trigger|pause|resume|delete|watch`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from tauraft.cli.cluster import plain
from tauraft.cli.main import Target, targeted
from tauraft.cli.watching import Line, follow, since_option

if TYPE_CHECKING:
    from tauraft.handle import Frame
    from tauraft.types import JobInfo, TickRow


@click.group()
def cron() -> None:
    """See the jobs of the cluster and what became of their ticks; put, pause, trigger and delete jobs."""


@cron.command("list")
@targeted
def list_(target: Target) -> None:
    """All jobs, and when each is due next."""
    with target.client() as client:
        jobs = client.schedules.list()
    target.show({"jobs": [plain(job) for job in jobs]}, "\n".join(map(job_in_words, jobs)) or "there are no jobs")


@cron.command()
@click.argument("name")
@targeted
def show(target: Target, name: str) -> int:
    """The job NAME; exit code 1 when there is none."""
    with target.client() as client:
        job = client.schedules.get(name)
    if job is None:
        raise _unknown(name)
    target.show(plain(job), job_in_words(job))
    return 0


@cron.command()
@click.argument("name")
@click.argument("spec")
@click.option("--timezone", default="UTC", help="The name of a zone, like Europe/Berlin.")
@click.option("--misfire", type=click.Choice(["latest", "all", "earliest", "skip"]), default="latest")
@click.option("--overlap", type=click.Choice(["forbid", "allow", "queue_one", "replace"]), default="forbid")
@click.option("--retries", default=0, help="How often a failed tick is tried again.")
@click.option("--run-on", default="leader", help="leader, any, all, or the label of those that may.")
@click.option("--run-timeout", type=float, default=None, help="Seconds after which a run has failed.")
@targeted
def put(
    target: Target,
    name: str,
    spec: str,
    timezone: str,
    misfire: Any,
    overlap: Any,
    retries: int,
    run_on: str,
    run_timeout: float | None,
) -> None:
    """Declare the job NAME: SPEC is a cron line, @daily and the like, @every 30s, or a moment in ISO 8601 with its offset.

    It is run by processes that have cluster.cron(None, name=NAME).
    """
    with target.client() as client:
        job = client.schedules.put(
            name, _moment(spec) or spec, timezone=timezone, misfire=misfire, overlap=overlap, retries=retries,
            run_on=run_on, timeout=run_timeout,
        )  # fmt: skip
    target.show(plain(job), job_in_words(job))


@cron.command("next")
@click.argument("name")
@click.argument("n", type=click.IntRange(1, 1_000), default=5)
@targeted
def next_(target: Target, name: str, n: int) -> None:
    """When the job NAME is due next, N times."""
    with target.client() as client:
        moments = client.schedules.next(name, n)
    target.show({"name": name, "next": [at.isoformat() for at in moments]}, "\n".join(map(_at, moments)))


@cron.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), default=20, help="At most so many.")
@targeted
def history(target: Target, name: str, limit: int) -> None:
    """What became of the last ticks of the job NAME, newest first."""
    with target.client() as client:
        rows = client.schedules.history(name, limit)
    target.show({"ticks": [plain(row) for row in rows]}, "\n".join(map(tick_in_words, rows)) or "there were no ticks")


@cron.command()
@click.argument("name")
@targeted
def trigger(target: Target, name: str) -> None:
    """Run the job NAME once, now, besides its schedule."""
    with target.client() as client:
        row = client.schedules.trigger(name)
    target.show(plain(row), tick_in_words(row))


@cron.command()
@click.argument("name")
@targeted
def pause(target: Target, name: str) -> None:
    """Let nothing of NAME be due until it is resumed."""
    with target.client() as client:
        client.schedules.pause(name)
    target.show({"name": name, "paused": True}, f"{name} is paused")


@cron.command()
@click.argument("name")
@targeted
def resume(target: Target, name: str) -> None:
    """Let NAME be due again; what it missed is not made up for."""
    with target.client() as client:
        client.schedules.resume(name)
    target.show({"name": name, "paused": False}, f"{name} goes on")


@cron.command()
@click.argument("name")
@targeted
def delete(target: Target, name: str) -> int:
    """Forget the job NAME; exit code 1 when there is none. Its history stays."""
    with target.client() as client:
        was_there = client.schedules.delete(name)
    target.show({"name": name, "deleted": was_there}, f"{name} is deleted" if was_there else f"there is no job {name}")
    return 0 if was_there else 1


@cron.command()
@click.argument("name", required=False)
@since_option
@targeted
def watch(target: Target, name: str | None, since: int | None) -> None:
    """Say what becomes of each tick (of the job NAME) from now on, until interrupted. With --json: one object a line.

    Goes on through reconnects; to go on in another run, give --since the last revision printed.
    """
    from tauraft.handle import State
    from tauraft_primitives.cron.messages import TICKS, Tick, as_row, ticks_of

    def lines(frame: Frame[tuple[str, datetime], Tick] | State[tuple[str, datetime], Tick], _: bool) -> Iterator[Line]:
        changes = [(key, row) for key, row in frame.rows] if isinstance(frame, State) else [
            (change.key, change.new) for change in frame.changes
        ]  # fmt: skip
        for (job, at), tick in changes:
            if tick is not None:  # what the ledger lets go of is no news
                row = as_row(job, at, tick)
                yield {"revision": frame.revision, **plain(row)}, f"{frame.revision} {row.job} {tick_in_words(row)}"

    bounds: dict[str, Any] = {} if name is None else ticks_of(name)
    follow(target, TICKS, lines, since=since, is_state_first=False, **bounds)


def job_in_words(job: JobInfo) -> str:
    when = "paused" if job.paused else "never again" if job.next_at is None else f"next at {_at(job.next_at)}"
    zone = "" if job.timezone == "UTC" else f" {job.timezone}"
    return f"{job.name}: {job.spec}{zone}, {when}"


def tick_in_words(row: TickRow) -> str:
    parts = [f"{_at(row.scheduled_at)} {row.state}"]
    if row.until is not None:
        parts.append(f"as all until {_at(row.until)}")
    if row.reason is not None:
        parts.append(f"({row.reason})")
    if row.started is not None and row.finished is not None:
        parts.append(f"in {(row.finished - row.started).total_seconds():.3f} s")
    if row.runner is not None:
        parts.append(f"on {row.runner.host} pid {row.runner.pid}")
    if row.attempts > 1:
        parts.append(f"attempt {row.attempts}")
    if row.error is not None:
        parts.append(f"- {row.error}")
    return " ".join(parts)


def _at(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


def _moment(spec: str) -> datetime | None:
    try:
        return datetime.fromisoformat(spec)
    except ValueError:
        return None


def _unknown(name: str) -> Exception:
    from tauraft.errors import Refused

    return Refused("unknown-job", f"there is no job {name!r}")
