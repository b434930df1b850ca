"""When a replica ticks: Raft's clock, and the beat of all that it does now and then.

A leader ticks by its own clock, and its heartbeats go with that; while nothing happens it leaves out every second one.  A
follower ticks when its leader does, so that an idle one wakes once for both, and by its own clock only where the leader
is late.  A tick may stand for several, so that time-outs, counted in ticks, stay what they were.  Who has no peers ticks seldom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tauraft.node.clock import SECOND_NS

IDLE_PACE: Final = 2  # ticks at once


@dataclass(frozen=True, slots=True)
class Timing:
    """Raft's pace. An election time-out is drawn from [election, 2 x election)."""

    heartbeat_s: float = 0.1
    election_s: float = 1.0

    @property
    def election_ticks(self) -> int:
        return max(2, round(self.election_s / self.heartbeat_s))


class Pacer:
    """Asked in every turn of the driver; it only reckons."""

    def __init__(self, timing: Timing, now_ns: int) -> None:
        self.next_tick_ns = self._last_tick_ns = self._heard_ns = now_ns
        self.is_alone = False
        self.has_ticked = False  # in this turn
        self._has_heard_leader = False  # in this turn
        self._pace = 1  # the ticks that the time until the next one stands for
        self._heartbeat_ns = int(timing.heartbeat_s * SECOND_NS)
        # A leader without peers has nobody to hear from: thousands of such replicas must be able to idle beside each other.
        # Half an election time-out, since the cluster's clock stands still a whole one after a tick (SAFETY 18).
        self._alone_ns = int(timing.election_s / 2 * SECOND_NS)

    @property
    def _period_ns(self) -> int:
        return self._alone_ns if self.is_alone else self._heartbeat_ns

    def set_alone(self, is_alone: bool, now_ns: int) -> None:
        """Are there no peers?"""
        if self.is_alone and not is_alone:
            # It ticked slowly. Not at once either: ticks are time, to whoever waits for some of them to pass.
            self.next_tick_ns = min(self.next_tick_ns, now_ns + self._heartbeat_ns)
        self.is_alone = is_alone

    def role_changed(self, now_ns: int) -> None:
        """The next tick is due within one period, whatever was slept on before."""
        if now_ns + self._period_ns < self.next_tick_ns:
            self.next_tick_ns, self._pace = now_ns + self._period_ns, 1

    def heard_leader(self) -> None:
        self._has_heard_leader = True

    def ticks_due(self, now_ns: int, may_idle: Callable[[], bool]) -> int:
        """How many ticks to take in this turn. ``may_idle``: does it lead, and has it nothing to tell?"""
        period = self._period_ns
        has_heard_leader, self._has_heard_leader = self._has_heard_leader, False
        self.has_ticked = False
        ticks = 1
        if now_ns >= self.next_tick_ns:
            # After a stall only what was slept on purpose is owed: a process that was stopped must first hear, then judge.
            ticks, self._pace = self._pace, IDLE_PACE if not self.is_alone and may_idle() else 1
            self.next_tick_ns += self._pace * period
            if self.next_tick_ns < now_ns + period // 2:
                self.next_tick_ns, self._pace = now_ns + period // 2, 1
        elif has_heard_leader:
            # It waits for the leader half as long again as the last time. One that ticked just before waits for the next:
            # else it would tick by itself, just before, for ever.
            interval = min(max(now_ns - self._heard_ns, period), IDLE_PACE * period)
            self._heard_ns = now_ns
            self.next_tick_ns, self._pace = now_ns + interval * 3 // 2, interval * 3 // (2 * period)
            if now_ns - self._last_tick_ns < period * 9 // 10:
                return 0
        else:
            return 0
        self._last_tick_ns = now_ns
        self.has_ticked = True
        return ticks
