"""What simulated clients do, and what they note: registers for linearizability, counting under a lock for exclusion.

Each client is a real session.  Nothing is retried here: an error is noted with its outcome, as a careful user would.
"""

from __future__ import annotations

from random import Random

import trio

from tauraft.errors import TauraftError
from tauraft.simulator.checkers.exclusion import Exclusion
from tauraft.simulator.history import History, Known, Operation
from tauraft.simulator.world import SimulatedClient, World
from tauraft_primitives.kv.messages import CompareAndSet, Get, Put
from tauraft_primitives.locks.messages import Acquire, Release


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

    async def use_registers(self, client: SimulatedClient, random: Random) -> None:
        """Puts, gets and compare-and-sets of distinct values on few keys, until the run is over."""
        number = 0
        await client.opened()
        while not self.is_over:
            number += 1
            key = f"key-{random.randrange(3)}"
            value = f"{client.name}/{number}"
            kind = random.choice(("put", "get", "get", "cas"))
            expected = f"client-{random.randrange(1, 4)}/{random.randrange(1, number + 1)}"
            argument = {"put": value, "get": None, "cas": (expected, value)}[kind]
            called = trio.current_time()
            result: object = None
            known = Known.OK
            try:
                if kind == "put":
                    await client.submit(Put(key, value.encode()), timeout_s=3)
                elif kind == "get":
                    entry = await client.query(Get(key), timeout_s=3)
                    result = None if entry is None else entry.value.decode()
                else:
                    done = await client.submit(CompareAndSet(key, expected.encode(), value.encode()), timeout_s=3)
                    result = done is not None
            except TauraftError as error:
                known = Known.UNKNOWN if error.outcome == "unknown" and kind != "get" else Known.NOT_APPLIED
            else:
                self.acknowledged += 1
            self.history.add(Operation(client.name, kind, key, argument, result, called, trio.current_time(), known))
            if client.is_lost:
                return
            await trio.sleep(random.uniform(0, 0.2))

    async def count_under_lock(self, client: SimulatedClient, random: Random) -> None:
        """Read, add one, write, under one lock: any overlap of two holders shows as a lost increment."""
        await client.opened()
        while not self.is_over and not client.is_lost:
            try:
                grant = await client.submit(Acquire("lock"), timeout_s=random.uniform(0.5, 20), waits=True)
            except TauraftError:
                await trio.sleep(random.uniform(0.05, 0.2))
                continue
            token = grant.token
            if client.is_past_deadline:
                continue  # the session was lost while the grant was on its way: it does not count as held
            self.exclusion.acquired("lock", client.name, token)
            client.on_lost = lambda token=token: self.exclusion.gave_up("lock", client.name, token)  # type: ignore[misc]
            try:
                entry = await client.query(Get("count"), timeout_s=5)
                await trio.sleep(random.uniform(0, 0.1))
                if client.is_past_deadline:
                    continue
                count = 0 if entry is None else int(entry.value)
                try:
                    await client.submit(Put("count", b"%d" % (count + 1)), timeout_s=5)
                except TauraftError as error:
                    self.maybe_counted += error.outcome == "unknown"
                    raise
                self.counted += 1
            except TauraftError:
                pass
            finally:
                self.exclusion.gave_up("lock", client.name, token)
            while not client.is_lost:
                try:
                    await client.submit(Release("lock", token), timeout_s=5)
                    break
                except TauraftError as error:
                    if error.outcome == "not-applied" and error.code == "not-holder":
                        break
            await trio.sleep(random.uniform(0, 0.1))
