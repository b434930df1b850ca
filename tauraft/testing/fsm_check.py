"""``check_fsm``: plays random commands on a state machine and finds what would make replicas differ.

Hypothesis makes sequences of an FSM's own commands from the types of their fields, of several sessions, with waits that
are withdrawn, sessions that end, and time that passes.  Each sequence runs on the real apply engine, and again: on a second replica
from the same bytes, and on replicas restored from a snapshot after every command.  What each rule finds:

    clock, random, io   a handler called what reads a clock, chance or the world; seen by a profile hook, as it happens
    state               something besides the tables remembers: the instance, its class, or the globals of its handlers
    undo                a wait that was withdrawn left its ticket in a row
    determinism         a second replica answered otherwise, or holds other rows
    snapshot            so did one that went on from a snapshot
    hash-order          so did a fresh process with other hashes (PYTHONHASHSEED)

What is not seen: C extensions that read a clock by themselves, and what the random commands never reach.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import random
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Literal, Union

from tauraft.core.messages import Entry, EntryKind, SnapshotMeta
from tauraft.fsm import FSM, Command, Message, Ticket
from tauraft.node.apply import Machine
from tauraft.node.batch import encode_batch
from tauraft.node.replica import AnswerKind, Item
from tauraft.plugin_manager import Registry
from tauraft.system.messages import Activate, Close, Open, Tick, Withdraw

MAX_COMMANDS = 12
SESSIONS = 3
SECOND_NS = 1_000_000_000
WALL_START_NS = 1_700_000_000 * SECOND_NS


class FSMViolation(AssertionError):
    """``rule``: clock, random, io, hash-order, state, undo, snapshot or determinism."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


