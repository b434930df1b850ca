"""What ``import tauraft`` costs and offers, and that every module can be the first one imported."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tauraft

HEAVY = {"anyio", "cryptography", "duckdb", "libp2p", "pyarrow", "rich", "trio"}
ROOT = Path(tauraft.__file__).parent.parent
SOURCES = {"tauraft": ROOT, "tauraft_plugins": ROOT / "plugins", "tauraft_primitives": ROOT / "primitives"}

# Each module is imported first in a process of its own: forked from one that has the third parties' modules only, which
# cannot hide a cycle of ours and take seconds to import.
IMPORT_EACH = """
import importlib, json, os, sys, traceback
import anyio, click, cryptography, duckdb, libp2p, msgpack, pluggy, rich, trio
failures = {}
for name in json.load(sys.stdin):
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            os.write(writer, traceback.format_exc()[-2000:].encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as told:
        if failure := told.read():
            failures[name] = failure
    os.waitpid(child, 0)
json.dump(failures, sys.stdout)
"""


def every_module() -> list[str]:
    found = []
    for package, source in SOURCES.items():
        for file in sorted((source / package).rglob("*.py")):
            parts = file.relative_to(source).with_suffix("").parts
            if parts[-1] != "__main__":
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def in_fresh_process(code: str, given: str = "") -> str:
    # Warnings of third parties at import, and of forking, are not what is asked about here.
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(map(str, SOURCES.values()))},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize(
    "statement",
    ["import tauraft", "from tauraft import errors", "import tauraft.cli.main"],
    ids=["the package", "its errors", "the command line"],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    loaded = set(json.loads(in_fresh_process(f"{statement}; import json, sys; print(json.dumps(list(sys.modules)))")))
    assert not loaded & HEAVY


def test_a_plugin_author_pays_for_no_network_and_no_database() -> None:
    code = "from tauraft import hookimpl; import tauraft.fsm, json, sys; print(json.dumps(list(sys.modules)))"
    assert not set(json.loads(in_fresh_process(code))) & HEAVY


@pytest.mark.middle
def test_every_module_can_be_imported_first() -> None:
    assert json.loads(in_fresh_process(IMPORT_EACH, json.dumps(every_module()))) == {}


def test_every_exported_name_is_there_and_in_dir() -> None:
    for room, names in tauraft._ROOMS.items():
        for name in names:
            assert getattr(tauraft, name) is getattr(sys.modules[room], name)
            assert name in dir(tauraft)


def test_no_name_is_exported_by_two_rooms() -> None:
    names = [name for names in tauraft._ROOMS.values() for name in names]
    assert len(names) == len(set(names))


def test_type_checkers_are_told_the_same_names() -> None:
    tree = ast.parse(Path(tauraft.__file__).read_text(encoding="utf-8"))
    (told,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {
        (statement.module, alias.name)
        for statement in told.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
        if alias.asname == alias.name
    }
    assert imported == {(room, name) for room, names in tauraft._ROOMS.items() for name in names}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tauraft' has no attribute 'Clusterr'"):
        getattr(tauraft, "Clusterr")  # noqa: B009  # a type checker would refuse it written out


def test_the_library_says_nothing_unless_asked_to() -> None:
    out = in_fresh_process(
        "import logging, sys, tauraft; sys.stderr = sys.stdout; logging.getLogger('tauraft.node').warning('heard')"
    )
    assert out == ""
