"""What the author of a state machine imports.

A *message* is a frozen dataclass that names its FSM: a ``Command`` changes state and is run by every replica in the
log's order, a ``Query`` only looks.  An ``FSM`` declares its tables as annotations and marks its handlers; the tables are
all its state, so snapshots, undo, SQL, history and watches cost the author nothing.

    @dataclass(frozen=True, slots=True)
    class Add(Command[int], fsm="acme.counter"):
        name: str
        amount: int = 1

    class Counter(FSM, name="acme.counter", version=1):
        counts: Table[str, int]

        @applies(Add)
        def add(self, command: Add, context: Context) -> int:
            total = self.counts.get(command.name, 0) + command.amount
            self.counts[command.name] = total
            return total

Rules: no wall clock, no random module, no I/O, no order of hashes, no state outside the tables.  ``raise Refused(code, message)``
is an answer; any other exception is a bug, undone on every replica.  All mistakes in the declaration are a ``TypeError`` when
the class is made.  Light on purpose: importing this pulls in no engine.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, overload

from tauraft.codec import compile_codec, message_codec
from tauraft.errors import Refused
from tauraft.tables import Table

__all__ = [
    "FSM", "Command", "Context", "Message", "PastTable", "Query", "QueryContext", "Table", "TableName", "Ticket",
    "answer_hint", "answers", "applies", "session_ended", "withdraws",
]  # fmt: skip

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
K = TypeVar("K")
V = TypeVar("V")
K_co = TypeVar("K_co", covariant=True)
V_co = TypeVar("V_co", covariant=True)
F = TypeVar("F", bound="FSM")
G = TypeVar("G", bound="FSM")


class Message(Generic[R_co]):
    """What is sent to an FSM. ``R`` is the type of its answer."""

    __slots__ = ()
    fsm: ClassVar[str]  # where it goes: a client needs no FSM class to send it
    tag: ClassVar[str]  # its permanent name on the wire and on disk: survives renaming
    # Fields with the encoded messages that its handler runs (``context.run``): ``tauraft_authorize`` is asked about each.
    encoded_parts: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, fsm: str | None = None, tag: str | None = None) -> None:
        super().__init_subclass__()
        # dataclass(slots=True) builds the class twice, the second time without keywords.
        if fsm is not None:
            cls.fsm, cls.tag = fsm, tag or cls.__name__


class Command(Message[R_co]):
    """Changes state; linearizable, exactly once."""

    __slots__ = ()


class Query(Message[R_co]):
    """Only looks."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket(Generic[R]):
    """A caller who waits for an answer. A codec value, so it may be kept in a table row.

    ``revision``: of the command that waits.
    """

    session: int
    sequence: int
    revision: int


@dataclasses.dataclass(frozen=True, slots=True)
class TableName(Generic[K, V]):
    """A table as those know it who have no FSM class: messages name it so that handles can watch it.

    COUNTS: Final = TableName("acme.counter", "counts", str, int)    # the FSM has counts: Table[str, int]
    """

    fsm: str
    table: str
    key: type[K]
    row: type[V]

    @property
    def full(self) -> str:
        return f"{self.fsm}/{self.table}"


C = TypeVar("C", bound=Command[Any], covariant=True)
Q = TypeVar("Q", bound=Query[Any], covariant=True)
H = TypeVar("H", bound=Callable[..., Any])


class applies(Generic[C]):
    """Marks the handler of a command: ``(self, command, context) -> answer`` or a Ticket."""

    def __init__(self, kind: type[C]) -> None:
        self.kind = kind

    def __call__(
        self: applies[Command[R]], handler: Callable[[F, C, Context], R | Ticket[R]]
    ) -> Callable[[F, C, Context], R | Ticket[R]]:
        return _mark(handler, "applies", self.kind)


