"""A cluster in one process: the real node, on a network and on disks that can be hurt.

One seed decides everything: the order of tasks (trio's deterministic scheduling), delays and losses, what a power cut
leaves on a disk, each node's draws, the faults and the workload.  Time is trio's mock clock: it jumps to the next
thing due, so an hour of cluster life takes as long as its work.

    def story(world): ...            # async, drives the world
    run_world(seed, story)           # raises what the story, a checker or a node raises, naming the seed

A node that stops by itself (a plugin that cannot go on, a failed disk) is a failure of the run unless the story expects it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import trio
import trio.testing

from tauraft.client import Connector, Dialer, StreamDialer
from tauraft.command_protocol import Hello, LeaderIs
from tauraft.command_service import CommandService
from tauraft.core.messages import Member
from tauraft.errors import TauraftError
from tauraft.fsm import Command, Message, Query
from tauraft.node.local_replica import LocalReplica, Whereabouts
from tauraft.node.opening import MemberRecord, Parts, load_member, open_replica, save_halted, save_member
from tauraft.node.pacer import Timing
from tauraft.node.snapshots import PlainRows, SnapshotMover
from tauraft.payloads import decode_answer, encode_message
from tauraft.plugin_manager import Registry, load_plugins
from tauraft.session import Session
from tauraft.simulator.checkers.agreement import Agreement, ElectionSafety
from tauraft.simulator.clock import SimulatedClock
from tauraft.storage.file_system import MemoryFileSystem
from tauraft.storage.segment_log import SegmentLog
from tauraft.storage.snapshot_store import SnapshotStore
from tauraft.transport.memory import MemoryNetwork
from tauraft.transport.transport import MessageStream, PeerUnreachable

NAMESPACE = "/raft/simulated"
TIMING = Timing(heartbeat_s=0.1, election_s=1.0)
CLOCK_RATES = (0.99, 1.01)  # the drift that SAFETY 17 allows


class SeedFailed(AssertionError):
    """A run failed; the seed in the message reproduces it exactly."""


class SimulatedNode:
    """One machine: a disk that survives crashes, a clock, and, while it is up, a replica."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.peer_id = f"node-{number}"
        self.disk = MemoryFileSystem()
        self.clock = SimulatedClock(rate=world.random.uniform(*CLOCK_RATES))
        self.replica: LocalReplica | None = None
        self.service: CommandService
        self.stopped_by: BaseException | None = None
        self.is_doomed = False  # something was done to it after which it may stop by itself
        self.lives = 0
        self.incarnation = number + 1
        self.plugins: Sequence[object] | None = None  # None: the world's
        self._scope: trio.CancelScope | None = None
        self._ended = trio.Event()
        self._ended.set()

    @property
    def is_running(self) -> bool:
        """Started and not ended, though perhaps not serving yet."""
        return not self._ended.is_set()

    @property
    def is_up(self) -> bool:
        return self.replica is not None

    def start(self) -> None:
        """Up again, from what its disk has."""
        assert self._ended.is_set(), f"{self.peer_id} is up already"
        self._ended = trio.Event()
        self._scope = trio.CancelScope()
        self.is_doomed = False
        self.lives += 1
        self.world.nursery.start_soon(self._live, self._scope, name=f"{self.peer_id} life {self.lives}")

    async def ended(self) -> None:
        """Until it has stopped, by itself or not."""
        await self._ended.wait()

    async def kill(self) -> None:
        """kill -9: the machine goes on, so what was written is there for the next process, synced or not."""
        await self._stop()
        self.disk.restart_process()

    async def cut_power(self) -> None:
        """What was not synced is gone or torn."""
        await self._stop()
        self.disk.reboot(self.world.random)

    async def lose_disk(self) -> None:
        """It will come back with an empty one, and be another member."""
        await self._stop()
        self.disk = MemoryFileSystem()
        self.incarnation = self.world.random.getrandbits(32)

    async def _stop(self) -> None:
        self.is_doomed = True
        self.world.network.stop(self.peer_id)
        if self._scope is not None:
            self._scope.cancel()
        await self._ended.wait()

    async def _live(self, scope: trio.CancelScope) -> None:
        world = self.world
        try:
            with scope:
                async with world.network.transport(self.peer_id) as transport:
                    for parent, name in (("/", "node"), ("/node", "log"), ("/node", "snapshots")):
                        self.disk.make_directory(f"{parent}/{name}")
                        self.disk.sync_directory(parent)
                    record = load_member(self.disk, "/node")
                    if record is None:
                        record = world.founding_record(self)
                        fresh = SegmentLog("/node/log", files=self.disk, segment_bytes=1 << 16)
                        fresh.open()
                        fresh.close()
                        save_member(self.disk, "/node", record)
                    store = SegmentLog("/node/log", files=self.disk, segment_bytes=1 << 16, must_exist=True)
                    mover = SnapshotMover(
                        SnapshotStore("/node/snapshots", files=self.disk), PlainRows(), self.clock, run_inline
                    )
                    parts = Parts(
                        world.namespace,
                        self.clock,
                        Random(world.random.getrandbits(64)),
                        world.registry(self.plugins),
                        TIMING,
                        Whereabouts(transport.addresses, self.peer_id, self.peer_id, "disk"),
                        lambda why: save_halted(self.disk, "/node", why),
                        snapshot_entries=world.snapshot_entries,
                    )
                    replica = open_replica(
                        record, store, mover, lambda sink: transport.open_channel(world.namespace, sink), parts
                    )
                    for number in range(len(world.nodes)):
                        transport.learn(f"node-{number}", [f"/memory/node-{number}"])
                    service = CommandService(replica, self.clock.monotonic_ns)
                    transport.serve(world.namespace, service.serve_stream)
                    self.replica, self.service = replica, service
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(replica.run)
                        async with trio.open_nursery() as serving:
                            serving.start_soon(service.run)
                            await replica.stopped.wait()
                            # As the host does: clients go to those that have the plugin.
                            transport.stop_serving(world.namespace)
                            serving.cancel_scope.cancel()
        except BaseException as error:
            if not isinstance(error, trio.Cancelled):
                self.stopped_by = error
                if not world.may_stop(self, error):
                    raise
            else:
                raise
        finally:
            self.replica = None
            self._ended.set()


