"""From the caller's thread or loop to the engine's thread and back, gathered both ways.

A caller makes a ``Reply``, posts it, and waits: on an asyncio future, as a parked trio task, or on a plain lock.
The engine completes it from its own thread.  What is expensive is waking the other side (a system call, and the
GIL changes hands), so neither side wakes the other per item: posts of one turn of an asyncio loop share
one wake-up of the engine, and completions of one turn of the engine share one wake-up per caller's loop.

Cancellation and Ctrl-C: whatever ends the wait early posts ``abandon``, and the engine decides what that takes
(withdraw a wait, give back a grant that raced, want a plain command no more).  ``taken`` tells it that the
value has arrived; it wakes nobody, since it is only book-keeping.

``SignalState`` is a one-way switch that any thread may look at and any loop may wait for.  A ``Feed`` hands out things in
order: what is there is taken without a wait, and a wait carries nothing, so one that is cut short loses nothing.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

Call: TypeAlias = Callable[[Any], object]


class Post(Protocol):
    """How things get into the engine: ``call(argument)`` runs in its loop, in order."""

    def __call__(self, call: Call, argument: Any, /) -> None: ...


class Mailbox(Protocol):
    """Where completions for one caller's loop are gathered."""

    is_dirty: bool
    promised_to: object | None  # the engine that this loop is going to wake at the end of its turn
    waiters: deque[Waiter]

    def soon(self, call: Callable[[], object]) -> None:
        """Called in the loop: ``call`` when its turn is over."""

    def wake(self) -> None:
        """Called in the engine's thread, once a turn. Drops the waiters when their loop is gone."""

    def new_handle(self) -> Any: ...


class Waiter:
    """Someone who waits for something that happens in the engine. Made and awaited by one caller."""

    __slots__ = ("handle", "is_done", "mailbox")

    def __init__(self, mailbox: Mailbox | None) -> None:
        self.mailbox = mailbox
        self.is_done = False
        if mailbox is None:
            self.handle: Any = allocate_lock()
            self.handle.acquire()
        else:
            self.handle = mailbox.new_handle()

    def dropped(self) -> None:
        """The caller's loop has ended: nobody will ever take this."""

    async def wait(self) -> None:
        """Until completed, in the loop whose mailbox this has."""
        await self.mailbox.park(self)  # type: ignore[union-attr]

    def wait_blocking(self, timeout: float | None = None) -> bool:
        return bool(self.handle.acquire(True, -1 if timeout is None else timeout))


