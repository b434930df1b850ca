"""Do the replicas hold the same state?  Compared at equal indexes, while they work (SAFETY 28).

Every replica takes a *checkpoint*, a digest of its whole state, at entries that all of them choose alike: where the
cluster's second changes, or where a thousand rows have changed since.  Members report their newest one with each answer to a
heartbeat; the leader looks for its own at the same index.  Equal: nothing to do.  Different: the ``Jury`` asks
everybody for the checkpoint at that very index, until more than half of the voters agree on one digest.

The verdict goes out with the heartbeats.  Who holds another digest than the majority, the leader itself included, halts
for good: its disk is no longer a copy of the cluster's state.  As long as voters disagree and no digest has
a majority, nobody can be believed, and all stop serving.

Pure: the driver carries reports in and verdicts out.  The digest is additive (``tables``), so a checkpoint costs the
rows that changed since the last one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from zlib import crc32

from tauraft.core.messages import Index, Member

MAX_CHECKPOINTS = 256  # a busy replica's last seconds; a follower further behind is compared once it has caught up
ROWS_BETWEEN = 1_000
SECOND_NS = 1_000_000_000


class Checkpoints:
    """The newest digests of one replica, by index; and when the next one is due."""

    def __init__(self) -> None:
        self._digests: OrderedDict[Index, bytes] = OrderedDict()
        self._second = 0
        self._rows = 0
        self._is_aligned = True
        self.answers = 0  # a check sum of those given since the last checkpoint

    def answered(self, data: bytes) -> None:
        self.answers = crc32(data, self.answers)

    def is_due(self, now_ns: int, rows: int) -> bool:
        """An entry was applied that changed ``rows`` rows. The same on every replica, whatever it did before."""
        self._rows += rows
        second = now_ns // SECOND_NS
        if second != self._second:
            self._second, self._rows = second, 0
            if not self._is_aligned:
                self._is_aligned, self.answers = True, 0
                return False
            return True
        if self._rows >= ROWS_BETWEEN:
            self._rows = 0
            return self._is_aligned
        return False

    def restart(self, now_ns: int) -> None:
        """The state came as a snapshot: how much changed before it is not known here. Count with the others from the next second on."""
        self._digests.clear()
        self._second, self._rows, self._is_aligned = now_ns // SECOND_NS, 0, False
        self.answers = 0

    def add(self, index: Index, digest: bytes) -> None:
        self._digests[index] = digest
        self.answers = 0
        if len(self._digests) > MAX_CHECKPOINTS:
            self._digests.popitem(last=False)

    def get(self, index: Index) -> bytes | None:
        return self._digests.get(index)

    def answer(self, asked: Index) -> tuple[Index, bytes]:
        """The one asked for, where it is at hand, else the newest; (0, b"") where there is none."""
        if asked in self._digests:
            return asked, self._digests[asked]
        return next(reversed(self._digests.items()), (0, b""))


@dataclass(frozen=True, slots=True)
class Verdict:
    """``digest``: what a majority of the voters holds at ``index``. Empty: they disagree, and there is no majority."""

    index: Index
    digest: bytes


class Jury:
    """The leader's: compares what members report with its own, and finds the majority."""

    def __init__(self, me: Member) -> None:
        self.verdict: Verdict | None = None
        self.asked: Index = 0
        self._me = me
        self._digests: dict[Member, bytes] = {}

    def heard(self, member: Member, index: Index, digest: bytes, own: Checkpoints, voters: Collection[Member]) -> None:
        if self.asked and own.get(self.asked) is None:
            self.asked = 0  # too long ago by now: begin anew with a younger one
        mine = own.get(index)
        if mine is None:
            return  # not applied yet, or too long ago: another one will do
        if not self.asked:
            if digest == mine:
                return
            self.asked, self._digests = index, {self._me: mine}
        if index == self.asked:
            self._digests[member] = digest
            self._judge(voters)

    def _judge(self, voters: Collection[Member]) -> None:
        said = Counter(digest for member, digest in self._digests.items() if member in voters)
        digest, count = said.most_common(1)[0]
        if count > len(voters) // 2:
            self.verdict, self.asked = Verdict(self.asked, digest), 0
        elif len(said) > 1:
            self.verdict = Verdict(self.asked, b"")
