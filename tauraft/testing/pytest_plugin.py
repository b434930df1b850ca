"""The pytest plugin, found by entry point: the fixture ``tauraft_cluster``, a started ``MemoryCluster`` per test.

def test_the_cache_forgets(tauraft_cluster):
    tauraft_cluster.kv.put("k", b"v", ttl=30)
    tauraft_cluster.advance(31)
    assert tauraft_cluster.kv.get("k") is None

A marker gives it options: ``@pytest.mark.tauraft(plugins=[mine])``.  Nothing of tauraft is imported before a test asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tauraft.testing import MemoryCluster


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tauraft(**options): options of the MemoryCluster that tauraft_cluster gives")


@pytest.fixture
def tauraft_cluster(request: pytest.FixtureRequest) -> Iterator[MemoryCluster]:
    from tauraft.testing import MemoryCluster

    marker = request.node.get_closest_marker("tauraft")
    with MemoryCluster(**({} if marker is None else marker.kwargs)) as cluster:
        yield cluster
