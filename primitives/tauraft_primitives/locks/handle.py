"""Locks as a caller holds them: ``AsyncLock`` by name, ``AsyncHold`` for what was granted.

An acquire is one waiting command; the answer is the fencing token.  What follows the grant is interruption-proof: until
the hold is in the caller's hands, whatever goes wrong gives it back through the engine (``submit_soon``).

A hold is as safe as its *tenure* (``tauraft.handle``): it counts this process out before the cluster gives the lock
to another (SAFETY 2).  A hold with a ttl that was granted after waiting is confirmed by a renewal before it is
returned, and its deadline counts from that.  A hold that was lost is not released: others may rely on ``lock_delay``,
which is for lost holds.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast
from weakref import WeakKeyDictionary

from tauraft import errors
from tauraft.handle import (
    AsyncHere,
    AsyncHolder,
    AsyncLossGuard,
    AsyncSignal,
    Tenure,
    check_name,
    check_patience,
    check_ttl,
)
from tauraft.types import LockInfo
from tauraft_primitives.locks.messages import Acquire, Break, Holds, Info, Release, Renew

F = TypeVar("F", bound=Callable[..., Any])

# A wait this much of the ttl long is confirmed by a renewal: less of the ttl would be left otherwise.
CONFIRM_AFTER = 0.05

# Reentrant holds by facade, then (name, kind of scope, scope): every handle of that name finds them.
_reentrant: WeakKeyDictionary[object, dict[tuple[str, str, object], AsyncHold]] = WeakKeyDictionary()


class AsyncHold:
    """A granted lock. ``token`` is its fencing token: give it to whatever the lock protects."""

    def __init__(self, lock: AsyncLock, token: int, tenure: Tenure, scope: object) -> None:
        self.name = lock.name
        self.token = token
        self.lost = AsyncSignal(tenure.state)
        self._lock = lock
        self._tenure = tenure
        self._scope = scope
        self._depth = 1
        self._is_released = False

    @property
    def deadline(self) -> float:
        """On CLOCK_BOOTTIME, in seconds: never after what the cluster promises."""
        return self._tenure.deadline

    def remaining(self) -> float:
        """Seconds until this process must count itself out; <= 0: lost."""
        return self._tenure.remaining()

    def check(self) -> None:
        """Local, no round trip. Raises ``LockLost``."""
        if self._is_released or self._tenure.is_lost:
            raise self._lost()

    async def verify(self) -> None:
        """Ask the cluster. Raises ``LockLost`` when it knows another holder, or none."""
        self.check()
        if not await self._lock._holder.query(Holds(self.name, self.token)):
            raise self._lost()

    async def release(self) -> None:
        """Give it back. Raises ``NotHolder`` when it was released before, or lost. Of a reentrant hold: one level."""
        if self._is_released or self._tenure.is_lost:
            self._end()
            raise errors.NotHolder(f"lock {self.name!r} is not held with token {self.token} any more; nothing changed")
        if self._depth > 1:
            self._depth -= 1
            return
        self._end()
        command = Release(self.name, self.token)
        try:
            await self._lock._holder.submit(command)
        except errors.Refused:
            raise
        except BaseException:
            # Interrupted or unanswered: the engine goes on saying it, so that nobody waits for the ttl.
            self._lock._holder.submit_soon(command)
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if self._is_released:
            return None  # given back inside the block
        if not self._tenure.is_lost:
            try:
                await self.release()
            except errors.NotHolder:
                if kind is None:
                    raise self._lost() from None
            return None
        self._end()
        if kind is None:
            raise self._lost()
        return None

    def _end(self) -> None:
        self._is_released = True
        self._tenure.end()
        self._lock._forget(self)

    def _lost(self) -> errors.LockLost:
        return errors.LockLost(
            f"lock {self.name!r} with token {self.token} is lost: another may hold it now; stop what it protects",
            token=self.token,
        )


class AsyncLock:
    """A lock by name. Made without I/O; may be shared by tasks and threads."""

    def __init__(
        self,
        holder: AsyncHolder,
        name: str,
        *,
        timeout: float | None = None,
        ttl: float | None = None,
        renew: bool = True,
        lock_delay: float = 0,
        reentrant: Literal["task", "thread", "session"] | None = None,
        priority: int = 0,
        reason: str | None = None,
        on_loss: Literal["cancel", "signal"] = "cancel",
    ) -> None:
        self.name = check_name(name)
        self._holder = holder
        self._timeout = check_patience(timeout)
        self._ttl = check_ttl(ttl)
        self._renew = renew
        self._lock_delay = 0.0 if lock_delay == 0 else cast(float, check_ttl(lock_delay, "lock_delay"))
        if reentrant not in (None, "task", "thread", "session"):
            raise errors.InvalidArgument(
                f"reentrant is {reentrant!r}; it is task, thread or session", option="reentrant"
            )
        if on_loss not in ("cancel", "signal"):
            raise errors.InvalidArgument(f"on_loss is {on_loss!r}; it is cancel or signal", option="on_loss")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority must be int, not {type(priority).__name__}")
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"reason must be str, not {type(reason).__name__}")
        self._reentrant = reentrant
        self._priority = priority
        self._reason = reason
        self._on_loss = on_loss
        self._held: list[AsyncHold] = []
        self._entered: list[tuple[object, AsyncHold, AsyncLossGuard | None]] = []

    async def acquire(self, timeout: float | None = None, blocking: bool = True) -> AsyncHold:
        """Wait for the lock, first come first served. Raises ``WaitTimeout`` with nothing held.

        ``timeout`` None: the handle's own, which defaults to for ever. ``blocking=False`` is ``timeout=0``.
        """
        patience = check_patience(timeout)
        if not blocking:
            patience = 0.0
        elif patience is None:
            patience = self._timeout
        again = self._enter_again()
        if again is not None:
            return again
        holder = self._holder
        started = holder.now()
        peer_id, host, pid, label = holder.whoami()
        command = Acquire(
            self.name,
            ttl=self._ttl,
            lock_delay=self._lock_delay,
            priority=self._priority,
            reason=self._reason,
            peer_id=peer_id,
            host=host,
            pid=pid,
            label=label,
        )
        token = (await holder.submit(command, timeout=patience)).token
        try:
            if self._ttl is not None and holder.now() - started > self._ttl * CONFIRM_AFTER:
                started = holder.now()
                await holder.submit(Renew(self.name, token))
            renewal = Renew(self.name, token) if self._ttl is not None and self._renew else None
            tenure = holder.tenure(ttl=self._ttl, started=started, renewal=renewal)
            hold = AsyncHold(self, token, tenure, AsyncHere.scope())
            if tenure.is_lost:
                hold._end()
                raise hold._lost()
            self._held.append(hold)
            if self._reentrant is not None:
                _reentrant.setdefault(holder, {})[self._key()] = hold
            return hold
        except BaseException:
            holder.submit_soon(Release(self.name, token))
            raise

    async def try_acquire(self) -> AsyncHold | None:
        """The lock if it is free, else None, at once."""
        try:
            return await self.acquire(timeout=0)
        except errors.WaitTimeout:
            return None

    async def release(self) -> None:
        """Give back the hold that this handle took last, in this task or thread. Raises ``NotHolder``."""
        scope = AsyncHere.scope()
        for hold in reversed(self._held):
            if hold._scope == scope:
                await hold.release()
                return
        raise errors.NotHolder(f"lock {self.name!r} was not taken here; nothing changed")

    async def locked(self) -> bool:
        """By anyone."""
        return (await self.info()).token is not None

    async def info(self) -> LockInfo:
        return await self._holder.query(Info(self.name))

    async def break_(self, reason: str) -> bool:
        """For operators: take it from whoever holds it; audited. False: nobody did."""
        return await self._holder.submit(Break(self.name, check_name(reason, "reason")))

    async def __aenter__(self) -> AsyncHold:
        hold = await self.acquire()
        guard = AsyncLossGuard(hold._tenure) if self._on_loss == "cancel" else None
        self._entered.append((AsyncHere.scope(), hold, guard))
        if guard is not None:
            guard.__enter__()
        return hold

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        scope = AsyncHere.scope()
        place = max(place for place, entered in enumerate(self._entered) if entered[0] == scope)
        _, hold, guard = self._entered.pop(place)
        if guard is not None:
            swallowed = guard.__exit__(kind, error, trace)
            if guard.was_cut:
                hold._end()
                raise hold._lost()
            if swallowed:
                kind = error = trace = None
        return await hold.__aexit__(kind, error, trace)

    def __call__(self, function: F) -> F:
        """As a decorator: holds the lock around each call."""

        @wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            async with self:
                return await function(*args, **kwargs)

        return cast(F, call)

    def _key(self) -> tuple[str, str, object]:
        kind = self._reentrant or ""
        return self.name, kind, None if kind == "session" else AsyncHere.scope()

    def _enter_again(self) -> AsyncHold | None:
        if self._reentrant is None:
            return None
        hold = _reentrant.get(self._holder, {}).get(self._key())
        if hold is None or hold._is_released:
            return None
        hold.check()
        hold._depth += 1
        return hold

    def _forget(self, hold: AsyncHold) -> None:
        if hold in self._held:
            self._held.remove(hold)
        known = _reentrant.get(self._holder, {})
        for key in [key for key, other in known.items() if other is hold]:
            del known[key]
