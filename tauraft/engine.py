"""The engine: one thread in the process, in which trio runs every replica, link and session of it.

Started by the first facade that starts, stopped when the last one has closed.  Callers reach it by ``post`` (any
thread, never waits) and hear from it by ``Completions``; nothing else crosses.  Work that arrives in one
turn is done in one turn, and those who were completed in it are woken together at its end.

A C call that holds the GIL stops this thread too.  So it measures how late it runs (``lag_s``): a leader
that lags hands over, status says so.  While an engine runs, the interpreter's switch interval is at most
``SWITCH_INTERVAL_S``: with the default 5 ms a busy caller delays every heartbeat by as much (FACTS.md).  The collector's
first threshold is at least ``COLLECT_AFTER``: with the default 700 (and ten times ten of those until a full pass) a busy replica had a full pass
over all that the process has loaded every 10,000 commands, 0.1 s each, with the GIL: a seventh of its time.

fork: the child has no engine thread.  Its inherited engine is poisoned (``post`` raises ``ForkedProcess``), and a new
facade starts a new engine; sockets and locks are closed there by those who made them.

A caller who awaits one command after another posts the next within some 0.2 ms of its answer, and needs the GIL to get there: the thread
lets it, and waits for that post instead of going on with what nobody waits for (``linger``). What runs beside others on one CPU gives
way where they are waited for (``give_way``). docs/decisions/0007-turns has what both are worth.

A daemon thread, so that a forgotten ``close`` does not hang the interpreter; ``atexit`` closes what is open.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final
from weakref import WeakSet

import trio

from tauraft import errors
from tauraft.beat import next_beat
from tauraft.bridge import Call, Completions, Mailbox, Reply

logger = logging.getLogger("tauraft.engine")

SWITCH_INTERVAL_S: Final = 0.0005
COLLECT_AFTER: Final = 10_000
MAX_WAITING_POSTS: Final = 200_000
LINGER_S: Final = 0.0003
LONE_TURNS: Final = 8  # since it last lingered: with more than these it has others to serve
LAG_PROBE_S: Final = 0.25
IDLE_LAG_PROBE_S: Final = 1.0
LAG_KEPT_PER_S: Final = 0.75
STOP_TIMEOUT_S: Final = 5.0


def boottime_ns() -> int:
    """CLOCK_BOOTTIME counts while the machine is suspended; macOS's monotonic clock is the nearest there."""
    return time.clock_gettime_ns(_CLOCK)


_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The machine's clocks (``node.clock.Clock``)."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def boottime_ns(self) -> int:
        return boottime_ns()

    def wall_ns(self) -> int:
        return time.time_ns()


