"""Performs what ``decide`` says over a ``Transport``, and answers the other nodes that are forming.

``Formation(...)`` lives as long as the node's replica of a namespace: ``form()`` runs until this node has a genesis and
a place in the cluster, and ``handle`` answers Hello, Join and Paxos messages before, during and after.  It is served under
``formation_protocol(namespace)``, apart from the commands of the namespace.

Order that binds: a record is saved (durably) before the answer that depends on it leaves; the state ``member`` is
said only when the genesis is on disk.  Age, random and the store are injected.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

import anyio

from tauraft.codec import CodecError
from tauraft.discovery.discovery import Discoverer, Found
from tauraft.errors import TauraftError
from tauraft.formation import decide as steps, messages
from tauraft.formation.genesis import Acceptor, AcceptorRecord, Ballot, ClusterOptions, Genesis, Proposer, Voter
from tauraft.formation.messages import KnownPeer, PeerReport, State
from tauraft.transport.transport import MessageStream, NotAdmitted, Transport, TransportError

log = logging.getLogger("tauraft.formation")

ROUND_S = 0.05
SLOWEST_ROUND_S = 1.0
# A greeting costs some milliseconds of processor. Of n nodes n times n/2 pairs greet each other in a round, perhaps all on
# one machine: twenty that did so at every chance would do nothing else.
ROUND_PER_PAIR_S = 0.005
LONGEST_ROUND_S = 5.0
ANSWER_TIMEOUT_S = 2.0
SPEAK_AFTER_S = 3.0
# A handshake costs both ends some ten milliseconds of processor. All at once, none would end in time: a few are tried at a
# time, and fewer after longer pauses when they time out.
STRANGERS_AT_ONCE = 4
LONGEST_PAUSE_S = 5.0
LOWER_CALLS_AFTER_S = 0.5
RUNNING_PATIENCE_S = 60.0  # for a peer that a discoverer sees running, and that is too busy to answer, or stopped
LOOK_AT_LAG_S = 0.1
MAX_REFERRALS = 3  # to a leader that others name


class FormationRefused(TauraftError):
    """This node cannot become a member: what it was told, or what it saw. Nothing was written."""

    code = "formation-refused"


class FormationStore(Protocol):
    """The namespace's records. Saving is durable when it returns; called in the engine's loop."""

    def load_genesis(self) -> Genesis | None: ...
    def save_genesis(self, genesis: Genesis) -> None: ...
    def load_acceptor(self) -> AcceptorRecord: ...
    def save_acceptor(self, record: AcceptorRecord) -> None: ...


class Membership(Protocol):
    """The node's replica, once there is one."""

    def leader(self) -> KnownPeer | None: ...
    async def join(
        self, request: messages.JoinRequest
    ) -> messages.JoinAccepted | messages.JoinRefused | messages.NotLeader: ...


@dataclass(frozen=True, slots=True)
class Formed:
    """``is_founder``: Raft starts with ``genesis.voters``. Else ``members`` is the cluster that accepted us."""

    genesis: Genesis
    is_founder: bool
    members: tuple[messages.MemberAddresses, ...] = ()
    via: str | None = None
    was_on_disk: bool = False


@dataclass(slots=True)
class _Peer:
    addresses: tuple[str, ...] = ()
    report: PeerReport | None = None
    answered_at_s: float = 0.0  # by the time this process was given, as all here
    agreed_rounds: int = 0
    found_at_s: float = 0.0
    asked_at_s: float | None = None
    told: object = None  # what our last report to it said
    has_refused: bool = False  # it does not admit us, and will not answer


_FORMATION: Final = "/~formation"  # "~" is in no namespace, so that this name is nobody else's


def formation_protocol(namespace: str) -> str:
    return f"{namespace}{_FORMATION}"


def formation_namespace(protocol: str) -> str | None:
    """The namespace whose formation ``protocol`` is; None: it is none."""
    return protocol.removesuffix(_FORMATION) if protocol.endswith(_FORMATION) else None


