"""Each hook of ``tauraft.hookspecs``, implemented by a small plugin and called by a real node."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from click.testing import CliRunner

from tauraft import Client, Cluster, errors, hookimpl
from tauraft.cli.main import root
from tauraft.commands import Put
from tauraft.discovery.discovery import Found
from tauraft.fsm import FSM
from tauraft.hookspecs import DiscoveryConfig, LogStoreConfig, NodeInfo, Sample, TransportConfig
from tauraft.storage.segment_log import SegmentLog
from tauraft.testing import MemoryCluster
from tauraft.transport.memory import MemoryNetwork
from tauraft.types import Compare
from tests.watch.board import Board, Pin  # an FSM with messages of its own

WAIT_S = 20.0


class Telling:
    """Hears what happens to a node."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._changed = threading.Condition()

    def add(self, *news: Any) -> None:
        with self._changed:
            self.told.append(news)
            self._changed.notify_all()

    def wait_for(self, what: str) -> tuple[Any, ...]:
        with self._changed:
            assert self._changed.wait_for(lambda: any(news[0] == what for news in self.told), WAIT_S), self.told
        return next(news for news in reversed(self.told) if news[0] == what)

    @hookimpl
    def tauraft_leadership_changed(self, namespace: str, leader: str | None, term: int) -> None:
        if leader is not None:
            self.add("leader", namespace, leader, term, threading.current_thread().name)

    @hookimpl
    def tauraft_node_started(self, node: NodeInfo) -> None:
        self.add("started", node)

    @hookimpl
    def tauraft_node_stopping(self, node: NodeInfo) -> None:
        self.add("stopping", node)


def test_a_plugin_is_told_when_a_node_starts_stops_and_gets_a_leader() -> None:
    telling = Telling()
    with MemoryCluster(plugins=[telling]) as cluster:
        _, namespace, leader, term, thread = telling.wait_for("leader")
        assert (namespace, leader) == (cluster.namespace, cluster.peer_id)
        assert term == cluster.status().term
        assert thread != "tauraft-engine"
        _, node = telling.wait_for("started")
        assert node == NodeInfo(cluster.peer_id, cluster.addresses, None)
        assert not any(news[0] == "stopping" for news in telling.told)
    assert telling.told[-1] == ("stopping", node)


