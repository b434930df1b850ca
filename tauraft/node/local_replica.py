"""One replica of one namespace, as the rest of the process knows it (``node.replica.Replica``).

Ties together the driver (what Raft decides), the machine (what entries mean) and the plugins' registry (how
messages look), and does the upkeep that replicas owe each other: announcing where one is, and activating the plugins that every voter can run.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import Any

import anyio

from tauraft.core.membership import MembershipChange, Step, StepKind
from tauraft.core.messages import Member, Membership, RoleChange
from tauraft.core.raft import MembershipChangeRefused
from tauraft.errors import (
    InvalidCommand,
    NoLeader,
    NotLeader,
    PluginMissing,
    Refused,
    Suspended,
    TauraftError,
    Unavailable,
)
from tauraft.fsm import Message, Query
from tauraft.node import report
from tauraft.node.apply import Machine
from tauraft.node.change_log import ChangeLog
from tauraft.node.driver import Driver
from tauraft.node.forwarding import FORWARDED
from tauraft.node.replacement import DeadVoters, Domain
from tauraft.node.replica import (
    Item,
    LeaderInfo,
    Outcome,
    ReplicaListener,
    SessionEvent,
    StoredState,
    Suspension,
)
from tauraft.node.snapshots import SnapshotMover
from tauraft.node.sql import DEFAULT_TIMEOUT_S, Projection, as_of_from_wire
from tauraft.plugin_manager import Registry
from tauraft.sql_values import from_wire
from tauraft.storage.log_store import StorageFull
from tauraft.storage.snapshot_store import SnapshotNotFound
from tauraft.system.messages import SYSTEM, UNATTENDED, Activate, Announce
from tauraft.system.tables import ReplicaRow

_log = logging.getLogger("tauraft.node")
FIRST_ACTIVATION_TICKS = 50  # how long a new cluster waits for a founder that does not say what it can run
SETTLE_TICKS = 10  # how long a later leader holds commands back for a plugin that is about to be active
FOR_THE_LEADER = frozenset({"add_voter", "add_learner", "remove_server", "transfer_leadership"})
CALL_IN_S = 8.0
STOPPED_ANNOUNCEMENT_TICKS = 600  # how often a replica that applies nothing says what it can run
FULL_PAUSE_S = 10.0
RUNG_SIZES = (1, 3, 5)  # voters grow 1 -> 3 -> 5, each in one joint change (FORMATION 6)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What this process announces of its replica."""

    addresses: tuple[str, ...]
    host: str
    machine_id: str
    disk: str


