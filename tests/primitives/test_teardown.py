"""In which order what a session held is given back at its end."""

from __future__ import annotations

from tauraft_plugins.barriers.cyclics import CyclicBarriers
from tauraft_plugins.barriers.doubles import DoubleBarriers
from tauraft_plugins.elections.fsm import Elections
from tauraft_plugins.groups.members import Groups
from tauraft_plugins.groups.partitions import Partitions
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_plugins.locks.fsm import Locks
from tauraft_plugins.queues.fsm import Queues
from tauraft_primitives.barriers.messages import Arrive
from tauraft_primitives.elections.messages import Campaign
from tauraft_primitives.locks.messages import Acquire
from tauraft_primitives.partitions.messages import JoinWorkers, TakePartition
from tauraft_primitives.queues.messages import Enqueue, TakeItems
from tests.primitives.harness import Harness


def test_locks_go_first_then_claims_candidacies_places_and_memberships_whatever_was_taken_first() -> None:
    replica = Harness(KeyValue, Partitions, CyclicBarriers, Elections, Queues, Locks)
    alice, bob, carol = (replica.open() for _ in range(3))
    for session in (alice, bob, carol):
        session.run(Arrive("c", 3, "shrink"))
    bob.run(Arrive("c", 3, "shrink"))
    acts = carol.run(Arrive("c", 3, "shrink", has_action=True))
    workers = [session.run(JoinWorkers("p", 1)).value for session in (alice, bob)]
    alice.run(TakePartition("p", workers[0]))
    works = bob.run(TakePartition("p", workers[1]))
    alice.run(Campaign("e"))
    alice.run(Enqueue("q", b"item"))
    alice.run(TakeItems("q", 1e6, 1, None, wait=False))
    alice.run(Acquire("l"))
    # Whoever waits gets a token of its own, in the order of what is given back.
    leads = bob.run(Campaign("e"))
    claims = bob.run(TakeItems("q", 1e6, 1, None, wait=True))
    holds = bob.run(Acquire("l"))
    before = replica.machine.applied_index
    alice.end()
    assert replica.machine.applied_index == before + 1
    tokens = [holds.value.token, claims.value[0].token, leads.value.token, acts.value.act, works.value.token]
    assert tokens == sorted(tokens) and len(set(tokens)) == 5


def test_what_was_waited_for_is_withdrawn_in_that_order_too() -> None:
    replica = Harness(Elections, Locks)
    alice, bob = replica.open(), replica.open()
    unlearned = alice.run(Campaign("e")), alice.run(Acquire("l"))  # answered, and never acknowledged
    assert all(reply.is_done for reply in unlearned)
    leads, holds = bob.run(Campaign("e")), bob.run(Acquire("l"))
    alice.end()
    assert holds.value.token < leads.value.token


def test_the_order_of_the_bundled_machines() -> None:
    places = [kind.teardown for kind in (Locks, Queues, Elections, DoubleBarriers, Groups, KeyValue)]
    assert places == sorted(set(places))
