"""A session and a command service, with an in-memory replica between them, under a mock clock.

The replica applies as decision 0001 says, with a lock that callers wait for; every link between the two can break at any message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from tauraft import errors
from tauraft.client import Connector, LinkFailed
from tauraft.codec import message_codec
from tauraft.command_protocol import AnswerKind, Hello, LeaderIs, Link, LinkUser, ToClient, ToReplica
from tauraft.command_service import CommandService
from tauraft.fsm import Command, Message, Query
from tauraft.node.replica import Item, LeaderInfo, Outcome, ReplicaListener, SessionEvent, StoredState
from tauraft.payloads import encode_message
from tauraft.session import Session, State, Submission
from tauraft.system import messages as system

S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Add(Command[int], fsm="test"):
    name: str


@dataclass(frozen=True, slots=True)
class Take(Command[int], fsm="test"):
    name: str


@dataclass(frozen=True, slots=True)
class Give(Command[bool], fsm="test"):
    name: str


@dataclass(frozen=True, slots=True)
class Count(Query[int], fsm="test"):
    name: str


KINDS = {(kind.fsm, kind.tag): kind for kind in (Add, Take, Give, Count, *system.MESSAGES)}


def clock() -> int:
    return int(trio.current_time() * 1e9)


class Books:
    """One session in the replica's state."""

    def __init__(self, secret_hash: bytes, ttl_ns: int, now: int) -> None:
        self.secret_hash, self.ttl_ns, self.expires = secret_hash, ttl_ns, now + ttl_ns
        self.floor = 1
        self.answers: dict[int, tuple[AnswerKind, bytes]] = {}
        self.tickets: dict[int, str] = {}
        self.grants: dict[int, str] = {}


