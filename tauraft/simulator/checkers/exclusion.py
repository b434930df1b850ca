"""Mutual exclusion, as an outside resource sees it: tokens only grow, and two holds never overlap in knowledge.

A worker reports when it has a hold and when it knows to have given it up or lost it (its own deadline, whichever is
first).  Between the two nobody else may have a hold of the same name.
"""

from __future__ import annotations


class TwoHolders(AssertionError):
    """Two workers held one name at one time, or a token did not grow."""


class Exclusion:
    def __init__(self) -> None:
        self._holder: dict[str, tuple[str, int]] = {}
        self._greatest: dict[str, int] = {}
        self.holds = 0

    def acquired(self, name: str, worker: str, token: int) -> None:
        holder = self._holder.get(name)
        if holder is not None:
            raise TwoHolders(f"{worker} got {name} with token {token} while {holder[0]} held it with {holder[1]}")
        if token <= self._greatest.get(name, 0):
            raise TwoHolders(f"{worker} got {name} with token {token}, not above {self._greatest[name]}")
        self._holder[name] = (worker, token)
        self._greatest[name] = token
        self.holds += 1

    def gave_up(self, name: str, worker: str, token: int) -> None:
        if self._holder.get(name) == (worker, token):
            del self._holder[name]
