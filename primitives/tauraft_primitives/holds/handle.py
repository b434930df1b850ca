"""What was granted, and the block it is held in: the same for locks, permits, readers and writers.

``take`` is the one way to a hold: it waits, confirms what was granted after waiting (SAFETY 2), and makes sure that
whatever ends it early (a cancellation, Ctrl-C, an error after the grant) leaves nothing held.  It names each try by an
*attempt*, so that what was granted can be given back before its token is known.

A hold is as safe as its *tenure* (``tauraft.handle``): it counts this process out before the cluster gives what it
holds to another (SAFETY 2).  One that was lost is not released: others may rely on ``lock_delay``, which is for lost holds.

``HeldBlock`` is ``with``: the hold is taken, the body cut short when it is lost (async), and what is left given back.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar, overload

from tauraft import errors
from tauraft.fsm import Command, Query
from tauraft.handle import AsyncHere, AsyncHolder, AsyncLossGuard, AsyncSignal, Reminder, Tenure, how_long_since
from tauraft.types import Owner
from tauraft_primitives.locks.messages import Grant, Standing, WouldWait

A = TypeVar("A")
H = TypeVar("H")

logger: Final = logging.getLogger("tauraft.locks")

REMIND_AFTER_S: Final = 5.0
# An answer that took this much of the ttl is confirmed by a renewal as well: less of the ttl would be left otherwise.
CONFIRM_AFTER: Final = 0.05

_attempts: Final = count(1)


def next_attempt() -> int:
    """A number that no other acquire of this process has."""
    return next(_attempts)


async def take(
    holder: AsyncHolder,
    command: Command[Grant],
    give_back: Command[Any],
    build: Callable[[Grant, float], H],
    *,
    patience: float | None,
    reminder: Reminder | None = None,
    ttl: float | None = None,
    renewals: Callable[[Grant], list[Command[None]]] = lambda grant: [],
) -> H:
    """Wait for the grant and ``build(grant, started)`` the hold from it, or leave nothing held and raise.

    ``give_back`` frees whatever the attempt of ``command`` was granted.
    """
    began = holder.now()
    try:
        while True:
            left = patience if not patience else max(0.001, patience - (holder.now() - began))
            started = holder.now()
            grant = await holder.submit(command, timeout=left, reminder=reminder)
            if ttl is None or not (grant.waited or holder.now() - started > ttl * CONFIRM_AFTER):
                return build(grant, started)
            started = holder.now()
            try:
                await holder.transaction(*renewals(grant))
            except errors.NotHolder:
                continue  # it ran out before it was confirmed: back into the queue
            return build(grant, started)
    except WouldWait:
        raise errors.WaitTimeout("it is not free; nothing is held, nobody waits") from None
    except (errors.Refused, errors.WaitTimeout):
        raise  # certain: nothing is held
    except BaseException:
        holder.submit_soon(give_back)
        raise


@overload
async def wait_for(
    holder: AsyncHolder, command: Command[A], patience: float | None, undo: Command[Any] | None = None
) -> A: ...
@overload
async def wait_for(
    holder: AsyncHolder,
    command: Command[A],
    patience: float | None,
    undo: Command[Any] | None,
    build: Callable[[A], H],
) -> H: ...
async def wait_for(
    holder: AsyncHolder,
    command: Command[Any],
    patience: float | None,
    undo: Command[Any] | None = None,
    build: Callable[[Any], Any] = lambda answer: answer,
) -> Any:
    """Wait for the answer, and ``build`` what is returned from it, or leave nothing waiting or held and raise.

    ``undo`` undoes what ``command`` may have been given, where something ended this early.
    """
    try:
        return build(await holder.submit(command, timeout=patience))
    except WouldWait as error:
        raise errors.WaitTimeout(str(error)) from None
    except errors.Refused as error:
        _name_owner(error)
        raise
    except errors.WaitTimeout:
        raise
    except BaseException:
        if undo is not None:
            holder.submit_soon(undo)
        raise


def _name_owner(error: errors.Refused) -> None:
    if isinstance(error, errors.BrokenBarrier) and isinstance(error.who, dict):
        error.who = Owner(**error.who)  # errors cross the wire as plain values


def reminder_of(what: str, ask: Callable[[int], Query[Standing | None]]) -> Reminder:
    """After ``REMIND_AFTER_S`` the log says who keeps ``what``, and how many are ahead."""

    def tell(standing: Standing | None) -> None:
        if standing is not None:
            logger.warning("still waiting for %s: %s", what, standing_in_words(standing))

    return Reminder(ask, tell, REMIND_AFTER_S)


def standing_in_words(standing: Standing) -> str:
    """Like "held by worker-3@host2 pid 812 for 4 m ('backfill'); 2 ahead of you"."""
    ahead = f"{standing.ahead} ahead of you"
    if standing.holder is None:
        return f"held by nobody now; {ahead}"
    owner = standing.holder
    text = f"held by {owner.label or owner.peer_id or f'session {owner.session}'}@{owner.host} pid {owner.pid}"
    if standing.since is not None:
        text += f" for {how_long_since(standing.since)}"
    if standing.reason is not None:
        text += f" ({standing.reason!r})"
    return f"{text}; {ahead}"


class AsyncHold:
    """What was granted. ``token`` fences: give it to whatever the lock protects."""

    def __init__(
        self,
        holder: AsyncHolder,
        what: str,
        name: str,
        token: int,
        tenure: Tenure,
        *,
        release: Command[None],
        holds: Query[bool],
        ended: Callable[[Any], object] = lambda hold: None,
    ) -> None:
        self.name = name
        self.token = token
        self.lost = AsyncSignal(tenure.state)
        self._holder = holder
        self._what = what
        self._tenure = tenure
        self._release = release
        self._holds = holds
        self._ended = ended
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
        if not await self._holder.query(self._holds):
            raise self._lost()

    async def release(self) -> None:
        """Give it back. Raises ``NotHolder`` when it was released before, or lost. Of a reentrant hold: one level."""
        try:
            if self._is_released or self._tenure.is_lost:
                self._end()
                raise errors.NotHolder(
                    f"{self._what} {self.name!r} is not held with token {self.token} any more; nothing changed"
                )
            if self._depth > 1:
                self._depth -= 1
                return
            self._end()
            await self._holder.submit(self._release)
        except errors.Refused:
            raise
        except BaseException:
            # Interrupted or unanswered: the engine goes on saying it, so that nobody waits for the session's end.
            if self._depth == 1:
                self._drop()
            raise

    def _drop(self) -> None:
        """Give it back without waiting: the caller is interrupted."""
        self._end()
        self._holder.submit_soon(self._release)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await self._left(kind)
        except errors.TauraftError:
            raise
        except BaseException:  # interrupted on the way out
            if not self._is_released and self._depth == 1:
                self._drop()
            raise

    async def _left(self, kind: type[BaseException] | None) -> bool | None:
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
        self._ended(self)

    def _lost(self) -> errors.LockLost:
        return errors.LockLost(
            f"{self._what} {self.name!r} with token {self.token} is lost: another may hold it now; stop what it protects",
            token=self.token,
        )


class AsyncHeldBlock(Generic[H]):
    """``async with``: takes a hold, cuts the body short when it is lost, gives it back. May be entered by several tasks."""

    _on_loss: Literal["cancel", "signal"] = "cancel"

    def __init__(self) -> None:
        self._entered: list[tuple[object, H, AsyncLossGuard | None]] = []

    async def _take(self) -> H:
        raise NotImplementedError

    def _parts(self, held: H) -> tuple[AsyncHold, ...]:
        """The holds of which any that is lost cuts the body short."""
        raise NotImplementedError

    async def _leave(
        self, held: H, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        raise NotImplementedError

    async def __aenter__(self) -> H:
        held: H | None = None
        try:
            held = await self._take()
            guard = None
            if self._on_loss == "cancel":
                guard = AsyncLossGuard(*(hold._tenure for hold in self._parts(held)))
            self._entered.append((AsyncHere.scope(), held, guard))
            if guard is not None:
                guard.__enter__()
            return held
        except BaseException:
            if held is not None:
                for hold in self._parts(held):
                    hold._drop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await self._exit(kind, error, trace)
        except errors.TauraftError:
            raise
        except BaseException:  # interrupted on the way out
            for hold in self._parts(self._mine()[1]):
                if not hold._is_released and hold._depth == 1:
                    hold._drop()
            raise
        finally:
            self._entered.remove(self._mine())

    async def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        _, held, guard = self._mine()
        if guard is not None:
            swallowed = guard.__exit__(kind, error, trace)
            if guard.was_cut:
                holds = self._parts(held)
                lost = next((hold for hold in holds if hold._tenure.is_lost), holds[0])
                for hold in holds:
                    if hold is lost or hold._tenure.is_lost:
                        hold._end()
                    else:
                        hold._drop()
                raise lost._lost()
            if swallowed:
                kind = error = trace = None
        return await self._leave(held, kind, error, trace)

    def _mine(self) -> tuple[object, H, AsyncLossGuard | None]:
        """What this task or thread entered last, and has not left."""
        scope = AsyncHere.scope()
        return next(entered for entered in reversed(self._entered) if entered[0] == scope)


class AsyncOneHeld(AsyncHeldBlock[H], Generic[H]):
    """A block of one hold."""

    def _parts(self, held: H) -> tuple[AsyncHold, ...]:
        assert isinstance(held, AsyncHold)
        return (held,)

    async def _leave(
        self, held: H, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert isinstance(held, AsyncHold)
        return await held.__aexit__(kind, error, trace)
