"""Checks of what messages carry, when they are made: in the caller's frame, before anything is sent.

A wrong type is a ``TypeError``, a wrong value an ``InvalidArgument``. The state machines rely on them.
"""

from __future__ import annotations

import math
from typing import Final

from tauraft.errors import InvalidArgument, TooLarge

MAX_NAME_BYTES: Final = 512
MAX_VALUE_BYTES: Final = 1 << 20


def utf8_size(text: str, option: str) -> int:
    """In bytes. A half of a surrogate pair is no text."""
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{option} cannot be encoded as UTF-8; nothing was sent", option=option) from error


def check_name(name: str, option: str = "name") -> str:
    """A name or id: text of 1 to 512 bytes of UTF-8."""
    if type(name) is not str:
        raise TypeError(f"{option} must be str, not {type(name).__name__}")
    if not name:
        raise InvalidArgument(f"{option} is empty; nothing was sent", option=option)
    size = utf8_size(name, option)
    if size > MAX_NAME_BYTES:
        raise TooLarge(f"{option} has {size} bytes, at most {MAX_NAME_BYTES} are allowed", option=option)
    return name


def check_value(value: bytes, option: str = "value") -> bytes:
    """At most 1 MiB."""
    if type(value) is not bytes:
        raise TypeError(f"{option} must be bytes, not {type(value).__name__}")
    if len(value) > MAX_VALUE_BYTES:
        raise TooLarge(
            f"{option} has {len(value)} bytes: the limit is {MAX_VALUE_BYTES}; nothing was sent", option=option
        )
    return value


def check_count(count: int, option: str, most: int, least: int = 1) -> int:
    if type(count) is not int:
        raise TypeError(f"{option} must be int, not {type(count).__name__}")
    if not least <= count <= most:
        raise InvalidArgument(
            f"{option} is {count}; it must be from {least} to {most}; nothing was sent", option=option
        )
    return count


def check_rate(rate: float, option: str, least: float, most: float) -> float:
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"{option} must be a number, not {type(rate).__name__}")
    if math.isnan(rate) or not least <= rate <= most:
        raise InvalidArgument(
            f"{option} is {rate}; it must be from {least:g} to {most:g}; nothing was sent", option=option
        )
    return float(rate)


def check_session(session: int, option: str) -> int:
    """The public id of a session."""
    if type(session) is not int:
        raise TypeError(f"{option} must be the id of a session, not {type(session).__name__}")
    if session <= 0:
        raise InvalidArgument(f"{session} is no session's id; nothing was sent", option=option)
    return session
