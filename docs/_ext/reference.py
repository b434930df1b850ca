"""Directives whose content is read off the code while the pages are built, so that it cannot fall behind.

``api-reference MODULE...``: every public name of these modules with its signature and docstring. Of an async name and its blocking twin
only the blocking one; ``tauraft`` itself goes first, and what stands there is not repeated.
``cli-reference``: every command of `tauraft` with its arguments and options, as ``--help`` has them.
``sql-views``: every view of the bundled plugins, with its columns and their types.
"""

from __future__ import annotations

import importlib
import inspect
import re
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


class ApiReference(Directive):
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        told: set[int] = set()
        for module_name in self.arguments[0].split():
            module = importlib.import_module(module_name)
            section = nodes.section(ids=[nodes.make_id(module_name)], names=[module_name])
            section += nodes.title("", "", nodes.literal(text=module_name))
            if module_name != "tauraft":
                section += _docstring(module)
            for name, value in _public(module):
                if id(value) not in told:
                    told.add(id(value))
                    section += _described(f"{module_name}.{name}", name, value)
            found.append(section)
        return found


def _public(module: Any) -> Iterator[tuple[str, Any]]:
    rooms = vars(module).get("_ROOMS")
    if rooms is not None:
        names = [name for room in rooms.values() for name in room]
    elif "__all__" in vars(module):
        names = list(module.__all__)
    else:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__ and callable(value)
        ]
    for name in sorted(names):
        is_async_twin = name.startswith("Async") and name.removeprefix("Async") in names
        value = getattr(module, name)
        if not is_async_twin and not inspect.ismodule(value):
            yield name, value


def _described(anchor: str, name: str, value: Any) -> nodes.section:
    section = nodes.section(ids=[nodes.make_id(anchor)], names=[anchor])
    section += nodes.title("", "", nodes.literal(text=name))
    if not inspect.isclass(value) and not inspect.isroutine(value):
        section += nodes.literal_block(text=f"{name} = {value!r}".replace("typing.", ""), language="text")
        return section
    section += nodes.literal_block(text=f"{name}{_signature(value)}", language="text")
    section += _docstring(value)
    if inspect.isclass(value):
        listed = nodes.definition_list()
        for member_name, member in _members(value):
            shown = f"{member_name}{_signature(member)}" if inspect.isroutine(member) else member_name
            term = nodes.term("", "", nodes.literal(text=shown))
            listed += nodes.definition_list_item("", term, nodes.definition("", *_docstring(member)))
        if len(listed):
            section += listed
    return section


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties, its own and those of the project's classes that it is made of, as they are written."""
    known: dict[str, Any] = {}
    for base in kind.__mro__:
        if base.__module__.startswith("tauraft"):
            for name, member in vars(base).items():
                plain = member.__func__ if isinstance(member, staticmethod | classmethod) else member
                if not name.startswith("_") and (inspect.isroutine(plain) or isinstance(plain, property)):
                    known.setdefault(name, plain)
    yield from known.items()


class _Unquoted(str):
    """An annotation, as it is written in the source."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    kept = [
        one.replace(annotation=_Unquoted(one.annotation)) if isinstance(one.annotation, str) else one
        for one in signature.parameters.values()
        if one.name not in ("self", "cls")
    ]
    returned = signature.return_annotation
    returned = _Unquoted(returned) if isinstance(returned, str) else returned
    return str(signature.replace(parameters=kept, return_annotation=returned))


def _docstring(value: Any) -> list[nodes.Node]:
    found: list[nodes.Node] = []
    own = value.__doc__ if not inspect.isclass(value) else vars(value).get("__doc__")
    for block in inspect.cleandoc(own or "").split("\n\n"):
        if block.startswith("    "):
            found.append(nodes.literal_block(text=inspect.cleandoc(block), language="text"))
        elif block:
            paragraph = nodes.paragraph()
            for place, part in enumerate(re.split(r"``(.+?)``", " ".join(block.split()))):
                paragraph += nodes.literal(text=part) if place % 2 else nodes.Text(part)
            found.append(paragraph)
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
    app.add_directive("api-reference", ApiReference)
    app.add_directive("cli-reference", CliReference)
    app.add_directive("sql-views", SqlViews)
    return {"version": "1", "parallel_read_safe": True}
