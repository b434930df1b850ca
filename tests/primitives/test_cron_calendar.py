"""When schedules are due: cron lines against the parser's own iterator, daylight saving against tables made by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from tauraft.errors import InvalidSpec
from tauraft_plugins.cron.calendar import latest_tick, micros, moment, next_tick, zone_of
from tauraft_primitives.cron.messages import Schedule
from tauraft_primitives.cron.specs import read_spec

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"


def ticks(schedule: Schedule, start: datetime, count: int, **daylight: Any) -> list[datetime]:
    found: list[datetime] = []
    at: int | None = micros(start)
    for _ in range(count):
        assert at is not None
        at = next_tick(schedule, at, **daylight)
        if at is None:
            break
        found.append(moment(at))
    return found


def local(schedule: Schedule, start: str, count: int, **daylight: Any) -> list[str]:
    """As a clock on the wall there shows them, with the offset from UTC."""
    begin = datetime.fromisoformat(start).replace(tzinfo=zone_of(schedule.zone))
    return [at.astimezone(begin.tzinfo).strftime("%d %H:%M %z") for at in ticks(schedule, begin, count, **daylight)]


# ---- cron lines ----


def random_field(random: Random, low: int, high: int) -> str:
    first, last = sorted(random.randint(low, high) for _ in range(2))
    step = random.randint(1, 9)
    return random.choice(["*", str(first), f"{first}-{last}", f"*/{step}", f"{first},{last}", f"{first}-{last}/{step}"])


def test_cron_lines_are_due_when_their_parser_says() -> None:
    random = Random(1)
    compared = 0
    while compared < 200:
        fields = [random_field(random, *limits) for limits in ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))]
        fields[4] = random.choice([fields[4], "*", "*", "MON#2", "5L", "FRI"])
        fields[2] = random.choice([fields[2], fields[2], fields[2], "L", "LW"])
        line = " ".join(fields if random.random() < 0.8 else [random_field(random, 0, 59), *fields])
        try:
            schedule = read_spec(line)
        except InvalidSpec:
            continue
        start = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=random.randint(0, 10**8))
        expected = [at for at, _ in zip(CronSim(line, start), range(6), strict=False)]
        assert ticks(schedule, start, len(expected)) == expected, line
        if expected:
            compared += 1
            before = micros(expected[-1]) - random.randint(0, 1)
            latest = max((at for at in expected if micros(at) <= before), default=None)
            assert latest_tick(schedule, micros(start), before) == (None if latest is None else micros(latest)), line


@pytest.mark.parametrize(
    ("alias", "line"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * SUN"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@HOURLY", "0 * * * *"),
    ],
)
def test_names_stand_for_cron_lines(alias: str, line: str) -> None:
    schedule = read_spec(alias, BERLIN)
    assert (schedule.calendar, schedule.text) == (read_spec(line, BERLIN).calendar, alias)


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [("@every 1s", 1), ("@every 90s", 90), ("@every 1h30m", 5_400), ("@every 1.5h", 5_400), ("@every 1d", 86_400), ("@every 1500ms", 1.5)],
)  # fmt: skip
def test_intervals_lie_on_their_multiples_since_the_epoch(spec: str, seconds: float) -> None:
    start = datetime(2026, 1, 27, 14, 3, 7, 123_456, tzinfo=UTC)
    first, second = ticks(read_spec(spec), start, 2)
    assert (first.timestamp() / seconds).is_integer()
    assert first - start <= second - first == timedelta(seconds=seconds)


def test_a_moment_is_due_once() -> None:
    at = datetime(2026, 1, 27, 14, 3, 7, 123_456, tzinfo=ZoneInfo(NEW_YORK))
    schedule = read_spec(at)
    assert ticks(schedule, at - timedelta(days=1), 3) == [at]
    assert ticks(schedule, at, 1) == []
    assert latest_tick(schedule, 0, micros(at)) == micros(at)
    assert latest_tick(schedule, micros(at), micros(at)) is None


def test_rare_and_dense_schedules_are_found_in_bounded_steps() -> None:
    leap = read_spec("0 0 29 2 *")
    assert ticks(leap, datetime(2096, 3, 1, tzinfo=UTC), 1) == [datetime(2104, 2, 29, tzinfo=UTC)]
    new_year = read_spec("* * * 1 1 *")
    end = datetime(2036, 12, 31, tzinfo=UTC)
    assert latest_tick(new_year, 0, micros(end)) == micros(datetime(2036, 1, 1, 23, 59, 59, tzinfo=UTC))
    assert latest_tick(leap, micros(datetime(2024, 3, 1, tzinfo=UTC)), micros(datetime(2027, 1, 1, tzinfo=UTC))) is None


def test_the_rules_of_a_zone_are_sent_along_and_others_are_refused() -> None:
    schedule = read_spec("0 0 * * *", BERLIN)
    assert schedule.zone.startswith(b"TZif") and len(schedule.zone) < 4_096
    assert schedule.zone_version
    assert read_spec("@every 1h", BERLIN).zone == b"", "not needed"
    with pytest.raises(ValueError, match="cannot be read"):
        zone_of(b"TZif2 and nothing else")


# ---- daylight saving ----

# What a fixed time of day does in a gap (run_after, skip) and in a repeat (first, both); the day before and after stand for all others.
GAPS = [
    # 29 March 2026, 02:00 -> 03:00
    (BERLIN, "30 2 * * *", "2026-03-28T00:00", ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"], ["28 02:30 +0100", "30 02:30 +0200", "31 02:30 +0200"]),
    (BERLIN, "0,30 2,3 * * *", "2026-03-29T00:00", ["29 03:00 +0200", "29 03:30 +0200", "30 02:00 +0200"], ["29 03:00 +0200", "29 03:30 +0200", "30 02:00 +0200"]),
    # 8 March 2026, 02:00 -> 03:00
    (NEW_YORK, "15 2 * * *", "2026-03-07T00:00", ["07 02:15 -0500", "08 03:00 -0400", "09 02:15 -0400"], ["07 02:15 -0500", "09 02:15 -0400", "10 02:15 -0400"]),
    (NEW_YORK, "0 2 * * SUN", "2026-03-07T00:00", ["08 03:00 -0400", "15 02:00 -0400", "22 02:00 -0400"], ["15 02:00 -0400", "22 02:00 -0400", "29 02:00 -0400"]),
    # 4 October 2026, 02:00 -> 02:30
    (LORD_HOWE, "15 2 * * *", "2026-10-03T00:00", ["03 02:15 +1030", "04 02:30 +1100", "05 02:15 +1100"], ["03 02:15 +1030", "05 02:15 +1100", "06 02:15 +1100"]),
    (LORD_HOWE, "30 2 * * *", "2026-10-03T00:00", ["03 02:30 +1030", "04 02:30 +1100", "05 02:30 +1100"], ["03 02:30 +1030", "04 02:30 +1100", "05 02:30 +1100"]),
]  # fmt: skip
REPEATS = [
    # 25 October 2026, 03:00 -> 02:00
    (BERLIN, "30 2 * * *", "2026-10-24T00:00", ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"], ["24 02:30 +0200", "25 02:30 +0200", "25 02:30 +0100"]),
    (BERLIN, "0 3 * * *", "2026-10-24T00:00", ["24 03:00 +0200", "25 03:00 +0100", "26 03:00 +0100"], ["24 03:00 +0200", "25 03:00 +0100", "26 03:00 +0100"]),
    # 1 November 2026, 02:00 -> 01:00
    (NEW_YORK, "0,30 1 * * *", "2026-11-01T00:00", ["01 01:00 -0400", "01 01:30 -0400", "02 01:00 -0500"], ["01 01:00 -0400", "01 01:30 -0400", "01 01:00 -0500"]),
    # 5 April 2026, 02:00 -> 01:30
    (LORD_HOWE, "45 1 * * *", "2026-04-04T00:00", ["04 01:45 +1100", "05 01:45 +1100", "06 01:45 +1030"], ["04 01:45 +1100", "05 01:45 +1100", "05 01:45 +1030"]),
    (LORD_HOWE, "15 1 * * *", "2026-04-04T00:00", ["04 01:15 +1100", "05 01:15 +1100", "06 01:15 +1030"], ["04 01:15 +1100", "05 01:15 +1100", "06 01:15 +1030"]),
]  # fmt: skip
# Whose minute or hour begins with * goes by the clock, whatever is said of gaps and repeats.
STEADY = [
    (BERLIN, "*/30 * * * *", "2026-03-29T01:00", ["29 01:30 +0100", "29 03:00 +0200", "29 03:30 +0200"]),
    (BERLIN, "30 * * * *", "2026-03-29T01:00", ["29 01:30 +0100", "29 03:30 +0200", "29 04:30 +0200"]),
    (BERLIN, "*/30 2 * * *", "2026-10-25T01:00", ["25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100", "26 02:00 +0100"]),
    (NEW_YORK, "15 * * * *", "2026-11-01T00:30", ["01 01:15 -0400", "01 01:15 -0500", "01 02:15 -0500"]),
    (LORD_HOWE, "*/20 * * * *", "2026-04-05T01:10", ["05 01:20 +1100", "05 01:40 +1100", "05 01:40 +1030", "05 02:00 +1030"]),
    (LORD_HOWE, "*/20 * * * *", "2026-10-04T01:30", ["04 01:40 +1030", "04 02:40 +1100", "04 03:00 +1100"]),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "line", "start", "run_after", "skip"), GAPS)
def test_a_time_that_does_not_exist_runs_after_the_gap_or_not(
    zone: str, line: str, start: str, run_after: list[str], skip: list[str]
) -> None:
    schedule = read_spec(line, zone)
    assert local(schedule, start, 3, gap="run_after") == run_after
    assert local(schedule, start, 3, gap="skip") == skip


@pytest.mark.parametrize(("zone", "line", "start", "first", "both"), REPEATS)
def test_a_time_that_exists_twice_runs_the_first_time_or_both(
    zone: str, line: str, start: str, first: list[str], both: list[str]
) -> None:
    schedule = read_spec(line, zone)
    assert local(schedule, start, 3, repeat="first") == first
    assert local(schedule, start, 3, repeat="both") == both


@pytest.mark.parametrize(("zone", "line", "start", "expected"), STEADY)
def test_every_so_often_stays_every_so_often(zone: str, line: str, start: str, expected: list[str]) -> None:
    schedule = read_spec(line, zone)
    for gap in ("run_after", "skip"):
        for repeat in ("first", "both"):
            assert local(schedule, start, len(expected), gap=gap, repeat=repeat) == expected


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, LORD_HOWE, "Antarctica/Troll", "America/Nuuk", "Africa/Casablanca"])
@pytest.mark.parametrize("line", ["*/15 * * * *", "30 0,1,2,3,23 * * *", "17 */7 * * *"])
def test_a_year_of_ticks_is_in_order_and_matches_the_wall(zone: str, line: str) -> None:
    schedule = read_spec(line, zone)
    assert schedule.calendar is not None
    found = ticks(schedule, datetime(2026, 1, 1, tzinfo=UTC), 2_000, repeat="both", gap="skip")
    assert all(earlier < later for earlier, later in pairwise(found))
    for at in found:
        wall = at.astimezone(zone_of(schedule.zone))  # the machine may have older rules
        assert wall.minute in schedule.calendar.minutes and wall.hour in schedule.calendar.hours
    assert latest_tick(schedule, 0, micros(found[-1]), repeat="both", gap="skip") == micros(found[-1])