class MemoryReplica:
    """One replica that commits whatever it takes, a moment later."""

    peer_id, namespace, cluster_id = "A", "/raft/test", b"c"

    def __init__(self) -> None:
        self.applied_index = 0
        self.revision = 0
        self.leader: LeaderInfo | None = LeaderInfo("A", ())
        self.sessions: dict[int, Books] = {}
        self.nonces: dict[bytes, int] = {}
        self.counts: dict[str, int] = {}
        self.held: dict[str, tuple[int, int]] = {}
        self.queue: list[tuple[int, int, str]] = []
        self.lose_proposals = 0
        self.taken: list[Item] = []
        self._log: list[Item] = []
        self._listeners: list[ReplicaListener] = []
        self._wake = trio.Event()
        self._later: list[tuple[int, Callable[[], object]]] = []

    @property
    def is_leader(self) -> bool:
        return self.leader is not None

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await trio.sleep(0.001)
            items, self._log = self._log, []
            self._apply(items)

    def propose(self, items: Sequence[Item]) -> None:
        if self.leader is None:
            raise errors.NoLeader("none")
        if self.lose_proposals:
            self.lose_proposals -= 1
            return
        self.taken += items
        self._log += items
        self._wake.set()

    def _apply(self, items: Sequence[Item]) -> None:
        self.applied_index += 1
        outcomes: list[Outcome] = []
        events: list[SessionEvent] = []
        for item in items:
            message = self.decode(item.payload)
            if item.session == 0:
                self._system(message, outcomes, events)
            else:
                self._of_session(item, message, outcomes)
        for listener in list(self._listeners):
            listener.applied(self.applied_index, outcomes, events)
        ready, self._later = self._later, []
        for index, done in ready:
            self.when_applied(index, done)

    def _of_session(self, item: Item, message: Message[Any], outcomes: list[Outcome]) -> None:
        books = self.sessions.get(item.session)
        if books is None:
            lost = errors.encode(errors.SessionLost("no such session"))
            outcomes.append(Outcome(item.session, item.sequence, AnswerKind.ERROR, lost))
            return
        self._acknowledge(books, item.acked_below)
        if item.sequence < books.floor or item.sequence in books.tickets:
            return
        if item.sequence in books.answers:
            outcomes.append(Outcome(item.session, item.sequence, *books.answers[item.sequence]))
            return
        self.revision += 1
        match message:
            case Add(name):
                self.counts[name] = self.counts.get(name, 0) + 1
                self._answer(item.session, item.sequence, self.counts[name], outcomes)
            case Take(name) if name in self.held:
                books.tickets[item.sequence] = name
                self.queue.append((item.session, item.sequence, name))
            case Take(name):
                self._grant(item.session, item.sequence, name, outcomes)
            case Give(name):
                self._answer(item.session, item.sequence, self.held.pop(name, None) is not None, outcomes)
                self._next(name, outcomes)

    def _acknowledge(self, books: Books, below: int) -> None:
        books.floor = max(books.floor, below)
        for table in (books.answers, books.grants):
            for sequence in [s for s in table if s < books.floor]:
                del table[sequence]  # type: ignore[attr-defined]

    def _answer(self, session: int, sequence: int, value: Any, outcomes: list[Outcome]) -> None:
        self.sessions[session].answers[sequence] = (AnswerKind.VALUE, msgpack.packb(value))
        outcomes.append(Outcome(session, sequence, AnswerKind.VALUE, msgpack.packb(value)))

    def _grant(self, session: int, sequence: int, name: str, outcomes: list[Outcome]) -> None:
        self.held[name] = (session, sequence)
        self.sessions[session].grants[sequence] = name
        self._answer(session, sequence, self.revision, outcomes)

    def _next(self, name: str, outcomes: list[Outcome]) -> None:
        for place, (session, sequence, wanted) in enumerate(self.queue):
            if wanted == name and name not in self.held:
                del self.queue[place]
                del self.sessions[session].tickets[sequence]
                self._grant(session, sequence, name, outcomes)
                return

    def _system(self, message: Message[Any], outcomes: list[Outcome], events: list[SessionEvent]) -> None:
        match message:
            case system.Open():
                if message.nonce not in self.nonces:
                    self.revision += 1
                    self.nonces[message.nonce] = self.revision
                    self.sessions[self.revision] = Books(message.secret_hash, message.ttl_ns, clock())
                events.append(SessionEvent("opened", self.nonces[message.nonce], message.nonce))
            case system.KeepAlive(pairs):
                for session, serial in pairs:
                    if session in self.sessions:
                        self.sessions[session].expires = clock() + self.sessions[session].ttl_ns
                        events.append(SessionEvent("renewed", session, serial=serial))
            case system.Close(session):
                self.sessions.pop(session, None)
                for name in [n for n, holder in self.held.items() if holder[0] == session]:
                    del self.held[name]
                events.append(SessionEvent("ended", session))
            case system.Withdraw(session, sequence, acked_below):
                books = self.sessions[session]
                self._acknowledge(books, acked_below)
                stored = books.answers.get(sequence)
                if stored is not None and sequence not in books.grants:
                    kind = AnswerKind.STANDS if stored[0] is AnswerKind.VALUE else stored[0]
                    outcomes.append(Outcome(session, sequence, kind, stored[1]))
                    return
                if books.tickets.pop(sequence, None) is not None:
                    self.queue = [waiter for waiter in self.queue if waiter[:2] != (session, sequence)]
                name = books.grants.pop(sequence, None)
                if name is not None:
                    del self.held[name]
                    self._next(name, outcomes)
                books.answers[sequence] = (AnswerKind.WITHDRAWN, b"")
                outcomes.append(Outcome(session, sequence, AnswerKind.WITHDRAWN, b""))

    def stored(self, session: int, sequence: int) -> Outcome | StoredState:
        books = self.sessions.get(session)
        if books is None:
            raise errors.SessionLost("no such session")
        if sequence < books.floor:
            return StoredState.BELOW_FLOOR
        if sequence in books.tickets:
            return StoredState.WAITING
        known = books.answers.get(sequence)
        return StoredState.UNKNOWN if known is None else Outcome(session, sequence, *known)

    def check_secret(self, session: int, secret: bytes) -> bool:
        return session in self.sessions and self.sessions[session].secret_hash == sha256(secret).digest()

    def read_index(self, done: Callable[[int | None], object]) -> None:
        done(self.applied_index if self.leader else None)

    def when_applied(self, index: int, done: Callable[[], object]) -> None:
        if self.applied_index >= index:
            done()
        else:
            self._later.append((index, done))

    def answer(self, query: Query[Any]) -> Any:
        assert isinstance(query, Count)
        return self.counts.get(query.name, 0)

    def decode(self, payload: bytes) -> Message[Any]:
        fsm, tag, fields = msgpack.unpackb(payload)
        message: Message[Any] = message_codec(KINDS[fsm, tag]).unpack(fields)
        return message

    def encode_answer(self, message: Message[Any], value: Any) -> bytes:
        packed: bytes = msgpack.packb(value)
        return packed

    def add_listener(self, listener: ReplicaListener) -> None:
        self._listeners.append(listener)

    def remove_listener(self, listener: ReplicaListener) -> None:
        self._listeners.remove(listener)

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        return {"method": method, **arguments}

    def lose_leader(self) -> None:
        self.leader = None
        for listener in self._listeners:
            listener.leader_changed(None)

    def find_leader(self) -> None:
        self.leader = LeaderInfo("A", ())
        for listener in self._listeners:
            listener.leader_changed(self.leader)


