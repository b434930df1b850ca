"""The state machine of docs/writing-a-plugin.md keeps the rules that the page states, and all of the page passes a type checker."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tauraft.testing import check_fsm

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")


def code(text: str) -> str:
    """Its fences as one module, as whoever follows the page has it."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))


def test_its_state_machine_keeps_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_turns_page.py").write_text(code(PAGE.partition("\n## Tests\n")[0]), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("acme_turns_page")
    try:
        check_fsm(module.Turns)
    finally:
        monkeypatch.delitem(sys.modules, "acme_turns_page")


@pytest.mark.middle
def test_its_code_runs_and_is_typed(tmp_path: Path) -> None:
    page = tmp_path / "page.py"
    page.write_text(code(PAGE), encoding="utf-8")
    done = subprocess.run([sys.executable, page], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    # Expressions whose value the page tells stand alone.
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "types"), str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
