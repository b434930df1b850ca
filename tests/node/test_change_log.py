"""The memory of what changed lately. Covers: SAFETY 30, DESIGN "A bounded in-memory change log"."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from tauraft.errors import Compacted
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_primitives.kv.messages import PutIf
from tests.primitives.harness import Harness
from tests.watch.board import Board, Clear, Note, Pin, PinMany


def test_it_never_weighs_more_than_its_bound_and_says_what_is_left() -> None:
    replica = Harness(Board)
    alice, log = replica.open(), replica.machine.change_log
    log._max_bytes = 100_000
    revisions = [alice.run(Pin("a", "x" * 1_000)).value for _ in range(500)]
    assert 0 < log._bytes <= 100_000
    kept = [frame.revision for frame in log.frames(log.number_after(log.base))]
    assert kept == revisions[-len(kept) :]
    assert log.base == revisions[-len(kept) - 1]
    table = log.table("acme.board/notes")
    assert table is not None
    assert log.at(table, log.base).get("a").revision == log.base
    with pytest.raises(Compacted) as caught:
        log.at(table, log.base - 1)
    assert caught.value.oldest == log.base


def test_a_change_larger_than_the_bound_is_not_kept() -> None:
    replica = Harness(Board)
    alice, log = replica.open(), replica.machine.change_log
    log._max_bytes = 10_000
    last = alice.run(PinMany("a", 1_000, "x" * 100)).value
    assert log.base == last
    assert log._bytes == 0


def test_numbers_of_frames_run_on_over_evictions() -> None:
    replica = Harness(Board)
    alice, log = replica.open(), replica.machine.change_log
    log._max_bytes = 2_000
    for turn in range(5_000):
        start = log.end
        revision = alice.run(Pin("a", "x" * (turn % 50))).value
        [frame] = log.frames(start)
        assert frame.revision == revision
    assert len(log._frames) < 5_000


def test_the_systems_own_tables_are_left_out() -> None:
    replica = Harness(Board)
    alice, log = replica.open(), replica.machine.change_log
    alice.run(Pin("a", "x", seconds=5.0))
    [frame] = log.frames(log.end - 1)
    assert [change[0] for change in frame.changes] == ["acme.board/notes"]
    assert log.table("tauraft.system/timers") is None


def test_a_sessions_end_is_one_frame_whatever_plugins_it_touches() -> None:
    replica = Harness(Board, KeyValue)
    alice, log = replica.open(), replica.machine.change_log
    alice.run(PinMany("a", 5, "x"))
    alice.run(PutIf("k", b"", attach=0))
    start = log.end
    alice.end()
    [frame] = log.frames(start)
    assert {change[0] for change in frame.changes} == {"acme.board/notes", "tauraft.kv/kv", "tauraft.kv/attached"}
    assert len(frame.changes) == 7
    assert frame.session is None


def test_a_snapshot_that_is_loaded_begins_it_anew() -> None:
    replica = Harness(Board)
    alice, log = replica.open(), replica.machine.change_log
    revision = alice.run(Pin("a", "x")).value
    view = replica.machine.freeze()
    rows = [row for rows in view.slices(100) for row in rows]
    from tauraft.core.messages import Membership, SnapshotMeta

    replica.machine.load(SnapshotMeta(view.index, view.term, Membership()), view.extra, iter(rows))
    view.close()
    assert (log.base, log.revision) == (revision, revision)
    table = log.table("acme.board/notes")
    assert table is not None
    assert log.at(table, revision).get("a") == Note("x", alice.id, revision)


COMMANDS = st.lists(
    st.one_of(
        st.builds(Pin, st.sampled_from("abc"), st.text(max_size=2)),
        st.builds(PinMany, st.sampled_from("abc"), st.integers(0, 3), st.text(max_size=2)),
        st.builds(Clear, st.sampled_from(["", "a", "b"])),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(COMMANDS, COMMANDS)
def test_the_past_is_what_was_there(before: list[Pin], after: list[Pin]) -> None:
    replica = Harness(Board)
    alice, log = replica.open(), replica.machine.change_log
    states: dict[int, list[tuple[str, Note]]] = {}
    for command in [*before, *after]:
        alice.run(command)
        states[replica.machine.revision] = list(replica.fsm(Board).notes.items())
    table = log.table("acme.board/notes")
    assert table is not None
    for revision, rows in states.items():
        past = log.at(table, revision)
        assert list(past.range()) == rows
        assert list(past.range("a0", "b")) == [(key, row) for key, row in rows if "a0" <= key < "b"]
        assert [past.get(key) for key, _ in rows] == [row for _, row in rows]
        assert past.get("nothing") is None
