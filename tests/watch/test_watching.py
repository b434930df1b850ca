"""Watches of a third party's plugin through both facades, over the real apply engine in one process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

from tauraft import errors
from tauraft._blocking.primitives import Primitives
from tauraft.bridge import Completions, Feed
from tauraft.caller import AsyncCaller, Caller
from tauraft.command_protocol import Events, Watching, WatchStart, encode_records
from tauraft.fsm import TableName
from tauraft.handle import Frame, RowChange, State
from tauraft.primitives import AsyncPrimitives
from tauraft.watch import WINDOW_BYTES, Subscription, Subscriptions, watch_request
from tests.session.machine_replica import MachineHost
from tests.watch.board import BOARD, NOTES, AsyncBoard, Board, Clear, Note, Pin, PinMany

NAMESPACE = "/raft/test"


@pytest.fixture
def host() -> MachineHost:
    return MachineHost([Board])


@pytest.fixture
def cluster(host: MachineHost) -> Iterator[Primitives]:
    with Primitives(NAMESPACE, Caller(host.open, timeout=5, session_ttl=10, label="test")) as cluster:
        yield cluster


def awaited(host: MachineHost) -> AsyncPrimitives:
    return AsyncPrimitives(NAMESPACE, AsyncCaller(host.open, timeout=5, session_ttl=10, label="test"))


def either_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @pytest.mark.parametrize("loop", ["asyncio", "trio"])
    def run(host: MachineHost, loop: str) -> None:
        if loop == "asyncio":
            asyncio.run(test(host))  # type: ignore[arg-type]
        else:
            trio.run(test, host)

    run.__name__ = test.__name__
    return run


def test_a_watch_yields_each_change_once_with_old_and_new_row(cluster: Primitives) -> None:
    session = cluster.session.id
    cluster.submit(Pin("a", "before"))
    with cluster.watch(NOTES) as watch:
        first = cluster.submit(Pin("a", "one"))
        second = cluster.submit(Pin("b", "two"))
        cluster.submit(Clear("a"))
        frame = watch.next(5)
        assert isinstance(frame, Frame)
        assert (frame.revision, frame.session) == (first, session)
        [change] = frame.changes
        assert isinstance(change.old, Note)
        assert (change.key, change.old.text) == ("a", "before")
        assert change.new == Note("one", session, first)
        assert watch.next(5).revision == second
        last = watch.next(5)
        assert isinstance(last, Frame)
        assert last.changes == (RowChange("a", Note("one", session, first), None),)
        with pytest.raises(errors.WaitTimeout):
            watch.next(0)
        with pytest.raises(errors.WaitTimeout):
            watch.next(0.01)
        cluster.submit(Pin("c", "the watch goes on"))
        assert isinstance(watch.next(5), Frame)


def test_only_the_keys_asked_for_are_told(cluster: Primitives) -> None:
    with (
        cluster.watch(NOTES, key="b") as one,
        cluster.watch(NOTES, low="b", high="d") as some,
        cluster.watch(NOTES, low="c") as rest,
    ):
        for name in "abcd":
            cluster.submit(Pin(name, "x"))
        assert [c.key for c in one.next(5).changes] == ["b"]  # type: ignore[union-attr]
        assert [some.next(5).changes[0].key for _ in "bc"] == ["b", "c"]  # type: ignore[union-attr]
        assert [rest.next(5).changes[0].key for _ in "cd"] == ["c", "d"]  # type: ignore[union-attr]
        for watch in (one, some, rest):
            with pytest.raises(errors.WaitTimeout):
                watch.next(0.01)


def test_since_revision_is_exclusive_and_the_past_is_told(cluster: Primitives) -> None:
    revisions = [cluster.submit(Pin("a", str(n))) for n in range(5)]
    with cluster.watch(NOTES, since_revision=revisions[1]) as watch:
        assert [watch.next(5).revision for _ in range(3)] == revisions[2:]


def test_a_revision_of_the_future_is_refused(cluster: Primitives) -> None:
    now = cluster.submit(Pin("a", "x"))
    with pytest.raises(errors.InvalidArgument, match="newest revision"), cluster.watch(NOTES, since_revision=now + 100):
        pass


def test_a_state_comes_first_where_it_is_asked_for(cluster: Primitives) -> None:
    cluster.submit(PinMany("n", 3, "x"))
    revision = cluster.submit(Pin("z", "out of range"))
    with cluster.watch(NOTES, low="n", high="o", with_state=True) as watch:
        state = watch.next(5)
        assert isinstance(state, State)
        assert state.revision >= revision
        assert [key for key, _ in state.rows] == ["n000000", "n000001", "n000002"]
        later = cluster.submit(Pin("n1", "y"))
        assert watch.next(5).revision == later
    with cluster.watch(NOTES, key="none", with_state=True) as watch:
        assert watch.next(5).rows == ()  # type: ignore[union-attr]


def test_a_transaction_is_one_frame_and_a_since_inside_it_gives_it_whole(cluster: Primitives) -> None:
    with cluster.watch(NOTES) as watch:
        first, second = cluster.transaction(Pin("a", "x"), Pin("b", "y"))
        frame = watch.next(5)
        assert isinstance(frame, Frame)
        assert frame.revision == second
        assert [change.key for change in frame.changes] == ["a", "b"]
    with cluster.watch(NOTES, since_revision=first) as watch:
        assert len(watch.next(5).changes) == 2  # type: ignore[union-attr]


def test_what_no_caller_did_has_no_session(cluster: Primitives, host: MachineHost) -> None:
    with cluster.watch(NOTES) as watch:
        cluster.submit(Pin("fades", "x", seconds=0.05))
        assert watch.next(5).session == cluster.session.id  # type: ignore[union-attr]
        assert watch.next(5).session is None  # type: ignore[union-attr]
        with Primitives(NAMESPACE, Caller(host.open, timeout=5, session_ttl=10, label="other")) as other:
            other.submit(PinMany("of-other-", 3, "x"))
            watch.next(5)
        gone = watch.next(5)
        assert isinstance(gone, Frame)
        assert gone.session is None
        assert [change.new for change in gone.changes] == [None, None, None]


def test_a_frame_larger_than_the_window_comes_whole(cluster: Primitives) -> None:
    text = "x" * 1000
    with cluster.watch(NOTES) as watch:
        cluster.submit(PinMany("n", 1_000, text))
        cluster.submit(Clear("n"))
        assert len(watch.next(10).changes) == 1_000 > WINDOW_BYTES / 1_000  # type: ignore[union-attr]
        assert len(watch.next(10).changes) == 1_000  # type: ignore[union-attr]


def test_a_slow_watcher_falls_behind_in_the_log_and_misses_nothing(cluster: Primitives, host: MachineHost) -> None:
    text = "x" * 10_000
    with cluster.watch(NOTES) as watch:
        revisions = [cluster.submit(Pin(f"{n:03}", text)) for n in range(200)]
        subscription: Any = watch._entered()
        assert subscription._buffered < 2 * WINDOW_BYTES
        assert [watch.next(5).revision for _ in revisions] == revisions


def test_a_watcher_slower_than_the_log_is_told_the_state_and_goes_on(cluster: Primitives, host: MachineHost) -> None:
    assert host.replica is not None
    host.replica.change_log._max_bytes = 1 << 20
    text = "x" * 10_000
    with cluster.watch(NOTES) as watch:
        revisions = [cluster.submit(Pin(f"{n % 50:03}", f"{n} {text}")) for n in range(400)]
        seen: list[int] = []
        while isinstance(frame := watch.next(5), Frame):
            seen.append(frame.revision)
        assert seen == revisions[: len(seen)]
        assert len(seen) < 100
        assert frame.revision >= revisions[-1]
        assert [note.text.split()[0] for _, note in frame.rows] == [str(n) for n in range(350, 400)]
        later = cluster.submit(Pin("new", "x"))
        assert watch.next(5).revision == later


def test_a_since_older_than_the_log_is_told_the_state(cluster: Primitives, host: MachineHost) -> None:
    assert host.replica is not None
    first = cluster.submit(Pin("a", "x"))
    host.replica.change_log._max_bytes = 1_000
    last = [cluster.submit(Pin("a", "y" * 100)) for _ in range(20)][-1]
    with cluster.watch(NOTES, since_revision=first) as watch:
        state = watch.next(5)
        assert isinstance(state, State)
        assert state.revision >= last


def test_a_table_that_is_not_there_is_refused(cluster: Primitives) -> None:
    for name in ("nonsense", "notes/notes"):
        with pytest.raises(errors.InvalidCommand), cluster.watch(TableName(BOARD, name, str, Note)):
            pass
    with pytest.raises(errors.InvalidCommand), cluster.watch(TableName("tauraft.system", "timers", str, Note)):
        pass


def test_rows_of_another_shape_are_an_error_that_says_so(cluster: Primitives) -> None:
    with cluster.watch(TableName(BOARD, "notes", str, int)) as watch:
        cluster.submit(Pin("a", "x"))
        with pytest.raises(errors.InvalidCommand, match="another shape"):
            watch.next(5)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"key": 5}, TypeError),
        ({"key": "a", "low": "b"}, errors.InvalidArgument),
        ({"since_revision": "5"}, TypeError),
        ({"since_revision": True}, TypeError),
        ({"since_revision": -1}, errors.InvalidArgument),
        ({"since_revision": 5, "with_state": True}, errors.InvalidArgument),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(cluster: Primitives, wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        cluster.watch(NOTES, **wrong)


def test_a_watch_is_used_inside_its_with_and_once(cluster: Primitives) -> None:
    watch = cluster.watch(NOTES)
    with pytest.raises(errors.InvalidArgument):
        watch.next(0)
    with watch:
        with pytest.raises(errors.InvalidTimeout):
            watch.next(-1)
        cluster.submit(Pin("a", "x"))
    with pytest.raises(errors.InvalidArgument), watch:
        pass


def test_leaving_or_closing_ends_whoever_waits(host: MachineHost) -> None:
    with Primitives(NAMESPACE, Caller(host.open, timeout=5, session_ttl=10, label="test")) as cluster:
        ended: list[BaseException] = []

        def follow(watch: Any) -> None:
            try:
                for _ in watch:
                    pass
            except errors.TauraftError as error:
                ended.append(error)

        with cluster.watch(NOTES) as watch:
            left = threading.Thread(target=follow, args=(watch,))
            left.start()
        left.join(5)
        open_watch = cluster.watch(NOTES).__enter__()
        closed = threading.Thread(target=follow, args=(open_watch,))
        closed.start()
    closed.join(5)
    assert [type(error) for error in ended] == [errors.AlreadyClosed, errors.AlreadyClosed]


def cut_links(cluster: Primitives, host: MachineHost) -> None:
    def cut(_: object) -> None:
        for end in list(host.service._ends):
            end.fail("cut")

    cluster._caller.engine.post(cut, None)


def test_a_watch_goes_on_after_its_link_was_cut(cluster: Primitives, host: MachineHost) -> None:
    with cluster.watch(NOTES) as watch:
        revisions = []
        for number in range(20):
            revisions.append(cluster.submit(Pin("a", str(number))))
            cut_links(cluster, host)
        assert [watch.next(5).revision for _ in revisions] == revisions


def test_a_cursor_of_another_cluster_is_told_the_state(cluster: Primitives, host: MachineHost) -> None:
    assert host.replica is not None
    with cluster.watch(NOTES) as watch:
        cluster.submit(Pin("a", "x"))
        assert isinstance(watch.next(5), Frame)
        host.replica.cluster_id = b"healed"
        cut_links(cluster, host)
        state = watch.next(5)
        assert isinstance(state, State)
        assert [key for key, _ in state.rows] == ["a"]
        cut_links(cluster, host)
        later = cluster.submit(Pin("b", "x"))
        assert watch.next(5).revision == later


class Deaf:
    """A link that only notes what is said."""

    peer_id, is_local = "A", False

    def __init__(self) -> None:
        self.said: list[Any] = []

    def send(self, message: Any) -> None:
        self.said.append(message)

    def close(self) -> None: ...


def test_of_a_link_that_breaks_inside_a_frame_the_whole_ones_before_it_are_not_asked_for_again() -> None:
    link = Deaf()
    request = watch_request(NOTES, key=None, low=None, high=None, since_revision=None, with_state=False)
    subscription = Subscription(request, lambda taken: Feed(Completions(lambda: None), taken))
    subscriptions = Subscriptions()
    subscriptions.link_up(link)
    subscriptions.open(subscription, 7, lambda error: None)
    subscriptions.watching(Watching(7, 10, 1, b"c"))
    whole, part = (False, True, 11, 5, 0, [[b"k", None, b"n"]]), (False, False, 12, 5, 0, [[b"k", None, b"n"]])
    subscriptions.events(Events(7, 11, 2, encode_records([whole, part])))
    subscriptions.link_down()
    subscriptions.link_up(link)
    again = link.said[-1]
    assert (again.start, again.since, again.cluster_id) == (WatchStart.CURSOR, 11, b"c")
    subscriptions.watching(Watching(7, 11, 3, b"c"))
    subscriptions.events(Events(7, 12, 3, encode_records([part, (False, True, 12, 5, 0, [[b"l", None, b"n"]])])))
    assert [arrived[1] for arrived in iter(subscription.feed.take, None)] == [11, 12]


def test_a_watch_is_refused_in_a_forked_child(cluster: Primitives) -> None:
    with cluster.watch(NOTES) as watch:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                watch.next(5)
            except errors.ForkedProcess:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        cluster.submit(Pin("a", "x"))
        assert isinstance(watch.next(5), Frame)


@either_loop
async def test_a_third_partys_handle_watches(host: MachineHost) -> None:
    async with awaited(host) as cluster:
        board = AsyncBoard(cluster)
        await board.pin("a", "one")
        async with board.watch("a") as watch:
            assert await watch.next(5) == ("a", "one")
            await board.pin("a", "two")
            await board.pin("b", "other")
            await board.pin("a", "three")
            assert [await watch.next(5), await watch.next(5)] == [("a", "two"), ("a", "three")]
            with pytest.raises(errors.WaitTimeout):
                await watch.next(0.01)


def test_cancelled_at_every_step_of_next_nothing_is_lost(host: MachineHost) -> None:
    async def story() -> None:
        async with awaited(host) as cluster, cluster.watch(NOTES) as watch:
            revisions, seen = [], []

            async def take() -> None:
                seen.append((await watch.next()).revision)

            for steps in range(60):
                task = asyncio.create_task(take())
                for _ in range(steps % 5):
                    await asyncio.sleep(0)
                revisions.append(await cluster.submit(Pin("a", str(steps))))
                for _ in range(steps % 7):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    pass
            while len(seen) < len(revisions):
                seen.append((await watch.next(5)).revision)
            assert seen == revisions

    asyncio.run(story())


def test_cancelled_while_entering_nothing_stays_subscribed(host: MachineHost) -> None:
    async def story() -> None:
        async with awaited(host) as cluster:
            for steps in range(20):
                with trio.move_on_after(steps * 0.0002):
                    async with cluster.watch(NOTES):
                        await trio.sleep_forever()
            await cluster.submit(Pin("a", "x"))
            assert host.service._watches._all() == []

    trio.run(story)
