"""What the rate limit handle sends. Names: UTF-8, 1 to 512 bytes.

``rate``: tokens a second, ``burst``: what the bucket holds. A bucket that fills in more than ``MAX_FILL_S`` is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.errors import InvalidArgument
from tauraft.fsm import Command, Query
from tauraft.types import Owner, RateInfo
from tauraft_primitives.checks import check_count, check_name, check_rate

RATES: Final = "tauraft.rates"
MIN_RATE: Final = 1e-6
MAX_RATE: Final = 1e6
MAX_BURST: Final = 1_000_000
MAX_FILL_S: Final = 1e9
NOBODY: Final = Owner(0, "", "", 0)


def check_bucket(rate: float, burst: int) -> None:
    """Raises ``TypeError``, ``InvalidArgument``."""
    check_rate(rate, "rate", MIN_RATE, MAX_RATE)
    check_count(burst, "burst", MAX_BURST)
    if burst / rate > MAX_FILL_S:
        raise InvalidArgument(
            f"burst={burst} at rate={rate:g} takes {burst / rate:g} s to fill, at most {MAX_FILL_S:g} are allowed; "
            "nothing was sent",
            option="burst",
        )


@dataclass(frozen=True, slots=True)
class TakeTokens(Command[None], fsm=RATES):
    """Waits until ``n`` tokens are there and takes them, first come, first served. Refuses with ``Mismatch``.

    ``patience``: seconds the caller will wait, None for ever; with 0 it is refused (``WouldWait``) instead of waiting.
    """

    name: str
    rate: float
    burst: int
    n: int = 1
    who: Owner = NOBODY
    patience: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_bucket(self.rate, self.burst)
        check_count(self.n, "n", self.burst)


@dataclass(frozen=True, slots=True)
class TryTokens(Command[bool], fsm=RATES):
    """Takes ``n`` tokens if they are there and nobody waits for some. Never waits, so it may stand in a transaction."""

    name: str
    rate: float
    burst: int
    n: int = 1

    def __post_init__(self) -> None:
        check_name(self.name)
        check_bucket(self.rate, self.burst)
        check_count(self.n, "n", self.burst)


@dataclass(frozen=True, slots=True)
class Retune(Command[None], fsm=RATES):
    """From now on the bucket has this rate and burst, for everyone; who names the old ones goes on."""

    name: str
    rate: float
    burst: int
    old_rate: float
    old_burst: int

    def __post_init__(self) -> None:
        check_name(self.name)
        check_bucket(self.rate, self.burst)
        check_bucket(self.old_rate, self.old_burst)


@dataclass(frozen=True, slots=True)
class TokensDue(Command[None], fsm=RATES):
    """Sent by a timer: the first who waits can have its tokens."""

    name: str


@dataclass(frozen=True, slots=True)
class AskRate(Query[RateInfo | None], fsm=RATES):
    name: str
