"""The command line against one real node: what it prints, and what it exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMESPACE = "/raft/commands"
pytestmark = pytest.mark.middle


class Shell:
    """Runs `tauraft` for one data directory."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "node"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("TAURAFT_")} | {
            "TAURAFT_STATE_DIR": str(directory)
        }

    def command(self, *arguments: str) -> list[str]:
        target = ["-n", NAMESPACE, "--data-dir", str(self.data_dir)]
        return [sys.executable, "-m", "tauraft", *target, *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=60, env=self.environment, check=False
        )

    def json(self, *arguments: str) -> dict[str, object]:
        done = self.run("--json", *arguments)
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("state"))
    node = subprocess.Popen(
        shell.command("--json", "up", "--preset", "local"), stdout=subprocess.PIPE, text=True, env=shell.environment
    )
    assert node.stdout is not None
    try:
        ready = json.loads(node.stdout.readline())
        assert ready["event"] == "ready"
        assert set(ready) == {"event", "namespace", "peer_id", "pid", "addresses", "state"}
        yield shell
        node.send_signal(signal.SIGTERM)
        assert node.wait(20) == 0, "SIGTERM is a clean close"
    finally:
        node.kill()
        node.wait()
        node.stdout.close()


def test_a_value_goes_in_and_comes_out(shell: Shell) -> None:
    put = shell.json("kv", "put", "colour", "grün")
    assert put == {"key": "colour", "revision": put["revision"]}
    got = shell.json("kv", "get", "colour")
    assert got["value"] == "grün"
    assert got["value_base64"] == "Z3LDvG4="
    assert got["revision"] == put["revision"]
    assert shell.run("kv", "get", "colour").stdout == "grün\n"


