"""An in-memory replica that applies as decision 0001 says, with a lock that callers wait for, and links that break on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgpack
import trio

from tauraft import errors
from tauraft.client import LinkFailed
from tauraft.codec import message_codec
from tauraft.command_protocol import AnswerKind, LeaderIs, Link, LinkUser, ToClient, ToReplica
from tauraft.command_service import CommandService
from tauraft.fsm import Command, Message, Query
from tauraft.node.change_log import ChangeLog
from tauraft.node.replica import Item, LeaderInfo, Outcome, ReplicaListener, SessionEvent, StoredState, Suspension
from tauraft.system import messages as system
from tauraft.tables import TableSet

S = 1_000_000_000  # ns


@dataclass(frozen=True, slots=True)
class Add(Command[int], fsm="test"):
    name: str


@dataclass(frozen=True, slots=True)
class Take(Command[int], fsm="test"):
    name: str


@dataclass(frozen=True, slots=True)
class Give(Command[bool], fsm="test"):
    name: str


@dataclass(frozen=True, slots=True)
class Count(Query[int], fsm="test"):
    name: str


KINDS = {(kind.fsm, kind.tag): kind for kind in (Add, Take, Give, Count, *system.MESSAGES)}


def clock() -> int:
    return int(trio.current_time() * 1e9)


class Books:
    """One session in the replica's state."""

    def __init__(self, secret_hash: bytes, ttl_ns: int, peer_id: str, now: int) -> None:
        self.secret_hash, self.ttl_ns, self.expires = secret_hash, ttl_ns, now + ttl_ns
        self.peer_id = peer_id
        self.floor = 1
        self.answers: dict[int, tuple[AnswerKind, bytes]] = {}
        self.tickets: dict[int, str] = {}
        self.grants: dict[int, str] = {}


