"""The election state machine, command by command; and that what one session held is given back in its order."""

from __future__ import annotations

import pytest

from tauraft.errors import InvalidArgument, InvalidCommand, NoCandidate, NotHolder, TooLarge
from tauraft.testing import check_fsm
from tauraft_plugins.elections.fsm import Elections
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_primitives.elections.messages import (
    AskElection,
    Campaign,
    CampaignStanding,
    GetLeader,
    GiveBackTerm,
    Leads,
    ListElections,
    Proclaim,
    Resign,
    TenureEnds,
    Transfer,
)
from tauraft_primitives.fencing.messages import CheckHold
from tauraft_primitives.locks.messages import Grant, WouldWait
from tests.primitives.harness import Harness, Reply, SessionOf


@pytest.fixture
def replica() -> Harness:
    return Harness(Elections)


def stand(session: SessionOf, name: str = "x", **options: object) -> Reply[Grant]:
    return session.run(Campaign(name, **options))  # type: ignore[arg-type]


def leader(replica: Harness, name: str = "x") -> int | None:
    found = replica.query(GetLeader(name))
    return None if found is None else found.owner.session


def test_one_leads_and_the_others_follow_in_order_higher_priority_first(replica: Harness) -> None:
    first, low, high, other_high = (replica.open() for _ in range(4))
    terms = [stand(first, value=b"1"), stand(low), stand(high, priority=5), stand(other_high, priority=5)]
    assert [term.is_done for term in terms] == [True, False, False, False]
    info = replica.query(AskElection("x"))
    assert info.leader is not None and info.leader.value == b"1"
    assert [owner.session for owner in info.candidates] == [high.id, other_high.id, low.id]
    assert replica.query(CampaignStanding("x", other_high.id, 0)).ahead == 1  # type: ignore[union-attr]
    served = []
    for session, term in [(first, 0), (high, 2), (other_high, 3), (low, 1)]:
        assert leader(replica) == session.id
        served.append(terms[term].value.token)
        session.run(Resign("x", served[-1]))
    assert leader(replica) is None
    assert served == sorted(set(served)), "every term's token is greater than all before"


