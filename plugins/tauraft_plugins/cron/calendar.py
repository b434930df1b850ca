"""When a schedule is due: pure functions of the schedule and a moment, the same on every replica.

Moments are microseconds since 1970.  Every answer is found in bounded time, however rare the spec and however far the clock jumped: days
are looked through for at most ``HORIZON_YEARS``, and the last tick before a moment is found by halving, not by counting.

Daylight saving.  A local time may not exist (a *gap*, in spring) or exist twice (a *repeat*, in autumn).  For a job at fixed times of
day, ``gap`` says whether one that does not exist runs at the first moment after the gap or not at all, and ``repeat`` whether one that
exists twice runs the first time or both.  A job whose minute or hour begins with ``*`` runs by the clock on the wall as it
goes: every five minutes stay every five minutes, whatever the clock does.

The rules of a zone come with the schedule (``Schedule.zone``), never from the machine.
"""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from io import BytesIO
from typing import Final
from zoneinfo import ZoneInfo

from tauraft_primitives.cron.messages import (
    LAST,
    LAST_MOMENT_US,
    LAST_WEEKDAY,
    SECOND_US,
    Calendar,
    Gap,
    Repeat,
    Schedule,
)

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
HORIZON_YEARS: Final = 50
ONE_DAY: Final = timedelta(days=1)
ONE_HOUR: Final = timedelta(hours=1)
MIDNIGHT: Final = time()
FIRST_WINDOW_US: Final = 120 * SECOND_US


def moment(at_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=at_us)


