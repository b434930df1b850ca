"""What a user's type checker says of the code in ``snippets`` and of the examples: nothing, in its strictest mode. They are not run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PLUGIN = ROOT / "examples" / "acme_counter" / "v2" / "src"


@pytest.mark.middle
def test_a_users_code_passes_mypy_strict(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--cache-dir",
            str(tmp_path),
            str(Path(__file__).parent / "snippets"),
            *map(str, sorted((ROOT / "examples").glob("*.py"))),
            str(PLUGIN / "acme_counter"),
        ],
        env=os.environ | {"MYPYPATH": str(PLUGIN)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
