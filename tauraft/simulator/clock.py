"""The clocks of a simulated machine: the world's time, at a rate and an offset of its own."""

from __future__ import annotations

import trio

from tauraft.node.clock import SECOND_NS

EPOCH_NS = 1_700_000_000 * SECOND_NS


class SimulatedClock:
    """Reads trio's clock, which the world advances. ``rate`` 1.01: one per cent fast, from the beginning of the world on."""

    def __init__(self, rate: float = 1.0, wall_offset_s: float = 0.0) -> None:
        self.rate = rate
        self.wall_offset_s = wall_offset_s

    def monotonic_ns(self) -> int:
        return int(trio.current_time() * self.rate * SECOND_NS)

    def boottime_ns(self) -> int:
        return self.monotonic_ns()

    def wall_ns(self) -> int:
        return EPOCH_NS + int(trio.current_time() * SECOND_NS) + int(self.wall_offset_s * SECOND_NS)
