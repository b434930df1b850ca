"""Who waits for whom, and whether it goes round: the search for a cycle of waits.

A *wait* is the revision of a request.  An edge leads from a wait to another one that must end before it can: ``via`` is
the lock between them, ``is_reserved`` says that nobody holds that lock, it is kept for the other wait, which is first in
its queue and lacks others of the locks that it wants together.

Pure: ``edges`` is all that is known.  The search goes depth first with a stack of its own (a handler must not run out of
Python's), and gives up after ``MAX_STEPS``: a longer cycle is left to the callers' time-outs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

MAX_STEPS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Edge:
    waiter: int
    blocker: int
    via: str
    is_reserved: bool = False


def find_cycle(start: int, edges: Callable[[int], Iterator[Edge]]) -> list[Edge] | None:
    """The edges of a cycle through ``start``, from it and back to it; None: there is none."""
    path: list[Edge] = []
    branches = [edges(start)]
    seen = {start}
    for _ in range(MAX_STEPS):
        edge = next(branches[-1], None)
        if edge is None:
            branches.pop()
            if not branches:
                return None
            path.pop()
        elif edge.blocker == start:
            return [*path, edge]
        elif edge.blocker not in seen:
            seen.add(edge.blocker)
            path.append(edge)
            branches.append(edges(edge.blocker))
    return None
