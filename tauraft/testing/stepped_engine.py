"""An engine whose time moves only when it is told: the real one, on a clock of its own.

Nothing in it waits for real time.  ``advance`` goes from deadline to deadline, and lets everything that becomes possible
happen before the next.  With ``passes_in_calls`` time also passes while a caller waits for an answer, until that answer is there
(or ``LONGEST_CALL_S``): what a network with delays needs.  Between calls time stands.  Callers are woken once the engine has
nothing left to do at that moment, so that what they do next never races with it: a test of one thread is one story.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
import trio.testing

from tauraft.bridge import Call, Completions, Reply, Waiter
from tauraft.engine import Engine

SECOND_NS: Final = 1_000_000_000
START_S: Final = 1_000.0  # no clock starts at zero
EPOCH_NS: Final = 1_700_000_000 * SECOND_NS
LONGEST_CALL_S: Final = 120.0
ROUNDING_S: Final = 10e-6  # a driver wakes up to a microsecond after what is due: that belongs to the same moment


class SteppedClock(trio.abc.Clock):
    """For the loop, and (``node.clock.Clock``) for all that asks for the time."""

    def __init__(self) -> None:
        self.now_s = START_S

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0 if deadline <= self.now_s else 999_999.0

    def monotonic_ns(self) -> int:
        return int(self.now_s * SECOND_NS)

    boottime_ns = monotonic_ns

    def wall_ns(self) -> int:
        return EPOCH_NS + self.monotonic_ns()


class _Completions(Completions):
    def __init__(self, engine: SteppedEngine) -> None:
        super().__init__(engine._request_flush)
        self._engine = engine

    def complete(self, waiter: Waiter) -> None:
        self._engine.call_ended(waiter)
        complete = super().complete
        self._engine.when_idle(lambda: complete(waiter))


class SteppedEngine(Engine):
    def __init__(self, *, passes_in_calls: bool, entropy: Callable[[int], bytes]) -> None:
        self.time = SteppedClock()
        super().__init__(self.time, loop_clock=self.time, entropy=entropy)
        self.completions = _Completions(self)
        self._passes_in_calls = passes_in_calls
        self._under_way: dict[int, float] = {}  # calls, and when each began
        self._is_called = trio.Event()
        self._idle_calls: list[Callable[[], object]] = []
        self._is_idle_wanted = trio.Event()
        self._has_run = False

    def start(self) -> None:
        super().start()
        self.post(lambda _: self.spawn(self._call_when_idle, lambda result, error: None), None)
        if self._passes_in_calls:
            self.post(lambda _: self.spawn(self._pass_in_calls, lambda result, error: None), None)

    # ---- any thread ----

    def post(self, call: Call, argument: Any, /) -> None:
        # The first time it is the call itself, the second time its end: nobody waits for it any more.
        is_call = isinstance(argument, Reply) and not argument.is_done
        if is_call and self._under_way.pop(id(argument), None) is None:
            self._under_way[id(argument)] = self.time.now_s
        super().post(call, argument)

    def do(self, task: Callable[[], Awaitable[Any]], *, passes: bool = False) -> Any:
        """Run ``task`` in the engine, and wait for it. ``passes``: time passes as in a call."""
        ended = threading.Event()
        told: list[tuple[Any, BaseException | None]] = []

        def done(result: Any, error: BaseException | None) -> None:
            self._under_way.pop(id(ended), None)
            told.append((result, error))
            self.when_idle(ended.set)

        if passes:
            self._under_way[id(ended)] = self.time.now_s
        self.post(lambda _: self.spawn(task, done), None)
        while not ended.wait(0.2):
            self.must_be_usable()
        result, error = told[0]
        if error is not None:
            raise error
        return result

    def advance(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError(f"time goes on, not back: advance({seconds!r})")
        self.do(lambda: self._advance(self.time.now_s + seconds))

    # ---- the engine's thread ----

    def when_idle(self, call: Callable[[], object]) -> None:
        if self._has_run:
            call()
            return
        self._idle_calls.append(call)
        self._is_idle_wanted.set()

    async def _call_when_idle(self) -> None:
        while True:
            await self._is_idle_wanted.wait()
            self._is_idle_wanted = trio.Event()
            await trio.testing.wait_all_tasks_blocked()
            self._call_all()

    def _call_all(self) -> None:
        calls, self._idle_calls = self._idle_calls, []
        for call in calls:
            call()

    async def _run(self) -> None:
        try:
            await super()._run()
        finally:
            self._has_run = True
            self._call_all()

    def call_ended(self, waiter: Waiter) -> None:
        self._under_way.pop(id(waiter), None)

    def _drain(self) -> None:
        super()._drain()
        if self._under_way:
            self._is_called.set()

    async def _measure_lag(self) -> None:
        """There is none: this time waits for everybody."""

    async def _advance(self, target_s: float) -> None:
        while True:
            await trio.testing.wait_all_tasks_blocked()
            wait_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
            if self.time.now_s + wait_s > target_s + ROUNDING_S:
                break
            self._jump(wait_s)
        self.time.now_s = max(self.time.now_s, target_s)
        await trio.testing.wait_all_tasks_blocked()

    async def _pass_in_calls(self) -> None:
        while True:
            await self._is_called.wait()
            self._is_called = trio.Event()
            while self._is_call_waiting():
                await trio.testing.wait_all_tasks_blocked()
                wait_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
                if not self._is_call_waiting() or wait_s == math.inf:
                    break
                self._jump(wait_s)

    def _is_call_waiting(self) -> bool:
        return any(self.time.now_s - began < LONGEST_CALL_S for began in list(self._under_way.values()))

    def _jump(self, wait_s: float) -> None:
        if wait_s > 0:
            # At least to the next number: a deadline that rounding leaves ahead would never come.
            self.time.now_s = max(self.time.now_s + wait_s, math.nextafter(self.time.now_s, math.inf))
