"""``CheckHold``: a transaction conditional on a hold, of whatever kind."""

from __future__ import annotations

import pytest

from tauraft.errors import InvalidArgument, NotHolder
from tauraft.fsm import Command
from tauraft.system.messages import Transaction
from tauraft_plugins.fencing.fsm import HOLDERS, Fencing
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_plugins.locks.fsm import Locks
from tauraft_plugins.locks.rwlocks import RwLocks
from tauraft_plugins.locks.semaphores import Semaphores
from tauraft_primitives.fencing.messages import CheckHold
from tauraft_primitives.kv.messages import Get, Put
from tauraft_primitives.locks.messages import Acquire, Grant, Release
from tauraft_primitives.rwlocks.messages import AcquireRw, ReleaseRw
from tauraft_primitives.semaphores.messages import AcquirePermits, ReleasePermits
from tests.primitives.harness import Harness


@pytest.mark.parametrize(
    ("take", "give_back"),
    [
        (Acquire("x"), Release),
        (AcquirePermits("x", 2), ReleasePermits),
        (AcquireRw("x", "read"), ReleaseRw),
        (AcquireRw("x", "write"), ReleaseRw),
    ],
)
def test_a_write_depends_on_the_hold_of_its_token(
    take: Command[Grant], give_back: type[Release | ReleasePermits | ReleaseRw]
) -> None:
    replica = Harness(KeyValue, *HOLDERS, Fencing)
    alice, bob = replica.open(), replica.open()
    token = alice.run(take).value.token
    encode = replica.registry.encode
    write = Transaction((encode(CheckHold(token)), encode(Put("k", b"v"))))
    assert bob.run(write).value
    alice.run(give_back("x", token))
    with pytest.raises(NotHolder):
        _ = bob.run(Transaction((encode(Put("k", b"stale")), encode(CheckHold(token))))).value
    found = replica.query(Get("k"))
    assert found is not None and found.value == b"v"


def test_what_is_not_active_holds_nothing() -> None:
    replica = Harness(Locks, Fencing)
    alice = replica.open()
    token = alice.run(Acquire("x")).value.token
    assert alice.run(CheckHold(token)).value is None
    with pytest.raises(NotHolder):
        _ = alice.run(CheckHold(token + 1)).value


def test_every_kind_of_hold_of_this_package_is_asked() -> None:
    assert set(HOLDERS) >= {Locks, Semaphores, RwLocks}
    assert all(hasattr(kind, "is_held") for kind in HOLDERS)


def test_a_token_is_a_number_above_zero() -> None:
    with pytest.raises(TypeError):
        CheckHold("7")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        CheckHold(0)
