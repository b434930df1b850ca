from __future__ import annotations

import msgpack
import pytest

from tauraft.codec import CodecError
from tauraft.formation import messages
from tauraft.formation.genesis import AcceptedGenesis, Ballot, Genesis, Voter

GENESIS = Genesis(b"0" * 16, "/raft/a", (Voter("a", 1),), "a")
REPORT = messages.PeerReport("a", 7, ("/ip4/127.0.0.1/tcp/1",), 1.5, messages.State.MEMBER, b"c" * 16)
BALLOT = Ballot(3, "a")


@pytest.mark.parametrize(
    "message",
    [
        messages.Hello(REPORT),
        messages.HelloAnswer(REPORT),
        messages.JoinRequest("a", 7, (), "machine", 12, (messages.PluginVersion("kv", 1),)),
        messages.JoinAccepted(GENESIS, (messages.MemberAddresses("a", 1, (), True),)),
        messages.JoinRefused("incompatible", "no"),
        messages.NotLeader(messages.KnownPeer("b", ())),
        messages.Prepare(BALLOT, 3),
        messages.Promise(BALLOT, AcceptedGenesis(BALLOT, GENESIS)),
        messages.Accept(BALLOT, GENESIS, 3),
        messages.Accepted(BALLOT),
        messages.BallotRefused(BALLOT, None),
    ],
)
def test_every_message_comes_back_as_it_was_sent(message: messages.Message) -> None:
    assert messages.decode(messages.encode(message)) == message


@pytest.mark.parametrize(
    "frame", [b"", b"\x01", msgpack.packb([2, 1, []]), msgpack.packb([1, 99, []]), msgpack.packb([1, 10, [[1]]])]
)
def test_a_strange_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(CodecError):
        messages.decode(frame)
