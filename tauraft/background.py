"""Work that belongs to a facade and not to a call: begun by ``start``, ended by ``stop``, waited for by ``wait``.

``AsyncTasks`` runs coroutines as tasks of the loop it was first used in, asyncio's or trio's; ``Tasks``, the blocking twin, runs functions on
threads.  Nothing of it runs after ``wait``, but for threads whose function does not look whether it is to stop: a thread
cannot be ended, so ``wait`` has its patience, and the thread ends with the process at the latest.

What such work raises is nobody's to catch: it is logged, with its traceback, and the rest goes on.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import anyio
    import trio

_log: Final = logging.getLogger("tauraft.background")

Work = Callable[..., Coroutine[Any, Any, object]]


class AsyncTasks:
    """Tasks of one loop. Used in that loop only."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._scopes: dict[trio.CancelScope, trio.lowlevel.Task | None] = {}
        self._left: trio.Event | None = None
        self._unsettled: list[anyio.Event] = []
        self.is_closed = False

    @property
    def count(self) -> int:
        """Of those under way."""
        return len(self._tasks) + len(self._scopes)

    def start(self, work: Work, *arguments: Any) -> None:
        """Run it beside the caller. Once closed nothing is begun any more."""
        if self.is_closed:
            return
        if asyncio._get_running_loop() is not None:
            task = asyncio.get_running_loop().create_task(_logged(work, arguments))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        import trio

        scope = trio.CancelScope()
        self._scopes[scope] = None

        async def run() -> None:
            self._scopes[scope] = trio.lowlevel.current_task()
            try:
                with scope:
                    await _logged(work, arguments)
            finally:
                del self._scopes[scope]
                if self._left is not None:
                    self._left.set()

        trio.lowlevel.spawn_system_task(run)

    def soon(self, work: Work, *arguments: Any) -> None:
        """As ``start``, and ``settled`` waits for it. The twin has done it when it returns, and raises what it raises."""
        import anyio

        ended = anyio.Event()
        self._unsettled.append(ended)

        async def run() -> None:
            try:
                await work(*arguments)
            finally:
                self._unsettled.remove(ended)
                ended.set()

        self.start(run)

    async def settled(self) -> None:
        """Until all that was begun with ``soon`` has ended."""
        while self._unsettled and not self.is_closed:
            await self._unsettled[0].wait()

    async def pause(self, seconds: float) -> None:
        """Let time pass; cut short by ``stop``."""
        import anyio

        await anyio.sleep(seconds)

    def stop(self) -> None:
        """Cancel all but the task that calls. Nothing is begun from here on."""
        self.is_closed = True
        if asyncio._get_running_loop() is not None:
            for task in self._others():
                task.cancel()
        else:
            for scope in self._other_scopes():
                scope.cancel()

    async def wait(self, patience: float) -> None:
        """Until all have ended."""
        if asyncio._get_running_loop() is not None:
            others = self._others()
            if others:
                await asyncio.wait(others, timeout=patience)
            return
        import trio

        with trio.move_on_after(patience):
            while self._other_scopes():
                self._left = trio.Event()
                await self._left.wait()

    def _other_scopes(self) -> list[trio.CancelScope]:
        import trio

        here = trio.lowlevel.current_task()
        return [scope for scope, task in self._scopes.items() if task is not here]

    def _others(self) -> list[asyncio.Task[object]]:
        return [task for task in self._tasks if task is not asyncio.current_task()]


async def _logged(work: Work, arguments: tuple[Any, ...]) -> None:
    try:
        await work(*arguments)
    except Exception:
        _log.exception("%s failed", _name_of(work))


class Tasks:
    """Threads. Used from any thread."""

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()

    @property
    def is_closed(self) -> bool:
        return self._closing.is_set()

    @property
    def count(self) -> int:
        return len(self._threads)

    def start(self, work: Callable[..., object], *arguments: Any) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except Exception:
                _log.exception("%s failed", _name_of(work))
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        # A daemon: a function that never ends must not keep the process from ending.
        thread = threading.Thread(target=run, name=f"tauraft-{_name_of(work)}", daemon=True)
        with self._lock:
            if self._closing.is_set():
                return
            self._threads.add(thread)
        thread.start()

    def soon(self, work: Callable[..., object], *arguments: Any) -> None:
        work(*arguments)

    def settled(self) -> None:
        pass

    def pause(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def stop(self) -> None:
        self._closing.set()

    def wait(self, patience: float) -> None:
        give_up = time.monotonic() + patience
        with self._lock:
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in threads:
            thread.join(max(0.0, give_up - time.monotonic()))


class AsyncCalls:
    """How a user's function is called: a coroutine function is awaited, any other runs on a worker thread."""

    @staticmethod
    def check(function: object) -> None:
        if not callable(function):
            raise TypeError(f"a function is decorated, not {type(function).__name__}")

    @staticmethod
    async def of(function: Callable[..., Any], *arguments: Any) -> None:
        if _is_coroutine_function(function):
            await function(*arguments)
            return
        import anyio
        import anyio.to_thread

        # Limited by whoever calls, not by what else of the program uses worker threads.
        limiter = anyio.CapacityLimiter(1)
        await anyio.to_thread.run_sync(lambda: Calls.of(function, *arguments), abandon_on_cancel=True, limiter=limiter)


class Calls:
    """The blocking twin: called where it stands."""

    @staticmethod
    def check(function: object) -> None:
        if not callable(function):
            raise TypeError(f"a function is decorated, not {type(function).__name__}")
        if _is_coroutine_function(function):
            raise TypeError("this cluster runs plain functions; an AsyncCluster runs coroutine functions")

    @staticmethod
    def of(function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception:
            raise
        except BaseException as error:  # sys.exit() on a thread ends nothing but the thread, silently
            raise RuntimeError(f"the function left with {type(error).__name__}: {error}") from error


def _is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Also of an object that is called."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _name_of(work: Callable[..., object]) -> str:
    return getattr(work, "__qualname__", type(work).__name__)
