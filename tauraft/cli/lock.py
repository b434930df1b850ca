"""`tauraft lock run`, `info`, `list`, `watch` and `break`."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import click

from tauraft.cli.cluster import plain
from tauraft.cli.main import Target, targeted
from tauraft.cli.under_lock import NOT_EXECUTABLE, NOT_FOUND, CommandUnderLock
from tauraft.cli.watching import Line, follow, one_row, since_option
from tauraft.types import LockInfo, Owner

if TYPE_CHECKING:
    import tauraft

LOST = 125
PAGE = 500


@click.group()
def lock() -> None:
    """Run a command under a lock, see who holds one, or break it."""


@lock.command(context_settings={"ignore_unknown_options": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--reason", default=None, help="Why; shown to those who wait.")
@click.option("--grace", type=click.FloatRange(0), default=5.0, help="Seconds from SIGTERM to SIGKILL; 5 by default.")
@targeted
def run(target: Target, name: str, command: tuple[str, ...], reason: str | None, grace: float) -> int:
    """Run COMMAND while holding the lock NAME; its exit code is passed on, 125 when the lock was lost.

    The command gets TAURAFT_TOKEN, the fencing token. Signals are passed on to it. When the lock is lost its whole
    process group is ended: SIGTERM, and SIGKILL after --grace. --timeout is how long to wait for the lock (124).
    """
    from tauraft.errors import TauraftError
    from tauraft_primitives.locks.messages import AwaitEnd

    say_what_is_waited_for()
    with target.client() as client:
        hold = client.lock(name, reason=reason).acquire(timeout=target.patience)
        under_lock = CommandUnderLock(command, hold.token, grace)

        def end_when_taken_away() -> None:
            try:
                client.submit(AwaitEnd(name, hold.token))
            except TauraftError:
                return  # released, closed, or the session is lost: that has its own way here
            under_lock.lose()

        threading.Thread(target=end_when_taken_away, daemon=True).start()
        return run_while_held(under_lock, hold, command, f"the lock {name!r}")


def run_while_held(under_lock: CommandUnderLock, hold: tauraft.Hold, command: tuple[str, ...], what: str) -> int:
    """The command's exit code, or 125 where ``what`` was lost; the hold is given back."""
    from tauraft.errors import TauraftError

    hold.lost.add_callback(under_lock.lose)
    try:
        code = under_lock.run()
    except FileNotFoundError as error:
        click.echo(f"tauraft: {command[0]}: {error.strerror}", err=True)
        code = NOT_FOUND
    except OSError as error:
        click.echo(f"tauraft: {command[0]}: {error.strerror}", err=True)
        code = NOT_EXECUTABLE
    if under_lock.is_lost:
        click.echo(f"tauraft: {what} was lost; the command was ended", err=True)
        return LOST
    try:
        hold.release()
    except TauraftError as error:
        click.echo(f"tauraft: {error}", err=True)
        return LOST
    return code


@lock.command()
@click.argument("name")
@targeted
def info(target: Target, name: str) -> None:
    """Who holds the lock NAME, since when, and who waits."""
    with target.client() as client:
        found = client.lock(name).info()
    lines = [in_words(found)]
    if found.last_break is not None:
        last = found.last_break
        lines.append(f"last broken {last.at:%Y-%m-%d %H:%M:%S} UTC by {who(last.by)} ({last.reason!r})")
    target.show(plain(found), "\n".join(lines))


@lock.command("list")
@targeted
def list_(target: Target) -> None:
    """All locks that are held."""
    from tauraft_primitives.locks.messages import ListLocks

    found: list[LockInfo] = []
    with target.client() as client:
        while True:
            page = client.query(ListLocks(found[-1].name if found else "", PAGE))
            found += page
            if len(page) < PAGE:
                break
    target.show({"locks": [plain(one) for one in found]}, "\n".join(map(in_words, found)) or "no lock is held")


@lock.command("break")
@click.argument("name")
@click.option("--reason", required=True, help="Why; it stays on record with who did it.")
@targeted
def break_(target: Target, name: str, reason: str) -> int:
    """Take the lock NAME from whoever holds it. Exits with 1 when nobody does."""
    with target.client() as client:
        was_held = client.lock(name).break_(reason)
    target.show({"name": name, "broken": was_held}, f"{name} is broken" if was_held else f"{name} is not held")
    return 0 if was_held else 1


@lock.command()
@click.argument("name")
@since_option
@targeted
def watch(target: Target, name: str, since: int | None) -> None:
    """Say who holds the lock NAME, and each change of it from now on, until interrupted. With --json: one object a line.

    Goes on through reconnects; to go on in another run, give --since the last revision printed.
    """
    from tauraft_primitives.locks.messages import HOLDS, Hold

    def line_of(revision: int, hold: Hold | None) -> Line:
        line = {
            "name": name,
            "revision": revision,
            "token": None if hold is None else hold.token,
            "holder": None if hold is None else plain(hold.request.owner),
            "reason": None if hold is None else hold.request.reason,
        }
        if hold is None:
            return line, f"{revision} {name} is free"
        reason = "" if hold.request.reason is None else f" ({hold.request.reason!r})"
        return line, f"{revision} {name} is held by {who(hold.request.owner)}{reason}, token {hold.token}"

    def is_news(old: Hold | None, new: Hold | None) -> bool:  # a renewal is none
        return (old and old.token) != (new and new.token)

    follow(target, HOLDS, one_row(line_of, is_news), since=since, key=name)


def who(owner: Owner) -> str:
    return f"{owner.label or owner.peer_id or f'session {owner.session}'}@{owner.host} pid {owner.pid}"


def in_words(info: LockInfo) -> str:
    from tauraft.handle import how_long_since

    waiting = f"; {len(info.waiters)} waiting" if info.waiters else ""
    if info.holder is None or info.since is None:
        return f"{info.name} is free{waiting}"
    reason = "" if info.reason is None else f" ({info.reason!r})"
    return f"{info.name} is held by {who(info.holder)} for {how_long_since(info.since)}{reason}, token {info.token}{waiting}"


def say_what_is_waited_for() -> None:
    """What the library logs of a wait that lasts goes to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("tauraft: %(message)s"))
    logging.getLogger("tauraft.locks").addHandler(handler)
