"""Locks as a caller holds them: ``AsyncLock`` by name, ``AsyncLockAll`` for several at once.

An acquire is one waiting command; the answer is the fencing token.  What a hold is, how it is taken so that nothing stays
held when the caller is interrupted, and what leaving a block does, is in ``tauraft_primitives.holds``.

A reentrant lock looks first whether this task, thread or session holds it: the inner ``with`` gives the same hold,
with no round trip, and each must be left.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import MappingProxyType, TracebackType
from typing import Any, Literal, TypeVar, cast
from weakref import WeakKeyDictionary

from tauraft import errors
from tauraft.fsm import Command
from tauraft.handle import AsyncHere, AsyncHolder, check_name, check_patience
from tauraft.types import LockInfo
from tauraft_primitives.holds.handle import (
    AsyncHeldBlock,
    AsyncHold,
    AsyncOneHeld,
    next_attempt,
    reminder_of,
    take,
)
from tauraft_primitives.locks.messages import (
    MIN_TTL_S,
    Acquire,
    AcquireAll,
    AskStanding,
    Break,
    GiveBack,
    Grant,
    Holds,
    Info,
    Release,
    Renew,
    check_priority,
    check_reason,
    check_seconds,
)

F = TypeVar("F", bound=Callable[..., Any])

# Reentrant holds by facade, then (name, kind of scope, scope): every handle of that name finds them.
_reentrant: WeakKeyDictionary[object, dict[tuple[str, str, object], AsyncHold]] = WeakKeyDictionary()


class AsyncLock(AsyncOneHeld[AsyncHold]):
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
        super().__init__()
        self.name = check_name(name)
        if type(renew) is not bool:
            raise TypeError(f"renew must be bool, not {type(renew).__name__}")
        if reentrant not in (None, "task", "thread", "session"):
            raise errors.InvalidArgument(
                f"reentrant is {reentrant!r}; it is task, thread or session", option="reentrant"
            )
        if on_loss not in ("cancel", "signal"):
            raise errors.InvalidArgument(f"on_loss is {on_loss!r}; it is cancel or signal", option="on_loss")
        check_priority(priority)
        if reason is not None:
            check_reason(reason)
        self._holder = holder
        self._timeout = check_patience(timeout)
        self._ttl = None if ttl is None else check_seconds("ttl", ttl, MIN_TTL_S)
        self._renew = renew
        self._lock_delay = check_seconds("lock_delay", lock_delay, 0)
        self._reentrant = reentrant
        self._priority = priority
        self._reason = reason
        self._on_loss = on_loss
        self._held: list[tuple[object, AsyncHold]] = []

    async def acquire(self, timeout: float | None = None, blocking: bool = True) -> AsyncHold:
        """Wait for the lock, first come first served. Raises ``WaitTimeout`` with nothing held, or ``Deadlock``.

        ``timeout`` None: the handle's own, which defaults to for ever. ``blocking=False`` is ``timeout=0``.
        """
        patience = check_patience(timeout)
        if not blocking:
            patience = 0.0
        elif patience is None:
            patience = self._timeout
        return self._enter_again() or await self._enter_anew(patience)

    async def try_acquire(self) -> AsyncHold | None:
        """The lock if it is free, else None, at once."""
        try:
            return await self.acquire(timeout=0)
        except errors.WaitTimeout:
            return None

    async def release(self) -> None:
        """Give back the hold that this handle took last, in this task or thread. Raises ``NotHolder``."""
        scope = AsyncHere.scope()
        for where, hold in reversed(self._held):
            if where == scope:
                await hold.release()
                return
        raise errors.NotHolder(f"lock {self.name!r} was not taken here; nothing changed")

    async def locked(self) -> bool:
        """By anyone."""
        return (await self.info()).token is not None

    async def info(self) -> LockInfo:
        """Who holds it, since when and why; who waits; who broke it last."""
        return await self._holder.query(Info(self.name))

    async def break_(self, reason: str) -> bool:
        """For operators: take it from whoever holds it. Who did and why stays on record. False: nobody held it.

        Its holder learns of it at its next ``verify``, release, renewal or fenced write.
        """
        peer_id, host, pid, label = self._holder.whoami()
        return await self._holder.submit(Break(self.name, reason, peer_id, host, pid, label))

    def __call__(self, function: F) -> F:
        """As a decorator: holds the lock around each call."""

        @wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            async with self:
                return await function(*args, **kwargs)

        return cast(F, call)

    async def _take(self) -> AsyncHold:
        return await self.acquire()

    async def _enter_anew(self, patience: float | None) -> AsyncHold:
        peer_id, host, pid, label = self._holder.whoami()
        attempt, here = next_attempt(), AsyncHere.scope()
        renews = self._ttl is not None and self._renew
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
            renews=renews,
            patience=patience,
            party=here,
            attempt=attempt,
        )

        def build(grant: Grant, started: float) -> AsyncHold:
            hold = _hold_of(self._holder, self.name, grant.token, self._ttl, started, renews, self._forget)
            self._held.append((here, hold))
            if self._reentrant is not None:
                _reentrant.setdefault(self._holder, {})[self._key()] = hold
            return hold

        return await take(
            self._holder,
            command,
            GiveBack((self.name,), attempt),
            build,
            patience=patience,
            reminder=reminder_of(f"lock {self.name!r}", lambda session: AskStanding(self.name, session, attempt)),
            ttl=self._ttl,
            renewals=lambda grant: [Renew(self.name, grant.token)],
        )

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
        self._held = [(where, other) for where, other in self._held if other is not hold]
        known = _reentrant.get(self._holder, {})
        for key in [key for key, other in known.items() if other is hold]:
            del known[key]


class AsyncLockAll(AsyncHeldBlock[Mapping[str, AsyncHold]]):
    """Several locks, all or none: whoever takes its locks only so cannot deadlock, in whatever order it names them."""

    def __init__(
        self, holder: AsyncHolder, names: Sequence[str], *, timeout: float | None = None, ttl: float | None = None
    ) -> None:
        super().__init__()
        if isinstance(names, str):
            raise TypeError("names must be a sequence of str, not one str")
        self.names = tuple(names)
        AcquireAll(self.names)  # looks at them
        self._holder = holder
        self._timeout = check_patience(timeout)
        self._ttl = None if ttl is None else check_seconds("ttl", ttl, MIN_TTL_S)

    async def acquire(self, timeout: float | None = None) -> Mapping[str, AsyncHold]:
        """Wait until all are free, in fair order, holding none meanwhile. Raises ``WaitTimeout``, ``Deadlock``."""
        patience = check_patience(timeout)
        if patience is None:
            patience = self._timeout
        peer_id, host, pid, label = self._holder.whoami()
        attempt = next_attempt()
        renews = self._ttl is not None
        command = AcquireAll(
            self.names,
            ttl=self._ttl,
            peer_id=peer_id,
            host=host,
            pid=pid,
            label=label,
            renews=renews,
            patience=patience,
            party=AsyncHere.scope(),
            attempt=attempt,
        )

        def build(grant: Grant, started: float) -> Mapping[str, AsyncHold]:
            granted = zip(self.names, grant.tokens, strict=True)
            return MappingProxyType(
                {name: _hold_of(self._holder, name, token, self._ttl, started, renews) for name, token in granted}
            )

        what = f"locks {', '.join(map(repr, self.names))}"
        return await take(
            self._holder,
            command,
            GiveBack(self.names, attempt),
            build,
            patience=patience,
            reminder=reminder_of(what, lambda session: AskStanding(self.names[0], session, attempt)),
            ttl=self._ttl,
            renewals=lambda grant: [Renew(name, token) for name, token in zip(self.names, grant.tokens, strict=True)],
        )

    async def _take(self) -> Mapping[str, AsyncHold]:
        return await self.acquire()

    def _parts(self, held: Mapping[str, AsyncHold]) -> tuple[AsyncHold, ...]:
        return tuple(held.values())

    async def _leave(
        self,
        held: Mapping[str, AsyncHold],
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """Gives back in one command what was not given back inside the block."""
        held_still = [hold for hold in held.values() if not hold._is_released]
        lost = next((hold for hold in held_still if hold._tenure.is_lost), None)
        releases: list[Command[None]] = [hold._release for hold in held_still if not hold._tenure.is_lost]
        try:
            for hold in held_still:
                hold._end()
            if releases:
                await self._holder.transaction(*releases)
        except errors.NotHolder:
            # One was broken: the others are given back all the same.
            for hold in held_still:
                self._holder.submit_soon(hold._release)
            lost = lost or held_still[0]
        except BaseException:
            for hold in held_still:
                self._holder.submit_soon(hold._release)
            raise
        if lost is not None and kind is None:
            raise lost._lost() from None
        return None


def _hold_of(
    holder: AsyncHolder,
    name: str,
    token: int,
    ttl: float | None,
    started: float,
    renews: bool,
    ended: Callable[[AsyncHold], object] = lambda hold: None,
) -> AsyncHold:
    tenure = holder.tenure(ttl=ttl, started=started, renewal=Renew(name, token) if renews else None)
    return AsyncHold(
        holder, "lock", name, token, tenure, release=Release(name, token), holds=Holds(name, token), ended=ended
    )