@dataclasses.dataclass(frozen=True, slots=True)
class Do:
    """``session`` sends ``command``."""

    session: int
    command: Command[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class GiveUp:
    """``session`` withdraws what it sent last."""

    session: int


@dataclasses.dataclass(frozen=True, slots=True)
class Leave:
    session: int


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    seconds: int


Step = Do | GiveUp | Leave | Pass


def check_fsm(fsm: type[FSM], *, examples: int = 100) -> None:
    """Raises ``FSMViolation`` with the shortest commands that show it. Needs ``hypothesis``."""
    try:
        import hypothesis
        from hypothesis import strategies
    except ImportError as missing:
        raise ImportError("check_fsm needs hypothesis: pip install hypothesis") from missing

    if not [kind for kind in fsm.messages() if issubclass(kind, Command)]:
        raise TypeError(f"{fsm.__name__} handles no command: there is nothing to check")
    registry = Registry([fsm])
    played: list[tuple[Step, ...]] = []

    found: list[tuple[FSMViolation, list[Step]]] = []

    def check(steps: list[Step]) -> None:
        played.append(tuple(steps))
        try:
            _check_one(fsm, registry, steps)
        except FSMViolation as violation:
            found.append((violation, steps))
            raise

    # The same commands each time: a check that passed on one machine passes on the next.
    settled = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    try:
        settled(hypothesis.given(strategies.lists(_steps_of(fsm, strategies), max_size=MAX_COMMANDS))(check))()
    except (FSMViolation, hypothesis.errors.Flaky):
        # Flaky: the machine broke its rule one time and not the other, which is what is wrong with it.
        violation, steps = min(found, key=lambda one: len(one[1]))
        raise _shortest(fsm, registry, violation, steps) from None
    from tauraft.testing.hash_order import check_hash_order

    check_hash_order(fsm, played, lambda steps: _play(fsm, registry, steps).entries)


def _shortest(fsm: type[FSM], registry: Registry, violation: FSMViolation, steps: list[Step]) -> FSMViolation:
    """Hypothesis stops now and then one command too early."""
    place = 0
    while place < len(steps):
        shorter = steps[:place] + steps[place + 1 :]
        try:
            _check_one(fsm, registry, shorter)
        except FSMViolation as other:
            if other.rule == violation.rule:
                violation, steps, place = other, shorter, -1
        place += 1
    return violation


# What is played.


def _steps_of(fsm: type[FSM], strategies: Any) -> Any:
    sessions = strategies.integers(0, SESSIONS - 1)
    commands = strategies.one_of([_values_of(kind, strategies) for kind in fsm.messages() if issubclass(kind, Command)])
    return strategies.one_of(
        strategies.builds(Do, sessions, commands),
        strategies.builds(Do, sessions, commands),
        strategies.builds(GiveUp, sessions),
        strategies.builds(Leave, sessions),
        strategies.builds(Pass, strategies.sampled_from((1, 60, 100_000))),
    )


def _values_of(hint: Any, strategies: Any) -> Any:
    """Small values of a type, so that commands meet on the same keys."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is str:
        return strategies.sampled_from(("a", "b", "c", "dd", ""))
    if hint is bool:
        return strategies.booleans()
    if hint is int:
        return strategies.integers(-2, 5) | strategies.sampled_from((1_000, 10**12))
    if hint is float:
        return strategies.sampled_from((0.0, 0.5, 1.0, 30.0))
    if hint is bytes:
        return strategies.sampled_from((b"", b"x", b"yy"))
    if hint is None or hint is type(None):
        return strategies.none()
    if origin in (Union, types.UnionType):
        return strategies.one_of([_values_of(one, strategies) for one in arguments])
    if origin is Literal:
        return strategies.sampled_from(arguments)
    if origin is tuple and arguments[-1:] == (Ellipsis,):
        return strategies.lists(_values_of(arguments[0], strategies), max_size=3).map(tuple)
    if origin is tuple:
        return strategies.tuples(*[_values_of(one, strategies) for one in arguments])
    if origin in (Mapping, dict):
        return strategies.dictionaries(*[_values_of(one, strategies) for one in arguments], max_size=3)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return strategies.sampled_from(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        fields = {one.name: _values_of(hints[one.name], strategies) for one in dataclasses.fields(hint) if one.init}
        # What the class refuses is nothing that a client could send.
        return strategies.fixed_dictionaries(fields).map(lambda given: _made(hint, given)).filter(lambda one: one)
    raise TypeError(f"check_fsm cannot make values of {hint}")


def _made(kind: type[Any], given: dict[str, Any]) -> Any:
    try:
        return kind(**given)
    except (ValueError, TypeError):
        return None


# Playing it.


class _Replica:
    """One machine, fed with entries. ``entries`` are all that it ran; ``answers`` what came of each."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.machine = Machine(registry)
        self.entries: list[bytes] = []
        self.answers: list[str] = []
        self.now_ns = SECOND_NS

    def apply(self, data: bytes) -> None:
        self.entries.append(data)
        index = self.machine.applied_index + 1
        outcomes, events = self.machine.apply(Entry(index, 1, EntryKind.BATCH, data))
        self.answers.append(repr((outcomes, events)))

    def send(self, item: Item) -> None:
        self.apply(encode_batch(self.now_ns, WALL_START_NS + self.now_ns, "leader", [item]))

    def system(self, message: Message[Any]) -> None:
        self.send(Item(0, 0, 0, 0, self.registry.encode(message)))

    def restored(self) -> _Replica:
        view = self.machine.freeze()
        rows = [row for some in view.slices(100) for row in some]
        view.close()
        fresh = _Replica(self.registry)
        fresh.machine.load(SnapshotMeta(view.index, view.term, view.membership), view.extra, iter(rows))
        return fresh

    @property
    def state(self) -> tuple[int, int, int]:
        machine = self.machine
        return machine.applied_index, machine.revision, machine.tables.digest()


class _Sender:
    """The sessions of one run, opened when first used."""

    def __init__(self, replica: _Replica) -> None:
        self._replica = replica
        self._sessions: dict[int, list[int]] = {}  # the id, then the sequences sent
        self._opened = 0

    def take(self, step: Step) -> None:
        replica = self._replica
        match step:
            case Do(place, command):
                sent = self._session(place)
                sent.append(len(sent))
                replica.send(Item(sent[0], sent[-1], 0, 0, replica.registry.encode(command)))
            case GiveUp(place):
                sent = self._sessions.get(place, [0])
                if len(sent) > 1:
                    replica.system(Withdraw(sent[0], sent[-1]))
            case Leave(place):
                left = self._sessions.pop(place, None)
                if left is not None:
                    replica.system(Close(left[0]))
            case Pass(seconds):
                target = replica.now_ns + seconds * SECOND_NS
                for _ in range(20):  # as a leader's ticks, to each deadline; a timer that renews itself has no end
                    due = replica.machine.next_deadline_ns()
                    if due is None or due > target:
                        break
                    replica.now_ns = max(replica.now_ns, due)
                    replica.system(Tick())
                replica.now_ns = target
                replica.system(Tick())

    def _session(self, place: int) -> list[int]:
        if place not in self._sessions:
            self._opened += 1
            nonce = b"%d" % self._opened
            self._replica.system(Open(nonce, b"", 10**15 * 4, f"peer-{place}", "host", place, None))
            session = self._replica.machine.sessions.opened_by(nonce)
            assert session is not None
            self._sessions[place] = [session.id]
        return self._sessions[place]


def _active(registry: Registry) -> _Replica:
    replica = _Replica(registry)
    for name, version, digest in registry.supported():
        replica.system(Activate(name, version, digest))
    return replica


def _play(fsm: type[FSM], registry: Registry, steps: Sequence[Step]) -> _Replica:
    replica = _active(registry)
    sender = _Sender(replica)
    for step in steps:
        sender.take(step)
    return replica


# The rules.


def _check_one(fsm: type[FSM], registry: Registry, steps: Sequence[Step]) -> None:
    replica = _active(registry)
    remembered = _Memories(fsm, replica.machine._fsms[fsm.fsm_name])
    sender = _Sender(replica)
    watch = _Watch()
    restored = replica.restored()
    for step in steps:
        start = len(replica.entries)
        with watch:
            sender.take(step)
        if watch.caught is not None:
            rule, what = watch.caught
            raise FSMViolation(rule, f"a handler called {what}, which differs between replicas.{_story(steps)}")
        changed = remembered.changed()
        if changed:
            raise FSMViolation("state", f"{changed} changed: only tables may remember.{_story(steps)}")
        _check_tickets(replica, steps)
        for data in replica.entries[start:]:
            restored.apply(data)
        if (restored.answers, restored.state) != (replica.answers[start:], replica.state):
            # What differs for every second replica has another name.
            _check_again(registry, replica, steps)
            raise FSMViolation("snapshot", f"a replica restored from a snapshot went on otherwise.{_story(steps)}")
        restored = restored.restored()
    _check_again(registry, replica, steps)


def _check_again(registry: Registry, replica: _Replica, steps: Sequence[Step]) -> None:
    again = _Replica(registry)
    for data in replica.entries:
        again.apply(data)
    if (again.answers, again.state) != (replica.answers, replica.state):
        raise FSMViolation("determinism", f"a second replica ran the same commands otherwise.{_story(steps)}")


def _story(steps: Sequence[Step]) -> str:
    return "".join(f"\n  {step}" for step in steps)


def _check_tickets(replica: _Replica, steps: Sequence[Step]) -> None:
    """Every ticket in a row is of a wait that is still open, or was answered to somebody who is still there."""
    sessions = replica.machine.sessions
    for table in replica.machine.tables:
        for row in (*table.rows.keys(), *table.rows.values()):
            for ticket in _tickets_in(row):
                session = sessions.get(ticket.session)
                answer = None if session is None else session.answers.get(ticket.sequence)
                if session is None or (answer is not None and answer.kind is AnswerKind.WITHDRAWN):
                    raise FSMViolation(
                        "undo", f"a row of {table.name} still holds the ticket of a wait that has ended.{_story(steps)}"
                    )


def _tickets_in(value: Any) -> Iterator[Ticket[Any]]:
    if isinstance(value, Ticket):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tickets_in(part)
    elif dataclasses.is_dataclass(value):
        for one in dataclasses.fields(value):
            yield from _tickets_in(getattr(value, one.name))


class _Memories:
    """What besides tables could remember: attributes of the instance and its class, globals that handlers name."""

    def __init__(self, fsm: type[FSM], instance: FSM) -> None:
        self._places: list[tuple[str, Callable[[], Any]]] = [
            (f"an attribute of {fsm.__name__}", partial(_plain, vars(instance))),
            (f"a class attribute of {fsm.__name__}", partial(_plain, vars(fsm))),
        ]
        for _, handler in sorted(vars(fsm).items()):
            code = getattr(handler, "__code__", None)
            if code is None:
                continue
            for name in sorted({*code.co_names} & {*handler.__globals__}):
                self._places.append((f"the global {name}", partial(_plain, handler.__globals__, only=name)))
        self._before = [read() for _, read in self._places]

    def changed(self) -> str:
        for (what, read), before in zip(self._places, self._before, strict=True):
            if read() != before:
                return what
        return ""


def _plain(values: Mapping[str, Any], only: str = "") -> dict[str, Any]:
    """Copies of those that a handler could change, and a copy be compared with."""
    plain = (bool, int, float, str, bytes, list, dict, set, bytearray, type(None))
    return {
        name: copy.deepcopy(value) if not isinstance(value, (dict, list)) else repr(value)
        for name, value in values.items()
        if isinstance(value, plain) and (not only or name == only) and not name.startswith("__")
    }


class _Forbidden(BaseException):
    """Comes out of the apply engine, as no exception of a plugin would."""


class _Watch:
    """A profile hook: what C functions do handlers call?"""

    def __init__(self) -> None:
        self.caught: tuple[str, str] | None = None
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = sys.getprofile()
        sys.setprofile(self._profile)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        sys.setprofile(self._before if callable(self._before) else None)
        return kind is _Forbidden

    def _profile(self, frame: types.FrameType, event: str, called: Any) -> None:
        if event != "c_call" or self.caught is not None:
            return
        if frame.f_globals.get("__name__", "").startswith("hypothesis"):
            return  # it times the garbage collector, wherever that runs
        rule = _rule_against(called)
        if rule is not None:
            self.caught = (rule, getattr(called, "__qualname__", repr(called)))
            raise _Forbidden


_CLOCKS = frozenset(
    {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time",
     "process_time_ns", "thread_time", "clock_gettime", "clock_gettime_ns", "localtime", "gmtime", "sleep", "ctime"}
)  # fmt: skip
_IO_MODULES = frozenset({"_io", "posix", "nt", "_socket", "_thread", "_posixsubprocess", "select", "fcntl", "_sqlite3"})
_HARMLESS = frozenset({"fspath", "get_ident", "allocate_lock", "RLock"})
_SHARED_RANDOM: Any = vars(random)["_inst"]  # what the module's functions draw from


def _rule_against(called: Any) -> str | None:
    module, name = getattr(called, "__module__", None), getattr(called, "__name__", "")
    owner = getattr(called, "__self__", None)
    if module == "time" and name in _CLOCKS:
        return "clock"
    if name in ("now", "utcnow", "today") and getattr(owner, "__module__", "") == "datetime":
        return "clock"
    if name in ("urandom", "getrandom") or owner is _SHARED_RANDOM or (name == "generate_time_safe" or name == "uuid4"):
        return "random"
    if called in (open, print, input):
        return "io"
    if module in _IO_MODULES and name not in _HARMLESS:
        return "io"
    return None


def fingerprint(registry: Registry, entries: Sequence[bytes]) -> str:
    """What a replica makes of ``entries``: its answers and its rows."""
    replica = _Replica(registry)
    for data in entries:
        replica.apply(data)
    return sha256(repr((replica.answers, replica.state)).encode()).hexdigest()
