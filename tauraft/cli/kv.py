"""`tauraft kv put|get|delete|keys|watch`."""

from __future__ import annotations

import base64
import sys
from typing import Any

import click

from tauraft.cli.main import Target, targeted
from tauraft.cli.watching import since_option


@click.group()
def kv() -> None:
    """Put, get, delete, list and watch keys."""


@kv.command()
@click.argument("key")
@click.argument("value")
@click.option("--ttl", type=float, default=None, help="Seconds after which it goes.")
@click.option("--if-revision", type=int, default=None, help="Only over this revision; 0: only if it is not there.")
@click.option("--if-absent", is_flag=True, help="Only if it is not there.")
@targeted
def put(target: Target, key: str, value: str, ttl: float | None, if_revision: int | None, if_absent: bool) -> None:
    """Set KEY to VALUE."""
    with target.client() as client:
        revision = client.kv.put(key, value, ttl=ttl, if_revision=if_revision, if_absent=if_absent)
    target.show({"key": key, "revision": revision}, f"{key} at revision {revision}")


@kv.command()
@click.argument("key")
@click.option(
    "--consistency", type=click.Choice(["linearizable", "lease", "stale"]), default="linearizable", help="Of the read."
)
@click.option("--at-revision", type=int, default=None, help="As it was at that revision.")
@targeted
def get(target: Target, key: str, consistency: Any, at_revision: int | None) -> int:
    """Print the value of KEY; exit code 1 when it is not there."""
    with target.client() as client:
        entry = client.kv.get(key, consistency=consistency, at_revision=at_revision)
    if entry is None:
        click.echo(f"tauraft: there is no key {key!r}", err=True)
        return 1
    if not target.as_json:
        sys.stdout.buffer.write(entry.value + b"\n")
        return 0
    target.show({"key": key, **_value(entry.value), "revision": entry.revision, "version": entry.version}, "")
    return 0


@kv.command()
@click.argument("key", required=False)
@click.option("--prefix", default=None, help="Delete all keys that start with it instead.")
@click.option("--range", "bounds", nargs=2, default=None, help="LOW HIGH: delete LOW <= key < HIGH instead.")
@targeted
def delete(target: Target, key: str | None, prefix: str | None, bounds: tuple[str, str] | None) -> None:
    """Delete KEY, or a prefix, or a range; prints how many keys went."""
    with target.client() as client:
        deleted = client.kv.delete(key, prefix=prefix, range=bounds)
    target.show({"deleted": deleted}, str(deleted))


@kv.command()
@click.argument("prefix", default="")
@click.option("--limit", type=int, default=None, help="At most so many; the cursor of the rest is in the JSON.")
@click.option("--cursor", default=None, help="Of the page before.")
@targeted
def keys(target: Target, prefix: str, limit: int | None, cursor: str | None) -> None:
    """List the keys that start with PREFIX, sorted, all at one revision."""
    with target.client() as client:
        page = client.kv.keys(prefix, limit=limit, cursor=cursor)
    shown: dict[str, Any] = {"keys": list(page), "revision": page.revision}
    if page.cursor is not None:
        shown["cursor"] = page.cursor
    target.show(shown, "\n".join(page))


@kv.command()
@click.argument("prefix", default="")
@click.option("--key", default=None, help="That one key instead of a prefix.")
@since_option
@targeted
def watch(target: Target, prefix: str, key: str | None, since: int | None) -> None:
    """Print what changes under PREFIX, one JSON object a line, until interrupted.

    Goes on through reconnects; to go on in another run, give --since the last revision printed. A line with
    {"event": "watching"} comes first, and {"event": "resync"} where changes are gone already.
    """
    import json

    from tauraft import events

    def say(**line: Any) -> None:
        click.echo(json.dumps(line))
        sys.stdout.flush()

    with (
        target.client() as client,
        client.kv.watch(key, prefix=None if key is not None else prefix, since_revision=since) as watched,
    ):
        say(event="watching", prefix=None if key is not None else prefix, key=key)
        try:
            for event in watched:
                if isinstance(event, events.Resync):
                    entries = [{"key": e.key, **_value(e.value), "revision": e.revision} for e in event.entries]
                    say(event="resync", revision=event.revision, entries=entries)
                    continue
                line: dict[str, Any] = {
                    "event": type(event).__name__.lower(),
                    "key": event.key,
                    "revision": event.revision,
                }
                if isinstance(event, events.Put):
                    line |= _value(event.entry.value) | {"version": event.entry.version}
                if event.previous is not None:
                    line["previous_revision"] = event.previous.revision
                say(**line)
        except KeyboardInterrupt:
            pass  # how it is meant to end


def _value(value: bytes) -> dict[str, str | None]:
    try:
        text: str | None = value.decode()
    except UnicodeDecodeError:
        text = None
    return {"value": text, "value_base64": base64.b64encode(value).decode()}
