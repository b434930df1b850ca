"""`tauraft status`, `members` and `sql`."""

from __future__ import annotations

import base64
import dataclasses
from datetime import datetime
from typing import Any

import click

from tauraft.cli.main import Target, targeted


def plain(value: Any) -> Any:
    """A data class of tauraft, or a value of SQL, as JSON can say it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


@click.command()
@targeted
def status(target: Target) -> None:
    """What the node knows of its cluster."""
    with target.client() as client:
        found = client.status()
    lines = [
        f"{found.namespace}  cluster {found.cluster_id[:12]}  term {found.term}",
        f"leader    {found.leader.peer_id if found.leader else 'none'}",
        f"this node {found.peer_id}  {found.state}",
        f"members   {len(found.members)} on {found.hosts} host(s), {found.disks} disk(s)",
        f"commit    {found.commit_index}  applied {found.applied_index}  revision {found.revision}",
        *(f"warning   {warning}" for warning in found.warnings),
    ]
    target.show(plain(found), "\n".join(lines))


@click.command()
@targeted
def members(target: Target) -> None:
    """Who belongs to the cluster."""
    with target.client() as client:
        found = client.members()
    lines = [
        f"{'*' if member.is_leader else ' '} {member.peer_id}  {member.role:7}  {member.host}  "
        f"{' '.join(member.addresses)}"
        for member in found
    ]
    target.show({"members": [plain(member) for member in found]}, "\n".join(lines))


@click.command()
@click.argument("query")
@targeted
def sql(target: Target, query: str) -> None:
    """Run QUERY on the cluster's state and history, and print its rows."""
    with target.client() as client:
        rows = client.sql(query)
    if target.as_json:
        target.show(
            {"columns": list(rows.columns), "rows": [plain(row) for row in rows], "applied_index": rows.applied_index},
            "",
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows.columns)
    for row in rows:
        table.add_row(*(str(plain(cell)) for cell in row))
    Console().print(table)
