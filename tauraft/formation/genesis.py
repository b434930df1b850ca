"""The genesis of a cluster, and how ``expect=N`` nodes choose exactly one (single-decree Paxos).

A ``Genesis`` is written once and never changes: the cluster's id, its first voters, and the options it committed to.
Its encoding has a format number and refuses unknown ones: a node never guesses at what a cluster is.

``Acceptor`` and ``Proposer`` are pure.  An acceptor returns its new ``AcceptorRecord`` with the answer; **the record must be on
disk before the answer leaves**.  Ballots are (round, peer id): two proposers never share one.  A proposer that hears
of an accepted genesis proposes that one, the one of the highest ballot, instead of its own; more than N/2 promises and more than N/2
acceptances make any two choices share an acceptor.  Invariant: of all geneses ever chosen there is one.

Not here: who proposes when (``decide``), and files and messages (``driver``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tauraft.codec import CodecError, compile_codec
from tauraft.core.messages import Member

FORMAT = 1
CLUSTER_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Voter:
    peer_id: str
    incarnation: int

    @property
    def member(self) -> Member:
        return Member(self.peer_id, self.incarnation)


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What every member must agree on for the cluster's life."""

    lease_reads: bool = False


@dataclass(frozen=True, slots=True)
class Genesis:
    cluster_id: bytes
    namespace: str
    voters: tuple[Voter, ...]
    created_by: str
    options: ClusterOptions = ClusterOptions()

    def __post_init__(self) -> None:
        if len(self.cluster_id) != CLUSTER_ID_BYTES:
            raise ValueError(f"a cluster id has {CLUSTER_ID_BYTES} bytes, not {len(self.cluster_id)}")
        if not self.voters or len({voter.peer_id for voter in self.voters}) != len(self.voters):
            raise ValueError("a genesis names at least one voter, and each peer once")

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(voter.member for voter in self.voters)


@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    round: int
    peer_id: str


@dataclass(frozen=True, slots=True)
class AcceptedGenesis:
    ballot: Ballot
    genesis: Genesis


@dataclass(frozen=True, slots=True)
class AcceptorRecord:
    """All an acceptor must remember over a crash."""

    promised: Ballot | None = None
    accepted: AcceptedGenesis | None = None


@dataclass(frozen=True, slots=True)
class _GenesisFile:
    format: int
    genesis: Genesis


@dataclass(frozen=True, slots=True)
class _AcceptorFile:
    format: int
    record: AcceptorRecord


_GENESIS = compile_codec(_GenesisFile)
_ACCEPTOR = compile_codec(_AcceptorFile)


def encode_genesis(genesis: Genesis) -> bytes:
    return _GENESIS.encode(_GenesisFile(FORMAT, genesis))


def decode_genesis(data: bytes) -> Genesis:
    """Raises ``CodecError``."""
    file: _GenesisFile = _decode(_GENESIS.decode, data)
    _check_format(file.format)
    return file.genesis


def encode_acceptor(record: AcceptorRecord) -> bytes:
    return _ACCEPTOR.encode(_AcceptorFile(FORMAT, record))


def decode_acceptor(data: bytes) -> AcceptorRecord:
    """Raises ``CodecError``."""
    file: _AcceptorFile = _decode(_ACCEPTOR.decode, data)
    _check_format(file.format)
    return file.record


def _decode(decode: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return decode(data)
    except CodecError:
        raise
    except ValueError as error:
        raise CodecError(str(error)) from error


def _check_format(found: int) -> None:
    if found != FORMAT:
        raise CodecError(f"format {found} of a formation record: this version reads format {FORMAT}")


def choose_voters(candidates: Sequence[Voter], max_voters: int) -> tuple[Voter, ...]:
    """The lowest peer ids, an odd number of them, at most ``max_voters``."""
    count = min(len(candidates), max_voters)
    if count % 2 == 0:
        count -= 1
    return tuple(sorted(candidates, key=lambda voter: voter.peer_id)[: max(count, 1)])


class Acceptor:
    """One node's vote. ``record`` is what has to be on disk before the answer just returned is sent."""

    def __init__(self, record: AcceptorRecord = AcceptorRecord()) -> None:
        self.record = record

    def prepare(self, ballot: Ballot) -> AcceptedGenesis | Ballot | None:
        """A ``Ballot``: refused, because that one was promised. Else promised, with what was accepted before."""
        if self.record.promised is not None and ballot < self.record.promised:
            return self.record.promised
        self.record = replace(self.record, promised=ballot)
        return self.record.accepted

    def accept(self, ballot: Ballot, genesis: Genesis) -> Ballot | None:
        """None: accepted. A ``Ballot``: refused, because that one was promised."""
        if self.record.promised is not None and ballot < self.record.promised:
            return self.record.promised
        self.record = AcceptorRecord(ballot, AcceptedGenesis(ballot, genesis))
        return None


class Proposer:
    """One ballot of one proposer: promises, then acceptances, then ``chosen``."""

    def __init__(self, ballot: Ballot, own: Genesis, expect: int) -> None:
        self.ballot = ballot
        self.proposal: Genesis | None = None
        self.chosen: Genesis | None = None
        self._own = own
        self._majority = expect // 2 + 1
        self._promises: dict[str, AcceptedGenesis | None] = {}
        self._acceptances: set[str] = set()

    def promised(self, sender: str, ballot: Ballot, accepted: AcceptedGenesis | None) -> bool:
        """True exactly once: when a majority promised, and ``proposal`` is to be sent to all."""
        if ballot != self.ballot or self.proposal is not None:
            return False
        self._promises[sender] = accepted
        if len(self._promises) < self._majority:
            return False
        before = [promise for promise in self._promises.values() if promise is not None]
        # An accepted genesis may already be chosen without our knowing: only the highest one can be.
        self.proposal = max(before, key=lambda one: one.ballot).genesis if before else self._own
        return True

    def accepted(self, sender: str, ballot: Ballot) -> bool:
        """True once a majority accepted: ``chosen`` is the cluster's genesis."""
        if ballot != self.ballot or self.proposal is None:
            return False
        self._acceptances.add(sender)
        if len(self._acceptances) >= self._majority:
            self.chosen = self.proposal
        return self.chosen is not None