class withdraws(Generic[C]):
    """Marks what undoes a wait: ``(self, command, ticket, context) -> None``.

    Called when the caller timed out, was cancelled or lost its session; also when it had been answered but never
    learned it: then give back what the answer granted.  ``context.session`` is None when the session is lost: then nobody
    knows whether the caller had learned it, and used it.
    """

    def __init__(self, kind: type[C]) -> None:
        self.kind = kind

    def __call__(
        self: withdraws[Command[R]], handler: Callable[[F, C, Ticket[R], Context], None]
    ) -> Callable[[F, C, Ticket[R], Context], None]:
        return _mark(handler, "withdraws", self.kind)


class answers(Generic[Q]):
    """Marks the handler of a query: ``(self, query) -> answer``, or ``(self, query, context) -> answer``."""

    def __init__(self, kind: type[Q]) -> None:
        self.kind = kind

    @overload
    def __call__(self: answers[Query[R]], handler: Callable[[F, Q], R]) -> Callable[[F, Q], R]: ...
    @overload
    def __call__(
        self: answers[Query[R]], handler: Callable[[F, Q, QueryContext], R]
    ) -> Callable[[F, Q, QueryContext], R]: ...
    def __call__(self, handler: Any) -> Any:
        return _mark(handler, "answers", self.kind)


def session_ended(handler: Callable[[F, int, Context], None]) -> Callable[[F, int, Context], None]:
    """Marks what gives back all that a session held: ``(self, session, context) -> None``."""
    return _mark(handler, "session_ended", None)


class Context(Protocol):
    """What a handler may know besides its command and its tables."""

    @property
    def revision(self) -> int:
        """+1 per executed command, for ever: tokens, revisions and order come from it."""

    def new_revision(self) -> int:
        """Another one, greater than all before it. For handlers that hand out tokens: one command may grant several
        things, and all that a session held goes to others in *one* revision, but no two grants may share a token."""

    @property
    def index(self) -> int:
        """Of the log entry. Several commands share it."""

    @property
    def now_ns(self) -> int:
        """Cluster time: never jumps, never goes back."""

    @property
    def wall_ns(self) -> int:
        """Cluster wall clock, for calendars only."""

    @property
    def session(self) -> int | None:
        """Who sent the command; None: run by a timer."""

    @property
    def proposer(self) -> str:
        """The peer id of the leader that appended it."""

    @property
    def random(self) -> Random:
        """Seeded by the revision: the same on every replica."""

    def wait(self, kind: type[Command[R]]) -> Ticket[R]:
        """The caller waits; return this from the handler of ``kind``, and keep it in a row."""

    def answer(self, ticket: Ticket[R], value: R | Refused) -> None:
        """Answer a caller who waits; also in the handler that has just taken the ticket. A ``Refused`` is raised there."""

    def schedule(
        self, key: str, at_ns: int, command: Command[Any], *, clock: Literal["cluster", "wall"] = "cluster"
    ) -> None:
        """Run ``command`` at that time, with no session. Replaces this FSM's timer of the same key.

        On the wall clock it may run early: when that clock is set back all its timers run. Look at ``wall_ns``.
        """

    def cancel(self, key: str) -> None:
        """Forget that timer, if there is one."""

    def read(self, fsm: type[G]) -> G:
        """Another FSM of ``reads=``, to look at."""

    def run(self, part: bytes) -> bytes:
        """Run an encoded command or query of any active plugin as part of this command, and return its encoded answer.

        As the same session, undone with this command; ``revision`` is the part's afterwards (docs/decisions/0007). Raises
        what the part is refused with, having undone it alone; ``InvalidCommand`` for one that would wait.
        """


class PastTable(Protocol[K_co, V_co]):
    """The rows of a table as they were at a revision."""

    def get(self, key: Any, /) -> V_co | None: ...

    def range(self, low: Any = None, high: Any = None) -> Iterator[tuple[K_co, V_co]]:
        """(key, row) with low <= key < high, in order; None is no bound."""


