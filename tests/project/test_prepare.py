"""``tools/prepare.sh`` on machines that lack something, made of stand-in programs on PATH."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "tools" / "prepare.sh"
NEEDED = ("sh", "printf", "cat", "grep", "uname")

# A compiler without the headers that `lacks` names.
COMPILER = """#!/bin/sh
source=$(cat)
for header in {lacks}; do
    case $source in *"<$header>"*) exit 1 ;; esac
done
"""
# A pyenv shim of a version that is not chosen.
SHIM = '#!/bin/sh\necho "pyenv: $0: command not found" >&2\nexit 127\n'
APT = '#!/bin/sh\necho "apt-get $*" >>"$LOG"\n'


@dataclass
class Machine:
    """A PATH of its own, and what its apt-get was asked for."""

    directory: Path

    def put(self, name: str, text: str) -> None:
        file = self.directory / name
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755)

    def put_python(self, name: str, *, version: str = "3.11", has_venv: bool = True) -> None:
        venv = "exit 0" if has_venv else "exit 1"
        self.put(
            name,
            f"#!/bin/sh\ncase $2 in *version_info*) echo {version} ;; *ensurepip*) {venv} ;; *sysconfig*) echo /include ;; esac\n",
        )

    def put_user(self, uid: int) -> None:
        self.put("id", f"#!/bin/sh\necho {uid}\n")

    @property
    def asked_of_apt(self) -> list[str]:
        log = self.directory / "log"
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    def prepare(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shutil.which("sh") or "/bin/sh", SCRIPT],
            env={"PATH": str(self.directory), "LOG": str(self.directory / "log")},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Debian machine of an ordinary user that has all."""
    made = Machine(tmp_path)
    for name in NEEDED:
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    made.put_python("python3")
    made.put("cc", COMPILER.format(lacks="none"))
    made.put("apt-get", APT)
    made.put_user(1000)
    return made


def test_a_machine_that_has_all_is_told_nothing(machine: Machine) -> None:
    finished = machine.prepare()
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == f"{machine.directory}/python3\n"


def test_a_shim_that_does_not_work_is_passed_over(machine: Machine) -> None:
    machine.put("python3.13", SHIM)
    assert machine.prepare().stdout == f"{machine.directory}/python3\n"


def test_a_python_with_venv_is_better_than_a_newer_one_without(machine: Machine) -> None:
    machine.put_python("python3.13", version="3.13", has_venv=False)
    machine.put_python("python3.12", version="3.12")
    assert machine.prepare().stdout == f"{machine.directory}/python3.12\n"


@pytest.mark.parametrize("version", ["3.10", "3.14"])
def test_another_python_is_no_python(machine: Machine, version: str) -> None:
    machine.put_python("python3", version=version)
    finished = machine.prepare()
    assert finished.returncode == 1
    assert finished.stderr == (
        "Missing: Python 3.11, 3.12 or 3.13. To install: sudo apt-get install -y python3 python3-venv python3-dev\n"
    )


def test_missing_headers_are_told_in_one_sentence_with_the_command(machine: Machine) -> None:
    machine.put("cc", COMPILER.format(lacks="gmp.h Python.h"))
    finished = machine.prepare()
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr == (
        "Missing: the headers of Python 3.11, the headers of GMP. To install: sudo apt-get install -y python3.11-dev libgmp-dev\n"
    )
    assert machine.asked_of_apt == []


def test_without_a_compiler_all_that_it_compiles_is_asked_for_at_once(machine: Machine) -> None:
    (machine.directory / "cc").unlink()
    assert machine.prepare().stderr == (
        "Missing: a C compiler, the headers of Python and GMP. "
        "To install: sudo apt-get install -y gcc libc6-dev libgmp-dev python3.11-dev\n"
    )


def test_root_on_debian_gets_it_installed(machine: Machine) -> None:
    machine.put_user(0)
    machine.put("cc", COMPILER.format(lacks="gmp.h"))
    # Installing brings the header: the compiler finds it from then on.
    machine.put(
        "apt-get",
        f'{APT}[ "$2" = -y ] && cat >"{machine.directory}/cc" <<"END"\n{COMPILER.format(lacks="none")}END\nexit 0\n',
    )
    finished = machine.prepare()
    assert finished.returncode == 0, finished.stderr
    assert machine.asked_of_apt == ["apt-get -qq update", "apt-get -qq -y install --no-install-recommends libgmp-dev"]


def test_root_is_told_when_apt_could_not(machine: Machine) -> None:
    machine.put_user(0)
    machine.put("cc", COMPILER.format(lacks="gmp.h"))
    finished = machine.prepare()
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith("Missing: the headers of GMP. To install: ")
