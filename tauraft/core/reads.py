"""Who may serve a read: the ReadIndex protocol (thesis 6.4), for reads asked here and by followers.

A leader may answer a linearizable read at commit index C once a quorum has answered a heartbeat
sent *after* C was noted: only then is it sure that no newer leader had committed past C.  Heartbeats
carry the number of the newest round; an answer to round n also answers all before it.  Reads
that arrive while a round is in flight share the next one, so a thousand readers
cost one round of heartbeats.

In:  ``ask`` from whoever wants to read, ``acknowledged(member, round)`` from heartbeat replies.
Out: ``start_round`` says whether heartbeats are owed now; ``confirmed(round)`` gives the reads to answer.
Not here: lease reads, which the driver judges by its own clock (SAFETY 19).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tauraft.core.messages import Index, Member

_MAX_WAITING = 65_536


@dataclass(frozen=True, slots=True)
class AskedRead:
    """Who asked (None: this replica), and by which number of theirs."""

    asker: Member | None
    context: int


class PendingReads:
    """The rounds that a leader still has to confirm, oldest first."""

    __slots__ = ("_acknowledgements", "_rounds", "_waiting", "number")

    def __init__(self, me: Member) -> None:
        self.number = 0  # of the newest round; 0: none yet
        self._acknowledgements: dict[Member, int] = {me: 0}
        self._waiting: list[AskedRead] = []
        self._rounds: deque[tuple[int, Index, list[AskedRead]]] = deque()

    @property
    def is_round_in_flight(self) -> bool:
        return bool(self._rounds)

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def ask(self, read: AskedRead) -> None:
        """Beyond the limit it is dropped: whoever asked asks again."""
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.append(read)

    def start_round(self, me: Member, commit: Index) -> None:
        """All that wait are answered at ``commit`` once this round is confirmed."""
        self.number += 1
        self._acknowledgements[me] = self.number
        waiting, self._waiting = self._waiting, []
        self._rounds.append((self.number, commit, waiting))

    def acknowledged(self, member: Member, number: int) -> bool:
        """True if this is news."""
        if not 0 < number <= self.number or number <= self._acknowledgements.get(member, 0):
            return False
        self._acknowledgements[member] = number
        return True

    def forget(self, member: Member) -> None:
        """What it answered counts no more."""
        self._acknowledgements.pop(member, None)

    def acknowledged_by(self, member: Member) -> int:
        """The newest round it answered."""
        return self._acknowledgements.get(member, 0)

    def confirmed(self, number: int) -> list[tuple[AskedRead, Index]]:
        """A quorum has answered round ``number``."""
        answered: list[tuple[AskedRead, Index]] = []
        while self._rounds and self._rounds[0][0] <= number:
            _, index, reads = self._rounds.popleft()
            answered.extend((read, index) for read in reads)
        return answered