class LocalReplica:
    """See ``Replica``. Made by ``node.host``; ``driver.run`` is its only task."""

    def __init__(
        self,
        namespace: str,
        driver: Driver,
        registry: Registry,
        whereabouts: Whereabouts,
        *,
        max_voters: int = 5,
        snapshots: SnapshotMover,
        snapshot_entries: int,
        projection: Projection,
    ) -> None:
        self.namespace = namespace
        self.driver = driver
        self.machine: Machine = driver.machine
        self.registry = registry
        self.me: Member = driver.me
        self.peer_id = driver.me.peer_id
        self.cluster_id = driver.cluster_id
        self.whereabouts = whereabouts
        self._max_voters = max_voters
        self._listeners: list[ReplicaListener] = []
        self._leader: Member | None = None
        self._proposed_at: dict[str, int] = {}
        self._ticks = self._leading_since = self._stopped_at = 0
        self._is_settled = False  # as a leader: its plugins are up, and commands are taken
        self._announced: tuple[ReplicaRow, Whereabouts] | None = None  # as last found to be right
        self._none_due_at: tuple[int, Membership, bool] | None = None  # where nothing was to be activated
        self._calls: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "status": self._status,
            "members": self._members,
            "add_voter": self._add_voter,
            "add_learner": self._add_learner,
            "remove_server": self._remove_server,
            "transfer_leadership": self._transfer_leadership,
            "sql": self._sql,
            "snapshot": self._snapshot,
        }
        # Given by the namespace: to the leader elsewhere, and to a node that is to join.
        self.forward: Callable[[LeaderInfo, str, dict[str, Any]], Awaitable[Any]] | None = None
        self.invite: Callable[[str, Sequence[str]], Awaitable[bool]] | None = None
        self.problems: dict[str, str] = {}  # by peer: what is wrong with it, for the status
        self._dead_voters: DeadVoters | None = None  # as a leader that has learners
        self.has_heard_leader = anyio.Event()
        self._members_changed_event = anyio.Event()
        self.leaderless_since_ns = driver.clock_ns()
        self._projection = projection
        self._leader_known = anyio.Event()
        self._taking = anyio.Lock()
        self._snapshots = snapshots
        self._snapshot_entries = snapshot_entries
        self._snapshot_wanted = anyio.Event()
        self._snapshot_index = driver.machine.applied_index
        driver.on_membership = self._members_changed
        driver.may_admit = lambda: self._is_settled
        driver.admit = self._admitted
        driver.on_applied = self._applied
        driver.on_role_change = self._role_changed
        driver.on_tick = self._tick
        driver.on_stopped = self._stopped
        self.stopped = anyio.Event()

    # The face of ``Replica``.

    @property
    def applied_index(self) -> int:
        return self.machine.applied_index

    @property
    def change_log(self) -> ChangeLog:
        return self.machine.change_log

    @property
    def is_leader(self) -> bool:
        return self.driver.is_leader

    @property
    def suspension(self) -> Suspension | None:
        return self.driver.suspension

    @property
    def leader(self) -> LeaderInfo | None:
        leader = self.driver.leader
        return None if leader is None else LeaderInfo(leader.peer_id, self.addresses_of(leader.peer_id))

    @property
    def trouble(self) -> str:
        """Why it does not serve at the moment, in a clause; empty while it does."""
        return report.trouble(self)

    def addresses_of(self, peer_id: str) -> tuple[str, ...]:
        if peer_id == self.peer_id:
            return self.whereabouts.addresses
        row = self.machine.system.replicas.get(peer_id)
        return () if row is None else row.addresses

    def propose(self, items: Sequence[Item]) -> None:
        self.driver.propose([self._admitted(item) for item in items])

    def _admitted(self, item: Item) -> Item:
        """The leader checks what enters the log, also what others forward (SAFETY 29)."""
        if item.message is not None and self.registry.knows(item.message):
            return item
        message = self.decode(item.payload)
        if not item.session and not isinstance(message, UNATTENDED):
            raise InvalidCommand(f"{message.fsm}/{message.tag} needs a session; nothing changed")
        return Item(item.session, item.sequence, item.acked_below, item.wait_ns, item.payload, message)

    def propose_system(self, message: Message[Any]) -> None:
        """For the system's own commands (session 0)."""
        self.driver.propose([Item(0, 0, 0, 0, self.registry.encode(message), message)])

    def stored(self, session: int, sequence: int) -> Outcome | StoredState:
        return self.machine.stored(session, sequence)

    def may_attach(self, session: int, secret: bytes, peer_id: str) -> bool:
        found = self.machine.sessions.get(session)
        return (
            found is not None
            and found.peer_id == peer_id
            and compare_digest(found.secret_hash, sha256(secret).digest())
        )

    def read_index(self, done: Callable[[int | None], object]) -> None:
        self.driver.read_index(done)

    def when_applied(self, index: int, done: Callable[[], object]) -> None:
        self.driver.when_applied(index, done)

    def answer(self, query: Query[Any]) -> Any:
        return self.machine.answer(query)

    def decode(self, payload: bytes) -> Message[Any]:
        return self.registry.decode(payload)

    def encode_answer(self, message: Message[Any], value: Any) -> bytes:
        return self.registry.encode_answer(message, value)

    def add_listener(self, listener: ReplicaListener) -> None:
        self._listeners.append(listener)

    def remove_listener(self, listener: ReplicaListener) -> None:
        self._listeners.remove(listener)

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        found = self._calls.get(method)
        if found is None:
            raise InvalidCommand(f"no such request: {method}")
        if method in FOR_THE_LEADER and not self.is_leader and self.forward is not None:
            leader = self.leader
            if leader is None:
                raise NoLeader(f"no leader is known, so {method} could not be sent to it; nothing was done")
            if FORWARDED not in arguments:
                return await self.forward(leader, method, arguments)
        return await found(arguments)

    # Its tasks.

    async def run(self) -> None:
        """Until cancelled, or until it is unsafe to go on: that exception comes out. ``close`` is then still owed."""
        self._members_changed(self.machine.membership)
        await self._projection.open()
        async with anyio.create_task_group() as tasks:
            self._snapshots.spawn = lambda task: tasks.start_soon(task)
            tasks.start_soon(self.driver.run)
            tasks.start_soon(self._take_snapshots)
            tasks.start_soon(self._projection.run)

    async def _take_snapshots(self) -> None:
        while True:
            await self._snapshot_wanted.wait()
            try:
                await self.take_snapshot()
            except StorageFull as full:
                _log.warning("no snapshot was taken: %s", full)
                await anyio.sleep(FULL_PAUSE_S)  # the next entry asks again
            self._snapshot_wanted = anyio.Event()

    async def take_snapshot(self) -> int:
        """Returns its index; it is durable and verified by its digest, and the log below it may be gone."""
        async with self._taking:
            generation = self.machine.generation
            try:
                meta = await self._snapshots.take(self.machine, lambda: self.machine.generation == generation)
            except SnapshotNotFound:
                return self.machine.applied_index  # one from the leader came meanwhile, and is newer
            # What a crash takes of history is recorded again from the log: not from a log that is gone.
            await self._projection.flush(durable=True)
            if self.machine.generation == generation:
                self._snapshot_index = meta.index
                self.driver.snapshot_taken(meta, self._snapshot_entries // 4)
            return meta.index

    def close(self) -> None:
        """Free the disk. Nothing is written: what was acknowledged is durable."""
        self.driver.close()
        self._snapshots.close()
        self._projection.close()

    # What the driver reports.

    def _members_changed(self, membership: Membership) -> None:
        changed, self._members_changed_event = self._members_changed_event, anyio.Event()
        changed.set()
        members = sorted({m.peer_id for m in membership.all_members()} - {self.peer_id})
        self.driver.set_members({peer_id: self.addresses_of(peer_id) for peer_id in members})

    def _applied(self, index: int, outcomes: Sequence[Outcome], events: Sequence[SessionEvent]) -> None:
        if index - self._snapshot_index >= self._snapshot_entries and not self._snapshot_wanted.is_set():
            self._snapshot_wanted.set()
        if not self._is_settled and (self.is_leader or not self.machine.system.manifest):
            self._upkeep()  # it serves as soon as its plugins are up: no waiting for ticks
        for listener in list(self._listeners):
            listener.applied(index, outcomes, events)

    def _stopped(self, missing: PluginMissing) -> None:
        self._stopped_at = self._ticks
        self.stopped.set()

    def _role_changed(self, change: RoleChange) -> None:
        if self.is_leader:
            self._leading_since = self._ticks
            self._proposed_at.clear()
            self._is_settled = False
            self._dead_voters = None
            self._upkeep()
        if change.leader != self._leader:
            self._leader = change.leader
            if change.leader is None:
                self.leaderless_since_ns = self.driver.clock_ns()
            else:
                self.has_heard_leader.set()
                self._leader_known.set()
                self._leader_known = anyio.Event()
            leader = self.leader
            for listener in list(self._listeners):
                listener.leader_changed(leader)

    # Upkeep, at each tick: idempotent proposals, repeated until the applied state shows them done.

    def _tick(self) -> None:
        self._ticks += 1
        if self.driver.stopped_by is None:
            self._upkeep()
        elif (self._ticks - self._stopped_at) % STOPPED_ANNOUNCEMENT_TICKS == 1:
            # Whether it was heard cannot be seen from here.
            self._propose_patiently("announce", self._announcement())

    def _upkeep(self) -> None:
        if self.driver.leader is None:
            return
        row = self.machine.system.replicas.get(self.peer_id)
        is_announced = row is not None and self._announces(row)
        if not is_announced:
            self._propose_patiently("announce", self._announcement())
        if not self.is_leader:
            return
        due = self._due_activations()
        for activation in due:
            self._propose_patiently(f"activate/{activation.fsm_name}", activation)
        self._promote_learners()
        self._replace_dead_voter()
        if not self._is_settled and self._plugins_are_up(is_announced and not due):
            self._is_settled = True
            self.driver.wake()

    def _announces(self, row: ReplicaRow) -> bool:
        """Whether it says what is so. Asked at every tick, and hardly ever about another one."""
        if (row, self.whereabouts) != self._announced:
            mine = self._announcement()
            says = row.incarnation, row.addresses, row.host, row.machine_id, row.disk, row.supported
            if says != (mine.incarnation, mine.addresses, mine.host, mine.machine_id, mine.disk, mine.supported):
                return False
            self._announced = row, self.whereabouts
        return True

    def _announcement(self) -> Announce:
        at = self.whereabouts
        return Announce(
            self.peer_id, self.me.incarnation, at.addresses, at.host, at.machine_id, at.disk, self.registry.supported()
        )

    def _propose_patiently(self, name: str, message: Message[Any]) -> None:
        """Once in ten ticks at most: it may be under way, or have been lost with a leader."""
        if self._ticks - self._proposed_at.get(name, -10) >= 10:
            self._proposed_at[name] = self._ticks
            try:
                self.propose_system(message)
            except TauraftError:
                del self._proposed_at[name]  # no leader, or no room: at the next tick

    def _due_activations(self) -> list[Activate]:
        """The newest version of each FSM that *every* voter can run (SAFETY 27), where that is not active yet."""
        membership = self.driver.raft.membership
        has_waited = self._ticks - self._leading_since > FIRST_ACTIVATION_TICKS
        looked_at = self.machine.applied_index, membership, has_waited
        if looked_at == self._none_due_at:
            return []
        rows = [self.machine.system.replicas.get(m.peer_id) for m in membership.voters | membership.outgoing]
        offers = [frozenset(row.supported) for row in rows if row is not None]
        is_first = not self.machine.system.manifest
        if len(offers) < len(rows) and not (is_first and has_waited and len(offers) > len(rows) // 2):
            return []
        newest: dict[str, tuple[int, bytes]] = {}
        for name, version, digest in frozenset.intersection(*offers):
            if name != SYSTEM and version > newest.get(name, (0, b""))[0]:
                newest[name] = (version, digest)
        active = self.machine.system.manifest
        due = [
            Activate(name, version, digest, self.registry.package_of(name, version))
            for name, (version, digest) in sorted(newest.items())
            if ((found := active.get(name)) is None or found.version < version)
            and self.registry.can_run(name, version, digest)
        ]
        if not due:
            self._none_due_at = looked_at
        return due

    def _promote_learners(self) -> None:
        """A learner that has caught up votes, as soon as that makes the next odd number (FORMATION 6)."""
        raft = self.driver.raft
        membership: Membership = raft.membership
        if membership.is_joint or self._has_pending_change():
            return
        voters = len(membership.voters)
        caught_up = [m for m in sorted(membership.learners) if self._has_caught_up(m)]
        for size in RUNG_SIZES:
            if voters < size <= self._max_voters and voters + len(caught_up) >= size:
                steps = tuple(Step(StepKind.ADD_VOTER, m) for m in caught_up[: size - voters])
                try:
                    self.driver.propose_change(MembershipChange(steps))
                except MembershipChangeRefused as refused:
                    # Leadership is being handed over, or too much is uncommitted: at a later tick.
                    _log.debug("learners are not promoted yet: %s", refused)
                return

    def _replace_dead_voter(self) -> None:
        """Not heard for half a minute: a learner that has caught up votes in its place (SAFETY 26)."""
        raft, now_ns = self.driver.raft, self.driver.clock_ns()
        membership: Membership = raft.membership
        if not membership.learners:
            self._dead_voters = None  # nobody to take a place: whoever is quiet is counted from when there is
            return
        if self._dead_voters is None:
            self._dead_voters = DeadVoters(now_ns)
        for member, progress in raft.status().progress.items():
            if progress.is_recently_active:
                self._dead_voters.heard(member, now_ns)
        if membership.is_joint or self._has_pending_change():
            return
        caught_up = [m for m in sorted(membership.learners) if self._has_caught_up(m)]
        found = self._dead_voters.choose(now_ns, self.me, membership.voters, caught_up, self._domain_of)
        if found is None:
            return
        steps = (Step(StepKind.ADD_VOTER, found.by), Step(StepKind.ADD_LEARNER, found.dead))
        try:
            self.driver.propose_change(MembershipChange(steps))
        except MembershipChangeRefused as refused:
            _log.debug("a dead voter is not replaced yet: %s", refused)
            return
        self._dead_voters.replaced(now_ns)
        _log.warning("%s was not heard for a while: %s votes in its place", found.dead.peer_id, found.by.peer_id)

    def _domain_of(self, member: Member) -> Domain:
        row = self.machine.system.replicas.get(member.peer_id)
        return (member.peer_id, "") if row is None else (row.machine_id, row.disk)

    def _plugins_are_up(self, is_done: bool) -> bool:
        """Before nobody's commands are taken: they would be refused for want of a plugin that is on its way.

        At the first activation that has no end; later, of an activation that is refused again and again, it has.
        """
        if not self.machine.system.manifest and self.registry.supported():
            return False
        return is_done or self._ticks - self._leading_since > SETTLE_TICKS

    def _has_pending_change(self) -> bool:
        return self.driver.raft.has_pending_change

    def _has_caught_up(self, member: Member) -> bool:
        status = self.driver.raft.status()
        progress = status.progress.get(member)
        row = self.machine.system.replicas.get(member.peer_id)
        runs_all = row is not None and all(
            (name, active.version, active.digest) in row.supported
            for name, active in self.machine.system.manifest.items()
        )
        return (
            progress is not None
            and progress.match + 1_000 >= status.commit
            and progress.is_recently_active
            and runs_all
        )

    # Administration.

    def _leading(self) -> None:
        if not self.is_leader:
            leader = self.leader
            error = NotLeader(
                "this replica does not lead; nothing was done: send it to "
                + ("the leader, once there is one" if leader is None else leader.peer_id)
            )
            error.leader = leader
            raise error

    async def _status(self, arguments: dict[str, Any]) -> Any:
        return report.status(self)

    async def _members(self, arguments: dict[str, Any]) -> Any:
        return report.members(self)

    async def _snapshot(self, arguments: dict[str, Any]) -> Any:
        try:
            return await self.take_snapshot()
        except StorageFull as full:
            raise Suspended(f"no snapshot was taken: {full}") from full

    def _member_named(self, peer_id: str) -> Member | None:
        for member in sorted(self.driver.raft.membership.all_members()):
            if member.peer_id == peer_id:
                return member
        return None

    async def add(self, member: Member, *, is_voter: bool, timeout_s: float) -> None:
        """Add ``member``, replacing an older incarnation of its peer; returns when that is applied here.

        Raises ``NotLeader``; ``Refused`` while another change is under way; ``Unavailable`` when it takes too long.
        """
        self._leading()
        membership = self.driver.raft.membership
        if member in membership.all_members() and (not is_voter or member in membership.voters):
            return
        older = [m for m in sorted(membership.all_members()) if m.peer_id == member.peer_id and m != member]
        steps = [Step(StepKind.REMOVE, m) for m in older]
        steps.append(Step(StepKind.ADD_VOTER if is_voter else StepKind.ADD_LEARNER, member))
        await self._change(MembershipChange(tuple(steps)), timeout_s)

    async def _change(self, change: MembershipChange, timeout_s: float = 10.0) -> None:
        try:
            index = self.driver.propose_change(change)
        except MembershipChangeRefused as refused:
            raise Refused(
                "change-refused", f"{refused}; nothing changed, try again shortly", retry_after=0.5
            ) from refused
        applied = anyio.Event()
        self.driver.when_applied(index, applied.set)
        with anyio.move_on_after(timeout_s) as scope:
            await applied.wait()
        if scope.cancelled_caught:
            raise Unavailable("the membership change was proposed, and is not committed yet: it may still take effect")

    async def _add_learner(self, arguments: dict[str, Any]) -> Any:
        await self.add(Member(arguments["peer_id"], arguments["incarnation"]), is_voter=False, timeout_s=10.0)

    async def _add_voter(self, arguments: dict[str, Any]) -> Any:
        """``peer_id`` of a learner, or of a node at ``address`` that looks for a cluster: it is called in first."""
        self._leading()
        peer_id, address = arguments["peer_id"], arguments.get("address")
        known = self._member_named(peer_id)
        if known is None and address is not None and self.invite is not None:
            known = await self._called_in(peer_id, address)
        if known is None:
            raise Refused(
                "not-a-member",
                f"{peer_id} is no member, and nothing changed: start it with a way to find this cluster, or give its address",
            )
        await self.add(known, is_voter=True, timeout_s=10.0)

    async def _called_in(self, peer_id: str, address: str) -> Member | None:
        assert self.invite is not None
        with anyio.move_on_after(CALL_IN_S):
            while True:
                if not await self.invite(peer_id, (address,)):
                    raise Refused(
                        "not-reachable", f"{peer_id} does not answer at {address}; nothing changed", retry_after=1.0
                    )
                with anyio.move_on_after(0.2):
                    await self._members_changed_event.wait()
                known = self._member_named(peer_id)
                if known is not None:
                    return known
        return None

    async def _remove_server(self, arguments: dict[str, Any]) -> Any:
        self._leading()
        member = self._member_named(arguments["peer_id"])
        if member is not None:
            await self._change(MembershipChange((Step(StepKind.REMOVE, member),)))
        return None

    async def _sql(self, arguments: dict[str, Any]) -> Any:
        """Linearizable: it sees all that was acknowledged before the call."""
        from tauraft.storage.projection import Question

        seconds = float(arguments.get("timeout") or DEFAULT_TIMEOUT_S)
        with anyio.move_on_after(seconds) as patience:
            await self._confirm_read()
        if patience.cancelled_caught:
            raise NoLeader(f"no leader confirmed the read within {seconds:g} s; nothing was run")
        question = Question(
            arguments["query"], from_wire(arguments["parameters"]), as_of_from_wire(arguments.get("as_of"))
        )
        told = await self._projection.ask(question, seconds)
        return {
            "columns": list(told.columns),
            "types": list(told.types),
            "chunks": list(told.chunks),
            "applied_index": told.index,
        }

    async def _confirm_read(self) -> None:
        while True:
            answered, leader_known = anyio.Event(), self._leader_known
            told: list[int | None] = []

            def done(index: int | None, told: list[int | None] = told, answered: anyio.Event = answered) -> None:
                told.append(index)
                answered.set()

            self.driver.read_index(done)
            await answered.wait()
            if told[0] is not None:
                return
            await leader_known.wait()

    async def _transfer_leadership(self, arguments: dict[str, Any]) -> Any:
        self._leading()
        raft = self.driver.raft
        wanted = arguments.get("to")
        if wanted is not None:
            target = self._member_named(wanted)
        else:
            progress = raft.status().progress
            others = [m for m in sorted(raft.membership.voters) if m != self.me and m in progress]
            target = max(others, key=lambda m: progress[m].match, default=None)
        if target is None or target not in raft.membership.voters:
            raise Refused("no-target", "there is no other voter that leadership could be given to; nothing changed")
        raft.transfer(target)
        self.driver.wake()
        return None


__all__ = ["LocalReplica", "StoredState", "Whereabouts"]
