"""`tauraft queue put|stats|peek|dead|redrive|purge|pause|resume`."""

from __future__ import annotations

import base64
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tauraft.cli.main import Target, targeted

if TYPE_CHECKING:
    from tauraft.types import Item


@click.group()
def queue() -> None:
    """Put items, look at a queue, and see to its dead ones."""


@queue.command()
@click.argument("name")
@click.argument("body")
@click.option("--id", "id_", default=None, help="An id that is there already puts nothing.")
@click.option("--priority", default=0, help="Higher is claimed first.")
@click.option("--delay", default=0.0, help="Seconds before it can be claimed.")
@click.option("--group", default=None, help="Items of a group are claimed one at a time, in order.")
@click.option("--ttl", default=None, type=float, help="Seconds after which it is gone, unclaimed.")
@targeted
def put(
    target: Target,
    name: str,
    body: str,
    id_: str | None,
    priority: int,
    delay: float,
    group: str | None,
    ttl: float | None,
) -> None:
    """Put BODY into the queue NAME."""
    with target.client() as client:
        done = client.queue(name).put(body, id=id_, priority=priority, delay=delay, group=group, ttl=ttl)
    target.show(asdict(done), f"{done.id} {'is there already' if done.duplicate else f'at revision {done.revision}'}")


@queue.command()
@click.argument("name")
@targeted
def stats(target: Target, name: str) -> None:
    """How many items of NAME are ready, delayed, claimed and dead."""
    with target.client() as client:
        found = client.queue(name).stats()
    age = "" if found.oldest_age is None else f", the oldest for {found.oldest_age:.1f} s"
    text = f"{found.ready} ready, {found.delayed} delayed, {found.claimed} claimed{age}; {found.dead} dead"
    target.show(asdict(found), text)


@queue.command()
@click.argument("name")
@targeted
def peek(target: Target, name: str) -> None:
    """Print what would be claimed next; exit code 1 when there is nothing."""
    with target.client() as client:
        item = client.queue(name).peek()
    if target.as_json:
        target.show(_shown(item), "")
    else:
        sys.stdout.buffer.write(item.body + b"\n")


@queue.command()
@click.argument("name")
@click.option("--limit", default=100, help="At most so many.")
@targeted
def dead(target: Target, name: str, limit: int) -> None:
    """List the dead items of NAME, and why they are dead."""
    with target.client() as client:
        items = client.queue(name).dead(limit)
    lines = [f"{item.id}: {item.reason} after {item.attempts} attempts" for item in items]
    target.show({"items": [_shown(item) for item in items]}, "\n".join(lines))


@queue.command()
@click.argument("name")
@click.argument("n", type=int, required=False)
@targeted
def redrive(target: Target, name: str, n: int | None) -> None:
    """Put N dead items of NAME again, or all of them."""
    with target.client() as client:
        count = client.queue(name).redrive(n)
    target.show({"redriven": count}, str(count))


@queue.command()
@click.argument("name")
@click.option("--dead", is_flag=True, help="The dead items instead.")
@targeted
def purge(target: Target, name: str, dead: bool) -> None:
    """Drop all items of NAME that are ready or delayed."""
    with target.client() as client:
        count = client.queue(name).purge(dead=dead)
    target.show({"purged": count}, str(count))


@queue.command()
@click.argument("name")
@targeted
def pause(target: Target, name: str) -> None:
    """Let nothing of NAME be claimed until it is resumed."""
    with target.client() as client:
        client.queue(name).pause()
    target.show({"queue": name, "paused": True}, f"{name} is paused")


@queue.command()
@click.argument("name")
@targeted
def resume(target: Target, name: str) -> None:
    """Let NAME be claimed from again."""
    with target.client() as client:
        client.queue(name).resume()
    target.show({"queue": name, "paused": False}, f"{name} goes on")


def _shown(item: Item) -> dict[str, Any]:
    try:
        text: str | None = item.body.decode()
    except UnicodeDecodeError:
        text = None
    return {
        "id": item.id,
        "value": text,
        "value_base64": base64.b64encode(item.body).decode(),
        "headers": dict(item.headers),
        "group": item.group,
        "attempts": item.attempts,
        "reason": item.reason,
        "history": list(item.history),
    }
