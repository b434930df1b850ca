"""`tauraft election ...`, `barrier ...` and `group ...` against one real node: what is done and what is printed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.test_commands import NAMESPACE, Shell, shell as shell
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
        assert shell.run("--timeout", "1.5", "election", "run", "boss", "--", "true").returncode == 124
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


def test_gates_and_latches_are_worked_from_the_command_line(shell: Shell) -> None:
    waits = started(shell, "barrier", "wait", "g")
    wait_until("it waits", lambda: bool(shell.json("barrier", "info", "g")["gate"]["waiters"]))  # type: ignore[index, call-overload]
    assert "1 waiting: tauraft cli@" in shell.run("barrier", "info", "g").stdout
    assert shell.run("--timeout", "1.5", "barrier", "wait", "g").returncode == 124
    watcher = started(shell, "--json", "barrier", "watch", "g", "--kind", "gate")
    assert watcher.stdout is not None
    assert json.loads(watcher.stdout.readline())["is_open"] is False
    assert shell.json("barrier", "open", "g") == {"name": "g", "is_open": True}
    assert waits.wait(20) == 0
    waits.communicate()
    opened = json.loads(watcher.stdout.readline())
    assert opened["is_open"] is True
    shell.json("barrier", "close", "g")
    assert json.loads(watcher.stdout.readline())["is_open"] is False
    ended(watcher)
    again = started(shell, "--json", "barrier", "watch", "g", "--kind", "gate", "--since", str(opened["revision"]))
    assert again.stdout is not None
    assert json.loads(again.stdout.readline())["is_open"] is False, "what came after that revision"
    ended(again)
    assert shell.json("barrier", "count-down", "l", "3", "--by", "2") == {"name": "l", "left": 1}
    assert shell.run("barrier", "count-down", "l", "4").returncode == 1, "another count"
    assert "latch l has 1 of 3 left" in shell.run("barrier", "info", "l").stdout
    assert shell.json("barrier", "reset", "l", "--latch") == {"name": "l", "reset": True}
    for command in ("abort", "reset"):
        assert shell.run("barrier", command, "nowhere").returncode == 1


def test_a_cyclic_barrier_is_seen_aborted_and_made_new(shell: Shell) -> None:
    script = (
        "import sys, tauraft\n"
        "with tauraft.Client(sys.argv[1], data_dir=sys.argv[2]) as client:\n"
        "    try:\n"
        "        client.cyclic_barrier('c', 2).wait()\n"
        "    except tauraft.BrokenBarrier as broken:\n"
        "        print(broken.who, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    party = subprocess.Popen(
        [sys.executable, "-c", script, NAMESPACE, str(shell.data_dir)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=shell.environment,
    )  # fmt: skip
    try:
        wait_until("it waits", lambda: bool(shell.json("barrier", "info", "c")["cyclic"]))
        assert "cyclic barrier c has 1 of 2 parties" in shell.run("barrier", "info", "c").stdout
        assert shell.json("barrier", "abort", "c") == {"name": "c", "aborted": True}
        assert party.stdout is not None and party.stdout.readline() == "None\n"
        assert "is broken" in shell.run("barrier", "info", "c").stdout
        rows = shell.json("sql", "SELECT name, is_broken FROM cyclic_barriers")["rows"]
        assert rows == [["c", True]]
        assert shell.json("barrier", "reset", "c") == {"name": "c", "reset": True}
        assert shell.json("barrier", "info", "c")["cyclic"] is None
    finally:
        party.kill()
        party.communicate()


def test_who_is_in_a_group_is_listed_and_watched(shell: Shell) -> None:
    watcher = started(shell, "--json", "group", "watch", "g")
    assert watcher.stdout is not None
    state = json.loads(watcher.stdout.readline())
    assert state == {"event": "state", "name": "g", "revision": state["revision"], "members": []}
    waits = "import sys; sys.stdin.read()"
    joined = subprocess.Popen(
        shell.command("group", "join", "g", "--id", "a", "--metadata", "one", "--", sys.executable, "-c", waits),
        stdin=subprocess.PIPE, env=shell.environment,
    )  # fmt: skip
    try:
        came = json.loads(watcher.stdout.readline())
        assert came == {"event": "joined", "name": "g", "revision": came["revision"], "member": came["member"]}
        member = came["member"]
        assert (member["id"], member["metadata"], member["metadata_base64"]) == ("a", "one", "b25l")
        (listed,) = shell.json("group", "members", "g")["members"]  # type: ignore[misc]
        assert listed["token"] == member["token"] and "a: tauraft cli@" in shell.run("group", "members", "g").stdout
        assert shell.run("group", "join", "g", "--id", "a", "--", "true").returncode == 1
        assert shell.json("sql", "SELECT name, id FROM group_members")["rows"] == [["g", "a"]]
        assert joined.stdin is not None
        joined.stdin.close()
        assert joined.wait(20) == 0
        went = json.loads(watcher.stdout.readline())
        assert (went["event"], went["member"]) == ("left", member)
        again = started(shell, "--json", "group", "watch", "g", "--since", str(came["revision"]))
        assert again.stdout is not None
        assert json.loads(again.stdout.readline()) == went, "what came after that revision"
        ended(again)
        assert shell.run("group", "partitions", "g").returncode == 1, "no worker"
    finally:
        joined.kill()
        joined.wait()
        ended(watcher)
