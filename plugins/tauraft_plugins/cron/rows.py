"""What cron's tables hold besides ``Tick``. ``..._us``: microseconds of the cluster's wall clock since 1970."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tauraft.types import Owner
from tauraft_primitives.cron.messages import Policy, Schedule


@dataclass(frozen=True, slots=True)
class JobRow:
    """What was declared. Written when that changes, not at every tick."""

    schedule: Schedule
    policy: Policy
    version: int


@dataclass(frozen=True, slots=True)
class Stand:
    """How far a job has come.

    No tick up to ``mark_us`` is looked at again, unless the clock is set back behind it.  Then what is decided stays so: the
    stretch (``since_us``, ``mark_us``], and ``islands``, stretches (after, up to and with) before and behind it.  What was missed lies in none.
    """

    mark_us: int
    since_us: int
    next_us: int | None = None
    is_paused: bool = False
    islands: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Runner:
    """A process that registered. ``replica``: whose data directory it works on; ``is_own``: it runs that replica."""

    owner: Owner
    crew: int
    replica: str = ""
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One process has one tick. ``sequence``: of the ``Serve`` that was answered with it. ``failures``: of this runner before."""

    job: str
    at: datetime
    order: int
    session: int
    sequence: int
    is_for_all: bool
    failures: int = 0
    is_started: bool = False


@dataclass(frozen=True, slots=True)
class Owed:
    """A tick for all that its runner has still to take."""

    job: str
    at: datetime
    failures: int = 0
