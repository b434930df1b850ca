"""What a quorum is: of one majority, and of two at once while a membership change is under way (thesis 4.3).

Pure functions of values.  An empty set of voters is a quorum of anything: in a joint decision the half that is not
there must not hold up the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import IntEnum

from tauraft.core.messages import Member, Membership

UNBOUNDED = (1 << 63) - 1


class VoteResult(IntEnum):
    PENDING = 0
    LOST = 1
    WON = 2


def committed_index(voters: Collection[Member], match: Callable[[Member], int]) -> int:
    """The highest index that a majority has."""
    count = len(voters)
    if count == 1:
        (only,) = voters
        return match(only)
    if not count:
        return UNBOUNDED
    return sorted(map(match, voters))[(count - 1) // 2]


def joint_committed_index(membership: Membership, match: Callable[[Member], int]) -> int:
    index = committed_index(membership.voters, match)
    if membership.outgoing:
        index = min(index, committed_index(membership.outgoing, match))
    return index


def vote_result(voters: Collection[Member], votes: Mapping[Member, bool]) -> VoteResult:
    if not voters:
        return VoteResult.WON
    granted = refused = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote:
            granted += 1
        elif vote is False:
            refused += 1
    needed = len(voters) // 2 + 1
    if granted >= needed:
        return VoteResult.WON
    return VoteResult.LOST if len(voters) - refused < needed else VoteResult.PENDING


def joint_vote_result(membership: Membership, votes: Mapping[Member, bool]) -> VoteResult:
    """Won when both halves are won, lost when either is."""
    incoming, outgoing = vote_result(membership.voters, votes), vote_result(membership.outgoing, votes)
    if VoteResult.LOST in (incoming, outgoing):
        return VoteResult.LOST
    return VoteResult.PENDING if VoteResult.PENDING in (incoming, outgoing) else VoteResult.WON
