"""What may enter the log, and whose stamp comes next: the leader's side of SAFETY 15 and 29."""

from __future__ import annotations

import pytest

from tauraft.core.messages import EntryKind, Heartbeat
from tauraft.errors import InvalidCommand
from tauraft.node import wire
from tauraft.node.batch import pack_item
from tauraft.node.replica import Item
from tauraft.payloads import encode_message
from tauraft.system.messages import Barrier, KeepAlive, Transaction
from tauraft_primitives.kv.messages import Put
from tests.node.cluster import Cluster

REFUSED = {
    "noise": Item(5, 1, 0, 0, b"\xc1 no message"),
    "an unknown tag": Item(5, 1, 0, 0, encode_message(Put("k", b"v")).replace(b"Put", b"Pot")),
    "a plugin's command without a session": Item(0, 0, 0, 0, encode_message(Put("k", b"v"))),
    "a transaction without a session": Item(0, 0, 0, 0, encode_message(Transaction(()))),
    "a barrier without a session": Item(0, 0, 0, 0, encode_message(Barrier())),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_replica_could_apply_is_refused_before_it_is_in_the_log(what: str) -> None:
    cluster = Cluster("abc").start()
    leader = cluster.elect("a")
    cluster.tick(2)
    with pytest.raises(InvalidCommand):
        leader.propose([REFUSED[what]])
    end = leader.driver.raft.log.last_index
    leader.driver.frames_received("b", [wire.pack(wire.FORWARD, [pack_item(REFUSED[what])])])
    leader.driver.turn()
    assert leader.driver.raft.log.last_index == end, "nor when another replica forwards it"
    leader.propose([Item(0, 0, 0, 0, encode_message(KeepAlive(())))])
    cluster.pump()
    assert leader.driver.raft.log.last_index == end + 1


def test_the_next_leader_goes_on_from_the_last_stamp_of_its_log_also_where_it_had_led_itself() -> None:
    """It once proposed at the indexes where the other's entries now are, and must not take those for its own stamps."""
    cluster = Cluster("abc").start()
    first = cluster.elect("a")
    cluster.tick(2)
    nothing = Item(0, 0, 0, 0, encode_message(KeepAlive(())))
    cluster.drops = lambda sender, to, frame: "a" in (sender, to)
    for _ in range(5):
        first.propose([nothing])
        cluster.pump()
    for letter in "bc":
        cluster[letter].driver.raft.forget_leader()
    second = cluster.elect("b")
    for _ in range(3):
        cluster.tick(20)
        second.propose([nothing])
        cluster.pump()
    cluster.drops = lambda sender, to, frame: to == "a" and is_heartbeat(frame)
    stamp = second.machine.now_ns
    second.driver.raft.forget_progress(first.me)
    cluster.pump()
    assert first.driver.raft.log.last_index == second.driver.raft.log.last_index
    assert first.driver._store.read(stop := first.driver.raft.log.last_index, stop + 1, 1)[0].kind is EntryKind.BATCH
    assert first.driver._cluster_clock.greatest_now_ns >= stamp


def is_heartbeat(frame: bytes) -> bool:
    return frame[0] == wire.RAFT and isinstance(wire.decode_message(frame, "b", "a"), Heartbeat)
