"""The tutorial's three processes, as it says: started, looked at, one killed and started again."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, snippets

TUTORIAL = DOCS / "tutorial.md"
PATIENCE_S = 60.0


class Terminal:
    """A process of the tutorial, and what it printed."""

    def __init__(self, name: str, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "node.py", name],
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
            env=environment(directory),
        )
        self._turns: list[int] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.match(r"turn (\d+): \w+, token (\d+)$", line):
                with self._more:
                    self._turns.append(int(found[2]))
                    self._more.notify_all()

    def next_token(self) -> int:
        """Of a turn taken after now."""
        with self._more:
            before = len(self._turns)
            assert self._more.wait_for(lambda: len(self._turns) > before, PATIENCE_S), "no turn was taken"
            return self._turns[-1]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def environment(directory: Path) -> dict[str, str]:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "plugins", ROOT / "primitives")))
    return {**os.environ, "PYTHONPATH": path, "TAURAFT_STATE_DIR": str(directory / "state")}


def tauraft(directory: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tauraft", *words],
        capture_output=True, text=True, check=False, cwd=directory, env=environment(directory), timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[dict[str, Terminal]]:
    (node,) = [snippet for snippet in snippets(TUTORIAL, "python") if snippet.note == "node.py"]
    (tmp_path / "node.py").write_text(node.text, encoding="utf-8")
    started: dict[str, Terminal] = {}
    try:
        for name in "abc":
            started[name] = Terminal(name, tmp_path)
        yield started
    finally:
        for terminal in started.values():
            terminal.end()


@pytest.mark.middle
def test_three_processes_take_turns_and_go_on_without_their_leader(
    terminals: dict[str, Terminal], tmp_path: Path
) -> None:
    greatest = max(terminal.next_token() for terminal in terminals.values())
    lines = [line for snippet in snippets(TUTORIAL, "console") for line in snippet.text.splitlines()]
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("$ tauraft ")]
    assert len(commands) >= 6
    told = {" ".join(words[4:6]): tauraft(tmp_path, *words) for words in commands}
    assert "3 on 1 host(s), 1 disk(s)" in told["status"]
    assert re.fullmatch(r"turn \d+ was [abc]'s, with token \d+\n", told["kv get"])

    members = json.loads(tauraft(tmp_path, "-n", "/raft/tutorial", "--data-dir", "node-a", "--json", "members"))[
        "members"
    ]
    (leader,) = [member["peer_id"] for member in members if member["is_leader"]]
    status = {name: json.loads(tauraft(tmp_path, "-n", "/raft/tutorial", "--data-dir", f"node-{name}", "--json", "status"))
              for name in terminals}  # fmt: skip
    (led,) = [name for name, found in status.items() if found["peer_id"] == leader]
    assert status[led]["holder_pid"] == terminals[led].process.pid
    os.kill(status[led]["holder_pid"], signal.SIGKILL)
    for name, terminal in terminals.items():
        if name != led:
            assert terminal.next_token() > greatest

    terminals[led].end()
    terminals[led] = Terminal(led, tmp_path)
    assert terminals[led].next_token() > greatest
