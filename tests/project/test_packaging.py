"""What pyproject.toml, the lock and the ways in say of the project, held against each other and the tree."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PACKAGES = tuple(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def normal(requirement: str) -> str:
    """The name of a requirement, as an index spells it."""
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-").replace(".", "-")


def locked() -> set[str]:
    return {normal(line) for line in LOCK.splitlines() if re.match(r"[A-Za-z0-9]", line)}


def imported_by(source: Path) -> set[str]:
    """What a file imports of other distributions, by the first name."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {Path(package).name for package in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_marked_in_every_package(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_all_that_is_imported_is_declared() -> None:
    project = PROJECT["project"]
    declared = {normal(requirement) for requirement in project["dependencies"]}
    declared |= {normal(requirement) for extra in project["optional-dependencies"].values() for requirement in extra}
    imported = {name for package in PACKAGES for file in (ROOT / package).rglob("*.py") for name in imported_by(file)}
    # pytest: tauraft.testing is for people's tests, which bring it.
    assert {normal(name) for name in imported} <= declared | {"pytest", "hypothesis"}


def test_the_lock_holds_every_dependency_with_its_hash() -> None:
    wanted = {normal(requirement) for requirement in PROJECT["project"]["dependencies"]}
    wanted |= {normal(requirement) for requirement in PROJECT["dependency-groups"]["dev"]}
    assert wanted <= locked()
    requirements = re.split(r"\n(?=[A-Za-z0-9])", LOCK.partition("make lock\n")[2])
    assert all("--hash=sha256:" in requirement for requirement in requirements)


def test_the_lock_names_no_machine_and_no_index() -> None:
    assert re.findall(r"https?://|file:|^-|(?<!\w)/\w+/", LOCK, flags=re.MULTILINE) == []


def test_bundled_plugins_are_entry_points() -> None:
    plugins = {path.parent.name for path in (ROOT / "plugins" / "tauraft_plugins").glob("*/__init__.py")}
    assert PROJECT["project"]["entry-points"]["tauraft"] == {name: f"tauraft_plugins.{name}" for name in plugins}


def test_rooms_that_may_use_clocks_and_threads_are_there() -> None:
    """A room that was renamed must not leave its licence behind."""
    exempt = PROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]
    rooms = [room for room, rules in exempt.items() if "TID251" in rules and room.endswith(".py") and "*" not in room]
    assert rooms
    assert [room for room in rooms if not (ROOT / room).exists()] == []


def test_every_fragment_of_news_has_a_kind_of_the_changelog() -> None:
    kinds = {kind["directory"] for kind in PROJECT["tool"]["towncrier"]["type"]}
    fragments = [path for path in (ROOT / "newsfragments").iterdir() if not path.name.startswith(".")]
    assert [path.name for path in fragments if path.suffix != ".md" or path.stem.rpartition(".")[2] not in kinds] == []
