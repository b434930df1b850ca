"""What a node does next on its way into a cluster: a pure function of what it has on disk, whom it met, and its age.

In:  a ``Situation`` (own record, reports of peers and how long ago each answered, discoverers, options).
Out: one ``Step``; the driver performs it and asks again. No clocks, no I/O.

The rules, in the order in which they bind (docs/decisions/0005-formation.md):

- who has a membership on disk never bootstraps; it looks for its members, for ever;
- whoever is in a cluster already wins: ask it to be added;
- ``expect=N``: wait for N identities, refuse more, then choose one genesis by Paxos;
- else the lowest peer id of those that are not late writes the genesis, once *every* undecided peer that can be reached
  has said that it defers to it.  Such a word is kept until that peer is silent or defers to another.  Of two nodes that
  hear each other at most one therefore writes, even when they disagree on who else exists.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

from tauraft.formation.genesis import Genesis, Voter, choose_voters
from tauraft.formation.messages import PeerReport, State

SILENT_AFTER_S = 3.0
AGREED_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Options:
    bootstrap_timeout_s: float = 10.0
    bootstrap_threshold: float = 0.8
    expect: int | None = None
    force_bootstrap: bool = False
    max_voters: int = 5


@dataclass(frozen=True, slots=True)
class DiscovererView:
    name: str
    minimum_s: float


@dataclass(frozen=True, slots=True)
class PeerView:
    """A peer this node has heard of. ``report`` None: it has never answered.

    ``is_awaited``: though it does not answer, and beyond the window, because it was not asked yet, or is seen to run.
    """

    peer_id: str
    report: PeerReport | None = None
    since_answer_s: float = 0.0
    agreed_rounds: int = 0  # consecutive answers whose set of undecided peers was the same as ours
    is_awaited: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    peer_id: str
    incarnation: int
    age_s: float
    options: Options
    genesis_on_disk: Genesis | None = None
    peers: tuple[PeerView, ...] = ()
    discoverers: tuple[DiscovererView, ...] = ()
    defers_to: str | None = None
    silent_after_s: float = SILENT_AFTER_S


@dataclass(frozen=True, slots=True)
class ContactKnownMembers:
    genesis: Genesis


@dataclass(frozen=True, slots=True)
class Ask:
    """Exchange peers with these now: they have not answered yet."""

    peers: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Exchange peers with all, and decide again at ``until_age_s`` or when anything is heard."""

    until_age_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class JoinCluster:
    via: str
    cluster_id: bytes


@dataclass(frozen=True, slots=True)
class WriteGenesis:
    """``learners`` are the founders that will ask to join; nothing is sent to them."""

    voters: tuple[Voter, ...]
    learners: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeferTo:
    """Say so in every report from now on, and wait."""

    peer_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StartAlone:
    voter: Voter


