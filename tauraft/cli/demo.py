"""`tauraft demo`: three nodes on this machine, their leader killed with kill -9, and a verdict that is computed.

The nodes are processes of their own, with a data directory each, found by each other; this process is only a client,
over libp2p.  A writer puts one key after another and notes what was acknowledged; four workers count up one number under
a lock.  The leader is killed, later started again, and then everything is read back and compared.

The verdict is false if an acknowledged write is missing, the number differs from the acknowledged increments by more than
those whose outcome was unknown, or a token did not grow.  Nothing of it is left behind: processes and directories go also
when it fails or is interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from tauraft.cli.main import Target, targeted

NAMESPACE = "/raft/demo"
NODES = 3
WORKERS = 4
START_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Node:
    """One node's process, over its lives."""

    name: str
    data_dir: str
    log_path: str
    process: subprocess.Popen[str] | None = None
    peer_id: str = ""
    addresses: tuple[str, ...] = ()

    def start(self) -> None:
        """Returns when it serves."""
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tauraft", "--json", "up", NAMESPACE, "--data-dir", self.data_dir,
                 "--preset", "local"],
                stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            with open(self.log_path) as log:
                raise click.ClickException(f"{self.name} did not start: {log.read().strip() or 'it said nothing'}")
        ready = json.loads(line)
        self.peer_id, self.addresses = ready["peer_id"], tuple(ready["addresses"])

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None


@dataclass(slots=True)
class Record:
    """What the clients saw. Written by their threads, each its own lines."""

    acknowledged: dict[str, bytes] = field(default_factory=dict)
    longest_gap_s: float = 0.0
    gap_around_kill_s: float = 0.0
    increments: int = 0
    unknown_increments: int = 0
    tokens: list[int] = field(default_factory=list)
    tokens_by_worker: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    ok: bool
    acknowledged_writes: int
    missing_writes: int
    counter: int
    acknowledged_increments: int
    unknown_increments: int
    tokens: int
    tokens_increase: bool
    longest_gap_ms: int
    gap_around_kill_ms: int
    seconds: float


