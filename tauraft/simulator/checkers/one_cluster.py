"""Formation's promise 6: who forms together ends in one cluster; with ``expect=N`` a second one can never be (SAFETY 10).

Fed with each genesis that a node took up, when it did.
"""

from __future__ import annotations

from tauraft.formation.genesis import Genesis


class TwoClusters(AssertionError):
    """Nodes of one namespace began two clusters."""


class OneCluster:
    def __init__(self) -> None:
        self._first: tuple[str, Genesis] | None = None

    def took_up(self, node: str, genesis: Genesis) -> None:
        if self._first is None:
            self._first = (node, genesis)
        other, known = self._first
        if known != genesis:
            raise TwoClusters(
                f"{node} is in cluster {genesis.cluster_id.hex()[:8]} of {genesis.created_by}, {other} in "
                f"{known.cluster_id.hex()[:8]} of {known.created_by}"
            )
