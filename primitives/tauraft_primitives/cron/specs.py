"""Reads what an author writes: a cron line of 5 or 6 fields, ``@daily`` and the like, ``@every 30s``, a moment.

Done where it is written, so that a mistake is told there, by the name of the field, before anything is sent; and once, so that
no replica ever parses a line.  The line is read by *cronsim*, the zone's rules come from the *tzdata* package: never from the machine.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.resources import files
from typing import Any, Final

from tauraft.errors import InvalidSpec
from tauraft_primitives.checks import check_name
from tauraft_primitives.cron.messages import (
    LAST,
    LAST_WEEKDAY,
    SECOND_US,
    Calendar,
    Schedule,
)

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
EVERY: Final = re.compile(r"@every\s+((?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+)", re.ASCII)
PARTS: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
UNITS_US: Final = {
    "ms": 1_000,
    "s": SECOND_US,
    "m": 60 * SECOND_US,
    "h": 3_600 * SECOND_US,
    "d": 86_400 * SECOND_US,
    "w": 604_800 * SECOND_US,
}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def read_spec(spec: object, timezone: object = "UTC") -> Schedule:
    """Raises ``InvalidSpec``, whose ``field`` names the part; ``TypeError``."""
    rules, version = read_zone(timezone)
    assert isinstance(timezone, str)
    if isinstance(spec, datetime):
        if spec.tzinfo is None:
            raise _invalid("spec", f"{spec.isoformat()} has no time zone: give one, for example tzinfo=UTC")
        at_us = (spec - EPOCH) // timedelta(microseconds=1)
        return Schedule(spec.isoformat(), at_us=at_us, timezone=timezone)
    if not isinstance(spec, str):
        raise TypeError(f"spec is a str or a datetime, not {type(spec).__name__}")
    check_name(spec, "spec")
    text = spec.strip()
    if text.startswith("@every"):
        return Schedule(text, every_us=_interval(text), timezone=timezone)
    line = text
    if text.startswith("@"):
        line = ALIASES.get(text.lower(), "")
        if not line:
            reason = (
                "there is no @reboot here: do it when the process starts"
                if text.lower() == "@reboot"
                else f"{text!r} is none of {', '.join(ALIASES)}, @every 30s"
            )
            raise _invalid("spec", reason)
    return Schedule(text, calendar=_calendar(line), timezone=timezone, zone=rules, zone_version=version)


def read_zone(timezone: object) -> tuple[bytes, str]:
    """(its rules, the release they are of); none for UTC. Raises ``InvalidSpec``, ``TypeError``."""
    if not isinstance(timezone, str):
        raise TypeError(f"timezone is the name of a zone, a str, not {type(timezone).__name__}")
    if timezone == "UTC":
        return b"", ""
    known = _zones()
    if timezone not in known:
        near = get_close_matches(timezone, known, 1)
        hint = f": did you mean {near[0]!r}?" if near else "; names are like 'Europe/Berlin'"
        raise _invalid("timezone", f"there is no time zone {timezone!r}{hint}", option="timezone")
    return _rules(timezone)


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(files("tzdata").joinpath("zones").read_text("utf-8").split())


@lru_cache(maxsize=256)
def _rules(timezone: str) -> tuple[bytes, str]:
    data = files("tzdata").joinpath("zoneinfo", *timezone.split("/")).read_bytes()
    return data, str(import_module("tzdata").IANA_VERSION)


def _interval(text: str) -> int:
    found = EVERY.fullmatch(text)
    if found is None:
        raise _invalid("every", f"{text!r} is not like '@every 30s', '@every 1h30m', '@every 1d'")
    interval = sum(round(float(number) * UNITS_US[unit]) for number, unit in PARTS.findall(found[1]))
    if interval < SECOND_US:
        raise _invalid("every", f"{text!r}: the shortest interval is 1 s")
    return interval


def _calendar(line: str) -> Calendar:
    from cronsim import CronSim, CronSimError

    try:
        read: Any = CronSim(line, datetime(2024, 1, 1))
    except CronSimError as error:
        field = str(error).removeprefix("Bad ")
        if field == str(error):
            raise _invalid(
                "spec", f"{line!r} has {len(line.split())} fields; a cron line has 5, or 6 with seconds first"
            ) from None
        raise _invalid(field, f"{line!r}: the {field} cannot be read, or never comes") from None
    except (ValueError, TypeError, AssertionError) as error:
        raise _invalid("spec", f"{line!r} cannot be read") from error
    special = {CronSim.LAST: LAST, CronSim.LAST_WEEKDAY: LAST_WEEKDAY}
    calendar = Calendar(
        seconds=tuple(sorted(read.seconds)),
        minutes=tuple(sorted(read.minutes)),
        hours=tuple(sorted(read.hours)),
        days=tuple(sorted(special.get(day, day) for day in read.days)),
        months=tuple(sorted(read.months)),
        weekdays=tuple(sorted({_weekday(item, CronSim.LAST) for item in read.weekdays})),
        needs_both=read.day_and,
        is_fixed=not read.parts[1].startswith("*") and not read.parts[2].startswith("*"),
    )
    try:
        next(read)
    except StopIteration:
        raise _invalid("day-of-month", f"{line!r} names no day that ever comes") from None
    return calendar


def _weekday(item: int | tuple[int, int], last: int) -> tuple[int, int]:
    weekday, which = item if isinstance(item, tuple) else (item, 0)
    return weekday % 7, LAST if which == last else which


def _invalid(field: str, message: str, option: str = "spec") -> InvalidSpec:
    return InvalidSpec(f"{message}; nothing was sent", option=option, field=field)
