"""A session and a command service, with an in-memory replica between them, under a mock clock: every link can break anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from tauraft import errors
from tauraft.client import Connector
from tauraft.command_protocol import Alive, Attach, Attached, Hello, Opened, Submit, ToClient, ToReplica
from tauraft.command_service import CommandService
from tauraft.fsm import Command
from tauraft.node.replica import Item
from tauraft.payloads import encode_message
from tauraft.session import Session, State, Submission
from tests.session.memory_replica import Add, BreakingDialer, Count, Give, MemoryReplica, S, Take, clock


class World:
    """A replica, its service, and one connected session."""

    def __init__(self, break_at: int | None, ttl_s: float = 10) -> None:
        self.replica = MemoryReplica()
        self.service = CommandService(self.replica, clock)
        self.dialer = BreakingDialer(self.service, break_at)
        self.random = Random(7)
        self.lost_at: int | None = None
        self.connector = Connector(
            self.dialer, make_session=lambda reschedule: self._session(reschedule, ttl_s), clock=clock, random=self.random,
            hello=Hello(1, "test", "host", 1),
        )  # fmt: skip

    def _session(self, reschedule: Callable[[], None], ttl_s: float) -> Session:
        def lost() -> None:
            self.lost_at = clock()

        return Session(
            ttl_ns=int(ttl_s * S), clock=clock, random_bytes=self.random.randbytes, on_lost=lost, reschedule=reschedule
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


def test_a_replica_that_is_behind_attaches_only_once_it_has_applied_what_the_client_saw() -> None:
    async def story() -> None:
        async with world() as here:
            await attached(here)
            heard: list[ToClient] = []

            class Elsewhere:
                def received(self, message: ToClient) -> None:
                    heard.append(message)

                def link_closed(self, reason: str) -> None: ...

            seen = here.replica.applied_index + 2
            here.service.connect_local(Elsewhere()).send(Attach(here.session.id, here.session._secret, seen))
            await trio.sleep(0.5)
            assert heard == [], "an older state would run again what was answered already"
            await here.do(Add("a"))
            await here.do(Add("a"))
            await trio.sleep(0.5)
            assert heard == [Attached(here.session.id, here.replica.applied_index)]

    run(story)


def test_an_answer_that_a_snapshot_brought_is_given() -> None:
    async def story() -> None:
        async with world() as here:
            first = await here.do(Take("lock"))
            waiter = here.begin(Take("lock"))
            while not here.service._tickets:
                await trio.sleep(0.01)
            del here.replica.held["lock"]
            here.replica.install_snapshot(lambda outcomes: here.replica._next("lock", outcomes))
            with trio.fail_after(1):
                assert await waiter.value() >= first
            assert not here.service._tickets and not here.service._pending

    run(story)


def test_the_end_of_a_session_that_a_snapshot_brought_is_told() -> None:
    async def story() -> None:
        async with world() as here:
            await here.do(Take("lock"))
            waiter = here.begin(Take("lock"))
            while not here.service._tickets:
                await trio.sleep(0.01)
            here.replica.install_snapshot(lambda outcomes: here.replica.sessions.clear())
            with trio.fail_after(1), pytest.raises(errors.SessionLost):
                await waiter.value()
            assert here.session.state is State.LOST
            assert not here.service._tickets and not here.service._pending

    run(story)


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
            here.replica.lose_proposals = 1000
            result = here.begin(Add("a"), timeout=1)
            await trio.sleep(1.5)
            # Both are proposed now, the withdrawal alone by this client; the command's copy comes from elsewhere.
            copy = Item(here.session.id, result.submission.sequence, 0, 0, encode_message(Add("a")))
            here.replica.lose_proposals = 0
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
            here.session.received(Alive(here.session.id, oldest))
            assert before <= here.session.deadline_ns <= sent[oldest] + 9.7 * S

    run(story)


def test_a_process_that_slept_past_its_deadline_refuses_before_it_sends() -> None:
    now = [0]
    sent: list[ToReplica] = []

    class Deaf:
        peer_id, is_local = "A", True

        def send(self, message: ToReplica) -> None:
            sent.append(message)

        def close(self) -> None: ...

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
            here.session.ask(
                encode_message(Count("a")), None, consistency="linearizable", timeout_ns=5 * S, done=late.done
            )
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
                    here.dialer, make_session=lambda reschedule: here._session(reschedule, 10), clock=clock, random=here.random,
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


@pytest.mark.parametrize("peer_id", ["", "somebody-else"])
def test_a_link_that_uses_a_session_it_has_not_attached_is_closed(peer_id: str) -> None:
    """It needs the secret, and to be the peer that opened it."""

    async def story() -> None:
        async with world() as here:
            await attached(here)
            secret = here.session._secret if peer_id else b"guess"

            class Thief:
                closed = ""

                def received(self, message: ToClient) -> None: ...

                def link_closed(self, reason: str) -> None:
                    self.closed = reason

            thief = Thief()
            link = here.service.connect_local(thief, peer_id)
            link.send(Attach(here.session.id, secret, 0))
            link.send(Submit(here.session.id, 99, 99, 0, encode_message(Add("stolen"))))
            await trio.sleep(1)
            assert thief.closed and "stolen" not in here.replica.counts
            assert await here.do(Add("a")) == 1

    run(story)