class MemoryReplica:
    """One replica that commits whatever it takes, a moment later."""

    peer_id, namespace, cluster_id = "A", "/raft/test", b"c"
    suspension: Suspension | None = None

    def __init__(self) -> None:
        self.applied_index = 0
        self.revision = 0
        self.change_log = ChangeLog(TableSet())
        self.leader: LeaderInfo | None = LeaderInfo("A", ())
        self.sessions: dict[int, Books] = {}
        self.nonces: dict[bytes, int] = {}
        self.counts: dict[str, int] = {}
        self.held: dict[str, tuple[int, int]] = {}
        self.queue: list[tuple[int, int, str]] = []
        self.lose_proposals = 0
        self.taken: list[Item] = []
        self._log: list[Item] = []
        self._listeners: list[ReplicaListener] = []
        self._wake = trio.Event()
        self._later: list[tuple[int, Callable[[], object]]] = []

    @property
    def is_leader(self) -> bool:
        return self.leader is not None

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await trio.sleep(0.001)
            items, self._log = self._log, []
            self._apply(items)

    def propose(self, items: Sequence[Item]) -> None:
        if self.leader is None:
            raise errors.NoLeader("none")
        if self.lose_proposals:
            self.lose_proposals -= 1
            return
        self.taken += items
        self._log += items
        self._wake.set()

    def _apply(self, items: Sequence[Item]) -> None:
        self.applied_index += 1
        outcomes: list[Outcome] = []
        events: list[SessionEvent] = []
        for item in items:
            message = self.decode(item.payload)
            if item.session == 0:
                self._system(message, outcomes, events)
            else:
                self._of_session(item, message, outcomes)
        for listener in list(self._listeners):
            listener.applied(self.applied_index, outcomes, events)
        ready, self._later = self._later, []
        for index, done in ready:
            self.when_applied(index, done)

    def _of_session(self, item: Item, message: Message[Any], outcomes: list[Outcome]) -> None:
        books = self.sessions.get(item.session)
        if books is None:
            lost = errors.encode(errors.SessionLost("no such session"))
            outcomes.append(Outcome(item.session, item.sequence, AnswerKind.ERROR, lost))
            return
        self._acknowledge(books, item.acked_below)
        if item.sequence < books.floor or item.sequence in books.tickets:
            return
        if item.sequence in books.answers:
            outcomes.append(Outcome(item.session, item.sequence, *books.answers[item.sequence]))
            return
        self.revision += 1
        match message:
            case Add(name):
                self.counts[name] = self.counts.get(name, 0) + 1
                self._answer(item.session, item.sequence, self.counts[name], outcomes)
            case Take(name) if name in self.held:
                books.tickets[item.sequence] = name
                self.queue.append((item.session, item.sequence, name))
            case Take(name):
                self._grant(item.session, item.sequence, name, outcomes)
            case Give(name):
                self._answer(item.session, item.sequence, self.held.pop(name, None) is not None, outcomes)
                self._next(name, outcomes)

    def _acknowledge(self, books: Books, below: int) -> None:
        books.floor = max(books.floor, below)
        books.answers = {s: answer for s, answer in books.answers.items() if s >= books.floor}
        books.grants = {s: name for s, name in books.grants.items() if s >= books.floor}

    def _answer(self, session: int, sequence: int, value: Any, outcomes: list[Outcome]) -> None:
        self.sessions[session].answers[sequence] = (AnswerKind.VALUE, msgpack.packb(value))
        outcomes.append(Outcome(session, sequence, AnswerKind.VALUE, msgpack.packb(value)))

    def _grant(self, session: int, sequence: int, name: str, outcomes: list[Outcome]) -> None:
        self.held[name] = (session, sequence)
        self.sessions[session].grants[sequence] = name
        self._answer(session, sequence, self.revision, outcomes)

    def _next(self, name: str, outcomes: list[Outcome]) -> None:
        for place, (session, sequence, wanted) in enumerate(self.queue):
            if wanted == name and name not in self.held:
                del self.queue[place]
                del self.sessions[session].tickets[sequence]
                self._grant(session, sequence, name, outcomes)
                return

    def _system(self, message: Message[Any], outcomes: list[Outcome], events: list[SessionEvent]) -> None:
        match message:
            case system.Open():
                if message.nonce not in self.nonces:
                    self.revision += 1
                    self.nonces[message.nonce] = self.revision
                    self.sessions[self.revision] = Books(message.secret_hash, message.ttl_ns, message.peer_id, clock())
                events.append(SessionEvent("opened", self.nonces[message.nonce], message.nonce))
            case system.KeepAlive(pairs):
                for session, serial in pairs:
                    if session in self.sessions:
                        self.sessions[session].expires = clock() + self.sessions[session].ttl_ns
                        events.append(SessionEvent("renewed", session, serial=serial))
            case system.Close(session):
                self.sessions.pop(session, None)
                for name in [n for n, holder in self.held.items() if holder[0] == session]:
                    del self.held[name]
                events.append(SessionEvent("ended", session))
            case system.Withdraw(session, sequence, acked_below):
                books = self.sessions[session]
                self._acknowledge(books, acked_below)
                stored = books.answers.get(sequence)
                if stored is not None and sequence not in books.grants:
                    kind = AnswerKind.STANDS if stored[0] is AnswerKind.VALUE else stored[0]
                    outcomes.append(Outcome(session, sequence, kind, stored[1]))
                    return
                if sequence in books.tickets:
                    del books.tickets[sequence]
                    self.queue = [waiter for waiter in self.queue if waiter[:2] != (session, sequence)]
                if sequence in books.grants:
                    given_back = books.grants.pop(sequence)
                    del self.held[given_back]
                    self._next(given_back, outcomes)
                books.answers[sequence] = (AnswerKind.WITHDRAWN, b"")
                outcomes.append(Outcome(session, sequence, AnswerKind.WITHDRAWN, b""))

    def stored(self, session: int, sequence: int) -> Outcome | StoredState:
        books = self.sessions.get(session)
        if books is None:
            raise errors.SessionLost("no such session")
        if sequence < books.floor:
            return StoredState.BELOW_FLOOR
        if sequence in books.tickets:
            return StoredState.WAITING
        known = books.answers.get(sequence)
        return StoredState.UNKNOWN if known is None else Outcome(session, sequence, *known)

    def may_attach(self, session: int, secret: bytes, peer_id: str) -> bool:
        books = self.sessions.get(session)
        return books is not None and (books.peer_id, books.secret_hash) == (peer_id, sha256(secret).digest())

    def read_index(self, done: Callable[[int | None], object]) -> None:
        done(self.applied_index if self.leader else None)

    def when_applied(self, index: int, done: Callable[[], object]) -> None:
        if self.applied_index >= index:
            done()
        else:
            self._later.append((index, done))

    def answer(self, query: Query[Any]) -> Any:
        assert isinstance(query, Count)
        return self.counts.get(query.name, 0)

    def decode(self, payload: bytes) -> Message[Any]:
        fsm, tag, fields = msgpack.unpackb(payload)
        message: Message[Any] = message_codec(KINDS[fsm, tag]).unpack(fields)
        return message

    def encode_answer(self, message: Message[Any], value: Any) -> bytes:
        packed: bytes = msgpack.packb(value)
        return packed

    def add_listener(self, listener: ReplicaListener) -> None:
        self._listeners.append(listener)

    def remove_listener(self, listener: ReplicaListener) -> None:
        self._listeners.remove(listener)

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        if method == "members":
            return [{"peer_id": "A", "addresses": []}]
        return {"method": method, **arguments}

    def install_snapshot(self, change: Callable[[list[Outcome]], object]) -> None:
        """The state jumps ahead, as a snapshot makes it: whatever ``change`` answers is stored, and told to nobody."""
        change([])
        self.applied_index += 10
        for listener in list(self._listeners):
            listener.applied(self.applied_index, (), ())

    def lose_leader(self) -> None:
        self.leader = None
        for listener in self._listeners:
            listener.leader_changed(None)

    def find_leader(self) -> None:
        self.leader = LeaderInfo("A", ())
        for listener in self._listeners:
            listener.leader_changed(self.leader)


