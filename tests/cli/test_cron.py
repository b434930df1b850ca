"""`tauraft cron ...` against one real node: what it prints, and what it exits with."""

from __future__ import annotations

import json
import signal
import subprocess
import threading

import pytest

from tests.cli.test_commands import Shell, shell as shell

pytestmark = pytest.mark.middle


def test_jobs_are_put_seen_triggered_watched_paused_and_deleted(shell: Shell) -> None:
    put = shell.json("cron", "put", "report", "30 2 * * *", "--timezone", "Europe/Berlin", "--retries", "2")
    assert set(put) == {"name", "spec", "timezone", "paused", "next_at", "version"}
    assert (put["spec"], put["timezone"], put["version"]) == ("30 2 * * *", "Europe/Berlin", 1)
    coming = shell.json("cron", "next", "report", "2")["next"]
    assert isinstance(coming, list) and coming[0] == put["next_at"] and len(coming) == 2
    assert shell.run("cron", "list").stdout.startswith("report: 30 2 * * * Europe/Berlin, next at ")

    watching = subprocess.Popen(
        shell.command("--json", "cron", "watch", "report"), stdout=subprocess.PIPE, text=True, env=shell.environment
    )
    try:
        triggered = shell.json("cron", "trigger", "report")
        assert (triggered["state"], triggered["reason"], triggered["attempts"]) == ("FIRED", "triggered", 0)
        lines: list[str] = []
        assert watching.stdout is not None
        reader = threading.Thread(target=lambda: lines.append(watching.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        while not lines:  # it sees what comes after it has begun
            shell.run("cron", "trigger", "report")
        reader.join()
        told = json.loads(lines[0])
        assert (told["job"], told["state"]) == ("report", "FIRED") or told["state"] == "SKIPPED"
    finally:
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=60)
    assert watching.returncode == 0, "how it is meant to end"
    again = subprocess.Popen(
        shell.command("--json", "cron", "watch", "report", "--since", str(told["revision"] - 1)),
        stdout=subprocess.PIPE, text=True, env=shell.environment,
    )  # fmt: skip
    try:
        assert again.stdout is not None and json.loads(again.stdout.readline()) == told
    finally:
        again.kill()
        again.communicate()

    assert shell.json("cron", "pause", "report") == {"name": "report", "paused": True}
    ticks = shell.json("cron", "history", "report")["ticks"]
    assert isinstance(ticks, list) and {tick["state"] for tick in ticks} == {"SKIPPED"}
    assert shell.json("cron", "delete", "report") == {"name": "report", "deleted": True}


def test_a_bad_spec_is_wrong_usage_and_an_unknown_job_is_refused(shell: Shell) -> None:
    wrong = shell.run("cron", "put", "bad", "61 * * * *")
    assert wrong.returncode == 2
    assert "the minute cannot be read" in wrong.stderr
    unknown = shell.run("--json", "cron", "trigger", "nowhere")
    assert unknown.returncode == 1
    assert json.loads(unknown.stderr)["error"]["code"] == "unknown-job"
    assert shell.run("cron", "delete", "nowhere").returncode == 1
