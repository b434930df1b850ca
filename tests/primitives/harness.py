"""One machine, driven by hand: commands of sessions, and a cluster clock that moves when told. No loop, no network, no log.

replica = Harness(Locks)
alice, bob = replica.open(), replica.open()
first = alice.run(Acquire("x"))      # answered: a Reply that is done
second = bob.run(Acquire("x"))       # waits
alice.run(Release("x", first.value.token))
assert second.value.token > first.value.token
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from tauraft import errors
from tauraft.core.messages import Entry, EntryKind, SnapshotMeta
from tauraft.fsm import FSM, Command, Message, Query
from tauraft.node.apply import Machine
from tauraft.node.batch import encode_batch
from tauraft.node.replica import AnswerKind, Item, Outcome
from tauraft.payloads import decode_answer
from tauraft.plugin_manager import Registry
from tauraft.system.messages import Activate, Close, Open, SetWall, Tick, Withdraw

R = TypeVar("R")
SECOND_NS = 1_000_000_000
WALL_START_NS = 1_700_000_000 * SECOND_NS


class Reply(Generic[R]):
    """What became of one command."""

    def __init__(self, message: Command[R], sequence: int) -> None:
        self.message = message
        self.sequence = sequence
        self.outcome: Outcome | None = None

    @property
    def is_done(self) -> bool:
        return self.outcome is not None

    @property
    def is_withdrawn(self) -> bool:
        return self.outcome is not None and self.outcome.kind is AnswerKind.WITHDRAWN

    @property
    def value(self) -> R:
        """Raises what the command was refused with."""
        assert self.outcome is not None, f"{self.message} waits"
        if self.outcome.kind is AnswerKind.ERROR:
            raise errors.decode(self.outcome.data)
        assert self.outcome.kind in (AnswerKind.VALUE, AnswerKind.STANDS), self.outcome
        found: R = decode_answer(self.message, self.outcome.data)
        return found


class SessionOf:
    """One client's session on the harness."""

    def __init__(self, harness: Harness, number: int) -> None:
        self.id = number
        self._harness = harness
        self._next = 1

    def run(self, command: Command[R], *, wait_s: float = 0) -> Reply[R]:
        """``wait_s``: the log's own patience with a wait, 0 for ever."""
        reply: Reply[R] = Reply(command, self._next)
        self._next += 1
        self._harness.expect(self.id, reply)
        payload = self._harness.registry.encode(command)
        item = Item(self.id, reply.sequence, 0, int(wait_s * SECOND_NS), payload, None)
        self._harness.commit([item])
        return reply

    def withdraw(self, reply: Reply[Any]) -> None:
        """The caller gives up, also on an answer that it never learned."""
        reply.outcome = None
        self._harness.system(Withdraw(self.id, reply.sequence))

    def learn(self) -> None:
        """It has all its answers, and has said so: they are withdrawn no more, not even at its end."""
        self._harness.system(Withdraw(self.id, 0, self._next))

    def end(self) -> None:
        self._harness.system(Close(self.id))


class Harness:
    """A replica of one, with the FSMs given, all active unless told otherwise."""

    def __init__(self, *fsms: type[FSM], activate: bool = True) -> None:
        self.registry = Registry(fsms)
        self.machine = Machine(self.registry)
        self.now_ns = SECOND_NS
        self.wall_ns = WALL_START_NS
        self._waiting: dict[tuple[int, int], Reply[Any]] = {}
        self._opened = 0
        for name, version, digest in self.registry.supported() if activate else ():
            self.system(Activate(name, version, digest))

    def open(self, ttl_s: float = 1e6) -> SessionOf:
        self._opened += 1
        nonce = b"%d" % self._opened
        self.system(Open(nonce, b"", int(ttl_s * SECOND_NS), f"peer-{self._opened}", "host", self._opened, None))
        session = self.machine.sessions.opened_by(nonce)
        assert session is not None
        return SessionOf(self, session.id)

    def query(self, query: Query[R]) -> R:
        found: R = self.machine.answer(query)
        return found

    def fsm(self, kind: type[FSM]) -> Any:
        """The live state machine, to look at its tables."""
        return self.machine._fsms[kind.fsm_name]

    def restore(self) -> None:
        """Go on with a machine that was made from a snapshot of this one."""
        view = self.machine.freeze()
        rows = [row for rows in view.slices(100) for row in rows]
        view.close()
        fresh = Machine(self.registry)
        fresh.load(SnapshotMeta(view.index, view.term, view.membership), view.extra, iter(rows))
        self.machine = fresh

    def advance(self, seconds: float, *, wall_seconds: float | None = None) -> None:
        """Move both clocks; timers due on the way fire in order, as a leader's ticks would have them fire."""
        target = self.now_ns + int(seconds * SECOND_NS)
        wall_target = self.wall_ns + int((seconds if wall_seconds is None else wall_seconds) * SECOND_NS)
        while True:
            due, due_wall = self.machine.next_deadline_ns(), self.machine.next_wall_deadline_ns()
            to_go = min(
                target - self.now_ns if due is None else due - self.now_ns,
                target - self.now_ns if due_wall is None else due_wall - self.wall_ns,
            )
            if to_go >= target - self.now_ns:
                break
            self.now_ns += max(0, to_go)
            self.wall_ns += max(0, to_go)
            self.system(Tick())
        self.now_ns, self.wall_ns = target, max(self.wall_ns, wall_target)
        self.system(Tick())

    def set_wall_back(self, seconds: float) -> None:
        """As a leader does once the voters' clocks were set back; then what is due because of it."""
        self.wall_ns -= int(seconds * SECOND_NS)
        self.system(SetWall(self.wall_ns))
        self.system(Tick())

    def system(self, message: Message[Any]) -> None:
        self.commit([Item(0, 0, 0, 0, self.registry.encode(message), None)])

    def expect(self, session: int, reply: Reply[Any]) -> None:
        self._waiting[session, reply.sequence] = reply

    def commit(self, items: list[Item]) -> None:
        """One entry."""
        machine = self.machine
        data = encode_batch(self.now_ns, self.wall_ns, "leader", items)
        outcomes, _ = machine.apply(Entry(machine.applied_index + 1, 1, EntryKind.BATCH, data))
        for outcome in outcomes:
            reply = self._waiting.get((outcome.session, outcome.sequence))
            if reply is not None:
                reply.outcome = outcome
