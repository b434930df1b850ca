"""Meeting points as a caller holds them: ``AsyncGate``, ``AsyncLatch``, ``AsyncDoubleBarrier``, ``AsyncCyclicBarrier``.

Each wait is one waiting command, and all who wait are woken by one commit. Whatever ends a wait early (a time-out, a
cancellation, Ctrl-C) leaves nobody waiting in the caller's name; what that means for the others is said at each of them.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tauraft import errors
from tauraft.fsm import Command
from tauraft.handle import AsyncHere, AsyncHolder, check_name, check_patience
from tauraft.types import BarrierInfo, GateInfo, LatchInfo, OnLoss, Owner
from tauraft_primitives.barriers.messages import (
    MAX_COUNT,
    Abort,
    Acted,
    Arrive,
    Arrived,
    AskCyclic,
    AskDouble,
    AskGate,
    AskLatch,
    AwaitLatch,
    CloseGate,
    CountDown,
    Depart,
    Enter,
    Entered,
    GiveBackPlace,
    GiveUp,
    Leave,
    OpenGate,
    PassGate,
    Reset,
    ResetLatch,
    check_on_loss,
    check_parties,
)
from tauraft_primitives.checks import check_count
from tauraft_primitives.holds.handle import next_attempt, wait_for


class AsyncGate:
    """A gate by name, made closed. Made without I/O; may be shared by tasks and threads. It stays open when who opened it goes."""

    def __init__(self, holder: AsyncHolder, name: str) -> None:
        self.name = check_name(name)
        self._holder = holder

    async def open(self) -> None:
        """Let all pass who wait, and all who come, until it is closed. Open already: nothing changes."""
        await self._holder.submit(OpenGate(self.name))

    async def close(self) -> None:
        """Whoever comes waits from now on."""
        await self._holder.submit(CloseGate(self.name))

    async def is_open(self) -> bool:
        return (await self.info()).is_open

    async def wait(self, timeout: float | None = None) -> None:
        """Until it is open. Raises ``WaitTimeout``."""
        patience = check_patience(timeout)
        await wait_for(self._holder, PassGate(self.name, _who(self._holder), patience), patience)

    async def info(self) -> GateInfo:
        """Whether it is open, and who waits."""
        return await self._holder.query(AskGate(self.name))


class AsyncLatch:
    """Opens for good when it has been counted down ``count`` times. Made without I/O; may be shared by tasks and threads.

    It counts whoever counts: one who counted and went has counted. It stays open until ``reset``.
    """

    def __init__(self, holder: AsyncHolder, name: str, count: int) -> None:
        self.name = check_name(name)
        self._count = check_count(count, "count", MAX_COUNT)
        self._holder = holder

    async def count_down(self, n: int = 1) -> int:
        """Returns what is left, never below 0. Raises ``Mismatch`` where the latch was made with another count."""
        return await self._holder.submit(CountDown(self.name, self._count, n))

    async def wait(self, timeout: float | None = None) -> None:
        """Until nothing is left to count. Raises ``WaitTimeout``, ``Mismatch``, and ``BrokenBarrier`` when it is reset."""
        patience = check_patience(timeout)
        await wait_for(self._holder, AwaitLatch(self.name, self._count, _who(self._holder), patience), patience)

    async def reset(self) -> bool:
        """Forget it, for the next one of that name; who waits gets ``BrokenBarrier``. False: nobody had counted or waited."""
        return await self._holder.submit(ResetLatch(self.name))

    async def info(self) -> LatchInfo:
        """What is left, and who waits."""
        found = await self._holder.query(AskLatch(self.name))
        return LatchInfo(self.name, self._count, self._count, ()) if found is None else found


class AsyncDoubleBarrier:
    """All enter together and leave together. Made without I/O; may be shared by tasks and threads, each of which is a party.

    ``async with barrier:`` enters and leaves. A body that raises leaves without waiting for the others.
    """

    def __init__(self, holder: AsyncHolder, name: str, parties: int, *, on_loss: OnLoss = "break") -> None:
        self.name = check_name(name)
        self._parties = check_parties(parties)
        self._on_loss = check_on_loss(on_loss)
        self._holder = holder
        self._places: list[tuple[object, int]] = []  # of which task or thread, and the place

    async def enter(self, timeout: float | None = None) -> None:
        """Wait until all parties have entered. Raises ``WaitTimeout``: not entered; ``BrokenBarrier``; ``Mismatch``."""
        patience = check_patience(timeout)
        attempt = next_attempt()
        scope = AsyncHere.scope()
        command = Enter(self.name, self._parties, self._on_loss, _who(self._holder), patience, attempt)

        def entered(found: Entered) -> None:
            self._places.append((scope, found.place))

        await wait_for(self._holder, command, patience, GiveBackPlace(self.name, attempt), entered)

    async def leave(self, timeout: float | None = None) -> None:
        """Wait until all who are in leave. Raises ``BrokenBarrier`` when one of them was lost, ``WaitTimeout``, ``NotHolder``.

        However it ends, this party is out, and nobody waits for it.
        """
        patience = check_patience(timeout)
        place = self._mine()
        if place is None:
            raise errors.NotHolder(f"double barrier {self.name!r} was not entered here; nothing changed")
        try:
            await wait_for(self._holder, Leave(self.name, place, patience), patience)
        except BaseException as error:
            if not isinstance(error, errors.Refused | errors.WaitTimeout):
                self._holder.submit_soon(Depart(self.name, place))
            self._forget(place)
            raise
        self._forget(place)

    async def info(self) -> BarrierInfo:
        """How many parties there are, and how many wait to get in or are in."""
        found = await self._holder.query(AskDouble(self.name))
        return BarrierInfo(self.name, self._parties, 0, 0, False) if found is None else found

    async def __aenter__(self) -> Self:
        before = len(self._places)
        try:
            await self.enter()
            return self
        except BaseException:
            if len(self._places) > before:
                self._depart()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.leave()
        finally:
            self._depart()

    def _depart(self) -> None:
        """Out, without waiting."""
        place = self._mine()
        if place is not None:
            self._holder.submit_soon(Depart(self.name, place))
            self._forget(place)

    def _mine(self) -> int | None:
        scope = AsyncHere.scope()
        return next((place for where, place in reversed(self._places) if where == scope), None)

    def _forget(self, place: int) -> None:
        self._places[:] = [entry for entry in self._places if entry[1] != place]


class AsyncCyclicBarrier:
    """``parties`` wait for each other, again and again. Made without I/O; may be shared by tasks and threads.

    ``action`` runs once a round, when all have arrived and before anyone goes on, by the last of those that have one; if it
    raises, the barrier breaks. As ``threading.Barrier`` a broken one stays broken until ``reset``.
    """

    def __init__(
        self,
        holder: AsyncHolder,
        name: str,
        parties: int,
        action: Callable[[], object] | None = None,
        *,
        on_loss: OnLoss = "break",
    ) -> None:
        self.name = check_name(name)
        self._parties = check_parties(parties)
        if action is not None and (not callable(action) or inspect.iscoroutinefunction(action)):
            raise TypeError("action must be a function that is called, not awaited")
        self._action = action
        self._on_loss = check_on_loss(on_loss)
        self._holder = holder

    async def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties have arrived; the order of arrival, from 0.

        Raises ``BrokenBarrier``, whose ``who`` is the party that was lost or gave up, and ``Mismatch``. A wait that runs out
        (``WaitTimeout``) or is cancelled breaks the barrier for all; ``timeout=0`` does not: then this one has not arrived.
        """
        patience = check_patience(timeout)
        attempt = next_attempt()
        command = Arrive(
            self.name, self._parties, self._on_loss, self._action is not None, _who(self._holder), patience, attempt
        )
        give_up = GiveUp(self.name, attempt)
        try:
            arrived = await wait_for(self._holder, command, patience, give_up)
            if arrived.act:
                await self._act(arrived, give_up)
            return arrived.index
        except (errors.Refused, errors.WaitTimeout):
            raise  # of the barrier's own: all is settled
        except BaseException:
            self._holder.submit_soon(give_up)
            raise

    async def reset(self) -> None:
        """Make it new, with this handle's parties; who waits gets ``BrokenBarrier``."""
        await self._holder.submit(Reset(self.name))

    async def abort(self) -> None:
        """Break it: who waits or comes gets ``BrokenBarrier``, until ``reset``."""
        await self._holder.submit(Abort(self.name, self._parties, self._on_loss))

    async def info(self) -> BarrierInfo:
        """How many parties there are, how many wait, and whether it is broken."""
        found = await self._holder.query(AskCyclic(self.name))
        return BarrierInfo(self.name, self._parties, 0, 0, False) if found is None else found

    async def _act(self, arrived: Arrived, give_up: Command[None]) -> None:
        assert self._action is not None
        try:
            self._action()
        except BaseException:
            self._holder.submit_soon(give_up)
            raise
        await wait_for(self._holder, Acted(self.name, arrived.act), None, give_up)


def _who(holder: AsyncHolder) -> Owner:
    peer_id, host, pid, label = holder.whoami()
    return Owner(0, peer_id, host, pid, label)
