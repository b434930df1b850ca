"""The pages that list things list all of them: options, errors, exit codes, and what is read off the code while the pages are built."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

import tauraft
from tauraft import config, errors
from tauraft.cli.main import COMMANDS, exit_code, root
from tests.docs.pages import DOCS, load_extension, section, table

CONFIGURATION, ERRORS, CLI = DOCS / "configuration.md", DOCS / "errors.md", DOCS / "cli.md"


def code(cell: str) -> str:
    found = re.fullmatch(r"`(.+)`", cell)
    assert found is not None, cell
    return found[1]


def test_every_option_is_described_with_its_default_and_whose_it_is() -> None:
    described = {
        code(name): (code(default), {word.strip() for word in whose.removeprefix("only").split(",") if word.strip()})
        for name, default, whose, meaning in table(section(CONFIGURATION, "Options"))
        if meaning
    }
    of_all = {"Cluster": config.ClusterOptions, "Node": config.NodeOptions, "Client": config.ClientOptions}
    names = {kind: {field.name: field.default for field in fields(options)} for kind, options in of_all.items()}
    expected = {}
    for name in {name for known in names.values() for name in known} - {"namespace"}:
        defaults = {
            repr(known[name]) for kind, known in names.items() if name in known and (kind, name) != ("Node", "data_dir")
        }
        (default,) = defaults
        assert default != repr(MISSING)
        expected[name] = (default, {kind for kind in ("Node", "Client") if name in names[kind]})
    assert described == expected


def test_every_preset_is_described() -> None:
    rows = {code(name): cells for name, *cells in table(section(CONFIGURATION, "Presets"))}
    assert rows == {
        name: [
            f"{preset.heartbeat_s:g} s",
            f"{preset.election_s:g} to {2 * preset.election_s:g} s",
            f"{preset.bootstrap_timeout_s:g} s",
        ]
        for name, preset in config.PRESETS.items()
    }


def test_every_other_variable_is_described() -> None:
    names = {code(name) for name, _ in table(section(CONFIGURATION, "Other variables"))}
    assert names == config.OTHER_VARIABLES | {"TAURAFT_ADDRESSES"}


def test_every_error_is_described_by_its_code_class_and_outcome() -> None:
    rows = [row[:4] for row in table(section(ERRORS, "All of them"))]
    described = [[code(stable), code(name), code(below), outcome] for stable, name, below, outcome in rows]
    public = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.TauraftError) and not kind.__name__.startswith("_")
    ]
    expected = [
        [kind.code, kind.__name__, next(base.__name__ for base in kind.__mro__[1:] if base in public), kind.outcome]
        for kind in public
        if kind is not errors.TauraftError
    ]
    assert described == expected
    assert all(hasattr(tauraft, name) for _, name, _, _ in described)


def test_exit_codes_are_those_of_the_program() -> None:
    described = {cell for cell, _ in table(section(CLI, "Exit codes"))}
    given = {exit_code(kind()) for kind in (errors.WaitTimeout, errors.WrongKey, errors.NoLeader, errors.InvalidOption)}
    assert {str(number) for number in {*given, 0, 1, exit_code(errors.Refused("x"))}} <= described


def test_the_reference_of_the_command_line_has_every_command() -> None:
    found = [name for name, _ in load_extension().commands(root, "tauraft")]
    assert len(found) == len(set(found)) > 20
    assert {name.split()[1] for name in found} == set(COMMANDS)
    assert "```{cli-reference}\n```" in CLI.read_text(encoding="utf-8")


def test_nothing_is_taken_for_a_table_that_is_none() -> None:
    assert table("| a | b |\n|---|---|\n| 1 | 2 |\n") == [["1", "2"]]
