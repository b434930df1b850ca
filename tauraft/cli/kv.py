"""`tauraft kv put|get|delete|keys`."""

from __future__ import annotations

import base64
import sys

import click

from tauraft.cli.main import Target, targeted


@click.group()
def kv() -> None:
    """Put, get, delete and list keys."""


@kv.command()
@click.argument("key")
@click.argument("value")
@targeted
def put(target: Target, key: str, value: str) -> None:
    """Set KEY to VALUE."""
    with target.client() as client:
        revision = client.kv.put(key, value)
    target.show({"key": key, "revision": revision}, f"{key} at revision {revision}")


@kv.command()
@click.argument("key")
@targeted
def get(target: Target, key: str) -> int:
    """Print the value of KEY; exit code 1 when it is not there."""
    with target.client() as client:
        entry = client.kv.get(key)
    if entry is None:
        click.echo(f"tauraft: there is no key {key!r}", err=True)
        return 1
    if not target.as_json:
        sys.stdout.buffer.write(entry.value + b"\n")
        return 0
    try:
        text: str | None = entry.value.decode()
    except UnicodeDecodeError:
        text = None
    shown = {
        "key": key,
        "value": text,
        "value_base64": base64.b64encode(entry.value).decode(),
        "revision": entry.revision,
        "version": entry.version,
    }
    target.show(shown, "")
    return 0


@kv.command()
@click.argument("key")
@targeted
def delete(target: Target, key: str) -> None:
    """Delete KEY; prints how many keys went."""
    with target.client() as client:
        deleted = client.kv.delete(key)
    target.show({"deleted": deleted}, str(deleted))


@kv.command()
@click.argument("prefix", default="")
@targeted
def keys(target: Target, prefix: str) -> None:
    """List the keys that start with PREFIX, sorted, all at one revision."""
    with target.client() as client:
        page = client.kv.keys(prefix)
    target.show({"keys": list(page), "revision": page.revision}, "\n".join(page))