class QueryContext(Protocol):
    """What the handler of a query may know besides the query and its tables."""

    @property
    def revision(self) -> int:
        """Of the state it sees."""

    @property
    def now_ns(self) -> int:
        """Cluster time when that state was reached."""

    @property
    def wall_ns(self) -> int:
        """Cluster wall clock then."""

    def read(self, fsm: type[G]) -> G:
        """Another FSM of ``reads=``, to look at."""

    def at(self, table: Table[K, V], revision: int) -> PastTable[K, V]:
        """``table`` as it was at ``revision``. Raises ``Compacted`` where that is not remembered any more, and
        ``InvalidCommand`` for one not reached yet, and inside a transaction."""


def _mark(handler: H, role: str, kind: type[Message[Any]] | None) -> H:
    marks = getattr(handler, "__tauraft__", ())
    setattr(handler, "__tauraft__", (*marks, (role, kind)))  # noqa: B010
    return handler


_ARGUMENTS = {"applies": (3,), "withdraws": (4,), "answers": (2, 3), "session_ended": (3,)}


class FSM:
    """A deterministic state machine. Subclass with ``name=`` and ``version=``; see the module."""

    fsm_name: ClassVar[str] = ""
    version: ClassVar[int] = 0
    reads: ClassVar[tuple[type[FSM], ...]] = ()
    table_hints: ClassVar[dict[str, tuple[Any, Any]]] = {}
    # Short names in SQL: name -> a SELECT on the views of its tables, "SELECT key AS name, token FROM acme_lock_holds".
    sql_views: ClassVar[Mapping[str, str]] = {}
    # Its turn when a session ends, lowest first, then by name: locks 10, claims 20, candidacies 30, barrier places 40,
    # group memberships 50, keys that are attached 90. It decides results: changing it needs a new version.
    teardown: ClassVar[int] = 60
    _handlers: ClassVar[dict[tuple[str, type[Message[Any]]], Callable[..., Any]]] = {}
    _session_ended: ClassVar[tuple[Callable[..., None], ...]] = ()

    def __init_subclass__(cls, *, name: str, version: int = 1, reads: tuple[type[FSM], ...] = ()) -> None:
        super().__init_subclass__()
        if not name or not all(part.isidentifier() for part in name.split(".")):
            raise TypeError(f"{cls.__name__}: name={name!r} must be identifiers joined by dots, like 'acme.counter'")
        if type(version) is not int or version < 1:
            raise TypeError(f"{cls.__name__}: version={version!r} must be a number from 1")
        cls.fsm_name, cls.version, cls.reads = name, version, tuple(reads)
        cls.table_hints = _tables_of(cls)
        cls._handlers, cls._session_ended = _handlers_of(cls)
        for view, select in cls.sql_views.items():
            if type(view) is not str or not view.isidentifier() or type(select) is not str:
                raise TypeError(f"{cls.__name__}: sql_views names a SELECT by an identifier, not {view!r}: {select!r}")

    def __init__(self) -> None:
        for name, (key_hint, row_hint) in self.table_hints.items():
            setattr(self, name, Table(self.fsm_name, name, key_hint, row_hint))

    def tables(self) -> Iterator[Table[Any, Any]]:
        """In the order of their declaration."""
        for name in self.table_hints:
            yield getattr(self, name)

    def upgrade(self, from_version: int, context: Context) -> None:
        """Runs once, in the entry that activates this version. Tables of the same name have their old rows already."""

    @classmethod
    def command_handler(cls, kind: type[Message[Any]]) -> Callable[..., Any] | None:
        return cls._handlers.get(("applies", kind))

    @classmethod
    def withdraw_handler(cls, kind: type[Message[Any]]) -> Callable[..., None] | None:
        return cls._handlers.get(("withdraws", kind))

    @classmethod
    def query_handler(cls, kind: type[Message[Any]]) -> Callable[..., Any] | None:
        return cls._handlers.get(("answers", kind))

    @classmethod
    def session_ended_handlers(cls) -> tuple[Callable[..., None], ...]:
        return cls._session_ended

    @classmethod
    def messages(cls) -> list[type[Message[Any]]]:
        """The commands and queries it handles."""
        return [kind for role, kind in cls._handlers if role in ("applies", "answers")]


