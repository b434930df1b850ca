"""Every transport passes the public suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from tauraft.testing.transport_suite import TRANSPORT_CHECKS, Check, TransportHarness
from tests.transport.harnesses import Libp2pHarness, MemoryHarness

KEY = bytes(range(32))
HARNESSES: dict[str, Callable[[], TransportHarness]] = {
    "libp2p": lambda: Libp2pHarness(lane=False),
    "libp2p-sealed": lambda: Libp2pHarness(lane=False, encryption_keys=[KEY]),
    "lane": lambda: Libp2pHarness(),
    "lane-sealed": lambda: Libp2pHarness(encryption_keys=[KEY]),
}


@pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("delay_s", [(0.0, 0.0), (0.001, 0.05)], ids=["at-once", "delayed"])
def test_memory(check: Check, delay_s: tuple[float, float]) -> None:
    trio.run(check, MemoryHarness(delay_s), clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("harness", HARNESSES)
def test_real(check: Check, harness: str) -> None:
    trio.run(check, HARNESSES[harness]())