def test_a_change_of_leader_is_one_commit(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    first, second = stand(alice), stand(bob)
    before = replica.machine.applied_index
    alice.run(Resign("x", first.value.token))
    assert second.value.waited and replica.machine.applied_index == before + 1


@pytest.mark.parametrize("learned", [False, True])
def test_a_lost_session_makes_way_everywhere_each_term_with_a_token_of_its_own(replica: Harness, learned: bool) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    stand(alice, "x")
    stand(alice, "y")
    of_bob, of_carol = stand(bob, "x"), stand(carol, "y")
    if learned:
        alice.learn()
    alice.end()
    assert of_bob.value.token != of_carol.value.token
    assert leader(replica, "x") == bob.id and leader(replica, "y") == carol.id


def test_a_transfer_elects_the_candidate_named_before_those_ahead_of_it(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    first = stand(alice)
    ahead, second = stand(bob, priority=9), stand(carol)
    with pytest.raises(NoCandidate):
        _ = alice.run(Transfer("x", first.value.token, alice.id)).value
    assert leader(replica) == alice.id, "nothing changed"
    with pytest.raises(NotHolder):
        _ = bob.run(Transfer("x", first.value.token + 100, carol.id)).value
    alice.run(Transfer("x", first.value.token, carol.id))
    assert leader(replica) == carol.id and not ahead.is_done
    with pytest.raises(NotHolder):
        _ = alice.run(Resign("x", first.value.token)).value
    carol.run(Resign("x", second.value.token))
    assert leader(replica) == bob.id


def test_only_the_leader_proclaims_and_only_its_term_resigns(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    first = stand(alice, value=b"a")
    alice.run(Proclaim("x", first.value.token, b"b"))
    assert replica.query(GetLeader("x")).value == b"b"  # type: ignore[union-attr]
    for command in (Proclaim("x", first.value.token + 1, b"c"), Resign("x", 7), Resign("y", first.value.token)):
        with pytest.raises(NotHolder):
            _ = bob.run(command).value
    assert replica.query(GetLeader("x")).value == b"b"  # type: ignore[union-attr]
    assert replica.query(Leads("x", first.value.token)) and not replica.query(Leads("y", first.value.token))


@pytest.mark.parametrize("how", ["resigns", "is lost", "was never told"])
def test_the_next_leader_waits_until_the_minimum_tenure_is_over(replica: Harness, how: str) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    first = stand(alice, min_tenure=10.0)
    second = stand(bob)
    replica.advance(4)
    if how == "resigns":
        alice.run(Resign("x", first.value.token))
    elif how == "is lost":
        alice.end()
    else:
        alice.withdraw(first)
    with pytest.raises(WouldWait):
        _ = stand(carol, patience=0.0).value
    replica.advance(5.9)
    assert not second.is_done and leader(replica) is None
    replica.advance(0.2)
    assert second.is_done
    bob.run(Resign("x", second.value.token))
    assert stand(carol, patience=0.0).is_done, "the tenure of the term counts, not that of the election"


def test_a_term_that_was_long_enough_makes_way_at_once_and_a_transfer_always_does(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    first = stand(alice, min_tenure=10.0)
    second, third = stand(bob, min_tenure=10.0), stand(carol)
    replica.advance(10)
    alice.run(Resign("x", first.value.token))
    bob.run(Transfer("x", second.value.token, carol.id))
    assert third.is_done
    with pytest.raises(InvalidCommand):
        _ = alice.run(TenureEnds("x")).value


def test_a_try_leaves_nobody_standing(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    stand(alice)
    with pytest.raises(WouldWait):
        _ = stand(bob, patience=0.0).value
    assert not replica.query(AskElection("x")).candidates


def test_a_withdrawn_candidate_is_gone_and_one_that_was_elected_without_learning_it_makes_way(replica: Harness) -> None:
    alice, bob, carol = (replica.open() for _ in range(3))
    first, second, third = stand(alice), stand(bob), stand(carol)
    bob.withdraw(second)
    alice.withdraw(first)
    assert leader(replica) == carol.id and third.is_done
    carol.run(GiveBackTerm("x", 99))
    assert leader(replica) == carol.id, "another attempt"
    carol.run(GiveBackTerm("x", 0))
    assert leader(replica) is None


def test_elections_are_listed_by_name(replica: Harness) -> None:
    alice = replica.open()
    for name in ("b", "a", "c"):
        stand(alice, name)
    page = replica.query(ListElections())
    assert ([info.name for info in page.elections], page.after) == (["a", "b", "c"], None)
    page = replica.query(ListElections("a", 1))
    assert ([info.name for info in page.elections], page.after) == (["b"], "b")
    for name in ("d", "e"):
        stand(alice, name, value=b"x" * (1 << 20))
    page = replica.query(ListElections("c"))
    assert ([info.name for info in page.elections], page.after) == (["d"], "d"), "no answer is too large to send"


def test_it_goes_on_from_a_snapshot(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    first, second = stand(alice, value=b"v", min_tenure=5.0), stand(bob)
    replica.restore()
    alice.run(Resign("x", first.value.token))
    replica.restore()
    replica.advance(5)
    assert second.is_done


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Campaign(""), InvalidArgument),
        (lambda: Campaign("x" * 600), TooLarge),
        (lambda: Campaign("x", "text"), TypeError),  # type: ignore[arg-type]
        (lambda: Campaign("x", b"x" * ((1 << 20) + 1)), TooLarge),
        (lambda: Campaign("x", min_tenure=-1.0), InvalidArgument),
        (lambda: Campaign("x", priority=1 << 40), InvalidArgument),
        (lambda: Transfer("x", 1, 0), InvalidArgument),
        (lambda: Transfer("x", 1, "2"), TypeError),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_made(make: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()  # type: ignore[operator]


def test_a_terms_token_fences() -> None:
    replica = Harness(*HOLDERS, Fencing)
    alice = replica.open()
    token = stand(alice).value.token
    assert alice.run(CheckHold(token)).value is None
    alice.run(Resign("x", token))
    with pytest.raises(NotHolder):
        _ = alice.run(CheckHold(token)).value


@pytest.mark.middle
def test_it_replicates() -> None:
    check_fsm(Elections, examples=60)
