"""`tauraft counter add|get`."""

from __future__ import annotations

import click

from tauraft.cli.main import Target, targeted


@click.group()
def counter() -> None:
    """Add to a counter, or read it."""


# A number that begins with a minus is no option.
@counter.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("by", type=int, default=1)
@targeted
def add(target: Target, name: str, by: int) -> None:
    """Add BY (1 by default, may be negative) to NAME, and print the sum."""
    with target.client() as client:
        value = client.counter(name).add(by)
    target.show({"name": name, "value": value}, str(value))


@counter.command()
@click.argument("name")
@targeted
def get(target: Target, name: str) -> None:
    """Print NAME; 0 when nobody has added to it."""
    with target.client() as client:
        value = client.counter(name).get()
    target.show({"name": name, "value": value}, str(value))
