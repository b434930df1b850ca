"""What the handles of counters and ids send. Names: UTF-8, 1 to 512 bytes; numbers: 64 bits, signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.errors import InvalidArgument, TooLarge
from tauraft.fsm import Command, Query
from tauraft_primitives.checks import utf8_size

COUNTERS: Final = "tauraft.counters"
IDS: Final = "tauraft.ids"
MAX_NAME_BYTES: Final = 512
LEAST: Final = -(1 << 63)
MOST: Final = (1 << 63) - 1


def check_name(name: str) -> None:
    """Raises ``TypeError``, ``InvalidArgument``, ``TooLarge``."""
    if type(name) is not str:
        raise TypeError(f"a name is a str, not {type(name).__name__}")
    if not name:
        raise InvalidArgument("a name cannot be empty; nothing was sent", option="name")
    size = utf8_size(name, "name")
    if size > MAX_NAME_BYTES:
        raise TooLarge(f"a name of {size} bytes: the limit is {MAX_NAME_BYTES}; nothing was sent", option="name")


def check_number(value: int, option: str, least: int = LEAST) -> None:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if type(value) is not int:
        raise TypeError(f"{option} is an int, not {type(value).__name__}")
    if not least <= value <= MOST:
        raise InvalidArgument(f"{option}={value}: at least {least} and at most {MOST}; nothing was sent", option=option)


@dataclass(frozen=True, slots=True)
class Add(Command[int], fsm=COUNTERS):
    """Answers the sum. One that does not fit 64 bits is refused (``overflow``)."""

    counter: str
    n: int = 1

    def __post_init__(self) -> None:
        check_name(self.counter)
        check_number(self.n, "n")


@dataclass(frozen=True, slots=True)
class Reset(Command[int], fsm=COUNTERS):
    """Answers what it was."""

    counter: str
    value: int = 0

    def __post_init__(self) -> None:
        check_name(self.counter)
        check_number(self.value, "value")


@dataclass(frozen=True, slots=True)
class Count(Query[int], fsm=COUNTERS):
    """0 of a counter that nobody has added to."""

    counter: str

    def __post_init__(self) -> None:
        check_name(self.counter)


@dataclass(frozen=True, slots=True)
class Reserve(Command[int], fsm=IDS):
    """Answers the first of ``n`` ids that are nobody else's: those right after the block before."""

    name: str
    n: int

    def __post_init__(self) -> None:
        check_name(self.name)
        check_number(self.n, "n", 1)