def micros(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def next_tick(schedule: Schedule, after_us: int, gap: Gap = "run_after", repeat: Repeat = "first") -> int | None:
    """The first tick later than ``after_us``; None: there is none in the next fifty years."""
    if schedule.at_us is not None:
        return schedule.at_us if schedule.at_us > after_us else None
    if after_us >= LAST_MOMENT_US:
        return None
    if schedule.every_us:
        following = (after_us // schedule.every_us + 1) * schedule.every_us
        return following if following <= LAST_MOMENT_US else None
    assert schedule.calendar is not None
    return _Search(schedule.calendar, zone_of(schedule.zone), gap, repeat).after(after_us)


def latest_tick(
    schedule: Schedule, low_us: int, high_us: int, gap: Gap = "run_after", repeat: Repeat = "first"
) -> int | None:
    """The last tick later than ``low_us`` and not later than ``high_us``."""

    def first_after(moment_us: int) -> int | None:
        found = next_tick(schedule, moment_us, gap, repeat)
        return found if found is not None and found <= high_us else None

    window = FIRST_WINDOW_US
    while (tick := first_after(start := max(low_us, high_us - window))) is None:
        if start == low_us:
            return None
        window *= 4
    beyond = high_us  # no tick is later than this, but for those beyond high_us
    while tick < beyond:
        middle = (tick + beyond) // 2
        later = first_after(middle)
        if later is None:
            beyond = middle
        else:
            tick = later
    return tick


@lru_cache(maxsize=512)
def zone_of(rules: bytes) -> tzinfo:
    """Raises ``ValueError`` for what is no TZif file."""
    if not rules:
        return UTC
    try:
        return ZoneInfo.from_file(BytesIO(rules))
    except Exception as error:  # the parser's own errors are of many kinds
        raise ValueError(f"the rules of the time zone cannot be read: {error}") from error


class _Search:
    """For the next tick of a calendar in a zone."""

    def __init__(self, calendar: Calendar, zone: tzinfo, gap: Gap, repeat: Repeat) -> None:
        self._calendar = calendar
        self._zone = zone
        self._runs_after_gap = calendar.is_fixed and gap == "run_after"
        self._runs_twice = not calendar.is_fixed or repeat == "both"

    def after(self, after_us: int) -> int | None:
        today = moment(after_us).astimezone(self._zone).date()
        best: int | None = None
        # From the day before: a clock that is put back over midnight has that day twice.
        for day in self._days(today if self._zone is UTC else today - ONE_DAY):
            found, is_regular = self._first_on(day, after_us)
            if found is not None and (best is None or found < best):
                best = found
            elif best is not None:
                return best
            if found is not None and is_regular:
                return best
        return best

    def _days(self, first: date) -> Iterator[date]:
        calendar = self._calendar
        year, month, start = first.year, first.month, first.day
        for _ in range(HORIZON_YEARS * 12 + 1):
            if month in calendar.months:
                length = monthrange(year, month)[1]
                for number in range(start, length + 1):
                    day = date(year, month, number)
                    if self._is_on(day, length):
                        yield day
            year, month, start = (year + 1, 1, 1) if month == 12 else (year, month + 1, 1)
            if year > 9_998:
                return

    def _is_on(self, day: date, length: int) -> bool:
        calendar, number = self._calendar, day.day
        of_month = (
            number in calendar.days
            or (LAST in calendar.days and number == length)
            or (LAST_WEEKDAY in calendar.days and number == _last_weekday(day, length))
        )
        if of_month is not calendar.needs_both:
            return of_month  # the weekday cannot change it any more
        weekday = (day.weekday() + 1) % 7
        wanted = calendar.weekdays
        return (
            (weekday, 0) in wanted
            or (weekday, (number + 6) // 7) in wanted
            or ((weekday, LAST) in wanted and number + 7 > length)
        )

    def _first_on(self, day: date, after_us: int) -> tuple[int | None, bool]:
        """The first tick on that local day which is later, and whether the day has the same offset all through."""
        begin = datetime.combine(day, MIDNIGHT)
        begin_us = self._begin_of_steady(begin, datetime.combine(day + ONE_DAY, MIDNIGHT))
        if begin_us is not None:
            return self._later(begin_us, self._first_time, after_us), True
        found = [self._first_in_hour(begin.replace(hour=hour), after_us) for hour in self._calendar.hours]
        return min((at for at in found if at is not None), default=None), False

    def _begin_of_steady(self, begin: datetime, end: datetime) -> int | None:
        """When the local time ``begin`` is, if the offset is the same all the way to ``end``."""
        offset = self._offset(begin, 0)
        is_steady = all(self._offset(at, fold) == offset for at, fold in ((begin, 1), (end, 0), (end, 1)))
        return _utc_us(begin, offset) if is_steady else None

    @staticmethod
    def _later(begin_us: int, find: Callable[[int], int | None], after_us: int) -> int | None:
        seconds = find(max(0, (after_us - begin_us) // SECOND_US + 1))
        return None if seconds is None else begin_us + seconds * SECOND_US

    def _first_time(self, seconds: int) -> int | None:
        """The first time of day, in seconds, that is on the calendar and not before."""
        hours = self._calendar.hours
        place = bisect_left(hours, seconds // 3_600)
        if place < len(hours) and hours[place] == seconds // 3_600:
            within = self._first_within(seconds % 3_600)
            if within is not None:
                return hours[place] * 3_600 + within
            place += 1
        return (
            None
            if place == len(hours)
            else hours[place] * 3_600 + self._calendar.minutes[0] * 60 + self._calendar.seconds[0]
        )

    def _first_within(self, seconds: int) -> int | None:
        """The same of an hour."""
        minutes, of_minute = self._calendar.minutes, self._calendar.seconds
        place = bisect_left(minutes, seconds // 60)
        if place < len(minutes) and minutes[place] == seconds // 60:
            left = bisect_left(of_minute, seconds % 60)
            if left < len(of_minute):
                return minutes[place] * 60 + of_minute[left]
            place += 1
        return None if place == len(minutes) else minutes[place] * 60 + of_minute[0]

    def _first_in_hour(self, begin: datetime, after_us: int) -> int | None:
        """Of a day on which the offset changes."""
        begin_us = self._begin_of_steady(begin, begin + ONE_HOUR)
        if begin_us is not None:
            return self._later(begin_us, self._first_within, after_us)
        found = []
        of_minute = self._calendar.seconds
        for minute in self._calendar.minutes:
            # Offsets change at whole minutes.
            for minute_us, is_real in self._moments(begin.replace(minute=minute)):
                if not is_real:
                    found.append(minute_us)
                    continue
                left = bisect_left(of_minute, max(0, (after_us - minute_us) // SECOND_US + 1))
                if left < len(of_minute):
                    found.append(minute_us + of_minute[left] * SECOND_US)
        return min((at for at in found if at > after_us), default=None)

    def _moments(self, at: datetime) -> tuple[tuple[int, bool], ...]:
        """When the local time ``at`` is: once or twice; not at all, then it runs after the gap (False), or never."""
        before, behind = self._offset(at, 0), self._offset(at, 1)
        first = _utc_us(at, before)
        if before == behind:
            return ((first, True),)
        if before > behind:
            return ((first, True), (_utc_us(at, behind), True)) if self._runs_twice else ((first, True),)
        return ((self._end_of_gap(_utc_us(at, behind), first, behind), False),) if self._runs_after_gap else ()

    def _end_of_gap(self, low_us: int, high_us: int, behind: timedelta) -> int:
        """The moment at which the offset becomes ``behind``, later than ``low_us`` and not later than ``high_us``."""
        while high_us - low_us > SECOND_US:
            middle = (low_us + high_us) // (2 * SECOND_US) * SECOND_US
            if moment(middle).astimezone(self._zone).utcoffset() == behind:
                high_us = middle
            else:
                low_us = middle
        return high_us

    def _offset(self, at: datetime, fold: int) -> timedelta:
        offset = self._zone.utcoffset(at.replace(tzinfo=self._zone, fold=fold))
        assert offset is not None
        return offset


def _utc_us(at: datetime, offset: timedelta) -> int:
    return micros(at.replace(tzinfo=UTC) - offset)


def _last_weekday(day: date, length: int) -> int:
    weekday = day.replace(day=length).weekday()
    return length - max(0, weekday - 4)