class Broken:
    """Fails whenever it is told something, and counts what it is told of that."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.came = threading.Semaphore(0)

    @hookimpl
    def tauraft_node_started(self) -> None:
        raise RuntimeError("at the start")

    @hookimpl
    def tauraft_leadership_changed(self) -> None:
        raise RuntimeError("at an election")

    @hookimpl
    def tauraft_metrics(self) -> Callable[[Sequence[Sample]], None]:
        return self.take

    def take(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)
        self.came.release()

    def value(self, name: str) -> float:
        (value,) = (sample.value for sample in self.samples if sample.name == name)
        return value


def test_metrics_go_to_the_plugin_every_ten_seconds_and_once_at_the_end() -> None:
    plugin = Broken()
    with MemoryCluster(plugins=[plugin]) as cluster:
        cluster.kv.put("k", b"v")
        cluster.advance(9)
        assert not plugin.came.acquire(blocking=False)
        cluster.advance(1.5)
        assert plugin.came.acquire(timeout=WAIT_S)
        assert plugin.value("tauraft_is_leader") == 1
        assert plugin.value("tauraft_voters") == 1
        assert plugin.value("tauraft_sessions") == 1
        assert plugin.value("tauraft_revision") >= 1
        assert {sample.labels for sample in plugin.samples} == {(), (("namespace", cluster.namespace),)}
        at_ten_seconds = plugin.value("tauraft_applied_index")
        cluster.kv.put("k", b"w")
    assert plugin.came.acquire(timeout=WAIT_S)
    assert plugin.value("tauraft_applied_index") > at_ten_seconds


def test_a_plugin_that_fails_when_told_is_counted_and_the_node_goes_on() -> None:
    plugin = Broken()
    with MemoryCluster(plugins=[plugin]) as cluster:
        cluster.kv.put("k", b"v")
    assert plugin.value("tauraft_hook_failures_total") == 2


# ---- authorize ----


class Gate:
    """Refuses the actions that begin with one of ``forbidden``; remembers who asked for what."""

    def __init__(self, *forbidden: str) -> None:
        self.forbidden = forbidden
        self.asked: list[tuple[str, str]] = []

    @hookimpl
    def tauraft_authorize(self, peer: str, namespace: str, action: str) -> bool | None:
        self.asked.append((peer, action))
        if "broken" in self.forbidden and action.startswith("submit"):
            raise RuntimeError("the directory of users does not answer")
        return False if action.startswith(self.forbidden or ("nothing",)) else None


FORBIDDEN = [
    pytest.param("submit:tauraft.kv/Put", lambda c: c.kv.put("k", b"v"), id="a command"),
    pytest.param("submit:tauraft.kv/Put", lambda c: c.transaction(Put("k", b"v")), id="in a transaction"),
    pytest.param(
        "submit:tauraft.kv/Put",
        lambda c: c.kv.transaction([Compare("k", "exists", "==", True)], then=[], otherwise=[Put("k", b"v")]),
        id="in a conditional transaction",
    ),
    pytest.param("query:tauraft.kv/Get", lambda c: c.kv.get("k"), id="a query"),
    pytest.param("query:tauraft.kv/Get", lambda c: c.kv.get("k", consistency="stale"), id="a stale query"),
    pytest.param("watch:tauraft.kv/", lambda c: c.kv.watch("k").__enter__(), id="a watch"),
    pytest.param("call:sql", lambda c: c.sql("SELECT 1"), id="SQL"),
    pytest.param("call:remove_server", lambda c: c.remove_server("somebody"), id="administration"),
]


@pytest.mark.parametrize(("action", "use"), FORBIDDEN)
def test_what_a_plugin_forbids_is_refused_before_it_reaches_the_log(action: str, use: Callable[[Any], Any]) -> None:
    with MemoryCluster(plugins=[Gate(action)]) as cluster:
        before = cluster.status().commit_index
        with pytest.raises(errors.Refused, match="tauraft_authorize") as refused:
            use(cluster)
        assert refused.value.code == "not-authorized"
        assert refused.value.outcome == "not-applied"
        assert cluster.status().commit_index == before
        # Nothing else is touched by it.
        cluster.lock("l").acquire().release()


@pytest.mark.parametrize(("action", "use"), FORBIDDEN[:-1])
def test_what_no_plugin_forbids_is_allowed(action: str, use: Callable[[Any], Any]) -> None:
    gate = Gate()
    with MemoryCluster(plugins=[gate]) as cluster:
        use(cluster)
        assert any(asked.startswith(action) for _, asked in gate.asked)
        assert {peer for peer, _ in gate.asked} == {cluster.peer_id}


def test_one_no_outweighs_every_yes() -> None:
    class Yes:
        @hookimpl
        def tauraft_authorize(self) -> bool:
            return True

    with MemoryCluster(plugins=[Yes(), Gate("submit:"), Yes()]) as cluster, pytest.raises(errors.Refused):
        cluster.kv.put("k", b"v")


def test_a_plugin_that_cannot_say_has_not_agreed() -> None:
    with MemoryCluster(plugins=[Gate("broken")]) as cluster:
        with pytest.raises(errors.Refused):
            cluster.kv.put("k", b"v")
        assert cluster.kv.get("k") is None


@pytest.mark.middle
def test_clients_that_come_over_a_stream_are_asked_about_alike(tmp_path: Path) -> None:
    gate, room = Gate("submit:tauraft.kv/Put", "watch:", "call:sql"), MemoryRoom()
    data_dir = tmp_path / "node"
    with (
        Cluster("/raft/room", data_dir=data_dir, force_bootstrap=True, preset="local", plugins=[gate, room]) as cluster,
        Client("/raft/room", data_dir=data_dir) as client,
    ):
        for use in (
            lambda: client.kv.put("k", b"v"),
            lambda: client.transaction(Put("k", b"v")),
            lambda: client.kv.transaction(then=[Put("k", b"v")]),
            lambda: client.kv.watch("k").__enter__(),
            lambda: client.sql("SELECT 1"),
        ):
            with pytest.raises(errors.Refused) as refused:
                use()
            assert refused.value.code == "not-authorized"
        assert client.kv.get("k") is None
        assert client.counter("c").add() == 1
        assert (cluster.peer_id, "submit:tauraft.counters/Add") in gate.asked


# ---- discovery and transport ----


class MemoryRoom:
    """Nodes in memory that reach each other: a transport of its own, and who is in the room."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.network = MemoryNetwork(Random(1))
        self.present: dict[str, tuple[str, ...]] = {}
        self.gate = gate
        self.configs: list[DiscoveryConfig | TransportConfig] = []

    @hookimpl
    def tauraft_transport(self, config: TransportConfig) -> Any:
        self.configs.append(config)
        return self.network.transport(f"peer-{config.identity.hex()[:8]}", admit=config.admit)

    @hookimpl
    def tauraft_discoverers(self, config: DiscoveryConfig) -> list[Any]:
        self.configs.append(config)
        return [InTheRoom(self), Unwanted()]

    @hookimpl
    def tauraft_authorize(self, peer: str, namespace: str, action: str) -> bool | None:
        return None if self.gate is None else self.gate.tauraft_authorize(peer, namespace, action)


