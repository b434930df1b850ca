"""`tauraft new-plugin` and `tauraft twin`: what a stranger starts with is whole, and stays so."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tauraft.cli.main import root
from tests.plugins.scratch import ScratchEnvironment


def tauraft(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, [str(argument) for argument in arguments], standalone_mode=False)


@pytest.mark.middle
def test_a_new_plugin_is_installed_found_tested_and_typed_at_once(tmp_path: Path) -> None:
    package = tmp_path / "acme-rate-limit"
    assert tauraft("new-plugin", "acme-rate-limit", "--directory", package).exception is None
    scratch = ScratchEnvironment(tmp_path / "environment")
    scratch.install(package)
    tested = scratch.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "7 passed" in tested.stdout
    typed = scratch.run("-m", "mypy", "--cache-dir", str(tmp_path / "types"), cwd=package)
    assert typed.returncode == 0, typed.stdout + typed.stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("counter", "put an owner before it"),
        ("Acme-counter", "lower-case ASCII"),
        ("acme_counter", "put an owner before it"),
        ("acme-", "lower-case ASCII"),
        ("acme--counter", "lower-case ASCII"),
        ("acme-1st", "beginning with a letter"),
        ("acmé-counter", "lower-case ASCII"),
        ("../acme-counter", "lower-case ASCII"),
        ("tauraft-counter", "tauraft's own names"),
        ("acme-" + "x" * 100, "longer than 100"),
    ],
)
def test_a_bad_name_is_refused_with_a_sentence_and_nothing_written(tmp_path: Path, name: str, why: str) -> None:
    package = tmp_path / "package"
    told = tauraft("new-plugin", "--directory", package, "--", name)
    assert why in str(told.exception)
    assert "write OWNER-THING, like acme-counter" in str(told.exception)
    assert not package.exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    told = tauraft("new-plugin", "acme-counter", "--directory", tmp_path)
    assert "is not an empty directory" in str(told.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    told = tauraft("new-plugin", "acme-counter", "--directory", tmp_path / "mine" / "package")
    assert "cannot be written" in str(told.exception)


# ---- twins ----


HANDLE = "from acme.base import AsyncBase\n\nclass AsyncThing(AsyncBase):\n    async def go(self):\n        await self.start()\n"


def test_a_twin_is_written_beside_its_source_and_checked(tmp_path: Path) -> None:
    source = tmp_path / "handle.py"
    source.write_text(HANDLE, encoding="utf-8")
    imports = ("--imports", "acme.base=acme._blocking_base")
    assert tauraft("twin", source, "--check", *imports).return_value == 1
    assert not (tmp_path / "_blocking.py").exists()
    assert tauraft("twin", source, *imports).return_value == 0
    assert (tmp_path / "_blocking.py").read_text(encoding="utf-8") == (
        "# Generated from handle.py by `tauraft twin`; change that file, not this one.\n"
        "from acme._blocking_base import Base\n\nclass Thing(Base):\n    def go(self):\n        self.start()\n"
    )
    assert tauraft("twin", source, "--check", *imports).return_value == 0
    source.write_text(HANDLE.replace("start", "begin"), encoding="utf-8")
    stale = tauraft("twin", source, "--check", *imports)
    assert stale.return_value == 1
    assert "run `tauraft twin" in stale.output


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"import asyncio\n", "asyncio has no blocking form"),
        (b"def f(:\n  (", "handle.py is no Python"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
    ids=["a loop of its own", "no Python", "no text"],
)
def test_what_has_no_twin_is_told(tmp_path: Path, text: bytes, why: str) -> None:
    source = tmp_path / "handle.py"
    source.write_bytes(text)
    assert why in str(tauraft("twin", source).exception)
    assert not (tmp_path / "_blocking.py").exists()


def test_a_twin_is_not_written_over_its_source(tmp_path: Path) -> None:
    source = tmp_path / "handle.py"
    source.write_text(HANDLE, encoding="utf-8")
    assert "overwritten" in str(tauraft("twin", source, source).exception)
    assert "MODULE=TWIN" in str(tauraft("twin", source, "--imports", "acme.base").exception)
    assert source.read_text(encoding="utf-8") == HANDLE
