"""What forming nodes say to each other: one msgpack frame ``[format, tag, fields]`` each, strictly decoded.

A frame says nothing about who sent it: the stream's peer id is proven by the transport, and a message whose
``peer_id`` differs is refused by the receiver.  Ages are seconds since the sender's process started, by its monotonic clock:
nobody compares clocks (SAFETY 11).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias

import msgpack

from tauraft.codec import CodecError, ValueCodec, compile_codec, unpack_bytes
from tauraft.formation.genesis import AcceptedGenesis, Ballot, Genesis

FORMAT: Final = 1
MAX_FRAME_BYTES: Final = 1 << 20


class State(Enum):
    UNDECIDED = "undecided"
    DECIDING = "deciding"  # its genesis is being written: wait for it
    MEMBER = "member"
    ARCHIVED = "archived"  # its cluster dissolved into another: ``cluster_id`` is where to go


@dataclass(frozen=True, slots=True)
class KnownPeer:
    peer_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PeerReport:
    """Hello, and the answer to it."""

    peer_id: str
    incarnation: int
    addresses: tuple[str, ...]
    age_s: float
    state: State
    cluster_id: bytes | None = None
    leader: KnownPeer | None = None
    defers_to: str | None = None
    expect: int | None = None
    known: tuple[KnownPeer, ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    report: PeerReport


@dataclass(frozen=True, slots=True)
class HelloAnswer:
    report: PeerReport


@dataclass(frozen=True, slots=True)
class PluginVersion:
    name: str
    version: int


@dataclass(frozen=True, slots=True)
class JoinRequest:
    peer_id: str
    incarnation: int
    addresses: tuple[str, ...]
    machine_id: str
    disk_device: int
    plugins: tuple[PluginVersion, ...] = ()
    join_token: str | None = None


@dataclass(frozen=True, slots=True)
class MemberAddresses:
    peer_id: str
    incarnation: int
    addresses: tuple[str, ...]
    is_voter: bool


@dataclass(frozen=True, slots=True)
class JoinAccepted:
    genesis: Genesis
    members: tuple[MemberAddresses, ...]


@dataclass(frozen=True, slots=True)
class JoinRefused:
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class NotLeader:
    leader: KnownPeer | None


@dataclass(frozen=True, slots=True)
class Prepare:
    ballot: Ballot
    expect: int


@dataclass(frozen=True, slots=True)
class Promise:
    ballot: Ballot
    accepted: AcceptedGenesis | None


@dataclass(frozen=True, slots=True)
class Accept:
    ballot: Ballot
    genesis: Genesis
    expect: int


@dataclass(frozen=True, slots=True)
class Accepted:
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class BallotRefused:
    """To Prepare or Accept: ``promised`` is the higher ballot; None: too many identities."""

    ballot: Ballot
    promised: Ballot | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """To the voters of a genesis that a proposer which is none of them found chosen: begin. Answered with HelloAnswer."""

    genesis: Genesis


Message: TypeAlias = (
    Hello | HelloAnswer | JoinRequest | JoinAccepted | JoinRefused | NotLeader
    | Prepare | Promise | Accept | Accepted | BallotRefused | Chosen
)  # fmt: skip

# Permanent: a tag is never given to another message.
_TAGS: Final[dict[int, type[Any]]] = {
    1: Hello, 2: HelloAnswer, 3: JoinRequest, 4: JoinAccepted, 5: JoinRefused, 6: NotLeader,
    7: Prepare, 8: Promise, 9: Accept, 10: Accepted, 11: BallotRefused, 12: Chosen,
}  # fmt: skip
_TAG_OF: Final = {kind: tag for tag, kind in _TAGS.items()}
_CODECS: Final[dict[int, ValueCodec]] = {tag: compile_codec(kind) for tag, kind in _TAGS.items()}


def encode(message: Message) -> bytes:
    tag = _TAG_OF[type(message)]
    frame: bytes = msgpack.packb([FORMAT, tag, _CODECS[tag].pack(message)])
    return frame


def decode(frame: bytes) -> Message:
    """Raises ``CodecError``."""
    if len(frame) > MAX_FRAME_BYTES:
        raise CodecError(f"a formation message of {len(frame)} bytes: the limit is {MAX_FRAME_BYTES}")
    parts = unpack_bytes(frame)
    if not isinstance(parts, (list, tuple)) or len(parts) != 3 or parts[0] != FORMAT:
        raise CodecError("not a formation message of this format")
    codec = _CODECS.get(parts[1]) if type(parts[1]) is int else None
    if codec is None:
        raise CodecError(f"unknown formation message {parts[1]!r}")
    try:
        message: Message = codec.unpack(parts[2])
    except CodecError:
        raise
    except ValueError as error:
        raise CodecError(str(error)) from error
    return message
