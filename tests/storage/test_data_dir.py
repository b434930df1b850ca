"""One data directory = one identity = one machine = one holder (SAFETY 7), and refusals that touch nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tauraft.errors import DataDirectoryError
from tauraft.storage.data_dir import (
    DataDirectory,
    ShortSocketPath,
    default_data_directory,
    encode_namespace,
    read_machine_id,
    state_directory,
)

MACHINE = "0123456789abcdef"


def prepare(path: Path, machine_id: str = MACHINE) -> DataDirectory:
    return DataDirectory.prepare(path, machine_id)


def contents(path: Path) -> dict[str, bytes | None]:
    return {str(found.relative_to(path)): found.read_bytes() if found.is_file() else None for found in path.rglob("*")}


def test_a_new_directory_is_private_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "node"
    directory = prepare(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert contents(path) == {"format": b"tauraft 1\n"}
    assert directory.read_identity() is None
    assert directory.device == path.stat().st_dev
    prepare(path)


def test_the_identity_is_kept_whole_and_private(tmp_path: Path) -> None:
    directory = prepare(tmp_path)
    with pytest.raises(ValueError, match="holder of the lock"):
        directory.write_identity(b"key")
    assert directory.try_lock()
    directory.write_identity(b"key")
    directory.write_identity(b"\0key 2")
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o600
    assert prepare(tmp_path).read_identity() == b"\0key 2"
    directory.close()


def locked_with_identity(path: Path) -> None:
    directory = prepare(path)
    directory.try_lock()
    directory.write_identity(b"key")
    directory.close()


def make_foreign_machine(path: Path) -> None:
    locked_with_identity(path)
    (path / "identity").write_bytes((path / "identity").read_bytes().replace(MACHINE.encode(), b"f" * 16))


def make_damaged_identity(path: Path) -> None:
    locked_with_identity(path)
    (path / "identity").write_bytes(b"\xc1")


def make_other_format(path: Path) -> None:
    path.mkdir()
    (path / "format").write_bytes(b"tauraft 2\n")


def make_not_ours(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_bytes(b"precious")


def make_file(path: Path) -> None:
    path.write_bytes(b"precious")


def make_link(path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (make_foreign_machine, "another machine"),
        (make_damaged_identity, "identity is damaged"),
        (make_other_format, "format b'tauraft 2"),
        (make_not_ours, "thesis.txt"),
        (make_file, "not a directory"),
        (make_link, "links are not followed"),
    ],
)
def test_what_is_not_ours_is_refused_and_not_touched(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "node"
    make(path)
    before, mode = contents(tmp_path), path.stat().st_mode
    with pytest.raises(DataDirectoryError, match=says) as refused:
        prepare(path)
    assert refused.value.path.startswith(str(path))
    assert "Nothing in it was touched" in str(refused.value)
    assert (contents(tmp_path), path.stat().st_mode) == (before, mode)


def test_a_parent_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryError, match="directory above it does not exist"):
        prepare(tmp_path / "none" / "node")


def test_a_machine_without_an_id_checks_nothing(tmp_path: Path) -> None:
    locked_with_identity(tmp_path / "node")
    assert prepare(tmp_path / "node", "").read_identity() == b"key"
    assert isinstance(read_machine_id(), str)


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = prepare(tmp_path), prepare(tmp_path)
    assert first.holder_pid() is None
    assert first.try_lock()
    assert first.try_lock()
    assert not second.try_lock()
    assert second.holder_pid() == os.getpid()
    first.close()
    first.close()
    assert second.try_lock()
    assert second.is_locked
    second.close()


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    program = (
        "import sys; from tauraft.storage.data_dir import DataDirectory\n"
        "directory = DataDirectory.prepare(sys.argv[1], 'm'); assert directory.try_lock()\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        directory = DataDirectory.prepare(tmp_path, "m")
        assert not directory.try_lock()
        assert directory.holder_pid() == holder.pid
        holder.kill()
        holder.wait()
        assert directory.try_lock()
        directory.close()


def test_a_forked_child_neither_has_the_lock_nor_keeps_it(tmp_path: Path) -> None:
    directory = prepare(tmp_path)
    assert directory.try_lock()
    gone_read, gone_write = os.pipe()
    born_read, born_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(gone_write)
        os.write(born_write, b"!")
        os.read(gone_read, 1)  # lives until the parent has looked
        os._exit(1 if directory.is_locked else 0)
    os.close(gone_read)
    os.read(born_read, 1)
    directory.close()
    other = prepare(tmp_path)
    assert other.try_lock()
    other.close()
    for descriptor in (gone_write, born_read, born_write):
        os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    directory = prepare(tmp_path / "node")
    target = tmp_path / "precious"
    target.write_bytes(b"content")
    (tmp_path / "node" / "lock").symlink_to(target)
    with pytest.raises(DataDirectoryError):
        directory.try_lock()
    assert target.read_bytes() == b"content"


def test_each_namespace_has_its_places(tmp_path: Path) -> None:
    paths = prepare(tmp_path).namespace("/raft/cron")
    paths.make()
    paths.make()
    assert paths.path == str(tmp_path / "raft-cron")
    assert sorted(os.listdir(paths.path)) == ["log", "projection", "snapshots"]
    assert os.stat(paths.log).st_mode & 0o777 == 0o700


namespaces = st.text(max_size=80).map(lambda text: f"/raft/{text}")


@given(namespaces, namespaces)
def test_two_namespaces_never_share_a_directory(one: str, other: str) -> None:
    assert (encode_namespace(one).casefold() == encode_namespace(other).casefold()) == (one == other)


@pytest.mark.parametrize(
    ("namespace", "name"),
    [("/raft/cron", "raft-cron"), ("/raft/a/b", "raft-a-b"), ("/raft/a-b", "raft-a_2db"), ("/raft/A", "raft-_41")],
)
def test_encodings_are_for_ever(namespace: str, name: str) -> None:
    assert encode_namespace(namespace) == name


def test_long_namespaces_are_bounded_and_still_differ() -> None:
    one, other = (encode_namespace("/raft/" + "é" * 300 + end) for end in "ab")
    assert one != other
    assert max(len(one), len(other)) <= 100
    with pytest.raises(ValueError, match="/raft/"):
        encode_namespace("/lock")


def test_the_state_directory_follows_the_environment(tmp_path: Path) -> None:
    environment = {"TAURAFT_STATE_DIR": str(tmp_path / "state")}
    assert state_directory(environment) == str(tmp_path / "state")
    assert default_data_directory("/raft/a", environment) == str(tmp_path / "state" / "raft-a")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert state_directory({}).endswith("tauraft")


def test_a_socket_below_a_deep_directory_can_be_reached(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    for path in (str(deep / "socket"), str(tmp_path / "s")):
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            with ShortSocketPath(path) as short:
                server.bind(short)
            server.listen()
            assert os.path.exists(path)
            with ShortSocketPath(path) as short:
                client.connect(short)
