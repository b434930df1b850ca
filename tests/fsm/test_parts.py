"""Commands that run other plugins' commands, and queries that know when they are asked. Covers: decision 0007."""

from __future__ import annotations

from typing import Any

import pytest

from tauraft import errors
from tauraft.fsm import Message
from tauraft.payloads import decode_answer, encode_message
from tauraft.system.messages import Barrier, Close, Transaction
from tauraft_plugins.fencing.fsm import Fencing
from tauraft_plugins.locks.fsm import Locks
from tauraft_primitives.fencing.messages import CheckHold
from tauraft_primitives.locks.messages import Acquire, Info
from tests.primitives.harness import Harness, SessionOf
from tests.watch.board import Board, Clear, Pin, PinMany, Read, RunAll


@pytest.fixture
def replica() -> Harness:
    return Harness(Board, Locks, Fencing)


@pytest.fixture
def alice(replica: Harness) -> SessionOf:
    return replica.open()


def run_all(*parts: Message[Any], forgive: bool = False) -> RunAll:
    return RunAll(tuple(encode_message(part) for part in parts), forgive)


def test_parts_run_in_order_each_with_its_revision_and_as_one_frame(replica: Harness, alice: SessionOf) -> None:
    parts = (Pin("a", "one"), Read("a"), Pin("b", "two"), Clear("a"))
    answers = alice.run(run_all(*parts)).value
    first, read, second, cleared = (decode_answer(part, data) for part, data in zip(parts, answers, strict=True))
    assert (read, cleared) == ("one", 1)
    assert second == first + 1
    [frame] = replica.machine.change_log.frames(replica.machine.change_log.end - 1)
    assert (frame.first, frame.revision) == (first - 1, second + 1)
    assert [change[1] for change in frame.changes] == ["b"]


def test_parts_may_be_of_any_plugin_and_one_that_is_refused_undoes_all(replica: Harness, alice: SessionOf) -> None:
    token = alice.run(Acquire("x")).value.token
    alice.run(run_all(CheckHold(token), Pin("a", "x"))).value  # noqa: B018
    assert replica.query(Read("a")) == "x"
    with pytest.raises(errors.NotHolder):
        alice.run(run_all(Pin("b", "x"), CheckHold(token + 1))).value  # noqa: B018
    assert replica.query(Read("b")) is None


def test_a_refused_part_that_is_forgiven_leaves_nothing_behind(replica: Harness, alice: SessionOf) -> None:
    inner = run_all(Pin("inner", "x"), CheckHold(12345))
    assert len(alice.run(run_all(Pin("a", "x"), inner, Pin("b", "y"), forgive=True)).value) == 2
    assert [replica.query(Read(name)) for name in ("a", "inner", "b")] == ["x", None, "y"]


def test_a_part_that_would_wait_is_refused(replica: Harness, alice: SessionOf) -> None:
    replica.open().run(Acquire("x"))
    with pytest.raises(errors.InvalidCommand, match="may wait"):
        alice.run(run_all(Pin("a", "x"), Acquire("x"))).value  # noqa: B018
    assert replica.query(Read("a")) is None
    assert replica.query(Info("x")).waiters == ()


def test_the_system_commands_that_end_sessions_are_no_parts(replica: Harness, alice: SessionOf) -> None:
    bob = replica.open()
    for part in (run_all(Close(bob.id)), Transaction((encode_message(Close(bob.id)),))):
        with pytest.raises(errors.InvalidCommand):
            alice.run(part).value  # noqa: B018
    assert replica.machine.sessions.get(bob.id) is not None
    assert alice.run(run_all(Barrier())).value


def test_nesting_without_end_is_refused_and_stops_nobody(replica: Harness, alice: SessionOf) -> None:
    nested: Any = run_all(Pin("a", "x"))
    for _ in range(7):
        nested = run_all(nested)
    alice.run(nested).value  # noqa: B018
    with pytest.raises(errors.InvalidCommand, match="deep"):
        alice.run(run_all(nested)).value  # noqa: B018
    for _ in range(2_000):
        nested = run_all(nested)
    with pytest.raises(errors.InvalidCommand, match="deep"):
        alice.run(nested).value  # noqa: B018


def test_one_command_runs_a_bounded_number_of_parts(replica: Harness, alice: SessionOf) -> None:
    with pytest.raises(errors.InvalidCommand, match="at most 10000 parts"):
        alice.run(run_all(*[Barrier()] * 10_001, forgive=False)).value  # noqa: B018


def test_a_part_of_no_plugin_or_no_command_is_refused(alice: SessionOf) -> None:
    for part in (b"", b"\xc0", b"\x93\xa1a\xa1b\x80"):
        with pytest.raises((errors.InvalidCommand, errors.CommandFailed)):
            alice.run(RunAll((part,))).value  # noqa: B018


def test_a_query_reads_the_recent_past_but_not_inside_a_transaction(replica: Harness, alice: SessionOf) -> None:
    first = alice.run(Pin("a", "one")).value
    second = alice.run(Pin("a", "two")).value
    alice.run(PinMany("b", 3, "x"))
    alice.run(Clear(""))
    assert [replica.query(Read("a", at)) for at in (first - 1, first, second, second + 1, None)] == [
        None, "one", "two", "two", None,
    ]  # fmt: skip
    with pytest.raises(errors.InvalidCommand, match="not reached"):
        replica.query(Read("a", replica.machine.revision + 1))
    with pytest.raises(errors.InvalidCommand, match="past"):
        alice.run(run_all(Read("a", first))).value  # noqa: B018


def test_a_revision_inside_a_transaction_is_that_of_the_whole(replica: Harness, alice: SessionOf) -> None:
    before = alice.run(Pin("a", "before")).value
    alice.run(run_all(Pin("a", "x"), Pin("b", "y")))
    last = replica.machine.revision
    assert [replica.query(Read(name, last - 1)) for name in "ab"] == ["x", "y"]
    assert [replica.query(Read(name, before)) for name in "ab"] == ["before", None]
