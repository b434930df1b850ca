"""A leader: replicates its log, decides what is committed, confirms reads, hands leadership over.

Sending is gathered: proposals and acknowledgements only change what each member is owed, and
``flush``, called when a Ready is made, turns that into as few Appends as the windows allow.  So
any number of proposals between two Readies leave as one Append a member.

Rules that bind here: only entries of the own term are committed by counting (thesis 3.6.2); the
leader's own disk counts as one acknowledgement, once it has written (10.2.1); reads wait for
the first commit of the own term (6.4); one membership change at a time, judged by what is applied (4.1, 4.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tauraft.core.log import Compacted
from tauraft.core.membership import MembershipChange, encode_change
from tauraft.core.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Index,
    InstallSnapshot,
    Member,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    Role,
    Term,
    TimeoutNow,
)
from tauraft.core.progress import Progress, ProgressState
from tauraft.core.quorum import VoteResult, joint_committed_index, joint_vote_result
from tauraft.core.reads import AskedRead, PendingReads

if TYPE_CHECKING:
    from tauraft.core.raft import Raft


class Leader:
    __slots__ = (
        "_heartbeat_elapsed",
        "_is_dirty",
        "_match",
        "_raft",
        "_sequence",
        "_transfer_elapsed",
        "_uncommitted",
        "_uncommitted_bytes",
        "first_own_index",
        "has_offered_leadership",
        "is_leaving",
        "pending_config_index",
        "progress",
        "reads",
        "transferee",
    )
    role = Role.LEADER

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self.progress: dict[Member, Progress] = {}  # of the others, in member order: it decides the order of messages
        self._match: dict[Member, Index] = {}
        self._sequence = 0  # of the newest Append, whoever it went to
        self.reads = PendingReads(raft.me)
        self.transferee: Member | None = None
        # For the rest of the term: a TimeoutNow that is late may still set aside what the lease counts on.
        self.has_offered_leadership = False
        self.is_leaving = False  # no longer a member: leads until a voter has the whole log
        self._transfer_elapsed = 0
        self._heartbeat_elapsed = 0
        self._uncommitted: deque[tuple[Index, int]] = deque()
        self._uncommitted_bytes = 0
        self._is_dirty = False
        # Any entry of an earlier term may be a membership change: none is proposed before they are applied.
        self.pending_config_index: Index = raft.log.last_index
        self.adopt_membership()
        self.first_own_index: Index = raft.log.last_index + 1
        self._append(EntryKind.NOOP, (b"",))

    # What the driver asks.

    def propose(self, kind: EntryKind, data: Sequence[bytes]) -> Index | None:
        """The index of the first one; None when too much is uncommitted already."""
        size = sum(map(len, data))
        # One proposal of any size always fits an empty log tail; empty ones always fit.
        uncommitted = self._uncommitted_bytes
        if size and uncommitted and uncommitted + size > self._raft.config.max_uncommitted_bytes:
            return None
        return self._append(kind, data)

    def _append(self, kind: EntryKind, data: Sequence[bytes]) -> Index:
        log = self._raft.log
        first = log.last_index + 1
        term = self._raft.term
        entries = [Entry(index, term, kind, item) for index, item in enumerate(data, first)]
        log.append(entries)
        for entry in entries:
            size = len(entry.data)
            if size:
                self._uncommitted.append((entry.index, size))
                self._uncommitted_bytes += size
        if kind is EntryKind.CONFIG:
            self.pending_config_index = log.last_index
        self._is_dirty = True
        return first

    def ask_read(self, read: AskedRead) -> None:
        self.reads.ask(read)
        if self.has_own_commit and not self.reads.is_round_in_flight:
            self._start_round()

    @property
    def has_own_commit(self) -> bool:
        """Until an entry of this term commits, nobody here knows what the predecessors had committed."""
        return self._raft.log.commit >= self.first_own_index

    def start_transfer(self, to: Member) -> None:
        if to == self.transferee:
            return
        self.transferee = to
        self.has_offered_leadership = True
        self._transfer_elapsed = 0
        if self._match[to] == self._raft.log.last_index:
            self._send_timeout_now()
        else:
            self.progress[to].is_nudged = True
            self._is_dirty = True

    def report_unreachable(self, member: Member) -> None:
        progress = self.progress.get(member)
        # Appends sent optimistically are probably lost.
        if progress is not None and progress.state is ProgressState.REPLICATE:
            progress.become_probe()

    def report_snapshot(self, member: Member, ok: bool) -> None:
        progress = self.progress.get(member)
        if progress is None or progress.state is not ProgressState.SNAPSHOT:
            return
        if not ok:
            progress.pending_snapshot = 0
        progress.become_probe()
        # Arrived: its own reply says more. Failed: not again before the next heartbeat's reply.
        progress.is_paused = True

    def forget_progress(self, member: Member) -> None:
        progress = self.progress.get(member)
        if progress is not None:
            progress.start_over(self._raft.log.last_index)
            progress.settled = self._sequence
            self._match[member] = 0
            self._is_dirty = True

    def adopt_membership(self) -> None:
        """The membership changed: follow those who are in it, forget the others."""
        raft = self._raft
        kept, self.progress = self.progress, {}
        self._match = {raft.me: raft.log.stable}
        for member in sorted(raft.membership.all_members()):
            if member == raft.me:
                continue
            progress = kept.get(member)
            if progress is None:
                progress = Progress(
                    member,
                    raft.log.last_index + 1,
                    raft.config.max_inflight,
                    raft.config.max_inflight_bytes,
                )
                progress.is_nudged = bool(kept)
            self.progress[member] = progress
            self._match[member] = 0 if progress.is_distrusted else progress.match
        self._is_dirty = True
        if self.transferee is not None and self.transferee not in raft.membership.voters:
            self.transferee = None

    def membership_applied(self) -> None:
        """Quorums may have become smaller."""
        if not self._advance_commit():
            self._confirm_reads()

    def leave_joint_when_due(self) -> None:
        raft = self._raft
        if raft.membership.auto_leave and raft.membership.is_joint and raft.log.applied >= self.pending_config_index:
            self._append(EntryKind.CONFIG, (encode_change(MembershipChange(steps=())),))

    def leave_office(self) -> None:
        """This member votes no more: step down as soon as a voter has the whole log, and offer it the leadership.

        Not earlier: a voter that has not heard that the change is committed still asks for this member's vote, and
        would be refused for ever if this log were longer than its own.
        """
        self.is_leaving = True
        raft = self._raft
        for member in sorted(raft.membership.voters):
            if self._match.get(member) == raft.log.last_index:
                self.flush()
                raft.send_now(TimeoutNow(raft.me, member, raft.term, raft.cluster_id))
                raft.become_follower(raft.term, None)
                return

    # Time.

    def tick(self, ticks: int) -> None:
        raft = self._raft
        raft.election_elapsed += ticks
        if raft.election_elapsed >= raft.config.election_ticks:
            raft.election_elapsed = 0
            self._offer_snapshots_again()
            if raft.config.check_quorum and not self._has_active_quorum():
                raft.become_follower(raft.term, None)
                return
        if self.transferee is not None:
            self._transfer_elapsed += ticks
            if self._transfer_elapsed >= raft.config.election_ticks:
                # It may be dead or slow: proposals must not wait for it any longer.
                self.transferee = None
        self._heartbeat_elapsed += ticks
        if self._heartbeat_elapsed >= raft.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            if self.reads.has_waiting and self.has_own_commit:
                self._start_round()
            else:
                self._send_heartbeats()

    def _has_active_quorum(self) -> bool:
        active = {member: progress.is_recently_active for member, progress in self.progress.items()}
        active[self._raft.me] = True
        for progress in self.progress.values():
            progress.is_recently_active = False
        return joint_vote_result(self._raft.membership, active) is VoteResult.WON

    # Messages.

    def step(self, message: Message) -> None:
        progress = self.progress.get(message.sender)
        if progress is None or progress.is_distrusted:
            return
        match message:
            case AppendReply():
                progress.is_recently_active = True
                if message.ok:
                    self._accepted(progress, message.match)
                else:
                    self._rejected(progress, message)
            case HeartbeatReply():
                progress.is_recently_active = True
                self._heartbeat_answered(progress, message.read_context)
            case ReadIndexRequest():
                self.ask_read(AskedRead(message.sender, message.context))
            case _:
                pass

    def _accepted(self, progress: Progress, match: Index) -> None:
        log = self._raft.log
        if match > log.last_index:
            return
        is_news = progress.acknowledged(match)
        if is_news:
            self._match[progress.member] = match
            progress.settled = self._sequence
        state = progress.state
        if state is ProgressState.REPLICATE:
            if not is_news:
                return
            progress.free_up_to(match)
        elif state is ProgressState.PROBE:
            if match != progress.match:
                return
            progress.become_replicate()
        elif is_news and progress.match + 1 >= log.first_index:
            # It caught up from elsewhere, or the snapshot is in: the log has all that it still needs.
            progress.become_replicate()
        elif progress.match >= progress.pending_snapshot:
            # The snapshot is in, but the log was compacted beyond it meanwhile: a newer one is needed.
            progress.become_probe()
        self._is_dirty = True
        self._advance_commit()
        if progress.member == self.transferee and progress.match == log.last_index:
            self._send_timeout_now()
        if self.is_leaving:
            self.leave_office()

    def _rejected(self, progress: Progress, message: AppendReply) -> None:
        if message.match <= progress.match and message.sequence > progress.settled:
            self._distrust(progress)
            return
        hint = message.hint_index
        if message.hint_term:
            # Of our entries up to the hint, those of a later term than the follower has there cannot match.
            hint, _ = self._raft.log.last_match_below(min(hint, self._raft.log.last_index), message.hint_term)
        if progress.rejected(message.match, hint):
            progress.is_nudged = True
            self._is_dirty = True

    def _distrust(self, progress: Progress) -> None:
        """It refused what it had acknowledged, and the Append is no old one: its disk is a restored copy, or another's."""
        progress.is_distrusted = True
        progress.is_recently_active = False
        progress.is_paused = True
        self._match[progress.member] = 0
        self.reads.forget(progress.member)
        if self.transferee == progress.member:
            self.transferee = None

    def _heartbeat_answered(self, progress: Progress, read_context: int) -> None:
        # Whatever was paused may go on with one message: if all that filled the window was lost, its answer shows it.
        progress.is_paused = False
        if progress.match < self._raft.log.last_index or progress.state is ProgressState.PROBE:
            progress.is_nudged = True
            self._is_dirty = True
        if read_context and self.reads.acknowledged(progress.member, read_context):
            self._confirm_reads()

    # Committing.

    def own_disk_wrote(self) -> None:
        stable = self._raft.log.stable
        if stable > self._match[self._raft.me]:
            self._match[self._raft.me] = stable
            self._advance_commit()

    def _advance_commit(self) -> bool:
        raft = self._raft
        log = raft.log
        index = joint_committed_index(raft.membership, self._match.__getitem__)
        # Figure 8: an entry of an earlier term is committed only by one of this term after it.
        if index <= log.commit or index < self.first_own_index:
            return False
        was_first = not self.has_own_commit
        log.commit_to(index)
        uncommitted = self._uncommitted
        while uncommitted and uncommitted[0][0] <= index:
            self._uncommitted_bytes -= uncommitted.popleft()[1]
        self._is_dirty = True
        if was_first and self.reads.has_waiting:
            self._start_round()
        return True

    # Reading.

    def _start_round(self) -> None:
        self.reads.start_round(self._raft.me, self._raft.log.commit)
        self._send_heartbeats()
        self._confirm_reads()

    def _confirm_reads(self) -> None:
        raft = self._raft
        while True:
            number = joint_committed_index(raft.membership, self.reads.acknowledged_by)
            for read, index in self.reads.confirmed(number):
                if read.asker is None:
                    raft.answer_read(read.context, index)
                else:
                    raft.send_now(ReadIndexReply(raft.me, read.asker, raft.term, raft.cluster_id, read.context, index))
                    asker = self.progress.get(read.asker)
                    if asker is not None and self._is_owed_commit(asker):
                        asker.is_nudged = self._is_dirty = True  # it answers once it has applied so far
            if self.reads.is_round_in_flight or not self.reads.has_waiting or not self.has_own_commit:
                return
            self.reads.start_round(raft.me, raft.log.commit)
            self._send_heartbeats()

    # Sending.

    def _send_heartbeats(self) -> None:
        raft = self._raft
        commit = raft.log.commit
        for member, progress in self.progress.items():
            raft.send_now(
                Heartbeat(
                    raft.me,
                    member,
                    raft.term,
                    raft.cluster_id,
                    # Never beyond what it acknowledged: the rest of its log may be another leader's.
                    min(progress.match, commit),
                    self.reads.number,
                    raft.heartbeat_payload,
                )
            )

    def _send_timeout_now(self) -> None:
        raft = self._raft
        if self.transferee is not None:
            raft.send_now(TimeoutNow(raft.me, self.transferee, raft.term, raft.cluster_id))

    def flush(self) -> None:
        """Send each member what it is owed, as far as its window allows."""
        if not self._is_dirty:
            return
        self._is_dirty = False
        log = self._raft.log
        for progress in self.progress.values():
            while progress.next_index <= log.last_index and self._send_append(progress):
                pass
            if progress.is_nudged or (self._is_owed_commit(progress) and self._raft.hurries(progress.member)):
                progress.is_nudged = False
                self._send_append(progress, may_be_empty=True)

    def _is_owed_commit(self, progress: Progress) -> bool:
        """It could be told, and was not: one that is paused hears of it with whatever it is sent next."""
        return (
            progress.sent_commit < min(self._raft.log.commit, progress.next_index - 1)
            and not progress.is_paused
            and progress.state is not ProgressState.SNAPSHOT
        )

    @property
    def owes_commit(self) -> bool:
        return any(map(self._is_owed_commit, self.progress.values()))

    def tell_commit(self) -> None:
        for progress in self.progress.values():
            if self._is_owed_commit(progress):
                progress.is_nudged = self._is_dirty = True

    def _send_append(self, progress: Progress, may_be_empty: bool = False) -> bool:
        if progress.is_paused or progress.is_distrusted or progress.state is ProgressState.SNAPSHOT:
            return False
        raft = self._raft
        log = raft.log
        prev_index = progress.next_index - 1
        entries: tuple[Entry, ...] = ()
        try:
            prev_term: Term = log.term(prev_index)
            if prev_index < log.last_index and not (
                progress.state is ProgressState.REPLICATE and progress.is_window_full
            ):
                entries = tuple(log.entries(prev_index + 1, log.last_index + 1, raft.config.max_append_bytes))
        except Compacted:
            return self._send_snapshot(progress)
        if not entries and not may_be_empty:
            return False
        self._sequence += 1
        raft.send_now(
            Append(
                raft.me,
                progress.member,
                raft.term,
                raft.cluster_id,
                prev_index,
                prev_term,
                entries,
                log.commit,
                self._sequence,
            )
        )
        if len(entries) == 1:
            size = len(entries[0].data)
        else:
            size = sum(len(entry.data) for entry in entries)
        progress.sent(len(entries), size, log.commit)
        if entries:
            progress.is_nudged = False
        elif progress.is_window_full:
            progress.is_paused = True
        return True

    def _send_snapshot(self, progress: Progress) -> bool:
        raft = self._raft
        if not progress.is_recently_active:
            return False  # nobody there to take it
        meta = raft.log.snapshot_meta()
        if meta.index + 1 < raft.log.first_index or meta.index <= progress.match:
            return False  # the driver has no snapshot that reaches the log yet
        progress.become_snapshot(meta.index)
        progress.offered = meta
        progress.is_nudged = False
        raft.send_now(InstallSnapshot(raft.me, progress.member, raft.term, raft.cluster_id, meta))
        return False

    def _offer_snapshots_again(self) -> None:
        """The offer, or the answer to it, may have been lost. The same one: a newer would restart a long transfer."""
        raft = self._raft
        for member, progress in self.progress.items():
            if progress.offered is not None and progress.is_recently_active:
                raft.send_now(InstallSnapshot(raft.me, member, raft.term, raft.cluster_id, progress.offered))
