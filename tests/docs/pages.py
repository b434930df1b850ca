"""What the tests of the pages share: where the pages are, and what stands in their fences."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)])

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[a-z]+)(?:: (?P<note>[^>]*))? -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Snippet:
    """``mark`` and ``note``: from a comment right above the fence, as in ``<!-- typed: needs three hosts -->``."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    note: str = ""

    @property
    def where(self) -> str:
        return f"{named(self.page)}:{self.line}"


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def snippets(page: Path, *languages: str) -> list[Snippet]:
    text = page.read_text(encoding="utf-8")
    return [
        Snippet(
            page,
            text.count("\n", 0, found.start("text")),
            found["language"],
            found["text"],
            found["mark"] or "",
            found["note"] or "",
        )
        for found in _FENCE.finditer(text)
        if found["language"] in languages
    ]


def section(page: Path, title: str) -> str:
    """The text below a heading, up to the next of its level or above."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"^(#+) {re.escape(title)}$", text, flags=re.MULTILINE)
    assert found is not None, f"{named(page)} has no section {title!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, flags=re.MULTILINE)
    return rest if end is None else rest[: end.start()]


def table(text: str) -> list[list[str]]:
    """The cells of the first table of Markdown in it, without its head."""
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)]
    return rows[2:]


def load_extension() -> ModuleType:
    """The directives of docs/_ext, which is no package."""
    spec = importlib.util.spec_from_file_location("tauraft_docs_reference", DOCS / "_ext" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
