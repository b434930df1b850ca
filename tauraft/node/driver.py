"""Drives one replica: carries out what the core decides, and nothing else touches its Raft.

It turns over and over: step what arrived, tick what is due, put what waits into one batch, then take
each ``Ready`` and do its duties in the order it states.  A frame, a proposal or a read turns it at once, in the task that
brought it, because a hop to another task costs the loop a whole pass; deadlines turn it in the one task of its own, which
also is where its failures come out.

The order that keeps promises 1 and 3 (thesis 10.2.1): messages that may leave at once go to the wire *before*
the disk is touched, so the followers' disks work while the leader's does; those that state something durable (votes, acks)
leave only after it; entries are applied only when committed and on this disk (SAFETY 12).

In:  frames from the channel, items from ``propose``, ``read_index``, the clock.
Out: frames, outcomes to listeners, ``RoleChange`` to those who asked.
Not here: when to tick (``pacer.py``), what entries mean (``apply.py``), who is a member (``formation``, ``upkeep.py``), moving snapshots (``snapshots.py``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Any, Final

import anyio
import anyio.lowlevel

from tauraft.core.log import AcknowledgedEntriesLost, Compacted
from tauraft.core.membership import MembershipChange, decode_change
from tauraft.core.messages import (
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Member,
    Membership,
    Message,
    Ready,
    Role,
    RoleChange,
    SnapshotMeta,
)
from tauraft.core.raft import ProposalDropped, Raft
from tauraft.errors import DataDirectoryError, InvalidCommand, NoLeader, Overloaded, PluginMissing
from tauraft.fsm import Message as FSMMessage
from tauraft.node import heartbeats, wire
from tauraft.node.apply import Machine
from tauraft.node.batch import BatchError, encode_batch, pack_item, unpack_items
from tauraft.node.clock import SECOND_NS, Clock, ClusterClock
from tauraft.node.divergence import Jury, Verdict
from tauraft.node.heartbeats import Finding, LeaderSays, MemberSays, Rounds, Watch
from tauraft.node.pacer import Pacer, Timing
from tauraft.node.proposals import ProposalQueue
from tauraft.node.reads import ReadQuestions
from tauraft.node.replica import Item, Outcome, SessionEvent, Suspension
from tauraft.node.snapshots import SnapshotMover
from tauraft.storage.log_store import Compacted as StoreCompacted, LogStore, StorageFull
from tauraft.system.messages import UNATTENDED, Activate, Announce, SetWall
from tauraft.transport.transport import Channel

# The folder, not the whole directory: the identity in it is what the new member takes the old one's place by.
MOVE_AWAY: Final = "Move the namespace's folder in its data directory away; it then joins as a new member that takes the place of this one"
_log = logging.getLogger("tauraft.node")
MAX_FOLDED_ROWS = 2_000  # into the digest at a tick: some milliseconds
TELL_COMMIT_NS = 5_000_000  # how long a follower with nobody waiting may be behind on what is committed
NEVER_NS = 1 << 63
QUIET_NS = 2 * SECOND_NS  # after which a leader beats at its idle pace
LONG_TURN_NS = 10_000_000  # after which the rest is left for the next
LONGER_NS = 10_000_000  # by which a deadline must have moved away before sleeping on is worth the trouble
HURRY_NS = SECOND_NS  # for so long after a forward its sender is told at once


class StoredLog:
    """The core's view of the log on disk (``core.log.LogView``), with the snapshot that others can be sent."""

    def __init__(self, store: LogStore, snapshot: SnapshotMeta) -> None:
        self._store = store
        self.snapshot = snapshot

    def first_index(self) -> int:
        return self._store.first_index

    def last_index(self) -> int:
        return self._store.last_index

    def term(self, index: int) -> int:
        try:
            return self._store.term(index)
        except StoreCompacted as gone:
            raise Compacted(index) from gone

    def entries(self, low: int, high: int, max_bytes: int) -> Sequence[Entry]:
        try:
            return self._store.read(low, high, max_bytes)
        except StoreCompacted as gone:
            raise Compacted(low) from gone

    def snapshot_meta(self) -> SnapshotMeta:
        return self.snapshot


