"""How a scenario says things: one line for each, so that a reader follows the story without the code.

``5@2 x`` is entry 5, of term 2, holding x.  ``-`` in the place of a name is nobody.  ``a2`` is the second incarnation of a.
"""

from __future__ import annotations

from collections.abc import Iterable

from tauraft.core.membership import MembershipChange, StepKind, Transition, decode_change
from tauraft.core.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Member,
    Membership,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    Ready,
    Role,
    RoleChange,
    SnapshotMeta,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from tauraft.core.raft import MemberProgress, Raft

_SIGNS = {StepKind.ADD_VOTER: "+", StepKind.ADD_LEARNER: "~", StepKind.REMOVE: "-"}
_TRANSITIONS = {Transition.AUTO: "", Transition.JOINT_IMPLICIT: " implicit", Transition.JOINT_EXPLICIT: " explicit"}


def name(member: Member | None) -> str:
    if member is None:
        return "-"
    return member.peer_id if member.incarnation == 1 else f"{member.peer_id}{member.incarnation}"


def names(members: Iterable[Member]) -> str:
    return " ".join(name(member) for member in sorted(members))


def membership(value: Membership) -> str:
    parts = [f"voters {names(value.voters)}"]
    if value.outgoing:
        parts.append(f"leaving {names(value.outgoing)}")
    if value.learners:
        parts.append(f"learners {names(value.learners)}")
    if value.learners_next:
        parts.append(f"learners afterwards {names(value.learners_next)}")
    if value.auto_leave:
        parts.append("until applied")
    return ", ".join(parts)


def change(value: MembershipChange) -> str:
    if value.leaves_joint:
        return "leave"
    return " ".join(_SIGNS[step.kind] + name(step.member) for step in value.steps) + _TRANSITIONS[value.transition]


def entry(value: Entry) -> str:
    return f"{value.index}@{value.term} {_content(value)}"


def _content(value: Entry) -> str:
    match value.kind:
        case EntryKind.NOOP:
            return "noop"
        case EntryKind.CONFIG:
            return change(decode_change(value.data))
        case _:
            return value.data.decode()


def entries(values: Iterable[Entry]) -> str:
    return "[" + ", ".join(map(entry, values)) + "]"


def hard_state(value: HardState) -> str:
    return f"term {value.term} vote {name(value.vote)} commit {value.commit}"


def snapshot(meta: SnapshotMeta) -> str:
    return f"snapshot {meta.index}@{meta.term} of {membership(meta.membership)}"


def write(ready: Ready) -> str:
    parts = []
    if ready.snapshot is not None:
        parts.append(snapshot(ready.snapshot))
    if ready.hard_state is not None:
        parts.append(hard_state(ready.hard_state))
    if ready.entries:
        parts.append(entries(ready.entries))
    if not parts:
        parts.append("nothing")
    return f"#{ready.number}: " + ", ".join(parts)


def role(told: RoleChange) -> str:
    match told.role:
        case Role.FOLLOWER:
            whom = "nobody" if told.leader is None else name(told.leader)
            return f"follows {whom} in term {told.term}"
        case Role.PRE_CANDIDATE:
            return f"asks who would vote for it, in term {told.term}"
        case Role.CANDIDATE:
            return f"is candidate in term {told.term}"
        case Role.LEADER:
            return f"LEADS term {told.term}"


def message(one: Message) -> str:
    return f"{name(one.sender)} -> {name(one.to)} {_body(one)}"


def _body(one: Message) -> str:
    match one:
        case VoteRequest():
            kind = "PreVote?" if one.is_pre_vote else "Vote?"
            return f"{kind} term {one.term}, log to {one.last_index}@{one.last_term}" + (
                ", leadership was offered" if one.is_transfer else ""
            )
        case VoteReply():
            kind = "PreVote" if one.is_pre_vote else "Vote"
            if one.granted:
                return f"{kind} yes, term {one.term}"
            return f"{kind} no, term {one.term}, {one.commit}@{one.commit_term} is committed"
        case Append():
            return f"Append term {one.term} after {one.prev_index}@{one.prev_term} {entries(one.entries)} commit {one.commit}"
        case AppendReply() if one.ok:
            return f"Appended term {one.term} to {one.match}"
        case AppendReply():
            return f"Refused term {one.term} after {one.match}, try {one.hint_index}@{one.hint_term}"
        case Heartbeat():
            return f"Heartbeat term {one.term} commit {one.commit}" + _round(one.read_context)
        case HeartbeatReply():
            return f"HeartbeatReply term {one.term}" + _round(one.read_context)
        case InstallSnapshot():
            return f"Install term {one.term} {snapshot(one.meta)}"
        case TimeoutNow():
            return f"TimeoutNow term {one.term}"
        case ReadIndexRequest():
            return f"ReadIndex? term {one.term}"
        case ReadIndexReply():
            return f"ReadIndex term {one.term} at {one.index}"
        case _:
            raise AssertionError(f"no words for {one}")


def _round(number: int) -> str:
    return f" round {number}" if number else ""


def status(raft: Raft) -> list[str]:
    """The replica, and what a leader knows of each member."""
    picture = raft.status()
    role_name = Role(picture.role).name.lower().replace("_", "-")
    lines = [
        f"{name(raft.me)} {role_name} term {picture.term} vote {name(picture.vote)} leader {name(picture.leader)}"
        f" log {picture.first_index}..{picture.last_index} disk {picture.stable}"
        f" commit {picture.commit} applied {picture.applied}; {membership(picture.membership)}"
    ]
    if picture.transferee is not None:
        lines.append(f"  hands leadership to {name(picture.transferee)}")
    lines += [f"  {name(member)} {_progress(one)}" for member, one in picture.progress.items()]
    return lines


def _progress(one: MemberProgress) -> str:
    return (
        f"{one.state.name.lower()} match {one.match} next {one.next_index}"
        + (f" under way {one.inflight}" if one.inflight else "")
        + (" paused" if one.is_paused else "")
        + (f" snapshot {one.pending_snapshot}" if one.pending_snapshot else "")
        + ("" if one.is_recently_active else " silent")
        + (" DISTRUSTED" if one.is_distrusted else "")
    )
