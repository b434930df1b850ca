"""What the handles of gates, latches, double and cyclic barriers send. Names: UTF-8, 1 to 512 bytes.

``who`` is the caller as others are shown it; its session is filled in by the state machine.  ``attempt`` is the handle's own
number of one wait of the session, so that one which was interrupted can be given back.  ``patience``: seconds the caller
will wait, None for ever; with 0 a command is refused (``WouldWait``) instead of waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.errors import InvalidArgument
from tauraft.fsm import Command, Query, TableName
from tauraft.types import BarrierInfo, GateInfo, LatchInfo, OnLoss, Owner
from tauraft_primitives.checks import check_count, check_name

GATES: Final = "tauraft.gates"
LATCHES: Final = "tauraft.latches"
DOUBLES: Final = "tauraft.double_barriers"
CYCLICS: Final = "tauraft.cyclic_barriers"
MAX_PARTIES: Final = 10_000
MAX_COUNT: Final = 1 << 40
NOBODY: Final = Owner(0, "", "", 0)


def check_on_loss(on_loss: str) -> OnLoss:
    """Raises ``TypeError``, ``InvalidArgument``."""
    if type(on_loss) is not str:
        raise TypeError(f"on_loss must be str, not {type(on_loss).__name__}")
    if on_loss not in ("break", "shrink", "ignore"):
        raise InvalidArgument(
            f"on_loss is {on_loss!r}; it is break, shrink or ignore; nothing was sent", option="on_loss"
        )
    return on_loss  # type: ignore[return-value]


def check_parties(parties: int) -> int:
    """Raises ``TypeError``, ``InvalidArgument``."""
    return check_count(parties, "parties", MAX_PARTIES)


# ---- gates ----


@dataclass(frozen=True, slots=True)
class OpenGate(Command[None], fsm=GATES):
    name: str

    def __post_init__(self) -> None:
        check_name(self.name)


@dataclass(frozen=True, slots=True)
class CloseGate(Command[None], fsm=GATES):
    name: str

    def __post_init__(self) -> None:
        check_name(self.name)


@dataclass(frozen=True, slots=True)
class PassGate(Command[None], fsm=GATES):
    """Waits until the gate is open."""

    name: str
    who: Owner = NOBODY
    patience: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)


@dataclass(frozen=True, slots=True)
class AskGate(Query[GateInfo], fsm=GATES):
    name: str


# ---- latches ----


@dataclass(frozen=True, slots=True)
class CountDown(Command[int], fsm=LATCHES):
    """Answered with what is left. Refuses with ``Mismatch`` where the latch was made with another count."""

    name: str
    count: int
    n: int = 1

    def __post_init__(self) -> None:
        check_name(self.name)
        check_count(self.count, "count", MAX_COUNT)
        check_count(self.n, "n", MAX_COUNT)


@dataclass(frozen=True, slots=True)
class AwaitLatch(Command[None], fsm=LATCHES):
    """Waits until nothing is left to count."""

    name: str
    count: int
    who: Owner = NOBODY
    patience: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_count(self.count, "count", MAX_COUNT)


@dataclass(frozen=True, slots=True)
class ResetLatch(Command[bool], fsm=LATCHES):
    """Forgets the latch; who waits is told (``BrokenBarrier``). False: there was none."""

    name: str


@dataclass(frozen=True, slots=True)
class AskLatch(Query[LatchInfo | None], fsm=LATCHES):
    name: str


# ---- double barriers ----


@dataclass(frozen=True, slots=True)
class Entered:
    """``place``: what is left again."""

    place: int
    generation: int


@dataclass(frozen=True, slots=True)
class Enter(Command[Entered], fsm=DOUBLES):
    """Waits until ``parties`` have entered and nobody of the round before is in any more."""

    name: str
    parties: int
    on_loss: OnLoss = "break"
    who: Owner = NOBODY
    patience: float | None = None
    attempt: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        check_parties(self.parties)
        check_on_loss(self.on_loss)


@dataclass(frozen=True, slots=True)
class Leave(Command[None], fsm=DOUBLES):
    """Waits until all who are in leave. Withdrawn: gone, without waiting for them. Refuses with ``NotHolder``."""

    name: str
    place: int
    patience: float | None = None


@dataclass(frozen=True, slots=True)
class Depart(Command[None], fsm=DOUBLES):
    """Leaves without waiting for the others, if it is in."""

    name: str
    place: int


@dataclass(frozen=True, slots=True)
class GiveBackPlace(Command[None], fsm=DOUBLES):
    """Leaves the place that this attempt of the session was given, if any: its caller was interrupted."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class AskDouble(Query[BarrierInfo | None], fsm=DOUBLES):
    name: str


