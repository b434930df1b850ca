"""The third-party package of the examples: installed, found by clusters that run, and upgraded while they do."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import tauraft
from tauraft.cli.new_plugin import names_of, rendered
from tauraft.errors import InvalidCommand
from tauraft.simulator.world import World, run_world
from tests.examples.conftest import EXAMPLES
from tests.plugins.scratch import ScratchEnvironment

PACKAGE = EXAMPLES / "acme_counter"
NAMESPACE = "/raft/acme"


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Version 2's package, importable here as a client of it has it."""
    monkeypatch.syspath_prepend(PACKAGE / "v2" / "src")
    yield importlib.import_module("acme_counter")
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme_counter"]:
        monkeypatch.delitem(sys.modules, name)


class Node:
    """`tauraft up` in an environment, which decides what plugins there are."""

    def __init__(self, directory: Path, environment: ScratchEnvironment, peers: list[str]) -> None:
        command = [
            "-m",
            "tauraft",
            "--json",
            "--data-dir",
            str(directory / "data"),
            "up",
            NAMESPACE,
            "--preset",
            "local",
        ]
        command += ["--expect", "3", *[word for peer in peers for word in ("--peer", peer)]]
        self._command, self._state = command, directory.parent / "state"
        self._state.mkdir(mode=0o700, exist_ok=True)
        self.start(environment)

    def start(self, environment: ScratchEnvironment) -> None:
        self.process = subprocess.Popen(
            [environment.python, *self._command],
            env=environment.environment | {"TAURAFT_STATE_DIR": str(self._state)},
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return told

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.mark.middle
def test_a_package_of_its_own_is_found_by_a_running_cluster_and_upgraded_node_by_node(
    tmp_path: Path, acme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = ScratchEnvironment(tmp_path / "old"), ScratchEnvironment(tmp_path / "new")
    old.install(PACKAGE / "v1")
    new.install(PACKAGE / "v2")
    nodes: list[Node] = []
    try:
        for number in range(3):
            (tmp_path / f"node-{number}").mkdir()
            nodes.append(Node(tmp_path / f"node-{number}", old, []))
        addresses = [address for node in nodes for address in node.ready()["addresses"]]
        monkeypatch.setenv("TAURAFT_STATE_DIR", str(tmp_path / "state"))
        with tauraft.Client(NAMESPACE, addresses, timeout=30) as client:
            hits = acme.AcmeCounter(client, "hits")
            assert hits.add(5) == 5
            with pytest.raises(InvalidCommand):
                hits.additions()
            for number, node in enumerate(nodes):
                node.stop()
                assert hits.add() == 6 + number, "two of three go on"
                node.start(new)
                node.ready()
                while any("not reachable" in warning for warning in client.status().warnings):
                    time.sleep(0.1)
            assert hits.add() == 9
            while True:  # the activation follows the last restart by itself
                try:
                    assert hits.additions() in (1, 2)
                    break
                except InvalidCommand:
                    hits.get()
            assert hits.get() == 9
            before = hits.additions()
            assert hits.add() == 10
            assert hits.additions() == before + 1
            assert list(client.sql("SELECT key, value FROM acme_counter_counts")) == [("hits", 10)]
    finally:
        for node in nodes:
            node.stop()


def test_its_two_versions_in_the_simulator(acme: Any) -> None:
    machines = importlib.import_module("acme_counter.fsm")
    messages = importlib.import_module("acme_counter.messages")
    both = (machines.AcmeCounterFSM, machines.AcmeCounterFSM2)

    async def story(world: World) -> None:
        world.plugins = both[:1]
        world.start_all()
        await world.wait_for_leader()
        async with world.client() as client:
            await client.opened()
            assert await client.submit(messages.Add("hits", 5)) == 5
            for node in world.nodes:
                with pytest.raises(InvalidCommand):
                    await client.query(messages.Additions("hits"))
                await node.kill()
                node.plugins = both
                node.start()
                await world.wait_until(lambda node=node: node.replica is not None)  # type: ignore[misc]
                await trio.sleep(2)
            assert await client.query(messages.Additions("hits")) == 1
            assert await client.submit(messages.Add("hits")) == 6
            assert await client.query(messages.Additions("hits")) == 2
        world.observe()

    run_world(1, story)


@pytest.mark.middle
def test_the_new_release_passes_its_own_tests(tmp_path: Path) -> None:
    scratch = ScratchEnvironment(tmp_path / "environment")
    scratch.install(PACKAGE / "v2")
    done = scratch.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=PACKAGE / "v2")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_old_release_is_what_new_plugin_writes(tmp_path: Path) -> None:
    """Its code; the examples are formatted besides."""
    for path, text in rendered(names_of("acme-counter")).items():
        if path.startswith("src/"):
            kept = (PACKAGE / "v1" / path).read_text(encoding="utf-8")
            assert sorted("".join(kept.split())) == sorted("".join(text.split())), path