class InTheRoom:
    name, minimum_s = "acme.room", 0.0

    def __init__(self, room: MemoryRoom) -> None:
        self._room = room
        self._own = ""

    async def announce(self, peer_id: str, addresses: Sequence[str]) -> None:
        self._own = peer_id
        self._room.present[peer_id] = tuple(addresses)

    async def withdraw(self) -> None:
        self._room.present.pop(self._own, None)

    def look(self) -> Sequence[Found]:
        return [Found(*known) for known in sorted(self._room.present.items()) if known[0] != self._own]

    async def find(self) -> AsyncIterator[Found]:
        while True:
            for found in self.look():
                yield found
            await anyio.sleep(0.05)


class Unwanted(InTheRoom):
    """Brought, but not named in ``discovery=``."""

    name = "acme.unwanted"

    def __init__(self) -> None:
        pass

    async def announce(self, peer_id: str, addresses: Sequence[str]) -> None:
        raise AssertionError("used although nobody asked for it")


def in_the_room(room: MemoryRoom, **options: Any) -> Cluster:
    return Cluster(
        "/raft/room", storage="memory", discovery=["acme.room"], plugins=[room], preset="local", expect=2, **options
    )


@pytest.mark.middle
def test_nodes_find_and_reach_each_other_by_what_a_plugin_brings() -> None:
    room = MemoryRoom(Gate())
    one, other = in_the_room(room), in_the_room(room)
    starting = threading.Thread(target=one.start)
    starting.start()
    try:
        other.start(timeout=WAIT_S)
        starting.join(WAIT_S)
        other.kv.put("k", b"v")
        entry = one.kv.get("k")
        assert entry is not None and entry.value == b"v"
        assert {member.peer_id for member in one.members()} == {one.peer_id, other.peer_id} == set(room.present)
        assert room.gate is not None
        foreign = {(peer, action) for peer, action in room.gate.asked if action in ("join", "raft")}
        assert foreign == {(peer, action) for peer in (one.peer_id, other.peer_id) for action in ("join", "raft")}
    finally:
        other.close()
        one.close()
    assert not room.present
    assert sum(isinstance(config, TransportConfig) for config in room.configs) == 2
    assert {config for config in room.configs if isinstance(config, DiscoveryConfig)} == {
        DiscoveryConfig("/raft/room", ("acme.room",), (), None)
    }


@pytest.mark.middle
def test_a_peer_that_a_plugin_refuses_does_not_join() -> None:
    gate = Gate("join")
    room = MemoryRoom(gate)
    ended: list[BaseException] = []

    def start() -> None:
        try:
            in_the_room(room).start(timeout=3)
        except errors.TauraftError as error:
            ended.append(error)

    starting = [threading.Thread(target=start) for _ in range(2)]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join(WAIT_S)
    assert len(ended) == 2
    assert len({peer for peer, action in gate.asked if action == "join"}) == 2, "they met, and were refused"


@pytest.mark.parametrize(("option", "value"), [("discovery", ["acme.nowhere"]), ("storage", "acme.nowhere")])
def test_a_name_that_no_plugin_brings_is_told_at_the_start(tmp_path: Path, option: str, value: Any) -> None:
    room = MemoryRoom()
    cluster = Cluster("/raft/room", data_dir=tmp_path / "node", plugins=[room], **{option: value})
    with pytest.raises(errors.InvalidOption, match="no plugin of this process brings it") as told:
        cluster.start(timeout=WAIT_S)
    assert told.value.option == option


@pytest.mark.parametrize(("option", "value"), [("discovery", ["lokal"]), ("storage", "segmnt")])
def test_a_name_without_a_dot_is_tauraft_s_own_or_wrong(option: str, value: Any) -> None:
    with pytest.raises(errors.InvalidOption) as told:
        Cluster("/raft/room", **{option: value})
    assert told.value.option == option


# ---- the log ----


class Shelf:
    """Keeps logs of its own kind: here ours, under another name, that notes what it is given."""

    def __init__(self, room: MemoryRoom) -> None:
        self.room = room
        self.configs: list[LogStoreConfig] = []
        self.entries = 0

    @hookimpl
    def tauraft_transport(self, config: TransportConfig) -> Any:
        return self.room.tauraft_transport(config)

    @hookimpl
    def tauraft_log_store(self, config: LogStoreConfig) -> Any:
        if config.storage != "acme.shelf":
            return None
        self.configs.append(config)
        shelf = self

        class ShelfLog(SegmentLog):
            def append(self, entries: Any, hard_state: Any = None) -> None:
                super().append(entries, hard_state)
                shelf.entries += len(entries)

        return ShelfLog(config.directory, must_exist=config.must_exist)