class AsyncioMailbox:
    __slots__ = ("_is_called", "is_dirty", "loop", "promised_to", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.is_dirty = False
        self.promised_to: object | None = None
        self.waiters: deque[Waiter] = deque()
        self._is_called = False

    def new_handle(self) -> asyncio.Future[None]:
        return self.loop.create_future()

    def wake(self) -> None:
        self.is_dirty = False
        if self._is_called:
            return
        self._is_called = True
        try:
            self.loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the loop is closed
            _drop_all(self.waiters)

    def _drain(self) -> None:
        self._is_called = False
        waiters = self.waiters
        for _ in range(len(waiters)):
            future = waiters.popleft().handle
            if not future.done():
                future.set_result(None)

    async def park(self, waiter: Waiter) -> None:
        await waiter.handle

    async def park_for(self, waiter: Waiter, timeout: float) -> None:
        await asyncio.wait((waiter.handle,), timeout=timeout)

    def soon(self, call: Callable[[], object]) -> None:
        self.loop.call_soon(call)

    def caller_of(self, call: Callable[[], object]) -> Callable[[], object]:
        """What any thread may run to have ``call`` run in this loop; nothing happens when the loop is gone."""
        loop = self.loop

        def post() -> None:
            try:
                loop.call_soon_threadsafe(call)
            except RuntimeError:
                pass

        return post


class TrioMailbox:
    __slots__ = ("_is_called", "is_dirty", "promised_to", "token", "waiters")

    def __init__(self, token: Any) -> None:
        self.token = token
        self.is_dirty = False
        self.promised_to: object | None = None
        self.waiters: deque[Waiter] = deque()
        self._is_called = False

    def new_handle(self) -> None:
        return None

    def wake(self) -> None:
        import trio

        self.is_dirty = False
        if self._is_called:
            return
        self._is_called = True
        try:
            self.token.run_sync_soon(self._drain)
        except trio.RunFinishedError:
            _drop_all(self.waiters)

    def _drain(self) -> None:
        from trio.lowlevel import reschedule

        self._is_called = False
        waiters = self.waiters
        for _ in range(len(waiters)):
            waiter = waiters.popleft()
            task, waiter.handle = waiter.handle, None
            if task is not None:
                reschedule(task)

    async def park(self, waiter: Waiter) -> None:
        from trio.lowlevel import Abort, checkpoint_if_cancelled, current_task, wait_task_rescheduled

        await checkpoint_if_cancelled()
        if waiter.is_done:
            return

        def abort(raise_cancel: object) -> Abort:
            waiter.handle = None
            return Abort.SUCCEEDED

        waiter.handle = current_task()
        await wait_task_rescheduled(abort)

    async def park_for(self, waiter: Waiter, timeout: float) -> None:
        import trio

        with trio.move_on_after(timeout):
            await self.park(waiter)

    def soon(self, call: Callable[[], object]) -> None:
        call()

    def caller_of(self, call: Callable[[], object]) -> Callable[[], object]:
        import trio

        token = self.token

        def post() -> None:
            try:
                token.run_sync_soon(call)
            except trio.RunFinishedError:
                pass

        return post


def _drop_all(waiters: deque[Waiter]) -> None:
    while waiters:
        waiters.popleft().dropped()


_here = threading.local()


def mailbox_here() -> AsyncioMailbox | TrioMailbox:
    """The mailbox of the running loop. Raises ``RuntimeError`` outside asyncio and trio."""
    loop = asyncio._get_running_loop()
    if loop is not None:
        mailbox = getattr(_here, "asyncio", None)
        if mailbox is None or mailbox.loop is not loop:
            mailbox = _here.asyncio = AsyncioMailbox(loop)
        return mailbox
    if "trio" not in sys.modules:
        raise RuntimeError("no asyncio or trio loop is running here; the blocking twin needs none")
    import trio

    token = trio.lowlevel.current_trio_token()
    found = getattr(_here, "trio", None)
    if found is None or found.token is not token:
        found = _here.trio = TrioMailbox(token)
    return found


def task_number() -> int:
    """Of the running task. Raises ``RuntimeError`` outside asyncio and trio."""
    task: Any
    if asyncio._get_running_loop() is not None:
        task = asyncio.current_task()
    elif "trio" not in sys.modules:
        raise RuntimeError("no asyncio or trio loop is running here; the blocking twin needs none")
    else:
        import trio

        task = trio.lowlevel.current_task()
    number = _task_numbers.get(task)
    if number is None:
        number = _task_numbers[task] = next(_numbers)
    return number


def thread_number() -> int:
    """Of the running thread; unlike its ident, it is never used again for another one."""
    number: int | None = getattr(_here, "number", None)
    if number is None:
        number = _here.number = next(_numbers)
    return number


_numbers = count(1)
_task_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class Completions:
    """The engine's end: who was completed in this turn, by mailbox."""

    def __init__(self, request_flush: Callable[[], object]) -> None:
        self._dirty: list[Mailbox] = []
        self._have_woken = False
        self._request_flush = request_flush

    def complete(self, waiter: Waiter) -> None:
        """Engine's thread. The waiter's result is set before."""
        waiter.is_done = True
        self._have_woken = True
        mailbox = waiter.mailbox
        if mailbox is None:
            waiter.handle.release()
            return
        mailbox.waiters.append(waiter)
        if not mailbox.is_dirty:
            mailbox.is_dirty = True
            if not self._dirty:
                self._request_flush()
            self._dirty.append(mailbox)

    def have_woken(self) -> bool:
        """Anybody, since this was last asked?"""
        have_woken, self._have_woken = self._have_woken, False
        return have_woken

    def flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for mailbox in dirty:
            mailbox.wake()


class Reply(Waiter):
    """One result that the engine will give. ``held``: what the engine needs to abandon or acknowledge it."""

    __slots__ = ("_abandon", "_completions", "_post", "_post_lazily", "_taken", "arguments", "data", "error", "held")

    def __init__(
        self,
        mailbox: Mailbox | None,
        post: Post,
        post_lazily: Post,
        completions: Completions,
        abandon: Call,
        taken: Call | None,
        arguments: Any,
    ) -> None:
        super().__init__(mailbox)
        self._post = post
        self._post_lazily = post_lazily
        self._completions = completions
        self._abandon = abandon
        self._taken = taken
        self.arguments = arguments
        self.data: Any = None
        self.error: BaseException | None = None
        self.held: Any = None

    def complete(self, data: Any, error: BaseException | None) -> None:
        """Engine's thread; once."""
        self.data, self.error = data, error
        self._completions.complete(self)

    def dropped(self) -> None:
        self._abandon(self)  # already in the engine's thread

    async def result(self) -> Any:
        try:
            await self.mailbox.park(self)  # type: ignore[union-attr]
            if self.error is not None:
                raise self.error
            if self._taken is not None:
                self._post_lazily(self._taken, self)
            return self.data
        except BaseException:
            if self.error is None:
                self._post(self._abandon, self)
            raise
        finally:
            self.error = None  # no cycle through the traceback

    def result_blocking(self) -> Any:
        try:
            self.handle.acquire()
            if self.error is not None:
                raise self.error
            if self._taken is not None:
                self._post_lazily(self._taken, self)
            return self.data
        except BaseException:
            if self.error is None:
                self._post(self._abandon, self)
            raise
        finally:
            self.error = None


class SignalState:
    """Off, then on for good. ``set`` is called in the engine's thread; everything else anywhere."""

    __slots__ = ("_callbacks", "_completions", "_hooks", "_lock", "_waiters", "is_set")

    def __init__(self, completions: Completions | None) -> None:
        self.is_set = False
        self._completions = completions
        self._lock = allocate_lock()
        self._waiters: list[Waiter] = []
        self._callbacks: list[Callable[[], object]] = []
        self._hooks: list[Callable[[], object]] = []

    def set(self) -> None:
        with self._lock:
            if self.is_set:
                return
            self.is_set = True
            waiters, self._waiters = self._waiters, []
            callbacks, self._callbacks = self._callbacks, []
            hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook()
        for waiter in waiters:
            assert self._completions is not None
            self._completions.complete(waiter)
        if callbacks:
            run_apart(callbacks)

    def add_hook(self, hook: Callable[[], object]) -> None:
        """Ours, not a user's: runs where ``set`` is called, at once when it was; must neither block nor raise."""
        with self._lock:
            if not self.is_set:
                self._hooks.append(hook)
                return
        hook()

    def remove_hook(self, hook: Callable[[], object]) -> None:
        with self._lock:
            if hook in self._hooks:
                self._hooks.remove(hook)

    def add_callback(self, call: Callable[[], object]) -> None:
        with self._lock:
            if not self.is_set:
                self._callbacks.append(call)
                return
        run_apart([call])

    def _register(self, waiter: Waiter) -> bool:
        with self._lock:
            if not self.is_set:
                self._waiters.append(waiter)
            return not self.is_set

    def _unregister(self, waiter: Waiter) -> None:
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def wait(self, timeout: float | None) -> bool:
        mailbox = mailbox_here()
        waiter = Waiter(mailbox)
        if self._register(waiter):
            try:
                if timeout is None:
                    await mailbox.park(waiter)
                else:
                    await mailbox.park_for(waiter, timeout)
            finally:
                self._unregister(waiter)
        return self.is_set

    def wait_blocking(self, timeout: float | None) -> bool:
        waiter = Waiter(None)
        if self._register(waiter):
            try:
                waiter.wait_blocking(timeout)
            finally:
                self._unregister(waiter)
        return self.is_set


class Bodies:
    """How many blocks are being run that are cut short when what they hold is lost. From any thread."""

    def __init__(self, post: Post) -> None:
        self._count = 0
        self._lock = allocate_lock()
        self._post = post
        self._gone: Any = None

    def begin(self) -> None:
        with self._lock:
            self._count += 1

    def end(self) -> None:
        with self._lock:
            self._count -= 1
            gone = self._gone if self._count == 0 else None
        if gone is not None:
            self._post(lambda _: gone.set(), None)

    async def have_ended(self) -> None:
        """In the engine's loop."""
        import trio

        with self._lock:
            if self._count == 0:
                return
            gone = self._gone = trio.Event()
        await gone.wait()


class Feed:
    """Things that the engine puts and callers take, in order, until it ends. Whoever puts sees to it that few wait.

    ``put`` and ``end`` are called in the engine's thread. ``taken(size)`` is called in the taker's, for each thing taken.
    """

    __slots__ = ("_completions", "_error", "_lock", "_taken", "_things", "_waiters")

    def __init__(self, completions: Completions, taken: Callable[[int], object]) -> None:
        self._completions = completions
        self._taken = taken
        self._lock = allocate_lock()
        self._things: deque[tuple[Any, int]] = deque()
        self._error: BaseException | None = None
        self._waiters: list[Waiter] = []

    def put(self, thing: Any, size: int) -> None:
        with self._lock:
            self._things.append((thing, size))
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            self._completions.complete(waiter)

    def end(self, error: BaseException) -> None:
        """What was put before is still given."""
        with self._lock:
            if self._error is None:
                self._error = error
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            self._completions.complete(waiter)

    def take(self) -> Any | None:
        """The next thing; None when there is none yet. Raises what the feed ended with."""
        with self._lock:
            if not self._things:
                if self._error is not None:
                    raise self._error.with_traceback(None)
                return None
            thing, size = self._things.popleft()
        if size:
            self._taken(size)
        return thing

    def _register(self, waiter: Waiter) -> bool:
        with self._lock:
            if self._things or self._error is not None:
                return False
            self._waiters.append(waiter)
            return True

    def _unregister(self, waiter: Waiter) -> None:
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def wait(self, timeout: float | None) -> None:
        """Until there is something to take, or ``timeout`` is over; other takers may be quicker."""
        mailbox = mailbox_here()
        waiter = Waiter(mailbox)
        if self._register(waiter):
            try:
                if timeout is None:
                    await mailbox.park(waiter)
                else:
                    await mailbox.park_for(waiter, timeout)
            finally:
                self._unregister(waiter)

    def wait_blocking(self, timeout: float | None) -> None:
        waiter = Waiter(None)
        if self._register(waiter):
            try:
                waiter.wait_blocking(timeout)
            finally:
                self._unregister(waiter)


def run_apart(callbacks: list[Callable[[], object]]) -> None:
    """Users' code never runs on the engine's thread: it could block every session of the process."""

    def run() -> None:
        for call in callbacks:
            call()

    threading.Thread(target=run, name="tauraft-signal", daemon=True).start()
