"""What a leader knows of one member's log, and how much it may have under way to it.

    PROBE      where the logs agree is a guess: one Append at a time, until one is accepted
    REPLICATE  they agree: Appends are pipelined, within a window of messages and bytes
    SNAPSHOT   the member needs entries that are gone: nothing is sent until the snapshot has arrived

``match`` is what the member acknowledged in this term, ``next_index`` what it is sent next.
``match < next_index`` always.  A lost message shows as a rejection, as ``unreachable``, or
as a heartbeat reply while paused; each leads back to PROBE or lets one more message through.

A member that refuses what it had acknowledged, in an Append sent after that was known, has not the disk it had: it is
*distrusted*, sent nothing but heartbeats and counted for nothing while this leadership lasts (SAFETY 14).
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from tauraft.core.messages import Index, Member, SnapshotMeta


class ProgressState(IntEnum):
    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Progress:
    __slots__ = (
        "_inflight",
        "_inflight_bytes",
        "_max_inflight",
        "_max_inflight_bytes",
        "is_distrusted",
        "is_nudged",
        "is_paused",
        "is_recently_active",
        "match",
        "member",
        "next_index",
        "offered",
        "pending_snapshot",
        "sent_commit",
        "settled",
        "state",
    )

    def __init__(self, member: Member, next_index: Index, max_inflight: int, max_inflight_bytes: int) -> None:
        self.member = member
        self.state = ProgressState.PROBE
        self.match: Index = 0
        self.next_index = next_index
        self.is_paused = False
        self.is_recently_active = True
        self.is_nudged = False  # owed an Append even if it is empty: its answer tells where the member stands
        self.pending_snapshot: Index = 0
        self.offered: SnapshotMeta | None = None  # in SNAPSHOT: which one
        self.sent_commit: Index = 0
        self.settled = 0  # the newest Append that had been sent when ``match`` was last acknowledged
        self.is_distrusted = False
        self._max_inflight = max_inflight
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight: deque[tuple[Index, int]] = deque()
        self._inflight_bytes = 0

    @property
    def inflight(self) -> int:
        return len(self._inflight)

    @property
    def is_window_full(self) -> bool:
        return len(self._inflight) >= self._max_inflight or self._inflight_bytes >= self._max_inflight_bytes

    def become_probe(self) -> None:
        next_index = self.match + 1
        if self.state is ProgressState.SNAPSHOT:
            next_index = max(next_index, self.pending_snapshot + 1)
        self._reset(ProgressState.PROBE, next_index)

    def start_over(self, last_index: Index) -> None:
        """What it acknowledged no longer holds: probe from the end of the log down, as with a member never heard of."""
        self.match = 0
        self.is_distrusted = False
        self._reset(ProgressState.PROBE, last_index + 1)
        self.is_nudged = True

    def become_replicate(self) -> None:
        self._reset(ProgressState.REPLICATE, self.match + 1)

    def become_snapshot(self, index: Index) -> None:
        self._reset(ProgressState.SNAPSHOT, index + 1)
        self.pending_snapshot = index
        self.sent_commit = index

    def _reset(self, state: ProgressState, next_index: Index) -> None:
        self.state = state
        self.next_index = next_index
        self.is_paused = False
        self.pending_snapshot = 0
        self.offered = None
        self.sent_commit = min(self.sent_commit, next_index - 1)
        self._inflight.clear()
        self._inflight_bytes = 0

    def sent(self, count: int, size_bytes: int, commit: Index) -> None:
        """An Append left with ``count`` entries."""
        self.sent_commit = commit
        if not count:
            return
        if self.state is ProgressState.REPLICATE:
            self.next_index += count
            self._inflight.append((self.next_index - 1, size_bytes))
            self._inflight_bytes += size_bytes
            self.is_paused = self.is_window_full
        else:
            self.is_paused = True

    def acknowledged(self, index: Index) -> bool:
        """True if this is news."""
        if index <= self.match:
            return False
        self.match = index
        if self.next_index <= index:
            self.next_index = index + 1
        self.is_paused = False
        return True

    def free_up_to(self, index: Index) -> None:
        inflight = self._inflight
        while inflight and inflight[0][0] <= index:
            self._inflight_bytes -= inflight.popleft()[1]
        self.is_paused = self.is_window_full

    def rejected(self, index: Index, hint: Index) -> bool:
        """The Append anchored at ``index`` did not fit. False if that is old news."""
        if self.state is ProgressState.REPLICATE:
            if index <= self.match:
                return False
            self.become_probe()
            return True
        if self.state is ProgressState.SNAPSHOT or index != self.next_index - 1:
            return False
        self.next_index = max(min(index, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next_index - 1)
        self.is_paused = False
        return True
