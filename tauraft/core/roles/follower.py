"""A follower: takes what the leader of its term sends, and campaigns when it hears from nobody (thesis 3.3-3.5).

Answers that promise something (an Append accepted, a snapshot taken) leave after the disk has it;
heartbeat replies promise nothing but the term, and leave at once when that is on the disk.
A learner is a follower that never campaigns; whether this one may is ``Raft.is_promotable``'s business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauraft.core.log import AcknowledgedEntriesLost
from tauraft.core.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadIndexReply,
    Role,
    TimeoutNow,
)

if TYPE_CHECKING:
    from tauraft.core.raft import Raft


class Follower:
    __slots__ = ("_raft",)
    role = Role.FOLLOWER

    def __init__(self, raft: Raft) -> None:
        self._raft = raft

    def tick(self, ticks: int) -> None:
        self._raft.tick_election(ticks)

    def step(self, message: Message) -> None:
        raft = self._raft
        match message:
            case Append():
                raft.heard_from_leader(message.sender)
                self._append(message)
            case Heartbeat():
                raft.heard_from_leader(message.sender)
                if message.commit > raft.log.last_index and raft.may_vote:
                    # It never names more than was acknowledged from here in this term. (Who may not vote has lost the end of
                    # its log, says so, and is sent it again: SAFETY 23.)
                    raise AcknowledgedEntriesLost(message.commit, raft.log.last_index)
                raft.log.commit_to(message.commit)
                # A leader's lease counts on who answered; after a crash it must still know the term it answered in.
                send = raft.send_now if raft.is_term_saved else raft.send_after_persist
                send(
                    HeartbeatReply(
                        raft.me, message.sender, raft.term, raft.cluster_id, message.read_context, raft.reply_payload
                    )
                )
            case InstallSnapshot():
                raft.heard_from_leader(message.sender)
                self._install(message)
            case TimeoutNow():
                raft.start_campaign(is_transfer=True)
            case ReadIndexReply():
                raft.take_forwarded_answer(message.context, message.index)
            case _:
                pass  # a late reply to what an earlier role of ours had asked

    def _append(self, message: Append) -> None:
        raft = self._raft
        log = raft.log
        if message.prev_index < log.commit:
            # Late: what it says is decided already. Tell the leader how far that goes.
            self._reply(message, True, log.commit)
            return
        last_new = log.append_after(message.prev_index, message.prev_term, message.entries)
        if last_new is None:
            hint_index, hint_term = log.last_match_below(min(message.prev_index, log.last_index), message.prev_term)
            self._reply(message, False, message.prev_index, hint_index, hint_term)
            return
        # Not beyond last_new: what follows it here may be a tail that the leader does not have.
        log.commit_to(min(message.commit, last_new))
        self._reply(message, True, last_new)

    def _reply(self, message: Append, ok: bool, match: int, hint_index: int = 0, hint_term: int = 0) -> None:
        raft = self._raft
        raft.send_after_persist(
            AppendReply(
                raft.me,
                message.sender,
                raft.term,
                raft.cluster_id,
                ok,
                match,
                hint_index,
                hint_term,
                message.sequence,
            )
        )

    def _install(self, message: InstallSnapshot) -> None:
        raft = self._raft
        log = raft.log
        meta = message.meta
        if meta.index > log.commit:
            if log.matches(meta.index, meta.term):
                # The entries are here already: only their commitment was news.
                log.commit_to(meta.index)
            else:
                raft.restore(meta)
        raft.send_after_persist(AppendReply(raft.me, message.sender, raft.term, raft.cluster_id, True, log.commit))
