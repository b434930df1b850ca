"""How the small facts beside the entries are written: hard state, membership, where a snapshot stands.

msgpack arrays, the members of a set sorted, so that equal values give equal bytes (tests/golden/ holds them).
Used by the log stores and by the manifests of snapshots; a change of any shape here needs a new format number there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgpack

from tauraft.core.messages import (
    HardState,
    Index,
    Member,
    Membership,
    SnapshotMeta,
    Term,
)


@dataclass(frozen=True, slots=True)
class LogState:
    """Everything a log knows besides its entries."""

    last_index: Index = 0
    base: Index = 0
    base_term: Term = 0
    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta | None = None
    is_tail_suspect: bool = False


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes) -> Any:
    """Raises ``ValueError`` for anything that is not exactly one msgpack value."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except ValueError:
        raise
    except msgpack.UnpackException as error:
        raise ValueError(f"not msgpack: {error}") from error


def hard_state_to_plain(hard_state: HardState) -> list[Any]:
    vote = hard_state.vote
    return [hard_state.term, None if vote is None else [vote.peer_id, vote.incarnation], hard_state.commit]


def hard_state_from_plain(plain: Any) -> HardState:
    term, vote, commit = plain
    return HardState(term, None if vote is None else Member(vote[0], vote[1]), commit)


def membership_to_plain(membership: Membership) -> list[Any]:
    groups = (membership.voters, membership.outgoing, membership.learners, membership.learners_next)
    return [[[member.peer_id, member.incarnation] for member in sorted(group)] for group in groups] + [
        membership.auto_leave
    ]


def membership_from_plain(plain: Any) -> Membership:
    *groups, auto_leave = plain
    voters, outgoing, learners, learners_next = (frozenset(Member(*member) for member in group) for group in groups)
    return Membership(voters, outgoing, learners, learners_next, auto_leave)


def snapshot_meta_to_plain(meta: SnapshotMeta) -> list[Any]:
    return [meta.index, meta.term, membership_to_plain(meta.membership), meta.id]


def snapshot_meta_from_plain(plain: Any) -> SnapshotMeta:
    index, term, membership, identifier = plain
    return SnapshotMeta(index, term, membership_from_plain(membership), identifier)


def log_state_to_plain(state: LogState) -> list[Any]:
    return [
        state.last_index,
        state.base,
        state.base_term,
        hard_state_to_plain(state.hard_state),
        None if state.snapshot is None else snapshot_meta_to_plain(state.snapshot),
        state.is_tail_suspect,
    ]


def log_state_from_plain(plain: Any) -> LogState:
    last_index, base, base_term, hard_state, snapshot, is_tail_suspect = plain
    return LogState(
        last_index,
        base,
        base_term,
        hard_state_from_plain(hard_state),
        None if snapshot is None else snapshot_meta_from_plain(snapshot),
        is_tail_suspect,
    )