@pytest.mark.middle
def test_the_log_is_kept_by_what_a_plugin_brings(tmp_path: Path) -> None:
    shelf = Shelf(MemoryRoom())
    options: dict[str, Any] = {"data_dir": tmp_path / "node", "storage": "acme.shelf", "plugins": [shelf]}
    with Cluster("/raft/room", force_bootstrap=True, preset="local", **options) as cluster:
        cluster.kv.put("k", b"v")
    assert shelf.entries > 0
    assert [config.must_exist for config in shelf.configs] == [False, True]
    assert Path(shelf.configs[0].directory).is_dir()
    with Cluster("/raft/room", preset="local", **options) as cluster:
        entry = cluster.kv.get("k")
        assert entry is not None and entry.value == b"v"


# ---- the command line ----

CLI_PLUGIN = """
import click
from tauraft import hookimpl

@click.command("{name}")
def command():
    "Does what acme does."
    click.echo("acme was here")

@hookimpl
def tauraft_cli(group):
    group.add_command(command)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a module on the path, with the entry point that an installed package has."""

    def install(module: str, text: str) -> None:
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        about = tmp_path / f"{module}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
        (about / "entry_points.txt").write_text(f"[tauraft]\n{module} = {module}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_a_plugin_adds_commands(installed: Callable[[str, str], None]) -> None:
    installed("acme_commands", CLI_PLUGIN.format(name="acme"))
    told = CliRunner().invoke(root, ["acme"])
    assert told.output == "acme was here\n", told.exception
    told = CliRunner().invoke(root, ["--help"])
    assert "Commands of plugins" in told.output
    assert "Does what acme does." in told.output


def test_a_plugin_takes_no_command_of_ours(installed: Callable[[str, str], None]) -> None:
    installed("acme_thief", CLI_PLUGIN.format(name="kv"))
    told = CliRunner().invoke(root, ["unknown"])
    assert isinstance(told.exception, errors.InvalidOption)
    assert "'kv'" in str(told.exception)


def test_help_is_there_although_a_plugin_is_broken(installed: Callable[[str, str], None]) -> None:
    installed("acme_broken", "import nothing_of_that_name")
    told = CliRunner().invoke(root, ["--help"])
    assert told.exit_code == 0
    assert "acme_broken" in told.output
    assert "counter" in told.output


def test_no_command_of_ours_loads_a_plugin(installed: Callable[[str, str], None]) -> None:
    installed("acme_broken_too", "import nothing_of_that_name")
    assert CliRunner().invoke(root, ["counter", "--help"]).exit_code == 0


# ---- loading ----


class Misspelt:
    @hookimpl
    def tauraft_fsm(self) -> list[type[FSM]]:
        return []


class WithMore:
    @hookimpl
    def tauraft_metrics(self, registry: object) -> None: ...


class NoPlugin:
    pass


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        (Misspelt(), "implements tauraft_fsm, which is no hook; there are tauraft_authorize, tauraft_cli"),
        (WithMore(), "does not fit: .*registry"),
        (NoPlugin(), "is no plugin"),
    ],
    ids=["unknown hook", "unknown argument", "no hook"],
)
def test_a_plugin_that_does_not_fit_is_refused_by_name(plugin: object, says: str) -> None:
    with pytest.raises(errors.InvalidOption, match=says) as told:
        MemoryCluster(plugins=[plugin]).start()
    assert type(plugin).__name__ in str(told.value)


def test_an_installed_plugin_that_cannot_be_imported_is_named_and_may_be_left_out(
    installed: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("acme_torn", "import nothing_of_that_name")
    with pytest.raises(errors.PluginMissing, match="repair or uninstall acme_torn") as told:
        MemoryCluster().start()
    assert told.value.package == "acme_torn"
    monkeypatch.setenv("TAURAFT_PLUGIN_AUTOLOAD", "0")
    with MemoryCluster(plugins=[Board]) as cluster:
        assert cluster.submit(Pin("n", "text")) > 0
        with pytest.raises(errors.InvalidCommand):
            cluster.kv.put("k", b"v")


def test_two_plugins_of_one_state_machine_and_version_are_told_apart_by_name() -> None:
    class Other(FSM, name=Board.fsm_name, version=Board.version):
        pass

    with pytest.raises(errors.InvalidOption, match=r"both bring acme\.board version 1"):
        MemoryCluster(plugins=[Board, Other]).start()


def test_state_machines_come_by_hook_module_or_class() -> None:
    class Bringing:
        @hookimpl
        def tauraft_fsms(self) -> list[type[FSM]]:
            return [Board]

    for plugin in (Bringing(), Board):
        with MemoryCluster(plugins=[plugin]) as cluster:
            assert cluster.sql("SELECT count(*) FROM information_schema.tables WHERE table_name LIKE '%board%'")[0][0]
