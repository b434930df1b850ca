"""Messages of the core cross the wire unchanged, and what is no message is refused."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest

from tauraft.core import messages as core
from tauraft.node import wire

A, B = core.Member("peer-a", 1), core.Member("peer-b", (1 << 63) - 1)
HEAD = (A, B, 7, b"c" * 16)
MEMBERSHIP = core.Membership(frozenset({A}), frozenset({B}), frozenset(), frozenset({B}), True)
EVERY = [
    core.VoteRequest(*HEAD, 5, 3, True, False),
    core.VoteReply(*HEAD, True, False, 4, 2),
    core.Append(
        *HEAD, 4, 2, (core.Entry(5, 3, core.EntryKind.BATCH, b"x"), core.Entry(6, 3, core.EntryKind.NOOP)), 4, 9
    ),
    core.AppendReply(*HEAD, False, 3, 2, 1, 9),
    core.Heartbeat(*HEAD, 4, 12, b"payload"),
    core.HeartbeatReply(*HEAD, 12, b"payload"),
    core.InstallSnapshot(*HEAD, core.SnapshotMeta(9, 3, MEMBERSHIP, b"i" * 32)),
    core.TimeoutNow(*HEAD),
    core.ReadIndexRequest(*HEAD, 77),
    core.ReadIndexReply(*HEAD, 77, 5),
]


def test_every_kind_of_message_is_covered_here() -> None:
    # By name: a dataclass with slots leaves the class it was made from behind.
    names = {kind.__name__ for kind in core.Message.__subclasses__()}
    assert {type(message).__name__ for message in EVERY} == names


@pytest.mark.parametrize("message", EVERY, ids=lambda m: type(m).__name__)
def test_a_message_comes_out_as_it_went_in(message: core.Message) -> None:
    assert wire.decode_message(wire.encode_message(message), A.peer_id, B.peer_id) == message


@pytest.mark.parametrize("message", EVERY, ids=lambda m: type(m).__name__)
def test_no_field_of_a_message_is_left_behind(message: core.Message) -> None:
    kept = wire.decode_message(wire.encode_message(message), A.peer_id, B.peer_id)
    for field in dataclasses.fields(message):
        assert getattr(kept, field.name) == getattr(message, field.name), field.name


def test_strange_bytes_are_refused_and_nothing_else_is_raised() -> None:
    random = Random(1)
    frames = [wire.encode_message(message) for message in EVERY]
    for frame in frames:
        for _ in range(200):
            broken = bytearray(frame)
            broken[random.randrange(1, len(broken))] ^= random.randrange(1, 256)
            cut = bytes(broken[: random.randrange(1, len(broken) + 1)])
            try:
                wire.decode_message(cut, A.peer_id, B.peer_id)
            except wire.WireError:
                pass