class World:
    """What a story is given."""

    def __init__(self, seed: int, replicas: int, nursery: trio.Nursery, namespace: str = NAMESPACE) -> None:
        self.seed = seed
        self.namespace = namespace
        self.random = Random(seed)
        self.nursery = nursery
        self.network = MemoryNetwork(Random(self.random.getrandbits(64)), delay_s=(0.0002, 0.002))
        self.nodes = [SimulatedNode(self, number) for number in range(replicas)]
        self.agreement = Agreement()
        self.election_safety = ElectionSafety()
        self.snapshot_entries = 200
        self.plugins: Sequence[object] = ()
        self.may_stop: Callable[[SimulatedNode, BaseException], bool] = lambda node, error: node.is_doomed
        self._registries: dict[int, Registry] = {}
        self._founders = tuple(Member(node.peer_id, node.incarnation) for node in self.nodes)
        self._cluster_id = hashlib.sha256(b"%d" % seed).digest()[:16]
        self._clients = 0

    def registry(self, plugins: Sequence[object] | None) -> Registry:
        chosen = self.plugins if plugins is None else plugins
        return load_plugins(chosen)

    def founding_record(self, node: SimulatedNode) -> MemberRecord:
        return MemberRecord(node.peer_id, node.incarnation, self._cluster_id, self._founders)

    def start_all(self) -> None:
        for node in self.nodes:
            node.start()

    @property
    def leader(self) -> SimulatedNode | None:
        """The one that leads in the highest term."""
        leaders = [n for n in self.nodes if n.replica is not None and n.replica.is_leader]
        return max(leaders, key=lambda n: n.replica.driver.raft.term if n.replica else 0, default=None)

    async def wait_for_leader(self, seconds: float = 30) -> SimulatedNode:
        with trio.fail_after(seconds):
            while True:
                leader = self.leader
                if leader is not None:
                    return leader
                await trio.sleep(0.02)

    async def wait_until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        with trio.fail_after(seconds):
            while not condition():
                await trio.sleep(0.02)

    def observe(self) -> None:
        """Feed the checkers that look at replicas' states."""
        for node in self.nodes:
            replica = node.replica
            if replica is None:
                continue
            machine = replica.machine
            # The digest is of the rows; the sessions' books must be equal as well.
            books = hashlib.sha256(b"".join(session.encode() for session in machine.sessions)).digest()[:16]
            state = machine.tables.digest() ^ int.from_bytes(books, "big")
            self.agreement.report(node.peer_id, machine.applied_index, machine.revision, state)
            if replica.is_leader:
                self.election_safety.leads(node.peer_id, replica.driver.raft.term)

    def client(self, *, ttl_s: float = 10.0, has_choice: bool | None = None) -> SimulatedClient:
        """``has_choice``: it goes where the leader is. None: about half of them do."""
        self._clients += 1
        return SimulatedClient(self, f"client-{self._clients}", ttl_s, has_choice)


