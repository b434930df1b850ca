"""The driver and what is around it, at the places where a careless one loses, stops or turns for ever."""

from __future__ import annotations

from copy import deepcopy
from hashlib import sha256

import msgpack
import pytest

from tauraft.core.membership import MembershipChange, Step, StepKind
from tauraft.core.messages import Append, Entry, EntryKind, HardState, Heartbeat, HeartbeatReply, Member
from tauraft.core.progress import ProgressState
from tauraft.errors import DataDirectoryError
from tauraft.node import wire
from tauraft.node.batch import pack_item
from tauraft.node.replica import Item
from tauraft.payloads import encode_message
from tauraft.system.messages import KeepAlive, Open
from tests.node.cluster import CLUSTER_ID, TIMING, Cluster, ManualClock, take_snapshot

A, B, C, D, E = (Member(letter, 1) for letter in "abcde")


class SlowClock(ManualClock):
    """A machine on which everything takes long: each look at this clock finds it 20 ms later."""

    def __init__(self, clock: ManualClock) -> None:
        self.now_ns = clock.now_ns

    def monotonic_ns(self) -> int:
        self.now_ns += 20_000_000
        return self.now_ns


def learners(*members: Member) -> MembershipChange:
    return MembershipChange(tuple(Step(StepKind.ADD_LEARNER, member) for member in members))


# A snapshot that arrived, and a crash before the log was reset at it (SAFETY 24).


def crashed_before_the_reset(tail_term: int, tail_to: int) -> Cluster:
    """b has entries of ``tail_term`` that nobody else has, and a snapshot of a's on its disk that it had not installed yet."""
    cluster = Cluster("abc")
    cluster.nodes["a"].start()
    a = cluster["a"]
    store = cluster.nodes["b"].store()
    store.open()
    store.append(
        [Entry(index, tail_term, EntryKind.NOOP) for index in range(1, tail_to + 1)], HardState(tail_term, None, 0)
    )
    store.close()
    for index in range(1, 9):
        a.machine.skip(index, 3)
    take_snapshot(a)
    source = cluster.nodes["a"].snapshot_store()
    source.open()
    reader = source.newest()
    assert reader is not None
    target = cluster.nodes["b"].snapshot_store()
    target.open()
    receiver = target.receive(reader.manifest.encoded)
    for start, end in receiver.missing():
        receiver.write(start, reader.read(start, end - start))
    receiver.commit()
    return cluster


@pytest.mark.parametrize("tail_to", [4, 8, 12], ids=["shorter", "as long", "longer"])
def test_a_log_that_parts_from_a_snapshot_that_had_arrived_is_reset_at_it(tail_to: int) -> None:
    raft = crashed_before_the_reset(tail_term=2, tail_to=tail_to).nodes["b"].start().driver.raft
    assert (raft.log.last_index, raft.log.last_term, raft.log.applied) == (8, 3, 8)
    assert raft.term >= 3, "it knows of term 3, and must not campaign in it"


def test_a_log_that_agrees_with_a_snapshot_that_had_arrived_keeps_what_follows() -> None:
    raft = crashed_before_the_reset(tail_term=3, tail_to=12).nodes["b"].start().driver.raft
    assert (raft.log.last_index, raft.log.applied) == (12, 8)


# A snapshot that is gone from the leader's disk.


def test_a_snapshot_that_was_reaped_while_it_was_fetched_is_replaced_by_a_newer_one() -> None:
    cluster = Cluster("abc").start()
    leader = cluster.elect("a")
    cluster.drops = lambda sender, to, frame: "c" in (sender, to)
    leader.propose_system(leader._announcement())
    cluster.tick(3)
    take_snapshot(leader)
    leader.driver._store.compact_prefix(leader.applied_index)
    cluster.nodes["a"].crash()  # or it would serve c from memory
    cluster.nodes["a"].start()
    cluster["b"].driver.raft.forget_leader()
    leader = cluster.elect("a")
    # c is offered the snapshot and asks for it, in vain for a while; meanwhile it goes.
    cluster.drops = lambda sender, to, frame: frame[0] == wire.PULL
    cluster.tick(3)
    assert leader.driver.raft.status().progress[C].state is ProgressState.SNAPSHOT
    leader.propose_system(leader._announcement())
    cluster.tick(3)
    take_snapshot(leader)
    cluster.nodes["a"].reap(1)
    cluster.drops = lambda sender, to, frame: False
    cluster.tick(30)
    assert cluster["c"].applied_index == leader.applied_index


