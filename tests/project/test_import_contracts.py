"""The contracts of pyproject.toml: kept by the tree, and broken by what they forbid."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from grimp import ImportGraph

from tools.import_contracts import NeverContract, OnlyContract

ROOT = Path(__file__).parent.parent.parent


def graph_of(*imports: tuple[str, str]) -> ImportGraph:
    graph = ImportGraph()
    for importer, imported in imports:
        graph.add_import(importer=importer, imported=imported, line_number=1, line_contents="import it")
    return graph


def only(graph: ImportGraph, sources: list[str], allowed: list[str]) -> bool:
    contract = OnlyContract("only", {}, {"sources": sources, "allowed": allowed})
    return contract.check(graph, verbose=False).kept


def never(graph: ImportGraph, sources: list[str], forbidden: list[str]) -> bool:
    contract = NeverContract("never", {}, {"sources": sources, "forbidden": forbidden})
    return contract.check(graph, verbose=False).kept


@pytest.mark.parametrize(
    ("imported", "kept"),
    [("us.core.log", True), ("struct", True), ("us.node", False), ("us.core_extras", False), ("trio", False)],
)
def test_only_lets_a_package_import_itself_and_the_standard_library(imported: str, kept: bool) -> None:
    assert only(graph_of(("us.core.raft", imported)), ["us.core"], ["us.core"]) is kept


def test_only_says_nothing_of_other_modules() -> None:
    assert only(graph_of(("us.node", "trio")), ["us.core"], ["us.core"])


@pytest.mark.parametrize(
    ("imported", "kept"), [("them.kv.messages", True), ("them.kv.handle", False), ("them.messages", False)]
)
def test_a_star_is_one_name(imported: str, kept: bool) -> None:
    assert only(graph_of(("us", imported)), ["us"], ["them.*.messages"]) is kept


def test_never_follows_a_chain_of_imports() -> None:
    graph = graph_of(("us.client", "us.session"), ("us.session", "us.types"), ("us.types", "us.node.driver"))
    assert not never(graph, ["us.client"], ["us.node"])
    assert never(graph, ["us.client"], ["us.storage"])


@pytest.mark.middle
def test_the_tree_keeps_its_contracts() -> None:
    finished = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
