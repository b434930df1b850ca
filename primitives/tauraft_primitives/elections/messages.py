"""What the election handles send. Names: UTF-8, 1 to 512 bytes; values: up to 1 MiB.

``attempt`` is the handle's own number of one campaign of the session, so that one which was interrupted can be given back
before its token is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.fsm import Command, Query, TableName
from tauraft.types import ElectionInfo, Leader, Owner
from tauraft_primitives.checks import check_name, check_session, check_value
from tauraft_primitives.locks.messages import Grant, Standing, check_priority, check_seconds

ELECTIONS: Final = "tauraft.elections"
MAX_LISTED: Final = 1_000
MAX_LISTED_BYTES: Final = 1 << 20  # of values, in one answer, but for a single one


@dataclass(frozen=True, slots=True)
class Campaign(Command[Grant], fsm=ELECTIONS):
    """Stands for ``name`` and waits to lead it. ``min_tenure``: seconds from its election to the next one.

    ``patience``: seconds the caller will wait, None for ever; with 0 it is refused (``WouldWait``) instead of waiting.
    """

    name: str
    value: bytes = b""
    priority: int = 0
    min_tenure: float = 0.0
    peer_id: str = ""
    host: str = ""
    pid: int = 0
    label: str | None = None
    patience: float | None = None
    attempt: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        check_value(self.value)
        check_priority(self.priority)
        check_seconds("min_tenure", self.min_tenure, 0)


@dataclass(frozen=True, slots=True)
class Resign(Command[None], fsm=ELECTIONS):
    """Refuses with ``NotHolder`` unless ``token`` leads."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class GiveBackTerm(Command[None], fsm=ELECTIONS):
    """Ends what that attempt of the session was elected for, if anything: its caller was interrupted."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Transfer(Command[None], fsm=ELECTIONS):
    """Elects the candidate of session ``to`` at once. Refuses with ``NotHolder``, and ``NoCandidate``: then nothing changed."""

    name: str
    token: int
    to: int

    def __post_init__(self) -> None:
        check_session(self.to, "to")


@dataclass(frozen=True, slots=True)
class Proclaim(Command[None], fsm=ELECTIONS):
    """Changes the leader's value. Refuses with ``NotHolder`` unless ``token`` leads."""

    name: str
    token: int
    value: bytes

    def __post_init__(self) -> None:
        check_value(self.value)


@dataclass(frozen=True, slots=True)
class TenureEnds(Command[None], fsm=ELECTIONS):
    """Sent by a timer: ``min_tenure`` is over, the next may be elected."""

    name: str


@dataclass(frozen=True, slots=True)
class GetLeader(Query[Leader | None], fsm=ELECTIONS):
    name: str


@dataclass(frozen=True, slots=True)
class AskElection(Query[ElectionInfo], fsm=ELECTIONS):
    name: str


@dataclass(frozen=True, slots=True)
class ElectionsPage:
    """``after``: ask again from there; None: that was all."""

    elections: tuple[ElectionInfo, ...]
    after: str | None


@dataclass(frozen=True, slots=True)
class ListElections(Query[ElectionsPage], fsm=ELECTIONS):
    """Elections that have a leader, after the name ``after``, in the order of their names; fewer than ``limit`` where
    their leaders' values are large."""

    after: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Leads(Query[bool], fsm=ELECTIONS):
    """Whether ``token`` leads."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class CampaignStanding(Query[Standing | None], fsm=ELECTIONS):
    """Of a campaign that waits; None: it does not (any more)."""

    name: str
    session: int
    attempt: int


# ---- the rows of the leaders there are, for those who watch them ----


@dataclass(frozen=True, slots=True)
class TermRow:
    """``since_ns``: of the wall clock; ``elected_ns``: of cluster time. ``sequence``: of the campaign."""

    token: int
    session: int
    value: bytes
    since_ns: int
    elected_ns: int
    min_tenure_ns: int
    owner: Owner
    sequence: int
    attempt: int


TERMS: Final = TableName(ELECTIONS, "terms", str, TermRow)
