# Generated from handle.py by `tauraft twin`; change that file, not this one.
"""What a caller holds. ``_blocking.py`` is its twin for threads: ``tauraft twin src/acme_counter/handle.py`` writes it."""

from __future__ import annotations

from collections.abc import Iterable

from acme_counter.messages import COUNTS, Add, Additions, Get
from tauraft.handle import Submitter, Watch, Frame, State, check_name


class AcmeCounter:
    """A number by name, 0 at first. ``cluster``: any Cluster or Client. Made without I/O."""

    def __init__(self, cluster: Submitter, name: str) -> None:
        self.name = check_name(name)
        self._cluster = cluster

    def add(self, amount: int = 1, *, timeout: float | None = None) -> int:
        """Add ``amount`` once, and return the sum. Raises ``Refused`` (``too-large``), nothing changed."""
        return self._cluster.submit(Add(self.name, amount), timeout=timeout)

    def get(self, *, timeout: float | None = None) -> int:
        return self._cluster.query(Get(self.name), timeout=timeout)

    def additions(self, *, timeout: float | None = None) -> int:
        """How often it was added to. Raises ``InvalidCommand`` while the cluster runs version 1."""
        return self._cluster.query(Additions(self.name), timeout=timeout)

    def watch(self) -> Watch[int]:
        """The sum when the watch is entered (``with``), and then each new one."""
        return self._cluster.watch(COUNTS, key=self.name, with_state=True).map(_sums)


def _sums(found: Frame[str, int] | State[str, int]) -> Iterable[int]:
    if isinstance(found, State):
        return [total for _, total in found.rows] or [0]
    return [change.new or 0 for change in found.changes]