class BreakingDialer:
    """Links that break at the ``break_at``-th message of both directions together; that message is lost."""

    has_choice = False

    def __init__(self, service: CommandService, break_at: int | None = None) -> None:
        self.service, self.break_at, self.passed = service, break_at, 0
        self.is_down = False
        self.links: list[_BreakingLink] = []

    async def dial(self, user: LinkUser, leader: LeaderIs | None, nursery: trio.Nursery) -> Link:
        if self.is_down:
            raise LinkFailed("down")
        link = _BreakingLink(self, user, nursery)
        self.links.append(link)
        return link

    def breaks_now(self) -> bool:
        self.passed += 1
        return self.passed - 1 == self.break_at

    def cut(self) -> None:
        self.links[-1].cut()


class _BreakingLink:
    peer_id, is_local = "A", False

    def __init__(self, dialer: BreakingDialer, user: LinkUser, nursery: trio.Nursery) -> None:
        self._dialer, self._user, self._nursery = dialer, user, nursery
        self._is_broken = False
        self._inner = dialer.service.connect_local(self)

    def send(self, message: ToReplica) -> None:
        if self._is_broken:
            return
        if self._dialer.breaks_now():
            self.cut()
        else:
            self._inner.send(message)

    def received(self, message: ToClient) -> None:
        if self._is_broken:
            return
        if self._dialer.breaks_now():
            self.cut()
        else:
            self._user.received(message)

    def link_closed(self, reason: str) -> None:
        if not self._is_broken:
            self._user.link_closed(reason)

    def close(self) -> None:
        self._is_broken = True
        self._inner.close()

    def cut(self) -> None:
        self.close()
        self._nursery.start_soon(self._tell)

    async def _tell(self) -> None:
        self._user.link_closed("broken")


class World:
    """A replica, its service, and one connected session."""

    def __init__(self, break_at: int | None, ttl_s: float = 10) -> None:
        self.replica = MemoryReplica()
        self.service = CommandService(self.replica, clock)
        self.dialer = BreakingDialer(self.service, break_at)
        self.random = Random(7)
        self.lost_at: int | None = None
        self.connector = Connector(
            self.dialer, make_session=lambda earlier: self._session(earlier, ttl_s), clock=clock, random=self.random,
            hello=Hello(1, "test", "host", 1),
        )  # fmt: skip

    def _session(self, earlier: Callable[[], None], ttl_s: float) -> Session:
        def lost() -> None:
            self.lost_at = clock()

        return Session(
            ttl_ns=int(ttl_s * S), clock=clock, random_bytes=self.random.randbytes, on_lost=lost, earlier=earlier
        )

    @property
    def session(self) -> Session:
        return self.connector.session

    def begin(self, command: Command[Any], timeout: float | None = None, waits: bool | None = None) -> Result:
        result = Result()
        result.submission = self.session.submit(
            encode_message(command), None, waits=waits, timeout_ns=None if timeout is None else int(timeout * S),
            plain_timeout_ns=10 * S, done=result.done,
        )  # fmt: skip
        return result

    async def do(self, command: Command[Any], timeout: float | None = None, waits: bool | None = None) -> Any:
        result = self.begin(command, timeout, waits)
        value = await result.value()
        self.session.taken(result.submission)
        return value


