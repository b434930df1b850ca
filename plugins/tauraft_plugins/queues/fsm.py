"""The queue state machine: every item is in exactly one state, and every change of state is O(log n).

An item is *ready*, *delayed*, *claimed* or *dead*, or it is in the ledger as *acked*, *expired* or *purged*: one row of
``items``, by queue and id, from its put until the ledger lets go of it (docs/decisions/0030).  Around that row stand indexes:

    line      all that is ready, delayed or claimed, in put order; its first is the oldest
    lanes     the same of each group: only the first of a lane can be claimed, so a group is in order, one in flight
    ready     what can be claimed now, best first: ready items without a group, and ready heads of lanes
    claims    token -> item; ``by_session`` finds a session's, also those of one command
    waiters   claims that found nothing, and ``wanted``, the same by group ("": any)

No waiter waits for what is in ``ready``: whatever makes an item claimable offers it to the first claimer that wants it, in
the same command.  Every grant has a token of its own (``new_revision``), since one command may return many items.

An item has at most one timer for its delay or its claim (``at/ORDER``) and one for its ttl (``ttl/ORDER``).  A claimed item does not
expire: when it returns after its time, it expires then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Any, ClassVar, Final

from tauraft.errors import InvalidCommand, StaleClaim
from tauraft.fsm import FSM, Context, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.types import Enqueued, Item, QueueStats
from tauraft_plugins.queues.rows import Content, Key, Place, QueueRow, Waiter
from tauraft_primitives.queues.messages import (
    MAX_PRIORITY,
    QUEUES,
    Ack,
    Bury,
    Claimed,
    Dead,
    DeadItems,
    Declare,
    Due,
    Enqueue,
    Expire,
    Extend,
    Forget,
    GiveBack,
    ItemRow,
    ItemState,
    Length,
    Nack,
    Pause,
    Peek,
    Pop,
    Purge,
    Redrive,
    Stats,
    Swept,
    TakeItems,
)

NANOSECONDS: Final = 1_000_000_000
MAX_ANSWER_BYTES: Final = 4 << 20
MAX_LEDGER: Final = 10_000  # finished items remembered, of all queues together
MAX_SWEPT: Final = 1_000  # items one command goes through: no entry holds up the ones behind it for long
MAX_HISTORY: Final = 8
MAX_ATTEMPTS: Final = "max-attempts"
COUNTED: Final = ("ready", "delayed", "claimed", "dead")
NOTHING: Final = QueueRow()
END: Final = (1 << 63) - 1
LOWEST: Final = MAX_PRIORITY + 1


class Queues(FSM, name=QUEUES, version=1):
    teardown: ClassVar[int] = 20
    sql_views: ClassVar[Mapping[str, str]] = {
        "queue_items": "SELECT key_0 AS queue, key_1 AS id, state FROM tauraft_queues_items "
        "WHERE state IN ('ready', 'delayed', 'claimed', 'dead')"
    }
    items: Table[Key, ItemRow]
    contents: Table[Key, Content]
    queues: Table[str, QueueRow]
    line: Table[tuple[str, int], str]  # (queue, order) -> id
    lanes: Table[tuple[str, str, int], str]  # (queue, group, order) -> id
    ready: Table[Place, str]
    dead: Table[tuple[str, int], str]  # (queue, order) -> id
    ledger: Table[tuple[int, int], Key]  # (ended, order): who is forgotten first
    claims: Table[int, Key]
    by_session: Table[tuple[int, int, int], Key]  # (session, sequence, token)
    waiters: Table[tuple[str, int], Waiter]  # (queue, revision of the claim)
    wanted: Table[tuple[str, str, int], None]  # (queue, group, revision of the claim)

    def is_held(self, token: int) -> bool:
        """Whether a claim of that token is in force: what fencing asks."""
        return token in self.claims

    # ---- into the queue ----

    @applies(Enqueue)
    def enqueue(self, command: Enqueue, context: Context) -> Enqueued:
        queue, order = command.queue, context.revision
        id_ = self._new_id(queue, order) if command.id is None else command.id
        known = self.items.get((queue, id_))
        if known is not None:
            if known.ended is None:
                return Enqueued(id_, True, known.order)
            del self.ledger[known.ended, known.order]  # the ledger remembers the last item of an id
        row = ItemRow(
            "delayed" if command.delay else "ready",
            order,
            command.priority,
            command.group,
            context.now_ns,
            None if command.ttl is None else context.now_ns + _ns(command.ttl),
            _ns(command.dedupe_for or 0),
            due_ns=context.now_ns + _ns(command.delay) if command.delay else None,
        )
        self.contents[queue, id_] = Content(command.body, tuple(sorted(command.headers.items())))
        if row.expires_ns is not None:
            context.schedule(f"ttl/{order}", row.expires_ns, Expire(queue, id_, order))
        if row.due_ns is not None:
            context.schedule(f"at/{order}", row.due_ns, Due(queue, id_, order))
        self._offer(queue, self._enter((queue, id_), row, was=None), context)
        return Enqueued(id_, False, order)

    # ---- claims ----

    @applies(TakeItems)
    def take(self, command: TakeItems, context: Context) -> tuple[Claimed, ...] | Ticket[tuple[Claimed, ...]]:
        queue = command.queue
        ticket = context.wait(TakeItems)
        groups = None if command.groups is None else tuple(dict.fromkeys(command.groups))
        waiter = Waiter(ticket, command.count, _ns(command.visibility), groups)
        taken, freed = self._take(queue, waiter, context)
        self._offer(queue, freed, context)
        if taken or not command.wait:
            return taken  # nothing is an answer too: a refusal would bring back those that were buried
        self.waiters[queue, ticket.revision] = waiter
        for group in groups or ("",):
            self.wanted[queue, group, ticket.revision] = None
        return ticket

    @withdraws(TakeItems)
    def withdraw(self, command: TakeItems, ticket: Ticket[tuple[Claimed, ...]], context: Context) -> None:
        waiter = self.waiters.get((command.queue, ticket.revision))
        if waiter is not None:
            self._dismiss(command.queue, waiter)
            return
        if context.session is None:
            return  # it may have got the item, and died of it: ``return_claims`` counts the attempt
        # Answered, but the caller never learned it: what it has not acknowledged goes back, and the attempt does not count.
        low, high = (ticket.session, ticket.sequence, 0), (ticket.session, ticket.sequence + 1, 0)
        self._return_all(self.by_session.range(low, high), context, counts=False)

    @applies(Ack)
    def ack(self, command: Ack, context: Context) -> None:
        key, row = self._held(command.token, context)
        self._offer(key[0], self._finish(key, row, "acked", context), context)

    @applies(Nack)
    def nack(self, command: Nack, context: Context) -> None:
        key, row = self._held(command.token, context)
        note = "nack" if command.reason is None else f"nack: {command.reason}"
        self._offer(key[0], self._return(key, row, context, note=note, delay_ns=_ns(command.delay)), context)

    @applies(GiveBack)
    def give_back(self, command: GiveBack, context: Context) -> None:
        key, row = self._held(command.token, context)
        self._offer(key[0], self._return(key, row, context, counts=False), context)

    @applies(Extend)
    def extend(self, command: Extend, context: Context) -> tuple[int, ...]:
        extended = []
        for token in command.tokens:
            found = self._find(token, context)
            if found is not None:
                key, row = found
                due_ns = context.now_ns + _ns(command.seconds)
                self.items[key] = replace(row, due_ns=due_ns)
                context.schedule(f"at/{row.order}", due_ns, Due(*key, row.order))
                extended.append(token)
        return tuple(extended)

    @applies(Bury)
    def bury(self, command: Bury, context: Context) -> None:
        key, row = self._held(command.token, context)
        self._offer(key[0], self._die(key, row, command.reason, context), context)

    @applies(Pop)
    def pop(self, command: Pop, context: Context) -> Item | None:
        freed: list[Place] = []
        found = self._next(command.queue, None, freed, context)
        item = None
        if found is not None:
            key, row = found[0], replace(found[1], attempts=found[1].attempts + 1)
            item = self._item(key, row)
            freed += self._finish(key, row, "acked", context)
        self._offer(command.queue, freed, context)
        return item

    @session_ended
    def return_claims(self, session: int, context: Context) -> None:
        self._return_all(self.by_session.range((session, 0, 0), (session + 1, 0, 0)), context, note="session lost")

    # ---- time ----

    @applies(Due)
    def due(self, command: Due, context: Context) -> None:
        _only_timers(context)
        key, row = (command.queue, command.id), self.items.get((command.queue, command.id))
        if row is None or row.order != command.order:
            return
        if row.state == "delayed":
            freed = self._make_ready(key, row)
        elif row.state == "claimed":
            freed = self._return(key, row, context, note="visibility ran out")
        else:
            return
        self._offer(command.queue, freed, context)

    @applies(Expire)
    def expire(self, command: Expire, context: Context) -> None:
        _only_timers(context)
        key, row = (command.queue, command.id), self.items.get((command.queue, command.id))
        if row is not None and row.order == command.order and row.state in ("ready", "delayed"):
            self._offer(command.queue, self._finish(key, row, "expired", context), context)

    @applies(Forget)
    def forget(self, command: Forget, context: Context) -> None:
        _only_timers(context)
        key, row = (command.queue, command.id), self.items.get((command.queue, command.id))
        if row is not None and row.order == command.order and row.ended is None:
            self._to_ledger(key, row, context)

    # ---- operators ----

    @applies(Declare)
    def declare(self, command: Declare, context: Context) -> None:
        row = self.queues.get(command.queue, NOTHING)
        self._set_queue(command.queue, replace(row, max_attempts=command.max_attempts))

    @applies(Pause)
    def pause(self, command: Pause, context: Context) -> None:
        queue = command.queue
        self._set_queue(queue, replace(self.queues.get(queue, NOTHING), is_paused=command.paused))
        freed: list[Place] = []
        for _, waiter in list(self.waiters.range((queue, 0), (queue, END))):
            freed += self._serve(queue, waiter, context)
        self._offer(queue, freed, context)

    @applies(Redrive)
    def redrive(self, command: Redrive, context: Context) -> Swept:
        queue = command.queue
        up_to = context.revision if command.up_to is None else command.up_to
        step = list(
            islice(self.dead.range((queue, command.after + 1), (queue, up_to + 1)), min(command.limit, MAX_SWEPT))
        )
        freed: list[Place] = []
        for (_, order), id_ in step:
            key, row = (queue, id_), self.items[queue, id_]
            del self.dead[queue, order]
            # As if put now: others of its group have overtaken it, and may be in flight.
            again = replace(
                row, state="ready", order=context.new_revision(), put_ns=context.now_ns, attempts=0, reason=None
            )
            freed += self._enter(key, again, was="dead")
        self._offer(queue, freed, context)
        return _swept(step, len(step), up_to)

    @applies(Purge)
    def purge(self, command: Purge, context: Context) -> Swept:
        queue = command.queue
        up_to = context.revision if command.up_to is None else command.up_to
        rows = self.dead if command.dead else self.line
        step = list(islice(rows.range((queue, command.after + 1), (queue, up_to + 1)), MAX_SWEPT))
        freed: list[Place] = []
        count = 0
        for _, id_ in step:
            key, row = (queue, id_), self.items[queue, id_]
            if row.state != "claimed":  # a claim is a promise: its claimer decides
                freed += self._finish(key, row, "purged", context)
                count += 1
        self._offer(queue, freed, context)
        return _swept(step, count, up_to)

    @applies(Stats)
    def stats(self, command: Stats, context: Context) -> QueueStats:
        queue = command.queue
        row = self.queues.get(queue, NOTHING)
        oldest = next(self.line.range((queue, 0), (queue, END)), None)
        age = None if oldest is None else (context.now_ns - self.items[queue, oldest[1]].put_ns) / NANOSECONDS
        return QueueStats(row.ready, row.delayed, row.claimed, row.dead, age)

    @answers(Peek)
    def peek(self, query: Peek) -> Item | None:
        place = self._best(query.queue, None)
        if place is None:
            return None
        key = query.queue, self.ready[place]
        return self._item(key, self.items[key])

    @answers(Length)
    def length(self, query: Length) -> int:
        row = self.queues.get(query.queue, NOTHING)
        return row.ready + row.delayed + row.claimed

    @answers(Dead)
    def dead_items(self, query: Dead) -> DeadItems:
        found: list[Item] = []
        size = 0
        after = query.after
        for (_, order), id_ in self.dead.range((query.queue, after + 1), (query.queue, END)):
            item = self._item((query.queue, id_), self.items[query.queue, id_])
            size += len(item.body)
            if len(found) == query.limit or (found and size > MAX_ANSWER_BYTES):
                return DeadItems(tuple(found), after)
            found.append(item)
            after = order
        return DeadItems(tuple(found), None)

    # ---- what is claimed next, and by whom ----

    def _take(self, queue: str, waiter: Waiter, context: Context) -> tuple[tuple[Claimed, ...], list[Place]]:
        """Claim for ``waiter`` what there is: (claims, places that opened up on the way and must be offered)."""
        taken: list[Claimed] = []
        freed: list[Place] = []
        size = 0
        while len(taken) < waiter.count and size <= MAX_ANSWER_BYTES:
            found = self._next(queue, waiter.groups, freed, context)
            if found is None:
                break
            key, row = found
            content = self.contents[key]
            size += len(content.body)
            if taken and size > MAX_ANSWER_BYTES:
                break
            token, due_ns = context.new_revision(), context.now_ns + waiter.visibility_ns
            session, sequence = waiter.ticket.session, waiter.ticket.sequence
            del self.ready[_place(queue, row)]
            self._change(
                key, row, "claimed", attempts=row.attempts + 1, due_ns=due_ns, token=token, session=session,
                sequence=sequence,
            )  # fmt: skip
            self.claims[token] = key
            self.by_session[session, sequence, token] = key
            context.schedule(f"at/{row.order}", due_ns, Due(*key, row.order))
            taken.append(Claimed(token, key[1], content.body, dict(content.headers), row.group, row.attempts + 1))
        return tuple(taken), freed

    def _next(
        self, queue: str, groups: tuple[str, ...] | None, freed: list[Place], context: Context
    ) -> tuple[Key, ItemRow] | None:
        """The item to be claimed next. Buries those on the way that had all their attempts."""
        settings = self.queues.get(queue, NOTHING)
        if settings.is_paused:
            return None
        while (place := self._best(queue, groups)) is not None:
            key = queue, self.ready[place]
            row = self.items[key]
            if settings.max_attempts is None or row.attempts < settings.max_attempts:
                return key, row
            freed += self._die(key, row, MAX_ATTEMPTS, context)
        return None

    def _best(self, queue: str, groups: tuple[str, ...] | None) -> Place | None:
        if groups is None:
            first = next(self.ready.range((queue, -MAX_PRIORITY, 0), (queue, LOWEST, 0)), None)
            return None if first is None else first[0]
        heads = [self._head(queue, group) for group in groups]
        return min((place for place in heads if place is not None and place in self.ready), default=None)

    def _head(self, queue: str, group: str) -> Place | None:
        """The place of the first of a lane, whether it can be claimed or not."""
        first = next(self.lanes.range((queue, group, 0), (queue, group, END)), None)
        return None if first is None else _place(queue, self.items[queue, first[1]])

    def _offer(self, queue: str, places: Iterable[Place], context: Context) -> None:
        """Give items that have become claimable to those who wait for them; best item first, first claimer first."""
        if self.queues.get(queue, NOTHING).is_paused:
            return
        waiting = list(places)
        heapify(waiting)
        while waiting:
            place = heappop(waiting)
            id_ = self.ready.get(place)
            if id_ is None:
                continue  # taken or gone already
            waiter = self._first_waiter(queue, self.items[queue, id_].group)
            if waiter is None:
                continue
            for freed in self._serve(queue, waiter, context):
                heappush(waiting, freed)
            if place in self.ready and (queue, waiter.ticket.revision) not in self.waiters:
                heappush(waiting, place)  # it took a better one that opened up meanwhile

    def _serve(self, queue: str, waiter: Waiter, context: Context) -> list[Place]:
        taken, freed = self._take(queue, waiter, context)
        if taken:
            self._dismiss(queue, waiter)
            context.answer(waiter.ticket, taken)
        return freed

    def _first_waiter(self, queue: str, group: str | None) -> Waiter | None:
        revisions = []
        for wanted in ("",) if group is None else ("", group):
            first = next(self.wanted.range((queue, wanted, 0), (queue, wanted, END)), None)
            if first is not None:
                revisions.append(first[0][2])
        return self.waiters[queue, min(revisions)] if revisions else None

    def _dismiss(self, queue: str, waiter: Waiter) -> None:
        revision = waiter.ticket.revision
        del self.waiters[queue, revision]
        for group in waiter.groups or ("",):
            del self.wanted[queue, group, revision]

    # ---- from state to state; each returns the places that can be claimed because of it ----

    def _enter(self, key: Key, row: ItemRow, *, was: ItemState | None) -> list[Place]:
        queue, id_ = key
        self.items[key] = row
        self._count(queue, was, row.state)
        self.line[queue, row.order] = id_
        if row.group is not None:
            self.lanes[queue, row.group, row.order] = id_
        return self._open(key, row) if row.state == "ready" else []

    def _make_ready(self, key: Key, row: ItemRow, **changes: Any) -> list[Place]:
        return self._open(key, self._change(key, row, "ready", due_ns=None, **changes))

    def _open(self, key: Key, row: ItemRow) -> list[Place]:
        """A ready item can be claimed, unless an earlier one of its group is still there."""
        queue, id_ = key
        place = _place(queue, row)
        if row.group is not None and self._head(queue, row.group) != place:
            return []
        self.ready[place] = id_
        return [place]

    def _find(self, token: int, context: Context) -> tuple[Key, ItemRow] | None:
        key = self.claims.get(token)
        if key is None:
            return None
        row = self.items[key]
        # Timers fire before commands, but only so many an entry: the deadline holds all the same.
        return (key, row) if row.due_ns is not None and context.now_ns < row.due_ns else None

    def _held(self, token: int, context: Context) -> tuple[Key, ItemRow]:
        found = self._find(token, context)
        if found is None:
            raise StaleClaim(f"claim {token} is not in force any more: another may have its item; nothing changed")
        return found

    def _end_claim(self, row: ItemRow) -> dict[str, Any]:
        """Forget who claimed it: what is to change in its row."""
        if row.token is not None and row.session is not None:
            del self.claims[row.token]
            del self.by_session[row.session, row.sequence, row.token]
        return {"token": None, "session": None, "sequence": 0}

    def _return(
        self, key: Key, row: ItemRow, context: Context, *, note: str = "", delay_ns: int = 0, counts: bool = True
    ) -> list[Place]:
        """A claimed item goes back to its place."""
        changes = self._end_claim(row)
        if note:
            changes["history"] = (*row.history, note)[-MAX_HISTORY:]
        if not counts:
            changes["attempts"] = row.attempts - 1
        if row.expires_ns is not None and row.expires_ns <= context.now_ns:
            return self._finish(key, replace(row, **changes), "expired", context)
        if delay_ns:
            due_ns = context.now_ns + delay_ns
            self._change(key, row, "delayed", due_ns=due_ns, **changes)
            context.schedule(f"at/{row.order}", due_ns, Due(*key, row.order))
            return []
        context.cancel(f"at/{row.order}")
        return self._make_ready(key, row, **changes)

    def _return_all(
        self, claims: Iterator[tuple[Any, Key]], context: Context, *, note: str = "", counts: bool = True
    ) -> None:
        """All of them first, then the offers: what is best goes to who came first."""
        freed: dict[str, list[Place]] = {}
        for _, key in list(claims):
            freed.setdefault(key[0], []).extend(self._return(key, self.items[key], context, note=note, counts=counts))
        for queue, places in freed.items():
            self._offer(queue, places, context)

    def _die(self, key: Key, row: ItemRow, reason: str, context: Context) -> list[Place]:
        opened = self._leave(key, row, context)
        changes = self._end_claim(row)
        # What is dead waits for its operator: its ttl no longer counts.
        self._change(key, row, "dead", due_ns=None, expires_ns=None, reason=reason, **changes)
        self.dead[key[0], row.order] = key[1]
        return opened

    def _finish(self, key: Key, row: ItemRow, state: ItemState, context: Context) -> list[Place]:
        """Its last state: it goes to the ledger, by way of ``dedupe_for`` if it was acknowledged."""
        opened = self._leave(key, row, context)
        del self.contents[key]
        row = self._change(key, row, state, due_ns=None, expires_ns=None, **self._end_claim(row))
        if state == "acked" and row.dedupe_ns:
            forget = Forget(*key, row.order)
            context.schedule(f"dedupe/{row.order}", context.now_ns + row.dedupe_ns, forget)
        else:
            self._to_ledger(key, row, context)
        return opened

    def _leave(self, key: Key, row: ItemRow, context: Context) -> list[Place]:
        """Out of every index but ``items``, and no timers any more."""
        queue = key[0]
        if row.state == "dead":
            del self.dead[queue, row.order]
            return []
        if row.due_ns is not None:
            context.cancel(f"at/{row.order}")
        if row.expires_ns is not None:
            context.cancel(f"ttl/{row.order}")
        del self.line[queue, row.order]
        place = _place(queue, row)
        self.ready.pop(place, None)
        if row.group is None:
            return []
        was_head = self._head(queue, row.group) == place
        del self.lanes[queue, row.group, row.order]
        following = next(self.lanes.range((queue, row.group, 0), (queue, row.group, END)), None)
        if not was_head or following is None:
            return []
        heir = queue, following[1]
        return self._open(heir, self.items[heir]) if self.items[heir].state == "ready" else []

    def _to_ledger(self, key: Key, row: ItemRow, context: Context) -> None:
        self.items[key] = replace(row, ended=context.revision)
        self.ledger[context.revision, row.order] = key
        if len(self.ledger) > MAX_LEDGER:
            oldest = self.ledger.first()
            assert oldest is not None
            del self.ledger[oldest[0]]
            del self.items[oldest[1]]

    # ---- rows ----

    def _change(self, key: Key, row: ItemRow, state: ItemState, **changes: Any) -> ItemRow:
        changed = replace(row, state=state, **changes)
        self.items[key] = changed
        self._count(key[0], row.state, state)
        return changed

    def _count(self, queue: str, was: ItemState | None, now: ItemState) -> None:
        row = self.queues.get(queue, NOTHING)
        changes = {}
        if was in COUNTED:
            changes[was] = getattr(row, was) - 1
        if now in COUNTED:
            changes[now] = changes.get(now, getattr(row, now)) + 1
        self._set_queue(queue, replace(row, **changes))

    def _set_queue(self, queue: str, row: QueueRow) -> None:
        if row == NOTHING:
            self.queues.pop(queue, None)
        else:
            self.queues[queue] = row

    def _new_id(self, queue: str, order: int) -> str:
        id_ = f"revision-{order}"
        while (queue, id_) in self.items:
            id_ += "'"
        return id_

    def _item(self, key: Key, row: ItemRow) -> Item:
        content = self.contents[key]
        return Item(key[1], content.body, dict(content.headers), row.group, row.attempts, row.reason, row.history)


def _ns(seconds: float) -> int:
    return int(seconds * NANOSECONDS)


def _place(queue: str, row: ItemRow) -> Place:
    return queue, -row.priority, row.order


def _swept(step: list[tuple[tuple[str, int], str]], count: int, up_to: int) -> Swept:
    return Swept(count, step[-1][0][1] if len(step) == MAX_SWEPT else None, up_to)


def _only_timers(context: Context) -> None:
    if context.session is not None:
        raise InvalidCommand("the time of items is told by their own timers; nothing changed")
