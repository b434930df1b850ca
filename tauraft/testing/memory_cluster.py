"""A cluster of one, in memory, whose time moves only when told: for tests of what an application does with tauraft."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from types import TracebackType
from typing import Self

from tauraft._blocking.cluster import Cluster
from tauraft.testing.stepped_engine import SteppedEngine


class MemoryCluster(Cluster):
    """``Cluster(storage="memory")`` with real semantics, started in milliseconds.

    Locks, leases, time-outs, cron and queues see no other time than what ``advance`` gives them, so a wait that is not over
    blocks until another thread advances.  Ask with ``timeout=0`` where nothing may be waited for.

        with MemoryCluster() as cluster:
            cluster.kv.put("k", b"v", ttl=30)
            cluster.advance(31)
            assert cluster.kv.get("k") is None
    """

    def __init__(
        self,
        namespace: str = "/raft/test",
        *,
        plugins: Sequence[object] = (),
        session_ttl: float = 10,
        timeout: float = 10,
        label: str | None = None,
    ) -> None:
        super().__init__(
            namespace, storage="memory", plugins=plugins, session_ttl=session_ttl, timeout=timeout, label=label
        )
        self._stepped: SteppedEngine | None = None

    def start(self, timeout: float | None = None) -> Self:
        if self._stepped is None:
            self._stepped = self._caller.own_engine = SteppedEngine(passes_in_calls=False, entropy=Random(0).randbytes)
            self._stepped.start()
        try:
            return super().start(timeout)
        except BaseException:
            self._stepped.stop()
            raise

    def close(self, timeout: float | None = None) -> None:
        super().close(timeout)
        if self._stepped is not None:
            self._stepped.stop()

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass: everything due on the way happens, in order, before it returns. Raises ``ValueError`` below 0."""
        self._caller.engine.must_be_usable()
        assert self._stepped is not None
        self._stepped.advance(seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
