# Generated from tauraft_primitives.queues.handle by `python -m tauraft.twin`; change that file, not this one.
"""Queues as a caller holds them: ``Queue`` by name, ``Claim`` for an item under a token.

A claim is one waiting command, and what follows the grant is interruption-proof: until the claim is in the caller's hands,
whatever goes wrong gives the item back through the engine (``submit_soon``), and the attempt does not count.  A claim
counts itself out before the cluster returns its item (SAFETY 2); one that was granted after waiting is extended before it is handed
out, and counts from that.  How a claim ends is the cluster's to decide, by token: an acknowledgement that comes late but
before the item is anybody else's is good, one that comes too late is ``StaleClaim``.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Final, Self, TypeAlias

from tauraft import errors
from tauraft.fsm import Command
from tauraft.handle import (
    Holder,
    Open,
    Opening,
    Signal,
    Tenure,
    as_bytes,
    check_name,
    check_patience,
    check_timeout,
)
from tauraft.types import Bytes, Enqueued, Item, QueueStats
from tauraft_primitives.queues.messages import (
    MAX_PRIORITY,
    MAX_REASON_BYTES,
    Ack,
    Bury,
    Claimed,
    Dead,
    Declare,
    Enqueue,
    Extend,
    GiveBack,
    Length,
    Nack,
    Pause,
    Peek,
    Pop,
    Purge,
    Redrive,
    Stats,
    TakeItems,
    check_count,
    check_text,
)

# A claim granted after more than this much of its visibility is extended first: less of it would be left otherwise.
CONFIRM_AFTER: Final = 0.05
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Claim:
    """An item that is this caller's alone until it is acknowledged, given up, or its visibility runs out.

    ``token`` fences: give it to whatever the item's work writes to. ``attempts`` is 1 the first time. It does not renew itself.
    ``with``: acknowledged when the block ends, given up (``nack``) when it raises.
    """

    def __init__(self, queue: Queue, claimed: Claimed, tenure: Tenure) -> None:
        self.id = claimed.id
        self.body = claimed.body
        self.headers: Mapping[str, str] = MappingProxyType(dict(claimed.headers))
        self.group = claimed.group
        self.token = claimed.token
        self.attempts = claimed.attempts
        self.lost = Signal(tenure.state)
        self._queue = queue
        self._tenure = tenure
        self._is_over = False

    def check(self) -> None:
        """Local, no round trip. Raises ``StaleClaim`` when it is over, or past its deadline."""
        if self._is_over or self._tenure.is_lost:
            raise self._stale()

    def ack(self) -> None:
        """The item is done with. Raises ``StaleClaim``: it was not this caller's any more, another may have it."""
        self._end(Ack(self.token))

    def nack(self, delay: float = 0, *, reason: str | None = None) -> None:
        """Give it up: it returns to its place, after ``delay``. ``reason`` goes to its history. Raises ``StaleClaim``."""
        self._end(Nack(self.token, delay, reason))

    def bury(self, reason: str) -> None:
        """Set it aside as dead, until ``redrive``. Raises ``StaleClaim``."""
        self._end(Bury(self.token, reason))

    def extend(self, seconds: float) -> None:
        """Keep it: it returns that long from now. Raises ``StaleClaim``."""
        command = Extend((self.token,), seconds)
        self.check()
        holder = self._queue._holder
        started = holder.now()
        if not holder.submit(command):
            raise self._stale()
        self._tenure.restart(ttl=seconds, started=started)
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if self._is_over:
            return None  # ended inside the block
        if kind is None:
            self.ack()
            return None
        try:
            self.nack(reason=_shortened(kind.__name__ if not str(error) else f"{kind.__name__}: {error}"))
        except errors.StaleClaim:
            pass  # the block's own exception says more
        return None

    def _end(self, command: Command[None]) -> None:
        if self._is_over:
            raise self._stale()
        self._is_over = True
        self._tenure.end()
        holder = self._queue._holder
        try:
            holder.submit(command)
        except errors.Refused:
            raise
        except BaseException:
            # Interrupted or unanswered: the engine goes on saying it, so that the item does not wait for its visibility.
            holder.submit_soon(command)
            raise

    def _stale(self) -> errors.StaleClaim:
        return errors.StaleClaim(
            f"the claim {self.token} of item {self.id!r} in queue {self._queue.name!r} is not in force any more; "
            "another may have the item"
        )


