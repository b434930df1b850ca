"""The pages a newcomer reads: their links lead somewhere, their commands exist, their Python compiles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_compiles(page: Path) -> None:
    for snippet in fenced(page, "python"):
        compile(snippet, named(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_make_target_named_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    commands = "\n".join(fenced(page, "console"))
    assert set(re.findall(r"^\$ make ([a-z-]+)", commands, flags=re.MULTILINE)) <= targets


def test_the_readme_shows_the_two_commands_and_a_short_start() -> None:
    readme = ROOT / "README.md"
    (console,) = fenced(readme, "console")
    assert re.findall(r"^\$ (make \w+)", console, flags=re.MULTILINE) == ["make demo", "make test"]
    (start, *_) = fenced(readme, "python")
    assert len(start.splitlines()) <= 20
