"""How one replica's frames to another look: one leading byte for the kind, then msgpack.

``RAFT``: a message of the core. ``FORWARD``: commands a follower passes to its
leader. ``PULL`` asks for a piece of a snapshot, ``CHUNK`` is one: the receiver sets the pace.  ``EXCLUDED``: the leader tells a
member that its disk is not what it was; ``MISMATCH``: another incarnation was meant, or is the member, than the one there is.

The format has a number (the first byte's high half) and golden bytes in tests/golden.  What does not decode
exactly is refused as ``WireError``: a frame from a peer is never trusted to be well formed.
The peer id of the sender is not in the frame: the transport proved it (a `sender` that could differ would be a lie waiting to be told).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from tauraft.core.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Member,
    Membership,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    SnapshotMeta,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)

FORMAT = 1
RAFT, FORWARD, PULL, CHUNK, EXCLUDED, MISMATCH = (FORMAT << 4 | kind for kind in range(6))


class WireError(Exception):
    """A frame that no honest replica of this version sends."""


def pack_member(member: Member | None) -> list[Any] | None:
    return None if member is None else [member.peer_id, member.incarnation]


def unpack_member(value: Any) -> Member:
    peer_id, incarnation = value
    if type(peer_id) is not str or type(incarnation) is not int:
        raise WireError("not a member")
    return Member(peer_id, incarnation)


def pack_membership(membership: Membership) -> list[Any]:
    return [
        [pack_member(m) for m in sorted(membership.voters)],
        [pack_member(m) for m in sorted(membership.outgoing)],
        [pack_member(m) for m in sorted(membership.learners)],
        [pack_member(m) for m in sorted(membership.learners_next)],
        membership.auto_leave,
    ]


def unpack_membership(value: Any) -> Membership:
    *groups, auto_leave = value
    if len(groups) != 4 or type(auto_leave) is not bool:
        raise WireError("not a membership")
    voters, outgoing, learners, learners_next = (frozenset(map(unpack_member, group)) for group in groups)
    return Membership(voters, outgoing, learners, learners_next, auto_leave)


def pack_snapshot_meta(meta: SnapshotMeta) -> list[Any]:
    return [meta.index, meta.term, pack_membership(meta.membership), meta.id]


def unpack_snapshot_meta(value: Any) -> SnapshotMeta:
    index, term, membership, identifier = value
    return SnapshotMeta(_int(index), _int(term), unpack_membership(membership), _bytes(identifier))


def _int(value: Any) -> int:
    if type(value) is not int:
        raise WireError("not an integer")
    return value


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise WireError("not bytes")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise WireError("not a boolean")
    return value


_Head = tuple[Member, Member, int, bytes]  # sender, to, term, cluster id


def _pack_append(m: Append) -> list[Any]:
    # Entries follow one another, so their indexes need not travel.
    entries = [[entry.term, int(entry.kind), entry.data] for entry in m.entries]
    return [m.prev_index, m.prev_term, entries, m.commit, m.sequence]


def _unpack_append(head: _Head, body: Sequence[Any]) -> Append:
    prev_index, prev_term, packed, commit, sequence = body
    index = _int(prev_index)
    entries = tuple(
        Entry(index + place, _int(term), EntryKind(kind), _bytes(data))
        for place, (term, kind, data) in enumerate(packed, 1)
    )
    return Append(*head, index, _int(prev_term), entries, _int(commit), _int(sequence))


# Kind of message -> (number on the wire, its own fields -> list, header + list -> message).
_Packer = Callable[[Any], list[Any]]
_Unpacker = Callable[[_Head, Sequence[Any]], Message]
_FORMS: dict[type[Message], tuple[int, _Packer, _Unpacker]] = {
    VoteRequest: (
        0,
        lambda m: [m.last_index, m.last_term, m.is_pre_vote, m.is_transfer],
        lambda h, b: VoteRequest(*h, _int(b[0]), _int(b[1]), _bool(b[2]), _bool(b[3])),
    ),
    VoteReply: (
        1,
        lambda m: [m.granted, m.is_pre_vote, m.commit, m.commit_term],
        lambda h, b: VoteReply(*h, _bool(b[0]), _bool(b[1]), _int(b[2]), _int(b[3])),
    ),
    Append: (2, _pack_append, _unpack_append),
    AppendReply: (
        3,
        lambda m: [m.ok, m.match, m.hint_index, m.hint_term, m.sequence],
        lambda h, b: AppendReply(*h, _bool(b[0]), _int(b[1]), _int(b[2]), _int(b[3]), _int(b[4])),
    ),
    Heartbeat: (
        4,
        lambda m: [m.commit, m.read_context, m.payload],
        lambda h, b: Heartbeat(*h, _int(b[0]), _int(b[1]), _bytes(b[2])),
    ),
    HeartbeatReply: (
        5,
        lambda m: [m.read_context, m.payload],
        lambda h, b: HeartbeatReply(*h, _int(b[0]), _bytes(b[1])),
    ),
    InstallSnapshot: (
        6,
        lambda m: [pack_snapshot_meta(m.meta)],
        lambda h, b: InstallSnapshot(*h, unpack_snapshot_meta(b[0])),
    ),
    TimeoutNow: (7, lambda m: [], lambda h, b: TimeoutNow(*h)),
    ReadIndexRequest: (8, lambda m: [m.context], lambda h, b: ReadIndexRequest(*h, _int(b[0]))),
    ReadIndexReply: (9, lambda m: [m.context, m.index], lambda h, b: ReadIndexReply(*h, _int(b[0]), _int(b[1]))),
}
_UNPACKERS: dict[int, _Unpacker] = {number: unpacker for number, _, unpacker in _FORMS.values()}


def encode_message(message: Message) -> bytes:
    number, pack, _ = _FORMS[type(message)]
    packed: bytes = msgpack.packb(
        [number, message.sender.incarnation, message.to.incarnation, message.term, message.cluster_id, pack(message)]
    )
    return bytes((RAFT,)) + packed


def decode_message(frame: bytes, sender_peer_id: str, own_peer_id: str) -> Message:
    """``frame`` with its kind byte. Raises ``WireError``."""
    try:
        number, from_incarnation, to_incarnation, term, cluster_id, body = unpack(frame)
        head = (
            Member(sender_peer_id, _int(from_incarnation)),
            Member(own_peer_id, _int(to_incarnation)),
            _int(term),
            _bytes(cluster_id),
        )
        return _UNPACKERS[number](head, body)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise WireError(f"undecodable message: {error}") from error


def unpack(frame: bytes) -> Any:
    """What follows the kind byte. Raises ``WireError``."""
    try:
        return msgpack.unpackb(memoryview(frame)[1:], strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"undecodable frame: {error}") from error


def items(frame: bytes) -> list[Any]:
    """What follows the kind byte, where that is a list. Raises ``WireError``."""
    value = unpack(frame)
    if type(value) is not list:
        raise WireError("not a list")
    return value


def fields(frame: bytes, *types: type) -> list[Any]:
    """The list that follows the kind byte, of exactly these types. Raises ``WireError``."""
    values = items(frame)
    if [type(value) for value in values] != list(types):
        raise WireError("wrong fields")
    return values


def pack(kind: int, value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return bytes((kind,)) + packed
