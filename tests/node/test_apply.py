"""What entries mean, seen from the log: exactly once, withdrawals, timers, and what no plugin or client can do to a replica."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tauraft import errors
from tauraft.core.messages import Entry, EntryKind, SnapshotMeta
from tauraft.errors import CommandFailed, InvalidCommand, PluginMissing, Refused, SessionLost
from tauraft.fsm import FSM, Command, Context, Query, Table, Ticket, answers, applies, session_ended, withdraws
from tauraft.node.apply import MAX_WALL_STEPS, Machine
from tauraft.node.batch import encode_batch
from tauraft.node.replica import AnswerKind, Item, Outcome
from tauraft.payloads import decode_answer, encode_message
from tauraft.plugin_manager import Registry
from tauraft.system.messages import Activate, Close, KeepAlive, Open, SetWall, Tick, Transaction, Withdraw
from tauraft.system.sessions import MAX_OUTSTANDING
from tauraft.system.timers import MAX_FIRED_PER_ENTRY
from tests.primitives.harness import SECOND_NS, Harness, Reply, SessionOf

DESK = "test.desk"


@dataclass(frozen=True, slots=True)
class Note(Command[int], fsm=DESK):
    """Writes a line down; the answer is the revision."""

    text: str


@dataclass(frozen=True, slots=True)
class Take(Command[int], fsm=DESK):
    """Waits for the desk; the answer is the revision of the grant."""


@dataclass(frozen=True, slots=True)
class Leave(Command[None], fsm=DESK):
    """Gives the desk to the next, with an answer of the kind given."""

    answer: str = "good"


@dataclass(frozen=True, slots=True)
class Fail(Command[int], fsm=DESK):
    how: str


@dataclass(frozen=True, slots=True)
class Later(Command[None], fsm=DESK):
    """Runs ``how`` as a timer after ``seconds``, ``times`` times over."""

    seconds: int
    how: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class OnWall(Command[None], fsm=DESK):
    """A note when the wall clock reaches ``at_ns``."""

    at_ns: int


@dataclass(frozen=True, slots=True)
class Lines(Query[tuple[str, ...]], fsm=DESK):
    pass


class Strange(Refused):
    number: int = 0
    wire_attributes = ("number",)


class Desk(FSM, name=DESK, version=1):
    lines: Table[int, str]
    holder: Table[str, Ticket[int]]
    waiting: Table[int, Ticket[int]]

    @applies(Note)
    def note(self, command: Note, context: Context) -> int:
        self.lines[context.revision] = command.text
        return context.revision

    @applies(Take)
    def take(self, command: Take, context: Context) -> int | Ticket[int]:
        ticket = context.wait(Take)
        if "desk" in self.holder:
            self.waiting[context.revision] = ticket
            return ticket
        self.holder["desk"] = ticket
        return context.revision

    @withdraws(Take)
    def give_up(self, command: Take, ticket: Ticket[int], context: Context) -> None:
        if self.waiting.pop(ticket.revision, None) is None and self.holder.get("desk") == ticket:
            self._next("good", context)

    @applies(Leave)
    def leave(self, command: Leave, context: Context) -> None:
        self._next(command.answer, context)

    @session_ended
    def ended(self, session: int, context: Context) -> None:
        holder = self.holder.get("desk")
        if holder is not None and holder.session == session:
            self._next("good", context)

    def _next(self, answer: str, context: Context) -> None:
        self.holder.pop("desk", None)
        first = self.waiting.first()
        if first is not None:
            key, ticket = first
            del self.waiting[key]
            self.holder["desk"] = ticket
            wrong: Any = {"good": context.revision, "wrong type": "text", "refusal": Refused("no", "not today")}[answer]
            context.answer(ticket, wrong)

    @applies(Fail)
    def fail(self, command: Fail, context: Context) -> int:
        self.lines[context.revision] = "undone"
        match command.how:
            case "refuse":
                raise Refused("no", "not today")
            case "refuse strangely":
                raise Strange("no", "\ud800", number=1 << 80)
            case "memory":
                raise MemoryError
            case "depth":
                raise RecursionError
            case "disk":
                raise OSError(5, "Input/output error")
            case "interrupt":
                raise KeyboardInterrupt
            case "wrong answer":
                return "text"  # type: ignore[return-value]
            case _:
                raise ZeroDivisionError(command.how)

    @applies(Later)
    def later(self, command: Later, context: Context) -> None:
        for number in range(command.times):
            context.schedule(
                f"{command.how}{number}", context.now_ns + command.seconds * SECOND_NS, _TIMED[command.how]
            )

    @applies(OnWall)
    def on_wall(self, command: OnWall, context: Context) -> None:
        context.schedule("wall", command.at_ns, Note("wall"), clock="wall")

    @answers(Lines)
    def all_lines(self, query: Lines) -> tuple[str, ...]:
        return tuple(self.lines.values())


_TIMED: dict[str, Command[Any]] = {"note": Note("timer"), "raise": Fail("bug")}


@pytest.fixture
def desk() -> Harness:
    return Harness(Desk)


def again(
    desk: Harness, session: SessionOf, reply: Reply[Any], *, acked_below: int = 0, message: Any = None
) -> Outcome | None:
    """A second copy of a command arrives in the log; what it is answered with."""
    payload = desk.registry.encode(message or reply.message)
    item = Item(session.id, reply.sequence, acked_below, 0, payload, None)
    machine = desk.machine
    data = encode_batch(desk.now_ns, desk.wall_ns, "leader", [item])
    outcomes, _ = machine.apply(Entry(machine.applied_index + 1, 1, EntryKind.BATCH, data))
    return outcomes[0] if outcomes else None


def lines(desk: Harness) -> tuple[str, ...]:
    return desk.query(Lines())


# ---- revision, sessions, exactly once ----


def test_every_executed_command_has_a_revision_of_its_own_and_entries_have_none(desk: Harness) -> None:
    alice = desk.open()
    before = desk.machine.revision
    items = [Item(alice.id, n, 0, 0, encode_message(Note(str(n))), None) for n in (1, 2, 3)]
    replies = [Reply(Note(""), n) for n in (1, 2, 3)]
    for reply in replies:
        desk.expect(alice.id, reply)
    desk.commit(items)
    assert [reply.value for reply in replies] == [before + 1, before + 2, before + 3], "one entry, three revisions"
    index = desk.machine.applied_index
    desk.machine.skip(index + 1, 1)
    alice._next = 4
    assert alice.run(Note("4")).value == before + 4, "entries without commands have none"


def test_the_parts_of_a_transaction_and_a_timer_have_revisions_too(desk: Harness) -> None:
    alice = desk.open()
    before = desk.machine.revision
    parts = alice.run(Transaction((encode_message(Note("a")), encode_message(Note("b")))))
    assert [decode_answer(Note(""), part) for part in parts.value] == [before + 1, before + 2]
    alice.run(Later(1, "note"))
    desk.advance(2)
    assert alice.run(Note("c")).value == before + 5


def test_a_copy_of_an_answered_command_is_given_the_same_answer_and_does_not_run(desk: Harness) -> None:
    alice = desk.open()
    first = alice.run(Note("once"))
    copy = again(desk, alice, first)
    assert copy is not None and decode_answer(first.message, copy.data) == first.value
    assert lines(desk) == ("once",)


def test_a_refusal_and_a_failure_are_stored_answers_too(desk: Harness) -> None:
    alice = desk.open()
    for how, kind in (("refuse", Refused), ("bug", CommandFailed)):
        reply = alice.run(Fail(how))
        with pytest.raises(kind):
            _ = reply.value
        copy = again(desk, alice, reply)
        assert copy == reply.outcome
    assert lines(desk) == ()


def test_a_sequence_below_the_floor_never_runs(desk: Harness) -> None:
    alice = desk.open()
    first = alice.run(Note("once"))
    second = Reply(Note("second"), 2)
    assert again(desk, alice, second, acked_below=2) is not None
    assert again(desk, alice, first) is None
    assert lines(desk) == ("once", "second")


def test_what_is_not_below_the_acknowledged_is_kept(desk: Harness) -> None:
    alice = desk.open()
    first, second = alice.run(Note("first")), alice.run(Note("second"))
    assert again(desk, alice, Reply(Note("third"), 3), acked_below=2) is not None
    assert again(desk, alice, first) is None
    assert again(desk, alice, second) == second.outcome
    assert lines(desk) == ("first", "second", "third")


def test_answers_are_kept_until_acknowledged_whatever_the_order(desk: Harness) -> None:
    alice = desk.open()
    late = Reply(Note("third"), 3)
    assert again(desk, alice, late) is not None
    assert again(desk, alice, Reply(Note("first"), 1)) is not None, "a lower one that comes later runs all the same"
    assert lines(desk) == ("third", "first")
    assert again(desk, alice, late) is not None
    session = desk.machine.sessions.get(alice.id)
    assert session is not None and sorted(session.answers) == [1, 3]


def test_another_command_under_a_used_sequence_is_refused(desk: Harness) -> None:
    alice = desk.open()
    first = alice.run(Note("once"))
    other = again(desk, alice, first, message=Note("twice"))
    assert other is not None and isinstance(errors.decode(other.data), InvalidCommand)
    assert lines(desk) == ("once",)


def test_a_session_that_ended_is_never_opened_again_and_runs_nothing(desk: Harness) -> None:
    alice = desk.open()
    first = alice.run(Note("once"))
    alice.end()
    copy = again(desk, alice, first)
    assert copy is not None
    lost = errors.decode(copy.data)
    assert isinstance(lost, SessionLost) and lost.outcome == "unknown"
    assert desk.open().id > alice.id
    assert lines(desk) == ("once",)


def test_a_session_that_acknowledges_nothing_is_refused_and_then_ended(desk: Harness) -> None:
    alice = desk.open()
    session = desk.machine.sessions.get(alice.id)
    assert session is not None
    reply = alice.run(Note("once"))
    answer = session.answers[reply.sequence]
    for sequence in range(2, MAX_OUTSTANDING + 1):
        session.answers[sequence] = answer
    full = Reply(Note("too many"), MAX_OUTSTANDING + 1)
    for _ in range(2):
        outcome = again(desk, alice, full)
        assert outcome is not None and errors.decode(outcome.data).code == "too-many-outstanding"
    for sequence in range(MAX_OUTSTANDING + 2, 2 * MAX_OUTSTANDING + 1):
        session.answers[sequence] = answer
    assert again(desk, alice, Reply(Note("still more"), 2 * MAX_OUTSTANDING + 1)) is not None
    assert desk.machine.sessions.get(alice.id) is None
    assert lines(desk) == ("once",)


def test_sessions_their_answers_and_their_waits_are_in_the_snapshot(desk: Harness) -> None:
    alice, bob = desk.open(), desk.open()
    noted, held, waits = alice.run(Note("once")), alice.run(Take()), bob.run(Take())
    view = desk.machine.freeze()
    rows = [row for piece in view.slices(3) for row in piece]
    other = Machine(desk.registry)
    other.load(SnapshotMeta(view.index, view.term, view.membership), view.extra, iter(rows))
    view.close()
    desk.machine = other
    copy = again(desk, alice, noted)
    assert copy is not None and decode_answer(noted.message, copy.data) == noted.value
    assert lines(desk) == ("once",)
    alice.run(Leave())
    assert waits.value > held.value


# ---- withdrawals ----


def test_a_withdrawn_wait_leaves_no_ghost_and_its_late_copy_never_runs(desk: Harness) -> None:
    alice, bob, carol = desk.open(), desk.open(), desk.open()
    alice.run(Take())
    second, third = bob.run(Take()), carol.run(Take())
    bob.withdraw(second)
    assert second.is_withdrawn
    alice.run(Leave())
    assert third.value
    copy = again(desk, bob, second)
    assert copy is not None and copy.kind is AnswerKind.WITHDRAWN


def test_a_withdrawal_that_comes_before_its_command_stops_it(desk: Harness) -> None:
    alice, bob = desk.open(), desk.open()
    desk.system(Withdraw(alice.id, 1))
    copy = again(desk, alice, Reply(Take(), 1))
    assert copy is not None and copy.kind is AnswerKind.WITHDRAWN
    assert bob.run(Take()).value, "nobody has it"


def test_withdrawing_an_unacknowledged_grant_gives_it_to_the_next(desk: Harness) -> None:
    alice, bob = desk.open(), desk.open()
    first, second = alice.run(Take()), bob.run(Take())
    alice.withdraw(first)
    assert first.is_withdrawn
    assert second.value


def test_withdrawing_what_cannot_be_undone_says_that_it_stands(desk: Harness) -> None:
    alice = desk.open()
    reply = alice.run(Note("once"))
    value = reply.value
    alice.withdraw(reply)
    assert reply.outcome is not None and reply.outcome.kind is AnswerKind.STANDS
    assert reply.value == value


def test_a_wait_gives_up_by_itself_when_nobody_withdraws_it(desk: Harness) -> None:
    alice, bob = desk.open(), desk.open()
    alice.run(Take())
    waits = bob.run(Take(), wait_s=5)
    desk.advance(4)
    assert not waits.is_done
    desk.advance(2)
    assert waits.is_withdrawn


def test_the_patience_of_a_granted_wait_takes_nothing_back(desk: Harness) -> None:
    alice, bob = desk.open(), desk.open()
    alice.run(Take())
    waits = bob.run(Take(), wait_s=5)
    alice.run(Leave())
    granted = waits.value
    desk.advance(6)
    assert waits.value == granted
    assert not alice.run(Take()).is_done


def test_when_a_session_ends_its_waits_and_untaken_grants_are_given_back(desk: Harness) -> None:
    alice, bob, carol = desk.open(), desk.open(), desk.open()
    alice.run(Take())
    bob.run(Take())
    third = carol.run(Take())
    bob.end()
    alice.end()
    assert third.value
    assert not desk.fsm(Desk).waiting


def test_a_command_that_may_wait_is_refused_in_a_transaction_also_where_it_would_not(desk: Harness) -> None:
    # A grant inside a transaction could not be withdrawn by a caller who never learned of it.
    alice, bob = desk.open(), desk.open()
    reply = alice.run(Transaction((encode_message(Note("a")), encode_message(Take()))))
    with pytest.raises(InvalidCommand):
        _ = reply.value
    assert lines(desk) == ()
    assert bob.run(Take()).value


# ---- what no plugin and no client can do to a replica ----


def test_an_answer_of_a_wrong_type_to_a_waiting_caller_fails_the_command_that_gave_it(desk: Harness) -> None:
    alice, bob = desk.open(), desk.open()
    alice.run(Take())
    waits = bob.run(Take())
    with pytest.raises(CommandFailed):
        _ = alice.run(Leave("wrong type")).value
    assert not waits.is_done, "undone as a whole"
    alice.run(Leave())
    assert waits.value


def test_a_waiting_caller_may_be_answered_with_a_refusal(desk: Harness) -> None:
    alice, bob = desk.open(), desk.open()
    alice.run(Take())
    waits = bob.run(Take())
    alice.run(Leave("refusal"))
    with pytest.raises(Refused, match="not today"):
        _ = waits.value


@pytest.mark.parametrize("how", ["refuse", "refuse strangely", "wrong answer", "a bug"])
def test_a_plugins_failure_is_an_answer_and_undone(desk: Harness, how: str) -> None:
    reply = desk.open().run(Fail(how))
    with pytest.raises((Refused, CommandFailed)):
        _ = reply.value
    assert lines(desk) == ()


@pytest.mark.parametrize(
    ("how", "kind"),
    [("memory", MemoryError), ("depth", RecursionError), ("disk", OSError), ("interrupt", KeyboardInterrupt)],
)
@pytest.mark.parametrize("by_timer", [False, True])
def test_what_may_differ_between_replicas_stops_this_one(
    desk: Harness, how: str, kind: type[BaseException], by_timer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = desk.open()
    if by_timer:
        monkeypatch.setitem(_TIMED, "raise", Fail(how))
        alice.run(Later(1, "raise"))
    with pytest.raises(kind):
        desk.advance(2) if by_timer else alice.run(Fail(how))


@pytest.mark.parametrize(
    "command",
    [
        lambda: Open(b"n", b"", (1 << 63) - 1, "p", "h", 1, None),
        lambda: Open(b"n", b"", 0, "p", "h", 1, None),
        lambda: KeepAlive(((12345, 1),)),
        lambda: Close(12345),
        lambda: Withdraw(12345, 1),
    ],
)
def test_no_command_of_the_system_stops_a_replica(desk: Harness, command: Callable[[], Command[Any]]) -> None:
    desk.system(command())
    desk.advance(1)
    assert desk.open().run(Note("on it goes")).value


def test_no_patience_is_too_long(desk: Harness) -> None:
    alice, bob = desk.open(), desk.open()
    alice.run(Take())
    waits = Reply(Take(), 1)
    item = Item(bob.id, 1, 0, (1 << 63) - 1, encode_message(Take()), None)
    desk.expect(bob.id, waits)
    desk.commit([item])
    alice.run(Leave())
    assert waits.value


# ---- time ----


def test_an_entry_fires_the_timers_due_at_its_stamp_before_its_commands(desk: Harness) -> None:
    alice = desk.open()
    alice.run(Later(5, "note"))
    desk.now_ns += 5 * SECOND_NS
    alice.run(Note("after"))
    assert lines(desk) == ("timer", "after")


def test_a_renewal_at_the_deadline_is_too_late_and_one_before_it_is_not(desk: Harness) -> None:
    in_time, late = desk.open(ttl_s=10), desk.open(ttl_s=10)
    desk.now_ns += 10 * SECOND_NS - 1
    desk.system(KeepAlive(((in_time.id, 1),)))
    desk.now_ns += 1
    desk.system(KeepAlive(((late.id, 1),)))
    assert desk.machine.sessions.get(in_time.id) is not None
    assert desk.machine.sessions.get(late.id) is None


def test_a_renewal_at_the_deadline_is_too_late_also_behind_more_timers_than_an_entry_fires(desk: Harness) -> None:
    alice, bob = desk.open(), desk.open(ttl_s=10)
    alice.run(Later(5, "note", MAX_FIRED_PER_ENTRY))
    desk.now_ns += 10 * SECOND_NS
    desk.system(KeepAlive(((bob.id, 1),)))
    assert desk.machine.sessions.get(bob.id) is None


def test_what_only_renews_sessions_and_moves_their_timers_is_told_from_what_somebody_waits_for(desk: Harness) -> None:
    """The first goes to followers with the next heartbeat, and lets an idle leader go on beating slowly."""
    alice = desk.open(ttl_s=10)
    assert not desk.machine.only_renewed, "a session was opened"
    desk.now_ns += 5 * SECOND_NS
    desk.system(KeepAlive(((alice.id, 1),)))
    assert desk.machine.only_renewed
    desk.now_ns += 5 * SECOND_NS
    desk.system(Tick())
    assert desk.machine.sessions.get(alice.id) is not None
    assert desk.machine.only_renewed, "its timer was looked at, and moved"
    alice.run(Note("something"))
    assert not desk.machine.only_renewed
    desk.now_ns += 10 * SECOND_NS
    desk.system(Tick())
    assert not desk.machine.only_renewed, "it has expired"


def test_an_entry_fires_so_many_timers_and_the_next_one_the_rest(desk: Harness) -> None:
    alice = desk.open()
    alice.run(Later(1, "note", MAX_FIRED_PER_ENTRY + 3))
    desk.now_ns += SECOND_NS
    assert desk.machine.has_backlog(desk.now_ns, desk.wall_ns)
    desk.system(Tick())
    assert len(lines(desk)) == MAX_FIRED_PER_ENTRY
    assert not desk.machine.has_backlog(desk.now_ns, desk.wall_ns)
    desk.system(Tick())
    assert len(lines(desk)) == MAX_FIRED_PER_ENTRY + 3


def test_a_timer_that_raises_is_undone_and_does_not_fire_again(desk: Harness) -> None:
    alice = desk.open()
    alice.run(Later(1, "raise"))
    alice.run(Later(1, "note"))
    desk.advance(2)
    assert lines(desk) == ("timer",)
    assert desk.machine.next_deadline_ns() is None or desk.machine.next_deadline_ns() > desk.now_ns  # type: ignore[operator]


def test_now_never_goes_back_whatever_an_entry_says(desk: Harness) -> None:
    desk.advance(10)
    now = desk.machine.now_ns
    desk.now_ns -= 5 * SECOND_NS
    desk.system(Tick())
    assert desk.machine.now_ns == now


# ---- reads, and what decides results ----


def test_applied_advances_when_the_whole_entry_is_applied_and_not_before(desk: Harness) -> None:
    alice = desk.open()
    machine = desk.machine
    before, seen = machine.applied_index, []

    def look(command: Any, context: Any) -> int:
        seen.append((machine.applied_index, context.index))
        return context.revision

    handlers = machine._handlers
    alice.run(Note("first"))
    fsm, _ = handlers[Note]
    handlers[Note] = (fsm, lambda on, command, context: look(command, context))
    for number in (2, 3):
        desk.expect(alice.id, Reply(Note(""), number))
    desk.commit([Item(alice.id, number, 0, 0, encode_message(Note(str(number))), None) for number in (2, 3)])
    assert seen == [(before + 1, before + 2)] * 2 and machine.applied_index == before + 2


def with_data(version: str) -> type[FSM]:
    class Dated(FSM, name="test.dated", version=1):
        decided_by = (version,)
        rows: Table[str, int]

    return Dated


def test_a_plugin_whose_data_differs_is_not_run_and_stops_before_the_entry_that_would() -> None:
    ours, theirs = Registry([with_data("tzdata 2025.1")]), Registry([with_data("tzdata 2026.1")])
    ((name, version, digest),) = theirs.supported()
    assert not ours.can_run(name, version, digest)
    assert Registry([with_data("tzdata 2026.1")]).can_run(name, version, digest), "and a copy of it is"
    replica = Harness()
    replica.registry.add(with_data("tzdata 2025.1"))
    with pytest.raises(PluginMissing):
        replica.system(Activate(name, version, digest))
    assert name not in replica.machine.system.manifest


def test_a_wall_clock_set_back_is_on_record_and_fires_every_timer_on_it(desk: Harness) -> None:
    alice = desk.open()
    desk.wall_ns += 3_600 * SECOND_NS
    alice.run(OnWall(desk.wall_ns + 60 * SECOND_NS))
    ahead = desk.wall_ns
    desk.set_wall_back(3_600)
    assert desk.machine.wall_ns == ahead - 3_600 * SECOND_NS
    assert len(lines(desk)) == 1, "it fired early, to look again"
    (step,) = desk.machine.system.wall_steps.values()
    assert (step.from_ns, step.to_ns, step.leader) == (ahead, desk.wall_ns, "leader")
    desk.system(SetWall(ahead))
    assert desk.machine.wall_ns == desk.wall_ns, "it never goes ahead this way"
    for _ in range(MAX_WALL_STEPS + 5):
        desk.set_wall_back(40)
    assert len(desk.machine.system.wall_steps) == MAX_WALL_STEPS