class Result:
    submission: Submission

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.data: bytes | None = None
        self.error: BaseException | None = None

    def done(self, data: bytes | None, error: BaseException | None) -> None:
        assert not self.ended.is_set(), "one answer each"
        self.data, self.error = data, error
        self.ended.set()

    async def value(self) -> Any:
        await self.ended.wait()
        if self.error is not None:
            raise self.error
        assert self.data is not None
        return msgpack.unpackb(self.data)


@asynccontextmanager
async def world(break_at: int | None = None, ttl_s: float = 10) -> AsyncIterator[World]:
    made = World(break_at, ttl_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.replica.run)
        nursery.start_soon(made.service.run)
        nursery.start_soon(made.connector.run)
        yield made
        nursery.cancel_scope.cancel()


def run(story: Callable[[], Any]) -> None:
    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))


async def attached(here: World) -> None:
    while not here.session.is_attached:
        await trio.sleep(0.01)


def test_whichever_message_is_lost_with_its_link_each_command_takes_effect_once() -> None:
    passed = 0

    async def story(break_at: int | None) -> None:
        nonlocal passed
        async with world(break_at) as here:
            assert [await here.do(Add("a")) for _ in range(3)] == [1, 2, 3]
            first = await here.do(Take("lock"))
            waiter = here.begin(Take("lock"))
            assert await here.do(Give("lock")) is True
            second = await waiter.value()
            here.session.taken(waiter.submission)
            assert second > first
            assert here.replica.counts == {"a": 3}
            here.session.close(lambda: None)
            await trio.sleep(5)
            assert here.session.state is State.CLOSED
            assert not here.replica.sessions and not here.replica.held
            passed = here.dialer.passed

    run(lambda: story(None))
    assert passed > 15
    for break_at in range(passed):
        run(lambda break_at=break_at: story(break_at))  # type: ignore[misc]


def test_lost_proposals_are_proposed_again() -> None:
    async def story() -> None:
        async with world() as here:
            await attached(here)
            here.replica.lose_proposals = 1
            started = clock()
            assert await here.do(Add("a")) == 1
            assert clock() - started < 5 * S
            assert here.replica.counts == {"a": 1}

    run(story)


def test_a_command_goes_out_as_soon_as_there_is_a_leader_again() -> None:
    async def story() -> None:
        async with world() as here:
            await attached(here)
            here.replica.lose_leader()
            result = here.begin(Add("a"))
            await trio.sleep(3)
            assert not result.ended.is_set()
            here.replica.find_leader()
            found = clock()
            assert await result.value() == 1
            assert clock() - found < S // 10

    run(story)


def test_a_wait_that_runs_out_is_withdrawn_and_nothing_is_held() -> None:
    async def story() -> None:
        async with world() as here:
            await attached(here)
            await here.do(Take("lock"))
            started = clock()
            with pytest.raises(errors.WaitTimeout):
                await here.do(Take("lock"), timeout=0.5)
            assert 0.5 * S <= clock() - started < 0.6 * S
            assert not here.replica.queue
            await here.do(Give("lock"))
            assert not here.replica.held

    run(story)


def test_a_grant_that_races_with_the_withdrawal_is_given_back_in_both_orders() -> None:
    async def story(grant_first: bool) -> None:
        async with world() as here:
            await attached(here)
            await here.do(Take("lock"))
            waiter = here.begin(Take("lock"), waits=True)
            await trio.sleep(1)
            if grant_first:
                here.begin(Give("lock"))
                here.session.abandon(waiter.submission)
            else:
                here.session.abandon(waiter.submission)
                here.begin(Give("lock"))
            await trio.sleep(1)
            assert not here.replica.held and not here.replica.queue
            assert not waiter.ended.is_set()

    run(lambda: story(True))
    run(lambda: story(False))


def test_a_grant_whose_caller_was_cancelled_before_taking_it_is_given_back() -> None:
    async def story() -> None:
        async with world() as here:
            waiter = here.begin(Take("lock"))
            await waiter.value()
            assert here.replica.held
            await here.do(Add("a"))  # acknowledges nothing that was not taken
            here.session.abandon(waiter.submission)
            await trio.sleep(1)
            assert not here.replica.held

    run(story)


