"""`make docs`: the pages build without a warning, and every page can be reached from the first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tauraft
from tests.docs.pages import DOCS, PAGES, ROOT

IN_DOCS = [page for page in PAGES if DOCS in page.parents]


@pytest.mark.middle
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "doctrees"),
         str(DOCS), str(tmp_path / "html")],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "plugins", ROOT / "primitives")))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = tmp_path / "html"
    assert {page.relative_to(DOCS) for page in IN_DOCS} == {
        page.relative_to(built).with_suffix(".md")
        for page in built.rglob("*.html")
        if page.name not in ("genindex.html", "search.html")
    }
    api = text_of(built / "api.html")
    exported = [name for room in tauraft._ROOMS.values() for name in room]
    missing = [name for name in exported if not name.startswith("Async") and name not in api]
    assert not missing and "acquire(timeout: float | None = None" in api and "check_fsm" in api
    assert "tauraft lock break" in text_of(built / "cli.html")
    views = text_of(built / "sql-and-time-travel.html")
    assert "tauraft_locks_holds" in views and "queue_items" in views


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
