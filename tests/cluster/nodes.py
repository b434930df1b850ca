"""Members in the test's own process, over real libp2p: what needs no kill -9."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import tauraft
from tests.cluster.harness import eventually

T = TypeVar("T")
NAMESPACE = "/raft/test"


class Nodes:
    """Members in this process, each with a data directory of its own, over real libp2p; closed when the test ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._opened: list[tauraft.Cluster | tauraft.Node | tauraft.Client] = []

    def make(self, name: str, namespace: str = NAMESPACE, **options: Any) -> tauraft.Cluster:
        """Not started yet. The same ``name`` later is the same directory again."""
        cluster = tauraft.Cluster(
            namespace, data_dir=self.directory / name, **{"preset": "local", "label": name, **options}
        )
        self._opened.append(cluster)
        return cluster

    def start(
        self, *names: str, delays_s: Sequence[float] = (), patience_s: float = 40, **options: Any
    ) -> list[tauraft.Cluster]:
        """All at once, or each after its delay."""
        made = [self.make(name, **options) for name in names]
        delays = dict(zip(names, delays_s, strict=False))

        def begin(name: str, cluster: tauraft.Cluster) -> None:
            time.sleep(delays.get(name, 0.0))
            cluster.start(timeout=patience_s)

        with ThreadPoolExecutor(len(made)) as threads:
            for done in [threads.submit(begin, *pair) for pair in zip(names, made, strict=True)]:
                done.result()
        return made

    def voters(self, *names: str, **options: Any) -> list[tauraft.Cluster]:
        """Started, and all of them voters, the leader first."""
        made = self.start(*names, **options)
        eventually(lambda: roles(made[0]) == ["voter"] * len(made), "all are voters")
        eventually(lambda: len({c.leader and c.leader.peer_id for c in made} - {None}) == 1, "all name one leader")
        eventually(lambda: "learner" not in {c.state for c in made}, "each has heard that it votes")
        return sorted(made, key=lambda cluster: not cluster.is_leader)

    def again(self, closed: tauraft.Cluster) -> tauraft.Cluster:
        """The node of ``closed`` once more, from its directory."""
        return self.make(str(closed.options.label)).start(timeout=30)

    def keep(self, opened: T) -> T:
        self._opened.append(opened)  # type: ignore[arg-type]
        return opened

    def end(self) -> None:
        with ThreadPoolExecutor(max(1, len(self._opened))) as threads:
            for closing in [threads.submit(opened.close, 10) for opened in reversed(self._opened)]:
                closing.result()


def roles(cluster: tauraft.Cluster) -> list[str]:
    return sorted((member.role for member in cluster.members()), reverse=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