class SimulatedClient:
    """A real session over the memory network, dialling whichever node answers; ``async with`` runs it."""

    def __init__(self, world: World, name: str, ttl_s: float, has_choice: bool | None = None) -> None:
        self.name = name
        self.clock = SimulatedClock(rate=world.random.uniform(*CLOCK_RATES))
        self._world = world
        self._ttl_s = ttl_s
        self._random = Random(world.random.getrandbits(64))
        # The others stay where they are, like the callers in a member's process: what they say to a follower is forwarded.
        self._has_choice = self._random.random() < 0.5 if has_choice is None else has_choice
        self._scope = trio.CancelScope()
        self.life = trio.CancelScope()  # whoever works with it does so in here, and ends with it
        self._opened = trio.Event()
        self.is_lost = False
        self.is_alive = False
        self.on_lost: Callable[[], object] = lambda: None
        self.connector: Connector
        self.transport: Any = None

    async def __aenter__(self) -> SimulatedClient:
        await self._world.nursery.start(self._live)
        self.is_alive = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Gone without a word: its session expires. What it was doing is never heard of again."""
        self.is_alive = False
        self._scope.cancel()
        self.life.cancel()
        self._lose()

    async def _live(self, task_status: Any) -> None:
        with self._scope:
            async with self._world.network.transport(self.name) as transport:
                self.transport = transport
                dialer: Dialer = StreamDialer(self._open_stream, has_choice=self._has_choice)
                self.connector = Connector(
                    dialer,
                    make_session=self._make_session,
                    clock=self.clock.boottime_ns,
                    random=self._random,
                    hello=Hello(1, self.name, self.name, 1),
                )
                task_status.started()
                await self.connector.run()

    def _make_session(self, reschedule: Callable[[], None]) -> Session:
        return Session(
            ttl_ns=int(self._ttl_s * 1e9),
            clock=self.clock.boottime_ns,
            random_bytes=self._random.randbytes,
            on_open=self._opened.set,
            on_lost=self._lose,
            reschedule=reschedule,
        )

    async def _open_stream(self, leader: LeaderIs | None) -> MessageStream:
        nodes = list(self._world.nodes)
        self._random.shuffle(nodes)
        if leader is not None:
            nodes.sort(key=lambda node: node.peer_id != leader.peer_id)
        failure = PeerUnreachable("there is no node")
        for node in nodes:
            try:
                stream: MessageStream = await self.transport.connect(
                    self._world.namespace, peer_id=node.peer_id, addresses=[f"/memory/{node.peer_id}"]
                )
            except PeerUnreachable as error:
                failure = error
            else:
                return stream
        raise failure

    def _lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.on_lost()

    @property
    def is_past_deadline(self) -> bool:
        """It must count itself out of whatever it holds."""
        return self.is_lost or self.clock.boottime_ns() >= self.connector.session.deadline_ns

    async def opened(self) -> None:
        await self._opened.wait()

    async def submit(self, command: Command[Any], timeout_s: float = 10.0, waits: bool = False) -> Any:
        """Raises ``TauraftError``; its ``outcome`` says whether it may have taken effect."""
        reply = _Reply()
        session = self.connector.session
        submission = session.submit(
            encode_message(command),
            None,
            waits=waits,
            timeout_ns=int(timeout_s * 1e9) if waits else None,
            plain_timeout_ns=int(timeout_s * 1e9),
            done=reply.finish,
        )
        try:
            value = await reply.value(command)
        except trio.Cancelled:
            session.abandon(submission)
            raise
        session.taken(submission)
        return value

    async def query(self, query: Query[Any], timeout_s: float = 10.0) -> Any:
        reply = _Reply()
        self.connector.session.ask(
            encode_message(query),
            None,
            consistency="linearizable",
            timeout_ns=int(timeout_s * 1e9),
            done=reply.finish,
        )
        return await reply.value(query)


class _Reply:
    def __init__(self) -> None:
        self._done = trio.Event()
        self._data: bytes | None = None
        self._error: BaseException | None = None

    def finish(self, data: bytes | None, error: BaseException | None) -> None:
        self._data, self._error = data, error
        self._done.set()

    async def value(self, message: Message[Any]) -> Any:
        await self._done.wait()
        if self._error is not None:
            raise self._error
        assert self._data is not None
        return decode_answer(message, self._data)


async def run_inline(work: Callable[[], Any]) -> Any:
    """In place of a worker thread: threads have an order of their own."""
    await trio.lowlevel.checkpoint()
    return work()


class Livelock(AssertionError):
    """Tasks ran on and on while time stood still: a deadline that never gets nearer, or a wait that never waits."""


class _LivelockWatch(trio.abc.Instrument):
    """Counts the scheduler's passes; cancels the run when too many fall into one millisecond."""

    LIMIT = 20_000

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._since_s = -1.0
        self._passes = 0
        self._steps: Counter[str] = Counter()

    def before_io_wait(self, timeout: float) -> None:
        now = trio.current_time()
        if now - self._since_s > 0.001:
            self._since_s, self._passes = now, 0
            return
        self._passes += 1
        if self._passes == self.LIMIT - 100:
            trio.lowlevel.add_instrument(_StepCounter(self._steps))
        elif self._passes == self.LIMIT:
            self._scope.cancel()

    def check(self) -> None:
        if self._passes >= self.LIMIT:
            raise Livelock(f"time stands still at {self._since_s:.3f} s while these run: {self._steps.most_common(3)}")