class Engine:
    """See the module's theory. Made by ``acquire``; tests make their own.

    ``clock``, the loop's own ``loop_clock`` and ``entropy`` are the machine's unless ``tauraft.testing`` gives others.
    """

    def __init__(
        self,
        clock: Any = None,
        *,
        loop_clock: trio.abc.Clock | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.clock: Any = SystemClock() if clock is None else clock
        self.entropy = entropy
        self._loop_clock = loop_clock
        self.completions = Completions(self._request_flush)
        self.lag_s = 0.0
        self._was_asked = False
        self.nursery: trio.Nursery
        self.is_poisoned = False
        self._inbox: deque[tuple[Call, Any]] = deque()
        self._is_woken = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._flush = trio.Event()
        self._turns = 0  # begun and not ended: one may begin inside another
        self._at_end: list[Callable[[], object]] = []
        self._turns_since = 0  # it last lingered, or could have
        self._could_linger_ns = 0  # when
        self._is_answered_promptly = False  # the caller woken then posted again within ``LINGER_S``
        self._lingers = False  # and listens for the bell, not for the loop's own wake-up
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._stop = trio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="tauraft-engine", daemon=True)
        self._failure: BaseException | None = None

    # ---- any thread ----

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def post(self, call: Call, argument: Any, /) -> None:
        """Run ``call(argument)`` in the engine's loop, after what was posted before. It must not raise."""
        self._inbox.append((call, argument))
        if not self._is_woken:
            self._is_woken = True
            self._wake()

    def post_lazily(self, call: Call, argument: Any, /) -> None:
        """The same, at the next occasion: wakes nobody."""
        self._inbox.append((call, argument))

    def post_from_loop(self, call: Call, argument: Any, mailbox: Mailbox, /) -> None:
        """The same, from a loop's callback: wakes the engine when that loop's turn is over.

        The promise to do so is the loop's own: it may be stopped before it comes to it, and others must not rely on it.
        """
        self._inbox.append((call, argument))
        if not self._is_woken and mailbox.promised_to is not self:
            mailbox.promised_to = self
            mailbox.soon(partial(self._keep_promise, mailbox))

    def _keep_promise(self, mailbox: Mailbox) -> None:
        mailbox.promised_to = None
        if not self._is_woken:
            self._is_woken = True
            self._wake()

    @property
    def is_full(self) -> bool:
        return len(self._inbox) >= MAX_WAITING_POSTS

    def must_be_usable(self) -> None:
        if self.is_poisoned:
            raise errors.ForkedProcess("this object was started before a fork; make a new one in the child")
        if self._failure is not None:
            raise errors.Shutdown(f"the engine stopped: {self._failure!r}")

    def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """End the loop and what still runs in it. Not from the engine's thread."""
        self.post(lambda _: self._stop.set(), None)
        self._thread.join(timeout)

    @property
    def has_failed(self) -> bool:
        """It ended by an error: facades that used it are over, new ones get another engine."""
        return self._failure is not None

    @property
    def is_engine_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def poison(self) -> None:
        self.is_poisoned = True

    def _wake(self) -> None:
        if self.is_poisoned:
            raise errors.ForkedProcess("this object was started before a fork; make a new one in the child")
        if self._lingers:
            self._bell.put(None)
            return
        assert self._token is not None
        try:
            self._token.run_sync_soon(self._drain)
        except trio.RunFinishedError:
            self._refuse_all()

    def _refuse_all(self) -> None:
        """The loop has ended: whoever still posts is told, so that nobody waits for ever."""
        self._is_woken = False
        while self._inbox:
            _, argument = self._inbox.popleft()
            if isinstance(argument, Reply) and not argument.is_done:
                argument.complete(None, errors.Shutdown("the engine has stopped; nothing was sent"))
        self.completions.flush()

    # ---- the engine's thread ----

    def spawn(self, task: Callable[[], Awaitable[Any]], done: Callable[[Any, BaseException | None], object]) -> None:
        """Run a task of its own; ``done(result, error)`` when it ends. An edge that owns a task."""
        self.nursery.start_soon(self._owned, task, done)

    async def _owned(
        self, task: Callable[[], Awaitable[Any]], done: Callable[[Any, BaseException | None], object]
    ) -> None:
        try:
            result = await task()
        except Exception as error:
            done(None, _only(error))
        except BaseException:
            # Cancelled, alone or in a group: the engine is stopping.
            done(None, errors.Shutdown("the engine is stopping"))
            raise
        else:
            done(result, None)

    def begin_turn(self) -> None:
        """What is said from here on is acted upon, and those who were completed are woken, when the turn ends."""
        self._turns += 1

    def end_turn(self) -> None:
        if self._turns == 1:
            self._turns_since += 1
            at_end = self._at_end
            while at_end:
                at_end.pop(0)()
            self.completions.flush()
        self._turns -= 1

    def linger(self) -> None:
        """Between turns, when all that was asked is answered: wait ``LINGER_S`` at most for who was woken to ask again.

        Only where the last one did so, and nobody else has kept this thread busy since.
        """
        if self._turns or self._loop_clock is not None or not self.completions.have_woken():
            return
        is_worth_it = self._is_answered_promptly and self._turns_since <= LONE_TURNS and not self._is_woken
        self._turns_since = 0
        self._could_linger_ns = self.clock.monotonic_ns()
        self._is_answered_promptly = False  # until the next post says otherwise
        if not is_worth_it:
            return
        while not self._bell.empty():
            self._bell.get_nowait()  # rung too late, the last time
        self._lingers = True
        with suppress(Empty):
            self._bell.get(timeout=LINGER_S)
        # Whoever saw this True had posted before: what wakes nobody else is in the inbox now.
        self._lingers = False
        if self._inbox:
            self._drain()

    def give_way(self) -> None:
        """What follows is waited for by nobody: another process that waits for this CPU goes first."""
        os.sched_yield()

    def at_end_of_turn(self, call: Callable[[], object]) -> None:
        """Run ``call`` once when the present turn ends; outside one, when the loop has run all that are ready now.

        It must not raise. A hop to a task of its own costs the loop a whole pass.
        """
        if call not in self._at_end:
            self._at_end.append(call)
        if not self._turns:
            self._flush.set()

    def _drain(self) -> None:
        # Cleared first: whoever posts from here on wakes us again.
        self._is_woken = False
        self._was_asked = True
        self._is_answered_promptly = self.clock.monotonic_ns() - self._could_linger_ns < LINGER_S * 1e9
        inbox = self._inbox
        self.begin_turn()
        try:
            for _ in range(len(inbox)):
                call, argument = inbox.popleft()
                call(argument)
        finally:
            self.end_turn()

    def _request_flush(self) -> None:
        if not self._turns:
            self._flush.set()

    def _main(self) -> None:
        before = sys.getswitchinterval()
        if before > SWITCH_INTERVAL_S:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
        thresholds = gc.get_threshold()
        ours = thresholds
        if 0 < thresholds[0] < COLLECT_AFTER:  # 0: it is switched off
            ours = (COLLECT_AFTER, *thresholds[1:])
        gc.set_threshold(*ours)
        try:
            trio.run(self._run, clock=self._loop_clock)
        except BaseException as error:
            self._failure = error
            logger.exception("the engine stopped")
        finally:
            self._refuse_all()
            self._ready.set()
            sys.setswitchinterval(before)
            if gc.get_threshold() == ours:
                gc.set_threshold(*thresholds)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            nursery.start_soon(self._end_turns)
            nursery.start_soon(self._measure_lag)
            self._ready.set()
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    async def _end_turns(self) -> None:
        """Of tasks that began none."""
        while True:
            await self._flush.wait()
            self._flush = trio.Event()
            self.begin_turn()
            self.end_turn()

    async def _measure_lag(self) -> None:
        while True:
            # Seldom while nobody asks for anything.
            interval = LAG_PROBE_S if self._was_asked else IDLE_LAG_PROBE_S
            self._was_asked = False
            expected = await next_beat(interval)
            late = trio.current_time() - expected
            # Remembers a stall for some seconds, so that one who asks now and then sees it.
            self.lag_s = late if late > self.lag_s else self.lag_s * LAG_KEPT_PER_S**interval


def _only(error: BaseException) -> BaseException:
    """What a nursery wrapped, where it is one error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


_guard = threading.Lock()
_engine: Engine | None = None
_users = 0
_open: WeakSet[Any] = WeakSet()


def acquire(user: Any) -> Engine:
    """The process's engine, started if need be. ``user.close_at_exit()`` is called at interpreter exit unless released."""
    global _engine, _users
    with _guard:
        if _engine is None or _engine.has_failed:
            engine = Engine()
            engine.start()
            _engine = engine
            _users = 0
        _users += 1
        _open.add(user)
        return _engine


def release(user: Any, engine: Engine) -> None:
    """The last user's release stops the engine."""
    global _engine, _users
    with _guard:
        _open.discard(user)
        if engine is not _engine:
            return  # of a process we were forked from
        _users -= 1
        if _users:
            return
        _engine = None
    if not engine.is_engine_thread:
        engine.stop()


def _at_exit() -> None:
    for user in list(_open):
        user.close_at_exit()


def _after_fork_in_child() -> None:
    global _guard, _engine, _users
    inherited, _engine, _users, _guard = _engine, None, 0, threading.Lock()
    _open.clear()
    if inherited is not None:
        inherited.poison()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