def test_an_interrupt_right_after_taking_still_gives_back() -> None:
    async def story() -> None:
        async with world() as here:
            waiter = here.begin(Take("lock"))
            await waiter.value()
            here.session.taken(waiter.submission)
            here.session.abandon(waiter.submission)
            await trio.sleep(1)
            assert not here.replica.held

    run(story)


def test_without_a_quorum_a_wait_ends_unknown_after_its_grace_and_is_withdrawn_later() -> None:
    async def story() -> None:
        async with world(ttl_s=60) as here:
            await attached(here)
            await here.do(Take("lock"))
            waiter = here.begin(Take("lock"), timeout=2)
            await trio.sleep(1)
            assert here.replica.queue
            here.replica.lose_leader()
            started = clock()
            with pytest.raises(errors.Unavailable) as caught:
                await waiter.value()
            assert caught.value.outcome == "unknown"
            assert clock() - started <= 2.1 * S
            here.replica.find_leader()
            await trio.sleep(1)
            assert not here.replica.queue

    run(story)


def test_a_plain_command_says_whether_it_may_have_happened() -> None:
    async def story() -> None:
        async with world(ttl_s=60) as here:
            await attached(here)
            here.dialer.is_down = True
            here.dialer.cut()
            await trio.sleep(0.1)
            with pytest.raises(errors.Unavailable) as unsent:
                await here.do(Add("a"), waits=False)
            assert unsent.value.outcome == "not-applied"
            here.dialer.is_down = False
            await attached(here)
            here.replica.lose_leader()
            with pytest.raises(errors.NoLeader) as sent:
                await here.do(Add("a"), waits=False)
            assert sent.value.outcome == "unknown"
            given_up = here.replica.counts.get("a", 0)
            here.replica.find_leader()
            assert await here.do(Add("b")) == 1
            assert given_up == 0 and here.replica.counts.get("a", 0) <= 1

    run(story)


def test_a_withdrawal_that_comes_after_a_plain_command_returns_its_value() -> None:
    async def story() -> None:
        async with world(ttl_s=60) as here:
            await attached(here)
            here.replica.lose_leader()
            result = here.begin(Add("a"), timeout=1)
            await trio.sleep(1.5)
            # Both are proposed now, the withdrawal alone by this client; the command's copy comes from elsewhere.
            copy = Item(here.session.id, result.submission.sequence, 0, 0, encode_message(Add("a")))
            here.replica.leader = LeaderInfo("A", ())
            here.replica.propose([copy])
            here.replica.find_leader()
            assert await result.value() == 1
            assert here.replica.counts == {"a": 1}

    run(story)


def test_the_session_is_lost_by_the_local_deadline_before_the_cluster_ends_it() -> None:
    async def story() -> None:
        async with world(ttl_s=10) as here:
            await attached(here)
            await trio.sleep(30)  # renewed all the while
            assert here.session.state is State.OPEN
            held = here.begin(Take("lock"))
            await held.value()
            waiter = here.begin(Take("lock"))
            await trio.sleep(1)
            here.dialer.is_down = True
            here.dialer.cut()
            with pytest.raises(errors.SessionLost) as caught:
                await waiter.value()
            assert caught.value.outcome == "unknown"
            assert here.lost_at is not None
            [books] = here.replica.sessions.values()
            assert here.lost_at <= books.expires - 0.29 * S
            with pytest.raises(errors.SessionLost) as refused:
                here.begin(Add("a"))
            assert refused.value.outcome == "not-applied"

    run(story)


def test_a_late_answer_to_an_older_keepalive_never_counts_from_the_younger_one() -> None:
    async def story() -> None:
        async with world(ttl_s=10) as here:
            await attached(here)
            here.replica.lose_leader()
            await trio.sleep(4)  # a keepalive was sent and not answered
            before = here.session.deadline_ns
            sent = dict(here.session._renewals)
            oldest = min(sent)
            here.session.received(_alive(here.session.id, oldest))
            assert before <= here.session.deadline_ns <= sent[oldest] + 9.7 * S

    run(story)


