"""State machines that break one rule each, for the check that must catch them, and one that breaks none."""

from __future__ import annotations

import datetime
import itertools
import os
import random
import time
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

from tauraft.fsm import FSM, Command, Context, Table, Ticket, applies, session_ended, withdraws


@dataclass(frozen=True, slots=True)
class Add(Command[int], fsm="bad.counter"):
    name: str
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Tags(Command[str], fsm="bad.counter"):
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Take(Command[int], fsm="bad.counter"):
    name: str


class Good(FSM, name="bad.counter"):
    counts: Table[str, int]
    waiting: Table[tuple[str, int], Ticket[int]]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        self.counts[command.name] = self.counts.get(command.name, 0) + command.amount
        for key, ticket in list(self.waiting.range((command.name,), (command.name + "\0",))):
            del self.waiting[key]
            context.answer(ticket, self.counts[command.name])
        return self.counts[command.name]

    @applies(Take)
    def take(self, command: Take, context: Context) -> Ticket[int]:
        ticket = context.wait(Take)
        self.waiting[command.name, context.revision] = ticket
        context.schedule(
            f"wait-{context.revision}", context.now_ns + 10**9, Add(command.name, context.random.choice((1, 2)))
        )
        return ticket

    @withdraws(Take)
    def give_up(self, command: Take, ticket: Ticket[int], context: Context) -> None:
        self.waiting.pop((command.name, ticket.revision), None)

    @session_ended
    def gone(self, session: int, context: Context) -> None:
        self.counts["sessions"] = self.counts.get("sessions", 0) + 1


class ReadsTheTime(FSM, name="bad.counter"):
    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        if command.amount > 3:
            self.counts[command.name] = int(time.time())
        return 0


class ReadsTheDate(FSM, name="bad.counter"):
    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        return datetime.datetime.now().year


class Draws(FSM, name="bad.counter"):
    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        return random.randrange(10)


class AsksTheSystemForChance(FSM, name="bad.counter"):
    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        return os.urandom(1)[0]


class Opens(FSM, name="bad.counter"):
    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        with open(os.devnull, "rb") as file:
            return len(file.read())


class Prints(FSM, name="bad.counter"):
    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        print(command.name)
        return 0


class IteratesASet(FSM, name="bad.counter"):
    first: Table[str, str]

    @applies(Tags)
    def tags(self, command: Tags, context: Context) -> str:
        for tag in set(command.tags):
            self.first["first"] = tag
            return tag
        return ""


class RemembersInItself(FSM, name="bad.counter"):
    counts: Table[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        self.calls += 1
        return self.calls


class RemembersInItsClass(FSM, name="bad.counter"):
    counts: Table[str, int]
    seen: ClassVar[list[str]] = []

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        self.seen.append(command.name)
        return 0


TOTALS: dict[str, int] = {}


class RemembersInAGlobal(FSM, name="bad.counter"):
    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        TOTALS[command.name] = TOTALS.get(command.name, 0) + 1
        return 0


class LeavesGhosts(FSM, name="bad.counter"):
    """Its waits are withdrawn without a trace in code, and so with one in the rows."""

    waiting: Table[int, Ticket[int]]

    @applies(Take)
    def take(self, command: Take, context: Context) -> Ticket[int]:
        self.waiting[context.revision] = ticket = context.wait(Take)
        return ticket


class ForgetsOnlyWithTheSession(FSM, name="bad.counter"):
    """Whose wait ran out stays in its rows as long as his session lasts."""

    waiting: Table[int, Ticket[int]]

    @applies(Take)
    def take(self, command: Take, context: Context) -> Ticket[int]:
        self.waiting[context.revision] = ticket = context.wait(Take)
        return ticket

    @session_ended
    def forget(self, session: int, context: Context) -> None:
        for revision, ticket in list(self.waiting.range()):
            if ticket.session == session:
                del self.waiting[revision]


_caches: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()


def _cache_of(fsm: FSM) -> dict[str, int]:
    return _caches.setdefault(fsm, {})


class HidesWhatItKnows(FSM, name="bad.counter"):
    """A second replica that ran everything knows the same; one from a snapshot does not."""

    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        cache = _cache_of(self)
        cache[command.name] = cache.get(command.name, 0) + 1
        return cache[command.name]


_numbers = itertools.count()


class CountsForTheProcess(FSM, name="bad.counter"):
    counts: Table[str, int]

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        return next(_numbers)
