"""State machine safety: replicas that applied the same index hold the same state (thesis 3.6.3).

Fed while a run goes on: each replica reports (index, digest, revision) now and then; two reports for one index must agree.
"""

from __future__ import annotations


class Diverged(AssertionError):
    """Two replicas applied the same entries and hold different states."""


class Agreement:
    def __init__(self) -> None:
        self._seen: dict[int, tuple[str, int, int]] = {}

    def report(self, replica: str, index: int, revision: int, digest: int) -> None:
        known = self._seen.setdefault(index, (replica, revision, digest))
        if known[1:] != (revision, digest):
            raise Diverged(
                f"at index {index}, {known[0]} has revision {known[1]} and digest {known[2]:032x}, "
                f"{replica} has revision {revision} and digest {digest:032x}"
            )


class TwoLeaders(AssertionError):
    """Two replicas led in one term."""


class ElectionSafety:
    def __init__(self) -> None:
        self._leaders: dict[int, str] = {}

    def leads(self, replica: str, term: int) -> None:
        known = self._leaders.setdefault(term, replica)
        if known != replica:
            raise TwoLeaders(f"{known} and {replica} both led in term {term}")