def _alive(session: int, serial: int) -> ToClient:
    from tauraft.command_protocol import Alive

    return Alive(session, serial)


def test_a_process_that_slept_past_its_deadline_refuses_before_it_sends() -> None:
    now = [0]
    sent: list[ToReplica] = []

    class Deaf:
        peer_id, is_local = "A", True

        def send(self, message: ToReplica) -> None:
            sent.append(message)

        def close(self) -> None: ...

    from tauraft.command_protocol import Attached, Opened, Submit

    session = Session(ttl_ns=10 * S, clock=lambda: now[0], random_bytes=Random(1).randbytes)
    session.link_up(Deaf())
    session.received(Opened(sent[0].nonce, 5, 1))  # type: ignore[union-attr]
    session.received(Attached(5, 1))
    now[0] = 11 * S
    with pytest.raises(errors.SessionLost):
        session.submit(b"", None, waits=None, timeout_ns=None, plain_timeout_ns=S, done=lambda data, error: None)
    assert not any(isinstance(message, Submit) for message in sent)


def test_a_full_session_refuses_before_it_gives_a_sequence() -> None:
    async def story() -> None:
        async with world() as here:
            await attached(here)
            here.session._max_outstanding = 3
            here.replica.lose_leader()
            results = [here.begin(Add("a")) for _ in range(3)]
            with pytest.raises(errors.Overloaded) as caught:
                here.begin(Add("a"))
            assert caught.value.outcome == "not-applied"
            here.replica.find_leader()
            assert sorted([await result.value() for result in results]) == [1, 2, 3]

    run(story)


def test_queries_are_confirmed_together_and_asked_again_after_a_break() -> None:
    async def story() -> None:
        async with world() as here:
            await here.do(Add("a"))
            confirmed = 0
            read_index = here.replica.read_index

            def counted(done: Callable[[int | None], object]) -> None:
                nonlocal confirmed
                confirmed += 1
                read_index(done)

            here.replica.read_index = counted  # type: ignore[method-assign]
            results = [Result() for _ in range(10)]
            for result in results:
                here.session.ask(
                    encode_message(Count("a")), None, consistency="linearizable", timeout_ns=5 * S, done=result.done
                )
            assert [await result.value() for result in results] == [1] * 10
            assert confirmed == 1
            here.replica.lose_leader()
            late = Result()
            here.session.ask(encode_message(Count("a")), None, consistency="linearizable", timeout_ns=5 * S, done=late.done)
            await trio.sleep(0.5)
            here.dialer.cut()
            here.replica.find_leader()
            assert await late.value() == 1

    run(story)


def test_keepalives_of_one_turn_share_a_command() -> None:
    async def story() -> None:
        async with world() as here, trio.open_nursery() as nursery:
            others = [
                Connector(
                    here.dialer, make_session=lambda earlier: here._session(earlier, 10), clock=clock, random=here.random,
                    hello=Hello(1, "", "", 0),
                )
                for _ in range(20)
            ]  # fmt: skip
            for other in others:
                nursery.start_soon(other.run)
            await trio.sleep(20)
            assert all(other.session.state is State.OPEN for other in others)
            renewals = [item for item in here.replica.taken if b"KeepAlive" in item.payload]
            assert 5 <= len(renewals) <= 8
            nursery.cancel_scope.cancel()

    run(story)


def test_a_link_that_uses_a_session_it_has_not_attached_is_closed() -> None:
    async def story() -> None:
        async with world() as here:
            await attached(here)

            class Thief:
                closed = ""

                def received(self, message: ToClient) -> None: ...

                def link_closed(self, reason: str) -> None:
                    self.closed = reason

            from tauraft.command_protocol import Attach, Submit

            thief = Thief()
            link = here.service.connect_local(thief)
            link.send(Attach(here.session.id, b"guess", 0))
            link.send(Submit(here.session.id, 99, 99, 0, encode_message(Add("stolen"))))
            await trio.sleep(1)
            assert thief.closed and "stolen" not in here.replica.counts
            assert await here.do(Add("a")) == 1

    run(story)
