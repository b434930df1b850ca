"""`tauraft election run`, `info`, `list` and `watch`."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import click

from tauraft.cli.cluster import plain
from tauraft.cli.lock import PAGE, run_while_held, say_what_is_waited_for, who
from tauraft.cli.main import Target, targeted
from tauraft.cli.under_lock import CommandUnderLock
from tauraft.cli.watching import Line, follow, one_row, since_option

if TYPE_CHECKING:
    from tauraft import ElectionInfo, Leader


@click.group()
def election() -> None:
    """See who leads, or run a command while leading."""


@election.command(context_settings={"ignore_unknown_options": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--value", default="", help="What others see of the leader.")
@click.option("--priority", default=0, help="Higher is elected first.")
@click.option("--min-tenure", type=click.FloatRange(0), default=0.0, help="Seconds from this election to the next.")
@click.option("--grace", type=click.FloatRange(0), default=5.0, help="Seconds from SIGTERM to SIGKILL; 5 by default.")
@targeted
def run(
    target: Target, name: str, command: tuple[str, ...], value: str, priority: int, min_tenure: float, grace: float
) -> int:
    """Stand for NAME, and run COMMAND once elected; its exit code is passed on, 125 when leadership was lost.

    As `lock run`: the command gets TAURAFT_TOKEN, and is ended with all its processes when leadership is lost.
    --timeout is how long to wait to be elected (124).
    """
    say_what_is_waited_for()
    with target.client() as client:
        standing = client.election(name, min_tenure=min_tenure)
        term = standing.campaign(value, priority=priority, timeout=target.patience)
        under_term = CommandUnderLock(command, term.token, grace)
        return run_while_held(under_term, term, command, f"the leadership of {name!r}")


@election.command()
@click.argument("name")
@targeted
def info(target: Target, name: str) -> int:
    """Who leads NAME, since when, and who stands. Exits with 1 when nobody leads."""
    with target.client() as client:
        found = client.election(name).info()
    target.show(shown(found), in_words(found))
    return 1 if found.leader is None else 0


@election.command("list")
@targeted
def list_(target: Target) -> None:
    """All elections that have a leader."""
    from tauraft_primitives.elections.messages import ListElections

    found: list[ElectionInfo] = []
    with target.client() as client:
        after: str | None = ""
        while after is not None:
            page = client.query(ListElections(after, PAGE))
            found += page.elections
            after = page.after
    target.show(
        {"elections": [shown(one) for one in found]}, "\n".join(map(in_words, found)) or "nobody leads anything"
    )


@election.command()
@click.argument("name")
@since_option
@targeted
def watch(target: Target, name: str, since: int | None) -> None:
    """Say who leads NAME, and each change of it from now on, until interrupted. With --json: one object a line.

    Goes on through reconnects; to go on in another run, give --since the last revision printed.
    """
    from tauraft.types import Leader, instant
    from tauraft_primitives.elections.messages import TERMS, TermRow

    def line_of(revision: int, term: TermRow | None) -> Line:
        leader = None if term is None else Leader(term.owner, term.value, term.token, instant(term.since_ns))
        words = "nobody leads" if leader is None else f"{who(leader.owner)} leads"
        more = "" if leader is None else f"{_value(leader)}, token {leader.token}"
        line = {"name": name, "revision": revision, "leader": leader_shown(leader)}
        return line, f"{revision} {words} {name}{more}"

    follow(target, TERMS, one_row(line_of), since=since, key=name)


def shown(info: ElectionInfo) -> dict[str, Any]:
    return {"name": info.name, "leader": leader_shown(info.leader), "candidates": plain(info.candidates)}


def leader_shown(leader: Leader | None) -> dict[str, Any] | None:
    if leader is None:
        return None
    try:
        text: str | None = leader.value.decode()
    except UnicodeDecodeError:
        text = None
    return plain(leader) | {"value": text, "value_base64": base64.b64encode(leader.value).decode()}  # type: ignore[no-any-return]


def in_words(info: ElectionInfo) -> str:
    from tauraft.handle import how_long_since

    standing = f"; {len(info.candidates)} standing" if info.candidates else ""
    if info.leader is None:
        return f"nobody leads {info.name}{standing}"
    leader = info.leader
    since = how_long_since(leader.since)
    return f"{who(leader.owner)} leads {info.name} for {since}{_value(leader)}, token {leader.token}{standing}"


def _value(leader: Leader) -> str:
    return f" ({leader.value.decode(errors='replace')!r})" if leader.value else ""