class Formation:
    def __init__(
        self,
        transport: Transport,
        namespace: str,
        request: messages.JoinRequest,
        store: FormationStore,
        *,
        options: steps.Options,
        cluster_options: ClusterOptions = ClusterOptions(),  # noqa: B008  frozen
        discoverers: Sequence[Discoverer] = (),
        random: Random,
        age_s: Callable[[], float],
        waiting: Callable[[str], object] = log.info,
    ) -> None:
        """``request``: who we are. ``age_s``: since the process started. ``waiting`` is told what is waited for."""
        self._transport = transport
        self._namespace = namespace
        self._protocol = formation_protocol(namespace)
        self._request = request
        self._store = store
        self._options = options
        self._cluster_options = cluster_options
        self._discoverers = tuple(discoverers)
        self._random = random
        self._age_s = age_s
        self._waiting = waiting
        self._peers: dict[str, _Peer] = {}
        self._nameless: set[tuple[str, ...]] = set()
        self._genesis = store.load_genesis()
        self._acceptor = Acceptor(store.load_acceptor())
        self._defers_to: str | None = None
        self._refused_by = ""
        self._round = 0
        self._membership: Membership | None = None
        self._heard = anyio.Event()
        self._lost_s = 0.0
        self._calls: set[anyio.CancelScope] = set()
        transport.serve(self._protocol, self.handle)

    def became_member(self, membership: Membership) -> None:
        """The replica runs: joins are handed to it from now on."""
        self._membership = membership

    async def invite(self, peer_id: str, addresses: Sequence[str]) -> bool:
        """Tell a node that looks for a cluster that this is one; it then asks to join. False: it cannot be reached."""
        return await self._call(peer_id, messages.Hello(self._report()), addresses) is not None

    async def ask_again(self, known: Sequence[KnownPeer]) -> bool:
        """Ask the cluster that this disk belongs to for our place in it. True: we have it, or had it all the time."""
        genesis = self._genesis
        for peer in known:
            self._peer(peer.peer_id).addresses = peer.addresses
            via: str | None = peer.peer_id
            for _ in range(MAX_REFERRALS):
                if via is None or via == self._transport.peer_id:
                    break
                answer = await self._call(via, self._request)
                via = None
                match answer:
                    case messages.JoinAccepted(theirs, members) if genesis and theirs.cluster_id == genesis.cluster_id:
                        for member in members:
                            self._transport.learn(member.peer_id, member.addresses)
                        return True
                    case messages.NotLeader(leader) if leader is not None:
                        self._peer(leader.peer_id).addresses = leader.addresses
                        via = leader.peer_id
                    case _:
                        pass
        return False

    async def aclose(self) -> None:
        self._transport.stop_serving(self._protocol)
        for discoverer in self._discoverers:
            await discoverer.withdraw()

    async def form(self) -> Formed:
        """Raises ``FormationRefused``. Waits for ever for a cluster that cannot be formed yet, saying why."""
        for discoverer in self._discoverers:
            await discoverer.announce(self._transport.peer_id, self._transport.addresses)
            for found in discoverer.look():
                self._found(found)
        async with anyio.create_task_group() as tasks:
            for discoverer in self._discoverers:
                tasks.start_soon(self._discover, discoverer)
            tasks.start_soon(self._note_lag)
            tasks.start_soon(self._meet)
            try:
                outcome: Formed | FormationRefused = await self._rounds()
            except FormationRefused as error:  # raised below, so that callers get no group of one
                outcome = error
            tasks.cancel_scope.cancel()
        if isinstance(outcome, FormationRefused):
            raise outcome
        return outcome

    async def _discover(self, discoverer: Discoverer) -> None:
        async for found in discoverer.find():
            self._found(found)

    async def _note_lag(self) -> None:
        """A process that is given no processor hears nobody: such time is no silence of theirs, nor of the window."""
        while True:
            before_s = self._age_s()
            await anyio.sleep(LOOK_AT_LAG_S)
            lost_s = self._age_s() - before_s - 2 * LOOK_AT_LAG_S
            if lost_s > 0:
                self._lost_s += lost_s
                for scope in self._calls:
                    scope.deadline += lost_s

    def _given_s(self) -> float:
        """This process's age, without the time in which it was given no processor."""
        return self._age_s() - self._lost_s

    def _found(self, found: Found) -> None:
        if found.peer_id is None:
            self._nameless.add(found.addresses)
        elif found.peer_id != self._transport.peer_id:
            self._peer(found.peer_id).addresses = found.addresses
        self._heard.set()

    def _peer(self, peer_id: str) -> _Peer:
        return self._peers.setdefault(peer_id, _Peer(found_at_s=self._given_s()))

    async def _rounds(self) -> Formed:
        pause_s, began_s, said = ROUND_S, self._age_s(), ""
        while True:
            self._heard = anyio.Event()
            if self._genesis is None and not self._options.force_bootstrap:
                await self._exchange(pause_s)
            step = steps.decide(self._situation())
            if self._refused_by and isinstance(step, steps.StartAlone | steps.WriteGenesis):
                # Whom we looked for is there and will not have us: another cluster of this name beside it is nobody's wish.
                raise FormationRefused(
                    f"{self._refused_by} does not admit this node: add {self._transport.peer_id} to its allow=, or do not "
                    "look for it; nothing was written"
                )
            formed = await self._perform(step)
            if formed is not None:
                return formed
            reason = step.reason if isinstance(step, (steps.Wait, steps.Ask, steps.DeferTo)) else type(step).__name__
            if self._age_s() - began_s >= SPEAK_AFTER_S and reason != said:
                said = reason
                self._waiting(reason)
            with anyio.move_on_after(pause_s * self._random.uniform(0.75, 1.25)):
                await self._heard.wait()
            pause_s = max(min(pause_s * 1.2, SLOWEST_ROUND_S), self._least_round_s())

    def _least_round_s(self) -> float:
        return min(ROUND_PER_PAIR_S * len(self._peers) ** 2, LONGEST_ROUND_S)

    async def _perform(self, step: steps.Step) -> Formed | None:
        match step:
            case steps.ContactKnownMembers(genesis):
                ours = Voter(self._request.peer_id, self._request.incarnation)
                return Formed(genesis, ours in genesis.voters, was_on_disk=True)
            case steps.StartAlone(voter):
                return self._found_cluster(self._new_genesis((voter,)))
            case steps.WriteGenesis(voters, _):
                return self._found_cluster(self._new_genesis(voters))
            case steps.DeferTo(peer_id):
                self._defers_to = peer_id
            case steps.JoinCluster(via):
                return await self._join(via)
            case steps.Propose(acceptors, voters):
                chosen = await self._propose(acceptors, self._new_genesis(voters))
                if chosen is not None:
                    return await self._take_up(chosen)
            case steps.Refuse(reason):
                raise FormationRefused(reason)
            case steps.Wait() | steps.Ask():
                # The author's word to nobody: a deferral to a peer that fell silent ends here.
                self._defers_to = None
        return None

    def _new_genesis(self, voters: tuple[Voter, ...]) -> Genesis:
        return Genesis(
            self._random.randbytes(16), self._namespace, voters, self._transport.peer_id, self._cluster_options
        )

    def _found_cluster(self, genesis: Genesis) -> Formed:
        self._store.save_genesis(genesis)
        self._genesis = genesis
        return Formed(genesis, is_founder=True)

    async def _take_up(self, chosen: Genesis) -> Formed | None:
        if Voter(self._request.peer_id, self._request.incarnation) in chosen.voters:
            return self._found_cluster(chosen)
        # Chosen by others for others, who may have lost their proposer on the way: a voter that defers to this node would
        # wait for ever. Told again each round; their state "member" is met then.
        for voter in chosen.voters:
            await self._call(voter.peer_id, messages.Chosen(chosen))
        return None

    async def _join(self, via: str) -> Formed | None:
        asked: set[str] = set()
        while via not in asked:
            asked.add(via)
            answer = await self._call(via, self._request)
            match answer:
                case messages.JoinAccepted(genesis, members):
                    if genesis.namespace != self._namespace:
                        raise FormationRefused(f"{via} is a member of {genesis.namespace}, not of {self._namespace}")
                    self._store.save_genesis(genesis)
                    self._genesis = genesis
                    ours = Voter(self._request.peer_id, self._request.incarnation)
                    return Formed(genesis, ours in genesis.voters, members, via)
                case messages.JoinRefused(code, message):
                    raise FormationRefused(f"{via} refused this node ({code}): {message}")
                case messages.NotLeader(leader) if leader is not None:
                    self._peer(leader.peer_id).addresses = leader.addresses
                    via = leader.peer_id
                case _:
                    return None
        return None

    async def _propose(self, acceptors: tuple[str, ...], own: Genesis) -> Genesis | None:
        self._round += 1
        proposer = Proposer(Ballot(self._round, self._transport.peer_id), own, self._options.expect or len(acceptors))
        for message in (messages.Prepare(proposer.ballot, self._options.expect or 0), None):
            if message is None and proposer.proposal is None:
                return None

            async def ask(peer_id: str, message: messages.Prepare | None = message) -> None:
                sent: messages.Message = message or messages.Accept(
                    proposer.ballot, proposer.proposal or own, self._options.expect or 0
                )
                if peer_id == self._transport.peer_id:
                    answer: messages.Message | None = self._vote(sent)
                else:
                    answer = await self._call(peer_id, sent)
                match answer:
                    case messages.Promise(ballot, accepted):
                        proposer.promised(peer_id, ballot, accepted)
                    case messages.Accepted(ballot):
                        proposer.accepted(peer_id, ballot)
                    case messages.BallotRefused(_, Ballot(round, _)):
                        self._round = max(self._round, round)

            async with anyio.create_task_group() as tasks:
                for peer_id in acceptors:
                    tasks.start_soon(ask, peer_id)
        return proposer.chosen

    def _vote(self, message: messages.Message) -> messages.Message | None:
        match message:
            case messages.Prepare(ballot, expect) | messages.Accept(ballot, _, expect):
                if expect != self._options.expect or len(self._peers) + 1 > expect:
                    return messages.BallotRefused(ballot, None)
            case _:
                return None
        answer: messages.Message
        if isinstance(message, messages.Prepare):
            promise = self._acceptor.prepare(ballot)
            if isinstance(promise, Ballot):
                return messages.BallotRefused(ballot, promise)
            answer = messages.Promise(ballot, promise)
        else:
            refused = self._acceptor.accept(ballot, message.genesis)
            if refused is not None:
                return messages.BallotRefused(ballot, refused)
            answer = messages.Accepted(ballot)
        self._store.save_acceptor(self._acceptor.record)
        return answer

    async def _exchange(self, pause_s: float) -> None:
        """Hear all we know and be heard. Who greeted us within ``pause_s`` has done both, unless we say something else now.

        Where there is a cluster to join, two of its members are enough.
        """
        saying, now_s = self._saying(), self._given_s()
        members = self._live_members()
        if members:
            friends = [
                (peer_id, self._peers[peer_id].addresses)
                for peer_id in self._random.sample(members, min(2, len(members)))
            ]
            async with anyio.create_task_group() as tasks:
                for peer_id, known in friends:
                    tasks.start_soon(self._hello, peer_id, known)
            return
        friends = [
            (peer_id, peer.addresses)
            for peer_id, peer in sorted(self._peers.items())
            if peer.report is not None and (peer.told != saying or now_s - peer.answered_at_s >= pause_s)
        ]
        async with anyio.create_task_group() as tasks:
            for addresses in sorted(self._nameless):
                tasks.start_soon(self._hello, None, addresses)
            for peer_id, known in friends:
                tasks.start_soon(self._hello, peer_id, known)

    def _live_members(self) -> list[str]:
        now_s, silent_after_s = self._given_s(), 3 * max(steps.SILENT_AFTER_S, 3 * self._least_round_s())
        return sorted(
            peer_id
            for peer_id, peer in self._peers.items()
            if peer.report is not None
            and peer.report.state is State.MEMBER
            and now_s - peer.answered_at_s <= silent_after_s
        )

    async def _meet(self) -> None:
        """Greet those that were never heard. Apart from the rounds: who is mute must not make the others look silent."""
        pause_s, at_once = ROUND_S, STRANGERS_AT_ONCE
        while True:
            now_s = self._given_s()
            strangers = sorted(
                (
                    (peer.asked_at_s or 0.0, peer_id, peer)
                    for peer_id, peer in self._peers.items()
                    if peer.report is None
                ),
                key=lambda one: one[:2],
            )
            if len(strangers) > at_once:
                # Of two that find each other one calls, and the other a little later.
                strangers = [
                    one
                    for one in strangers
                    if one[1] < self._transport.peer_id or now_s - one[2].found_at_s >= LOWER_CALLS_AFTER_S
                ][:at_once]
            if self._genesis is None and not self._options.force_bootstrap and not self._live_members():
                async with anyio.create_task_group() as tasks:
                    for _, peer_id, peer in strangers:
                        peer.asked_at_s = now_s
                        tasks.start_soon(self._hello, peer_id, peer.addresses)
            if self._given_s() - now_s >= ANSWER_TIMEOUT_S:
                pause_s, at_once = min(pause_s * 2, LONGEST_PAUSE_S), max(1, at_once // 2)
            else:
                pause_s, at_once = ROUND_S, min(at_once + 1, STRANGERS_AT_ONCE)
            await anyio.sleep(pause_s * self._random.uniform(0.5, 1.5))

    def _saying(self) -> object:
        """What others decide by."""
        return self._defers_to, self._genesis is None, frozenset(self._peers)

    async def _hello(self, peer_id: str | None, addresses: tuple[str, ...]) -> None:
        saying = self._saying()
        answer = await self._call(peer_id, messages.Hello(self._report()), addresses)
        if peer_id is not None and isinstance(answer, messages.HelloAnswer):
            self._peer(peer_id).told = saying

    async def _call(
        self, peer_id: str | None, message: messages.Message, addresses: Sequence[str] | None = None
    ) -> messages.Message | None:
        """One question, one answer; None when none came. A repeated question does no harm."""
        if addresses is None and peer_id in self._peers:
            addresses = self._peers[peer_id].addresses
        limit_s = ANSWER_TIMEOUT_S * (5 if isinstance(message, messages.JoinRequest) else 1)
        with anyio.move_on_after(limit_s) as scope, self._counted(scope):
            try:
                stream = await self._transport.connect(self._protocol, peer_id=peer_id, addresses=addresses or ())
            except NotAdmitted:
                self._refused_by = peer_id or ", ".join(addresses or ())
                if peer_id is not None:
                    self._peer(peer_id).has_refused = True
                return None
            except TransportError:
                return None
            try:
                stream.send(messages.encode(message))
                answer = messages.decode((await stream.receive())[0])
            except (TransportError, CodecError):
                return None
            finally:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
            if isinstance(answer, messages.HelloAnswer):
                self._heard_from(stream.peer_id, answer.report)
            return answer
        return None

    @contextmanager
    def _counted(self, scope: anyio.CancelScope) -> Iterator[None]:
        self._calls.add(scope)
        try:
            yield
        finally:
            self._calls.remove(scope)

    async def handle(self, stream: MessageStream) -> None:
        """One question of a peer. Its identity is the stream's, whatever the message claims."""
        try:
            message = messages.decode((await stream.receive())[0])
            answer = await self._answer(stream.peer_id, message)
            if answer is not None:
                stream.send(messages.encode(answer))
        except (TransportError, CodecError) as error:
            log.info("a formation message of %s was not answered: %s", stream.peer_id, error)

    async def _answer(self, sender: str, message: messages.Message) -> messages.Message | None:
        match message:
            case messages.Hello(report):
                self._heard_from(sender, report)
                self._peer(sender).told = self._saying()
                return messages.HelloAnswer(self._report())
            case messages.JoinRequest():
                if message.peer_id != sender:
                    return messages.JoinRefused("wrong-sender", "the request names another peer than its sender")
                is_led = self._membership is not None and self._membership.leader() is not None
                founders = () if self._genesis is None else self._genesis.voters
                if self._genesis and not is_led and Voter(message.peer_id, message.incarnation) in founders:
                    # A founder that has not heard so. No leader is asked: there may be none before it starts.
                    return messages.JoinAccepted(self._genesis, self._founders(self._genesis))
                if self._membership is None:
                    return messages.NotLeader(None)
                return await self._membership.join(message)
            case messages.Chosen(genesis):
                ours = Voter(self._request.peer_id, self._request.incarnation)
                is_ours = ours in genesis.voters and genesis.namespace == self._namespace
                if self._genesis is None and self._options.expect is not None and is_ours:
                    self._found_cluster(genesis)
                    self._heard.set()
                return messages.HelloAnswer(self._report())
            case messages.Prepare() | messages.Accept():
                if message.ballot.peer_id != sender:
                    return messages.BallotRefused(message.ballot, None)
                return self._vote(message)
        return None

    def _founders(self, genesis: Genesis) -> tuple[messages.MemberAddresses, ...]:
        addresses = {peer_id: peer.addresses for peer_id, peer in self._peers.items()}
        addresses[self._transport.peer_id] = tuple(self._transport.addresses)
        return tuple(
            messages.MemberAddresses(one.peer_id, one.incarnation, addresses.get(one.peer_id, ()), True)
            for one in genesis.voters
        )

    def _heard_from(self, sender: str, report: PeerReport) -> None:
        if report.peer_id != sender or sender == self._transport.peer_id:
            return
        peer = self._peer(sender)
        last = peer.report
        if last is None:
            self._heard.set()
        is_same_process = last is not None and last.incarnation == report.incarnation
        if last is not None and is_same_process and 0 < last.age_s - report.age_s <= ANSWER_TIMEOUT_S * 2:
            return  # overtaken by a younger report; a much younger age is a restarted process
        peer.report, peer.answered_at_s = report, self._given_s()
        if report.addresses:
            peer.addresses = report.addresses
        for known in report.known:
            if known.peer_id != self._transport.peer_id:
                other = self._peer(known.peer_id)
                other.addresses = other.addresses or known.addresses
        theirs = {known.peer_id for known in report.known} | {sender}
        ours = {*self._peers, self._transport.peer_id}
        peer.agreed_rounds = peer.agreed_rounds + 1 if theirs == ours else 0

    def _report(self) -> PeerReport:
        genesis = self._genesis
        return PeerReport(
            self._transport.peer_id,
            self._request.incarnation,
            tuple(self._transport.addresses),
            self._age_s(),
            State.UNDECIDED if genesis is None else State.MEMBER,
            None if genesis is None else genesis.cluster_id,
            self._membership.leader() if self._membership is not None else None,
            self._defers_to,
            self._options.expect,
            tuple(KnownPeer(peer_id, peer.addresses) for peer_id, peer in sorted(self._peers.items())),
        )

    def _situation(self) -> steps.Situation:
        given_s = self._given_s()
        silent_after_s = max(steps.SILENT_AFTER_S, 3 * self._least_round_s())
        silent = {
            peer_id
            for peer_id, peer in self._peers.items()
            if peer.report is None or given_s - peer.answered_at_s > silent_after_s
        }
        running: set[str | None] = set()
        if silent and given_s < RUNNING_PATIENCE_S:
            running = {found.peer_id for one in self._discoverers for found in one.look() if found.is_running}
        return steps.Situation(
            self._transport.peer_id,
            self._request.incarnation,
            given_s,
            self._options,
            self._genesis,
            tuple(
                steps.PeerView(
                    peer_id,
                    peer.report,
                    max(given_s - peer.answered_at_s, 0.0),
                    peer.agreed_rounds,
                    is_awaited=not peer.has_refused
                    and (peer_id in running or (peer.report is None and peer.asked_at_s is None)),
                )
                for peer_id, peer in sorted(self._peers.items())
            ),
            tuple(steps.DiscovererView(one.name, one.minimum_s) for one in self._discoverers),
            self._defers_to,
            silent_after_s,
        )
