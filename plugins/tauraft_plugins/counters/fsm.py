"""Counters, and ids in blocks: a number a name, that a command adds to.

Both are refused (``overflow``) rather than wrapped around or widened: what does not fit 64 bits fits no database column either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tauraft.errors import Refused
from tauraft.fsm import FSM, Context, Table, answers, applies
from tauraft_primitives.counters.messages import COUNTERS, IDS, LEAST, MOST, Add, Count, Reserve, Reset


class Counters(FSM, name=COUNTERS, version=1):
    counters: Table[str, int]
    sql_views: ClassVar[Mapping[str, str]] = {"counters": "SELECT key AS name, value FROM tauraft_counters_counters"}

    @applies(Add)
    def add(self, command: Add, context: Context) -> int:
        total = self.counters.get(command.counter, 0) + command.n
        if not LEAST <= total <= MOST:
            raise Refused(
                "overflow", f"counter {command.counter!r} plus {command.n} does not fit 64 bits; nothing changed"
            )
        self.counters[command.counter] = total
        return total

    @applies(Reset)
    def reset(self, command: Reset, context: Context) -> int:
        before = self.counters.get(command.counter, 0)
        if command.value:
            self.counters[command.counter] = command.value
        else:
            self.counters.pop(command.counter, None)
        return before

    @answers(Count)
    def count(self, query: Count) -> int:
        return self.counters.get(query.counter, 0)


class Ids(FSM, name=IDS, version=1):
    reserved: Table[str, int]  # name -> the last id that is somebody's

    @applies(Reserve)
    def reserve(self, command: Reserve, context: Context) -> int:
        last = self.reserved.get(command.name, 0)
        if last + command.n > MOST:
            raise Refused("overflow", f"ids {command.name!r} has not {command.n} left in 64 bits; nothing changed")
        self.reserved[command.name] = last + command.n
        return last + 1
