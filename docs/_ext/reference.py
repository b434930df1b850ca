"""Two directives whose content is read off the code while the pages are built, so that it cannot fall behind.

``cli-reference``: every command of `tauraft` with its arguments and options, as ``--help`` has them.
``sql-views``: every view of the bundled plugins, with its columns and their types.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """(full name, command) of all that can be run, depth first."""
    context = click.Context(group, info_name=name)
    for short in group.list_commands(context):
        command = group.get_command(context, short)
        assert command is not None, f"{name} {short} is listed, and is not there"
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {short}")
        else:
            yield f"{name} {short}", command


class CliReference(Directive):
    def run(self) -> list[nodes.Node]:
        from tauraft.cli.main import root, shared_options

        shared = {option for one in shared_options(lambda: None).__click_params__ for option in one.opts}
        found: list[nodes.Node] = []
        for name, command in commands(root, "tauraft"):
            section = nodes.section(ids=[nodes.make_id(name)], names=[name])
            section += nodes.title("", "", nodes.literal(text=name))
            arguments = " ".join(
                parameter.make_metavar(click.Context(command))
                for parameter in command.params
                if isinstance(parameter, click.Argument)
            )
            usage = f"{name} {arguments}".strip()
            section += nodes.literal_block(usage, usage, language="text")
            for paragraph in (command.help or "").split("\n\n"):
                section += nodes.paragraph(text=" ".join(paragraph.split()))
            options = [
                one for one in command.params if isinstance(one, click.Option) and not shared.issuperset(one.opts)
            ]
            if options:
                section += _table(
                    ("option", "meaning"), [(", ".join(one.opts), one.help or "") for one in options], literal=(0,)
                )
            found.append(section)
        return found


class SqlViews(Directive):
    def run(self) -> list[nodes.Node]:
        from tauraft.plugin_manager import load_plugins
        from tauraft.storage.sql_types import describe_table

        registry = load_plugins()
        newest = {name: version for name, version, _ in sorted(registry.supported())}
        short, tables = [], []
        for fsm in (registry.make(name, version) for name, version in newest.items()):
            short += [(name, select) for name, select in sorted(fsm.sql_views.items())]
            for table in fsm.tables():
                shape = describe_table(table.name, table.key_codec.hint, table.row_codec.hint)
                columns = ", ".join(f"{name} {kind}" for name, kind in shape.columns)
                tables.append((shape.view, columns))
        return [
            nodes.rubric(text="Short names"),
            _table(("view", "what it is"), sorted(short), literal=(0, 1)),
            nodes.rubric(text="A view a table"),
            _table(("view", "columns"), tables, literal=(0,)),
        ]


def _table(head: tuple[str, str], rows: list[tuple[str, str]], *, literal: tuple[int, ...]) -> nodes.table:
    table, group, body = nodes.table(classes=["colwidths-auto"]), nodes.tgroup(cols=len(head)), nodes.tbody()
    group += [nodes.colspec(colwidth=width) for width in (30, 70)]
    group += nodes.thead("", _row(head, ()))
    body += [_row(row, literal) for row in rows]
    group += body
    table += group
    return table


def _row(cells: tuple[str, str], literal: tuple[int, ...]) -> nodes.row:
    row = nodes.row()
    for place, text in enumerate(cells):
        shown = nodes.literal(text=text) if place in literal else nodes.inline(text=text)
        row += nodes.entry("", nodes.paragraph("", "", shown))
    return row


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("cli-reference", CliReference)
    app.add_directive("sql-views", SqlViews)
    return {"version": "1", "parallel_read_safe": True}
