"""`tauraft group join|members|watch|partitions`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from tauraft.cli.cluster import plain
from tauraft.cli.lock import run_while_held, who
from tauraft.cli.main import Target, targeted
from tauraft.cli.under_lock import CommandUnderLock

if TYPE_CHECKING:
    from tauraft import GroupMember


@click.group()
def group() -> None:
    """See who is in a group, join one while a command runs, see who has which partition."""


@group.command(context_settings={"ignore_unknown_options": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--id", "id_", default=None, help="The member's id; one is made by default.")
@click.option("--metadata", default="", help="What others see of it.")
@click.option("--grace", type=click.FloatRange(0), default=5.0, help="Seconds from SIGTERM to SIGKILL; 5 by default.")
@targeted
def join(target: Target, name: str, command: tuple[str, ...], id_: str | None, metadata: str, grace: float) -> int:
    """Be a member of NAME while COMMAND runs; its exit code is passed on, 125 when the membership was lost.

    As `lock run`: the command gets TAURAFT_TOKEN, and is ended with all its processes when the membership is lost.
    """
    with target.client() as client:
        member = client.group(name).join(metadata, id=id_)
        return run_while_held(
            CommandUnderLock(command, member.token, grace), member, command, f"the membership of {name!r}"
        )


@group.command()
@click.argument("name")
@targeted
def members(target: Target, name: str) -> None:
    """Who is in the group NAME, and what they say of themselves."""
    with target.client() as client:
        found = client.group(name).members()
    told = {"name": name, "members": [shown(member) for member in found]}
    target.show(told, "\n".join(map(in_words, found)) or f"nobody is in {name}")


@group.command()
@click.argument("name")
@targeted
def watch(target: Target, name: str) -> None:
    """Say who is in the group NAME, and again after each change, until interrupted. With --json: one object a line."""
    with target.client() as client, client.group(name).watch() as watched:
        try:
            for found in watched:
                if target.as_json:
                    click.echo(json.dumps({"name": name, "members": [shown(member) for member in found]}))
                else:
                    click.echo(f"{name}: {_listed(found)}")
        except KeyboardInterrupt:
            pass  # how it is meant to end


@group.command()
@click.argument("name")
@targeted
def partitions(target: Target, name: str) -> int:
    """Who has which partition of NAME, and which are to change hands. Exits with 1 when there is no worker."""
    with target.client() as client:
        found = client.partitioner(name, 1).info()
    lines = [f"{len(found.workers)} workers share {len(found.partitions)} partitions"]
    for part in found.partitions:
        holder = "nobody" if part.holder is None else f"{who(part.holder)}, token {part.token}"
        lines.append(f"  {part.partition}: {holder}" + ("" if part.next is None else f", then {who(part.next)}"))
    target.show(plain(found), "\n".join(lines))
    return 0 if found.workers else 1


def shown(member: GroupMember) -> dict[str, Any]:
    try:
        text: str | None = member.metadata.decode()
    except UnicodeDecodeError:
        text = None
    told: dict[str, Any] = plain(member)
    return told | {"metadata": text, "metadata_base64": base64.b64encode(member.metadata).decode()}


def in_words(member: GroupMember) -> str:
    from tauraft.handle import how_long_since

    said = f" ({member.metadata.decode(errors='replace')!r})" if member.metadata else ""
    return f"{member.id}: {who(member.owner)} for {how_long_since(member.since)}{said}, token {member.token}"


def _listed(members: Sequence[GroupMember]) -> str:
    return ", ".join(member.id for member in members) or "nobody"
