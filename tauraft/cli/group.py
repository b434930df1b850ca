"""`tauraft group join|members|watch|partitions`."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from tauraft.cli.cluster import plain
from tauraft.cli.lock import run_while_held, who
from tauraft.cli.main import Target, targeted
from tauraft.cli.under_lock import CommandUnderLock
from tauraft.cli.watching import Line, follow, since_option, state_line

if TYPE_CHECKING:
    from tauraft import GroupMember
    from tauraft.handle import Frame, State
    from tauraft_primitives.groups.messages import MemberRow


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
@since_option
@targeted
def watch(target: Target, name: str, since: int | None) -> None:
    """Say who is in the group NAME, then who joined, left or said something else of itself, until interrupted.

    With --json one object a line: "event" is joined, left or updated, with the "member"; or state, with all "members", which
    comes first; or resync, the same where changes are gone already. Goes on through reconnects; to go on in another run, give
    --since the last revision printed.
    """
    from tauraft.handle import check_name
    from tauraft_primitives.groups.messages import MEMBERS, members_of

    low, high = members_of(check_name(name))
    follow(target, MEMBERS, MemberLines(name), since=since, low=low, high=high)


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


class MemberLines:
    """What a watch of the members of a group says."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(
        self, frame: Frame[tuple[str, str], MemberRow] | State[tuple[str, str], MemberRow], is_resync: bool
    ) -> Iterator[Line]:
        from tauraft.handle import State

        if isinstance(frame, State):
            present = [row.member(id_) for (_, id_), row in frame.rows]
            members = {"members": [shown(member) for member in present]}
            yield state_line(self._name, frame.revision, is_resync, members, _listed(present))
            return
        for change in frame.changes:
            for event, row in _what_became(change.old, change.new):
                member = row.member(change.key[1])
                line = {"event": event, "name": self._name, "revision": frame.revision}
                said = f" ({member.metadata.decode(errors='replace')!r})" if member.metadata and event != "left" else ""
                words = f"{member.id} {event}: {who(member.owner)}{said}, token {member.token}"
                yield line | {"member": shown(member)}, f"{frame.revision} {self._name}: {words}"


def _what_became(old: MemberRow | None, new: MemberRow | None) -> list[tuple[str, MemberRow]]:
    if old is not None and new is not None and old.token == new.token:
        return [("updated", new)] if old != new else []
    # One id may go and come again in one revision, in a transaction: then it is another member.
    both = [("left", old), ("joined", new)]
    return [(event, row) for event, row in both if row is not None]


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
