"""tests/promises is well-formed and current, and the runner of its guards tells what shows a promise from what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import promises
from tools.promises import Guard, Malformed, Promise, Section

RULE = "def allowed(token: int, greatest: int) -> bool:\n    return token >= greatest\n"
TEST = "import logging\n\nfrom tauraft import rule\n\n\ndef test_stale():\n    logging.error('a log is no summary')\n    assert not rule.allowed(1, 2)\n\n\ndef test_nothing():\n    pass\n"


def test_every_entry_names_tests_and_edits_that_exist() -> None:
    assert promises.problems(promises.promises()) == []


def test_the_table_is_current() -> None:
    text = promises.table(promises.required(), promises.promises())
    written = (promises.ROOT / promises.TABLE).read_text(encoding="utf-8")
    assert written == text, "write it: python -m tools.promises table"


def tree(root: Path, entries: str) -> list[Promise]:
    """A project of one rule, with ``entries`` in a room's file."""
    for directory in ("tauraft", "tests", "tests/promises"):
        (root / directory).mkdir()
    (root / "tauraft/__init__.py").touch()
    (root / "tauraft/rule.py").write_text(RULE)
    (root / "tests/test_rule.py").write_text(TEST)
    (root / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = "-p no:cacheprovider -p no:tauraft"\n'
    )
    (root / "tests/promises/room.toml").write_text(entries)
    return promises.promises(root)


def entry(identity: str, test: str = "test_stale", find: str = "token >= greatest", replace: str = "True") -> str:
    return (
        f'[[promise]]\nid = "{identity}"\nsays = "A stale token is refused."\ntests = ["tests/test_rule.py::{test}"]\n'
        f'[promise.guard]\nfile = "tauraft/rule.py"\nfind = "{find}"\nreplace = "{replace}"\n'
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[promise]]\nid = "a"\nsays = "b"\n', "`tests` must be a non-empty list"),
        ('[[promise]]\nid = "a"\nsays = "b"\ntests = []\n', "`tests` must be a non-empty list"),
        ('[[promise]]\nid = "a"\nsays = "b"\ntests = ["x", "x"]\n', "different tests"),
        ('[[promise]]\nid = 1\nsays = "b"\ntests = ["x"]\n', "`id` must be a non-empty str, not 1"),
        ('[[promise]]\nid = "a"\nsays = "b"\ntests = ["x"]\nguards = 1\n', "unknown guards"),
        ("[[promises]]\n", "holds [[promise]] tables and nothing else; found promises"),
        (entry("a") + 'count = "2"\n', "`count` must be"),
        (entry("a", replace="token >= greatest"), "changes nothing"),
        (entry("a") + entry("a"), "'a' is there twice"),
        ("[[promise]\n", "room.toml:"),
    ],
)
def test_a_malformed_entry_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(Malformed) as caught:
        tree(tmp_path, text)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (entry("a"), None),
        (entry("a", test="test_stale[of a parameter]"), None),
        (entry("a", test="test_other"), "no test tests/test_rule.py::test_other"),
        (entry("a", find="token > greatest"), "occurs 0 times in tauraft/rule.py, not 1"),
        (entry("a", find="token"), "occurs 2 times"),
        (entry("a", replace="token >="), "is no Python after the edit"),
        (entry("a").replace("tauraft/rule.py", "tests/test_rule.py"), "a guard edits a file under"),
    ],
)
def test_an_entry_that_cannot_be_tried_is_named(tmp_path: Path, text: str, problem: str | None) -> None:
    found = promises.problems(tree(tmp_path, text), tmp_path)
    assert ([problem in line for line in found] == [True]) if problem else (found == [])


def test_the_table_says_what_is_missing_and_what_is_unguarded() -> None:
    unguarded = Promise("a.one", "One.", ("tests/x.py::test_one",), (), "a")
    guarded = Promise("a.two", "Two.", ("tests/x.py::test_two",), (Guard("tauraft/x.py", "x", "y"),), "a")
    text = promises.table([Section("A", {"a.one": "One | more.", "a.none": "None."})], [unguarded, guarded])
    assert "| a.one | One \\| more. | `x.py::test_one` (*unguarded*) |" in text
    assert "| a.none | None. | **missing** |" in text
    assert text.index("## Besides") < text.index("| a.two | Two. | `x.py::test_two` |")


@pytest.mark.middle
def test_a_guard_is_found_missing_only_by_a_test_that_fails_for_it(tmp_path: Path) -> None:
    entries = [
        entry("found"),
        entry("green", test="test_nothing"),
        entry("broken", find="return token", replace="return tokens"),
        entry("broken-import", find="def allowed", replace="import nothing_of_that_name\\n\\ndef allowed"),
    ]
    outcomes = promises.guards(tree(tmp_path, "".join(entries)), tmp_path, jobs=2)
    assert [(outcome.promise.id, outcome.verdict) for outcome in outcomes] == [
        ("found", "found"),
        ("green", "stays green"),
        ("broken", "broken guard"),
        ("broken-import", "broken guard"),
    ]
    assert (tmp_path / "tauraft/rule.py").read_text() == RULE


@pytest.mark.middle
def test_a_promise_whose_test_fails_already_is_not_shown(tmp_path: Path) -> None:
    chosen = tree(tmp_path, entry("red"))
    (tmp_path / "tauraft/rule.py").write_text(RULE.replace("token >= greatest", "True  # token >= greatest"))
    assert [outcome.verdict for outcome in promises.guards(chosen, tmp_path)] == ["red already"]
