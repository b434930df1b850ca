"""Every deadline of every plugin, in two replicated queues (DESIGN "Timers").

``due`` are taken in (deadline, order) order, order being the order of scheduling.  A timer's row is
deleted in a scope of its own before its command runs, so that a command that raises, and is undone, does not fire for ever (SAFETY 21).
"""

from __future__ import annotations

from tauraft.system.messages import SYSTEM
from tauraft.system.tables import System, TimerPlace, TimerRow

MAX_FIRED_PER_ENTRY = 500
TIMER_TABLES = frozenset(f"{SYSTEM}/{table}" for table in ("timers", "wall_timers", "timer_places"))
END = (1 << 63) - 1


class Timers:
    """A face on the ``System`` tables. All writes happen inside the current command's scope."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.order = 0  # of the timer scheduled last; replicated, in the snapshot's header

    def schedule(self, fsm: str, key: str, at_ns: int, payload: bytes, is_wall: bool) -> None:
        """Replaces the timer of the same name."""
        self.cancel(fsm, key)
        self.order += 1
        table = self._system.wall_timers if is_wall else self._system.timers
        table[at_ns, self.order] = TimerRow(fsm, key, payload)
        self._system.timer_places[fsm, key] = TimerPlace(is_wall, at_ns, self.order)

    def cancel(self, fsm: str, key: str) -> bool:
        place = self._system.timer_places.pop((fsm, key), None)
        if place is None:
            return False
        table = self._system.wall_timers if place.is_wall else self._system.timers
        del table[place.deadline_ns, place.order]
        return True

    def take_due(self, now_ns: int, wall_ns: int) -> tuple[int, TimerRow] | None:
        """(deadline, timer) of the earliest one due, its row deleted; None when there is none."""
        for table, clock in ((self._system.timers, now_ns), (self._system.wall_timers, wall_ns)):
            first = table.first()
            if first is not None and first[0][0] <= clock:
                (deadline, order), row = first
                del table[deadline, order]
                del self._system.timer_places[row.fsm, row.key]
                return deadline, row
        return None

    def wall_was_set_back(self, wall_ns: int) -> None:
        """All timers on the wall clock are due now: what they stand for has to be reckoned anew."""
        table = self._system.wall_timers
        for (deadline_ns, order), row in list(table.range((wall_ns, END))):
            del table[deadline_ns, order]
            table[wall_ns, order] = row
            self._system.timer_places[row.fsm, row.key] = TimerPlace(True, wall_ns, order)

    def next_deadline_ns(self) -> int | None:
        first = self._system.timers.first()
        return None if first is None else first[0][0]

    def next_wall_deadline_ns(self) -> int | None:
        first = self._system.wall_timers.first()
        return None if first is None else first[0][0]

    def has_backlog(self, now_ns: int, wall_ns: int) -> bool:
        """More are due than one entry may fire: nothing else is admitted until they are through."""
        for table, clock in ((self._system.timers, now_ns), (self._system.wall_timers, wall_ns)):
            if len(table) > MAX_FIRED_PER_ENTRY:
                due = table.range(None, (clock + 1, 0))
                if sum(1 for _, _ in zip(range(MAX_FIRED_PER_ENTRY + 1), due, strict=False)) > MAX_FIRED_PER_ENTRY:
                    return True
        return False
