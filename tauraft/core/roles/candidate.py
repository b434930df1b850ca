"""A candidate, or a pre-candidate: asks the voters of both configurations (thesis 3.4, 4.3; pre-vote 9.6).

A pre-candidate asks whether it *would* get votes in the next term, and changes nothing by asking: so a
member that was cut off comes back without deposing anyone.  A candidate's vote for itself
counts once it is on disk: ``Raft.persisted`` tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauraft.core.messages import (
    Append,
    Heartbeat,
    InstallSnapshot,
    Member,
    Message,
    Role,
    VoteReply,
)
from tauraft.core.quorum import VoteResult, joint_vote_result

if TYPE_CHECKING:
    from tauraft.core.raft import Raft


class Candidate:
    __slots__ = ("_raft", "is_pre_vote", "own_vote_ready", "role", "votes")

    def __init__(self, raft: Raft, is_pre_vote: bool) -> None:
        self._raft = raft
        self.is_pre_vote = is_pre_vote
        self.role = Role.PRE_CANDIDATE if is_pre_vote else Role.CANDIDATE
        self.votes: dict[Member, bool] = {}
        self.own_vote_ready = 0  # the Ready that takes the vote for itself to disk; 0: none made yet

    def tick(self, ticks: int) -> None:
        self._raft.tick_election(ticks)

    def step(self, message: Message) -> None:
        match message:
            case Append() | Heartbeat() | InstallSnapshot():
                # Somebody else was elected in this term.
                self._raft.become_follower(message.term, message.sender)
                self._raft.step(message)
            case VoteReply() if message.is_pre_vote == self.is_pre_vote:
                self.count(message.sender, message.granted)
            case _:
                pass

    def count(self, member: Member, granted: bool) -> None:
        raft = self._raft
        self.votes.setdefault(member, granted)
        result = joint_vote_result(raft.membership, self.votes)
        if result is VoteResult.WON and raft.log.has_unapplied_config():
            # A refusal told of it in the middle of the election: whose votes count is not what it was (SAFETY 25).
            raft.become_follower(raft.term, None)
        elif result is VoteResult.WON:
            if self.is_pre_vote:
                raft.campaign_for_real(is_transfer=False)
            else:
                raft.become_leader()
        elif result is VoteResult.LOST:
            raft.become_follower(raft.term, None)
