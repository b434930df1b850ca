"""`tauraft barrier open|close|wait|count-down|info|abort|reset|watch`: gates, latches, double and cyclic barriers."""

from __future__ import annotations

from typing import Any

import click

from tauraft.cli.cluster import plain
from tauraft.cli.lock import who
from tauraft.cli.main import Target, targeted
from tauraft.cli.watching import Line, follow, one_row, since_option

KINDS = ("gate", "latch", "double", "cyclic")


@click.group()
def barrier() -> None:
    """Open, close and wait at gates, count latches down, see to barriers."""


@barrier.command("open")
@click.argument("name")
@targeted
def open_(target: Target, name: str) -> None:
    """Open the gate NAME: all who wait pass."""
    with target.client() as client:
        client.gate(name).open()
    target.show({"name": name, "is_open": True}, f"{name} is open")


@barrier.command()
@click.argument("name")
@targeted
def close(target: Target, name: str) -> None:
    """Close the gate NAME: whoever comes waits."""
    with target.client() as client:
        client.gate(name).close()
    target.show({"name": name, "is_open": False}, f"{name} is closed")


@barrier.command()
@click.argument("name")
@targeted
def wait(target: Target, name: str) -> None:
    """Wait until the gate NAME is open; exits with 124 when --timeout runs out first."""
    with target.client() as client:
        client.gate(name).wait(target.patience)
    target.show({"name": name, "is_open": True}, f"{name} is open")


@barrier.command("count-down")
@click.argument("name")
@click.argument("count", type=int)
@click.option("--by", default=1, help="Count so many; 1 by default.")
@targeted
def count_down(target: Target, name: str, count: int, by: int) -> None:
    """Count the latch NAME down, which is made with COUNT; prints what is left."""
    with target.client() as client:
        left = client.latch(name, count).count_down(by)
    target.show({"name": name, "left": left}, str(left))


@barrier.command()
@click.argument("name")
@targeted
def info(target: Target, name: str) -> None:
    """What there is of that NAME, of every kind, and who waits."""
    from tauraft_primitives.barriers.messages import AskCyclic, AskDouble, AskLatch

    with target.client() as client:
        gate = client.gate(name).info()
        latch, double, cyclic = (
            client.query(AskLatch(name)),
            client.query(AskDouble(name)),
            client.query(AskCyclic(name)),
        )
    lines = [f"gate {name} is {'open' if gate.is_open else 'closed'}{_waiting(gate.waiters)}"]
    if latch is not None:
        lines.append(f"latch {name} has {latch.left} of {latch.count} left{_waiting(latch.waiters)}")
    for kind, found in (("double barrier", double), ("cyclic barrier", cyclic)):
        if found is not None:
            state = "is broken" if found.broken else f"has {found.arrived} of {found.parties} parties"
            lines.append(f"{kind} {name} {state}, round {found.generation}")
    told = {"gate": plain(gate), "latch": plain(latch), "double": plain(double), "cyclic": plain(cyclic)}
    target.show({"name": name, **told}, "\n".join(lines))


@barrier.command()
@click.argument("name")
@targeted
def abort(target: Target, name: str) -> int:
    """Break the cyclic barrier NAME for all, until it is reset. Exits with 1 where there is none."""
    from tauraft_primitives.barriers.messages import Abort, AskCyclic

    with target.client() as client:
        found = client.query(AskCyclic(name))
        if found is not None:
            client.submit(Abort(name, found.parties))
    target.show({"name": name, "aborted": found is not None}, f"{name} is {'broken' if found else 'not there'}")
    return 0 if found is not None else 1


@barrier.command()
@click.argument("name")
@click.option("--latch", is_flag=True, help="The latch of that name instead.")
@targeted
def reset(target: Target, name: str, latch: bool) -> int:
    """Make the cyclic barrier (or latch) NAME new; who waits is told. Exits with 1 where there is none."""
    from tauraft_primitives.barriers.messages import AskCyclic, Reset, ResetLatch

    with target.client() as client:
        if latch:
            was_there = client.submit(ResetLatch(name))
        else:
            was_there = client.query(AskCyclic(name)) is not None
            client.submit(Reset(name))
    target.show({"name": name, "reset": was_there}, f"{name} is {'new' if was_there else 'not there'}")
    return 0 if was_there else 1


@barrier.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="cyclic", help="Of which kind; cyclic by default.")
@since_option
@targeted
def watch(target: Target, name: str, kind: str, since: int | None) -> None:
    """Say how the barrier NAME stands, and each change of it, until interrupted. With --json: one object a line.

    Goes on through reconnects; to go on in another run, give --since the last revision printed.
    """
    from tauraft.fsm import TableName
    from tauraft_primitives.barriers import messages

    tables: dict[str, TableName[str, Any]] = {
        "gate": messages.OPEN_GATES,
        "latch": messages.LATCH_ROWS,
        "double": messages.DOUBLE_ROWS,
        "cyclic": messages.CYCLIC_ROWS,
    }

    def line_of(revision: int, row: Any) -> Line:
        state = {"is_open": row is not None} if kind == "gate" else {"barrier": plain(row)}
        line = {"name": name, "kind": kind, "revision": revision, **state}
        return line, f"{revision} {kind} {name}: {_row_in_words(kind, row)}"

    follow(target, tables[kind], one_row(line_of), since=since, key=name)


def _row_in_words(kind: str, row: Any) -> str:
    if kind == "gate":
        return "closed" if row is None else "open"
    if row is None:
        return "nobody is there"
    if kind == "latch":
        return f"{row.left} of {row.count} left"
    if row.is_broken:
        return f"broken by {who(row.broken_by)}" if row.broken_by is not None else "broken"
    inside = (
        f", {row.inside} in, {row.leaving} leaving" if kind == "double" else ", the action runs" if row.actor else ""
    )
    return f"{row.arrived} of {row.parties} wait{inside}, round {row.generation}"


def _waiting(waiters: tuple[Any, ...]) -> str:
    return f"; {len(waiters)} waiting: {', '.join(map(who, waiters[:5]))}" if waiters else ""