class _StepCounter(trio.abc.Instrument):
    def __init__(self, steps: Counter[str]) -> None:
        self._steps = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps[task.name] += 1


Story = Callable[[World], Awaitable[None]]


@contextmanager
def deterministic_scheduling(seed: int) -> Iterator[None]:
    """trio offers this to its own tests only; without it two runs of one seed differ. Of the whole process."""
    from trio._core import _run

    scheduler: Any = _run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r = Random(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = before


def reseed_scheduling(seed: int) -> None:
    """Begin the order of tasks anew, within ``deterministic_scheduling``."""
    from trio._core import _run

    scheduler: Any = _run
    scheduler._r.seed(seed)


def run_world(seed: int, story: Story, *, replicas: int = 3, time_limit_s: float = 3_600) -> None:
    """Play ``story`` in the world of ``seed``. Raises ``SeedFailed``."""

    async def main() -> None:
        with trio.fail_after(time_limit_s):
            async with trio.open_nursery() as nursery:
                watch = _LivelockWatch(nursery.cancel_scope)
                trio.lowlevel.add_instrument(watch)
                await story(World(seed, replicas, nursery))
                nursery.cancel_scope.cancel()
            watch.check()

    try:
        with deterministic_scheduling(seed):
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    except Exception as error:
        raise SeedFailed(f"seed {seed}: {_innermost(error)!r}") from error


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


__all__ = ["SeedFailed", "SimulatedClient", "SimulatedNode", "TauraftError", "World", "run_world"]
