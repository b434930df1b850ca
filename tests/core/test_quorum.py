"""Quorums against their definition, tried out: every set of up to five voters, every vote, every small match.

The definition of *committed*: some majority (of each half) has it all.  Of a vote: *won* if the ayes are a majority whatever
the others say, *lost* if they cannot become one, else *pending*.  Both by trying all subsets, which the code does not do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, combinations, product

import pytest

from tauraft.core.messages import Member, Membership
from tauraft.core.quorum import (
    UNBOUNDED,
    VoteResult,
    committed_index,
    joint_committed_index,
    joint_vote_result,
    vote_result,
)
from tests.core.network import members

SIZES = range(6)
MATCHES = range(4)


def subsets(voters: Sequence[Member]) -> Iterator[tuple[Member, ...]]:
    return chain.from_iterable(combinations(voters, size) for size in range(len(voters) + 1))


def is_quorum(some: Collection[Member], voters: Collection[Member]) -> bool:
    """More than half. Of nobody, nobody is enough: the half that is not there must not hold up the other."""
    return not voters or 2 * len(set(some) & set(voters)) > len(voters)


def committed_by_definition(match: Mapping[Member, int], *halves: Sequence[Member]) -> int:
    everyone = sorted({voter for half in halves for voter in half})
    quorums = [some for some in subsets(everyone) if all(is_quorum(some, half) for half in halves)]
    return max(min((match[voter] for voter in some), default=UNBOUNDED) for some in quorums)


def vote_by_definition(votes: Mapping[Member, bool], *halves: Sequence[Member]) -> VoteResult:
    everyone = sorted({voter for half in halves for voter in half})
    ayes = [voter for voter in everyone if votes.get(voter)]
    if all(is_quorum(ayes, half) for half in halves):
        return VoteResult.WON
    undecided = [voter for voter in everyone if voter not in votes]
    return VoteResult.PENDING if all(is_quorum([*ayes, *undecided], half) for half in halves) else VoteResult.LOST


@pytest.mark.parametrize("size", SIZES)
def test_a_majority_commits_what_the_definition_says(size: int) -> None:
    voters = members("abcde"[:size])
    for numbers in product(MATCHES, repeat=size):
        match = dict(zip(voters, numbers, strict=True))
        assert committed_index(frozenset(voters), match.__getitem__) == committed_by_definition(match, voters)


@pytest.mark.parametrize("size", SIZES)
def test_a_majority_votes_as_the_definition_says(size: int) -> None:
    voters = members("abcde"[:size])
    for answers in product((True, False, None), repeat=size):
        votes = {voter: answer for voter, answer in zip(voters, answers, strict=True) if answer is not None}
        assert vote_result(frozenset(voters), votes) is vote_by_definition(votes, voters)


def halves() -> Iterator[tuple[list[Member], list[Member]]]:
    """Every pair of sets of up to three voters each, that overlap in every way; the old one may be empty."""
    for incoming in ("a", "ab", "abc"):
        for outgoing in ("", "a", "b", "d", "ab", "ad", "cd", "abc", "abd", "ade", "def"):
            yield members(incoming), members(outgoing)


@pytest.mark.parametrize(("incoming", "outgoing"), list(halves()))
def test_a_joint_quorum_commits_what_the_definition_says(incoming: list[Member], outgoing: list[Member]) -> None:
    membership = Membership(frozenset(incoming), frozenset(outgoing))
    everyone = sorted({*incoming, *outgoing})
    for numbers in product(range(3), repeat=len(everyone)):
        match = dict(zip(everyone, numbers, strict=True))
        assert joint_committed_index(membership, match.__getitem__) == committed_by_definition(
            match, incoming, outgoing
        )


@pytest.mark.parametrize(("incoming", "outgoing"), list(halves()))
def test_a_joint_quorum_votes_as_the_definition_says(incoming: list[Member], outgoing: list[Member]) -> None:
    membership = Membership(frozenset(incoming), frozenset(outgoing))
    everyone = sorted({*incoming, *outgoing})
    for answers in product((True, False, None), repeat=len(everyone)):
        votes = {voter: answer for voter, answer in zip(everyone, answers, strict=True) if answer is not None}
        assert joint_vote_result(membership, votes) is vote_by_definition(votes, incoming, outgoing)


def test_any_two_quorums_of_one_membership_share_a_voter() -> None:
    for incoming, outgoing in halves():
        everyone = sorted({*incoming, *outgoing})
        membership = Membership(frozenset(incoming), frozenset(outgoing))
        quorums = [
            set(some)
            for some in subsets(everyone)
            if joint_vote_result(membership, dict.fromkeys(some, True)) is VoteResult.WON
        ]
        assert all(one & other for one in quorums for other in quorums)


def test_votes_of_strangers_and_learners_count_for_nothing() -> None:
    voters = frozenset(members("abc"))
    votes = dict.fromkeys(members("adef"), True)
    assert vote_result(voters, votes) is VoteResult.PENDING