class Driver:
    """The turning loop of one replica. Everything but ``run`` is called in the engine's loop and returns at once."""

    def __init__(
        self,
        *,
        me: Member,
        cluster_id: bytes,
        raft: Raft,
        log: StoredLog,
        store: LogStore,
        machine: Machine,
        channel: Channel,
        clock: Clock,
        cluster_clock: ClusterClock,
        timing: Timing,
        random: Random,
        snapshots: SnapshotMover,
        is_tail_suspect: bool,
        mark_halted: Callable[[str], object],
    ) -> None:
        self.me = me
        self.cluster_id = cluster_id
        self.raft = raft
        self.machine = machine
        self.timing = timing
        self._log, self._store, self._channel = log, store, channel
        self._clock, self._cluster_clock = clock, cluster_clock
        self._snapshots = snapshots
        self._random = random
        self._queue = ProposalQueue()
        self._inbox: list[tuple[str, Sequence[bytes]]] = []
        self._held: list[Message] = []  # ready to step once their snapshot is here
        self._wake = anyio.Event()
        self._is_running = self._is_turning = False
        self._is_behind = False  # the last turn left something for the next
        self._failure: Exception | None = None
        self._sleeps_until_ns = self._news_ns = clock.monotonic_ns()
        self._pacer = Pacer(timing, self._news_ns)
        self._sleep: anyio.CancelScope | None = None  # of ``run``, until ``_sleeps_until_ns``
        self._sleeps_briefly = False
        snapshots.send = lambda peer_id, frame, bulk: channel.send(peer_id, frame, bulk=bulk)
        snapshots.on_failed = self._snapshot_failed
        snapshots.offered_id = lambda: log.snapshot.id
        channel.set_context(cluster_id)
        self._decoded: dict[int, tuple[int, list[FSMMessage[Any] | None]]] = {}
        self._reads = ReadQuestions(random.getrandbits(40) << 20)
        self._when_applied: list[tuple[int, int, Callable[[], object]]] = []
        self._order = 0
        self._forwarded_ns: dict[str, int] = {}  # who forwards commands, and when it did last
        self._tell_commit_at_ns: int | None = None
        self._has_news = False  # what was committed is more than renewals: those can wait for the next heartbeat
        raft.hurry(frozenset())
        self._rounds, self._watch, self._jury = Rounds(), Watch(), Jury(me)
        self._boot = random.getrandbits(63)
        self.is_tail_suspect, self._is_resyncing = is_tail_suspect, False
        raft.may_vote = not is_tail_suspect
        self._leader_had: tuple[int, int] = (0, 0)  # term and end of the leader's log, as last heard
        self._is_split = False  # the replicas' states differ, and no majority says which counts
        self._unwritten: Ready | None = None  # the disk was full
        self._full = ""  # why, while it is
        self._retry_at_ns = 0
        self._incarnations = {m.peer_id: m.incarnation for m in raft.membership.all_members()}
        self._told_at: dict[str, int] = {}
        self.warnings: dict[str, str] = {}  # by peer, for people to see
        self.mark_halted = mark_halted
        # A timer is due, and what fires it is under way or may not be proposed now: the turn after the next commit or
        # tick sees to it, and waking for it before would spin.
        self._timers_wait = False
        # Leading: none is due before, unless something is applied, or the cluster's clock set. 0: it must be looked at.
        self._no_timer_before_ns = 0
        self._wall_settles_ns = 0
        self.on_applied: Callable[[int, Sequence[Outcome], Sequence[SessionEvent]], object] = _ignore
        self.on_role_change: Callable[[RoleChange], object] = _ignore
        self.stopped_by: PluginMissing | None = None  # nothing is applied any more; the rest goes on
        self.on_stopped: Callable[[PluginMissing], object] = _ignore
        self.on_membership: Callable[[Membership], object] = _ignore
        self.on_tick: Callable[[], object] = _ignore
        self.may_admit: Callable[[], bool] = lambda: True
        self.admit: Callable[[Item], Item] = lambda item: item
        self.begin_turn: Callable[[], object] = _ignore  # of the engine's
        self.end_turn: Callable[[], object] = _ignore
        self.linger: Callable[[], object] = _ignore
        self.give_way: Callable[[], object] = _ignore

    # What others ask of it.

    @property
    def leader(self) -> Member | None:
        return self.raft.leader

    @property
    def is_leader(self) -> bool:
        return self.raft.is_leader

    @property
    def suspension(self) -> Suspension | None:
        """See ``Replica.suspension``."""
        if self._full:
            return Suspension(
                f"the disk of this replica is full, and it takes nothing until there is space: {self._full}", True
            )
        if self._is_split:
            return Suspension(
                "the replicas hold different states, and no majority of them agrees: nothing is served until one does; see "
                "`tauraft recover`", False,
            )  # fmt: skip
        return None

    def propose(self, items: Sequence[Item]) -> None:
        """See ``Replica.propose``."""
        suspension = self.suspension
        if suspension is not None:
            raise suspension.error()
        leader = self.raft.leader
        if leader is None:
            raise NoLeader(
                "no leader is known at this moment; nothing was sent: try again, or see `tauraft status` for who is missing"
            )
        if leader == self.me:
            self._queue.add(items)
            self._turn_now()
            return
        frame = wire.pack(wire.FORWARD, [pack_item(item) for item in items])
        self._channel.send(leader.peer_id, frame)

    def propose_change(self, change: MembershipChange) -> int:
        """Leader only; raises what the core refuses. Returns the index of its entry."""
        index = self.raft.change_membership(change)
        self.wake()
        return index

    def read_index(self, done: Callable[[int | None], object]) -> None:
        if self.raft.leader is None or self.suspension is not None:
            done(None)
            return
        self._reads.add(done)
        self._turn_now()

    def when_applied(self, index: int, done: Callable[[], object]) -> None:
        if self.machine.applied_index >= index:
            done()
            return
        self._order += 1
        heappush(self._when_applied, (index, self._order, done))

    def frames_received(self, sender: str, frames: Sequence[bytes]) -> None:
        self._inbox.append((sender, frames))
        self._turn_now()

    def peer_closed(self, peer_id: str) -> None:
        """Its stream ended. If it led, its process most likely died: ask for votes at once (DESIGN, formation 6)."""
        leader = self.raft.leader
        if leader is not None and leader.peer_id == peer_id and leader != self.me:
            self.raft.leader_connection_lost()
            self.wake()

    def set_members(self, members: Mapping[str, Sequence[str]]) -> None:
        self._channel.set_members(members)
        self._pacer.set_alone(not members, self._clock.monotonic_ns())

    def wake(self) -> None:
        self._wake.set()

    # The loop.

    async def run(self) -> None:
        """Until cancelled, or until the disk or a plugin makes it unsafe to go on: that exception comes out."""
        self._is_running = True
        try:
            while True:
                if self._failure is not None:
                    raise self._failure
                self.turn()
                if self._wake.is_set():
                    # A turn may have taken long; others on this loop get theirs before the next.
                    await anyio.lowlevel.checkpoint()
                else:
                    self._sleeps_until_ns, self._sleeps_briefly = self._next_deadline_ns(), False
                    # Rounded up to a microsecond: waking a hair early would spin.
                    sleep_s = math.ceil((self._sleeps_until_ns - self._clock.monotonic_ns()) / 1_000) / 1e6
                    with anyio.move_on_after(max(0.0, sleep_s)) as self._sleep:
                        await self._wake.wait()
                    self._sleep = None
                if self._wake.is_set():
                    self._wake = anyio.Event()
        finally:
            self._is_running = False

    def close(self) -> None:
        self._store.close()

    def clock_ns(self) -> int:
        return self._clock.monotonic_ns()

    def is_connected(self, peer_id: str) -> bool:
        return self._channel.is_connected(peer_id)

    def _turn_now(self) -> None:
        """In the task of whoever brought something. What goes wrong comes out of ``run``."""
        if self._is_turning or self._is_behind or not self._is_running or self._failure is not None:
            self.wake()
            return
        try:
            self.turn()
        except Exception as error:
            self._failure = error
            self.wake()
        else:
            self._sleep_until(self._next_deadline_ns())
            if self.is_leader and self.raft.commit == self.raft.commit_pending_index():
                self.linger()

    def _sleep_until(self, deadline_ns: int) -> None:
        """``run`` sleeps on until then: it is not woken only to lie down again."""
        if self._sleep is None:
            if deadline_ns < self._sleeps_until_ns:
                self.wake()
            return
        change_ns = deadline_ns - self._sleeps_until_ns
        if change_ns < 0 or (change_ns > LONGER_NS and not self._sleeps_briefly):
            self._sleep.deadline += change_ns / SECOND_NS
            self._sleeps_until_ns = deadline_ns
            # What is owed for some milliseconds comes and goes with every write: it is cheaper to wake for nothing.
            self._sleeps_briefly = deadline_ns == self._tell_commit_at_ns

    def turn(self) -> None:
        self._is_turning, self._is_behind = True, False
        self.begin_turn()
        self._channel.cork()
        try:
            if self._unwritten is None or self._try_again(self._unwritten):
                self._turn_raft()
        finally:
            self._is_turning = False
            # Callers first: they go on while the followers are told what was committed.
            self.end_turn()
        self._channel.flush()

    def _turn_raft(self) -> None:
        self._step_inbox()
        self._tick_when_due()
        self._propose_batch()
        self._ask_reads()
        must_end_ns = self._clock.monotonic_ns() + LONG_TURN_NS
        while self._unwritten is None and self.raft.has_ready():
            self._perform(self.raft.ready())
            self._ask_reads()
            self._propose_batch()
            if self._clock.monotonic_ns() > must_end_ns and self.raft.has_ready():
                # There is much to catch up with. ``run`` goes on, and others on this loop get their turn in between.
                self._is_behind = True
                self.wake()
                break
        self._owe_commit()

    def _owe_commit(self) -> None:
        """A message of its own for each follower costs more than all else of a lone write: others may wait a little."""
        if not self.raft.owes_commit:
            self._tell_commit_at_ns, self._has_news = None, False
        elif self._has_news and self._tell_commit_at_ns is None:
            self._tell_commit_at_ns = self._clock.monotonic_ns() + TELL_COMMIT_NS

    def _step_inbox(self) -> None:
        while self._inbox or self._held:
            inbox, self._inbox = self._inbox, []
            held, self._held = self._held, []
            for message in held:
                self.raft.step(message)
            for sender, frames in inbox:
                for frame in frames:
                    self._take_frame(sender, frame)

    def _take_frame(self, sender: str, frame: bytes) -> None:
        kind = frame[0] if frame else -1
        try:
            if kind == wire.RAFT:
                self._take_message(wire.decode_message(frame, sender, self.me.peer_id))
            elif kind == wire.FORWARD:
                self._take_forwarded(sender, unpack_items(wire.unpack(frame)))
            elif kind in (wire.PULL, wire.CHUNK):
                self._snapshots.take_frame(sender, frame)
            elif kind == wire.EXCLUDED:
                self._take_excluded(sender, frame)
            elif kind == wire.MISMATCH:
                self._take_mismatch(sender, frame)
        except (wire.WireError, BatchError) as error:
            self._snapshots.refused_frame(sender, error)

    def _take_message(self, message: Message) -> None:
        if message.cluster_id != self.cluster_id:
            return
        if message.to != self.me:
            self._answer_mismatch(message)
            return
        if self._incarnations.get(message.sender.peer_id, 0) not in (0, message.sender.incarnation):
            self._answer_mismatch(message)
        if isinstance(message, Heartbeat):
            self._hear_heartbeat(message)
        elif isinstance(message, HeartbeatReply):
            self._hear_reply(message)
        elif isinstance(message, InstallSnapshot) and message.meta.index > self.raft.commit:
            # Its bytes come first, then the core is told.
            self._snapshots.fetch(message, self._snapshot_arrived, self.machine)
            return
        try:
            self.raft.step(message)
        except AcknowledgedEntriesLost as lost:
            self._halt(f"{lost}: this disk is an older copy of itself, or another's. {MOVE_AWAY}")

    def _snapshot_arrived(self, message: InstallSnapshot) -> None:
        self._held.append(message)
        self.wake()

    def _snapshot_failed(self, member: Member) -> None:
        self.raft.report_snapshot(member, False)
        self.wake()

    def snapshot_taken(self, meta: SnapshotMeta, keep_entries: int) -> None:
        """It is durable: others can be sent it, and the log below it, but for a margin for slow followers, may go."""
        self._log.snapshot = meta
        try:
            self._store.compact_prefix(meta.index - keep_entries)
        except StorageFull as full:
            _log.warning("the log was not compacted: %s", full)  # the next snapshot does it

    def _take_forwarded(self, sender: str, items: list[Item]) -> None:
        if self.is_leader:
            # What is refused is dropped: the replica that forwarded it tries again, and answers its client.
            for item in items:
                try:
                    admitted = self.admit(item)
                    self._queue.add([admitted])
                except (InvalidCommand, Overloaded) as refused:
                    _log.warning("a forwarded command was dropped: %s", refused)
                else:
                    if not isinstance(admitted.message, UNATTENDED):
                        self._hurry_for(sender)

    def _hurry_for(self, sender: str) -> None:
        """Callers wait there. (Not for keepalives, which come all the time.)"""
        if sender not in self._forwarded_ns:
            self.raft.hurry(frozenset([*self._forwarded_ns, sender]))
        self._forwarded_ns[sender] = self._clock.monotonic_ns()

    def _tick_when_due(self) -> None:
        now = self._clock.monotonic_ns()
        if self._tell_commit_at_ns is not None and now >= self._tell_commit_at_ns:
            self._tell_commit_at_ns, self._has_news = None, False
            self.raft.tell_commit()
        ticks = self._pacer.ticks_due(now, self._may_idle)
        if not ticks:
            return
        if self.is_leader:
            self.raft.set_heartbeat_payload(self._heartbeat_payload(now))
        self.raft.tick(ticks)
        for sender in [sender for sender, at_ns in self._forwarded_ns.items() if now - at_ns > HURRY_NS]:
            del self._forwarded_ns[sender]
            self.raft.hurry(frozenset(self._forwarded_ns))
        self._retry_reads(now)
        self._snapshots.tick()
        self._resync_tail()
        self.machine.tables.fold(MAX_FOLDED_ROWS)
        self._set_wall_back(now)
        self.on_tick()

    def _set_wall_back(self, now: int) -> None:
        """The voters' wall clocks were set back: so is the cluster's, by an entry that says so (SAFETY 20)."""
        if not self.is_leader or self._is_split or not self.may_admit() or now < self._wall_settles_ns:
            return
        wall_ns = self._cluster_clock.set_wall_back(self.machine.wall_ns)
        if wall_ns is not None:
            self._wall_settles_ns = now + int(self.timing.election_s * SECOND_NS)
            command = SetWall(wall_ns)
            self._queue.add_first(Item(0, 0, 0, 0, self.machine.registry.encode(command), command))

    def _may_idle(self) -> bool:
        """A leader to whom nothing happens needs no more heartbeats than keep its followers."""
        if not self.is_leader or self._clock.monotonic_ns() - self._news_ns <= QUIET_NS:
            return False
        membership = self.raft.membership
        return self.may_admit() and not membership.learners and not membership.is_joint

    def _next_deadline_ns(self) -> int:
        now = self._clock.monotonic_ns()
        if self._unwritten is not None:
            return self._retry_at_ns
        deadline = self._pacer.next_tick_ns
        if self._tell_commit_at_ns is not None:
            deadline = min(deadline, self._tell_commit_at_ns)
        if self.is_leader and not self._timers_wait:
            delay = self._until_timer_ns()
            self._no_timer_before_ns = NEVER_NS if delay is None else now + delay
            deadline = min(deadline, self._no_timer_before_ns)
        return deadline

    def _until_timer_ns(self) -> int | None:
        """How long on the local clock until a timer is due; None: nobody knows now, or there is none."""
        timer, wall_timer = self.machine.next_deadlines_ns()
        delay = None if timer is None else self._cluster_clock.until_now_ns(timer)
        if wall_timer is None:
            return delay
        wall_delay = self._cluster_clock.until_wall_ns(wall_timer)
        if delay is None or wall_delay is None:
            return wall_delay if delay is None else delay
        return min(delay, wall_delay)

    # Proposals.

    def _propose_batch(self) -> None:
        if not self.is_leader:
            if len(self._queue):
                self._forward_leftovers()
            return
        self._timers_wait = self._is_split
        if self._is_split:
            return
        while True:
            if not len(self._queue) and self._no_timer_before_ns > self._clock.monotonic_ns():
                return
            must_tick = self._until_timer_ns() == 0
            if not must_tick and self._may_wait():
                return
            now_ns, wall_ns = self._cluster_clock.stamp()
            items: list[Item] = []
            if not self.may_admit():
                items = self._queue.take_only(is_upkeep)
            elif not (must_tick and self.machine.has_backlog(now_ns, wall_ns)):
                items = self._queue.take()
            if not items and not (must_tick and self._tick_is_wanted()):
                self._timers_wait = must_tick
                return
            data = encode_batch(now_ns, wall_ns, self.me.peer_id, items)
            try:
                index, term = self.raft.propose(data)
            except ProposalDropped:
                # Transferring, or the log is full of uncommitted bytes: they wait.
                for item in reversed(items):
                    self._queue.add_first(item)
                self._timers_wait = must_tick
                return
            self._decoded[index] = (term, [item.message for item in items])
            if not len(self._queue):
                self._timers_wait = must_tick  # this entry fires them
                return

    def _may_wait(self) -> bool:
        """Keepalives go with the next heartbeat, if that is soon: an idle follower is woken once for both, and answers once."""
        if self._pacer.has_ticked or self._pacer.is_alone:
            return not len(self._queue)
        return self._queue.may_wait(self._pacer.next_tick_ns - self._clock.monotonic_ns())

    def _tick_is_wanted(self) -> bool:
        """One tick under way is enough: the same timers must not be proposed again before it is applied."""
        return self.raft.commit_pending_index() <= self.machine.applied_index

    def _forward_leftovers(self) -> None:
        """Was leader when these were queued."""
        leader = self.raft.leader
        waiting = self._queue.clear()
        if leader is not None and leader != self.me:
            self._channel.send(leader.peer_id, wire.pack(wire.FORWARD, [pack_item(item) for item in waiting]))

    # Reads.

    def _ask_reads(self) -> None:
        if self._reads.has_waiting and self.raft.leader is not None:
            self.raft.read_index(self._reads.ask(self._clock.monotonic_ns()))

    def _retry_reads(self, now: int) -> None:
        """A read whose question was lost is asked again; without a leader it is told so."""
        self._reads.ask_again(now - int(self.timing.election_s * SECOND_NS))
        if self.raft.leader is None:
            self._reads.give_up_waiting()

    # Duties.

    def _perform(self, ready: Ready) -> None:
        if ready.role_change is not None:
            self._change_role(ready.role_change)
        self._send(ready.messages_now)
        if ready.messages_now and (ready.entries or ready.hard_state is not None):
            self._hand_over()
        try:
            self._write(ready)
        except StorageFull as full:
            self._suspend(ready, full)
        else:
            self._written(ready)

    def _write(self, ready: Ready) -> None:
        """To disk. May be done again as a whole when it raised ``StorageFull``."""
        if ready.snapshot is not None:
            self._install(ready.snapshot, ready.hard_state)
        if ready.entries:
            self._store.append(ready.entries, ready.hard_state)
        elif ready.hard_state is not None and ready.snapshot is None:
            self._store.save_hard_state(ready.hard_state)

    def _written(self, ready: Ready) -> None:
        if ready.messages_after_persist:
            self._send(ready.messages_after_persist)
            if ready.committed:
                self._hand_over()  # the leader waits for these, and for nobody's state
                self.give_way()
        self.raft.persisted(ready.number)
        self._see_stamp(ready.entries)
        if ready.committed:
            self._apply(ready.committed)
        for read in ready.reads:
            for done in self._reads.answered(read.context):
                self.when_applied(read.index, partial(done, read.index))

    # A full disk (SAFETY 32). To Raft it is a slow one: what waits to be written holds back all that would follow from it.

    def _suspend(self, ready: Ready, full: StorageFull) -> None:
        if not self._full:
            _log.error("%s: nothing is taken until there is space", full)
        self._unwritten, self._full = ready, str(full)
        self._retry_at_ns = self._clock.monotonic_ns() + SECOND_NS
        if self.is_leader:
            # The others elect one that can write.
            self.raft.become_follower(self.raft.term, None)
            self._change_role(RoleChange(Role.FOLLOWER, self.raft.term, None))
        self._reads.give_up()

    def _try_again(self, ready: Ready) -> bool:
        # Raft stands still meanwhile: what is said to it now is said again later.
        self._inbox.clear()
        if self._clock.monotonic_ns() < self._retry_at_ns:
            return False
        try:
            self._write(ready)
        except StorageFull as full:
            self._suspend(ready, full)
            return False
        self._unwritten, self._full = None, ""
        _log.warning("there is space again: this replica goes on")
        self._written(ready)
        return True

    def _hand_over(self) -> None:
        """In the middle of a turn: what was sent leaves now."""
        self._channel.flush()
        self._channel.cork()

    def _send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            sent = self._channel.send(message.to.peer_id, wire.encode_message(message))
            if not sent:
                self.raft.report_unreachable(message.to)
            if isinstance(message, InstallSnapshot):
                self._snapshots.offered(message.to)

    def _change_role(self, change: RoleChange) -> None:
        self._pacer.role_changed(self._clock.monotonic_ns())
        if self.raft.is_leader:
            self._rounds, self._watch, self._jury = Rounds(), Watch(), Jury(self.me)
            self._no_timer_before_ns = 0
            self._cluster_clock.start_leading()
            if self.raft.membership.voters == {self.me}:
                self._cluster_clock.confirmed((), ())  # it is the quorum, and its clock is the cluster's
            self._snapshots.forget_offers()
        self.on_role_change(change)

    def _see_stamp(self, entries: Sequence[Entry]) -> None:
        """The last stamp in the own log, also of entries not committed yet (SAFETY 15)."""
        for entry in reversed(entries):
            if entry.kind is EntryKind.BATCH:
                term, _ = self._decoded.get(entry.index, (0, None))
                if term != entry.term:
                    # Not stamped here: what was once proposed at this index may have been overwritten.
                    batch = self.machine.batch_of(entry)
                    self._cluster_clock.saw_in_log(batch.now_ns, batch.wall_ns)
                return

    def see_last_stamp(self, last_index: int) -> None:
        """At start: the newest stamp in the log, committed or not."""
        for index in range(last_index, self._store.first_index - 1, -1):
            entry = self._store.read(index, index + 1, 1)[0]
            if entry.kind is EntryKind.BATCH:
                self._see_stamp([entry])
                return

    def _apply(self, entries: Sequence[Entry]) -> None:
        self._no_timer_before_ns = 0
        for entry in entries:
            if self.stopped_by is not None:
                return
            outcomes: Sequence[Outcome] = ()
            events: Sequence[SessionEvent] = ()
            if entry.kind is EntryKind.BATCH:
                term, decoded = self._decoded.pop(entry.index, (0, None))
                try:
                    outcomes, events = self.machine.apply(entry, decoded if term == entry.term else None)
                except PluginMissing as missing:
                    self._stop_applying(missing)
                    return
            elif entry.kind is EntryKind.CONFIG:
                membership = self.raft.apply_membership(decode_change(entry.data))
                self.machine.skip(entry.index, entry.term)
                self.machine.membership = membership
                self._membership_changed(membership)
            else:
                self.machine.skip(entry.index, entry.term)
            if entry.kind is not EntryKind.BATCH or not self.machine.only_renewed:
                self._has_news = True
                self._news_ns = self._clock.monotonic_ns()
            self.raft.applied(entry.index)
            self.on_applied(entry.index, outcomes, events)
        while self._when_applied and self._when_applied[0][0] <= self.machine.applied_index:
            heappop(self._when_applied)[2]()

    def _stop_applying(self, missing: PluginMissing) -> None:
        """Before an entry that this process cannot run: it persists and votes on, and never leads (SAFETY 27)."""
        self.stopped_by = missing
        self.raft.never_lead()
        _log.error("%s", missing)
        self.on_stopped(missing)

    def _install(self, meta: SnapshotMeta, hard_state: HardState | None) -> None:
        if self.stopped_by is None:
            try:
                self._snapshots.restore(meta, self.machine)
            except PluginMissing as missing:
                self._stop_applying(missing)
        self._store.reset_at(meta, hard_state)
        self._log.snapshot = meta
        self._decoded.clear()
        self._membership_changed(meta.membership)
        if self.stopped_by is not None:
            return
        self._cluster_clock.saw_in_log(self.machine.now_ns, self.machine.wall_ns)
        self.on_applied(meta.index, (), ())
        while self._when_applied and self._when_applied[0][0] <= self.machine.applied_index:
            heappop(self._when_applied)[2]()

    # Heartbeats carry the clocks, the logs' ends, the digests (``heartbeats``).

    def _heartbeat_payload(self, now: int) -> bytes:
        cluster_now, _ = self._cluster_clock.stamp()
        self._rounds.start(now)
        self._watch.start_round(self.raft.acknowledged())
        if self.raft.membership.voters == {self.me}:
            self._cluster_clock.confirmed((), ())
            self._no_timer_before_ns = 0
        verdict = self._jury.verdict or Verdict(0, b"")
        last_index = self.raft.commit_pending_index()
        return LeaderSays(
            self._rounds.number, cluster_now, last_index, self._jury.asked, verdict.index, verdict.digest
        ).encode()

    def _hear_heartbeat(self, message: Heartbeat) -> None:
        if not message.payload or message.term < self.raft.term:
            return
        self._pacer.heard_leader()
        says = heartbeats.decode(LeaderSays, message.payload)
        self._cluster_clock.saw(says.now_ns)
        self._take_verdict(Verdict(says.verdict, says.digest) if says.verdict else None)
        self._leader_had = (message.term, says.last_index)
        checkpoint, digest = self.machine.checkpoints.answer(says.asked)
        mine = MemberSays(
            says.round, self._clock.monotonic_ns(), self._clock.wall_ns(), self._boot, self._store.last_index,
            self.is_tail_suspect, checkpoint, digest,
        )  # fmt: skip
        self.raft.set_reply_payload(mine.encode())

    def _hear_reply(self, message: HeartbeatReply) -> None:
        if not message.payload or not self.is_leader or message.term != self.raft.term:
            return
        says = heartbeats.decode(MemberSays, message.payload)
        member, voters = message.sender, self.raft.membership.voters
        if member in voters and self._rounds.answered(member, says, len(voters)):
            self._cluster_clock.confirmed(self._rounds.elapsed(), self._rounds.walls(voters), len(voters))
            self._no_timer_before_ns = 0
        if says.round == self._rounds.number:
            self._judge_disk(member, self._watch.heard(member, says))
        self._jury.heard(member, says.checkpoint, says.digest, self.machine.checkpoints, voters)
        self._take_verdict(self._jury.verdict)

    # Disks that are not what they were, states that differ (SAFETY 14, 23, 28).

    def _judge_disk(self, member: Member, finding: Finding) -> None:
        match finding:
            case Finding.LOST_TAIL:
                self.raft.forget_progress(member)
            case Finding.RESTORED:
                self._exclude(
                    member, "its log holds less than it had acknowledged, as a disk restored from a backup does"
                )
            case Finding.CLONED:
                self._exclude(member, "two processes run on copies of its disk")
            case Finding.SOUND:
                pass

    def _exclude(self, member: Member, why: str) -> None:
        text = f"{member.peer_id} was taken out of service: {why}. {MOVE_AWAY}"
        if self.warnings.get(member.peer_id) != text:
            _log.error("%s", text)
        self.warnings[member.peer_id] = text
        self._channel.send(member.peer_id, wire.pack(wire.EXCLUDED, [self.cluster_id, member.incarnation, text]))

    def _take_excluded(self, sender: str, frame: bytes) -> None:
        cluster_id, incarnation, text = wire.fields(frame, bytes, int, str)
        leader = self.raft.leader
        if (cluster_id, incarnation) == (self.cluster_id, self.me.incarnation) and leader and leader.peer_id == sender:
            self._halt(text)

    def _take_verdict(self, verdict: Verdict | None) -> None:
        self._is_split = verdict is not None and not verdict.digest
        if verdict is None or not verdict.digest:
            return
        mine = self.machine.checkpoints.get(verdict.index)
        if mine is not None and mine != verdict.digest:
            self._halt(
                f"the state of this replica ({self.me.peer_id}) at entry {verdict.index} is not that of the majority: its "
                f"disk or its memory is damaged, or a plugin is not deterministic. {MOVE_AWAY}"
            )

    def _halt(self, why: str) -> None:
        """For good: a restart must not bring it back either. Raises."""
        self.mark_halted(why)
        raise halted(why)

    def _membership_changed(self, membership: Membership) -> None:
        self._incarnations = {m.peer_id: m.incarnation for m in membership.all_members()}
        self.on_membership(membership)

    def _answer_mismatch(self, message: Message) -> None:
        """It is meant for, or comes from, another incarnation: whoever sent it is told what is known here (SAFETY 14)."""
        peer_id, now = message.sender.peer_id, self._clock.monotonic_ns()
        if now - self._told_at.get(peer_id, -SECOND_NS) >= SECOND_NS:
            self._told_at[peer_id] = now
            known = self._incarnations.get(peer_id, 0)
            told = [self.cluster_id, self.me.incarnation, message.sender.incarnation, known]
            self._channel.send(peer_id, wire.pack(wire.MISMATCH, told))

    def _take_mismatch(self, sender: str, frame: bytes) -> None:
        cluster_id, theirs, mine, known = wire.fields(frame, bytes, int, int, int)
        if cluster_id != self.cluster_id or mine != self.me.incarnation:
            return
        if self._incarnations.get(sender, 0) not in (0, theirs):
            self.warnings[sender] = (
                f"{sender} runs with another disk than the one that is a member; its old one is replaced when it asks to join"
            )
        elif known not in (0, mine):
            self.warnings[sender] = f"{sender} knows another disk of this node as the member: this one was replaced"

    # A tail that may be lost (SAFETY 23).

    def _resync_tail(self) -> None:
        """Vote again once this log holds all that a leader could believe it had acknowledged."""
        if not self.is_tail_suspect or self._is_resyncing or self.raft.leader is None:
            return
        self._is_resyncing = True
        self.read_index(self._tail_is_read)

    def _tail_is_read(self, index: int | None) -> None:
        # All that was committed when it was asked is applied here. What was acknowledged and not yet committed lay within
        # the leader's log, whose end came with its heartbeat.
        self._is_resyncing = False
        term, last_index = self._leader_had
        if index is None or term != self.raft.term or self.raft.commit < last_index:
            return
        try:
            self._store.confirm_tail()
        except StorageFull:
            return
        self.is_tail_suspect = False
        self.raft.may_vote = True


def halted(why: str) -> DataDirectoryError:
    return DataDirectoryError(f"this replica has halted for good: {why}")


def is_upkeep(item: Item) -> bool:
    """What brings the plugins up must not wait for them."""
    return isinstance(item.message, (Announce, Activate))


def _ignore(*_: object) -> None:
    return None
