"""`tauraft queue put|stats|peek|dead|redrive|purge|pause|resume|watch`."""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tauraft.cli.main import Target, targeted
from tauraft.cli.watching import Line, follow, since_option, state_line

if TYPE_CHECKING:
    from tauraft.handle import Frame, State
    from tauraft.types import Item
    from tauraft_primitives.queues.messages import ItemRow

PRESENT = ("ready", "delayed", "claimed", "dead")


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


@queue.command()
@click.argument("name")
@since_option
@targeted
def watch(target: Target, name: str, since: int | None) -> None:
    """Say how many items are in the queue NAME, then what becomes of each, until interrupted. Bodies are not told.

    With --json one object a line: "event" is put, due, claimed, returned, acked, dead, redriven, expired or purged, with the
    "item"; or state, with all "items" that are present, which comes first; or resync, the same where changes are gone already. An
    extended claim is no news. Goes on through reconnects; to go on in another run, give --since the last revision printed.
    """
    from tauraft_primitives.queues.messages import ITEMS, check_text, items_of

    check_text(name, "name")
    low, high = items_of(name)
    follow(target, ITEMS, ItemLines(name), since=since, low=low, high=high)


class ItemLines:
    """What a watch of the items of a queue says."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(
        self, frame: Frame[tuple[str, str], ItemRow] | State[tuple[str, str], ItemRow], is_resync: bool
    ) -> Iterator[Line]:
        from tauraft.handle import State

        if isinstance(frame, State):
            items = [_row_shown(id_, row) for (_, id_), row in frame.rows if row.state in PRESENT]
            counts = Counter(item["state"] for item in items)
            words = ", ".join(f"{counts[state]} {state}" for state in PRESENT)
            yield state_line(self._name, frame.revision, is_resync, {"items": items}, words)
            return
        for change in frame.changes:
            id_, row = change.key[1], change.new
            for event in what_became(change.old, row):
                assert row is not None
                line = {"event": event, "name": self._name, "revision": frame.revision}
                words = f"{frame.revision} {self._name}: {id_} {event}{_why(event, change.old, row)}"
                yield line | {"item": _row_shown(id_, row)}, words


def what_became(old: ItemRow | None, new: ItemRow | None) -> list[str]:
    """The events that lead from one row of an item to the next, by one command: a put may be claimed at once.

    What a transaction did to an item and undid is not seen.
    """
    if new is None:
        return []  # the ledger forgets one that ended long ago
    events = []
    was = None if old is None else old.state
    if old is None or old.order != new.order:  # an id may be put again
        events.append("redriven" if was == "dead" else "put")
        was = None
    elif was == "claimed" == new.state and old.token != new.token:
        events.append("returned")
    if new.state in ("ready", "delayed"):
        if was == "claimed":
            events.append("returned")
        elif was == "delayed" and new.state == "ready":
            events.append("due")
    elif was != new.state or events:
        events.append(new.state)
    return events


def _why(event: str, old: ItemRow | None, row: ItemRow) -> str:
    match event:
        case "claimed":
            return f", token {row.token}, attempt {row.attempts}"
        case "dead":
            return f": {row.reason} after {row.attempts} attempts"
        case "put" | "returned":
            why = f" ({row.history[-1]})" if old is not None and old.history != row.history and row.history else ""
            return why + (f", {row.state}" if row.state in ("ready", "delayed") else "")
    return ""


def _row_shown(id_: str, row: ItemRow) -> dict[str, Any]:
    return {
        "id": id_,
        "state": row.state,
        "group": row.group,
        "priority": row.priority,
        "attempts": row.attempts,
        "token": row.token,
        "reason": row.reason,
        "history": list(row.history),
    }


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