# ``queue.claim()``: awaited, or entered. The blocking one is the Claim itself.
Claiming: TypeAlias = Opening[Claim]


class Queue:
    """A queue by name, made by its first item. Made without I/O; may be shared by tasks and threads.

    ``max_attempts``: an item claimed that often without being acknowledged is dead. It holds for the whole queue, from the
    first use of this handle on: what was declared last counts. None leaves it as it is.
    """

    def __init__(self, holder: Holder, name: str, *, max_attempts: int | None = None) -> None:
        self.name = check_name(name)
        self._holder = holder
        self._undeclared: Declare | None = None
        if max_attempts is not None:
            check_count(max_attempts, "max_attempts", MAX_PRIORITY)
            self._undeclared = Declare(name, max_attempts)

    def put(
        self,
        body: Bytes,
        *,
        id: str | None = None,
        priority: int = 0,
        delay: float = 0,
        group: str | None = None,
        dedupe_for: float | None = None,
        ttl: float | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout: float | None = None,
    ) -> Enqueued:
        """Put one item. An ``id`` that is present, or was acknowledged less than its ``dedupe_for`` ago, puts nothing.

        Higher ``priority`` is claimed first. Within a ``group`` items are claimed one at a time, in put order.
        After ``ttl`` seconds an item that nobody has claimed is gone.
        """
        patience = check_timeout(timeout)
        command = Enqueue(self.name, as_bytes(body, "body"), id, delay, priority, group, dedupe_for, ttl, headers)
        self._declare()
        return self._holder.submit(command, timeout=patience)

    def put_many(self, bodies: Sequence[Bytes], *, timeout: float | None = None) -> list[Enqueued]:
        """All of them or none, in one command."""
        patience = check_timeout(timeout)
        if isinstance(bodies, bytes | str) or not isinstance(bodies, Sequence):
            raise TypeError(f"bodies is a sequence of bytes or str, not {type(bodies).__name__}")
        commands = [Enqueue(self.name, as_bytes(body, "bodies")) for body in bodies]
        if not commands:
            return []
        self._declare()
        return list(self._holder.transaction(*commands, timeout=patience))

    def claim(
        self, *, visibility: float = 30, timeout: float | None = 0, groups: Sequence[str] | None = None
    ) -> Opening[Claim]:
        """The next item, for ``visibility`` seconds. Raises ``QueueEmpty`` when there is none within ``timeout``.

        ``groups``: of these groups only.
        """
        patience = check_patience(timeout)
        command = self._take(visibility, 1, groups, patience)
        return Open.of(self._claim_one(command, patience))

    def claim_many(self, n: int, *, visibility: float = 30, timeout: float | None = 0) -> list[Claim]:
        """Up to ``n`` items, fewer where bodies are large. Waits for the first. Raises ``QueueEmpty``."""
        patience = check_patience(timeout)
        return self._claim(self._take(visibility, n, None, patience), patience)

    def stats(self) -> QueueStats:
        return self._holder.submit(Stats(self.name))

    def dead(self, limit: int = 100) -> list[Item]:
        """The dead, in the order they were put; ``reason`` and ``history`` say why."""
        check_count(limit, "limit", MAX_PRIORITY)
        found: list[Item] = []
        after: int | None = 0
        while after is not None and len(found) < limit:
            page = self._holder.query(Dead(self.name, limit - len(found), after))
            found += page.items
            after = page.after
        return found

    def redrive(self, n: int | None = None) -> int:
        """Put ``n`` dead items again (None: all), those put first first, with their attempts before them. Returns how many."""
        if n is not None:
            check_count(n, "n", MAX_PRIORITY)
        count, after, up_to = 0, 0, None
        while n is None or count < n:
            left = MAX_PRIORITY if n is None else n - count
            swept = self._holder.submit(Redrive(self.name, left, after, up_to))
            count += swept.count
            if swept.after is None:
                break
            after, up_to = swept.after, swept.up_to
        return count

    def purge(self, *, dead: bool = False) -> int:
        """Drop all that is ready or delayed (``dead``: what is dead instead). What is claimed stays its claimer's."""
        if not isinstance(dead, bool):
            raise TypeError(f"dead must be bool, not {type(dead).__name__}")
        count, after, up_to = 0, 0, None
        while True:
            swept = self._holder.submit(Purge(self.name, dead, after, up_to))
            count += swept.count
            if swept.after is None:
                return count
            after, up_to = swept.after, swept.up_to

    def pause(self) -> None:
        """Nothing is claimed until ``resume``; claims that wait go on waiting, puts and acknowledgements go on."""
        self._holder.submit(Pause(self.name, True))

    def resume(self) -> None:
        self._holder.submit(Pause(self.name, False))

    # ---- the reference's ----

    def push(self, id: str, data: Bytes) -> bool:
        """Put under an id. False: that id is there already."""
        check_text(id, "id")
        return not (self.put(data, id=id)).duplicate

    def pop(self) -> Item:
        """Claim and acknowledge in one command: whoever dies holding it has lost it. Raises ``QueueEmpty``."""
        self._declare()
        item = self._holder.submit(Pop(self.name))
        if item is None:
            raise self._empty()
        return item

    def peek(self) -> Item:
        """What would be claimed next. Raises ``QueueEmpty``."""
        item = self._holder.query(Peek(self.name))
        if item is None:
            raise self._empty()
        return item

    def len(self) -> int:
        """Ready, delayed and claimed items."""
        return self._holder.query(Length(self.name))

    # ---- ----

    def _take(self, visibility: float, n: int, groups: Sequence[str] | None, patience: float | None) -> TakeItems:
        if isinstance(groups, str):
            raise TypeError("groups is a sequence of str, not str")
        wanted = None if groups is None else tuple(groups)
        return TakeItems(self.name, visibility, n, wanted, wait=patience != 0)

    def _claim_one(self, command: TakeItems, patience: float | None) -> Claim:
        return (self._claim(command, patience))[0]

    def _claim(self, command: TakeItems, patience: float | None) -> list[Claim]:
        self._declare()
        holder = self._holder
        give_up = None if patience is None else holder.now() + patience
        while True:
            started = holder.now()
            left = None if give_up is None else max(0.0, give_up - started)
            try:
                # One that is not to wait is a plain command, with the facade's own time-out.
                taken = holder.submit(command, timeout=left if command.wait else None)
            except errors.WaitTimeout:
                raise self._empty() from None
            if not taken:
                raise self._empty()
            claims = self._confirmed(taken, command.visibility, started)
            if claims:
                return claims

    def _confirmed(self, taken: Sequence[Claimed], visibility: float, started: float) -> list[Claim]:
        """Those of ``taken`` that can be relied on; all of them, unless the answer was very late."""
        holder = self._holder
        claims: list[Claim] = []
        try:
            if holder.now() - started > visibility * CONFIRM_AFTER:
                started = holder.now()
                kept = holder.submit(Extend(tuple(claimed.token for claimed in taken), visibility))
                taken = [claimed for claimed in taken if claimed.token in kept]
            for claimed in taken:
                claims.append(Claim(self, claimed, holder.tenure(ttl=visibility, started=started, renewal=None)))
            if claims and claims[0]._tenure.is_lost:
                raise claims[0]._stale()
        except BaseException:
            for claim in claims:
                claim._tenure.end()
            for claimed in taken:
                holder.submit_soon(GiveBack(claimed.token))
            raise
        return claims

    def _declare(self) -> None:
        declaration = self._undeclared
        if declaration is not None:
            self._holder.submit(declaration)
            self._undeclared = None

    def _empty(self) -> errors.QueueEmpty:
        return errors.QueueEmpty(f"queue {self.name!r} has no item to give; nothing is held")


def _shortened(text: str) -> str:
    return text.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")
