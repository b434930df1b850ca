"""Every piece of code in the pages runs, is checked by a type checker, or is a command that exists.

- ``python`` runs, in the order of the page, which is one module: ``cluster`` is a started cluster in memory, of this page alone.
  A line that ends in ``# -> text`` is an expression whose ``repr`` is that text.
- ``sql`` is asked of that cluster, and gives at least one row.
- ``<!-- file: name.py -->`` above a fence: a file of that name, which what follows may import.
- ``<!-- typed -->`` above a fence: what needs several hosts, or runs for ever; it is checked, not run (tests/typing).
- ``console``: each ``$ tauraft ...`` names commands and options that there are.
- ``toml`` is a file of options that is accepted.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import tauraft
from tauraft import config
from tauraft.cli.main import root
from tests.docs.pages import DOCS, PAGES, Snippet, named, snippets

RUN = [page for page in PAGES if DOCS in page.parents and snippets(page, "python", "sql")]


@pytest.fixture
def cluster() -> Iterator[tauraft.Cluster]:
    with tauraft.Cluster("/raft/pages", storage="memory", label="pages") as cluster:
        cluster.sql("SELECT 1")  # history in memory begins with the first query
        yield cluster


@pytest.mark.parametrize("page", RUN, ids=named)
def test_the_code_of_a_page_runs(
    page: Path, cluster: tauraft.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAURAFT_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("TAURAFT_STORAGE", "memory")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # A module like any other: what is declared in it is looked up by its name.
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(tauraft=tauraft, cluster=cluster, _told=told)
    before = set(threading.enumerate())
    for snippet in snippets(page, "python", "sql"):
        if snippet.mark == "typed":
            continue
        if snippet.mark == "file":
            (tmp_path / snippet.note).write_text(snippet.text, encoding="utf-8")
        elif snippet.language == "sql":
            assert len(cluster.sql(snippet.text)) > 0, f"{snippet.where}: no row"
        else:
            run(snippet, vars(module))
    left = [thread.name for thread in set(threading.enumerate()) - before if not thread.daemon]
    assert left == [], "threads that the page leaves running"


def run(snippet: Snippet, module: dict[str, Any]) -> None:
    lines = snippet.text.splitlines()
    tree = Expectations(lines, snippet.where).visit(ast.parse(snippet.text, snippet.where))
    # Lines of a traceback are those of the page.
    ast.increment_lineno(tree, snippet.line)
    exec(compile(ast.fix_missing_locations(tree), str(snippet.page), "exec"), module)


class Expectations(ast.NodeTransformer):
    """``expression  # -> text`` becomes a comparison."""

    def __init__(self, lines: list[str], where: str) -> None:
        self._lines = lines
        self._where = where

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        assert node.end_lineno is not None
        _, arrow, text = self._lines[node.end_lineno - 1].partition("  # -> ")
        if not arrow:
            return node
        call = ast.Call(
            ast.Name("_told", ast.Load()),
            [node.value, ast.Constant(text.strip()), ast.Constant(f"{self._where} + {node.end_lineno}")],
            [],
        )
        return ast.copy_location(ast.Expr(call), node)


def told(value: Any, text: str, where: str) -> None:
    assert repr(value) == text, where


def test_what_a_page_says_of_a_value_is_looked_at() -> None:
    snippet = Snippet(DOCS / "x.md", 1, "python", "if True:\n    1 + 1  # -> 3\n")
    with pytest.raises(AssertionError):
        run(snippet, {"_told": told})


COMMANDS = [
    (snippet, line)
    for page in PAGES
    for snippet in snippets(page, "console")
    for line in snippet.text.replace("\\\n", " ").splitlines()
    if line.startswith(("$ tauraft ", "$ python -m tauraft "))
]


@pytest.mark.parametrize(("snippet", "line"), COMMANDS, ids=[f"{s.where} {line}" for s, line in COMMANDS])
def test_a_command_line_can_be_read(snippet: Snippet, line: str) -> None:
    words = shlex.split(line.removeprefix("$ ").removeprefix("python -m "), comments=True)[1:]
    words = words[: words.index("|")] if "|" in words else [word for word in words if word != "&"]
    if words == ["--version"]:
        return
    context = root.make_context("tauraft", words)
    command: click.Command = root
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, line
        context = found.make_context(name, words, parent=context)
        command = found


@pytest.mark.parametrize(
    "snippet", [snippet for page in PAGES for snippet in snippets(page, "toml")], ids=lambda snippet: snippet.where
)
def test_a_file_of_options_is_accepted(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tauraft.toml").write_text(snippet.text, encoding="utf-8")
    config.cluster_options("/raft/x", {})


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_variable_named_is_read_by_somebody(page: Path) -> None:
    options = set(config._CHECKS) - {"plugins"}
    known = {f"TAURAFT_{option.upper()}" for option in options} | config.OTHER_VARIABLES
    text = textwrap.dedent(page.read_text(encoding="utf-8"))
    assert set(re.findall(r"\bTAURAFT_[A-Z_]+[A-Z]\b", text)) <= known


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_name_of_tauraft_exists(page: Path) -> None:
    """``tauraft.Lock`` and the like, in text and code."""
    text = re.sub(
        r"^```(?:toml|console|text)\n.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    names = set(re.findall(r"(?<![\w/.])tauraft\.([A-Z]\w+)\b", text))
    assert {name for name in names if not hasattr(tauraft, name)} == set()
