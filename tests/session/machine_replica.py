"""A replica of one: the real apply engine with the real plugins, committing whatever it takes at once. No log, no network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import trio

from tauraft.client import LocalDialer
from tauraft.command_service import CommandService
from tauraft.core.messages import Entry, EntryKind
from tauraft.engine import Engine, boottime_ns
from tauraft.fsm import FSM, Message, Query
from tauraft.node.apply import Machine
from tauraft.node.batch import encode_batch
from tauraft.node.change_log import ChangeLog
from tauraft.node.replica import Item, LeaderInfo, Outcome, ReplicaListener, StoredState, Suspension
from tauraft.plugin_manager import Registry
from tauraft.system.messages import Activate, Tick


@dataclass
class MachineReplica:
    """Implements ``tauraft.node.replica.Replica``."""

    fsms: Sequence[type[FSM]]
    clock: Callable[[], int] = boottime_ns
    peer_id: str = "A"
    namespace: str = "/raft/test"
    cluster_id: bytes = b"c"
    suspension: Suspension | None = None
    leader: LeaderInfo | None = field(default_factory=lambda: LeaderInfo("A", ()))

    def __post_init__(self) -> None:
        self.registry = Registry(self.fsms)
        self.machine = Machine(self.registry)
        self._listeners: list[ReplicaListener] = []
        self._log: list[Item] = []
        self._wake = trio.Event()
        self._later: list[tuple[int, Callable[[], object]]] = []
        for name, version, digest in self.registry.supported():
            self._log.append(self._system(Activate(name, version, digest)))
        self._apply()

    def _system(self, message: Message[Any]) -> Item:
        return Item(0, 0, 0, 0, self.registry.encode(message), message)

    @property
    def applied_index(self) -> int:
        return self.machine.applied_index

    @property
    def change_log(self) -> ChangeLog:
        return self.machine.change_log

    @property
    def is_leader(self) -> bool:
        return self.leader is not None

    async def run(self) -> None:
        while True:
            due = self.machine.next_deadline_ns()
            wait_s = float("inf") if due is None else max(0.0, (due - self.clock()) / 1e9)
            with trio.move_on_after(wait_s) as waited:
                await self._wake.wait()
            self._wake = trio.Event()
            if waited.cancelled_caught and not self._log:
                self._log.append(self._system(Tick()))
            self._apply()

    def propose(self, items: Sequence[Item]) -> None:
        self._log += items
        self._wake.set()

    def _apply(self) -> None:
        items, self._log = self._log, []
        if not items:
            return
        now = self.clock()
        entry = Entry(self.applied_index + 1, 1, EntryKind.BATCH, encode_batch(now, now, self.peer_id, items))
        outcomes, events = self.machine.apply(entry, [item.message for item in items])
        for listener in list(self._listeners):
            listener.applied(entry.index, outcomes, events)
        ready, self._later = self._later, []
        for index, done in ready:
            self.when_applied(index, done)

    def stored(self, session: int, sequence: int) -> Outcome | StoredState:
        return self.machine.stored(session, sequence)

    def may_attach(self, session: int, secret: bytes, peer_id: str) -> bool:
        found = self.machine.sessions.get(session)
        return found is not None and (found.peer_id, found.secret_hash) == (peer_id, sha256(secret).digest())

    def read_index(self, done: Callable[[int | None], object]) -> None:
        done(self.applied_index)

    def when_applied(self, index: int, done: Callable[[], object]) -> None:
        if self.applied_index >= index:
            done()
        else:
            self._later.append((index, done))

    def answer(self, query: Query[Any]) -> Any:
        return self.machine.answer(query)

    def decode(self, payload: bytes) -> Message[Any]:
        return self.registry.decode(payload)

    def encode_answer(self, message: Message[Any], value: Any) -> bytes:
        return self.registry.encode_answer(message, value)

    def add_listener(self, listener: ReplicaListener) -> None:
        self._listeners.append(listener)

    def remove_listener(self, listener: ReplicaListener) -> None:
        self._listeners.remove(listener)

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        member = {"peer_id": "A", "addresses": [], "role": "voter", "host": "h", "is_leader": True}
        if method == "members":
            return [member]
        return {
            "namespace": self.namespace, "cluster_id": "c", "peer_id": "A", "state": "leader", "term": 1, "leader": member,
            "members": [member], "commit_index": self.applied_index, "applied_index": self.applied_index,
            "revision": self.machine.revision, "holder_pid": 1, "hosts": 1, "disks": 1, "warnings": [],
        }  # fmt: skip


class MachineHost:
    """One such replica for any number of facades of this process."""

    problem = None
    trouble = ""

    def __init__(self, fsms: Sequence[type[FSM]]) -> None:
        self.fsms = fsms
        self.replica: MachineReplica | None = None
        self.service: CommandService

    @property
    def dialer(self) -> LocalDialer:
        return LocalDialer(self.service.connect_local)

    @asynccontextmanager
    async def open(self, engine: Engine) -> AsyncIterator[MachineHost]:
        if self.replica is None:
            self.replica = MachineReplica(self.fsms)
            self.service = CommandService(self.replica, boottime_ns)
            engine.nursery.start_soon(self.replica.run)
            engine.nursery.start_soon(self.service.run)
        yield self
