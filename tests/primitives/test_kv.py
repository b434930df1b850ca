"""The key-value state machine, by hand. Covers: PRIMITIVES "KV"."""

from __future__ import annotations

from typing import Any

import pytest

from tauraft import errors
from tauraft.fsm import Message
from tauraft.payloads import decode_answer, encode_message
from tauraft.types import Compare, Page
from tauraft_plugins.fencing.fsm import Fencing
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_plugins.locks.fsm import Locks
from tauraft_primitives.fencing.messages import CheckHold
from tauraft_primitives.kv.messages import (
    AdoptLease,
    Count,
    Delete,
    DeleteRange,
    Expire,
    Get,
    GrantLease,
    Items,
    Keys,
    LeaseEnds,
    Put,
    PutIf,
    RenewLease,
    RevokeLease,
    Transact,
    TransferLease,
    Write,
    WriteBatch,
)
from tauraft_primitives.locks.messages import Acquire
from tests.primitives.harness import Harness, SessionOf


@pytest.fixture
def replica() -> Harness:
    return Harness(KeyValue, Locks, Fencing)


@pytest.fixture
def alice(replica: Harness) -> SessionOf:
    return replica.open()


def keys(replica: Harness) -> list[str]:
    return list(replica.query(Keys()))


def test_revisions_and_versions_of_a_key(replica: Harness, alice: SessionOf) -> None:
    first = alice.run(Put("k", b"1")).value
    second = alice.run(Put("k", b"2")).value
    entry = replica.query(Get("k"))
    assert entry is not None
    assert (entry.value, entry.revision, entry.created_revision, entry.version) == (b"2", second, first, 2)
    alice.run(Delete("k"))
    third = alice.run(Put("k", b"3")).value
    entry = replica.query(Get("k"))
    assert entry is not None
    assert (entry.created_revision, entry.version) == (third, 1)


def test_a_conditional_put_refuses_what_differs(replica: Harness, alice: SessionOf) -> None:
    first = alice.run(PutIf("k", b"1", if_revision=0)).value.revision
    second = alice.run(PutIf("k", b"2", if_revision=first)).value
    assert second.previous is not None
    assert second.previous.value == b"1"
    for stale in (0, first, second.revision + 1):
        with pytest.raises(errors.CompareFailed):
            alice.run(PutIf("k", b"3", if_revision=stale)).value  # noqa: B018
    entry = replica.query(Get("k"))
    assert entry is not None
    assert entry.value == b"2"


def test_a_ttl_runs_by_cluster_time_and_a_later_put_outlives_it(replica: Harness, alice: SessionOf) -> None:
    alice.run(Put("gone", b"", 5))
    alice.run(Put("kept", b"", 5))
    replica.advance(3)
    alice.run(Put("kept", b""))
    entry = replica.query(Get("gone"))
    assert entry is not None
    assert entry.expires_in == pytest.approx(2)
    replica.advance(1.9)
    assert keys(replica) == ["gone", "kept"]
    replica.advance(0.2)
    assert keys(replica) == ["kept"]


def test_nobody_but_a_timer_expires_a_key_or_a_lease(replica: Harness, alice: SessionOf) -> None:
    revision = alice.run(Put("k", b"", 5)).value
    grant = alice.run(GrantLease(5)).value
    for forged in (Expire("k", revision), LeaseEnds(grant.id, grant.token)):
        with pytest.raises(errors.InvalidCommand):
            alice.run(forged).value  # noqa: B018
    assert keys(replica) == ["k"]


def test_pages_are_of_one_revision_whatever_is_written_between_them(replica: Harness, alice: SessionOf) -> None:
    for number in range(10):
        alice.run(Put(f"k{number}", b"old"))
    page = replica.query(Items("k", 4))
    revision = page.revision
    alice.run(Delete("k5"))
    alice.run(Put("k6", b"new"))
    alice.run(Put("k55", b"new"))
    found = list(page)
    while page.cursor is not None:
        page = replica.query(Items("k", 4, page.cursor))
        assert page.revision == revision
        found += page
        alice.run(DeleteRange("k", "l"))
    assert [(entry.key, entry.value) for entry in found] == [(f"k{n}", b"old") for n in range(10)]
    assert keys(replica) == []


def test_a_page_of_a_revision_that_is_forgotten_is_compacted(replica: Harness, alice: SessionOf) -> None:
    for number in range(4):
        first = alice.run(Put(f"k{number}", b"")).value
    page = replica.query(Keys("", 2))
    replica.machine.change_log._max_bytes = 1_000
    for _ in range(20):
        alice.run(Put("k", b"x" * 100))
    for query in (Keys("", 2, page.cursor), Get("k1", first)):
        with pytest.raises(errors.Compacted) as caught:
            replica.query(query)
        assert caught.value.oldest > first
        entry = replica.query(Get("k", caught.value.oldest))
        assert entry is not None
        assert entry.revision == caught.value.oldest


