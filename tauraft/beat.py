"""When what recurs in a loop does so: at whole multiples of its interval, so that an idle process wakes once for all of it."""

from __future__ import annotations

import trio


async def next_beat(interval_s: float) -> float:
    """Sleep until the next multiple of ``interval_s`` on the loop's clock; returns that moment."""
    moment = (trio.current_time() // interval_s + 1) * interval_s
    await trio.sleep_until(moment)
    return moment