@dataclass(frozen=True, slots=True)
class Propose:
    """Run one ballot among ``acceptors`` (this node included) for a genesis of ``voters``."""

    acceptors: tuple[str, ...]
    voters: tuple[Voter, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: str


Step: TypeAlias = (
    ContactKnownMembers | Ask | Wait | JoinCluster | WriteGenesis | DeferTo | StartAlone | Propose | Refuse
)


def decide(situation: Situation) -> Step:
    if situation.genesis_on_disk is not None:
        return ContactKnownMembers(situation.genesis_on_disk)
    options = situation.options
    own = Voter(situation.peer_id, situation.incarnation)
    if options.force_bootstrap:
        return StartAlone(own)
    if options.expect is not None and len(situation.peers) + 1 > options.expect:
        members = sum(_is_member(peer) for peer in situation.peers)
        if not members:
            names = ", ".join(sorted([situation.peer_id, *(peer.peer_id for peer in situation.peers)]))
            return Refuse(f"expect={options.expect}, but {len(situation.peers) + 1} nodes were found: {names}")
    cluster = _cluster_to_join(situation)
    if cluster is not None:
        return cluster
    if options.expect is not None:
        return _with_expect(situation, options.expect, own)
    return _without_expect(situation, own)


def live_undecided(situation: Situation) -> list[PeerReport]:
    """The reports of the peers that take part in founding, in the order of their peer ids."""
    reports = [
        peer.report
        for peer in situation.peers
        if peer.report is not None
        and peer.since_answer_s <= situation.silent_after_s
        and peer.report.state in (State.UNDECIDED, State.DECIDING)
    ]
    return sorted(reports, key=lambda report: report.peer_id)


def _is_member(peer: PeerView) -> bool:
    report = peer.report
    return report is not None and report.state in (State.MEMBER, State.ARCHIVED) and report.cluster_id is not None


def _cluster_to_join(situation: Situation) -> JoinCluster | None:
    # Live members first; of two clusters that met, the lower id is the one the other yields to (SAFETY 9).
    found = [
        (peer.since_answer_s > situation.silent_after_s, peer.report.cluster_id, peer.peer_id)
        for peer in situation.peers
        if peer.report is not None and peer.report.cluster_id is not None and _is_member(peer)
    ]
    if not found:
        return None
    _, cluster_id, via = min(found)
    return JoinCluster(via, cluster_id)


def _with_expect(situation: Situation, expect: int, own: Voter) -> Step:
    answered = [peer.report for peer in situation.peers if peer.report is not None]
    if len(answered) + 1 < expect:
        silent = sorted(peer.peer_id for peer in situation.peers if peer.report is None)
        not_reachable = f" ({', '.join(silent)} found but not reachable)" if silent else ""
        return Wait(None, f"{len(answered) + 1} of {expect} expected nodes are running{not_reachable}")
    reports = live_undecided(situation)
    if len(reports) + 1 <= expect // 2:
        return Wait(None, f"{len(reports) + 1} of {expect} expected nodes can be reached; more than half are needed")
    if reports and reports[0].peer_id < situation.peer_id:
        # Only so that proposers do not outbid each other: safety is Paxos's.
        return DeferTo(reports[0].peer_id, "a lower peer id proposes the genesis")
    up = [own, *(Voter(report.peer_id, report.incarnation) for report in reports)]
    acceptors = tuple(sorted([situation.peer_id, *(peer.peer_id for peer in situation.peers)]))
    return Propose(acceptors, choose_voters(up, situation.options.max_voters))


def _without_expect(situation: Situation, own: Voter) -> Step:
    reports = live_undecided(situation)
    age, window = situation.age_s, situation.options.bootstrap_timeout_s
    heard = {report.peer_id for report in reports}
    unheard = [
        peer
        for peer in situation.peers
        if peer.peer_id not in heard and (peer.is_awaited or (peer.report is None and age < window))
    ]
    author = _author(situation, reports)
    if author != situation.peer_id:
        return DeferTo(author, "a lower peer id among the founders writes the genesis")
    minimum_s = max((one.minimum_s for one in situation.discoverers), default=window)
    if age < min(minimum_s, window):
        slowest = max(situation.discoverers, key=lambda one: one.minimum_s, default=None)
        what = f"discovery by {slowest.name}" if slowest else "the bootstrap window"
        return Wait(min(minimum_s, window), f"{what} is given its time")
    if unheard:
        names = tuple(sorted(peer.peer_id for peer in unheard))
        return Ask(names, f"{', '.join(names)} found, but not heard yet")
    # The word is asked for also when the window is over: a genesis against a live peer's will is a split.
    missing = [report.peer_id for report in reports if report.defers_to != situation.peer_id]
    if missing:
        return Wait(None, f"waiting for {', '.join(missing)} to agree that this node founds the cluster")
    views = {peer.peer_id: peer for peer in situation.peers}
    if age < window and any(views[report.peer_id].agreed_rounds < AGREED_ROUNDS for report in reports):
        return Wait(window, "the founders do not yet know the same peers")
    if not reports:
        return StartAlone(own)
    return WriteGenesis((own,), tuple(report.peer_id for report in reports))


def _author(situation: Situation, reports: list[PeerReport]) -> str:
    by_id = {report.peer_id: report for report in reports}
    promised = by_id.get(situation.defers_to or "")
    if promised is not None:
        # A word given is kept, unless its receiver defers itself; of two that defer to each other the lower founds.
        is_mutual = promised.defers_to == situation.peer_id
        if promised.defers_to is None or (is_mutual and promised.peer_id < situation.peer_id):
            return promised.peer_id
        if is_mutual:
            return situation.peer_id
    since = {peer.peer_id: peer.since_answer_s for peer in situation.peers}
    ages = {report.peer_id: report.age_s + since[report.peer_id] for report in reports}
    ages[situation.peer_id] = situation.age_s
    for report in reports:
        if report.state is State.DECIDING:
            return report.peer_id
    limit_s = situation.options.bootstrap_threshold * situation.options.bootstrap_timeout_s
    oldest = max(ages.values())
    author = min(peer_id for peer_id, age in ages.items() if oldest - age <= limit_s)
    # At the edge of lateness two nodes may reckon differently; whom the author itself defers to is what counts.
    chain: list[str] = []
    while author not in chain:
        chain.append(author)
        its_report = by_id.get(author)
        if its_report is not None and its_report.defers_to in ages:
            author = its_report.defers_to
    author = min(chain[chain.index(author) :])
    return _rival(situation, reports) or author if author == situation.peer_id else author


def _rival(situation: Situation, reports: list[PeerReport]) -> str | None:
    """Who founds in this node's stead though this node would: both wait for the other's word, for ever.

    Windows that differ make two of them: whom one holds to be late need not be late to itself. Who was promised more founds;
    of equals, when the window is over, the lower.
    """
    words = Counter(report.defers_to for report in reports)
    own = words[situation.peer_id]
    is_over = situation.age_s >= situation.options.bootstrap_timeout_s
    rivals = [
        (-words[report.peer_id], report.peer_id)
        for report in reports
        if report.defers_to is None
        and (
            words[report.peer_id] > own
            or (is_over and words[report.peer_id] == own and report.peer_id < situation.peer_id)
        )
    ]
    return min(rivals)[1] if rivals else None