# ---- cyclic barriers ----


@dataclass(frozen=True, slots=True)
class Arrived:
    """``index``: the order of arrival, from 0. ``act`` is not 0: run the action, then say ``Acted`` with it."""

    index: int
    act: int = 0


@dataclass(frozen=True, slots=True)
class Arrive(Command[Arrived], fsm=CYCLICS):
    """Waits until ``parties`` have arrived, and the action was run by one of those that have one. Withdrawn: it breaks."""

    name: str
    parties: int
    on_loss: OnLoss = "break"
    has_action: bool = False
    who: Owner = NOBODY
    patience: float | None = None
    attempt: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        check_parties(self.parties)
        check_on_loss(self.on_loss)


@dataclass(frozen=True, slots=True)
class Acted(Command[None], fsm=CYCLICS):
    """The action is done: everybody goes on. Refuses with ``BrokenBarrier`` when it was broken meanwhile."""

    name: str
    act: int


@dataclass(frozen=True, slots=True)
class GiveUp(Command[None], fsm=CYCLICS):
    """Breaks the barrier if that attempt of the session waits, or runs the action: its caller was interrupted, or it failed."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Abort(Command[None], fsm=CYCLICS):
    """Breaks the barrier until it is reset."""

    name: str
    parties: int
    on_loss: OnLoss = "break"

    def __post_init__(self) -> None:
        check_name(self.name)
        check_parties(self.parties)
        check_on_loss(self.on_loss)


@dataclass(frozen=True, slots=True)
class Reset(Command[None], fsm=CYCLICS):
    """Makes it new; who waits is told (``BrokenBarrier``)."""

    name: str


@dataclass(frozen=True, slots=True)
class AskCyclic(Query[BarrierInfo | None], fsm=CYCLICS):
    name: str


# ---- the rows that are watched ----


@dataclass(frozen=True, slots=True)
class CyclicRow:
    """``made_with``: its parties before it shrank. ``actor``: whose turn the action is, by the revision of its arrival; 0: nobody's."""

    parties: int
    made_with: int
    on_loss: OnLoss
    generation: int = 0
    arrived: int = 0
    is_broken: bool = False
    broken_by: Owner | None = None
    actor: int = 0
    act: int = 0
    round_size: int = 0  # of the round whose action runs


@dataclass(frozen=True, slots=True)
class DoubleRow:
    """``arrived`` wait to get in, ``inside`` are in, ``leaving`` of them wait to get out. It is broken for those who are in."""

    parties: int
    made_with: int
    on_loss: OnLoss
    generation: int = 0
    arrived: int = 0
    inside: int = 0
    leaving: int = 0
    is_broken: bool = False
    broken_by: Owner | None = None


@dataclass(frozen=True, slots=True)
class LatchRow:
    count: int
    left: int


OPEN_GATES: Final = TableName(GATES, "open", str, int)
LATCH_ROWS: Final = TableName(LATCHES, "latches", str, LatchRow)
DOUBLE_ROWS: Final = TableName(DOUBLES, "barriers", str, DoubleRow)
CYCLIC_ROWS: Final = TableName(CYCLICS, "barriers", str, CyclicRow)
