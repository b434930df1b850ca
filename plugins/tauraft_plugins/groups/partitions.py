"""The partitioner's state machine: so many partitions of work, shared among the workers that are there.

Each partition is *assigned* to one worker (``target``), and *held* by one or none, under a token of its own.  A worker takes what is
assigned to it and nobody holds.  When workers come or go the assignment changes as little as it can: nobody gives up more than is
above its quota, and the odd ones stay with who has most.  Whoever holds what is assigned to another is called
(``AwaitCall``), and lets go when it has come to its end; only then can the other take it.  Nothing but the end of its session
takes a partition from a worker that does not let go: two at once are worse than none for a while.

All is O(log n) but for the coming and going of workers, which looks at each partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from tauraft.errors import Mismatch, NotHolder
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import Owner, PartitionInfo, PartitionsInfo
from tauraft_primitives.locks.messages import WouldWait
from tauraft_primitives.partitions.messages import (
    PARTITIONS,
    AskPartitions,
    AwaitCall,
    GiveBackPartition,
    GiveBackWorker,
    HoldsPartition,
    JoinWorkers,
    LeaveWorkers,
    PartitionRow,
    ReleasePartition,
    TakenPartition,
    TakePartition,
)


@dataclass(frozen=True, slots=True)
class Worker:
    owner: Owner
    attempt: int


@dataclass(frozen=True, slots=True)
class Taker:
    ticket: Ticket[TakenPartition]
    attempt: int


class Partitions(FSM, name=PARTITIONS, version=1):
    teardown: ClassVar[int] = 50
    sql_views: ClassVar[Mapping[str, str]] = {
        "partitions": "SELECT key_0 AS name, key_1 AS number, target, holder, token FROM tauraft_partitions_assigned"
    }
    counts: Table[str, int]  # how many partitions
    workers: Table[tuple[str, int], Worker]  # (name, worker)
    assigned: Table[tuple[str, int], PartitionRow]  # (name, partition)
    free: Table[tuple[str, int, int], None]  # (name, target, partition): held by nobody
    takers: Table[tuple[str, int, int], Taker]  # (name, worker, revision)
    callers: Table[int, Ticket[None]]  # by the token whose holder wants to hear when it is called
    tokens: Table[int, tuple[str, int]]
    by_session: Table[tuple[int, str, int], None]  # (session, name, worker)
    taken: Table[tuple[int, str, int], None]  # (session, name, partition), of those that are held

    # ---- workers ----

    @applies(JoinWorkers)
    def join(self, command: JoinWorkers, context: Context) -> int:
        assert context.session is not None
        name = command.name
        count = self.counts.get(name)
        if count is None:
            self.counts[name] = command.partitions
        elif count != command.partitions:
            raise Mismatch(f"{name!r} has {count} partitions, not {command.partitions}; nobody joined")
        worker = context.new_revision()
        self.workers[name, worker] = Worker(replace(command.who, session=context.session), command.attempt)
        self.by_session[context.session, name, worker] = None
        self._share(name, context)
        return worker

    @applies(LeaveWorkers)
    def leave(self, command: LeaveWorkers, context: Context) -> None:
        worker = self.workers.get((command.name, command.worker))
        if worker is not None and worker.owner.session == context.session:
            self._remove(command.name, [command.worker], context)

    @applies(GiveBackWorker)
    def give_back_worker(self, command: GiveBackWorker, context: Context) -> None:
        session, name = context.session, command.name
        if session is None:
            return
        mine = [key[2] for key, _ in self.by_session.range((session, name, 0), (session, name + "\0", 0))]
        gone = [worker for worker in mine if self.workers[name, worker].attempt == command.attempt]
        if gone:
            self._remove(name, gone, context)

    @session_ended
    def lose_workers(self, session: int, context: Context) -> None:
        gone: dict[str, list[int]] = {}
        for (_, name, worker), _ in self.by_session.range((session, "", 0), (session + 1, "", 0)):
            gone.setdefault(name, []).append(worker)
        for name, workers in gone.items():
            self._remove(name, workers, context)

    # ---- partitions ----

    @applies(TakePartition)
    def take(self, command: TakePartition, context: Context) -> TakenPartition | Ticket[TakenPartition]:
        name, worker = command.name, command.worker
        found = self.workers.get((name, worker))
        if found is None or found.owner.session != context.session:
            raise NotHolder(f"worker {worker} is not one of {name!r} (any more); nothing was taken")
        ticket = context.wait(TakePartition)
        taker = Taker(ticket, command.attempt)
        first = next(self.free.range((name, worker, 0), (name, worker + 1, 0)), None)
        if first is not None:
            return self._grant(name, first[0][2], worker, taker, context)
        if command.patience == 0:
            raise WouldWait("would-wait", "nothing more is this worker's at the moment; nobody waits")
        self.takers[name, worker, ticket.revision] = taker
        return ticket

    @withdraws(TakePartition)
    def withdraw(self, command: TakePartition, ticket: Ticket[TakenPartition], context: Context) -> None:
        name, key = command.name, (command.name, command.worker, ticket.revision)
        waiting = self.takers.get(key)
        if waiting is not None and waiting.ticket == ticket:
            del self.takers[key]
            return
        for partition in self._taken_by(ticket.session, name):
            if self.assigned[name, partition].sequence == ticket.sequence:
                self._let_go(name, partition, context)

    @applies(ReleasePartition)
    def release(self, command: ReleasePartition, context: Context) -> None:
        row = self.assigned.get((command.name, command.partition))
        if row is None or row.token != command.token or not row.holder:
            raise NotHolder(
                f"token {command.token} does not hold partition {command.partition} of {command.name!r} (any more)"
            )
        self._let_go(command.name, command.partition, context)

    @applies(GiveBackPartition)
    def give_back(self, command: GiveBackPartition, context: Context) -> None:
        if context.session is None:
            return
        for partition in self._taken_by(context.session, command.name):
            if self.assigned[command.name, partition].attempt == command.attempt:
                self._let_go(command.name, partition, context)

    @applies(AwaitCall)
    def await_call(self, command: AwaitCall, context: Context) -> Ticket[None] | None:
        row = self.assigned.get((command.name, command.partition))
        if row is None or not row.holder or row.token != command.token or row.target != row.holder:
            return None
        if command.token in self.callers or row.session != context.session:
            raise NotHolder(f"token {command.token} is not this session's, or waits already")
        ticket = self.callers[command.token] = context.wait(AwaitCall)
        return ticket

    @withdraws(AwaitCall)
    def withdraw_call(self, command: AwaitCall, ticket: Ticket[None], context: Context) -> None:
        if self.callers.get(command.token) == ticket:
            del self.callers[command.token]

    # ---- looking ----

    def is_held(self, token: int) -> bool:
        """For ``tauraft.fencing``: whether the partition of that token is still held."""
        return token in self.tokens

    @answers(HoldsPartition)
    def holds_it(self, query: HoldsPartition) -> bool:
        return self.tokens.get(query.token) == (query.name, query.partition)

    @answers(AskPartitions)
    def info(self, query: AskPartitions) -> PartitionsInfo | None:
        name = query.name
        if name not in self.counts:
            return None
        owners = {worker: found.owner for (_, worker), found in self._workers_of(name)}
        partitions = tuple(
            PartitionInfo(
                partition,
                owners.get(row.holder),
                row.token if row.holder else None,
                None if row.target == row.holder else owners.get(row.target),
            )
            for (_, partition), row in self._partitions_of(name)
        )
        return PartitionsInfo(name, tuple(owners.values()), partitions)

    # ---- who is to have what ----

    def _share(self, name: str, context: Context) -> None:
        """Assign every partition to a worker that is there, changing as little as possible."""
        workers = [key[1] for key, _ in self._workers_of(name)]
        count = self.counts[name]
        rows = dict.fromkeys(range(count), PartitionRow(0)) | {key[1]: row for key, row in self._partitions_of(name)}
        has = dict.fromkeys(workers, 0)
        for row in rows.values():
            if row.target in has:
                has[row.target] += 1
        least, odd = divmod(count, len(workers))
        by_number = sorted(workers, key=lambda worker: (-has[worker], worker))
        quota = {worker: least + (place < odd) for place, worker in enumerate(by_number)}
        homeless = []
        for partition in reversed(range(count)):
            target = rows[partition].target
            if target not in has:
                homeless.append(partition)
            elif has[target] > quota[target]:
                has[target] -= 1
                homeless.append(partition)
        in_need = [worker for worker in workers if has[worker] < quota[worker]]
        for partition in reversed(homeless):
            row = rows[partition]
            # Who still holds it, having been told to let go of it, may as well have it again.
            keeps = row.holder in has and has[row.holder] < quota[row.holder]
            worker = row.holder if keeps else next(worker for worker in in_need if has[worker] < quota[worker])
            has[worker] += 1
            self._assign(name, partition, row, worker, context)

    def _assign(self, name: str, partition: int, row: PartitionRow, worker: int, context: Context) -> None:
        if not row.holder:
            self.free.pop((name, row.target, partition), None)
        self.assigned[name, partition] = replace(row, target=worker)
        if not row.holder:
            self._offer(name, partition, worker, context)
        elif row.holder != worker:
            self._call(row.token, context)

    def _offer(self, name: str, partition: int, worker: int, context: Context) -> None:
        self.free[name, worker, partition] = None
        first = next(self.takers.range((name, worker, 0), (name, worker + 1, 0)), None)
        if first is not None:
            key, taker = first
            del self.takers[key]
            context.answer(taker.ticket, self._grant(name, partition, worker, taker, context))

    def _grant(self, name: str, partition: int, worker: int, taker: Taker, context: Context) -> TakenPartition:
        token = context.new_revision()
        session = taker.ticket.session
        del self.free[name, worker, partition]
        self.assigned[name, partition] = PartitionRow(
            worker, worker, token, session, taker.ticket.sequence, taker.attempt
        )
        self.tokens[token] = name, partition
        self.taken[session, name, partition] = None
        return TakenPartition(partition, token)

    def _let_go(self, name: str, partition: int, context: Context) -> None:
        row = self._forget_hold(name, partition, context)
        self._offer(name, partition, row.target, context)

    def _forget_hold(self, name: str, partition: int, context: Context) -> PartitionRow:
        row = self.assigned[name, partition]
        del self.tokens[row.token]
        del self.taken[row.session, name, partition]
        self._call(row.token, context)
        left = self.assigned[name, partition] = PartitionRow(row.target)
        return left

    def _call(self, token: int, context: Context) -> None:
        ticket = self.callers.pop(token, None)
        if ticket is not None:
            context.answer(ticket, None)

    def _remove(self, name: str, gone: list[int], context: Context) -> None:
        for worker in gone:
            found = self.workers.pop((name, worker))
            del self.by_session[found.owner.session, name, worker]
            for key, taker in list(self.takers.range((name, worker, 0), (name, worker + 1, 0))):
                del self.takers[key]
                context.answer(taker.ticket, NotHolder(f"the worker has left {name!r}; nothing was taken"))
            for (_, partition), row in self._partitions_of(name):
                if row.holder == worker:
                    self.free[name, self._forget_hold(name, partition, context).target, partition] = None
        if self._workers_of(name):
            self._share(name, context)
            return
        del self.counts[name]
        for place, row in self._partitions_of(name):
            del self.assigned[place]
            del self.free[name, row.target, place[1]]

    def _workers_of(self, name: str) -> list[tuple[tuple[str, int], Worker]]:
        return list(self.workers.range((name, 0), (name + "\0", 0)))

    def _partitions_of(self, name: str) -> list[tuple[tuple[str, int], PartitionRow]]:
        return list(self.assigned.range((name, 0), (name + "\0", 0)))

    def _taken_by(self, session: int, name: str) -> list[int]:
        return [key[2] for key, _ in self.taken.range((session, name, 0), (session, name + "\0", 0))]
