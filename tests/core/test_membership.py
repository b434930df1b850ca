"""What a change makes of a membership: pure values in and out (thesis 4.1, 4.3)."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from tauraft.core.membership import (
    InvalidChange,
    MembershipChange,
    Step,
    StepKind,
    Transition,
    apply_change,
    decode_change,
    encode_change,
)
from tauraft.core.messages import Member, Membership
from tests.core.network import members, voters

A, B, C, D, E = members("abcde")
LEAVE = MembershipChange()
_SIGNS = {"+": StepKind.ADD_VOTER, "~": StepKind.ADD_LEARNER, "-": StepKind.REMOVE}


def change(text: str, transition: Transition = Transition.AUTO) -> MembershipChange:
    """``"+d -a"``"""
    return MembershipChange(tuple(Step(_SIGNS[one[0]], Member(one[1], 1)) for one in text.split()), transition)


def joint(names: str, outgoing: str, learners: str = "", afterwards: str = "", auto_leave: bool = True) -> Membership:
    return Membership(some(names), some(outgoing), some(learners), some(afterwards), auto_leave)


def some(names: str) -> frozenset[Member]:
    return frozenset(members(names))


# Joint.


@pytest.mark.parametrize(
    ("transition", "leaves_by_itself"),
    [(Transition.AUTO, True), (Transition.JOINT_IMPLICIT, True), (Transition.JOINT_EXPLICIT, False)],
)
def test_a_joint_membership_is_left_by_itself_unless_it_was_asked_for_explicitly(
    transition: Transition, leaves_by_itself: bool
) -> None:
    entered = apply_change(voters("abc"), change("+d +e", transition))
    assert entered == joint("abcde", "abc", auto_leave=leaves_by_itself)
    assert apply_change(entered, LEAVE) == voters("abcde")


def test_a_step_taken_twice_in_a_joint_change_is_taken_once() -> None:
    once = apply_change(voters("abc"), change("-a +d", Transition.JOINT_IMPLICIT))
    assert apply_change(voters("abc"), change("-a -a +d +d", Transition.JOINT_IMPLICIT)) == once


def test_a_joint_change_to_what_there_is_keeps_everyone() -> None:
    entered = apply_change(voters("abc"), change("+a +b", Transition.JOINT_IMPLICIT))
    assert entered == joint("abc", "abc")
    assert apply_change(entered, LEAVE) == voters("abc")


def test_a_voter_that_becomes_a_learner_votes_in_the_old_half_until_the_change_ends() -> None:
    entered = apply_change(voters("abc"), change("~a ~b", Transition.JOINT_IMPLICIT))
    assert entered == joint("c", "abc", afterwards="ab")
    assert A not in entered.learners, "a learner cannot be a voter of the old half"
    assert apply_change(entered, LEAVE) == voters("c", "ab")


def test_a_voter_demoted_and_then_removed_in_one_change_is_gone_when_it_ends() -> None:
    entered = apply_change(voters("abc"), change("~a -a", Transition.JOINT_IMPLICIT))
    assert entered == joint("bc", "abc")


def test_a_voter_demoted_and_promoted_in_one_change_stays_a_voter() -> None:
    assert apply_change(voters("abc"), change("~a +a", Transition.JOINT_IMPLICIT)) == joint("abc", "abc")


@pytest.mark.parametrize("steps", ["+d", "-a", "~b", "+d -a"])
def test_nothing_is_changed_within_a_joint_membership(steps: str) -> None:
    with pytest.raises(InvalidChange):
        apply_change(joint("abcd", "abc"), change(steps))


def test_a_joint_membership_is_not_left_where_there_is_none() -> None:
    with pytest.raises(InvalidChange):
        apply_change(voters("abc"), LEAVE)


# Simple.


@pytest.mark.parametrize(
    ("before", "steps", "after"),
    [
        (voters("ab"), "+b", voters("ab")),
        (voters("ab"), "+c +c", voters("abc")),
        (voters("ab"), "-c", voters("ab")),
        (voters("ab", "c"), "~c", voters("ab", "c")),
        (voters("ab"), "-b -b", voters("a")),
    ],
)
def test_a_simple_change_that_is_taken_already_changes_nothing(
    before: Membership, steps: str, after: Membership
) -> None:
    assert apply_change(before, change(steps)) == after


@pytest.mark.parametrize(
    ("before", "steps", "after"),
    [
        (voters("ab", "c"), "+c", voters("abc")),
        (voters("abc"), "~c", voters("ab", "c")),
        (voters("abc"), "~c +c", voters("abc")),
        (voters("ab", "c"), "+c ~c", voters("ab", "c")),
        (voters("ab", "c"), "-c", voters("ab")),
        (voters("ab", "c"), "+c ~b", None),  # two voters alter: joint
    ],
)
def test_learners_are_promoted_and_voters_demoted(before: Membership, steps: str, after: Membership | None) -> None:
    found = apply_change(before, change(steps))
    if after is None:
        assert found == joint("ac", "ab", afterwards="b")
    else:
        assert found == after


@pytest.mark.parametrize("steps", ["-a", "~a"])
def test_no_change_leaves_nobody_to_vote(steps: str) -> None:
    for transition in Transition:
        with pytest.raises(InvalidChange):
            apply_change(voters("a"), change(steps, transition))


def test_a_change_is_simple_only_where_any_majority_before_and_after_share_a_voter() -> None:
    names = "abcd"
    for size in range(1, 5):
        for before in combinations(names, size):
            for kinds in product((None, *StepKind), repeat=4):
                steps = tuple(
                    Step(kind, Member(name, 1)) for name, kind in zip(names, kinds, strict=True) if kind is not None
                )
                if not steps:
                    continue
                try:
                    after = apply_change(voters("".join(before)), MembershipChange(steps))
                except InvalidChange:
                    continue
                if not after.is_joint:
                    assert share_a_voter(frozenset(members("".join(before))), after.voters)
                assert not after.learners & (after.voters | after.outgoing), "nobody votes and only listens"


def share_a_voter(before: frozenset[Member], after: frozenset[Member]) -> bool:
    return all(
        set(one) & set(other)
        for one in combinations(sorted(before), len(before) // 2 + 1)
        for other in combinations(sorted(after), len(after) // 2 + 1)
    )


# An update, and nobody.


def test_another_incarnation_of_a_voter_takes_its_place_through_a_joint_membership() -> None:
    """The record of a member is its incarnation: nothing else of it is in the membership that could be updated."""
    reborn = Member("b", 2)
    replacing = MembershipChange((Step(StepKind.REMOVE, B), Step(StepKind.ADD_VOTER, reborn)))
    entered = apply_change(voters("abc"), replacing)
    assert entered.voters == {A, reborn, C}
    assert entered.outgoing == {A, B, C}
    assert apply_change(entered, LEAVE) == Membership(frozenset({A, reborn, C}))


def test_a_change_of_nobody_leaves_the_joint_membership_and_is_refused_elsewhere() -> None:
    assert LEAVE.leaves_joint
    assert apply_change(joint("ad", "ab"), change("")) == voters("ad")
    with pytest.raises(InvalidChange):
        apply_change(voters("ad"), change(""))


def test_a_joint_change_of_nobody_enters_a_joint_membership_of_the_same_voters() -> None:
    asked = MembershipChange((), Transition.JOINT_EXPLICIT)
    assert not asked.leaves_joint
    assert apply_change(voters("ab"), asked) == joint("ab", "ab", auto_leave=False)


# On the wire.


def test_a_change_is_read_as_it_was_written() -> None:
    for transition in Transition:
        one = change("+d ~e -a", transition)
        assert decode_change(encode_change(one)) == one


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_change_that_was_cut_short_or_prolonged_is_refused(cut: int) -> None:
    encoded = encode_change(change("+d"))
    with pytest.raises(ValueError, match="membership change"):
        decode_change(encoded[:-cut])
    with pytest.raises(ValueError, match="membership change"):
        decode_change(encoded + b"x" * cut)
