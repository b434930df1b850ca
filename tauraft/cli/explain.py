"""`tauraft explain ...`: what a thing's state is, how it came to it, and what will change it."""

from __future__ import annotations

from datetime import datetime

import click

from tauraft.cli.cluster import plain
from tauraft.cli.lock import in_words, who
from tauraft.cli.main import Target, targeted


@click.group()
def explain() -> None:
    """Why something is as it is, and what will change it."""


@explain.command()
@click.argument("name")
@targeted
def lock(target: Target, name: str) -> None:
    """Who holds the lock NAME, since when, who waits and for how long, and what ends the hold."""
    from tauraft.handle import how_long_since
    from tauraft_primitives.locks.messages import ExplainLock

    with target.client() as client:
        found = client.query(ExplainLock(name))
    lines = [in_words(found.info), f"  {found.ends}"]
    if found.ttl is not None and found.expires is not None:
        lines.append(f"  ttl {found.ttl:g} s, runs out {clock(found.expires)} unless it is renewed")
    if found.lock_delay:
        lines.append(f"  when lost, not when released, it cools down for {found.lock_delay:g} s")
    for place, wait in enumerate(found.waits, start=1):
        line = f"  {place}. {who(wait.owner)} waits for {how_long_since(wait.since)}"
        if wait.priority:
            line += f", priority {wait.priority}"
        if len(wait.names) > 1:
            line += f", for {', '.join(wait.names)} together"
        lines.append(line + ("" if wait.reason is None else f" ({wait.reason!r})"))
    last = found.info.last_break
    if last is not None:
        lines.append(
            f"  last broken {clock(last.at)} by {who(last.by)} ({last.reason!r}), taken from {who(last.holder)}"
        )
    target.show(plain(found), "\n".join(lines))


def clock(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"
