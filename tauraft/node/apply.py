"""What committed entries mean: the deterministic heart that every replica runs alike.

In:  entries, in order, each exactly once (``apply``); queries between them (``answer``).
Out: for each entry the outcomes of sessions' commands and what happened to sessions; the changed rows by revision.

Invariants.  Nothing here reads a clock, a file, the network or an unseeded random number: the same entries give the same
state, byte by byte.  A command runs in a scope of the tables: ``Refused`` and bugs of a plugin undo it on every replica
alike; what cannot be alike on every replica (memory, stack depth, I/O, interrupts) stops this one (SAFETY 13).
Exactly once: a command runs only if its session holds no answer and no ticket for its sequence, and the sequence is
not below the floor; its answer is written after the scope closed (SAFETY 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Any, Literal, TypeVar

import msgpack

from tauraft import errors
from tauraft.codec import INT_MAX, CodecError, compile_codec
from tauraft.command_protocol import TRY_NS
from tauraft.core.messages import Entry, Membership, SnapshotMeta
from tauraft.errors import InvalidCommand, PluginMissing, Refused, SessionLost
from tauraft.fsm import FSM, Command, Message, PastTable, Query, Table, Ticket
from tauraft.node.batch import Batch, decode_batch
from tauraft.node.change_log import ChangeLog, RevisionChanges
from tauraft.node.divergence import Checkpoints
from tauraft.node.replica import AnswerKind, Outcome, SessionEvent, StoredState
from tauraft.plugin_manager import Registry
from tauraft.storage.snapshot_store import SnapshotCorrupt
from tauraft.system.messages import (
    MESSAGES,
    SYSTEM,
    Activate,
    Announce,
    Barrier,
    Close,
    ExpireSession,
    KeepAlive,
    Open,
    SetWall,
    Tick,
    Transaction,
    Withdraw,
)
from tauraft.system.sessions import (
    MAX_OUTSTANDING,
    OpenTicket,
    Session,
    Sessions,
    StoredAnswer,
    payload_hash,
)
from tauraft.system.tables import ActiveVersion, ReplicaRow, System, WallStep
from tauraft.system.timers import MAX_FIRED_PER_ENTRY, TIMER_TABLES, Timers
from tauraft.tables import DIGEST_BITS, Change, LoadedRows, TableSet, load_rows

R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")
F = TypeVar("F", bound=FSM)
SNAPSHOT_FORMAT = 1
_ACTIVATES = Activate.tag.encode()  # in the payload of such a command, and in hardly any other
SESSIONS = "tauraft.system/sessions"  # where the sessions' blobs stand among the rows of a snapshot
MAX_PARTS = 10_000  # of one command, all levels together
MAX_PART_DEPTH = 8
MAX_WALL_STEPS = 100  # kept for people to see

# Stop the replica: whether these happen depends on this process alone (SAFETY 13).
_STOPS = (MemoryError, RecursionError, OSError)


class _Context:
    """The one ``Context`` handlers see; refilled for each command."""

    __slots__ = ("_machine", "_random", "fsm", "index", "message", "now_ns", "proposer", "revision", "sequence",
                 "session", "wall_ns")  # fmt: skip

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._random: Random | None = None
        self.revision = self.index = self.now_ns = self.wall_ns = 0
        self.session: int | None = None
        self.sequence = 0
        self.proposer = ""
        self.fsm = ""
        self.message: Message[Any] | None = None

    def enter(self, fsm: str, session: int | None, sequence: int, revision: int, message: Message[Any] | None) -> None:
        self.fsm, self.session, self.sequence, self.revision, self.message = fsm, session, sequence, revision, message
        self._random = None

    @property
    def random(self) -> Random:
        if self._random is None:
            self._random = Random(self.revision)
        return self._random

    def new_revision(self) -> int:
        self._machine.revision += 1
        return self._machine.revision

    def wait(self, kind: type[Command[R]]) -> Ticket[R]:
        if self.message is None or type(self.message) is not kind:
            raise TypeError(f"context.wait({kind.__name__}) while another command is handled")
        if self.session is None:
            raise TypeError("a command run by a timer has no caller that could wait")
        return Ticket(self.session, self.sequence, self.revision)

    def answer(self, ticket: Ticket[R], value: R | Refused) -> None:
        # Encoded here, in the handler's frame: an answer of a wrong type is a bug of this command, undone with it.
        self._machine.take_effect(ticket, value)

    def schedule(
        self, key: str, at_ns: int, command: Command[Any], *, clock: Literal["cluster", "wall"] = "cluster"
    ) -> None:
        payload = self._machine.registry.encode(command)
        # In the plugin's own scope, so that its timers are undone with it; but the table is the system's.
        self._in_timers(lambda: self._machine.timers.schedule(self.fsm, key, at_ns, payload, clock == "wall"))

    def cancel(self, key: str) -> None:
        self._in_timers(lambda: self._machine.timers.cancel(self.fsm, key))

    def _in_timers(self, act: Callable[[], object]) -> None:
        tables = self._machine.tables
        writer, tables.writer = tables.writer, SYSTEM
        try:
            act()
        finally:
            tables.writer = writer

    def read(self, fsm: type[F]) -> F:
        return self._machine.read_for(self.fsm, fsm)

    def run(self, part: bytes) -> bytes:
        if self.message is None:
            raise TypeError("parts are run by the handlers of commands")
        kept = self.fsm, self.message, self._random
        tables = self._machine.tables
        try:
            return self._machine.run_part(part, self.session, self.sequence)
        finally:
            self.fsm, self.message, self._random = kept
            tables.writer = self.fsm


class _QueryContext:
    """The ``QueryContext`` of one query."""

    __slots__ = ("_fsm", "_machine")

    def __init__(self, machine: Machine, fsm: str) -> None:
        self._machine = machine
        self._fsm = fsm

    @property
    def revision(self) -> int:
        return self._machine.revision

    @property
    def now_ns(self) -> int:
        return self._machine.now_ns

    @property
    def wall_ns(self) -> int:
        return self._machine.wall_ns

    def read(self, fsm: type[F]) -> F:
        return self._machine.read_for(self._fsm, fsm)

    def at(self, table: Table[K, V], revision: int) -> PastTable[K, V]:
        if self._machine.tables.in_scope:
            raise InvalidCommand("a query inside a transaction cannot ask for the past")
        return self._machine.change_log.at(table, revision)


class Machine:
    """The replicated state of one namespace, and how entries change it."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.tables = TableSet()
        self.sessions = Sessions()
        self.system = System()
        self._add_tables(self.system)
        self.timers = Timers(self.system)
        self.membership = Membership()
        self.applied_index = 0
        self.applied_term = 0
        self.revision = 0
        self.now_ns = 0
        self.wall_ns = 0
        self.user_commands = 0  # of plugins' commands executed: 0 is "pristine" (SAFETY 9)
        self._fsms: dict[str, FSM] = {}
        self._context = _Context(self)
        self._effects: list[tuple[Ticket[Any], AnswerKind, bytes]] = []
        self._outcomes: list[Outcome] = []
        self._events: list[SessionEvent] = []
        self._changes: list[RevisionChanges] = []
        self._handlers: dict[type[Message[Any]], tuple[FSM, Callable[..., Any]]] = {}
        self.checkpoints = Checkpoints()
        self._deadlines: tuple[int | None, int | None] = (None, None)
        self._deadlines_of = -1  # the index after which they are so
        self._last_batch: tuple[Entry | None, Batch] = (None, Batch(0, 0, "", ()))
        self.generation = 0  # changes when a snapshot replaces everything
        self.change_log = ChangeLog(self.tables)
        self.on_changes: list[
            Callable[[Sequence[RevisionChanges]], object]
        ] = []  # called after each entry that changed rows
        self._parts = self._depth = 0
        self._is_reshaped = False  # an FSM was upgraded in this entry: rows before it have another shape
        self.applied_bytes = 0  # of all entries so far: a measure of what their changes hold
        for message in MESSAGES:
            registry.add_message(message)

    # What the driver and the replica ask.

    def next_deadline_ns(self) -> int | None:
        return self.timers.next_deadline_ns()

    def next_wall_deadline_ns(self) -> int | None:
        return self.timers.next_wall_deadline_ns()

    def next_deadlines_ns(self) -> tuple[int | None, int | None]:
        """Both. Timers change with what is applied, and this is asked several times in between."""
        if self._deadlines_of != self.applied_index:
            self._deadlines_of = self.applied_index
            self._deadlines = self.timers.next_deadline_ns(), self.timers.next_wall_deadline_ns()
        return self._deadlines

    def has_backlog(self, now_ns: int, wall_ns: int) -> bool:
        return self.timers.has_backlog(now_ns, wall_ns)

    def stored(self, session_id: int, sequence: int) -> Outcome | StoredState:
        session = self.sessions.get(session_id)
        if session is None:
            raise SessionLost(_NO_SESSION)
        answer = session.answers.get(sequence)
        if answer is not None:
            return Outcome(session_id, sequence, answer.kind, answer.data)
        if sequence in session.tickets:
            return StoredState.WAITING
        return StoredState.BELOW_FLOOR if sequence < session.floor else StoredState.UNKNOWN

    def active_fsms(self) -> list[FSM]:
        """Of plugins, in the order they were activated in."""
        return list(self._fsms.values())

    def answer(self, query: Query[Any]) -> Any:
        fsm = self._fsms.get(query.fsm)
        handler = None if fsm is None else fsm.query_handler(type(query))
        if fsm is None or handler is None:
            raise InvalidCommand(f"nobody answers {query.fsm}/{query.tag} on this cluster")
        return handler(fsm, query, _QueryContext(self, query.fsm))

    def read_for(self, reader: str, fsm: type[F]) -> F:
        if fsm not in type(self._fsms[reader]).reads:
            raise TypeError(f"{reader} reads {fsm.__name__} without naming it in reads=")
        found = self._fsms.get(fsm.fsm_name)
        if not isinstance(found, fsm):
            raise Refused("not-active", f"{fsm.fsm_name} is not active on this cluster")
        return found

    # Entries.

    def skip(self, index: int, term: int) -> None:
        """A NOOP or CONFIG entry: no revision, but it was applied."""
        self.applied_index, self.applied_term = index, term

    def batch_of(self, entry: Entry) -> Batch:
        """Its content. What was written last is most often what is applied next: it is not decoded twice."""
        known, batch = self._last_batch
        if known is not entry:
            batch = decode_batch(entry.data)
            self._last_batch = entry, batch
        return batch

    def apply(
        self, entry: Entry, decoded: Sequence[Message[Any] | None] | None = None
    ) -> tuple[Sequence[Outcome], Sequence[SessionEvent]]:
        """Run one BATCH entry. ``decoded``: its messages, where the leader has them at hand.

        Raises ``PluginMissing`` before anything of it took effect: this replica stops before the entry (SAFETY 27).
        """
        batch = self.batch_of(entry)
        for session, _, _, _, payload in batch.items:
            if not session and _ACTIVATES in payload:
                self._must_have_plugin(payload)
        self.now_ns = max(self.now_ns, batch.now_ns)
        self.wall_ns = max(self.wall_ns, batch.wall_ns)
        context = self._context
        context.index, context.now_ns, context.wall_ns = entry.index, self.now_ns, self.wall_ns
        context.proposer = batch.proposer
        self._outcomes, self._events, self._changes = [], [], []
        self._fire_timers()
        for place, (session, sequence, acked_below, wait_ns, payload) in enumerate(batch.items):
            message = decoded[place] if decoded is not None else None
            if session:
                self._run_of_session(session, sequence, acked_below, wait_ns, payload, message)
            else:
                self._run_of_system(message or self.registry.decode(payload))
        self.applied_index, self.applied_term = entry.index, entry.term
        self.applied_bytes += len(entry.data)
        change_log = self.change_log
        change_log.revision, change_log.now_ns = self.revision, self.now_ns
        if self._is_reshaped:
            self._is_reshaped = False
            change_log.restart(self.revision, self.now_ns)
        elif self._changes:
            change_log.record(self._changes)
        if self.checkpoints.is_due(self.now_ns, sum(len(frame.changes) for frame in self._changes)):
            self.checkpoints.add(entry.index, self._fingerprint())
        if self._changes:
            for listener in self.on_changes:
                listener(self._changes)
        return self._outcomes, self._events

    @property
    def only_renewed(self) -> bool:
        """The last entry answered nobody, and changed nothing but until when sessions last, and when that is looked at."""
        return (
            not self._outcomes
            and all(event.kind == "renewed" for event in self._events)
            and all(table in TIMER_TABLES for frame in self._changes for table, *_ in frame.changes)
        )

    def _fingerprint(self) -> bytes:
        """A digest of all that must be equal on every replica at this index (SAFETY 28)."""
        counted = [self.revision, self.now_ns, self.wall_ns, self.timers.order, self.user_commands,
                   self.checkpoints.answers]  # fmt: skip
        hasher = blake2b(msgpack.packb(counted), digest_size=16)
        hasher.update(self.tables.digest().to_bytes(DIGEST_BITS // 8, "big"))
        return hasher.digest()

    def _run_of_session(
        self, session_id: int, sequence: int, acked_below: int, wait_ns: int, payload: bytes,
        message: Message[Any] | None,
    ) -> None:  # fmt: skip
        session = self.sessions.to_change(session_id)
        if session is None:
            lost = errors.encode(SessionLost(_NO_SESSION))
            self._outcomes.append(Outcome(session_id, sequence, AnswerKind.ERROR, lost))
            return
        session.acknowledge(acked_below)
        if sequence < session.floor:
            return  # acknowledged or given up: nobody waits, and it must not run (SAFETY 5)
        hash_ = payload_hash(payload)
        known = session.answers.get(sequence) or session.tickets.get(sequence)
        if known is not None:
            if known.hash != hash_ and known.hash:
                refused = InvalidCommand(f"sequence {sequence} was used for another command")
                self._outcomes.append(Outcome(session_id, sequence, AnswerKind.ERROR, errors.encode(refused)))
            elif isinstance(known, StoredAnswer):
                self._outcomes.append(Outcome(session_id, sequence, known.kind, known.data))
            return
        outstanding = len(session.answers) + len(session.tickets)
        if outstanding >= 2 * MAX_OUTSTANDING:
            # Each refusal below is itself kept: who goes on all the same gets no more of them.
            self._end(session_id)
            lost = errors.encode(SessionLost(_NO_SESSION))
            self._outcomes.append(Outcome(session_id, sequence, AnswerKind.ERROR, lost))
            return
        if outstanding >= MAX_OUTSTANDING:
            too_many = Refused("too-many-outstanding", f"the session has {MAX_OUTSTANDING} unacknowledged commands")
            self._store(session, sequence, AnswerKind.ERROR, errors.encode(too_many), hash_, None)
            return
        inactive = self._why_inactive(payload)
        if inactive is not None:
            self._store(session, sequence, AnswerKind.ERROR, errors.encode(inactive), hash_, None)
            return
        if message is None:
            message = self.registry.decode(payload)
        kind, data, undo = self._execute(message, session_id, sequence)
        if kind is None:
            # The revision that its Ticket has; the handler may have asked for more of them since.
            session.tickets[sequence] = OpenTicket(payload, hash_, self._context.revision)
            withdraw = Withdraw(session_id, sequence, 0, True)
            if wait_ns == TRY_NS:
                self._deliver_effects()
                self._run_of_system(withdraw)
            elif wait_ns:
                self._in_own_scope(
                    lambda: self.timers.schedule(
                        SYSTEM, _patience_key(session_id, sequence), min(self.now_ns + wait_ns, INT_MAX),
                        self.registry.encode(withdraw), False,
                    )
                )  # fmt: skip
        else:
            self._store(session, sequence, kind, data, hash_, payload if undo else None)
        self._deliver_effects()

    def _why_inactive(self, payload: bytes) -> InvalidCommand | None:
        """Decided by the manifest alone, so that a replica without the plugin answers as one that has it."""
        fsm, tag, *_ = msgpack.unpackb(payload, strict_map_key=True)
        if fsm == SYSTEM or fsm in self._fsms:
            return None
        return InvalidCommand(f"{fsm}/{tag}: no such plugin is active on this cluster; nothing changed")

    def _execute(
        self, message: Message[Any], session_id: int | None, sequence: int
    ) -> tuple[AnswerKind | None, bytes, bool]:
        """Run one command of a session in its scope: (None: it waits | kind, encoded answer, may be withdrawn)."""
        tables = self.tables
        tables.begin()
        started_with, first = len(self._effects), self.revision + 1
        self._parts = self._depth = 0
        try:
            if type(message) is Transaction:
                value: Any = tuple(self.run_part(part, session_id, sequence) for part in message.commands)
                data, undo = _BYTES_TUPLE.encode(value), False
            else:
                value, fsm = self._call(message, session_id, sequence)
                undo = fsm is not None and fsm.withdraw_handler(type(message)) is not None
                if isinstance(value, Ticket):
                    own = self._own_answer(value, session_id, sequence, started_with)
                    self._finish_scope(first, session_id)
                    return (None, b"", True) if own is None else (*own, undo)
                data = self.registry.encode_answer(message, value)
        except Refused as refused:
            tables.rollback()
            del self._effects[started_with:]
            return AnswerKind.ERROR, errors.encode(refused), False
        except _STOPS:
            raise
        except Exception as bug:  # the plugin's: undone on every replica alike
            tables.rollback()
            del self._effects[started_with:]
            failed = errors.CommandFailed(
                f"{message.fsm}/{message.tag} failed with {type(bug).__name__}: a bug in the plugin's handler; "
                "nothing changed"
            )
            return AnswerKind.ERROR, errors.encode(failed), False
        self._finish_scope(first, session_id)
        return AnswerKind.VALUE, data, undo

    def _own_answer(
        self, ticket: Ticket[Any], session_id: int | None, sequence: int, started_with: int
    ) -> tuple[AnswerKind, bytes] | None:
        """A handler may answer the ticket it has just taken: then its command does not wait."""
        if (ticket.session, ticket.sequence) != (session_id, sequence):
            raise TypeError("a handler returned another caller's ticket")
        for place in range(started_with, len(self._effects)):
            answered, kind, data = self._effects[place]
            if answered.session == session_id and answered.sequence == sequence:
                del self._effects[place]
                return kind, data
        return None

    def run_part(self, payload: bytes, session_id: int | None, sequence: int) -> bytes:
        """One command or query of a transaction, in a scope of its own: refused, it leaves nothing behind (decision 0007)."""
        if self._depth >= MAX_PART_DEPTH or self._parts >= MAX_PARTS:
            raise InvalidCommand(
                f"a command runs at most {MAX_PARTS} parts, nested {MAX_PART_DEPTH} deep; nothing changed"
            )
        inactive = self._why_inactive(payload)
        if inactive is not None:
            raise inactive
        message = self.registry.decode(payload)
        if isinstance(message, Query):
            return self.registry.encode_answer(message, self.answer(message))
        if self._withdraw_handler(message) is not None:
            # Also where it would be granted at once: nothing could take that grant back from a caller who never learns of it.
            raise InvalidCommand(f"{message.tag} may wait: that is not possible in a transaction; nothing changed")
        started_with = len(self._effects)
        self._parts += 1
        self._depth += 1
        self.tables.begin()
        try:
            value, _ = self._call(message, session_id, sequence)
            if isinstance(value, Ticket):
                raise InvalidCommand(
                    f"{message.tag} would wait: that is not possible in a transaction; nothing changed"
                )
            answer = self.registry.encode_answer(message, value)
        except BaseException:
            self.tables.rollback()
            del self._effects[started_with:]
            raise
        finally:
            self._depth -= 1
        self.tables.commit()
        return answer

    def _call(self, message: Message[Any], session_id: int | None, sequence: int) -> tuple[Any, FSM | None]:
        self.revision += 1
        if type(message) is Barrier:
            return self.revision, None
        found = self._handlers.get(type(message))
        if found is None:
            fsm = self._fsms.get(message.fsm)
            handler = None if fsm is None else fsm.command_handler(type(message))
            if fsm is None or handler is None:
                raise InvalidCommand(f"nobody runs {message.fsm}/{message.tag} on this cluster: is its plugin active?")
            found = self._handlers[type(message)] = (fsm, handler)
        fsm, handler = found
        self._context.enter(message.fsm, session_id, sequence, self.revision, message)
        self.user_commands += 1
        self.tables.writer = message.fsm
        return handler(fsm, message, self._context), fsm

    def _finish_scope(self, first: int = 0, session: int | None = None) -> None:
        """``first``: the first revision of what ran in it, where that is not the last one too."""
        changes = self.tables.commit()
        if changes:
            revision = self.revision
            self._changes.append(
                RevisionChanges(revision, self.now_ns, self.wall_ns, changes, session, first or revision)
            )

    def _in_own_scope(self, act: Callable[[], object]) -> None:
        self.tables.begin()
        self.tables.writer = SYSTEM
        act()
        self._finish_scope()

    def _store(
        self, session: Session, sequence: int, kind: AnswerKind, data: bytes, hash_: bytes, undo: bytes | None
    ) -> None:
        session.answers[sequence] = StoredAnswer(kind, data, hash_, self.revision, undo)
        self.checkpoints.answered(data)
        self._outcomes.append(Outcome(session.id, sequence, kind, data))

    def take_effect(self, ticket: Ticket[Any], value: Any) -> None:
        """A handler answers a ticket. Raises ``TypeError`` for a value that is no answer to its command."""
        context = self._context
        if (ticket.session, ticket.sequence) == (context.session, context.sequence):
            message = context.message
        else:
            session = self.sessions.get(ticket.session)
            opened = None if session is None else session.tickets.get(ticket.sequence)
            message = None if opened is None else self.registry.decode(opened.payload)
        if message is None:
            return  # withdrawn or ended meanwhile: its plugin was told then
        if isinstance(value, Refused):
            self._effects.append((ticket, AnswerKind.ERROR, errors.encode(value)))
        else:
            self._effects.append((ticket, AnswerKind.VALUE, self.registry.encode_answer(message, value)))

    def _deliver_effects(self) -> None:
        """Answers that handlers gave to tickets: stored in their sessions, pushed to whoever serves them (SAFETY 3)."""
        while self._effects:
            ticket, kind, data = self._effects.pop(0)
            session = self.sessions.to_change(ticket.session)
            opened = None if session is None else session.tickets.pop(ticket.sequence, None)
            if session is None or opened is None:
                continue  # answered twice by one command: the first counts
            message = self.registry.decode(opened.payload)
            self._in_own_scope(
                lambda at=ticket: self.timers.cancel(SYSTEM, _patience_key(at.session, at.sequence))  # type: ignore[misc]
            )
            undo = self._withdraw_handler(message) is not None
            self._store(session, ticket.sequence, kind, data, opened.hash, opened.payload if undo else None)

    def _withdraw_handler(self, message: Message[Any]) -> Callable[..., None] | None:
        fsm = self._fsms.get(message.fsm)
        return None if fsm is None else fsm.withdraw_handler(type(message))

    # Timers.

    def _fire_timers(self) -> None:
        for _ in range(MAX_FIRED_PER_ENTRY):
            self.tables.begin()
            self.tables.writer = SYSTEM
            found = self.timers.take_due(self.now_ns, self.wall_ns)
            self.tables.commit()
            if found is None:
                return
            message = self.registry.decode(found[1].payload)
            if message.fsm == SYSTEM:
                self._run_of_system(message)
            else:
                self._execute(message, None, 0)
                self._deliver_effects()

    # Commands of the system.

    def _run_of_system(self, message: Message[Any]) -> None:
        match message:
            case Open():
                self._open(message)
            case KeepAlive():
                for session_id, serial in message.sessions:
                    session = self.sessions.to_change(session_id)
                    if session is not None and session.expires_ns <= self.now_ns:
                        # Its timer stands behind others that are due: the deadline has passed all the same (SAFETY 16).
                        self._end(session_id)
                    elif session is not None:
                        session.expires_ns = min(self.now_ns + session.ttl_ns, INT_MAX)
                        self._events.append(SessionEvent("renewed", session_id, serial=serial))
                    else:
                        self._events.append(SessionEvent("ended", session_id))
            case Close():
                self._end(message.session)
            case ExpireSession():
                session = self.sessions.get(message.session)
                if session is not None and session.expires_ns <= self.now_ns:
                    self._end(session.id)
                elif session is not None:
                    self._watch_expiry(session)
            case Withdraw():
                self._withdraw(message)
            case Activate():
                self._activate(message)
            case Announce():
                row = ReplicaRow(
                    message.incarnation, message.addresses, message.host, message.machine_id, message.disk,
                    message.supported,
                )  # fmt: skip
                self.revision += 1
                self._in_own_scope(lambda: self.system.replicas.__setitem__(message.peer_id, row))
                self._events.append(SessionEvent("announced", 0))
            case Tick():
                pass
            case SetWall():
                self._set_wall(message.wall_ns)
            case _:
                raise InvalidCommand(f"{message.tag} is not a command of the system")

    def _set_wall(self, wall_ns: int) -> None:
        if wall_ns >= self.wall_ns:
            return  # said twice: the first has done it
        self.revision += 1
        step = WallStep(self.now_ns, self.wall_ns, wall_ns, self._context.proposer)
        self.wall_ns = self._context.wall_ns = wall_ns

        def note() -> None:
            steps = self.system.wall_steps
            steps[self.revision] = step
            if len(steps) > MAX_WALL_STEPS:
                del steps[next(iter(steps))]
            self.timers.wall_was_set_back(wall_ns)

        self._in_own_scope(note)

    def _open(self, command: Open) -> None:
        session = self.sessions.opened_by(command.nonce)
        if session is None:
            self.revision += 1
            session = Session(
                self.revision, command.nonce, command.secret_hash, command.ttl_ns,
                min(self.now_ns + command.ttl_ns, INT_MAX),
                command.peer_id, command.host, command.pid, command.label,
            )  # fmt: skip
            self.sessions.add(session)
            self._watch_expiry(session)
        self._events.append(SessionEvent("opened", session.id, command.nonce))

    def _watch_expiry(self, session: Session) -> None:
        payload = self.registry.encode(ExpireSession(session.id))
        self._in_own_scope(
            lambda: self.timers.schedule(SYSTEM, f"session/{session.id}", session.expires_ns, payload, False)
        )

    def _end(self, session_id: int) -> None:
        """All it waited for is withdrawn, all it held is given back, in one revision."""
        session = self.sessions.to_change(session_id)
        if session is None:
            self._events.append(SessionEvent("ended", session_id))
            return
        self.revision += 1
        first, changed_before = self.revision, len(self._changes)
        pending: dict[str, list[tuple[int, bytes, int]]] = {}
        unlearned = [(s, a.undo, a.revision) for s, a in session.answers.items() if a.undo is not None]
        for wait in sorted([(s, t.payload, t.revision) for s, t in session.tickets.items()] + unlearned):
            pending.setdefault(self.registry.decode(wait[1]).fsm, []).append(wait)
        patience = [_patience_key(session_id, sequence) for sequence in session.tickets]
        self.sessions.remove(session_id)
        self._in_own_scope(lambda: [self.timers.cancel(SYSTEM, key) for key in [f"session/{session_id}", *patience]])
        for name in sorted(self.system.manifest, key=lambda name: (self._fsms[name].teardown, name)):
            fsm = self._fsms[name]
            for sequence, payload, revision in pending.get(name, ()):
                self._undo_grant(session_id, sequence, payload, revision, has_ended=True)
            for handler in fsm.session_ended_handlers():
                self._guarded(name, None, 0, lambda run=handler, on=fsm: run(on, session_id, self._context))  # type: ignore[misc]
        self._join_changes(changed_before, first)
        self._events.append(SessionEvent("ended", session_id))

    def _join_changes(self, start: int, first: int) -> None:
        """What several scopes changed becomes one frame: whoever watches sees a session's end as one revision."""
        scopes = self._changes[start:]
        if len(scopes) < 2:
            return
        joined: dict[tuple[str, Any], tuple[Any, Any]] = {}
        for scope in scopes:
            for name, key, old, new in scope.changes:
                before = joined.get((name, key))
                joined[name, key] = (old if before is None else before[0], new)
        changes: list[Change] = [(name, key, old, new) for (name, key), (old, new) in joined.items() if old is not new]
        self._changes[start:] = [RevisionChanges(self.revision, self.now_ns, self.wall_ns, changes, None, first)]

    def _withdraw(self, command: Withdraw) -> None:
        session = self.sessions.to_change(command.session)
        if session is None:
            lost = errors.encode(SessionLost(_NO_SESSION))
            self._outcomes.append(Outcome(command.session, command.sequence, AnswerKind.ERROR, lost))
            return
        session.acknowledge(command.acked_below)
        sequence = command.sequence
        if sequence < session.floor:
            return
        ticket = session.tickets.pop(sequence, None)
        stored = session.answers.get(sequence)
        if ticket is None and command.only_waiting:
            return
        self.revision += 1
        if ticket is not None:
            self._in_own_scope(lambda: self.timers.cancel(SYSTEM, _patience_key(session.id, sequence)))
            self._undo_grant(session.id, sequence, ticket.payload, ticket.revision)
        elif stored is not None:
            if stored.undo is None:
                # Nothing to undo: an error, an answer without a withdrawal, or withdrawn before. It stands.
                kind = AnswerKind.STANDS if stored.kind is AnswerKind.VALUE else stored.kind
                self._outcomes.append(Outcome(session.id, sequence, kind, stored.data))
                return
            self._undo_grant(session.id, sequence, stored.undo, stored.revision)
        hash_ = ticket.hash if ticket is not None else stored.hash if stored is not None else b""
        self._store(session, sequence, AnswerKind.WITHDRAWN, b"", hash_, None)

    def _undo_grant(
        self, session_id: int, sequence: int, payload: bytes | None, revision: int, *, has_ended: bool = False
    ) -> None:
        assert payload is not None
        message = self.registry.decode(payload)
        handler = self._withdraw_handler(message)
        if handler is not None:
            ticket: Ticket[Any] = Ticket(session_id, sequence, revision)
            fsm = self._fsms[message.fsm]
            caller = None if has_ended else session_id
            self._guarded(message.fsm, caller, sequence, lambda: handler(fsm, message, ticket, self._context))

    def _guarded(self, fsm: str, session: int | None, sequence: int, run: Callable[[], object]) -> None:
        """A plugin's reaction to what cannot be refused: a bug in it is undone and leaves the cluster going."""
        self.tables.begin()
        self.tables.writer = fsm
        self._context.enter(fsm, session, sequence, self.revision, None)
        started_with = len(self._effects)
        try:
            run()
        except _STOPS:
            raise
        except Exception:
            self.tables.rollback()
            del self._effects[started_with:]
        else:
            self._finish_scope(0, session)
        self._deliver_effects()

    # The manifest.

    def _must_have_plugin(self, payload: bytes) -> None:
        command = self.registry.decode(payload)
        if isinstance(command, Activate):
            active = self.system.manifest.get(command.fsm_name)
            if active is None or active.version < command.version:
                self._must_run(command.fsm_name, command.version, command.digest, command.package)

    def _must_run(self, name: str, version: int, digest: bytes, package: str) -> None:
        if not self.registry.can_run(name, version, digest):
            raise PluginMissing(
                f"this cluster runs {name} version {version}, which this process lacks or has in another form; "
                f"install {package} that brings it and start again",
                package=package,
            )

    def _activate(self, command: Activate) -> None:
        active = self.system.manifest.get(command.fsm_name)
        if active is not None and active.version >= command.version:
            return
        self.revision += 1
        fresh = self.registry.make(command.fsm_name, command.version)
        self.tables.begin()
        self.tables.writer = command.fsm_name
        self._context.enter(command.fsm_name, None, 0, self.revision, None)
        old = self._fsms.get(command.fsm_name)
        if old is not None:
            self._move_rows(old, fresh)
            fresh.upgrade(0 if active is None else active.version, self._context)
        else:
            self._add_tables(fresh)
        self._fsms[command.fsm_name] = fresh
        self._handlers.clear()
        self.tables.writer = SYSTEM
        self.system.manifest[command.fsm_name] = ActiveVersion(command.version, command.digest, command.package)
        self._finish_scope()
        if old is not None:
            self._is_reshaped = True

    def _add_tables(self, fsm: FSM) -> None:
        for table in fsm.tables():
            self.tables.add(table)

    def _move_rows(self, old: FSM, fresh: FSM) -> None:
        """Rows of tables that keep their name go over; fields added at the end with defaults are filled in."""
        kept = {table.name: table for table in old.tables()}
        for table in kept.values():
            self.tables.remove(table)
        for table in fresh.tables():
            self.tables.add(table)
            before = kept.get(table.name)
            if before is not None:
                for key, row in before.rows.items():
                    table[table.key_codec.decode(before.key_codec.encode(key))] = table.row_codec.decode(
                        before.row_codec.encode(row)
                    )

    # Snapshots.

    def freeze(self) -> MachineView:
        """The whole state at this index, copy-on-write. Close it."""
        return MachineView(self)

    def load(self, meta: SnapshotMeta, extra: bytes, rows: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Replace everything by a snapshot. Raises ``PluginMissing``, ``SnapshotCorrupt``, with nothing changed."""
        self.adopt(self.prepare(meta, extra, rows))

    def prepare(self, meta: SnapshotMeta, extra: bytes, rows: Iterable[tuple[str, bytes, bytes]]) -> PreparedState:
        """The state in a snapshot, checked, for ``adopt``. Changes nothing here, so any thread may do it.

        Raises ``PluginMissing``, ``SnapshotCorrupt``.
        """
        try:
            form, revision, now_ns, wall_ns, order, user_commands, digest, active = msgpack.unpackb(extra)
            if form != SNAPSHOT_FORMAT:
                raise ValueError(f"a state of format {form}; this version reads {SNAPSHOT_FORMAT}")
        except (ValueError, TypeError) as error:
            raise SnapshotCorrupt(f"the snapshot's header does not decode: {error}") from error
        for name, version, plugin_digest, package in active:
            self._must_run(name, version, plugin_digest, package)
        fsms = {name: self.registry.make(name, version) for name, version, _, _ in active}
        tables = [table for fsm in fsms.values() for table in fsm.tables()]
        sessions: list[Session] = []

        def of_tables() -> Iterator[tuple[str, bytes, bytes]]:
            for table, key, row in rows:
                if table == SESSIONS:
                    sessions.append(Session.decode(row))
                else:
                    yield table, key, row

        try:
            loaded = load_rows([*self.system.tables(), *tables], of_tables())
        except (KeyError, CodecError) as error:
            raise SnapshotCorrupt(f"a row of the snapshot does not fit: {error}") from error
        if loaded.digest.to_bytes(16, "big") != digest:
            raise SnapshotCorrupt("the rows of the snapshot are not those its digest was taken of")
        return PreparedState(
            meta, fsms, tables, loaded, sessions, revision, now_ns, wall_ns, order, user_commands
        )  # fmt: skip

    def adopt(self, state: PreparedState) -> list[Any]:
        """Replace everything by it: at once, however much it is. Returns what there was, to be taken apart elsewhere."""
        before = self.tables.adopt([*self.system.tables(), *state.tables], state.loaded)
        self._fsms = state.fsms
        self._handlers.clear()
        self.sessions.replace(state.sessions)
        self.revision, self.now_ns, self.wall_ns = state.revision, state.now_ns, state.wall_ns
        self.user_commands, self.timers.order = state.user_commands, state.order
        self.checkpoints.restart(state.now_ns)
        meta = state.meta
        self.applied_index, self.applied_term, self.membership = meta.index, meta.term, meta.membership
        self.generation += 1
        self._deadlines_of = -1
        self.change_log.restart(state.revision, state.now_ns)
        return before


@dataclass(frozen=True, slots=True)
class PreparedState:
    """A snapshot, read and checked."""

    meta: SnapshotMeta
    fsms: dict[str, FSM]
    tables: list[Table[Any, Any]]  # the plugins'
    loaded: LoadedRows
    sessions: list[Session]
    revision: int
    now_ns: int
    wall_ns: int
    order: int
    user_commands: int


class MachineView:
    """The state of one index, to be written as a snapshot while the machine goes on."""

    def __init__(self, machine: Machine) -> None:
        self.index, self.term, self.membership = machine.applied_index, machine.applied_term, machine.membership
        active = [[name, row.version, row.digest, row.package] for name, row in machine.system.manifest.items()]
        digest = machine.tables.digest().to_bytes(16, "big")
        self.extra: bytes = msgpack.packb(
            [SNAPSHOT_FORMAT, machine.revision, machine.now_ns, machine.wall_ns, machine.timers.order,
             machine.user_commands, digest, active]
        )  # fmt: skip
        self.digest = digest
        self._codecs = {table.name: (table.key_codec.encode, table.row_codec.encode) for table in machine.tables}
        self._tables = machine.tables.freeze()
        self._sessions = machine.sessions.freeze()

    def parts(self, max_rows: int) -> Iterator[list[tuple[str, Any, Any]]]:
        """In slices, for the loop: (table, key, row) as the tables have them, then sessions as (SESSIONS, id, blob)."""
        yield from self._tables.rows(max_rows)
        for rows in self._sessions.slices(max_rows):
            yield [(SESSIONS, session_id.to_bytes(8, "big"), blob) for session_id, blob in rows]

    def encode(self, part: Iterable[tuple[str, Any, Any]]) -> list[tuple[str, bytes, bytes]]:
        """Any thread: rows are immutable."""
        return [
            (name, key, row) if name == SESSIONS else (name, self._codecs[name][0](key), self._codecs[name][1](row))
            for name, key, row in part
        ]

    def slices(self, max_rows: int) -> Iterator[list[tuple[str, bytes, bytes]]]:
        """Both in one go."""
        return map(self.encode, self.parts(max_rows))

    def close(self) -> None:
        self._tables.close()
        self._sessions.close()


def _patience_key(session: int, sequence: int) -> str:
    return f"patience/{session}/{sequence}"


_BYTES_TUPLE = compile_codec(tuple[bytes, ...])
_NO_SESSION = (
    "the session is not known to the cluster: it expired or was closed; whether the command took effect is unknown: "
    "look before doing it again"
)
