"""Elections as callers use them, blocking and awaited, over the real apply engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

import tauraft
from tauraft import errors
from tauraft._blocking.primitives import Primitives
from tauraft.node.replica import LeaderInfo
from tauraft.system.messages import Close
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_plugins.kv.fsm import KeyValue
from tests.client.test_facade import awaited, blocking, wait_until
from tests.client.test_holds import InThread
from tests.session.machine_replica import MachineHost


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([KeyValue, *HOLDERS, Fencing])


@pytest.fixture
def cluster(host: MachineHost) -> Iterator[Primitives]:
    with blocking(host) as cluster:
        yield cluster


@pytest.fixture
def other(host: MachineHost, cluster: Primitives) -> Iterator[Primitives]:
    with blocking(host) as other:
        yield other


def on_both_loops(story: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @pytest.mark.parametrize("loop", ["asyncio", "trio"])
    def run(host: MachineHost, loop: str) -> None:
        if loop == "asyncio":
            asyncio.run(story(host, asyncio.sleep))  # type: ignore[arg-type]
        else:
            trio.run(story, host, trio.sleep)

    run.__name__ = story.__name__
    return run


def is_waiting(cluster: Primitives, name: str = "x", count: int = 1) -> Callable[[], bool]:
    return lambda: len(cluster.election(name).info().candidates) == count


def end_session(host: MachineHost, of: Any) -> None:
    """The cluster ends the session of this facade, as when it has not heard of it for too long."""
    session = of.session.id

    def end(_: None) -> None:
        assert host.replica is not None
        host.replica.propose([host.replica._system(Close(session))])

    of._caller.engine.post(end, None)


def test_one_leads_the_next_waits_and_each_token_is_greater(cluster: Primitives, other: Primitives) -> None:
    election = cluster.election("x")
    term = election.campaign("a")
    assert (term.name, term.value) == ("x", b"a")
    leader = other.election("x").leader()
    assert leader is not None and leader.owner.session == cluster.session.id
    assert (leader.value, leader.token) == (b"a", term.token)
    with pytest.raises(errors.WaitTimeout):
        other.election("x").campaign(timeout=0)
    with pytest.raises(errors.WaitTimeout):
        other.election("x").campaign(timeout=0.05)
    waits = InThread(lambda: other.election("x").campaign())
    wait_until("it stands", is_waiting(cluster))
    term.check()
    term.verify()
    election.resign()
    following = waits.value()
    assert following.token > term.token
    with pytest.raises(errors.LeadershipLost):
        term.check()
    for again in (election.resign, term.resign, lambda: election.proclaim(b"b")):
        with pytest.raises(errors.NotHolder):
            again()


def test_leadership_is_a_block_and_its_loss_comes_out_at_its_end(host: MachineHost, cluster: Primitives) -> None:
    lost: list[int] = []
    with cluster.leadership("x", b"v") as term:
        term.proclaim("w")
        assert cluster.election("x").leader().value == b"w"  # type: ignore[union-attr]
        assert term.value == b"w"
    assert cluster.election("x").leader() is None
    doomed = blocking(host).start()
    called = threading.Event()
    with pytest.raises(errors.LeadershipLost), doomed.leadership("x") as term:
        term.lost.add_callback(called.set)
        end_session(host, doomed)
        assert term.lost.wait(5)
        with pytest.raises(errors.LeadershipLost):
            term.check()
        lost.append(term.token)
    assert called.wait(5)
    assert cluster.election("x").campaign(timeout=5).token > lost[0]
    doomed.close()


def test_callbacks_hear_of_election_and_loss(host: MachineHost) -> None:
    heard: list[tuple[str, int]] = []
    lost = threading.Event()
    doomed = blocking(host).start()
    election = doomed.election(
        "x",
        on_elected=lambda term: heard.append(("elected", term.token)),
        on_lost=lambda term: (heard.append(("lost", term.token)), lost.set()),
    )
    first = election.campaign()
    first.resign()
    second = election.campaign()
    end_session(host, doomed)
    assert lost.wait(5)
    assert heard == [("elected", first.token), ("elected", second.token), ("lost", second.token)]
    doomed.close()


def test_a_callback_that_raises_leaves_nobody_elected(cluster: Primitives) -> None:
    with pytest.raises(ZeroDivisionError):
        cluster.election("x", on_elected=lambda term: 1 / 0).campaign()
    wait_until("it is given back", lambda: cluster.election("x").leader() is None)


def test_run_calls_main_while_it_leads_and_returns_what_it_returned(cluster: Primitives, other: Primitives) -> None:
    election = cluster.election("x")

    def main(term: tauraft.Term) -> int:
        assert other.election("x").leader().token == term.token  # type: ignore[union-attr]
        with pytest.raises(errors.WaitTimeout):
            other.election("x").campaign(timeout=0)
        return term.token

    assert election.run(main) > 0
    assert other.election("x").leader() is None
    with pytest.raises(ZeroDivisionError):
        election.run(lambda term: 1 // 0)
    assert other.election("x").leader() is None


def test_transfer_hands_leadership_to_the_session_named(cluster: Primitives, other: Primitives) -> None:
    election = cluster.election("x")
    with cluster.leadership("x"), pytest.raises(errors.NotHolder):
        election.transfer(other.session.id)  # another handle has the term
    term = election.campaign()
    with pytest.raises(errors.NoCandidate):
        election.transfer(other.session.id)
    term.check()
    waits = InThread(lambda: other.election("x").campaign())
    wait_until("it stands", is_waiting(cluster))
    election.transfer(other.session.id)
    assert waits.value().token > term.token
    with pytest.raises(errors.LeadershipLost):
        term.check()


def test_observe_gives_the_present_leader_and_each_one_after_it(cluster: Primitives, other: Primitives) -> None:
    first = cluster.election("x").campaign("1")
    with other.election("x").observe() as leaders:
        assert leaders.next(5).token == first.token  # type: ignore[union-attr]
        waits = InThread(lambda: other.election("x").campaign("2"))
        wait_until("it stands", is_waiting(cluster))
        first.resign()
        second = waits.value()
        seen = leaders.next(5)
        assert seen is not None and (seen.token, seen.value) == (second.token, b"2")
        assert seen.owner.session == other.session.id
        second.proclaim("3")
        assert leaders.next(5).value == b"3"  # type: ignore[union-attr]
        second.resign()
        assert leaders.next(5) is None
        with pytest.raises(errors.WaitTimeout):
            leaders.next(0.05)
    revision = cluster.barrier()
    third = cluster.election("x").campaign("4")
    with other.election("x").observe(since_revision=revision) as leaders:
        assert leaders.next(5).token == third.token  # type: ignore[union-attr]


def test_resigning_from_another_thread_lets_the_body_end_before_the_next_starts(
    cluster: Primitives, other: Primitives
) -> None:
    election = cluster.election("x")
    story: list[str] = []

    def main(term: tauraft.Term) -> None:
        story.append("leads")
        assert term.lost.wait(10)
        assert other.election("x").leader().token == term.token, "nobody else until it has ended"  # type: ignore[union-attr]
        story.append("has ended")

    runs = InThread(lambda: election.run(main))
    wait_until("it leads", lambda: story == ["leads"])
    waits = InThread(lambda: (other.election("x").campaign(), story.append("the next")))
    wait_until("another stands", is_waiting(cluster))
    election.resign()
    waits.value()
    with pytest.raises(errors.LeadershipLost):
        runs.value()
    assert story == ["leads", "has ended", "the next"]


@on_both_loops
async def test_a_term_that_is_lost_cancels_its_body(
    host: MachineHost, sleep: Callable[[float], Awaitable[None]]
) -> None:
    async with awaited(host) as other:
        doomed = await awaited(host).start()
        with pytest.raises(errors.LeadershipLost):
            async with doomed.leadership("x") as term:
                end_session(host, doomed)
                await sleep(60)
        assert term.lost.is_set()
        async with other.leadership("x", timeout=5) as following:
            assert following.token > term.token
        await doomed.close()


def test_what_was_asked_from_another_thread_counts_though_the_body_ends_by_itself(
    cluster: Primitives, other: Primitives, host: MachineHost
) -> None:
    election = cluster.election("x")
    with blocking(host) as third:

        def main(term: tauraft.Term) -> None:
            wait_until("both stand", is_waiting(cluster, count=2))
            InThread(lambda: election.transfer(third.session.id)).value()

        runs = InThread(lambda: election.run(main))
        wait_until("it leads", lambda: election.leader() is not None)
        ahead = InThread(lambda: other.election("x").campaign(priority=9))
        named = InThread(lambda: third.election("x").campaign())
        try:
            runs.value()
        except errors.LeadershipLost:
            pass  # it was cut before it came to its end
        term = named.value()
        assert is_waiting(cluster)(), "whoever is ahead still waits"
        term.resign()
        assert ahead.value().token > term.token


@on_both_loops
async def test_closing_lets_main_end_before_another_starts(
    host: MachineHost, sleep: Callable[[float], Awaitable[None]]
) -> None:
    story: list[str] = []
    async with awaited(host) as other:
        doomed = await awaited(host).start()

        async def main(term: tauraft.AsyncTerm) -> None:
            try:
                story.append("leads")
                await sleep(60)
            finally:
                # What it does at its end takes a while, shielded or not awaiting: the loop is not asked meanwhile.
                threading.Event().wait(0.1)
                story.append("has ended")

        async def lead() -> None:
            with pytest.raises(errors.LeadershipLost):
                await doomed.election("x").run(main)

        def stand() -> None:
            with blocking(host) as third:
                third.election("x").run(lambda term: story.append("the next"))

        async def close() -> None:
            while not story:
                await sleep(0.005)
            waits = InThread(stand)
            while not (await other.election("x").info()).candidates:
                await sleep(0.005)
            await doomed.close()
            while waits.is_alive():
                await sleep(0.005)

        await all_of(lead, close)
    assert story == ["leads", "has ended", "the next"]


@on_both_loops
async def test_transfer_from_another_task_cuts_the_body_first(
    host: MachineHost, sleep: Callable[[float], Awaitable[None]]
) -> None:
    story: list[str] = []
    async with awaited(host) as cluster, awaited(host) as other:
        election = cluster.election("x")

        async def main(term: tauraft.AsyncTerm) -> None:
            story.append("leads")
            try:
                await sleep(60)
            finally:
                story.append("has ended")

        async def following(term: tauraft.AsyncTerm) -> str:
            story.append("the next")
            return "done"

        async def lead() -> None:
            with pytest.raises(errors.LeadershipLost):
                await election.run(main)

        async def stand() -> None:
            while not story:
                await sleep(0.005)
            assert await other.election("x").run(following) == "done"

        async def hand_over() -> None:
            while not (await election.info()).candidates:
                await sleep(0.005)
            await election.transfer(other.session.id)

        await all_of(lead, stand, hand_over)
    assert story == ["leads", "has ended", "the next"]


async def all_of(*tasks: Callable[[], Awaitable[None]]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
    else:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task())  # type: ignore[arg-type]


def raft_leader_is(host: MachineHost, cluster: Any, peer_id: str) -> None:
    """The replica says so, as it would having heard it from its peers."""
    cluster._caller.engine.post(lambda _: host.service.leader_changed(LeaderInfo(peer_id, ())), None)


def test_raft_leadership_is_of_who_uses_the_raft_leaders_replica(host: MachineHost, cluster: Primitives) -> None:
    leadership = cluster.raft_leadership()
    with pytest.raises(errors.LeadershipLost), leadership as term:
        found = leadership.leader()
        assert found is not None and (found.token, found.owner.peer_id) == (term.token, "A")
        raft_leader_is(host, cluster, "B")
        assert term.lost.wait(5), "another replica leads Raft"
        assert leadership.leader().token == term.token, "nobody else until the body has ended"  # type: ignore[union-attr]
    wait_until("it is given up", lambda: leadership.leader() is None)
    waits = InThread(lambda: leadership.run(lambda term: term.token))
    wait_until("it has seen that it does not lead", lambda: not cluster.raft_standing().leads)
    assert leadership.info().candidates == ()
    raft_leader_is(host, cluster, "A")
    assert waits.value() > term.token
    with leadership:
        pass
    assert leadership.leader() is None, "left in the ordinary way"


def test_who_does_not_lead_raft_when_elected_makes_way(
    host: MachineHost, cluster: Primitives, other: Primitives
) -> None:
    first = cluster.election("tauraft.raft").campaign()
    began: list[int] = []
    waits = InThread(lambda: other.raft_leadership().run(lambda term: began.append(term.token)))
    wait_until("it stands", is_waiting(cluster, "tauraft.raft"))
    raft_leader_is(host, cluster, "B")
    wait_until("both know", lambda: not cluster.raft_standing().leads and not other.raft_standing().leads)
    first.resign()
    wait_until("it made way", lambda: cluster.election("tauraft.raft").leader() is None)
    assert not began
    raft_leader_is(host, cluster, "A")
    waits.value()
    assert len(began) == 1 and began[0] > first.token


@on_both_loops
async def test_raft_leadership_cancels_its_body_when_another_leads(
    host: MachineHost, sleep: Callable[[float], Awaitable[None]]
) -> None:
    async with awaited(host) as cluster:
        leadership = cluster.raft_leadership()

        async def main(term: tauraft.AsyncTerm) -> None:
            raft_leader_is(host, cluster, "B")
            await sleep(60)

        with pytest.raises(errors.LeadershipLost):
            await leadership.run(main)
        async with leadership.observe() as leaders:
            while await leaders.next(5) is not None:
                pass


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda c: c.election(""), errors.InvalidArgument),
        (lambda c: c.election(5), TypeError),
        (lambda c: c.election("x", min_tenure=-1), errors.InvalidArgument),
        (lambda c: c.election("x", min_tenure="1"), TypeError),
        (lambda c: c.election("x", on_lost=5), TypeError),
        (lambda c: c.election("x").campaign(5), TypeError),
        (lambda c: c.election("x").campaign(b"x" * ((1 << 20) + 1)), errors.TooLarge),
        (lambda c: c.election("x").campaign(priority=1.5), TypeError),
        (lambda c: c.election("x").campaign(timeout=-1), errors.InvalidTimeout),
        (lambda c: c.election("x").run("main"), TypeError),
        (lambda c: c.election("x").transfer("s"), TypeError),
        (lambda c: c.election("x").transfer(0), errors.InvalidArgument),
        (lambda c: c.election("x").proclaim(5), TypeError),
        (lambda c: c.election("x").resign(), errors.NotHolder),
        (lambda c: c.leadership("x", priority=1 << 40), errors.InvalidArgument),
        (lambda c: c.raft_leadership().run(None), TypeError),
    ],
)
def test_wrong_use_is_refused_before_anything_is_sent(
    cluster: Primitives, host: MachineHost, use: Callable[[Primitives], Any], error: type[Exception]
) -> None:
    assert host.replica is not None
    applied = host.replica.applied_index
    with pytest.raises(error):
        use(cluster)
    assert host.replica.applied_index == applied
