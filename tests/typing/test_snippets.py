"""What a user's type checker says of the code in ``snippets`` and of the examples: nothing, in its strictest mode. They are not run.

Nor is what the pages mark as ``typed``; the files of the tutorial are checked here too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, snippets

MARKS = ("typed", "file")
CHECKED_WHOLE = "writing-a-plugin.md"  # by tests/docs/test_plugin_page.py: its fences are one module
PLUGIN = ROOT / "examples" / "acme_counter" / "v2" / "src"


@pytest.mark.middle
def test_a_users_code_passes_mypy_strict(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    for page in PAGES:
        for snippet in snippets(page, "python"):
            if snippet.mark in MARKS and page.name != CHECKED_WHOLE:
                name = f"{page.stem}_{snippet.line}".replace("-", "_").replace(".", "_")
                (pages / f"{name}.py").write_text(snippet.text, encoding="utf-8")
    assert len(list(pages.iterdir())) >= 4
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--cache-dir",
            str(tmp_path / "cache"),
            str(Path(__file__).parent / "snippets"),
            *map(str, sorted((ROOT / "examples").glob("*.py"))),
            str(PLUGIN / "acme_counter"),
            str(pages),
        ],
        env=os.environ | {"MYPYPATH": str(PLUGIN)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