def test_a_node_that_waits_says_for_what(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    node = subprocess.Popen(
        shell.command("up", "--preset", "local", "--expect", "2"),
        stderr=subprocess.PIPE, text=True, env=shell.environment,
    )  # fmt: skip
    assert node.stderr is not None
    try:
        assert "waiting: 1 of 2 expected nodes are running" in node.stderr.readline()
    finally:
        node.kill()
        node.wait()
        node.stderr.close()


def test_puts_with_conditions_reads_of_the_past_and_deletes_of_many(shell: Shell) -> None:
    first = shell.json("kv", "put", "many/a", "1", "--if-absent")["revision"]
    assert shell.run("kv", "put", "many/a", "2", "--if-absent").returncode == 1
    second = shell.json("kv", "put", "many/a", "2", "--if-revision", str(first), "--ttl", "60")["revision"]
    assert second != first
    assert shell.json("kv", "get", "many/a", "--at-revision", str(first))["value"] == "1"
    assert shell.json("kv", "get", "many/a", "--consistency", "stale")["value"] == "2"
    shell.json("kv", "put", "many/b", "x")
    page = shell.json("kv", "keys", "many/", "--limit", "1")
    assert page["keys"] == ["many/a"]
    assert shell.json("kv", "keys", "many/", "--cursor", str(page["cursor"]))["keys"] == ["many/b"]
    assert shell.json("kv", "delete", "--range", "many/a", "many/b") == {"deleted": 1}
    assert shell.json("kv", "delete", "--prefix", "many/") == {"deleted": 1}
    assert shell.run("kv", "delete").returncode == 2


def test_a_watch_prints_a_line_an_event_and_goes_on_from_a_revision(shell: Shell) -> None:
    first = shell.json("kv", "put", "watched/a", "1")["revision"]
    second = shell.json("kv", "put", "watched/b", "2")["revision"]
    watch = subprocess.Popen(
        shell.command("kv", "watch", "watched/", "--since", str(first)),
        stdout=subprocess.PIPE,
        text=True,
        env=shell.environment,
    )
    assert watch.stdout is not None
    try:
        lines = [json.loads(watch.stdout.readline()) for _ in range(2)]
        assert lines[0] == {"event": "watching", "prefix": "watched/", "key": None}
        assert lines[1] == {
            "event": "put", "key": "watched/b", "revision": second, "value": "2", "value_base64": "Mg==", "version": 1,
        }  # fmt: skip
        shell.json("kv", "delete", "watched/b")
        deleted = json.loads(watch.stdout.readline())
        assert (deleted["event"], deleted["key"], deleted["previous_revision"]) == ("delete", "watched/b", second)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 0
    finally:
        watch.kill()
        watch.wait()
        watch.stdout.close()


def test_keys_are_listed_by_prefix_and_deleted(shell: Shell) -> None:
    for key in ("list/b", "list/a", "other"):
        shell.json("kv", "put", key, "x")
    assert shell.json("kv", "keys", "list/")["keys"] == ["list/a", "list/b"]
    assert shell.json("kv", "delete", "list/a") == {"deleted": 1}
    assert shell.json("kv", "delete", "list/a") == {"deleted": 0}


def test_a_key_that_is_not_there_exits_with_1(shell: Shell) -> None:
    done = shell.run("kv", "get", "nowhere")
    assert done.returncode == 1
    assert "no key 'nowhere'" in done.stderr


def test_items_are_put_seen_and_purged(shell: Shell) -> None:
    put = shell.json("queue", "put", "jobs", "resize", "--id", "1", "--group", "g", "--ttl", "60")
    assert put == {"id": "1", "duplicate": False, "revision": put["revision"]}
    assert shell.json("queue", "put", "jobs", "again", "--id", "1")["duplicate"] is True
    stats = shell.json("queue", "stats", "jobs")
    assert set(stats) == {"ready", "delayed", "claimed", "dead", "oldest_age"}
    assert (stats["ready"], stats["dead"]) == (1, 0)
    peeked = shell.json("queue", "peek", "jobs")
    assert (peeked["id"], peeked["value"], peeked["value_base64"], peeked["group"]) == ("1", "resize", "cmVzaXpl", "g")
    assert shell.json("queue", "pause", "jobs") == {"queue": "jobs", "paused": True}
    assert shell.json("queue", "resume", "jobs") == {"queue": "jobs", "paused": False}
    assert shell.json("queue", "purge", "jobs") == {"purged": 1}
    empty = shell.run("queue", "peek", "jobs")
    assert empty.returncode == 1
    assert "no item" in empty.stderr


def test_dead_items_are_listed_and_put_again(shell: Shell) -> None:
    assert shell.json("queue", "dead", "jobs") == {"items": []}
    assert shell.json("queue", "redrive", "jobs", "5") == {"redriven": 0}
    assert shell.json("queue", "purge", "jobs", "--dead") == {"purged": 0}
    assert shell.run("queue", "redrive", "jobs", "0").returncode == 2


def test_a_queue_is_watched_and_gone_on_with_from_a_revision(shell: Shell) -> None:
    watch = subprocess.Popen(
        shell.command("--json", "queue", "watch", "seen"), stdout=subprocess.PIPE, text=True, env=shell.environment
    )
    assert watch.stdout is not None
    try:
        state = json.loads(watch.stdout.readline())
        assert state == {"event": "state", "name": "seen", "revision": state["revision"], "items": []}
        put = shell.json("queue", "put", "seen", "body", "--id", "1", "--delay", "60")
        first = json.loads(watch.stdout.readline())
        assert first == {
            "event": "put", "name": "seen", "revision": put["revision"],
            "item": {
                "id": "1", "state": "delayed", "group": None, "priority": 0, "attempts": 0, "token": None,
                "reason": None, "history": [],
            },
        }  # fmt: skip
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 0
    finally:
        watch.kill()
        watch.communicate()
    shell.json("queue", "purge", "seen")  # while nobody watches
    again = subprocess.Popen(
        shell.command("queue", "watch", "seen", "--since", str(put["revision"])),
        stdout=subprocess.PIPE, text=True, env=shell.environment,
    )  # fmt: skip
    assert again.stdout is not None
    try:
        revision, told = again.stdout.readline().split(maxsplit=1)
        assert int(revision) > first["revision"] and told == "seen: 1 purged\n"
        beyond = shell.run("queue", "watch", "seen", "--since", str(int(revision) + 1_000))
        assert beyond.returncode == 2 and "the newest revision is" in beyond.stderr
    finally:
        again.kill()
        again.communicate()


def test_counters_add_up(shell: Shell) -> None:
    assert shell.json("counter", "add", "hits") == {"name": "hits", "value": 1}
    assert shell.json("counter", "add", "hits", "-3") == {"name": "hits", "value": -2}
    assert shell.json("counter", "get", "hits") == {"name": "hits", "value": -2}
    assert shell.run("counter", "get", "other").stdout == "0\n"


def test_status_and_members_name_the_leader(shell: Shell) -> None:
    status = shell.json("status")
    assert status["namespace"] == NAMESPACE
    members = shell.json("members")["members"]
    assert isinstance(members, list)
    assert [member["is_leader"] for member in members] == [True]
    assert set(members[0]) == {"peer_id", "addresses", "role", "host", "is_leader"}


def test_lock_run_passes_the_exit_code_and_the_token_on(shell: Shell) -> None:
    script = "import os, sys; print(os.environ['TAURAFT_TOKEN']); sys.exit(7)"
    first = shell.run("lock", "run", "job", "--", sys.executable, "-c", script)
    second = shell.run("lock", "run", "job", "--", sys.executable, "-c", script)
    assert (first.returncode, second.returncode) == (7, 7)
    assert int(second.stdout) > int(first.stdout)
    assert shell.json("lock", "info", "job")["holder"] is None


def test_a_lock_that_is_held_is_waited_for_as_long_as_told(shell: Shell) -> None:
    holder = subprocess.Popen(
        shell.command("lock", "run", "held", "--", sys.executable, "-c", "print('mine', flush=True); input()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=shell.environment,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == "mine\n"
        waited = shell.run("--json", "lock", "run", "held", "--timeout", "0.5", "--", "true")
        assert waited.returncode == 124
        assert json.loads(waited.stderr)["error"]["code"] == "wait-timeout"
        info = shell.json("lock", "info", "held")
        assert isinstance(info["holder"], dict)
    finally:
        holder.communicate("\n", timeout=20)
    assert holder.returncode == 0


def test_wrong_use_is_one_sentence_and_exit_2(shell: Shell) -> None:
    for arguments in (
        ("nonsense",),
        ("kv", "put", "only-a-key"),
        ("-n", "raft/no-slash", "status"),
        ("kv", "put", "", "x"),
    ):
        done = shell.run(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_a_node_that_is_not_there_exits_with_3(shell: Shell, tmp_path: Path) -> None:
    done = shell.run("--json", "--data-dir", str(tmp_path / "nobody"), "--timeout", "0.5", "status")
    assert done.returncode == 3, done.stderr
    error = json.loads(done.stderr)["error"]
    assert set(error) == {"code", "message", "outcome"}


def test_a_foreign_data_directory_is_refused_and_left_alone(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear diary")
    done = shell.run("up", "--data-dir", str(tmp_path))
    assert done.returncode == 4, done.stderr
    assert "not a tauraft data directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_an_occupied_port_is_named(shell: Shell, tmp_path: Path) -> None:
    members = shell.json("members")["members"]
    assert isinstance(members, list)
    taken = members[0]["addresses"][0].partition("/p2p/")[0]
    done = shell.run("-n", "/raft/second", "up", "--data-dir", str(tmp_path / "second"), "--listen", taken)
    assert done.returncode == 2, done.stderr
    assert taken.rpartition("/")[2] in done.stderr
    assert "Traceback" not in done.stderr


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from tauraft.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'libp2p', 'trio', 'duckdb', 'cryptography', 'anyio'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr.strip() == "[]"


def test_sql_asks_state_and_history(shell: Shell) -> None:
    shell.run("kv", "put", "asked", "x")
    found = shell.json("sql", "SELECT key, value, revision > 0 FROM kv WHERE key = 'asked'")
    assert set(found) == {"columns", "rows", "applied_index"}
    assert found["rows"] == [["asked", "x", True]]
    table = shell.run("sql", "SELECT key FROM history WHERE key = 'asked'")
    assert table.returncode == 0
    assert "asked" in table.stdout
    refused = shell.run("--json", "sql", "DELETE FROM kv")
    assert refused.returncode == 1
    assert json.loads(refused.stderr)["error"]["outcome"] == "not-applied"
