"""What is wrong with the user's input or machine: one clear sentence, the documented exit code, no traceback, nothing touched."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tauraft
from tauraft.storage.data_dir import DataDirectory
from tests.cluster.harness import Processes
from tests.cluster.nodes import Nodes

pytestmark = pytest.mark.middle


def up(processes: Processes, *arguments: str, **environment: str) -> tuple[int, str]:
    """``tauraft up`` in the test's directory: exit code and standard error, as a user sees them."""
    done = subprocess.run(
        [sys.executable, "-m", "tauraft", "--json", "up", "/raft/test", "--preset", "local", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=processes.directory,
        env={**processes.environment, **environment},
        timeout=40,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


def complaint(told: tuple[int, str]) -> tuple[int, str, str]:
    code, errors = told
    error = json.loads(errors.strip().splitlines()[-1])["error"]
    assert error["outcome"] == "not-applied"
    return code, error["code"], error["message"]


def snapshot_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("text", "says"),
    [("listen = [", "is not valid TOML"), ('colour = "red"', "no option 'colour'"), ("expect = 0", "0 is not between")],
)
def test_a_wrong_file_of_options_is_named(processes: Processes, text: str, says: str) -> None:
    (processes.directory / "tauraft.toml").write_text(text, encoding="utf-8")
    code, name, message = complaint(up(processes))
    assert (code, name) == (2, "invalid-option")
    assert says in message and "tauraft.toml" in message


def test_up_takes_what_no_argument_says_from_the_file(processes: Processes) -> None:
    (processes.directory / "tauraft.toml").write_text('listen = ["/ip4/0.0.0.0/tcp/0"]', encoding="utf-8")
    assert complaint(up(processes))[:2] == (2, "invalid-option")


def test_an_unknown_variable_and_a_wrong_value_are_named(processes: Processes) -> None:
    assert complaint(up(processes, TAURAFT_COLOUR="red"))[:2] == (2, "invalid-option")
    code, _, message = complaint(up(processes, TAURAFT_MAX_VOTERS="many"))
    assert code == 2 and "TAURAFT_MAX_VOTERS" in message


def test_an_occupied_port_is_named(processes: Processes) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        code, name, message = complaint(up(processes, "--listen", address))
    assert (code, name) == (2, "invalid-option")
    assert address in message and "nothing was started" in message


def test_listening_to_the_network_without_a_key_is_refused(processes: Processes) -> None:
    code, _, message = complaint(up(processes, "--listen", "/ip4/0.0.0.0/tcp/0"))
    assert code == 2 and "encryption_key" in message


def test_a_data_directory_that_is_not_ours_is_refused_and_not_touched(processes: Processes) -> None:
    directory = processes.directory / "somebody"
    directory.mkdir()
    (directory / "thesis.txt").write_text("years of work", encoding="utf-8")
    before = snapshot_of(directory)
    code, name, message = complaint(up(processes, "--data-dir", str(directory)))
    assert (code, name) == (4, "data-directory-error")
    assert str(directory) in message and "Nothing in it was touched" in message
    assert snapshot_of(directory) == before


def test_a_data_directory_of_a_newer_format_is_refused_and_not_touched(processes: Processes) -> None:
    directory = processes.directory / "newer"
    directory.mkdir(mode=0o700)
    (directory / "format").write_text("tauraft 99\n", encoding="utf-8")
    before = snapshot_of(directory)
    code, name, message = complaint(up(processes, "--data-dir", str(directory)))
    assert (code, name) == (4, "data-directory-error") and "tauraft 99" in message
    assert snapshot_of(directory) == before


def test_a_data_directory_of_another_machine_is_refused_and_not_touched(processes: Processes) -> None:
    directory = processes.directory / "copied"
    made = DataDirectory.prepare(directory, "another-machine-entirely")
    assert made.try_lock()
    made.write_identity(b"i" * 32)
    made.close()
    before = snapshot_of(directory)
    code, name, message = complaint(up(processes, "--data-dir", str(directory)))
    assert (code, name) == (4, "data-directory-error") and "another machine" in message
    assert snapshot_of(directory) == before


def test_a_data_directory_whose_parent_is_missing_is_refused(processes: Processes) -> None:
    directory = processes.directory / "no" / "such"
    code, name, message = complaint(up(processes, "--data-dir", str(directory)))
    assert (code, name) == (4, "data-directory-error") and "the directory above it does not exist" in message
    assert not directory.parent.exists()


@pytest.mark.parametrize("lost", ["log", "genesis", "member"])
def test_a_member_whose_files_are_lost_or_damaged_does_not_start(nodes: Nodes, tmp_path: Path, lost: str) -> None:
    (node,) = nodes.start("a")
    node.set("k", "v")
    node.close()
    inside = tmp_path / "a" / "raft-test"
    if lost == "log":
        for path in (inside / "log").iterdir():
            path.unlink()
    else:
        (inside / lost).write_bytes(b"\x93\x01\x02")
    before = snapshot_of(inside)
    with pytest.raises(tauraft.DataDirectoryError) as caught:
        nodes.make("a").start(timeout=20)
    assert str(inside) in str(caught.value)
    assert snapshot_of(inside) == before


def test_a_full_disk_is_said_and_loses_nothing(processes: Processes, small_disk: Path | None) -> None:
    directory = (small_disk or processes.directory) / "node"
    node = processes.node(data_dir=str(directory))
    node.ask("cluster.set('k', 'v')")
    if small_disk is not None:
        (small_disk / "filler").write_bytes(b"x" * (free_bytes(small_disk) - 4096))
    else:
        node.ask("limit_files(300_000)")
    said = node.ask("[str(error) for error in fill(cluster)]", 60)
    assert said and all("disk" in text for text in said), said
    node.kill()
    if small_disk is not None:
        (small_disk / "filler").unlink()
    again = processes.node(data_dir=str(directory))
    assert again.ask("cluster.get('k')") == "v"
    again.kill()


@pytest.fixture
def small_disk(processes: Processes) -> Iterator[Path | None]:
    """A disk of 3 MiB; None where this user may not mount one: then a limit on files stands in for it."""
    small = processes.directory / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tauraft-test", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield small
    finally:
        processes.end()
        subprocess.run(["umount", str(small)], check=True)


def free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_bsize
