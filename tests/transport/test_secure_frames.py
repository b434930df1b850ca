"""The shared key: agreement, what is refused, and that both sides are told."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio

from tauraft.errors import WrongKey
from tauraft.testing.transport_suite import NAMESPACE, Pair, echo, receive_count, wait_until
from tauraft.transport.secure_frames import (
    BrokenRecord,
    DirectionKeys,
    Initiator,
    KeyRing,
    RecordOpener,
    RecordSealer,
    Responder,
    StreamContext,
)
from tests.transport.harnesses import Libp2pHarness

OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
CONTEXT = StreamContext("/raft/v1/x", "/x", "alice", "bob")


def agree(
    initiator_keys: list[bytes], responder_keys: list[bytes], responder_context: StreamContext = CONTEXT
) -> tuple[DirectionKeys, DirectionKeys]:
    initiator = Initiator(KeyRing(initiator_keys) if initiator_keys else None, CONTEXT, bytes(32))
    responder = Responder(KeyRing(responder_keys) if responder_keys else None, responder_context, bytes([9]) * 32)
    answer = responder.answer(initiator.hello())
    responder.check_mode()
    confirmation, initiator_side = initiator.confirm(answer)
    return initiator_side, responder.finish(confirmation)


@pytest.mark.parametrize(
    ("initiator", "responder"),
    [([OLD], [OLD]), ([OLD, NEW], [OLD]), ([OLD], [NEW, OLD]), ([NEW, OLD], [OLD, NEW]), ([NEW], [OLD, NEW])],
)
def test_rings_with_a_key_in_common_agree(initiator: list[bytes], responder: list[bytes]) -> None:
    ours, theirs = agree(initiator, responder)
    assert (ours.send, ours.receive) == (theirs.receive, theirs.send)
    assert ours.send != ours.receive


@pytest.mark.parametrize(("initiator", "responder"), [([OLD], [NEW]), ([OLD, OTHER], [NEW]), ([OLD], []), ([], [OLD])])
def test_rings_without_a_key_in_common_do_not(initiator: list[bytes], responder: list[bytes]) -> None:
    with pytest.raises(WrongKey):
        agree(initiator, responder)


@pytest.mark.parametrize(
    "context",
    [
        StreamContext("/raft/v1/x/transport", "/x", "alice", "bob"),
        StreamContext("/raft/v1/x", "/y", "alice", "bob"),
        StreamContext("/raft/v1/x", "/x", "mallory", "bob"),
        StreamContext("/raft/v1/x", "/x", "alice", "mallory"),
        StreamContext("/raft/v1/x", "/x", "bob", "alice"),
    ],
)
def test_keys_are_bound_to_who_speaks_about_what(context: StreamContext) -> None:
    with pytest.raises(WrongKey):
        agree([OLD], [OLD], context)


def test_the_responder_names_a_wrong_key_too() -> None:
    initiator = Initiator(KeyRing([OLD]), CONTEXT, bytes(32))
    responder = Responder(KeyRing([NEW]), CONTEXT, bytes(32))
    responder.answer(initiator.hello())
    with pytest.raises(WrongKey):
        responder.finish(initiator.refuse())


def test_a_changed_answer_is_refused() -> None:
    initiator = Initiator(KeyRing([OLD]), CONTEXT, bytes(32))
    responder = Responder(KeyRing([OLD, NEW]), CONTEXT, bytes(32))
    answer = responder.answer(initiator.hello())
    stripped = answer[:-32]  # as if the newer key were not there, to bring us back to the old one
    confirmation, _ = initiator.confirm(stripped)
    with pytest.raises(WrongKey):
        responder.finish(confirmation)


def test_records_open_in_order_in_any_pieces_and_across_key_changes() -> None:
    sealer, opener = RecordSealer(OLD, rekey_after=2), RecordOpener(OLD, rekey_after=2)
    wire = b"".join(sealer.seal(b"%d," % number) for number in range(9))
    opened = b"".join(opener.feed(wire[at : at + 5]) for at in range(0, len(wire), 5))
    assert opened == b"0,1,2,3,4,5,6,7,8,"
    assert opener.is_between_records


@pytest.mark.parametrize("harm", ["replay", "reorder", "leave out", "flip", "reflect", "plaintext", "long"])
def test_records_that_are_not_what_was_sent_do_not_open(harm: str) -> None:
    ours, theirs = agree([OLD], [OLD])
    sealer, opener = RecordSealer(ours.send), RecordOpener(theirs.receive)
    first, second = sealer.seal(b"first"), sealer.seal(b"second")
    opener.feed(first)
    harmed = {
        "replay": first,
        "reorder": sealer.seal(b"third"),
        "leave out": sealer.seal(b"third"),
        "flip": second[:-1] + bytes([second[-1] ^ 1]),
        "reflect": RecordSealer(theirs.send).seal(b"yours"),
        "plaintext": b"\0\0\0\x14" + b"not sealed by anyone",
        "long": b"\x7f\xff\xff\xff",
    }[harm]
    with pytest.raises(BrokenRecord):
        opener.feed(harmed)


@pytest.mark.parametrize("keys", [[], [b"short"], ["x" * 32], [bytes(33)], [OLD] * 17])
def test_keys_that_are_none_are_refused(keys: list[bytes]) -> None:
    with pytest.raises(ValueError, match="key"):
        KeyRing(keys)


def test_a_ring_does_not_show_its_keys() -> None:
    assert "1" not in repr(KeyRing([b"1" * 32])).replace("<KeyRing of 1>", "")
    assert "send" not in repr(DirectionKeys(b"send", b"receive"))


@pytest.mark.parametrize("others", [(OTHER,), ()], ids=["another key", "no key"])
def test_both_sides_are_told_of_a_wrong_key(others: tuple[bytes, ...]) -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(Libp2pHarness(encryption_keys=[OLD]).start("a"))
            b = await stack.enter_async_context(Libp2pHarness(encryption_keys=others).start("b"))
            told: dict[str, list[str]] = {"a": [], "b": []}

            def tell(name: str, peer_id: str, error: Exception) -> None:
                if isinstance(error, WrongKey):
                    told[name].append(peer_id)

            a.on_problem(partial(tell, "a"))
            b.on_problem(partial(tell, "b"))
            b.serve(NAMESPACE, echo)
            with pytest.raises(WrongKey):
                await a.connect(NAMESPACE, addresses=b.addresses)
            await wait_until(lambda: told["a"] == [b.peer_id] and told["b"] == [a.peer_id], "both are told")
            # Raft's frames neither.
            pair = Pair(a, b)
            pair.channel_a.set_members({b.peer_id: b.addresses})
            await wait_until(lambda: len(told["a"]) > 1 and len(told["b"]) > 1, "both are told again")
            assert not pair.channel_a.is_connected(b.peer_id)

    trio.run(story)


def test_a_ring_is_walked_through_a_cluster() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(Libp2pHarness(encryption_keys=[OLD, NEW]).start("a"))
            b = await stack.enter_async_context(Libp2pHarness(encryption_keys=[NEW, OLD]).start("b"))
            b.serve(NAMESPACE, echo)
            stream = await a.connect(NAMESPACE, addresses=b.addresses)
            stream.send(b"both know both")
            assert await receive_count(stream, 1) == [b"both know both"]
            pair = await Pair(a, b).connect()
            await wait_until(lambda: pair.channel_a.lane_is_up(b.peer_id), "the lane opens too")

    trio.run(story)
