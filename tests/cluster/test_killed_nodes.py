"""kill -9 and SIGSTOP of real members over libp2p: of the leader, of a follower, of a majority. (Of all: test_one_host.)"""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.harness import Processes, Worker, WorkerError, eventually

pytestmark = pytest.mark.middle

ROLES = "[m.role for m in cluster.members()]"


def voters(processes: Processes, count: int = 3, **options: Any) -> list[Worker]:
    """The leader first."""
    started = processes.nodes(count, **options)
    eventually(lambda: started[0].ask(ROLES) == ["voter"] * count, "all founders become voters")
    return sorted(started, key=lambda node: not node.ask("cluster.is_leader"))


def test_after_a_kill_of_the_leader_another_leads_nothing_is_lost_and_it_comes_back_as_a_follower(
    processes: Processes,
) -> None:
    leader, follower, third = voters(processes)
    follower.ask("kept.setdefault('writes', Writes(cluster, 'w')) and None")
    eventually(lambda: len(follower.ask("cluster.keys('w/')")) > 20, "some writes are made")
    peer_id = leader.ask("cluster.peer_id")
    leader.kill()
    follower.ask("cluster.set('after', 'the kill')")
    assert sorted(node.ask("cluster.state") for node in (follower, third)) == ["follower", "leader"]
    told = follower.ask("kept['writes'].end()")
    assert told["errors"] == []
    assert set(told["keys"]) <= set(third.ask("cluster.keys('w/')"))
    print(f"longest gap {told['longest_gap_s']:.2f} s")

    back = processes.again(leader)
    assert back.ask("(cluster.peer_id, cluster.get('after'))") == [peer_id, "the kill"]
    assert back.ask("cluster.state") == "follower"


def test_a_killed_follower_is_not_missed_and_catches_up_and_without_a_majority_nothing_is_written(
    processes: Processes,
) -> None:
    leader, follower, third = voters(processes)
    third.kill()
    leader.ask("cluster.set('one', 'away')")
    follower.kill()
    with pytest.raises(WorkerError) as caught:
        leader.ask("cluster.set('two', 'away', timeout=2)")
    assert caught.value.kind in ("NoLeader", "Unavailable")
    third, follower = processes.again(third), processes.again(follower)
    assert third.ask("cluster.get('one')") == "away"
    third.ask("cluster.set('none', 'away')")
    assert leader.ask("cluster.get('none')") == follower.ask("cluster.get('none')") == "away"


def test_a_stopped_leader_is_replaced_and_what_its_process_held_is_lost_at_the_first_look(processes: Processes) -> None:
    leader, follower, _ = voters(processes, session_ttl=5)
    leader.ask("kept.setdefault('hold', cluster.lock('l').acquire()).token")
    leader.stop()
    try:
        token = follower.ask("kept.setdefault('hold', cluster.lock('l').acquire(timeout=25)).token")
    finally:
        leader.go_on()
    with pytest.raises(WorkerError) as caught:
        leader.ask("kept['hold'].check()")
    assert caught.value.kind in ("LockLost", "SessionLost")
    assert follower.ask("kept['hold'].check()") is None
    assert token == follower.ask("cluster.lock('l').info().token")
