"""What the partitioner's handles send. Names: UTF-8, 1 to 512 bytes.

A *worker* is a number that the cluster gives to who joins. ``attempt`` is the handle's own number of one try, so that what it
was given can be given back before it is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tauraft.fsm import Command, Query, TableName
from tauraft.types import Owner, PartitionsInfo
from tauraft_primitives.checks import check_count, check_name

PARTITIONS: Final = "tauraft.partitions"
MAX_PARTITIONS: Final = 4_096
NOBODY: Final = Owner(0, "", "", 0)


@dataclass(frozen=True, slots=True)
class JoinWorkers(Command[int], fsm=PARTITIONS):
    """Answered with the worker's number. Refuses with ``Mismatch`` where there are so many partitions, but others."""

    name: str
    partitions: int
    who: Owner = NOBODY
    attempt: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        check_count(self.partitions, "partitions", MAX_PARTITIONS)


@dataclass(frozen=True, slots=True)
class LeaveWorkers(Command[None], fsm=PARTITIONS):
    """All it has goes to the others. Of a worker that is not there: nothing."""

    name: str
    worker: int


@dataclass(frozen=True, slots=True)
class GiveBackWorker(Command[None], fsm=PARTITIONS):
    """Leaves where that attempt of the session joined, if it did."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class TakenPartition:
    partition: int
    token: int


@dataclass(frozen=True, slots=True)
class TakePartition(Command[TakenPartition], fsm=PARTITIONS):
    """Waits until a partition is the worker's that it does not have. ``patience`` 0: refused (``WouldWait``) instead."""

    name: str
    worker: int
    patience: float | None = None
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class ReleasePartition(Command[None], fsm=PARTITIONS):
    """It goes to whom it is assigned, maybe to the same worker again. Refuses with ``NotHolder``."""

    name: str
    partition: int
    token: int


@dataclass(frozen=True, slots=True)
class GiveBackPartition(Command[None], fsm=PARTITIONS):
    """Releases what that attempt of the session took, if anything."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class AwaitCall(Command[None], fsm=PARTITIONS):
    """Waits until that hold is wanted for another worker, or has ended."""

    name: str
    partition: int
    token: int


@dataclass(frozen=True, slots=True)
class HoldsPartition(Query[bool], fsm=PARTITIONS):
    name: str
    partition: int
    token: int


@dataclass(frozen=True, slots=True)
class AskPartitions(Query[PartitionsInfo | None], fsm=PARTITIONS):
    name: str


# ---- the rows that are watched ----


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """``target``: the worker it is assigned to. ``holder``: the one that has it, 0: nobody. ``token``: of that hold."""

    target: int
    holder: int = 0
    token: int = 0
    session: int = 0
    sequence: int = 0
    attempt: int = 0


ASSIGNED: Final = TableName(PARTITIONS, "assigned", tuple[str, int], PartitionRow)