def test_a_page_of_large_values_is_cut_before_it_is_too_large_to_send(replica: Harness, alice: SessionOf) -> None:
    for number in range(9):
        alice.run(Put(f"k{number}", b"x" * (1 << 20)))
    sizes = []
    page: Page[Any] = replica.query(Items())
    while True:
        sizes.append(len(page))
        if page.cursor is None:
            break
        page = replica.query(Items("", None, page.cursor))
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize("cursor", ["", "x", "5", "5:other", ":", "99999999999999999999:k", "-1:k"])
def test_a_cursor_of_something_else_is_refused(replica: Harness, alice: SessionOf, cursor: str) -> None:
    alice.run(Put("k", b""))
    with pytest.raises(errors.InvalidCommand):
        replica.query(Keys("k", 1, cursor))


def test_a_prefix_is_counted_without_walking_it(replica: Harness, alice: SessionOf) -> None:
    for key in ("a", "b", "b/1", "b/2", "b\U0010ffff", "c"):
        alice.run(Put(key, b""))
    assert [replica.query(Count(prefix)) for prefix in ("", "b", "b/", "z")] == [6, 4, 2, 0]


def test_a_batch_is_one_revision_and_the_last_write_of_a_key_counts(replica: Harness, alice: SessionOf) -> None:
    revision = alice.run(WriteBatch((Write("a", b"1"), Write("b", b"2"), Write("a", None), Write("b", b"3")))).value
    [entry] = replica.query(Items())
    assert (entry.key, entry.value, entry.revision) == ("b", b"3", revision)


