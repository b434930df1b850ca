"""One replica's Raft: what happened goes in, what must be done comes out as a ``Ready``.

In:  ``tick`` (time, in ticks), ``step`` (a message), ``propose``, ``change_membership``, ``read_index``,
     ``transfer`` and the driver's reports (``persisted``, ``applied``, ``report_unreachable``, ``report_snapshot``).
Out: ``ready()``, and nothing else: no I/O, no clock, no logging.  Randomness is the ``Random`` it was given, so
     the same calls always give the same Readies.

Here live what all roles share: term and vote, who leads, the log, whose messages count, and the
making of a Ready.  What a role does with a tick or a message is in ``roles/``.

What must be on disk before others hear of it (thesis 3.8): votes, also those for oneself; term;
accepted entries.  Requests for votes wait as well: they name the end of a log that is still being
written, and a grant must not outlive it.  A leader's Appends do not wait (10.2.1).
A commit index that moves alone makes no write: it goes to disk with the next entries, or the next vote
(SAFETY 25), and a restarted replica learns it again from its leader.

Calls come from one thread, the replica's driver.  No message makes a method raise, except
``CommittedEntryConflict`` and ``AcknowledgedEntriesLost``, which mean that a promise was already broken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from tauraft.core.log import HardStateLost, LogView, RaftLog
from tauraft.core.membership import InvalidChange, MembershipChange, apply_change, encode_change
from tauraft.core.messages import (
    Append,
    AppendReply,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Index,
    InstallSnapshot,
    Member,
    Membership,
    Message,
    ReadIndexRequest,
    ReadState,
    Ready,
    Role,
    RoleChange,
    SnapshotMeta,
    Term,
    VoteReply,
    VoteRequest,
)
from tauraft.core.progress import ProgressState
from tauraft.core.reads import AskedRead
from tauraft.core.roles.candidate import Candidate
from tauraft.core.roles.follower import Follower
from tauraft.core.roles.leader import Leader

_ANSWERS = (AppendReply, HeartbeatReply, VoteReply, ReadIndexRequest)
_FROM_LEADER = (Append, Heartbeat, InstallSnapshot)
_MAX_FORWARDED_READS = 4096


class ProposalDropped(Exception):
    """The proposal was not appended, and has no effect. Try again later, or at the leader."""

    def __init__(self, reason: Literal["not-leader", "transferring", "overloaded"]) -> None:
        super().__init__(f"the proposal was dropped: {reason}")
        self.reason = reason


class MembershipChangeRefused(Exception):
    """The change was not proposed. ``reason``: not-leader, transferring, pending, joint, not-joint or invalid."""

    def __init__(
        self,
        reason: Literal["not-leader", "transferring", "pending", "joint", "not-joint", "invalid"],
        detail: str,
    ) -> None:
        super().__init__(f"the membership change was refused ({reason}): {detail}")
        self.reason = reason


class TransferRefused(Exception):
    """Leadership was not offered. ``reason``: not-leader or not-a-voter."""

    def __init__(self, reason: Literal["not-leader", "not-a-voter"]) -> None:
        super().__init__(f"the transfer of leadership was refused: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """How one replica runs. Ticks are the driver's; bytes count the entries' data."""

    me: Member
    cluster_id: bytes
    election_ticks: int = 10  # time-outs are drawn from [election_ticks, 2 * election_ticks)
    heartbeat_ticks: int = 1
    pre_vote: bool = True
    check_quorum: bool = True
    max_append_bytes: int = 256 << 10
    max_inflight: int = 256  # Appends under way to one member
    max_inflight_bytes: int = 16 << 20
    max_uncommitted_bytes: int = 64 << 20
    max_committed_bytes_per_ready: int = 16 << 10
    lease_reads: bool = False
    step_down_on_removal: bool = True

    def __post_init__(self) -> None:
        if self.heartbeat_ticks < 1 or self.election_ticks <= self.heartbeat_ticks:
            raise ValueError("election_ticks must be more than heartbeat_ticks, which must be at least 1")
        if self.lease_reads and not self.check_quorum:
            raise ValueError("lease_reads need check_quorum: voters must refuse others while their leader is alive")
        if self.max_inflight < 1 or self.max_inflight_bytes < 1:
            raise ValueError("at least one Append must be allowed under way")


@dataclass(frozen=True, slots=True)
class MemberProgress:
    """What the leader knows of one member."""

    state: ProgressState
    match: Index
    next_index: Index
    is_paused: bool
    is_recently_active: bool
    pending_snapshot: Index
    inflight: int
    is_distrusted: bool


@dataclass(frozen=True, slots=True)
class Status:
    """A picture for people and for the node's decisions; costs more than the properties of ``Raft``."""

    me: Member
    role: Role
    term: Term
    vote: Member | None
    leader: Member | None
    commit: Index
    applied: Index
    stable: Index
    first_index: Index
    last_index: Index
    membership: Membership
    transferee: Member | None
    progress: Mapping[Member, MemberProgress]


