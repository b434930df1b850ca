"""A share of the work as a caller holds it: ``AsyncPartitioner`` is one worker, ``AsyncPartition`` what it has to do.

    async with cluster.partitioner("orders", 16) as mine:
        async for partition in mine:
            tasks.start_soon(work, partition)

    async def work(partition):
        async with partition:      # cut short when it must be handed over; handed over when the block has ended
            ...

A partition is a hold with a waiting command beside it that is answered when another worker is to have it
(``Tenure.lose_when``).  It goes to that worker when it is released here, not before, so two never work on it at once.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from tauraft import errors
from tauraft.handle import AsyncHolder, AsyncLossGuard, check_name, check_patience
from tauraft.types import Owner, PartitionsInfo
from tauraft_primitives.checks import check_count
from tauraft_primitives.holds.handle import AsyncHold, next_attempt, wait_for
from tauraft_primitives.partitions.messages import (
    MAX_PARTITIONS,
    AskPartitions,
    AwaitCall,
    GiveBackPartition,
    GiveBackWorker,
    HoldsPartition,
    JoinWorkers,
    LeaveWorkers,
    ReleasePartition,
    TakenPartition,
    TakePartition,
)


class AsyncPartition(AsyncHold):
    """A partition that is this worker's, until it is called for or given back. ``token`` fences what is done with it.

    ``lost`` is set, and ``check`` raises, when it is to be handed over as when the session is lost. Its ``async with`` gives it back;
    called for, the body is cancelled (blocking: it looks at ``lost``, or lets ``check`` raise) and nothing is raised.
    """

    partition: int
    _guard: AsyncLossGuard | None = None

    async def release(self) -> None:
        """It goes to whom it is assigned, which may be this worker again. Raises ``NotHolder`` when given back or lost."""
        if self._is_released or not self._is_kept():
            self._end()
            raise errors.NotHolder(
                f"{self._what} {self.name!r} is not held with token {self.token} any more; nothing changed"
            )
        self._end()
        try:
            await self._holder.submit(self._release)
        except errors.Refused:
            raise
        except BaseException:
            self._holder.submit_soon(self._release)
            raise

    async def __aenter__(self) -> Self:
        self._guard = AsyncLossGuard(self._tenure)
        try:
            self._guard.__enter__()
            return self
        except BaseException:
            self._drop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await self._leave(kind, error, trace)
        except errors.TauraftError:
            raise
        except BaseException:  # interrupted on the way out
            if not self._is_released:
                self._drop()
            raise

    async def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._guard is not None
        is_mine = isinstance(error, errors.LockLost) and error.token == self.token
        swallowed = self._guard.__exit__(kind, error, trace) or is_mine
        is_over = kind is None or swallowed
        if self._is_released:
            return swallowed  # given back inside the block
        if not self._is_kept():
            self._end()
            if is_over:
                raise self._lost()
            return None
        if self._tenure.is_lost:
            self._drop()  # called for: nobody waits for it here
        else:
            await self.release()
        return swallowed

    def _is_kept(self) -> bool:
        """By the cluster: called for or not, while the session lasts it is nobody else's."""
        return self._holder.now() < self._tenure.deadline


class AsyncPartitioner:
    """One worker among those of that name, while its block lasts. Made without I/O; tasks and threads may share it.

    Each worker gets its share of ``partitions``; when workers come or go as few as possible change hands. Leaving the block leaves
    the workers: what is still held goes to others, so end what is done with it first.
    """

    def __init__(self, holder: AsyncHolder, group: str, partitions: int) -> None:
        self.name = check_name(group, "group")
        self._count = check_count(partitions, "partitions", MAX_PARTITIONS)
        self._holder = holder
        self._worker = 0
        self._held: list[AsyncPartition] = []

    async def __aenter__(self) -> AsyncPartitioner:
        if self._worker:
            raise errors.InvalidArgument("this worker has joined already; make another one", option="partitioner")
        attempt = next_attempt()
        command = JoinWorkers(self.name, self._count, Owner(0, *self._holder.whoami()), attempt)

        def joined(worker: int) -> AsyncPartitioner:
            self._worker = worker
            return self

        try:
            return await wait_for(self._holder, command, None, GiveBackWorker(self.name, attempt), joined)
        except BaseException:
            self._worker = 0
            raise

    async def __aexit__(self, *exc: object) -> None:
        try:
            for partition in list(self._held):
                partition._end()
            await self._holder.submit(LeaveWorkers(self.name, self._worker))
            self._worker = 0
        except BaseException:
            self._leave()
            raise

    async def next(self, timeout: float | None = None) -> AsyncPartition:
        """The next partition that becomes this worker's. Raises ``WaitTimeout``, and ``NotHolder`` once it has left."""
        patience = check_patience(timeout)
        if not self._worker:
            raise errors.InvalidArgument("use `with` (`async with`) to join the workers first", option="partitioner")
        holder, name, attempt = self._holder, self.name, next_attempt()
        started = holder.now()

        def build(taken: TakenPartition) -> AsyncPartition:
            partition = AsyncPartition(
                holder,
                f"partition {taken.partition} of",
                name,
                taken.token,
                holder.tenure(ttl=None, started=started, renewal=None),
                release=ReleasePartition(name, taken.partition, taken.token),
                holds=HoldsPartition(name, taken.partition, taken.token),
                ended=self._ended,
            )
            partition.partition = taken.partition
            partition._tenure.lose_when(AwaitCall(name, taken.partition, taken.token))
            self._held.append(partition)
            return partition

        command = TakePartition(name, self._worker, patience, attempt)
        return await wait_for(holder, command, patience, GiveBackPartition(name, attempt), build)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncPartition:
        return await self.next()

    async def info(self) -> PartitionsInfo:
        """Who the workers are, who has which partition, and which are to change hands."""
        found = await self._holder.query(AskPartitions(self.name))
        return PartitionsInfo(self.name, (), ()) if found is None else found

    def _leave(self) -> None:
        if self._worker:
            self._holder.submit_soon(LeaveWorkers(self.name, self._worker))
            self._worker = 0

    def _ended(self, partition: Any) -> None:
        if partition in self._held:
            self._held.remove(partition)