def transact(*when: Compare, then: list[Message[Any]], otherwise: list[Message[Any]] | None = None) -> Transact:
    return Transact(when, tuple(map(encode_message, then)), tuple(map(encode_message, otherwise or [])))


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (Compare("k", "exists", "==", True), True),
        (Compare("k", "exists", "!=", True), False),
        (Compare("none", "exists", "==", False), True),
        (Compare("k", "value", "==", b"b"), True),
        (Compare("k", "value", "<", b"c"), True),
        (Compare("k", "value", ">=", b"c"), False),
        (Compare("none", "value", "==", b""), False),
        (Compare("none", "value", "!=", b""), True),
        (Compare("none", "value", "<", b"z"), False),
        (Compare("k", "version", "==", 2), True),
        (Compare("k", "version", "<=", 1), False),
        (Compare("none", "version", "==", 0), True),
        (Compare("none", "revision", "==", 0), True),
        (Compare("k", "created_revision", ">", 0), True),
        (Compare("k", "revision", ">", 1 << 40), False),
    ],
)
def test_each_condition(replica: Harness, alice: SessionOf, compare: Compare, holds: bool) -> None:
    alice.run(Put("k", b"a"))
    alice.run(Put("k", b"b"))
    assert alice.run(transact(compare, then=[])).value.succeeded is holds


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("k", "value", "==", "text"), TypeError),
        (("k", "version", "==", True), TypeError),
        (("k", "exists", "==", 1), TypeError),
        (("k", "size", "==", 1), errors.InvalidArgument),
        (("k", "version", "=", 1), errors.InvalidArgument),
        (("k", "exists", "<", True), errors.InvalidArgument),
    ],
)
def test_a_wrong_condition_is_refused_when_it_is_made(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Compare(*arguments)


def test_a_transaction_runs_one_list_or_the_other_as_one_frame(replica: Harness, alice: SessionOf) -> None:
    command = transact(
        Compare("k", "exists", "==", False), then=[Put("k", b"1"), Put("l", b"2"), Get("k")], otherwise=[Delete("k")]
    )
    done = alice.run(command).value
    assert done.succeeded
    [first, second] = [decode_answer(Put("x", b""), data) for data in done.results[:2]]
    assert done.revision == second == first + 1
    assert decode_answer(Get("k"), done.results[2]).value == b"1"
    [frame] = replica.machine.change_log.frames(replica.machine.change_log.end - 1)
    assert frame.revision == second
    assert len(frame.changes) == 2
    again = alice.run(command).value
    assert not again.succeeded
    assert decode_answer(Delete("k"), again.results[0]) == 1
    assert keys(replica) == ["l"]


def test_transactions_nest(replica: Harness, alice: SessionOf) -> None:
    inner = transact(Compare("a", "exists", "==", True), then=[Put("b", b"")], otherwise=[Put("c", b"")])
    outer = transact(then=[Put("a", b""), inner, Delete("a"), inner])
    alice.run(outer).value  # noqa: B018
    assert keys(replica) == ["b", "c"]


def test_a_transaction_takes_commands_of_any_plugin_and_one_refusal_undoes_all(
    replica: Harness, alice: SessionOf
) -> None:
    token = alice.run(Acquire("x")).value.token
    alice.run(transact(then=[CheckHold(token), Put("k", b"")])).value  # noqa: B018
    with pytest.raises(errors.NotHolder):
        alice.run(transact(then=[Put("l", b""), CheckHold(token + 1)])).value  # noqa: B018
    with pytest.raises(errors.InvalidCommand):
        alice.run(transact(then=[Put("l", b""), Acquire("y")])).value  # noqa: B018
    assert keys(replica) == ["k"]


def test_too_many_parts_are_refused_before_they_are_sent() -> None:
    with pytest.raises(errors.TooLarge):
        Transact((), (b"",) * 1_001, ())


# ---- leases ----


def test_attached_keys_go_with_their_lease_in_one_revision(replica: Harness, alice: SessionOf) -> None:
    grant = alice.run(GrantLease(5)).value
    for key in ("a", "b", "c"):
        alice.run(PutIf(key, b"", attach=grant.id))
    entry = replica.query(Get("a"))
    assert entry is not None
    assert entry.lease == grant.id
    alice.run(Put("c", b"attached to nothing now"))
    replica.advance(4.9)
    assert keys(replica) == ["a", "b", "c"]
    replica.advance(0.2)
    assert keys(replica) == ["c"]
    [frame] = replica.machine.change_log.frames(replica.machine.change_log.end - 1)
    assert frame.session is None
    assert [key for table, key, _, _ in frame.changes if table == "tauraft.kv/kv"] == ["a", "b"]
    with pytest.raises(errors.NotHolder):
        alice.run(PutIf("d", b"", attach=grant.id)).value  # noqa: B018


def test_a_renewal_gives_the_whole_ttl_and_only_to_the_holder(replica: Harness, alice: SessionOf) -> None:
    grant = alice.run(GrantLease(5)).value
    replica.advance(4)
    alice.run(RenewLease(grant.id, grant.token)).value  # noqa: B018
    with pytest.raises(errors.NotHolder):
        alice.run(RenewLease(grant.id, grant.token + 1)).value  # noqa: B018
    replica.advance(4)
    assert replica.fsm(KeyValue).is_held(grant.token)
    replica.advance(2)
    assert not replica.fsm(KeyValue).is_held(grant.token)
    with pytest.raises(errors.NotHolder):
        alice.run(RenewLease(grant.id, grant.token)).value  # noqa: B018


def test_a_transferred_lease_keeps_its_keys_and_fences_who_had_it(replica: Harness, alice: SessionOf) -> None:
    bob = replica.open()
    grant = alice.run(GrantLease(5)).value
    alice.run(PutIf("k", b"", attach=grant.id))
    with pytest.raises(errors.NotHolder):
        bob.run(AdoptLease(grant.id, 5)).value  # noqa: B018
    alice.run(TransferLease(grant.id, grant.token, bob.id)).value  # noqa: B018
    adopted = bob.run(AdoptLease(grant.id, 20)).value
    assert adopted.id == grant.id
    assert adopted.token > grant.token
    with pytest.raises(errors.NotHolder):
        alice.run(CheckHold(grant.token)).value  # noqa: B018
    bob.run(CheckHold(adopted.token)).value  # noqa: B018
    alice.end()
    replica.advance(10)
    assert keys(replica) == ["k"]
    bob.end()
    assert keys(replica) == []


def test_a_session_takes_its_leases_and_its_own_keys_along(replica: Harness, alice: SessionOf) -> None:
    bob = replica.open()
    grant = alice.run(GrantLease(500)).value
    alice.run(PutIf("leased", b"", attach=grant.id))
    alice.run(PutIf("own", b"", attach=0))
    bob.run(PutIf("bobs", b"", attach=0))
    alice.run(Put("free", b""))
    alice.end()
    assert keys(replica) == ["bobs", "free"]
    kv = replica.fsm(KeyValue)
    assert not kv.leases and not kv.tokens and not kv.session_leases
    assert list(kv.attached) == [(bob.id, "bobs")]
    [frame] = replica.machine.change_log.frames(replica.machine.change_log.end - 1)
    assert frame.session is None


def test_a_revoked_lease_ends_at_once_and_once(replica: Harness, alice: SessionOf) -> None:
    grant = alice.run(GrantLease(5)).value
    alice.run(PutIf("k", b"", attach=grant.id))
    alice.run(RevokeLease(grant.id, grant.token)).value  # noqa: B018
    assert keys(replica) == []
    with pytest.raises(errors.NotHolder):
        alice.run(RevokeLease(grant.id, grant.token)).value  # noqa: B018
    replica.advance(10)


def test_a_grant_that_nobody_learned_of_is_withdrawn(replica: Harness, alice: SessionOf) -> None:
    reply = alice.run(GrantLease(5))
    token = reply.value.token
    alice.withdraw(reply)
    assert reply.is_withdrawn
    assert not replica.fsm(KeyValue).is_held(token)


def test_a_key_and_a_lease_of_one_name_have_timers_of_their_own(replica: Harness, alice: SessionOf) -> None:
    grant = alice.run(GrantLease(5)).value
    alice.run(Put(f"lease/{grant.id}", b"", 1))
    alice.run(Delete(f"lease/{grant.id}"))
    replica.advance(6)
    assert not replica.fsm(KeyValue).is_held(grant.token)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: GrantLease(0.4), errors.InvalidArgument),
        (lambda: GrantLease("5"), TypeError),  # type: ignore[arg-type]
        (lambda: GrantLease(True), TypeError),
        (lambda: PutIf("k", b"", if_absent=True, if_revision=5), errors.InvalidArgument),
    ],
)
def test_wrong_values_are_refused_when_a_message_is_made(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()
