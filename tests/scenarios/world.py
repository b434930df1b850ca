"""Several cores, their disks and the wire between them, for the scenarios: everything happens when it is told to, and is told.

A ``Node`` carries out its Readies as a driver would, but its writes and its applying can be held back and let go one at
a time.  What nodes send lies on the wire until it is delivered, dropped or settled.  Each thing that happens becomes a
line of ``World.story`` (``words.py`` says how it reads).

After each turn of a node the properties that no run may break are checked: one leader a term, one entry an index, nothing
applied that is not on the disk.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from random import Random
from typing import Any

from tauraft.core.membership import decode_change
from tauraft.core.messages import Entry, EntryKind, HardState, Index, Member, Membership, Message, Ready, Role
from tauraft.core.raft import Raft, RaftConfig
from tests.core.network import CLUSTER, Disk
from tests.scenarios import words


class Node:
    """One replica. ``told_commit`` is the commit index the story knows of."""

    def __init__(self, me: Member, founding: Membership, seed: int, options: dict[str, Any]) -> None:
        self.me = me
        self.name = words.name(me)
        self.disk = Disk(founding)
        self.options = options
        self.is_holding_writes = self.is_holding_applies = self.is_down = False
        self._seed = seed
        self._starts = 0
        self.start()

    def start(self) -> None:
        """From what is on the disk, and nothing else."""
        self._starts += 1
        self.is_down = False
        self.unwritten: deque[Ready] = deque()
        self.unapplied: deque[Entry] = deque()
        self.raft = Raft(
            RaftConfig(self.me, CLUSTER, **self.options),
            self.disk.hard_state,
            self.disk.snapshot.membership,
            self.disk,
            Random(self._seed * 1000 + self._starts),
            applied=self.disk.snapshot.index,
        )
        self.told_commit = self.raft.commit


class World:
    """See the module. ``on_wire`` is in the order of sending."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.on_wire: list[Message] = []
        self.cut: set[tuple[str, str]] = set()
        self.held: set[tuple[str, str]] = set()
        self.story: list[str] = []
        self._leader_of_term: dict[int, str] = {}
        self._decided: dict[Index, Entry] = {}

    def say(self, line: str) -> None:
        self.story.append(line)

    # A node's turn.

    def turn(self, node: Node) -> None:
        """Carry out all that the core asks for now, as far as nothing is held."""
        if node.is_down:
            return
        self._notice_commit(node)
        while node.raft.has_ready():
            ready = node.raft.ready()
            if ready.role_change is not None:
                self.say(f"{node.name} {words.role(ready.role_change)}")
            self._send(ready.messages_now)
            node.unwritten.append(ready)
            if node.is_holding_writes:
                if ready.must_sync or ready.messages_after_persist:
                    self.say(f"{node.name} has to write {words.write(ready)}")
            else:
                self.finish_write(node)
            node.unapplied.extend(ready.committed)
            if not node.is_holding_applies:
                while node.unapplied:
                    self.apply_one(node)
            for read in ready.reads:
                self.say(f"{node.name} may serve read {read.context} once it has applied {read.index}")
            self._notice_commit(node)
        self._check(node)

    def finish_write(self, node: Node) -> None:
        """The oldest Ready under way reaches the disk, and what waited for it leaves."""
        ready = node.unwritten.popleft()
        node.disk.write(ready)
        if ready.must_sync:
            self.say(f"{node.name} writes {words.write(ready)}")
        self._send(ready.messages_after_persist)
        node.raft.persisted(ready.number)
        self._notice_commit(node)

    def apply_one(self, node: Node) -> None:
        entry = node.unapplied.popleft()
        assert entry.index <= node.disk.last_index(), "applied before it was on disk"
        assert self._decided.setdefault(entry.index, entry) == entry, "applied another entry than was decided"
        line = f"{node.name} applies {words.entry(entry)}"
        if entry.kind is EntryKind.CONFIG and entry.data:
            before = node.raft.membership
            after = node.raft.apply_membership(decode_change(entry.data))
            line += f": {words.membership(after)}" if after != before else ": changes nothing"
        self.say(line)
        node.raft.applied(entry.index)

    def _notice_commit(self, node: Node) -> None:
        if node.raft.commit != node.told_commit:
            node.told_commit = node.raft.commit
            self.say(f"{node.name} commits up to {node.told_commit}")

    def _check(self, node: Node) -> None:
        raft = node.raft
        if raft.role is Role.LEADER:
            assert self._leader_of_term.setdefault(raft.term, node.name) == node.name, "two leaders in one term"

    # The wire.

    def _send(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            pair = words.name(message.sender), words.name(message.to)
            lost = pair in self.cut or pair[1] not in self.nodes or self.nodes[pair[1]].is_down
            self.say(words.message(message) + ("  (lost)" if lost else ""))
            if not lost:
                self.on_wire.append(message)

    def deliver(self, message: Message) -> None:
        node = self.nodes.get(words.name(message.to))
        if node is not None and not node.is_down:
            node.raft.step(message)
            self.turn(node)

    def settle(self) -> None:
        """Deliver what is on the wire, in order, links that are held apart, until nothing moves."""
        for _ in range(10_000):
            moving = next((one for one in self.on_wire if not self._is_held(one)), None)
            if moving is None:
                return
            self.on_wire.remove(moving)
            self.deliver(moving)
        raise AssertionError("the cluster does not come to rest")

    def _is_held(self, message: Message) -> bool:
        return (words.name(message.sender), words.name(message.to)) in self.held

    # Disks.

    def lose_hard_state(self, node: Node) -> None:
        node.disk.hard_state = HardState()

    def roll_back(self, node: Node, keep_to: Index) -> None:
        """The disk is an older copy of itself: what came after ``keep_to`` is gone."""
        disk = node.disk
        del disk.log[keep_to - disk.base[0] :]
        disk.hard_state = replace(disk.hard_state, commit=min(disk.hard_state.commit, keep_to))
