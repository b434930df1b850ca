"""The language of the scenarios: files of commands, each with what came of it below.

::

    # Why this is worth telling.
    > cluster abc
    > campaign a
      a asks who would vote for it, in term 0
      a -> b PreVote? term 1, log to 0@0

A line that begins with ``>`` is a command; the indented lines below it are its output, which ``run`` makes and the
test compares (``pytest --rewrite`` writes it down anew: then *read* it).  Everything else is for the reader.
``quietly`` before a command leaves its output out.  Nothing is delivered unless a command says so.

Nodes are letters; ``a2`` is another incarnation of a; ``all`` is everyone. Links are written ``a>b``, ``a>*``, ``*>b``.

    cluster abc [learners=de] [OPTION=VALUE ...]     founding members, with options of RaftConfig (on, off or a number)
    join d [OPTION=VALUE ...]                        a node with an empty disk, who learns all else from its leader
    disk a terms=1,1,2 [term= vote= commit=]         what its disk holds; the node starts from it
    campaign|forget|lost|crash|down|start a          lost: the leader's stream closed; down: until `start`
    tick a|all [COUNT]
    propose a WORD ...                               one entry a word
    change a +d ~e -b [implicit|explicit]            voter, learner, away; `change a leave` leaves a joint membership
    read a NUMBER | transfer a b | unreachable a b | snapshot-ended a b ok|failed | compact a [INDEX] [keep=COUNT]
    wire                                             what is under way
    deliver [LINK] [KIND] [first|last|twice]         all that fits, as it was sent; or one of it; twice: and leave it there
    drop [LINK] [KIND] [first|last]
    settle                                           deliver until nothing moves
    hold|release LINK|writes a|applies a             what is on its way to the disk, or to the state machine, waits
    write a [COUNT] | apply a [COUNT]                let so many of what is held go on
    cut LINK ... | isolate a | heal                  a cut link loses what is sent on it
    forge vote|prevote|refusal|timeout|append FROM TO [INDEX@TERM:WORD ...] term=N [log=INDEX@TERM] [commit=INDEX]
                                                     a message that nobody here sent: `log` is what a vote's sender
                                                     has, or what an Append's entries follow
    lose a hard-state | rollback a INDEX             the disk is not what it was
    status a|all | log a|all | lease a
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tauraft.core.log import AcknowledgedEntriesLost, CommittedEntryConflict, HardStateLost
from tauraft.core.membership import MembershipChange, Step, StepKind, Transition
from tauraft.core.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Member,
    Membership,
    Message,
    TimeoutNow,
    VoteRequest,
)
from tauraft.core.raft import MembershipChangeRefused, ProposalDropped, TransferRefused
from tests.core.network import CLUSTER
from tests.scenarios import words
from tests.scenarios.world import Node, World

_SIGNS = {"+": StepKind.ADD_VOTER, "~": StepKind.ADD_LEARNER, "-": StepKind.REMOVE}
_TRANSITIONS = {"implicit": Transition.JOINT_IMPLICIT, "explicit": Transition.JOINT_EXPLICIT}


@dataclass(slots=True)
class Part:
    """Lines for the reader, then a command (none at the end of a file) and its output."""

    prose: list[str] = field(default_factory=list)
    command: str | None = None
    output: list[str] = field(default_factory=list)


def parse(text: str) -> list[Part]:
    parts = [Part()]
    for line in text.splitlines():
        if line.startswith(">"):
            parts[-1].command = line[1:].strip()
            parts.append(Part())
        elif line.startswith("  ") and len(parts) > 1 and not parts[-1].prose:
            parts[-2].output.append(line[2:])
        else:
            parts[-1].prose.append(line)
    return parts


def render(parts: Sequence[Part]) -> str:
    return "".join(f"{line}\n" for line in _lines(parts))


def _lines(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        yield from part.prose
        if part.command is not None:
            yield f"> {part.command}"
            yield from (f"  {line}" for line in part.output)


def run(path: Path) -> str:
    """The file as it would be if all its output were right."""
    parts = parse(path.read_text(encoding="utf-8"))
    teller = Teller()
    for part in parts:
        if part.command is not None:
            try:
                part.output = teller.tell(part.command)
            except Exception as error:
                error.add_note(f"in {path.name}, at: > {part.command}")
                raise
    return render(parts)


class Teller:
    """Carries out commands, and says what came of each."""

    def __init__(self) -> None:
        self.world = World()
        self._founding = Membership()
        self._options: dict[str, Any] = {}

    def tell(self, command: str) -> list[str]:
        word, *arguments = shlex.split(command)
        is_quiet = word == "quietly"
        if is_quiet:
            word, *arguments = arguments
        options = dict(one.split("=", 1) for one in arguments if "=" in one)
        plain = [one for one in arguments if "=" not in one]
        handler = getattr(self, "_" + word.replace("-", "_"))
        self.world.story = []
        try:
            cast(Callable[..., None], handler)(*plain, **options)
        except (ProposalDropped, MembershipChangeRefused, TransferRefused) as error:
            self.world.say(f"REFUSED: {error}")
        except (CommittedEntryConflict, AcknowledgedEntriesLost, HardStateLost) as error:
            self.world.say(f"STOPPED: {error}")
        return [] if is_quiet else self.world.story

    # Who there is.

    def _cluster(self, founders: str, learners: str = "", **options: str) -> None:
        self._founding = Membership(frozenset(map(_member, founders)), learners=frozenset(map(_member, learners)))
        self._options = {key: _value(value) for key, value in options.items()}
        for letter in founders + learners:
            self._add(letter, self._options)

    def _join(self, letter: str, **options: str) -> None:
        self._add(letter, {**self._options, **{key: _value(value) for key, value in options.items()}})

    def _add(self, letter: str, options: dict[str, Any]) -> None:
        self.world.nodes[letter] = Node(_member(letter), self._founding, len(self.world.nodes) + 1, options)

    def _disk(self, who: str, terms: str = "", term: str = "", vote: str = "", commit: str = "0") -> None:
        node = self._node(who)
        numbers = [int(one) for one in terms.split(",") if one]
        node.disk.log = [
            Entry(index, number, EntryKind.BATCH, b"%c" % (96 + index)) for index, number in enumerate(numbers, 1)
        ]
        newest = int(term) if term else max(numbers, default=0)
        node.disk.hard_state = HardState(newest, _member(vote) if vote else None, int(commit))
        node.start()

    def _node(self, who: str) -> Node:
        return self.world.nodes[who]

    def _nodes(self, who: str) -> list[Node]:
        return list(self.world.nodes.values()) if who == "all" else [self._node(one) for one in who.split(",")]

    # What they do.

    def _campaign(self, who: str) -> None:
        self._node(who).raft.campaign()
        self.world.turn(self._node(who))

    def _forget(self, who: str) -> None:
        for node in self._nodes(who):
            node.raft.forget_leader()
            self.world.turn(node)

    def _lost(self, who: str) -> None:
        self._node(who).raft.leader_connection_lost()
        self.world.turn(self._node(who))

    def _crash(self, who: str) -> None:
        self._node(who).start()

    def _down(self, who: str) -> None:
        self._node(who).is_down = True

    def _start(self, who: str) -> None:
        self._node(who).start()
        self.world.turn(self._node(who))

    def _tick(self, who: str, count: str = "1") -> None:
        for _ in range(int(count)):
            for node in self._nodes(who):
                node.raft.tick()
                self.world.turn(node)

    def _propose(self, who: str, *data: str) -> None:
        self._node(who).raft.propose([one.encode() for one in data])
        self.world.turn(self._node(who))

    def _change(self, who: str, *steps: str) -> None:
        transition = next((_TRANSITIONS[one] for one in steps if one in _TRANSITIONS), Transition.AUTO)
        made = tuple(Step(_SIGNS[one[0]], _member(one[1:])) for one in steps if one[0] in _SIGNS)
        self._node(who).raft.change_membership(MembershipChange(made, transition))
        self.world.turn(self._node(who))

    def _read(self, who: str, number: str) -> None:
        self._node(who).raft.read_index(int(number))
        self.world.turn(self._node(who))

    def _transfer(self, who: str, to: str) -> None:
        self._node(who).raft.transfer(_member(to))
        self.world.turn(self._node(who))

    def _unreachable(self, who: str, other: str) -> None:
        self._node(who).raft.report_unreachable(_member(other))
        self.world.turn(self._node(who))

    def _snapshot_ended(self, who: str, other: str, how: str) -> None:
        self._node(who).raft.report_snapshot(_member(other), how == "ok")
        self.world.turn(self._node(who))

    def _compact(self, who: str, index: str = "", keep: str = "0") -> None:
        node = self._node(who)
        at = int(index) if index else node.raft.log.applied
        # What is still cached would be served from memory: as after a long while, it is there no more.
        node.disk.take_snapshot(at, node.raft.membership, int(keep))
        log = node.raft.log
        keep_from = max(log._tail_first, node.disk.first_index())
        del log._tail[: keep_from - log._tail_first]
        log._tail_first = keep_from
        self.world.say(f"{who} has {words.snapshot(node.disk.snapshot)}, and entries from {node.disk.first_index()} on")

    # The wire.

    def _wire(self) -> None:
        for message in self.world.on_wire:
            self.world.say(words.message(message))

    def _deliver(self, *which: str) -> None:
        for message in self._chosen(which):
            if "twice" not in which:
                self.world.on_wire.remove(message)
            before = len(self.world.story)
            self.world.deliver(message)
            if len(self.world.story) == before:
                self.world.say(f"nothing comes of {words.message(message)}")

    def _drop(self, *which: str) -> None:
        for message in self._chosen(which):
            self.world.on_wire.remove(message)
            self.world.say(f"lost: {words.message(message)}")

    def _chosen(self, which: Sequence[str]) -> list[Message]:
        links = [one for one in which if ">" in one]
        kinds = [one for one in which if ">" not in one and one not in ("first", "last", "twice")]
        found = [
            one
            for one in self.world.on_wire
            if all(self._is_on(one, link) for link in links) and all(type(one).__name__ == kind for kind in kinds)
        ]
        if not found:
            raise AssertionError(f"nothing on the wire is {' '.join(which)}")
        if "last" in which:
            return found[-1:]
        return found[:1] if "first" in which else found

    def _is_on(self, message: Message, link: str) -> bool:
        return (words.name(message.sender), words.name(message.to)) in self._pairs(link)

    def _pairs(self, link: str) -> set[tuple[str, str]]:
        start, end = link.split(">")
        everyone = list(self.world.nodes)
        starts = everyone if start == "*" else start.split(",")
        ends = everyone if end == "*" else end.split(",")
        return {(one, other) for one in starts for other in ends if one != other}

    def _settle(self) -> None:
        self.world.settle()

    def _hold(self, what: str, who: str = "") -> None:
        match what:
            case "writes":
                self._node(who).is_holding_writes = True
            case "applies":
                self._node(who).is_holding_applies = True
            case link:
                self.world.held |= self._pairs(link)

    def _release(self, what: str, who: str = "") -> None:
        match what:
            case "writes":
                self._node(who).is_holding_writes = False
                self._write(who, "1000")
            case "applies":
                self._node(who).is_holding_applies = False
                self._apply(who, "1000")
            case link:
                self.world.held -= self._pairs(link)

    def _write(self, who: str, count: str = "1") -> None:
        node = self._node(who)
        for _ in range(int(count)):
            # A Ready with nothing to write and nothing to say is no write to wait for.
            while node.unwritten and not (node.unwritten[0].must_sync or node.unwritten[0].messages_after_persist):
                self.world.finish_write(node)
            if not node.unwritten:
                break
            self.world.finish_write(node)
        self.world.turn(node)

    def _apply(self, who: str, count: str = "1") -> None:
        node = self._node(who)
        for _ in range(min(int(count), len(node.unapplied))):
            self.world.apply_one(node)
        self.world.turn(node)

    def _cut(self, *links: str) -> None:
        for link in links:
            pairs = self._pairs(link)
            self.world.cut |= pairs
            self.world.on_wire = [
                one for one in self.world.on_wire if (words.name(one.sender), words.name(one.to)) not in pairs
            ]

    def _isolate(self, who: str) -> None:
        self._cut(f"{who}>*", f"*>{who}")

    def _heal(self) -> None:
        self.world.cut.clear()

    def _forge(
        self, kind: str, sender: str, to: str, *data: str, term: str, log: str = "0@0", commit: str = "0"
    ) -> None:
        last_index, last_term = (int(one) for one in log.split("@"))
        start, end, number = _member(sender), _member(to), int(term)
        entries = []
        for word in data:
            where, text = word.split(":")
            index, of_term = (int(one) for one in where.split("@"))
            entries.append(Entry(index, of_term, EntryKind.BATCH, text.encode()))
        messages: dict[str, Message] = {
            "append": Append(start, end, number, CLUSTER, last_index, last_term, tuple(entries), int(commit)),
            "vote": VoteRequest(start, end, number, CLUSTER, last_index, last_term),
            "prevote": VoteRequest(start, end, number, CLUSTER, last_index, last_term, is_pre_vote=True),
            "refusal": AppendReply(start, end, number, CLUSTER, False, 0),
            "timeout": TimeoutNow(start, end, number, CLUSTER),
        }
        message = messages[kind]
        self.world.say(words.message(message))
        self.world.on_wire.append(message)
        self._deliver("last")

    # Disks.

    def _lose(self, who: str, what: str) -> None:
        if what != "hard-state":
            raise AssertionError(what)
        self.world.lose_hard_state(self._node(who))

    def _rollback(self, who: str, index: str) -> None:
        self.world.roll_back(self._node(who), int(index))

    # Looking.

    def _status(self, who: str) -> None:
        for node in self._nodes(who):
            for line in words.status(node.raft):
                self.world.say(line)

    def _log(self, who: str) -> None:
        for node in self._nodes(who):
            base = f"(snapshot {node.disk.base[0]}@{node.disk.base[1]}) " if node.disk.base[0] else ""
            self.world.say(f"{node.name} {base}{words.entries(node.disk.log)}")

    def _lease(self, who: str) -> None:
        index = self._node(who).raft.lease_index()
        self.world.say(f"{who} {'may not read by lease' if index is None else f'may read by lease at {index}'}")


def _member(name: str) -> Member:
    return Member(name[0], int(name[1:] or 1))


def _value(text: str) -> int | bool:
    return text == "on" if text in ("on", "off") else int(text)