class BreakingDialer:
    """Links that break at the ``break_at``-th message of both directions together; that message is lost."""

    has_choice = False

    def __init__(self, service: CommandService, break_at: int | None = None) -> None:
        self.service, self.break_at, self.passed = service, break_at, 0
        self.is_down = False
        self.links: list[_BreakingLink] = []

    async def dial(self, user: LinkUser, leader: LeaderIs | None, nursery: trio.Nursery) -> Link:
        if self.is_down:
            raise LinkFailed("down")
        link = _BreakingLink(self, user, nursery)
        self.links.append(link)
        return link

    def breaks_now(self) -> bool:
        self.passed += 1
        return self.passed - 1 == self.break_at

    def cut(self) -> None:
        self.links[-1].cut()


class _BreakingLink:
    peer_id, is_local = "A", False

    def __init__(self, dialer: BreakingDialer, user: LinkUser, nursery: trio.Nursery) -> None:
        self._dialer, self._user, self._nursery = dialer, user, nursery
        self._is_broken = False
        self._inner = dialer.service.connect_local(self)

    def send(self, message: ToReplica) -> None:
        if self._is_broken:
            return
        if self._dialer.breaks_now():
            self.cut()
        else:
            self._inner.send(message)

    def received(self, message: ToClient) -> None:
        if self._is_broken:
            return
        if self._dialer.breaks_now():
            self.cut()
        else:
            self._user.received(message)

    def link_closed(self, reason: str) -> None:
        if not self._is_broken:
            self._user.link_closed(reason)

    def close(self) -> None:
        self._is_broken = True
        self._inner.close()

    def cut(self) -> None:
        self.close()
        self._nursery.start_soon(self._tell)

    async def _tell(self) -> None:
        self._user.link_closed("broken")
