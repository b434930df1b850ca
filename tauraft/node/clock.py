"""The clocks a node is given, and the two cluster clocks a leader stamps (SAFETY 15 to 20).

``Clock`` is the only way any part of a node learns the time: the real one (``engine.SystemClock``) reads the machine, the
simulator's reads its world, so a run with one seed is one run.

``ClusterClock`` is pure: it is told when the node leads, what the voters' heartbeat replies say elapsed on their
clocks, and what stamps were seen; it answers what `now` and `wall` the next entry carries.  Invariants:

- `now` never goes back, and starts at the greatest stamp in the own log or heard on a heartbeat: a leader change
  never makes a deadline come early, at worst late by the time without a leader.
- between two rounds that a quorum confirmed, `now` advances by at most one election time-out and at most 1.01 times
  the voters' median elapsed time: one fast or resumed clock cannot expire the others' holds.
- `wall` is for cron only: the leader's clock clamped to the voters' median plus or minus a bound.  Before a quorum has answered its first
  round a leader lets it stand still: its own clock may be years off.  It never goes back by itself: where the voters' clocks
  were set back by more than ``SET_BACK_NS`` the leader has a ``SetWall`` committed (docs/decisions/0032); less is waited out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

SECOND_NS = 1_000_000_000
WALL_BOUND_NS = 2 * SECOND_NS
SET_BACK_NS = 30 * SECOND_NS  # clocks that differ by less, leader after leader, must not set it back and forth


class Clock(Protocol):
    def monotonic_ns(self) -> int: ...

    def boottime_ns(self) -> int:
        """Counts while the machine is suspended (macOS: what CLOCK_MONOTONIC gives)."""

    def wall_ns(self) -> int: ...


def median(values: Iterable[int]) -> int:
    """The lower median: with an even count, the smaller of the two in the middle (the cautious one)."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


class ClusterClock:
    """What the leader stamps; on followers it only remembers the greatest stamp met."""

    def __init__(self, clock: Clock, election_timeout_ns: int) -> None:
        self._clock = clock
        self._election_timeout_ns = election_timeout_ns
        self._greatest_now = 0
        self._greatest_wall = 0
        self._lead_now = self._anchor_now = 0
        self._lead_monotonic = self._anchor_monotonic = 0
        self._wall_median: int | None = None
        self._walls: list[int] = []
        self._voters = 1

    def saw(self, now_ns: int) -> None:
        """A stamp on a leader's heartbeat."""
        if now_ns > self._greatest_now:
            self._greatest_now = now_ns

    def saw_in_log(self, now_ns: int, wall_ns: int) -> None:
        """The last stamp in the own log. What the log says of `wall` counts, also where it is less: it was set back."""
        self.saw(now_ns)
        self._greatest_wall = wall_ns

    def start_leading(self) -> None:
        self._lead_now = self._anchor_now = self._greatest_now
        self._lead_monotonic = self._anchor_monotonic = self._clock.monotonic_ns()
        self._wall_median = None

    def confirmed(
        self,
        elapsed_of_other_voters_ns: Iterable[int],
        walls_of_other_voters_ns: Iterable[int],
        voters: int | None = None,
    ) -> None:
        """A quorum answered a round. ``elapsed``: on each voter's own clock, since it first answered this leader.

        ``voters``: how many there are, this one among them, where some walls are not known.

        Totals, not one round's share: a delayed message then makes one round short, and does not slow the clock for good.
        """
        reading = self._clock.monotonic_ns()
        own_elapsed = reading - self._lead_monotonic
        allowed = median([own_elapsed, *elapsed_of_other_voters_ns]) * 101 // 100
        target = self._lead_now + max(0, min(own_elapsed, allowed))
        excess = target - (self._anchor_now + self._election_timeout_ns)
        if excess > 0:
            # The process was stopped, or the quorum away, for longer than `now` may jump: that time is not made up.
            self._lead_now -= excess
            target -= excess
        self._anchor_now = max(self._anchor_now, target)
        self._anchor_monotonic = reading
        self._walls = [self._clock.wall_ns(), *walls_of_other_voters_ns]
        self._voters = len(self._walls) if voters is None else voters
        self._wall_median = median(self._walls)

    def stamp(self) -> tuple[int, int]:
        """(now_ns, wall_ns) for an entry appended at this moment. Only while leading."""
        elapsed = min(self._clock.monotonic_ns() - self._anchor_monotonic, self._election_timeout_ns)
        self._greatest_now = max(self._greatest_now, self._anchor_now + max(0, elapsed))
        if self._wall_median is not None or not self._greatest_wall:
            self._greatest_wall = max(self._greatest_wall, self._clamped_wall())
        return self._greatest_now, self._greatest_wall

    def set_wall_back(self, wall_ns: int) -> int | None:
        """What `wall`, which is ``wall_ns`` in the cluster's state, must be set back to; None: it need not. Later stamps follow."""
        # Of all voters, not of those that were heard: one clock that is off, and one that is silent, must not set it back.
        behind = sum(wall_ns - wall > SET_BACK_NS for wall in self._walls)
        if self._wall_median is None or behind <= self._voters // 2:
            return None
        self._greatest_wall = self._clamped_wall()
        return self._greatest_wall

    def _clamped_wall(self) -> int:
        wall, voters = self._clock.wall_ns(), self._wall_median
        return wall if voters is None else min(max(wall, voters - WALL_BOUND_NS), voters + WALL_BOUND_NS)

    def until_now_ns(self, deadline_ns: int) -> int | None:
        """How long on the local clock until `now` reaches ``deadline_ns``; None: not before a quorum answers a round.

        `now` may stand still or have to catch up with itself: waiting ``deadline_ns`` minus the stamp would spin.
        """
        if deadline_ns <= self._greatest_now:
            return 0
        needed = deadline_ns - self._anchor_now
        if needed > self._election_timeout_ns:
            return None
        return max(0, needed - (self._clock.monotonic_ns() - self._anchor_monotonic))

    def until_wall_ns(self, deadline_ns: int) -> int | None:
        """The same of `wall`: None while the voters' median holds it back, or is not known."""
        if deadline_ns <= self._greatest_wall:
            return 0
        if self._wall_median is None or deadline_ns > self._wall_median + WALL_BOUND_NS:
            return None
        if deadline_ns <= self._wall_median - WALL_BOUND_NS:
            return 0
        return max(0, deadline_ns - self._clock.wall_ns())

    @property
    def greatest_now_ns(self) -> int:
        return self._greatest_now

    @property
    def greatest_wall_ns(self) -> int:
        return self._greatest_wall
