"""Each ``*.txt`` here is a story of a few cores that must come out as it is written (``language.py`` says how to read it)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.language import parse, run

_SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", _SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    told = run(path)
    if request.config.getoption("--rewrite"):
        path.write_text(told, encoding="utf-8")
    assert told == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", _SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_says_first_what_it_shows(path: Path) -> None:
    opening = parse(path.read_text(encoding="utf-8"))[0].prose
    assert len([line for line in opening if line.startswith("# ")]) >= 2