# Disks that are not what they were (SAFETY 14).


def test_a_log_without_its_hard_state_does_not_start_and_says_what_to_do() -> None:
    cluster = Cluster("abc")
    store = cluster.nodes["a"].store()
    store.open()
    store.append([Entry(1, 2, EntryKind.NOOP)], HardState(1, B, 0))
    store.close()
    with pytest.raises(DataDirectoryError, match="must not vote again"):
        cluster.nodes["a"].start()


def test_a_member_on_an_older_copy_of_its_disk_stops_and_says_what_to_do() -> None:
    cluster = Cluster("abc").start()
    leader = cluster.elect("a")
    copy = deepcopy(cluster.nodes["b"].files)
    leader.propose_system(leader._announcement())
    cluster.tick(2)
    cluster.nodes["b"].files = copy
    cluster.nodes["b"].start()
    with pytest.raises(DataDirectoryError, match="older copy of itself"):
        cluster.tick(2)


# Upkeep that is refused.


def test_learners_that_catch_up_during_a_transfer_are_promoted_after_it() -> None:
    cluster = Cluster("abc", "de").start()
    leader = cluster.elect("a")
    # Held back so that nobody is promoted before leadership is being handed over.
    leader._max_voters = 3
    leader.driver.propose_change(learners(D, E))
    cluster.tick(12)
    leader._max_voters = 5
    cluster.drops = lambda sender, to, frame: "c" in (sender, to)
    leader.driver.raft.transfer(C)
    cluster.tick()
    assert leader.is_leader


# Ticks are time.


def test_changes_of_membership_let_no_more_ticks_pass_than_time_did() -> None:
    cluster = Cluster("abc").start()
    cluster.elect("a")
    driver = cluster["b"].driver
    ticks = 0

    def count() -> None:
        nonlocal ticks
        ticks += 1

    driver.on_tick = count
    for _ in range(50):
        driver.set_members({"a": (), "c": ()})
        driver.turn()
    assert ticks <= 1, "a voter that restarted waits in ticks, and a leader judges its quorum by them"


def test_who_has_much_to_catch_up_with_does_it_in_turns_of_some_milliseconds() -> None:
    """An engine's loop that stands still for as long as a thousand entries take would miss its heartbeats."""
    cluster = Cluster("abc").start()
    leader = cluster.elect("a")
    cluster.tick(2)
    cluster.drops = lambda sender, to, frame: to == "c"
    for number in range(400):
        command = Open(number.to_bytes(16, "big"), bytes(32), 10_000_000_000, "", "", 0, None)
        leader.propose([Item(0, 0, 0, 0, encode_message(command))])
        cluster.pump()
    late = cluster["c"]
    late.driver._clock = SlowClock(cluster.clock)
    cluster.drops = lambda sender, to, frame: False
    leader.driver.raft.forget_progress(late.me)
    applied: list[int] = []
    while late.machine.applied_index < leader.machine.applied_index and len(applied) < 50:
        before = late.machine.applied_index
        late.driver.turn()
        applied.append(late.machine.applied_index - before)
        frames, cluster.frames = cluster.frames, []
        for sender, to, frame in frames:
            cluster[to].driver.frames_received(sender, [frame])
        leader.driver.turn()
    assert sum(applied) >= 400
    assert max(applied) < 250, "not all in one turn"
    assert late.machine.tables.digest() == leader.machine.tables.digest()


