"""`tauraft lock ...` and `explain lock` against one real node: signals, losses, deaths, and what is printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_commands import Shell, shell as shell

pytestmark = pytest.mark.middle

SAY_AND_SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


def wait_until(reason: str, is_so: Callable[[], bool], within: float = 20.0) -> None:
    give_up = time.monotonic() + within
    while not is_so():
        assert time.monotonic() < give_up, f"still waiting until {reason}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class UnderLock:
    """`lock run` of a Python script, started; ``pids``: what the script printed first."""

    def __init__(self, shell: Shell, name: str, script: str, *options: str) -> None:
        self.process = subprocess.Popen(
            shell.command("lock", "run", name, *options, "--", sys.executable, "-c", script),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=shell.environment,
        )
        assert self.process.stdout is not None
        self.pids = [int(pid) for pid in self.process.stdout.readline().split()]

    def ended(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        for pid in self.pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(shell: Shell) -> Iterator[Callable[..., UnderLock]]:
    started: list[UnderLock] = []

    def start(name: str, script: str = SAY_AND_SLEEP, *options: str) -> UnderLock:
        started.append(UnderLock(shell, name, script, *options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_signals_go_to_the_command_and_its_exit_code_comes_back(start: Callable[..., UnderLock]) -> None:
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    command = start("signals", script)
    command.process.send_signal(signal.SIGTERM)
    assert command.ended()[0] == 3
    command = start("signals", SAY_AND_SLEEP)
    command.process.send_signal(signal.SIGINT)
    assert command.ended()[0] in (1, 130), "python says 1 or dies of it"


def test_a_broken_lock_ends_the_whole_group_with_125(shell: Shell, start: Callable[..., UnderLock]) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(os.getpid(), child.pid, flush=True); time.sleep(60)"
    )
    command = start("broken", script)
    assert all(map(is_alive, command.pids))
    assert shell.json("lock", "break", "broken", "--reason", "it hangs") == {"name": "broken", "broken": True}
    code, errors = command.ended()
    assert (code, "was lost" in errors) == (125, True)
    assert not any(map(is_alive, command.pids))


def test_who_does_not_listen_is_killed_after_the_grace(shell: Shell, start: Callable[..., UnderLock]) -> None:
    script = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    command = start("stubborn", script, "--grace", "0.3")
    shell.json("lock", "break", "stubborn", "--reason", "it hangs")
    assert command.ended()[0] == 125
    assert not is_alive(command.pids[0])


def test_a_child_that_outlives_its_parent_is_ended_too(shell: Shell, start: Callable[..., UnderLock]) -> None:
    script = (
        "import os, signal, subprocess, sys, time\n"
        "ignores = 'import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-c', ignores], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(os.getpid(), child.pid, flush=True); time.sleep(60)"
    )
    command = start("orphans", script, "--grace", "0.3")
    shell.json("lock", "break", "orphans", "--reason", "it hangs")
    assert command.ended()[0] == 125
    wait_until("the child is gone", lambda: not is_alive(command.pids[1]), within=2)


def test_when_the_one_that_holds_the_lock_is_killed_its_command_goes_too(
    shell: Shell, start: Callable[..., UnderLock]
) -> None:
    command = start("killed")
    command.process.kill()
    wait_until("the command is gone", lambda: not is_alive(command.pids[0]))
    wait_until("the lock is free", lambda: shell.json("lock", "info", "killed")["holder"] is None)


def test_a_command_that_cannot_be_started_gives_the_lock_back(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("lock", "run", "nothing", "--", str(tmp_path / "nowhere")).returncode == 127
    plain_file = tmp_path / "text"
    plain_file.write_text("no program")
    assert shell.run("lock", "run", "nothing", "--", str(plain_file)).returncode == 126
    assert shell.json("lock", "info", "nothing")["holder"] is None


def test_info_list_break_and_explanation_are_on_record(shell: Shell, start: Callable[..., UnderLock]) -> None:
    holder = start("record", SAY_AND_SLEEP, "--reason", "backfill")
    waiter = subprocess.Popen(
        shell.command("lock", "run", "record", "--", "true"), env=shell.environment, stderr=subprocess.DEVNULL
    )
    try:
        wait_until("it waits", lambda: bool(shell.json("lock", "info", "record")["waiters"]))
        assert "held by tauraft cli@" in shell.run("lock", "list").stdout
        locks = shell.json("lock", "list")["locks"]
        assert isinstance(locks, list)
        assert [found["name"] for found in locks if found["name"] == "record"] == ["record"]
        told = shell.run("explain", "lock", "record").stdout
        assert "('backfill')" in told and "the end of its session" in told and "1. tauraft cli@" in told
        explained = shell.json("explain", "lock", "record")
        assert explained["ttl"] is None and isinstance(explained["waits"], list) and len(explained["waits"]) == 1
        assert shell.run("lock", "break", "record").returncode == 2, "a reason is needed"
        shell.json("lock", "break", "record", "--reason", "an operator said so")
        assert holder.ended()[0] == 125
        assert waiter.wait(20) == 0
    finally:
        waiter.kill()
        waiter.wait()
    last = shell.json("lock", "info", "record")["last_break"]
    assert isinstance(last, dict) and last["reason"] == "an operator said so" and last["by"]["label"] == "tauraft cli"
    assert "an operator said so" in shell.run("explain", "lock", "record").stdout
    assert shell.run("lock", "break", "record", "--reason", "again").returncode == 1
    assert json.loads(shell.run("--json", "lock", "break", "record", "--reason", "again").stdout)["broken"] is False


def test_watch_says_each_change(shell: Shell) -> None:
    watcher = subprocess.Popen(
        shell.command("--json", "lock", "watch", "seen"), stdout=subprocess.PIPE, text=True, env=shell.environment
    )
    assert watcher.stdout is not None
    try:
        said = [json.loads(watcher.stdout.readline())]
        assert shell.run("lock", "run", "seen", "--reason", "deploy", "--", "true").returncode == 0
        said += [json.loads(watcher.stdout.readline()) for _ in range(2)]
        assert [(one["holder"] is not None, one["reason"]) for one in said] == [
            (False, None), (True, "deploy"), (False, None),
        ]  # fmt: skip
        assert said[0]["revision"] < said[1]["revision"] < said[2]["revision"]
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(20) == 0
    finally:
        watcher.kill()
        watcher.communicate()
    again = subprocess.Popen(
        shell.command("--json", "lock", "watch", "seen", "--since", str(said[1]["revision"])),
        stdout=subprocess.PIPE, text=True, env=shell.environment,
    )  # fmt: skip
    assert again.stdout is not None
    try:
        assert json.loads(again.stdout.readline()) == said[2], "what came after that revision"
    finally:
        again.kill()
        again.communicate()