class Raft:
    """See the module's theory.

    ``hard_state`` and ``log`` are what the disk holds; ``membership`` and ``applied`` what the state machine does.
    The committed entries after ``applied`` are handed out again.  Raises ``HardStateLost``.
    """

    def __init__(
        self,
        config: RaftConfig,
        hard_state: HardState,
        membership: Membership,
        log: LogView,
        random: Random,
        applied: Index = 0,
    ) -> None:
        self.config = config
        self.me = config.me
        self.cluster_id = config.cluster_id
        self.term: Term = hard_state.term
        self.vote: Member | None = hard_state.vote
        self.leader: Member | None = None
        self.membership = membership
        self._all_members = membership.all_members()
        self.log = RaftLog(log, hard_state.commit, applied)
        # A term is on the disk before its entries. Were it not, this member could vote in it for a second time.
        if self.log.last_term > hard_state.term:
            raise HardStateLost(self.log.last_term, hard_state.term)
        self.election_elapsed = 0
        self.heartbeat_payload = b""
        self.reply_payload = b""
        self.may_vote = True
        self.may_lead = True  # False: it could not apply what it would commit; it votes and persists all the same
        self.hurried: frozenset[str] | None = None
        self._random = random
        self._election_timeout = 0
        # Leases count on voters keeping quiet after they heard a leader; one that restarted does not know when it did.
        self._vote_pause_ticks = 2 * config.election_ticks if config.lease_reads and hard_state.term else 0
        self._state: Follower | Candidate | Leader = Follower(self)
        self._messages_now: list[Message] = []
        self._messages_after_persist: list[Message] = []
        self._reads: list[ReadState] = []
        self._forwarded_reads: dict[int, int] = {}
        # Numbers of another life must not meet: a late answer to an earlier process would be a stale read.
        self._next_forwarded = random.getrandbits(62)
        self._owed_campaign: Term | None = None  # leadership was offered in this term before a change was applied
        self._ready_number = 0
        self._persisted = 0
        self._term_ready = 0  # the Ready that takes the term to disk
        self._given_hard_state = hard_state
        self._given_role = RoleChange(Role.FOLLOWER, self.term, None)
        self._draw_election_timeout()

    # Looking.

    @property
    def role(self) -> Role:
        return self._state.role

    @property
    def is_leader(self) -> bool:
        return self._state.role is Role.LEADER

    @property
    def commit(self) -> Index:
        return self.log.commit

    @property
    def is_promotable(self) -> bool:
        """May this member lead? A learner, a removed one, or one with half a snapshot may not."""
        return (
            self.may_vote
            and self.may_lead
            and (self.me in self.membership.voters or self.me in self.membership.outgoing)
            and self.log.pending_snapshot is None
        )

    def commit_pending_index(self) -> Index:
        """The end of the log: what may still be committed, or is and waits to be applied."""
        return self.log.last_index

    @property
    def has_pending_change(self) -> bool:
        """Leading, and a change of the membership is not applied yet: no other is taken."""
        state = self._state
        return isinstance(state, Leader) and state.pending_config_index > self.log.applied

    def lease_index(self) -> Index | None:
        """The index a lease read is served at, as far as Raft is concerned; None: ask ``read_index``.

        Whether the lease has run out only the driver's clock can tell (SAFETY 19).
        """
        state = self._state
        if (
            not self.config.lease_reads
            or not isinstance(state, Leader)
            or state.has_offered_leadership
            or state.pending_config_index > self.log.applied
            or self.membership.is_joint
            or not state.has_own_commit
        ):
            return None
        return self.log.commit

    def status(self) -> Status:
        state = self._state
        progress: dict[Member, MemberProgress] = {}
        if isinstance(state, Leader):
            progress = {
                member: MemberProgress(
                    one.state,
                    one.match,
                    one.next_index,
                    one.is_paused,
                    one.is_recently_active,
                    one.pending_snapshot,
                    one.inflight,
                    one.is_distrusted,
                )
                for member, one in state.progress.items()
            }
        return Status(
            me=self.me,
            role=state.role,
            term=self.term,
            vote=self.vote,
            leader=self.leader,
            commit=self.log.commit,
            applied=self.log.applied,
            stable=self.log.stable,
            first_index=self.log.first_index,
            last_index=self.log.last_index,
            membership=self.membership,
            transferee=state.transferee if isinstance(state, Leader) else None,
            progress=progress,
        )

    # What the driver asks.

    def tick(self, ticks: int = 1) -> None:
        """So many ticks have passed: a driver that had nothing to do may have slept over some."""
        self._vote_pause_ticks = max(0, self._vote_pause_ticks - ticks)
        self._state.tick(ticks)

    def propose(self, data: bytes | Sequence[bytes], kind: EntryKind = EntryKind.BATCH) -> tuple[Index, Term]:
        """Append one entry, or several: the index of the first, and the term they were appended in.

        It may yet be overwritten: it is decided when an entry of this index *and term* is handed out as committed.
        Raises ``ProposalDropped``.
        """
        state = self._state
        if not isinstance(state, Leader) or not self._is_voter():
            raise ProposalDropped("not-leader")
        if state.transferee is not None:
            raise ProposalDropped("transferring")
        first = state.propose(kind, (data,) if isinstance(data, bytes) else data)
        if first is None:
            raise ProposalDropped("overloaded")
        return first, self.term

    def change_membership(self, change: MembershipChange) -> Index:
        """Propose a change; it takes effect when its entry is applied. Raises ``MembershipChangeRefused``."""
        state = self._state
        if not isinstance(state, Leader) or not self._is_voter():
            raise MembershipChangeRefused("not-leader", "only a leader that votes changes the membership")
        if state.transferee is not None:
            raise MembershipChangeRefused("transferring", "leadership is being handed over")
        if state.pending_config_index > self.log.applied:
            raise MembershipChangeRefused(
                "pending",
                f"entry {state.pending_config_index} may change it and is not applied yet ({self.log.applied} is)",
            )
        if not change.steps and not self.membership.is_joint:
            raise MembershipChangeRefused("not-joint", "there is no joint membership to leave")
        if change.steps and self.membership.is_joint:
            raise MembershipChangeRefused("joint", "the joint membership must be left first")
        try:
            apply_change(self.membership, change)
        except InvalidChange as error:
            raise MembershipChangeRefused("invalid", str(error)) from error
        index = state.propose(EntryKind.CONFIG, (encode_change(change),))
        if index is None:
            raise MembershipChangeRefused("pending", "too many bytes are uncommitted")
        return index

    def apply_membership(self, change: MembershipChange) -> Membership:
        """The driver applies a CONFIG entry. One that cannot be applied changes nothing, on every replica alike."""
        try:
            self._adopt(apply_change(self.membership, change))
        except InvalidChange:
            # Every replica holds the same membership at this entry, so all of them refuse.
            return self.membership
        return self.membership

    def read_index(self, context: int) -> None:
        """Ask for an index to read at: it comes in ``Ready.reads`` with ``context``, or is lost with the leader."""
        state = self._state
        if isinstance(state, Leader):
            state.ask_read(AskedRead(None, context))
        elif self.leader is not None:
            if len(self._forwarded_reads) >= _MAX_FORWARDED_READS:
                # The oldest was lost on the way: its asker has long asked again.
                del self._forwarded_reads[next(iter(self._forwarded_reads))]
            self._next_forwarded += 1
            self._forwarded_reads[self._next_forwarded] = context
            self.send_now(ReadIndexRequest(self.me, self.leader, self.term, self.cluster_id, self._next_forwarded))

    def transfer(self, to: Member) -> None:
        """Hand leadership over once ``to`` has the whole log; given up after one election time-out.

        Raises ``TransferRefused``.
        """
        state = self._state
        if not isinstance(state, Leader):
            raise TransferRefused("not-leader")
        if to not in self.membership.voters:
            raise TransferRefused("not-a-voter")
        if to != self.me:
            state.start_transfer(to)

    def campaign(self) -> None:
        """Try to become leader now. Nothing happens where this member may not."""
        self.start_campaign(is_transfer=False)

    def leader_connection_lost(self) -> None:
        """The leader's stream closed: it is probably dead. Forbidden to matter where leases count on waiting."""
        if self.config.lease_reads or self.leader is None or self.is_leader:
            return
        self.forget_leader()
        if self.config.pre_vote:
            self.start_campaign(is_transfer=False)

    def never_lead(self) -> None:
        """This replica lacks what it takes to apply the log. If it leads, it steps down; it goes on following and voting."""
        self.may_lead = False
        if not isinstance(self._state, Follower):
            self.become_follower(self.term, None)

    def forget_leader(self) -> None:
        """Stop refusing others for the leader's sake, in the same term."""
        if isinstance(self._state, Follower) and not self.config.lease_reads:
            self._follow(None)

    def report_unreachable(self, member: Member) -> None:
        if isinstance(self._state, Leader):
            self._state.report_unreachable(member)

    def report_snapshot(self, member: Member, ok: bool) -> None:
        """The transfer of a snapshot to ``member`` ended."""
        if isinstance(self._state, Leader):
            self._state.report_snapshot(member, ok)

    def hurry(self, peer_ids: frozenset[str] | None) -> None:
        """Who is told at once that the commit index moved, with a message of its own: those with callers waiting for it.

        The others hear of it with their next entries, a heartbeat, or ``tell_commit``. None: everyone is hurried.
        """
        self.hurried = peer_ids

    def hurries(self, member: Member) -> bool:
        return self.hurried is None or member.peer_id in self.hurried

    @property
    def owes_commit(self) -> bool:
        """Leading, and somebody has not been told of the commit index."""
        return isinstance(self._state, Leader) and self._state.owes_commit

    def tell_commit(self) -> None:
        """Tell them now."""
        if isinstance(self._state, Leader):
            self._state.tell_commit()

    def acknowledged(self) -> Mapping[Member, Index]:
        """Leading: how far each other member said that its disk has this log, in this term."""
        state = self._state
        return {m: progress.match for m, progress in state.progress.items()} if isinstance(state, Leader) else {}

    def forget_progress(self, member: Member) -> None:
        """``member`` has lost some of what it acknowledged: it counts for nothing until it has said anew where it stands."""
        if isinstance(self._state, Leader):
            self._state.forget_progress(member)

    def set_heartbeat_payload(self, payload: bytes) -> None:
        self.heartbeat_payload = payload

    def set_reply_payload(self, payload: bytes) -> None:
        self.reply_payload = payload

    # Ready.

    def has_ready(self) -> bool:
        state = self._state
        if isinstance(state, Leader):
            state.flush()
        return bool(
            self._messages_now
            or self._messages_after_persist
            or self._reads
            or self.log.has_unwritten()
            or self.log.has_committed()
            or self._is_vote_unsaved()
            or self._is_role_untold()
        )

    def ready(self) -> Ready:
        """All that is to be done now; what it holds is not given again."""
        state = self._state
        if isinstance(state, Leader):
            state.flush()
        self._ready_number += 1
        number = self._ready_number
        entries, snapshot = self.log.next_write(number)
        hard_state = None
        given = self._given_hard_state
        if (
            self.term != given.term
            or self.vote != given.vote
            or ((entries or snapshot is not None) and self.log.commit != given.commit)
        ):
            if self.term != given.term:
                self._term_ready = number
            hard_state = self._given_hard_state = HardState(self.term, self.vote, self.log.commit)
        if isinstance(state, Candidate) and not state.own_vote_ready:
            state.own_vote_ready = number
        role_change = None
        if self._is_role_untold():
            role_change = self._given_role = RoleChange(state.role, self.term, self.leader)
        messages_now, self._messages_now = tuple(self._messages_now), []
        messages_later: tuple[Message, ...] = ()
        if self._messages_after_persist:
            messages_later, self._messages_after_persist = tuple(self._messages_after_persist), []
        reads: tuple[ReadState, ...] = ()
        if self._reads:
            reads, self._reads = tuple(self._reads), []
        return Ready(
            number,
            hard_state,
            entries,
            snapshot,
            bool(entries) or hard_state is not None or snapshot is not None,
            messages_now,
            messages_later,
            self.log.next_committed(self.config.max_committed_bytes_per_ready),
            reads,
            role_change,
        )

    def persisted(self, number: int) -> None:
        """The Readies up to ``number`` are on disk."""
        self._persisted = number
        self.log.persisted(number)
        state = self._state
        if isinstance(state, Leader):
            state.own_disk_wrote()
        elif isinstance(state, Candidate) and 0 < state.own_vote_ready <= number and self.me not in state.votes:
            state.count(self.me, True)

    def applied(self, index: Index) -> None:
        """The state machine has applied up to ``index``."""
        if index > self.log.applied:
            self.log.applied = index
            if isinstance(self._state, Leader):
                self._state.leave_joint_when_due()
            elif self._owed_campaign is not None and not self.log.has_unapplied_config():
                is_still_wanted = self._owed_campaign == self.term
                self._owed_campaign = None
                if is_still_wanted:
                    self.start_campaign(is_transfer=True)

    @property
    def is_term_saved(self) -> bool:
        return self.term == self._given_hard_state.term and self._term_ready <= self._persisted

    def _is_vote_unsaved(self) -> bool:
        given = self._given_hard_state
        return self.term != given.term or self.vote != given.vote

    def _is_role_untold(self) -> bool:
        told = self._given_role
        return told.role is not self._state.role or told.term != self.term or told.leader != self.leader

    # Messages.

    def step(self, message: Message) -> None:
        """Take a message. What is stale, for others, or from nobody known where that matters, is dropped."""
        if message.to != self.me or message.cluster_id != self.cluster_id or message.sender == self.me:
            return
        if isinstance(message, _ANSWERS) and message.sender not in self._all_members:
            # A removed member's higher term must not depose the leader that removed it.
            return
        if (
            isinstance(message, VoteReply)
            and message.commit > self.log.commit
            and self.log.matches(message.commit, message.commit_term)
        ):
            # What is committed stays so, whatever the term: the same entry here means the same log up to it.
            self.log.commit_to(message.commit)
        if message.term > self.term:
            if not self._enter_newer_term(message):
                return
        elif message.term < self.term:
            self._answer_older_term(message)
            return
        if isinstance(message, VoteRequest):
            self._answer_vote_request(message)
        else:
            self._state.step(message)

    def _enter_newer_term(self, message: Message) -> bool:
        """False: the message is to be ignored."""
        if isinstance(message, VoteRequest):
            if self._is_leader_alive() and not message.is_transfer:
                return False
            if message.is_pre_vote:
                return True  # nothing changes by being asked
            if not self.may_vote:
                return False
        if isinstance(message, VoteReply) and message.is_pre_vote and message.granted:
            return True  # it names the term we would campaign in
        self.become_follower(message.term, message.sender if isinstance(message, _FROM_LEADER) else None)
        return True

    def _is_leader_alive(self) -> bool:
        """Heard from within the shortest time-out: whoever wants its place is cut off or removed (4.2.3)."""
        if self._vote_pause_ticks:
            return True
        return (
            self.config.check_quorum and self.leader is not None and self.election_elapsed < self.config.election_ticks
        )

    def _answer_older_term(self, message: Message) -> None:
        if isinstance(message, (Append, Heartbeat)):
            # Its sender may lead a term that ours outran while we were cut off: with pre-vote and check-quorum
            # nobody else tells it, and without its hearing from us we could never follow it.
            if self.config.check_quorum or self.config.pre_vote:
                self.send_after_persist(AppendReply(self.me, message.sender, self.term, self.cluster_id, False, 0))
        elif isinstance(message, VoteRequest) and message.is_pre_vote:
            # Silence could leave a candidate of an old term asking for ever.
            self.send_after_persist(VoteReply(self.me, message.sender, self.term, self.cluster_id, False, True))

    def _answer_vote_request(self, request: VoteRequest) -> None:
        if not self.may_vote or (self._vote_pause_ticks and not request.is_transfer):
            return
        is_free = (
            self.vote == request.sender
            or (self.vote is None and self.leader is None)
            or (request.is_pre_vote and request.term > self.term)
        )
        is_granted = is_free and self.log.is_up_to_date(request.last_index, request.last_term)
        if is_granted and not request.is_pre_vote:
            self.vote = request.sender
            self.election_elapsed = 0
        if is_granted and self.role is Role.PRE_CANDIDATE and self._yields_to(request):
            # Both saw the leader go at the same instant. Two real candidates would split the vote and wait it out.
            self.become_follower(self.term, None)
        # A granted pre-vote names the future term: the asker, still in the old one, must not find it stale.
        term = request.term if is_granted else self.term
        # A refused voter may be asking by a membership that was changed since. Were this member no voter any more,
        # with a longer log than the asker's, each would wait for the other for ever.
        commit = 0 if is_granted else self.log.commit
        commit_term = self.log.term(commit) if commit else 0
        self.send_after_persist(
            VoteReply(
                self.me,
                request.sender,
                term,
                self.cluster_id,
                is_granted,
                request.is_pre_vote,
                commit,
                commit_term,
            )
        )
        if request.is_pre_vote and is_free and not is_granted and self.role is Role.PRE_CANDIDATE:
            # Whoever asks has lost the leader too, and may have ignored our question while it had not. Its shorter log
            # cannot win: without asking again, both would sit out a time-out.
            self.send_now(self._vote_request(request.sender, self.term + 1, is_pre_vote=True, is_transfer=False))

    def _yields_to(self, request: VoteRequest) -> bool:
        log = self.log
        return request.sender < self.me or (request.last_term, request.last_index) != (log.last_term, log.last_index)

    # What the roles use.

    def send_now(self, message: Message) -> None:
        self._messages_now.append(message)

    def send_after_persist(self, message: Message) -> None:
        self._messages_after_persist.append(message)

    def answer_read(self, context: int, index: Index) -> None:
        self._reads.append(ReadState(context, index))

    def take_forwarded_answer(self, context: int, index: Index) -> None:
        asked = self._forwarded_reads.pop(context, None)
        if asked is not None:
            self.answer_read(asked, index)

    def heard_from_leader(self, leader: Member) -> None:
        self.election_elapsed = 0
        if self.leader != leader:
            self._follow(leader)

    def restore(self, meta: SnapshotMeta) -> None:
        self.log.restore(meta)
        self._adopt(meta.membership)

    def tick_election(self, ticks: int) -> None:
        self.election_elapsed += ticks
        if self.election_elapsed >= self._election_timeout:
            # Whether or not this member may campaign, it no longer refuses others for this leader's sake.
            if self.leader is not None:
                self._follow(None)
            if self.is_promotable:
                self.election_elapsed = 0
                self.start_campaign(is_transfer=False)

    def start_campaign(self, is_transfer: bool) -> None:
        if self.is_leader or not self.is_promotable:
            return
        # A change that is committed decides whose votes count: it must be applied first (SAFETY 25).
        if self.log.has_unapplied_config():
            self._owed_campaign = self.term if is_transfer else None
            return
        if self.config.pre_vote and not is_transfer:
            self._ask_pre_votes()
        else:
            self.campaign_for_real(is_transfer)

    def _ask_pre_votes(self) -> None:
        self._follow(None)
        self.election_elapsed = 0
        self._draw_election_timeout()
        candidate = Candidate(self, is_pre_vote=True)
        self._state = candidate
        self._ask_for_votes(self.term + 1, is_pre_vote=True, is_transfer=False)
        # Nothing has to be written for it.
        candidate.count(self.me, True)

    def campaign_for_real(self, is_transfer: bool) -> None:
        self._enter_term(self.term + 1)
        self.vote = self.me
        self._state = Candidate(self, is_pre_vote=False)
        self._ask_for_votes(self.term, is_pre_vote=False, is_transfer=is_transfer)

    def _ask_for_votes(self, term: Term, is_pre_vote: bool, is_transfer: bool) -> None:
        send = self.send_now if is_pre_vote else self.send_after_persist
        for member in sorted(self.membership.voters | self.membership.outgoing):
            if member != self.me:
                send(self._vote_request(member, term, is_pre_vote, is_transfer))

    def _vote_request(self, to: Member, term: Term, is_pre_vote: bool, is_transfer: bool) -> VoteRequest:
        log = self.log
        return VoteRequest(self.me, to, term, self.cluster_id, log.last_index, log.last_term, is_pre_vote, is_transfer)

    def become_follower(self, term: Term, leader: Member | None) -> None:
        self._enter_term(term)
        self._follow(leader)
        self._state = Follower(self)

    def become_leader(self) -> None:
        self._follow(self.me)
        self.election_elapsed = 0
        self._state = Leader(self)

    def _enter_term(self, term: Term) -> None:
        if term != self.term:
            self.term = term
            self.vote = None
        self._follow(None)
        self.election_elapsed = 0
        self._draw_election_timeout()

    def _follow(self, leader: Member | None) -> None:
        self.leader = leader
        self._forwarded_reads.clear()

    def _draw_election_timeout(self) -> None:
        ticks = self.config.election_ticks
        self._election_timeout = ticks + self._random.randrange(ticks)

    def _is_voter(self) -> bool:
        return self.me in self.membership.voters or self.me in self.membership.outgoing

    def _adopt(self, membership: Membership) -> None:
        self.membership = membership
        self._all_members = membership.all_members()
        state = self._state
        if isinstance(state, Candidate) and not self.is_promotable:
            # The change became known during the election that it takes this member out of.
            self.become_follower(self.term, None)
        if not isinstance(state, Leader):
            return
        state.adopt_membership()
        state.membership_applied()
        if not self._is_voter() and self.config.step_down_on_removal:
            state.leave_office()
