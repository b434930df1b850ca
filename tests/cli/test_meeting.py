"""`tauraft election ...`, `barrier ...` and `group ...` against one real node: what is done and what is printed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.test_commands import Shell, shell as shell
from tests.cli.test_lock import wait_until

pytestmark = pytest.mark.middle


def started(shell: Shell, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(shell.command(*arguments), stdout=subprocess.PIPE, text=True, env=shell.environment)


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_command_runs_while_it_leads_and_all_can_see_who_does(shell: Shell) -> None:
    assert shell.run("election", "info", "boss").returncode == 1, "nobody leads"
    watcher = started(shell, "--json", "election", "watch", "boss")
    assert watcher.stdout is not None
    assert json.loads(watcher.stdout.readline())["leader"] is None
    script = "import os, sys; print(os.environ['TAURAFT_TOKEN'], flush=True); sys.stdin.read(); sys.exit(3)"
    leads = subprocess.Popen(
        shell.command("election", "run", "boss", "--value", "one", "--", sys.executable, "-c", script),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=shell.environment,
    )  # fmt: skip
    assert leads.stdout is not None and leads.stdin is not None
    try:
        token = int(leads.stdout.readline())
        stands = started(shell, "election", "run", "boss", "--", "true")
        wait_until("it stands", lambda: bool(shell.json("election", "info", "boss")["candidates"]))
        found = shell.json("election", "info", "boss")["leader"]
        assert isinstance(found, dict)
        assert (found["value"], found["value_base64"], found["token"]) == ("one", "b25l", token)
        assert "1 standing" in shell.run("election", "info", "boss").stdout
        assert shell.run("--timeout", "0.2", "election", "run", "boss", "--", "true").returncode == 124
        listed = shell.json("election", "list")["elections"]
        assert isinstance(listed, list) and [one["name"] for one in listed] == ["boss"]
        leads.stdin.close()
        assert leads.wait(20) == 3, "the command's own"
        assert stands.wait(20) == 0
        stands.communicate()
        said = [json.loads(watcher.stdout.readline()) for _ in range(3)]
        assert [one["leader"] and one["leader"]["value"] for one in said] == ["one", "", None]
        assert shell.run("election", "list").stdout.strip() == "nobody leads anything"
        again = started(shell, "--json", "election", "watch", "boss", "--since", str(said[0]["revision"]))
        assert again.stdout is not None
        assert [json.loads(again.stdout.readline()) for _ in range(2)] == said[1:], "what came after that revision"
        ended(again)
    finally:
        leads.kill()
        leads.wait()
        leads.stdout.close()
        ended(watcher)
