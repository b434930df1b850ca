"""What the author of a handle imports: whom it submits through, and how it learns that something was lost.

A handle is a class over ``AsyncSubmitter`` that awaits only ``submit``, ``query``, ``transaction``, watches and ``Signal.wait``;
so its blocking twin can be generated (``tauraft twin``) and it never needs to know which loop runs it.
One that hands out holds takes an ``AsyncHolder``, which any cluster or client is as well: its ``tenure`` is the
engine's promise to count a hold out in time (SAFETY 2, 17), and to renew it meanwhile.

What changes is watched: ``submitter.watch(TABLE, low="a/", high="a0")`` follows the rows of a table in a range of keys, and
yields a ``Frame`` a command, or a ``State`` where frames are gone; ``map`` makes a handle's own events of them:

    def leaders(self) -> AsyncWatch[Leader | None]:
        return self._cluster.watch(TERMS, key=self.name, with_state=True).map(_leaders_of)

Here are also the checks that every handle makes at the call, in the caller's frame, before anything is sent:
a wrong type is a ``TypeError``, a wrong value an ``InvalidArgument``.

Not here: how things reach the engine (``bridge``, ``caller``), and the handles themselves (``tauraft_primitives``).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, Protocol, Self, TypeAlias, TypeVar, overload

from tauraft import bridge, errors
from tauraft.background import AsyncCalls, AsyncTasks, Calls, Tasks
from tauraft.fsm import Command, Query, TableName
from tauraft.payloads import decode_answer as decode_part, encode_message as encode_part
from tauraft.types import Consistency
from tauraft.watch import Frame, RowChange, State, Subscription, WatchRequest, decode_arrived

if TYPE_CHECKING:
    from types import TracebackType

    from tauraft.caller import AsyncCaller, Caller

__all__ = [
    "AsyncCalls", "AsyncHere", "AsyncHolder", "AsyncLossGuard", "AsyncReturned", "AsyncSignal", "AsyncSubmitter",
    "AsyncTasks", "AsyncWatch", "Calls", "Frame", "Here", "Holder", "LossGuard", "RaftStanding", "Returned", "RowChange",
    "Signal", "State", "Submitter", "TableName", "Tasks", "Tenure", "Watch", "as_bytes", "check_name", "check_patience",
    "check_timeout", "check_ttl", "decode_part", "encode_part",
]  # fmt: skip

R = TypeVar("R")
S = TypeVar("S")
K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
T = TypeVar("T")

MAX_NAME_BYTES: Final = 512
MAX_TIMEOUT_S: Final = 60.0


class AsyncSubmitter(Protocol):
    """What a handle's author takes: any ``AsyncCluster`` or ``AsyncClient``."""

    async def submit(self, command: Command[R], *, timeout: float | None = None) -> R:
        """Run ``command`` once. ``timeout``: of a command that waits, raising ``WaitTimeout`` with nothing held;
        of a plain one, raising ``Unavailable``, whose ``outcome`` says whether it may have taken effect."""

    async def query(
        self, query: Query[R], *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> R: ...

    @overload
    async def transaction(self, a: Command[A], /, *, timeout: float | None = None) -> tuple[A]: ...
    @overload
    async def transaction(self, a: Command[A], b: Command[B], /, *, timeout: float | None = None) -> tuple[A, B]: ...
    @overload
    async def transaction(
        self, a: Command[A], b: Command[B], c: Command[C], /, *, timeout: float | None = None
    ) -> tuple[A, B, C]: ...
    @overload
    async def transaction(self, *commands: Command[Any], timeout: float | None = None) -> tuple[Any, ...]: ...

    def watch(
        self,
        table: TableName[K, V],
        *,
        key: K | None = None,
        low: K | None = None,
        high: K | None = None,
        since_revision: int | None = None,
        with_state: bool = False,
    ) -> AsyncWatch[Frame[K, V] | State[K, V]]:
        """Follow the rows of ``table``: of one ``key``, or with low <= key < high, None being no bound.

        From entering it on; or of all revisions after ``since_revision``; or, ``with_state``, a ``State`` first. No frame
        is skipped or given twice, whatever reconnects; where some are gone already, a ``State`` says what is there.
        """


class Submitter(Protocol):
    """The blocking twin of ``AsyncSubmitter``: any ``Cluster`` or ``Client``."""

    def submit(self, command: Command[R], *, timeout: float | None = None) -> R: ...

    def query(
        self, query: Query[R], *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> R: ...

    @overload
    def transaction(self, a: Command[A], /, *, timeout: float | None = None) -> tuple[A]: ...
    @overload
    def transaction(self, a: Command[A], b: Command[B], /, *, timeout: float | None = None) -> tuple[A, B]: ...
    @overload
    def transaction(
        self, a: Command[A], b: Command[B], c: Command[C], /, *, timeout: float | None = None
    ) -> tuple[A, B, C]: ...
    @overload
    def transaction(self, *commands: Command[Any], timeout: float | None = None) -> tuple[Any, ...]: ...

    def watch(
        self,
        table: TableName[K, V],
        *,
        key: K | None = None,
        low: K | None = None,
        high: K | None = None,
        since_revision: int | None = None,
        with_state: bool = False,
    ) -> Watch[Frame[K, V] | State[K, V]]:
        """Follow the rows of ``table``: of one ``key``, or with low <= key < high, None being no bound.

        From entering it on; or of all revisions after ``since_revision``; or, ``with_state``, a ``State`` first. No frame
        is skipped or given twice, whatever reconnects; where some are gone already, a ``State`` says what is there.
        """


class Tenure(Protocol):
    """How long a hold may be relied on. Looked at from any thread, without a round trip."""

    @property
    def deadline(self) -> float:
        """On CLOCK_BOOTTIME, seconds: not after what the cluster promises."""

    def remaining(self) -> float:
        """Seconds until this process must count itself out; <= 0: lost."""

    @property
    def is_lost(self) -> bool:
        """Compares the deadline with the clock: true the moment it passes, also in a process that was suspended."""

    @property
    def state(self) -> bridge.SignalState:
        """Set when it is lost, not when it has ended."""

    def restart(self, *, ttl: float, started: float) -> None:
        """The cluster has granted ``ttl`` from ``started`` in place of what it had. One that is lost stays lost."""

    def end(self) -> None:
        """It was given back: it is renewed no more and can no longer be lost."""

    def lose(self) -> None:
        """Count it out now: what is done under it must stop, whatever the deadline says."""

    def lose_when(self, command: Command[Any]) -> None:
        """Count it out when ``command``, which waits, is answered or refused. Withdrawn when it was given back before."""

    def body_begins(self) -> None:
        """What is cut short when this is lost begins: closing gives it a moment to end before others get what it held."""

    def body_ended(self) -> None:
        """It has come to its end, however."""


@dataclass(frozen=True, slots=True)
class RaftStanding:
    """``leads``: the replica in use is the Raft leader. ``changed`` is set when that is so no longer: ask again then."""

    leads: bool
    changed: bridge.SignalState


class _TenureMaker(Protocol):
    def whoami(self) -> tuple[str, str, int, str | None]:
        """Peer id of the replica it uses (empty while unknown), host, pid, label: shown to those who wait."""

    def now(self) -> float:
        """CLOCK_BOOTTIME in seconds. Taken *before* the command is submitted whose answer starts a tenure."""

    def place(self) -> tuple[str, bool]:
        """(peer id of the data directory this process works on, "" where it works on none; whether it runs that replica itself)."""

    def raft_standing(self) -> RaftStanding:
        """Whether the replica this facade uses leads Raft, as far as that is known now."""

    def tenure(self, *, ttl: float | None, started: float, renewal: Command[Any] | None) -> Tenure:
        """``ttl`` None: as long as the session. Else ``ttl`` from ``started``, and again with each answered ``renewal``."""

    def submit_soon(self, command: Command[Any]) -> None:
        """Hand ``command`` to the engine and do not wait: what an interrupted caller gives back."""


@dataclass(frozen=True, slots=True)
class Reminder:
    """For a wait that lasts: after ``after`` seconds of it a question is asked, once, and ``tell`` is given the answer.

    ``ask(session)``: the question, given the session's id. ``tell`` runs on a thread of its own; never after the wait ended.
    """

    ask: Callable[[int], Query[Any]]
    tell: Callable[[Any], object]
    after: float


class AsyncHolder(AsyncSubmitter, _TenureMaker, Protocol):
    """A submitter that can also watch over holds."""

    async def submit(
        self, command: Command[R], *, timeout: float | None = None, reminder: Reminder | None = None
    ) -> R: ...


class Holder(Submitter, _TenureMaker, Protocol):
    """The blocking twin of ``AsyncHolder``."""

    def submit(self, command: Command[R], *, timeout: float | None = None, reminder: Reminder | None = None) -> R: ...


class _Signal:
    """Off, then on for good."""

    def __init__(self, state: bridge.SignalState) -> None:
        self._state = state

    def is_set(self) -> bool:
        return self._state.is_set

    def add_callback(self, call: Callable[[], object]) -> None:
        """Run ``call`` once when it is set, at once when it is already; on a thread of its own, never the engine's."""
        self._state.add_callback(call)


class AsyncSignal(_Signal):
    """Awaited from asyncio or trio."""

    async def wait(self, timeout: float | None = None) -> bool:
        """True once set; False when ``timeout`` ran out first."""
        return await self._state.wait(check_patience(timeout))


class Signal(_Signal):
    """The blocking twin of ``AsyncSignal``."""

    def wait(self, timeout: float | None = None) -> bool:
        return self._state.wait_blocking(check_patience(timeout))


class _AsyncContext(Protocol):
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


E = TypeVar("E", bound=_AsyncContext)


class AsyncOpening(Generic[E]):
    """What a method returns that is both awaited and entered: ``await queue.claim()``, ``async with queue.claim() as job``."""

    def __init__(self, opening: Coroutine[Any, Any, E]) -> None:
        self._opening = opening
        self._entered: E | None = None

    def __await__(self) -> Generator[Any, None, E]:
        return self._opening.__await__()

    async def __aenter__(self) -> E:
        self._entered = await self._opening
        return await self._entered.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._entered is not None
        return await self._entered.__aexit__(kind, error, trace)


# The blocking twin is the thing itself: it is open when the call returns.
Opening: TypeAlias = Annotated[T, "opened"]


class AsyncOpen:
    """Makes an ``AsyncOpening`` where the twin has nothing to make."""

    @staticmethod
    def of(opening: Coroutine[Any, Any, E]) -> AsyncOpening[E]:
        return AsyncOpening(opening)


class Open:
    @staticmethod
    def of(opened: T) -> T:
        return opened


class _Watch(Generic[R]):
    """What both kinds of watch share. ``translate`` makes any number of events of one frame or state."""

    def __init__(self, caller: Any, request: WatchRequest, translate: Callable[[Any], Iterable[R]]) -> None:
        self._caller = caller
        self._request = request
        self._translate = translate
        self._subscription: Subscription | None = None
        self._is_entered = False
        self._events: deque[R] = deque()  # of the frame taken last

    def _enter(self) -> None:
        if self._is_entered:
            raise errors.InvalidArgument("a watch is entered once; make a new one", option="watch")
        self._is_entered = True

    def _entered(self) -> Subscription:
        if self._subscription is None:
            raise errors.InvalidArgument("use `with` (`async with`) to begin the watch first", option="watch")
        if self._caller.is_forked:
            raise errors.ForkedProcess("this watch was begun before a fork; make a new one in the child")
        return self._subscription

    def _take(self, subscription: Subscription) -> Any:
        """The next event that is there; ``_NOTHING`` yet. Raises what the watch ended with."""
        events = self._events
        while True:
            try:
                return events.popleft()
            except IndexError:
                arrived = subscription.feed.take()
            if arrived is None:
                return _NOTHING
            events.extend(self._translate(decode_arrived(self._request.table, arrived)))

    def _leave(self) -> None:
        if self._subscription is not None:
            self._caller.close_watch(self._subscription)

    def _wait_timeout(self) -> errors.WaitTimeout:
        return errors.WaitTimeout("nothing came in time; the watch goes on")


class AsyncWatch(_Watch[R]):
    """``async with cluster.kv.watch("k") as watch: async for event in watch``; registered once entered.

    May be iterated by several tasks, each event going to one of them. Made by ``AsyncSubmitter.watch``.
    """

    _caller: AsyncCaller

    def map(self, translate: Callable[[R], Iterable[S]]) -> AsyncWatch[S]:
        """A watch, not entered yet, of what ``translate`` makes of each item: any number of events."""
        before = self._translate
        return AsyncWatch(
            self._caller, self._request, lambda frame: (made for item in before(frame) for made in translate(item))
        )

    async def __aenter__(self) -> Self:
        self._enter()
        self._subscription = await self._caller.open_watch(self._request)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._leave()

    async def next(self, timeout: float | None = None) -> R:
        """The next event. Raises ``WaitTimeout`` when none comes in time; the watch goes on."""
        import anyio.lowlevel

        patience = check_patience(timeout)
        subscription = self._entered()
        if not self._events:
            await anyio.lowlevel.checkpoint()  # where events come faster than they are used, others get their turn
        give_up = None if patience is None else self._caller.now() + patience
        while True:
            found = self._take(subscription)
            if found is not _NOTHING:
                event: R = found
                return event
            left = None if give_up is None else give_up - self._caller.now()
            if left is not None and left <= 0:
                raise self._wait_timeout()
            await subscription.feed.wait(left)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        return await self.next()


class Watch(_Watch[R]):
    """The blocking twin: ``with cluster.kv.watch("k") as watch: for event in watch``. Threads may share it."""

    _caller: Caller

    def map(self, translate: Callable[[R], Iterable[S]]) -> Watch[S]:
        before = self._translate
        return Watch(
            self._caller, self._request, lambda frame: (made for item in before(frame) for made in translate(item))
        )

    def __enter__(self) -> Self:
        self._enter()
        self._subscription = self._caller.open_watch(self._request)
        return self

    def __exit__(self, *exc: object) -> None:
        self._leave()

    def next(self, timeout: float | None = None) -> R:
        """The next event. Raises ``WaitTimeout`` when none comes in time; the watch goes on."""
        patience = check_patience(timeout)
        subscription = self._entered()
        give_up = None if patience is None else self._caller.now() + patience
        while True:
            found = self._take(subscription)
            if found is not _NOTHING:
                event: R = found
                return event
            left = None if give_up is None else give_up - self._caller.now()
            if left is not None and left <= 0:
                raise self._wait_timeout()
            subscription.feed.wait_blocking(left)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        return self.next()


_NOTHING: Final[Any] = object()


# What a caller's own function gives: to be awaited, or at once.
AsyncReturned: TypeAlias = Awaitable[T]
Returned: TypeAlias = Annotated[T, "returned"]


class AsyncLossGuard:
    """Cancels the body of an ``async with`` when one of ``tenures`` is lost. ``was_cut`` says that it did so."""

    def __init__(self, *tenures: Tenure) -> None:
        self._tenures = tenures
        self._scope: Any = None
        self.was_cut = False

    def __enter__(self) -> Self:
        import anyio

        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        cancel = bridge.mailbox_here().caller_of(self._scope.cancel)
        for tenure in self._tenures:
            tenure.body_begins()
            tenure.state.add_hook(cancel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        for tenure in self._tenures:
            tenure.body_ended()
        swallowed = bool(self._scope.__exit__(kind, error, trace))
        self.was_cut = bool(self._scope.cancelled_caught)
        return swallowed


class LossGuard:
    """The blocking twin: nothing can cut a blocking body short, so it looks (``hold.check()``) by itself."""

    was_cut = False

    def __init__(self, *tenures: Tenure) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> bool | None:
        return None


class AsyncHere:
    """Where a call is made: what ``reentrant="task"`` means, whose ``with`` is left, and who waits for whom."""

    @staticmethod
    def scope() -> int:
        """The running task, of asyncio or trio, by a number that no other task or thread of this process ever has."""
        return bridge.task_number()


class Here:
    """The blocking twin: a thread is the scope."""

    @staticmethod
    def scope() -> int:
        return bridge.thread_number()


def how_long_since(instant: datetime) -> str:
    """For a person to read, by this machine's wall clock: "7 s", "4 m", "3 h", "2 d"."""
    seconds = max(0, int((datetime.now(UTC) - instant).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


# ---- checks at the call ----


def check_name(name: object, option: str = "name") -> str:
    """A name, key or id: text of 1 to 512 bytes of UTF-8."""
    if not isinstance(name, str):
        raise TypeError(f"{option} must be str, not {type(name).__name__}")
    if not name:
        raise errors.InvalidArgument(f"{option} is empty; nothing was sent", option=option)
    if len(name) > MAX_NAME_BYTES // 4 or not name.isascii():
        try:
            size = len(name.encode())
        except UnicodeEncodeError as error:
            raise errors.InvalidArgument(
                f"{option} cannot be encoded as UTF-8; nothing was sent", option=option
            ) from error
        if size > MAX_NAME_BYTES:
            raise errors.TooLarge(
                f"{option} has {size} bytes, at most {MAX_NAME_BYTES} are allowed; nothing was sent", option=option
            )
    return name


def as_bytes(value: object, option: str = "value") -> bytes:
    """Bytes as they are, text as UTF-8."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise errors.InvalidArgument(
                f"{option} cannot be encoded as UTF-8; nothing was sent", option=option
            ) from error
    raise TypeError(f"{option} must be bytes or str, not {type(value).__name__}")


def _seconds(value: object, option: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{option} must be a number of seconds, not {type(value).__name__}")
    if math.isnan(value):
        raise errors.InvalidTimeout(f"{option} is not a number; nothing was sent", option=option)
    return float(value)


def check_timeout(timeout: object) -> float | None:
    """Of a plain operation: None, or 0 < seconds <= 60."""
    if timeout is None:
        return None
    seconds = _seconds(timeout, "timeout")
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise errors.InvalidTimeout(
            f"timeout is {seconds:g} s; it must be over 0 and at most {MAX_TIMEOUT_S:g}; nothing was sent",
            option="timeout",
        )
    return seconds


def check_patience(timeout: object) -> float | None:
    """Of a wait: None for ever, 0 do not wait, else seconds."""
    if timeout is None:
        return None
    seconds = _seconds(timeout, "timeout")
    if seconds < 0:
        raise errors.InvalidTimeout(
            f"timeout is {seconds:g} s; it must not be negative; nothing was sent", option="timeout"
        )
    return None if math.isinf(seconds) else seconds


def check_ttl(ttl: object, option: str = "ttl") -> float | None:
    """None, or a duration over 0 that the cluster can count."""
    if ttl is None:
        return None
    seconds = _seconds(ttl, option)
    if not 0 < seconds <= 10**9:
        raise errors.InvalidArgument(f"{option} is {seconds:g} s; it must be over 0; nothing was sent", option=option)
    return seconds