def _tables_of(cls: type[FSM]) -> dict[str, tuple[Any, Any]]:
    own = cls.__dict__.get("__annotations__", {})
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise TypeError(
            f"{cls.__name__}: cannot resolve its annotations: {error}; define rows and keys at module level"
        ) from error
    found = {}
    for name in own:
        hint = hints[name]
        if typing.get_origin(hint) is ClassVar:
            continue
        if typing.get_origin(hint) is not Table:
            raise TypeError(f"{cls.__name__}.{name}: an FSM's state is tables; annotate it as Table[key, row]")
        key_hint, row_hint = typing.get_args(hint)
        for what, part in (("key", key_hint), ("row", row_hint)):
            try:
                compile_codec(part)
            except TypeError as error:
                raise TypeError(f"{cls.__name__}.{name}: its {what} cannot be stored: {error}") from error
            if typing.get_origin(part) in (list, dict) or part is Any:
                raise TypeError(f"{cls.__name__}.{name}: its {what} could change after it was stored: use tuples")
        found[name] = (key_hint, row_hint)
    return found


def _handlers_of(
    cls: type[FSM],
) -> tuple[dict[tuple[str, type[Message[Any]]], Callable[..., Any]], tuple[Callable[..., None], ...]]:
    found: dict[tuple[str, type[Message[Any]]], Callable[..., Any]] = {}
    ended = []
    for name, function in vars(cls).items():
        for role, kind in getattr(function, "__tauraft__", ()):
            where = f"{cls.__name__}.{name}"
            if inspect.iscoroutinefunction(function):
                raise TypeError(f"{where}: a handler cannot be async: it runs inside the log, and answers at once")
            arguments = len(inspect.signature(function).parameters)
            if arguments not in _ARGUMENTS[role]:
                counts = " or ".join(map(str, _ARGUMENTS[role]))
                raise TypeError(f"{where}: @{role} handlers take {counts} parameters, self included")
            if kind is None:
                ended.append(function)
                continue
            if getattr(kind, "fsm", None) != cls.fsm_name:
                raise TypeError(
                    f"{where}: {kind.__name__} belongs to {getattr(kind, 'fsm', None)!r}, not {cls.fsm_name!r}"
                )
            if not issubclass(kind, Query if role == "answers" else Command):
                raise TypeError(f"{where}: @{role} does not take {kind.__name__}")
            if (role, kind) in found:
                raise TypeError(f"{where}: {kind.__name__} has a handler already")
            message_codec(kind)
            compile_codec(answer_hint(kind))
            found[role, kind] = _without_context(function) if (role, arguments) == ("answers", 2) else function
    for role, kind in found:
        if role == "withdraws" and ("applies", kind) not in found:
            raise TypeError(f"{cls.__name__}: {kind.__name__} is withdrawn but never applied")
    return found, tuple(ended)


def _without_context(handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any, QueryContext], Any]:
    return lambda fsm, query, context: handler(fsm, query)


def answer_hint(kind: type[Message[Any]]) -> Any:
    """The ``R`` of ``Command[R]`` or ``Query[R]``. Raises ``TypeError`` where it was left out."""
    for ancestor in kind.__mro__:
        for base in ancestor.__dict__.get("__orig_bases__", ()):
            origin = typing.get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Message) and typing.get_args(base):
                hint = typing.get_args(base)[0]
                if not isinstance(hint, TypeVar):
                    return hint
    raise TypeError(
        f"{kind.__name__} does not say what it is answered with: subclass Command[int], Query[str | None], ..."
    )
