"""The pages a newcomer reads: their links lead somewhere, their commands exist, their Python compiles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, named


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


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_of_the_tests_named_exists(page: Path) -> None:
    files = set(
        re.findall(r"`((?:tests|tauraft|tools|benchmarks|examples)/[\w/.-]+\.\w+)`", page.read_text(encoding="utf-8"))
    )
    assert {file for file in files if not (ROOT / file).exists()} == set()


@pytest.mark.parametrize("page", [page for page in PAGES if DOCS in page.parents], ids=named)
def test_a_page_has_one_title_and_no_line_that_is_too_wide(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(re.findall(r"^# ", text, flags=re.MULTILINE)) == 1


def test_the_readme_shows_the_two_commands_and_a_short_start() -> None:
    readme = ROOT / "README.md"
    (console,) = fenced(readme, "console")
    assert re.findall(r"^\$ (make \w+)", console, flags=re.MULTILINE) == ["make demo", "make test"]
    (start, *_) = fenced(readme, "python")
    assert len(start.splitlines()) <= 20