def test_a_keepalive_goes_with_the_next_heartbeat_or_the_next_command() -> None:
    cluster = Cluster("abc").start()
    leader = cluster.elect("a")
    cluster.tick(2)
    log = leader.driver.raft.log

    def forward(wait_s: float = 0.5) -> None:
        keepalive = Item(0, 0, 0, int(wait_s * 1e9), encode_message(KeepAlive(((1, 1),))))
        leader.driver.frames_received("b", [wire.pack(wire.FORWARD, [pack_item(keepalive)])])
        cluster.pump()

    end = log.last_index
    forward()
    forward()
    assert log.last_index == end
    cluster.clock.now_ns += int(TIMING.heartbeat_s * 1e9)
    leader.driver.turn()
    sent = [wire.decode_message(frame, "a", to) for _, to, frame in cluster.frames]
    assert {type(message) for message in sent} == {Heartbeat, Append}
    cluster.pump()
    assert log.last_index == end + 1 == leader.machine.applied_index, "both in one entry"
    forward()
    leader.propose([Item(0, 0, 0, 0, encode_message(Open(bytes(16), bytes(32), 10_000_000_000, "", "", 0, None)))])
    cluster.pump()
    assert log.last_index == end + 2 == leader.machine.applied_index, "and nothing else waits for it"
    forward(wait_s=0.05)
    assert log.last_index == end + 3, "a session that lasts a second cannot wait for a heartbeat"


def test_who_is_alone_has_no_heartbeat_for_a_keepalive_to_go_with() -> None:
    leader = Cluster("a").start().elect("a")
    leader.driver.set_members({})
    end = leader.driver.raft.log.last_index
    leader.propose([Item(0, 0, 0, 1 << 40, encode_message(KeepAlive(((1, 1),))))])
    leader.driver.turn()
    assert leader.driver.raft.log.last_index == end + 1


def test_who_is_alone_no_more_ticks_within_a_heartbeat() -> None:
    cluster = Cluster("a").start()
    driver = cluster.elect("a").driver
    driver.set_members({})
    cluster.tick()
    ticks = 0

    def count() -> None:
        nonlocal ticks
        ticks += 1

    driver.on_tick = count
    driver.set_members({"b": ()})
    cluster.tick()
    assert ticks == 1


# Frames that no honest replica sends.


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        bytes((wire.FORWARD,)) + msgpack.packb(5),
        bytes((wire.FORWARD,)) + msgpack.packb([5]),
        bytes((wire.FORWARD,)) + msgpack.packb([[0, 0, 0, 0, "no bytes"]]),
        bytes((wire.PULL,)) + msgpack.packb([1]),
        bytes((wire.CHUNK,)) + msgpack.packb(None),
        wire.encode_message(Heartbeat(B, A, 1, CLUSTER_ID, 0, 0, b"x")),
        wire.encode_message(Heartbeat(B, A, 1, CLUSTER_ID, 0, 0, wire.pack(wire.RAFT, [1]))),
        wire.encode_message(Heartbeat(B, A, 1, CLUSTER_ID, 0, 0, wire.pack(wire.RAFT, ["1", "2", "3"]))),
        wire.encode_message(HeartbeatReply(B, A, 1, CLUSTER_ID, 0, wire.pack(wire.RAFT, 7))),
    ],
    ids=[
        "empty",
        "a number forwarded",
        "no item forwarded",
        "an item without bytes",
        "half a pull",
        "no chunk",
        "a heartbeat of noise",
        "a heartbeat cut short",
        "a heartbeat of strings",
        "a reply of one number",
    ],
)
def test_a_frame_that_no_honest_replica_sends_is_dropped_and_stops_nobody(frame: bytes) -> None:
    cluster = Cluster("abc").start()
    leader = cluster.elect("a")
    leader.driver.frames_received("b", [frame])
    cluster.tick(2)
    assert leader.is_leader


# Who uses a session (SAFETY 34).


def test_who_may_attach_to_a_session_knows_its_secret_and_is_its_peer() -> None:
    cluster = Cluster("abc").start()
    leader = cluster.elect("a")
    secret = b"s" * 32
    leader.propose_system(Open(b"nonce", sha256(secret).digest(), 10**10, "peer", "host", 1, None))
    cluster.tick(3)
    for replica in (leader, cluster["b"]):
        (session,) = replica.machine.sessions
        assert secret not in session.encode()
        assert replica.may_attach(session.id, secret, "peer")
        assert not replica.may_attach(session.id, b"guess", "peer")
        assert not replica.may_attach(session.id, session.secret_hash, "peer")
        assert not replica.may_attach(session.id, secret, "another")
        assert not replica.may_attach(session.id + 1, secret, "peer")