class Demo:
    def __init__(self, directory: str, seconds: float, say: Callable[[str], None]) -> None:
        self.directory = directory
        self.seconds = seconds
        self.record = Record()
        self.nodes = [
            Node(f"node {number}", os.path.join(directory, f"node-{number}"), os.path.join(directory, f"log-{number}"))
            for number in range(NODES)
        ]
        self._say = say
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._killed_at: float | None = None

    def run(self) -> Verdict:
        import tauraft

        self.say("starting three nodes, each with a directory of its own")
        self._in_parallel([node.start for node in self.nodes])
        addresses = [address for node in self.nodes for address in node.addresses]
        with tauraft.Client(NAMESPACE, addresses, label="demo", timeout=20) as client:
            self._wait_for_three_voters(client)
            threads = [threading.Thread(target=self._guarded, args=(self._write, client), name="writer")]
            threads += [
                threading.Thread(
                    target=self._guarded, args=(self._count, client, f"worker {number}"), name=f"w{number}"
                )
                for number in range(WORKERS)
            ]
            for thread in threads:
                thread.start()
            try:
                self._watch(client, self.seconds / 3)
                killed = self._kill_the_leader(client)
                self._watch(client, self.seconds / 3)
                self.say(f"{killed.name} is started again")
                killed.start()
                self._watch(client, self.seconds / 3)
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join()
            return self._judge(client)

    def say(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def close(self) -> None:
        self._stop.set()
        for node in self.nodes:
            node.kill()

    def _in_parallel(self, calls: list[Callable[[], None]]) -> None:
        failures: list[BaseException] = []

        def run(call: Callable[[], None]) -> None:
            try:
                call()
            except Exception as error:  # the thread's edge: raised below, in the caller's
                failures.append(error)

        threads = [threading.Thread(target=run, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _wait_for_three_voters(self, client: Any) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            voters = [member for member in client.members() if member.role == "voter"]
            if len(voters) == NODES:
                break
            if time.monotonic() > deadline:
                raise click.ClickException(f"only {len(voters)} of {NODES} nodes vote after {START_TIMEOUT_S:g} s")
            time.sleep(0.05)
        self.say(f"one cluster of three voters; {self._leader(client).name} leads")

    def _leader(self, client: Any) -> Node:
        peer_id = client.wait_for_leader(20).peer_id
        return next(node for node in self.nodes if node.peer_id == peer_id)

    def _kill_the_leader(self, client: Any) -> Node:
        leader = self._leader(client)
        assert leader.process is not None
        self.say(f"kill -9 {leader.process.pid}: {leader.name}, the leader")
        self._killed_at = time.monotonic()
        leader.kill()
        return leader

    def _watch(self, client: Any, seconds: float) -> None:
        """The timeline: a line a second."""
        end = time.monotonic() + seconds
        before = len(self.record.acknowledged)
        while (now := time.monotonic()) < end:
            self._stop.wait(min(1.0, end - now))
            done = len(self.record.acknowledged)
            status = client.status()
            leader = next(
                (node.name for node in self.nodes if status.leader and node.peer_id == status.leader.peer_id), "?"
            )
            tokens = " ".join(f"{token}" for _, token in sorted(self.record.tokens_by_worker.items()))
            self.say(
                f"{leader} leads term {status.term}; {done - before:5} writes/s; longest gap "
                f"{self.record.longest_gap_s * 1000:4.0f} ms; count {self.record.increments}; tokens {tokens}"
            )
            before = done

    # The clients' threads.

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:  # the thread's edge: part of the verdict
            self.record.problems.append(f"{type(error).__name__}: {error}")
            self._stop.set()

    def _write(self, client: Any) -> None:
        import tauraft

        number, last = 0, time.monotonic()
        while not self._stop.is_set():
            key, value = f"written/{number:08}", f"value {number}".encode()
            number += 1
            try:
                client.kv.put(key, value)
            except tauraft.Unavailable:
                continue  # not acknowledged, so nothing is claimed of it
            now = time.monotonic()
            self.record.acknowledged[key] = value
            gap, last = now - last, now
            self.record.longest_gap_s = max(self.record.longest_gap_s, gap)
            if self._killed_at is not None and now - gap <= self._killed_at <= now:
                self.record.gap_around_kill_s = gap

    def _count(self, client: Any, worker: str) -> None:
        import tauraft

        lock = client.lock("count", reason=worker)
        while not self._stop.is_set():
            try:
                with lock.acquire(timeout=20) as hold:
                    self.record.tokens.append(hold.token)  # only the holder appends, so this is the order of the holds
                    self.record.tokens_by_worker[worker] = hold.token
                    entry = client.kv.get("count")
                    hold.check()
                    try:
                        client.kv.put("count", str(int(entry.value) + 1 if entry else 1))
                    except tauraft.Unavailable:
                        self.record.unknown_increments += 1
                        raise
                    self.record.increments += 1
            except (tauraft.Unavailable, tauraft.WaitTimeout, tauraft.LockLost):
                continue

    def _judge(self, client: Any) -> Verdict:
        record = self.record
        self.say("everything is read back")
        present: dict[str, bytes] = {}
        cursor: str | None = None
        while True:
            page = client.kv.items("written/", limit=1000, cursor=cursor)
            present.update((entry.key, entry.value) for entry in page)
            cursor = page.cursor
            if cursor is None:
                break
        missing = sum(1 for key, value in record.acknowledged.items() if present.get(key) != value)
        entry = client.kv.get("count")
        counter = int(entry.value) if entry else 0
        increase = all(a < b for a, b in zip(record.tokens, record.tokens[1:], strict=False))
        is_counted = record.increments <= counter <= record.increments + record.unknown_increments
        for problem in record.problems:
            self.say(f"a client failed: {problem}")
        return Verdict(
            ok=not missing and is_counted and increase and bool(record.acknowledged) and not record.problems
            and self._killed_at is not None and record.increments > 0,
            acknowledged_writes=len(record.acknowledged),
            missing_writes=missing,
            counter=counter,
            acknowledged_increments=record.increments,
            unknown_increments=record.unknown_increments,
            tokens=len(record.tokens),
            tokens_increase=increase,
            longest_gap_ms=round(record.longest_gap_s * 1000),
            gap_around_kill_ms=round(record.gap_around_kill_s * 1000),
            seconds=round(time.monotonic() - self._began, 1),
        )  # fmt: skip


def story(verdict: Verdict) -> str:
    def line(holds: bool, text: str) -> str:
        return f"  {'yes' if holds else 'NO '}  {text}"

    return "\n".join(
        [
            "",
            line(not verdict.missing_writes, f"all {verdict.acknowledged_writes} acknowledged writes are there"),
            line(
                verdict.acknowledged_increments <= verdict.counter
                <= verdict.acknowledged_increments + verdict.unknown_increments,
                f"the count is {verdict.counter}: {verdict.acknowledged_increments} acknowledged, "
                f"{verdict.unknown_increments} of unknown outcome",
            ),
            line(verdict.tokens_increase, f"each of {verdict.tokens} holds had a greater token than the one before"),
            f"       without a leader for {verdict.gap_around_kill_ms} ms (between two acknowledged writes)",
            f"  {'PASSED' if verdict.ok else 'FAILED'} in {verdict.seconds} s",
        ]
    )  # fmt: skip


@click.command()
@click.option("--seconds", type=click.FloatRange(3, 300), default=18.0, show_default=True, help="How long to write.")
@targeted
def demo(target: Target, seconds: float) -> int:
    """Three nodes on this machine, one killed, nothing lost."""
    directory = tempfile.mkdtemp(prefix="tauraft-demo-")
    before = os.environ.get("TAURAFT_STATE_DIR")
    os.environ["TAURAFT_STATE_DIR"] = directory  # the nodes find each other here, and nobody else
    show = Demo(directory, seconds, lambda text: click.echo(text, err=target.as_json))
    try:
        verdict = show.run()
    finally:
        show.close()
        if before is None:
            del os.environ["TAURAFT_STATE_DIR"]
        else:
            os.environ["TAURAFT_STATE_DIR"] = before
        shutil.rmtree(directory, ignore_errors=True)
    target.show(asdict(verdict), story(verdict))
    return 0 if verdict.ok else 1
