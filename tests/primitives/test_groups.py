"""The state machines of groups and partitions, command by command; and partitions over random stories of workers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tauraft.errors import InvalidArgument, MemberExists, Mismatch, NotHolder, TooLarge
from tauraft.fsm import FSM
from tauraft.testing import check_fsm
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_plugins.groups.members import Groups
from tauraft_plugins.groups.partitions import Partitions
from tauraft_primitives.fencing.messages import CheckHold
from tauraft_primitives.groups.messages import (
    GiveBackMember,
    IsMember,
    Join,
    LeaveGroup,
    ListMembers,
    UpdateMember,
)
from tauraft_primitives.locks.messages import WouldWait
from tauraft_primitives.partitions.messages import (
    AskPartitions,
    AwaitCall,
    GiveBackPartition,
    GiveBackWorker,
    HoldsPartition,
    JoinWorkers,
    LeaveWorkers,
    ReleasePartition,
    TakePartition,
)
from tests.primitives.harness import Harness, Reply, SessionOf


@pytest.fixture
def replica() -> Harness:
    return Harness(*HOLDERS, Fencing)


# ---- groups ----


def ids(replica: Harness, group: str = "g") -> list[str]:
    return [member.id for member in replica.query(ListMembers(group)).members]


def test_members_join_say_what_they_are_and_leave(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    first = alice.run(Join("g", "a", b"one")).value
    second = bob.run(Join("g", "b")).value
    made = alice.run(Join("g")).value
    assert ids(replica) == sorted(["a", "b", made.id])
    assert [member.id for member in replica.query(ListMembers("g", "a", 1)).members] == ["b"]
    alice.run(UpdateMember("g", "a", first.token, b"two"))
    (member, *_) = [member for member in replica.query(ListMembers("g")).members if member.id == "a"]
    assert (member.metadata, member.token, member.owner.session) == (b"two", first.token, alice.id)
    with pytest.raises(MemberExists):
        _ = bob.run(Join("g", "a")).value
    for command in (LeaveGroup("g", "a", second.token), UpdateMember("g", "x", first.token, b"")):
        with pytest.raises(NotHolder):
            _ = bob.run(command).value
    assert bob.run(CheckHold(first.token)).value is None
    alice.run(LeaveGroup("g", "a", first.token))
    assert replica.query(IsMember("g", "b", second.token)) and not replica.query(IsMember("g", "a", first.token))
    with pytest.raises(NotHolder):
        _ = bob.run(CheckHold(first.token)).value
    assert bob.run(Join("g", "a")).value.token > first.token


def test_members_go_with_their_session_all_in_one_revision(replica: Harness) -> None:
    alice, bob = replica.open(), replica.open()
    for group in ("g", "h"):
        alice.run(Join(group, "a"))
    bob.run(Join("g", "b"))
    before = replica.machine.revision
    alice.end()
    assert replica.machine.revision == before + 1
    assert (ids(replica), ids(replica, "h")) == (["b"], [])


def test_a_join_that_its_caller_never_learned_of_is_given_back(replica: Harness) -> None:
    alice = replica.open()
    alice.run(Join("g", "a", attempt=3))
    alice.run(GiveBackMember("g", 4))
    assert ids(replica) == ["a"]
    alice.run(GiveBackMember("g", 3))
    assert ids(replica) == []


def test_many_members_are_told_in_pages_that_are_not_too_large(replica: Harness) -> None:
    alice = replica.open()
    for number in range(40):
        alice.run(Join("g", f"{number:02}", b"x" * (60 << 10)))
    told, after = [], ""
    while True:
        page = replica.query(ListMembers("g", after))
        assert sum(len(member.metadata) for member in page.members) <= 1 << 20
        told += [member.id for member in page.members]
        if page.after is None:
            break
        after = page.after
    assert told == [f"{number:02}" for number in range(40)]


# ---- partitions ----


class WorkerOf:
    """A worker of the harness, with what it holds."""

    def __init__(self, session: SessionOf, partitions: int = 4, name: str = "p") -> None:
        self.session, self.name = session, name
        self.number = session.run(JoinWorkers(name, partitions)).value
        self.held: dict[int, int] = {}  # partition -> token
        self.calls: dict[int, Reply[None]] = {}

    def take_all(self) -> list[int]:
        """Everything that is free for it; what it took now."""
        taken = []
        while True:
            try:
                found = self.session.run(TakePartition(self.name, self.number, 0.0)).value
            except WouldWait:
                return taken
            assert found.partition not in self.held
            self.held[found.partition] = found.token
            self.calls[found.partition] = self.session.run(AwaitCall(self.name, found.partition, found.token))
            taken.append(found.partition)

    def called(self) -> list[int]:
        return [partition for partition, call in self.calls.items() if call.is_done]

    def let_go(self, partition: int) -> None:
        self.session.run(ReleasePartition(self.name, partition, self.held.pop(partition)))
        del self.calls[partition]


def test_a_worker_alone_has_all_and_shares_with_who_comes_when_it_lets_go(replica: Harness) -> None:
    first = WorkerOf(replica.open())
    assert first.take_all() == [0, 1, 2, 3]
    assert len(set(first.held.values())) == 4, "a token each"
    second = WorkerOf(replica.open())
    assert second.take_all() == [], "nothing before it is let go"
    moving = first.called()
    assert len(moving) == 2
    waits = second.session.run(TakePartition("p", second.number))
    assert not waits.is_done
    token = first.held[moving[0]]
    first.let_go(moving[0])
    assert waits.value.partition == moving[0] and waits.value.token > token
    with pytest.raises(NotHolder):
        _ = first.session.run(CheckHold(token)).value
    assert first.session.run(CheckHold(waits.value.token)).value is None
    info = replica.query(AskPartitions("p"))
    assert info is not None
    assert [owner.session for owner in info.workers] == [first.session.id, second.session.id]
    assert [part.next.session for part in info.partitions if part.next] == [second.session.id]


def test_nobody_gives_up_more_than_it_must(replica: Harness) -> None:
    workers = [WorkerOf(replica.open(), 10)]
    workers[0].take_all()
    for count in range(2, 6):
        before = {partition: place for place, worker in enumerate(workers) for partition in worker.held}
        workers.append(WorkerOf(replica.open(), 10))
        for worker in workers:
            for partition in worker.called():
                worker.let_go(partition)
        for worker in workers:
            worker.take_all()
        after = {partition: place for place, worker in enumerate(workers) for partition in worker.held}
        assert sorted(after) == list(range(10))
        moved = [partition for partition in after if after[partition] != before[partition]]
        assert all(after[partition] == count - 1 for partition in moved), "only to the one that came"
        sizes = [len(worker.held) for worker in workers]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("how", ["leaves", "is lost", "is given back"])
def test_what_a_worker_had_goes_to_the_others_when_it_goes(replica: Harness, how: str) -> None:
    first, second = WorkerOf(replica.open()), WorkerOf(replica.open())
    first.take_all()
    second.take_all()
    waits = second.session.run(TakePartition("p", second.number))
    if how == "leaves":
        first.session.run(LeaveWorkers("p", second.number))
        assert not waits.is_done, "not its own"
        first.session.run(LeaveWorkers("p", first.number))
        first.session.run(LeaveWorkers("p", first.number))
    elif how == "is lost":
        first.session.end()
    else:
        first.session.run(GiveBackWorker("p", 1))
        assert not waits.is_done
        first.session.run(GiveBackWorker("p", 0))
    assert waits.value.partition in first.held
    second.held[waits.value.partition] = waits.value.token
    second.take_all()
    assert sorted(second.held) == [0, 1, 2, 3]
    second.session.run(LeaveWorkers("p", second.number))
    assert replica.query(AskPartitions("p")) is None
    with pytest.raises(NotHolder):
        _ = second.session.run(TakePartition("p", second.number)).value


def test_a_taker_that_never_learned_what_it_got_gives_it_back(replica: Harness) -> None:
    worker = WorkerOf(replica.open(), 1)
    alice = worker.session
    taken = alice.run(TakePartition("p", worker.number, attempt=5))
    alice.withdraw(taken)
    again = alice.run(TakePartition("p", worker.number, attempt=6))
    assert again.is_done
    waits = alice.run(TakePartition("p", worker.number, attempt=7))
    alice.run(GiveBackPartition("p", 5))
    assert not waits.is_done
    alice.run(GiveBackPartition("p", 6))
    assert waits.is_done and replica.query(HoldsPartition("p", 0, waits.value.token))
    other = alice.run(TakePartition("p", worker.number))
    alice.withdraw(other)
    alice.run(ReleasePartition("p", 0, waits.value.token))
    assert worker.take_all() == [0]
    call = worker.calls[0]
    alice.withdraw(call)
    assert alice.run(AwaitCall("p", 0, 1)).is_done, "one that has ended is answered at once"


def test_another_number_of_partitions_is_a_mismatch(replica: Harness) -> None:
    WorkerOf(replica.open(), 4)
    with pytest.raises(Mismatch):
        _ = replica.open().run(JoinWorkers("p", 5)).value


class Sharing(RuleBasedStateMachine):
    """Workers that come, go, take, let go and die: no partition is ever held twice, and each is had by somebody in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.replica = Harness(Partitions)
        self.workers: list[WorkerOf] = []
        self.tokens: set[int] = set()

    @precondition(lambda self: len(self.workers) < 4)
    @rule(shares=st.booleans())
    def join(self, shares: bool) -> None:
        session = self.workers[0].session if shares and self.workers else self.replica.open()
        self.workers.append(WorkerOf(session, 5))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        for partition in worker.take_all():
            token = worker.held[partition]
            assert token not in self.tokens
            self.tokens.add(token)

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.held]))
        worker.let_go(data.draw(st.sampled_from(sorted(worker.held))))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        worker.session.run(LeaveWorkers("p", worker.number))
        self.workers.remove(worker)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), learned=st.booleans())
    def lose(self, data: st.DataObject, learned: bool) -> None:
        session = data.draw(st.sampled_from(self.workers)).session
        if learned:
            session.learn()
        session.end()
        self.workers = [worker for worker in self.workers if worker.session is not session]

    @rule()
    def restore(self) -> None:
        self.replica.restore()

    @invariant()
    def no_partition_is_held_twice(self) -> None:
        held = [partition for worker in self.workers for partition in worker.held]
        assert len(held) == len(set(held))
        tokens = {token for worker in self.workers for token in worker.held.values()}
        assert set(self.replica.fsm(Partitions).tokens) == tokens

    @invariant()
    def who_holds_too_much_was_called(self) -> None:
        rows = self.replica.fsm(Partitions).assigned
        for worker in self.workers:
            for partition in worker.held:
                is_wanted = rows["p", partition].target != worker.number
                assert worker.calls[partition].is_done or not is_wanted

    def teardown(self) -> None:
        if self.workers:
            for worker in self.workers:
                for partition in worker.called():
                    worker.let_go(partition)
            for worker in self.workers:
                worker.take_all()
            sizes = [len(worker.held) for worker in self.workers]
            assert sum(sizes) == 5 and max(sizes) - min(sizes) <= 1
        for session in {worker.session for worker in self.workers}:
            session.end()
        assert [table.name for table in self.replica.fsm(Partitions).tables() if len(table)] == []


@pytest.mark.middle
def test_random_stories_of_workers_never_overlap() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Sharing,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Join(""), InvalidArgument),
        (lambda: Join("g", ""), InvalidArgument),
        (lambda: Join("g", None, b"x" * (1 << 17)), TooLarge),
        (lambda: JoinWorkers("p", 0), InvalidArgument),
        (lambda: JoinWorkers("p", 1 << 20), InvalidArgument),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_made(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


@pytest.mark.middle
@pytest.mark.parametrize("fsm", [Groups, Partitions])
def test_they_replicate(fsm: type[FSM]) -> None:
    check_fsm(fsm, examples=40)
