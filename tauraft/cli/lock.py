"""`tauraft lock run` and `lock info`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType

import click

from tauraft.cli.cluster import plain
from tauraft.cli.main import Target, targeted

LOST = 125
GRACE_S = 5.0


@click.group()
def lock() -> None:
    """Run a command under a lock, or see who holds one."""


@lock.command(context_settings={"ignore_unknown_options": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@targeted
def run(target: Target, name: str, command: tuple[str, ...]) -> int:
    """Run COMMAND while holding the lock NAME; its exit code is passed on, 125 when the lock was lost.

    The command gets TAURAFT_TOKEN, the fencing token. When the lock is lost its whole process group is
    ended: SIGTERM, and SIGKILL five seconds later. --timeout is how long to wait for the lock (124).
    """
    with target.client() as client:
        hold = client.lock(name).acquire(timeout=target.patience)
        with hold:
            process = subprocess.Popen(
                command, env={**os.environ, "TAURAFT_TOKEN": str(hold.token)}, start_new_session=True
            )
            lost = threading.Event()

            def end_group() -> None:
                lost.set()
                signal_group(process, signal.SIGTERM)
                try:
                    process.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    signal_group(process, signal.SIGKILL)

            def forward(number: int, frame: FrameType | None) -> None:
                signal_group(process, number)

            hold.lost.add_callback(end_group)
            before = {
                number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            }
            try:
                code = process.wait()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
            if lost.is_set():
                click.echo(f"tauraft: the lock {name!r} was lost; the command was ended", err=True)
                # Leaving through the hold would complain a second time.
                os._exit(LOST)
    return code if code >= 0 else 128 - code


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # it ended by itself


@lock.command()
@click.argument("name")
@targeted
def info(target: Target, name: str) -> None:
    """Who holds the lock NAME, since when, and who waits."""
    with target.client() as client:
        found = client.lock(name).info()
    if found.holder is None:
        text = f"{name} is free"
    else:
        holder = found.holder
        text = f"{name} is held by {holder.label or holder.peer_id}@{holder.host} pid {holder.pid}, token {found.token}"
        text += f"; {len(found.waiters)} waiting"
    target.show(plain(found), text)
