"""Changing who votes: simple changes one at a time, larger ones through a joint configuration (thesis 4.1, 4.3).

A simple change alters at most one voter, so any majority before and any after share a member.  Everything else goes in
two entries: one that enters the joint configuration, in which both the old and the new majority must agree, and one
that leaves it.  A voter that is to become a learner stays a voter of the old half until then (``learners_next``).

A change is data in a CONFIG entry; ``apply_change`` is pure and runs when the entry is applied, the same on every replica.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from tauraft.core.messages import Member, Membership

FORMAT = 1
_HEAD = struct.Struct("!BBH")
_STEP = struct.Struct("!BHQ")


class InvalidChange(Exception):
    """The change does not fit the membership. ``args[0]`` says why; nothing was altered."""


class StepKind(IntEnum):
    ADD_VOTER = 0
    ADD_LEARNER = 1
    REMOVE = 2


class Transition(IntEnum):
    AUTO = 0  # simple where possible, else joint and left by itself
    JOINT_IMPLICIT = 1  # joint, left by itself
    JOINT_EXPLICIT = 2  # joint, left when an empty change says so


@dataclass(frozen=True, slots=True)
class Step:
    kind: StepKind
    member: Member


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """``steps`` take effect in order. Without any: leave the joint configuration."""

    steps: tuple[Step, ...] = ()
    transition: Transition = Transition.AUTO

    @property
    def leaves_joint(self) -> bool:
        return not self.steps and self.transition is Transition.AUTO


def apply_change(membership: Membership, change: MembershipChange) -> Membership:
    """The membership after the change. Raises ``InvalidChange``."""
    if change.leaves_joint:
        return _leave_joint(membership)
    if membership.is_joint:
        raise InvalidChange("a change is under way already: the cluster is in a joint configuration")
    voters, learners = set(membership.voters), set(membership.learners)
    learners_next: set[Member] = set()
    for step in change.steps:
        member = step.member
        match step.kind:
            case StepKind.ADD_VOTER:
                voters.add(member)
                learners.discard(member)
                learners_next.discard(member)
            case StepKind.ADD_LEARNER:
                voters.discard(member)
                if member in membership.voters:
                    learners_next.add(member)
                else:
                    learners.add(member)
            case StepKind.REMOVE:
                voters.discard(member)
                learners.discard(member)
                learners_next.discard(member)
    if not voters:
        raise InvalidChange("this change would leave no voter")
    is_simple = len(voters ^ membership.voters) <= 1
    if change.transition is Transition.AUTO and is_simple:
        return Membership(frozenset(voters), learners=frozenset(learners | learners_next))
    return Membership(
        voters=frozenset(voters),
        outgoing=membership.voters,
        learners=frozenset(learners),
        learners_next=frozenset(learners_next),
        auto_leave=change.transition is not Transition.JOINT_EXPLICIT,
    )


def _leave_joint(membership: Membership) -> Membership:
    if not membership.is_joint:
        raise InvalidChange("there is no joint configuration to leave")
    return Membership(membership.voters, learners=membership.learners | membership.learners_next)


def encode_change(change: MembershipChange) -> bytes:
    parts = [_HEAD.pack(FORMAT, change.transition, len(change.steps))]
    for step in change.steps:
        peer_id = step.member.peer_id.encode()
        parts += [_STEP.pack(step.kind, len(peer_id), step.member.incarnation), peer_id]
    return b"".join(parts)


def decode_change(data: bytes) -> MembershipChange:
    """Raises ``ValueError`` for anything ``encode_change`` did not make."""
    try:
        form, transition, count = _HEAD.unpack_from(data)
        if form != FORMAT:
            raise ValueError(f"a membership change of format {form}; this version reads {FORMAT}")
        at, steps = _HEAD.size, []
        for _ in range(count):
            kind, size, incarnation = _STEP.unpack_from(data, at)
            at += _STEP.size
            if at + size > len(data):
                raise ValueError("a membership change that ends too soon")
            steps.append(Step(StepKind(kind), Member(data[at : at + size].decode(), incarnation)))
            at += size
    except struct.error as error:
        raise ValueError("a membership change that ends too soon") from error
    if at != len(data):
        raise ValueError("a membership change with something after its end")
    return MembershipChange(tuple(steps), Transition(transition))
