"""The demonstration runs on real processes, kills its leader, and its verdict is what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.middle
@pytest.mark.timeout(100)
def test_the_demo_ends_with_a_verdict_that_holds(tmp_path: Path) -> None:
    """Covers: A leader crash; F kill -9 of the leader."""
    done = subprocess.run(
        [sys.executable, "-m", "tauraft", "demo", "--seconds", "6", "--json"],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["ok"] is True
    assert verdict["acknowledged_writes"] > 0
    assert verdict["missing_writes"] == 0
    assert verdict["tokens_increase"] is True
    assert 0 < verdict["gap_around_kill_ms"] < 20_000
    assert list(tmp_path.iterdir()) == [], "the demo left something behind"
