"""The bytes between client and replica: fixed for good, and strict about what is let in."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from tauraft import command_protocol as protocol
from tauraft.command_protocol import AnswerKind, MalformedFrame, MemberAddress, WatchStart

# One whole frame of revision 9: the row k, new.
RECORDS = protocol.encode_records([(False, True, 9, 5, 7, [[b"k", None, b"n"]])])
# Written down once, never changed: a release that cannot read these cannot talk to its neighbours.
GOLDEN: list[tuple[Any, str]] = [
    (protocol.Hello(1, "web", "host2", 812), "950101a3776562a5686f737432cd032c"),
    (protocol.Open(b"n", b"h", 10**10), "9402c4016ec40168cf00000002540be400"),
    (protocol.Attach(7, b"s", 9), "940307c4017309"),
    (protocol.Submit(7, 1, 1, 0, b"p"), "960407010100c40170"),
    (protocol.Withdraw(7, 1, 1), "9405070101"),
    (protocol.KeepAlive(7, 3), "93060703"),
    (protocol.Close(7), "920707"),
    (protocol.Ask(1, "stale", b"q", 9), "950801a57374616c65c4017109"),
    (protocol.Call(2, "status", {"a": (1, None)}), "940902a673746174757381a1619201c0"),
    (protocol.Welcome(1, "A", b"c", "B", (MemberAddress("B", ("/x",)),)), "962101a141c40163a1429192a14291a22f78"),
    (protocol.Opened(b"n", 7, 9), "9422c4016e0709"),
    (protocol.Attached(7, 9), "93230709"),
    (protocol.Answer(7, 1, 9, AnswerKind.ERROR, b"e"), "962407010901c40165"),
    (protocol.Waiting(7, 1, 9), "9425070109"),
    (protocol.Alive(7, 3), "93260703"),
    (protocol.RenewNow(), "9127"),
    (protocol.Closed(7), "922807"),
    (protocol.Gone(7), "922907"),
    (protocol.Told(1, 9, b"d"), "942a0109c40164"),
    (protocol.Failed(0, 7, 1, b"e"), "952b000701c40165"),
    (protocol.LeaderIs("A", ("/x",)), "932ca14191a22f78"),
    (
        protocol.Watch(3, "a/t", b"\xa1a", b"\xa1b", WatchStart.CURSOR, b"c", 8, 262144),
        "990a03a3612f74c402a161c402a16203c4016308ce00040000",
    ),
    (protocol.Credit(3, 300000, 65536), "940b03ce000493e0ce00010000"),
    (protocol.Unwatch(3), "920c03"),
    (protocol.Watching(3, 8, 4, b"c"), "952d030804c40163"),
    (protocol.Events(3, 9, 5, RECORDS), "952e030905c4109196c2c30905079193c4016bc0c4016e"),
]


def _decode(message: Any, frame: bytes) -> Any:
    if isinstance(message, protocol.ToReplica):
        return protocol.decode_to_replica(frame)
    return protocol.decode_to_client(frame)


@pytest.mark.parametrize(
    ("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__ if not isinstance(value, str) else ""
)
def test_every_message_keeps_its_bytes(message: Any, golden: str) -> None:
    assert protocol.encode(message).hex() == golden
    assert _decode(message, bytes.fromhex(golden)) == message


def test_every_message_has_a_golden_frame() -> None:
    known = {kind for table in (protocol._TO_REPLICA, protocol._TO_CLIENT) for kind, _ in table.values()}
    assert {type(message) for message, _ in GOLDEN} == known


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(MalformedFrame):
        protocol.decode_to_replica(protocol.encode(protocol.Gone(7)))


@pytest.mark.parametrize(
    ("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__ if not isinstance(value, str) else ""
)
def test_a_frame_cut_or_grown_anywhere_is_refused(message: Any, golden: str) -> None:
    frame = bytes.fromhex(golden)
    for end in range(len(frame)):
        with pytest.raises(MalformedFrame):
            _decode(message, frame[:end])
    with pytest.raises(MalformedFrame):
        _decode(message, frame + b"\x00")


@pytest.mark.parametrize(
    ("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__ if not isinstance(value, str) else ""
)
@pytest.mark.parametrize(
    "wrong", [-1, 2**63, 1.5, True, None, [], {}, "x" * 5000, [["a"]]], ids=lambda value: repr(value)[:12]
)
def test_a_field_of_a_wrong_type_is_refused_or_kept_as_its_type_says(message: Any, golden: str, wrong: Any) -> None:
    parts = msgpack.unpackb(bytes.fromhex(golden))
    for place in range(1, len(parts)):
        changed = [*parts[:place], wrong, *parts[place + 1 :]]
        try:
            decoded = _decode(message, msgpack.packb(changed))
        except MalformedFrame:
            continue
        name = dataclasses.fields(decoded)[place - 1].name
        assert name in ("arguments", "addresses", "members"), f"{name} took {wrong!r}"


def test_limits_are_checked_before_anything_is_built() -> None:
    with pytest.raises(MalformedFrame, match="over the limit"):
        protocol.decode_to_replica(b"\x00" * (protocol.MAX_FRAME_BYTES + 1))
    with pytest.raises(MalformedFrame):
        protocol.decode_to_replica(b"\xdd\xff\xff\xff\xff")  # an array said to have 4 billion items
    with pytest.raises(MalformedFrame):
        protocol.decode_to_replica(b"\x91" * 100_000)  # nested without end
    deep: Any = 1
    for _ in range(protocol.MAX_ARGUMENT_DEPTH):
        deep = [deep]
    with pytest.raises(MalformedFrame, match="deep"):
        protocol.decode_to_replica(msgpack.packb([9, 1, "status", {"a": deep}]))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(frame: bytes) -> None:
    for decode in (protocol.decode_to_replica, protocol.decode_to_client):
        try:
            decode(frame)
        except MalformedFrame:
            pass


@given(st.data())
def test_a_flipped_byte_never_raises_anything_else(data: st.DataObject) -> None:
    message, golden = data.draw(st.sampled_from(GOLDEN))
    frame = bytearray.fromhex(golden)
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        _decode(message, bytes(frame))
    except MalformedFrame:
        pass


@given(st.binary(max_size=100))
def test_any_bytes_are_records_of_a_watch_or_malformed(data: bytes) -> None:
    try:
        protocol.decode_records(data)
    except MalformedFrame:
        pass


@pytest.mark.parametrize(
    "records",
    [
        5,
        [5],
        [[0, True, 1, None, 1, []]],
        [[False, True, -1, None, 1, []]],
        [[False, True, 1, "5", 1, []]],
        [[False, True, 1, None, 1, [[b"k", None]]]],
        [[True, True, 1, None, 1, [[b"k", None]]]],
        [[False, True, 1, None, 1, [["k", None, None]]]],
        [[False, True, 1, None, 1, [[b"k", 5, None]]]],
        [[False, True, 1, None, 1]],
    ],
)
def test_records_of_another_form_are_refused(records: Any) -> None:
    with pytest.raises(MalformedFrame):
        protocol.decode_records(msgpack.packb(records))
