"""What simulated clients do, and what they note.

Registers, pairs written and read in transactions, and sums for linearizability (a sum also shows a command that took
effect twice), counting under a lock for exclusion, and large values so that logs and snapshots grow.  Each client is a real session.  Nothing is retried here:
an error is noted with its outcome, as a careful user would; what a killed client was doing is noted as unknown.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any, TypeAlias

import trio

from tauraft.errors import TauraftError
from tauraft.simulator.checkers.exclusion import Exclusion
from tauraft.simulator.history import History, Known, Operation
from tauraft.simulator.tally import Add
from tauraft.simulator.world import SimulatedClient, World
from tauraft_primitives.counters.messages import Add as Count
from tauraft_primitives.kv.messages import CompareAndSet, Get, Put
from tauraft_primitives.kv.transaction import Transaction
from tauraft_primitives.locks.messages import Acquire, Release

Work: TypeAlias = Callable[[SimulatedClient, Random], Awaitable[None]]
THINK_S = 0.3
PAIR = ("pair/a", "pair/b")


class Workload:
    """Shared books of all clients of one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.history = History()
        self.exclusion = Exclusion()
        self.counted = 0
        self.maybe_counted = 0
        self.acknowledged = 0
        self.is_over = False
        self.clients: list[SimulatedClient] = []  # at work

    async def employ(self, work: Work, random: Random) -> None:
        """A client after a client: one that is killed or loses its session is followed by another."""
        while not self.is_over:
            async with self.world.client() as client:
                self.clients.append(client)
                with client.life:
                    await client.opened()
                    await work(client, random)
                self.clients.remove(client)

    async def use_registers(self, client: SimulatedClient, random: Random) -> None:
        """Puts, gets, compare-and-sets and sums of distinct values on few keys, and on a pair of keys in transactions."""
        number = 0
        while not self.is_over and not client.is_lost:
            number += 1
            key = f"key-{random.randrange(3)}"
            value = f"{client.name}/{number}"
            match random.choice(("put", "get", "get", "cas", "add", "count", "write pair", "read pair")):
                case "put":
                    await self._note(client, "put", key, value, client.submit(Put(key, value.encode()), 3), _nothing)
                case "get":
                    await self._note(client, "get", key, None, client.query(Get(key), 3), _text)
                case "cas":
                    expected = f"client-{random.randrange(1, 4)}/{random.randrange(1, number + 1)}"
                    command = CompareAndSet(key, expected.encode(), value.encode())
                    await self._note(client, "cas", key, (expected, value), client.submit(command, 3), _is_done)
                case "count":
                    amount, counter = random.randrange(1, 1 << 30), f"counter-{random.randrange(2)}"
                    await self._note(client, "add", counter, amount, client.submit(Count(counter, amount), 3), _itself)
                case "write pair":
                    written = Transaction((), [Put(one, value.encode()) for one in PAIR]).command
                    await self._note(client, "put", "pair", value, client.submit(written, 3), _nothing)
                case "read pair":
                    both = Transaction((), [Get(one) for one in PAIR])
                    read = client.submit(both.command, 3)
                    await self._note(client, "get", "pair", None, read, partial(_one_of, both))
                case _:
                    amount = random.randrange(1, 1 << 30)
                    sum_of = f"sum-{random.randrange(2)}"
                    await self._note(client, "add", sum_of, amount, client.submit(Add(sum_of, amount), 3), _itself)
            await trio.sleep(random.uniform(0, THINK_S))

    async def _note(
        self,
        client: SimulatedClient,
        kind: str,
        key: str,
        argument: Any,
        act: Awaitable[Any],
        read: Callable[[Any], Any],
    ) -> None:
        called = trio.current_time()
        known, result = Known.UNKNOWN, None
        try:
            result = read(await act)
        except TauraftError as error:
            known = Known.UNKNOWN if error.outcome == "unknown" and kind != "get" else Known.NOT_APPLIED
        else:
            known = Known.OK
            self.acknowledged += 1
        finally:
            self.history.add(Operation(client.name, kind, key, argument, result, called, trio.current_time(), known))

    async def grow(self, client: SimulatedClient, random: Random) -> None:
        """Values of some kilobytes, so that segments are changed and snapshots have pieces."""
        while not self.is_over and not client.is_lost:
            try:
                await client.submit(
                    Put(f"large-{random.randrange(40)}", random.randbytes(random.randrange(4_000))), timeout_s=3
                )
            except TauraftError:
                pass
            await trio.sleep(random.uniform(0, 2 * THINK_S))

    async def count_under_lock(self, client: SimulatedClient, random: Random) -> None:
        """Read, add one, write, under one lock: any overlap of two holders shows as a lost increment."""
        while not self.is_over and not client.is_lost:
            try:
                with trio.move_on_after(random.choice((0.3, 3, 30, 30))) as patience:
                    grant = await client.submit(Acquire("lock"), timeout_s=random.uniform(0.5, 20), waits=True)
            except TauraftError:
                await trio.sleep(random.uniform(0.05, 0.2))
                continue
            if patience.cancelled_caught or client.is_past_deadline:
                continue  # gave up, or the session was lost while the grant was on its way: it does not count as held
            token = grant.token
            self.exclusion.acquired("lock", client.name, token)
            client.on_lost = lambda token=token: self.exclusion.gave_up("lock", client.name, token)  # type: ignore[misc]
            try:
                await self._count_one(client, random)
            except TauraftError:
                pass
            finally:
                self.exclusion.gave_up("lock", client.name, token)
            while not client.is_lost:
                try:
                    await client.submit(Release("lock", token), timeout_s=5)
                    break
                except TauraftError as error:
                    if error.code == "not-holder":
                        break
            await trio.sleep(random.uniform(0, THINK_S))

    async def _count_one(self, client: SimulatedClient, random: Random) -> None:
        entry = await client.query(Get("count"), timeout_s=5)
        await trio.sleep(random.uniform(0, 0.1))
        if client.is_past_deadline:
            return
        count = 0 if entry is None else int(entry.value)
        self.maybe_counted += 1
        try:
            await client.submit(Put("count", b"%d" % (count + 1)), timeout_s=5)
        except TauraftError as error:
            self.maybe_counted -= error.outcome == "not-applied"
            raise
        self.maybe_counted -= 1
        self.counted += 1


def _one_of(both: Transaction, done: Any) -> str | None:
    """What both of the pair hold."""
    first, second = map(_text, both.result_of(done).results)
    return first if first == second else f"torn: {first}, {second}"


def _nothing(answer: Any) -> None:
    return None


def _text(entry: Any) -> str | None:
    return None if entry is None else entry.value.decode()


def _is_done(answer: Any) -> bool:
    return answer is not None


def _itself(answer: Any) -> Any:
    return answer
