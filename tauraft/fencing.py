"""Guards for what a lock protects: they let a token pass that is as great as any they saw, and refuse a smaller one.

A holder that was suspended may wake up after its lock went to another, and write before it looks.  Nothing on its side
can prevent that (SAFETY 17); the resource can: the later holder's token is greater, and once the resource has seen it, the
earlier one is stale.

- ``FencedResource``: in one process.
- ``POSTGRES``, ``DUCKDB``: statements for a database.  ``admit`` goes into the transaction of the write, before it: it returns
  one row, or none for a stale token, and then the transaction must be rolled back.  Where each row has a fence of its own,
  ``conditional_update`` does both at once.
- In the cluster's own KV: ``cluster.fenced(token)``, which asks whether the hold still holds.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from tauraft.errors import InvalidArgument, StaleToken

__all__ = ["DUCKDB", "POSTGRES", "FencedResource", "FencingSQL"]


class FencedResource:
    """Remembers the greatest token it saw. May be shared by threads.

    >>> resource = FencedResource()
    >>> resource.check(7)
    >>> resource.check(7)
    >>> resource.check(6)
    Traceback (most recent call last):
    ...
    tauraft.errors.StaleToken: token 6 is stale: 7 was seen; another holds the lock now, stop what it protects
    """

    def __init__(self, greatest: int = 0) -> None:
        self._lock = threading.Lock()
        self._greatest = _number(greatest)

    @property
    def greatest(self) -> int:
        """0: none was seen yet."""
        return self._greatest

    def check(self, token: int) -> None:
        """Raises ``StaleToken`` unless ``token`` is at least the greatest one seen."""
        _number(token)
        with self._lock:
            greatest = self._greatest
            if token >= greatest:
                self._greatest = token
                return
        raise StaleToken(
            f"token {token} is stale: {greatest} was seen; another holds the lock now, stop what it protects",
            greatest=greatest,
        )


@dataclass(frozen=True, slots=True)
class FencingSQL:
    """Statements of one database. ``create``: once. ``admit``: parameters ``resource`` and ``token``; no row back: stale."""

    create: str
    admit: str
    _parameter: str

    def conditional_update(self, table: str, assignments: str, where: str, fence: str = "fence") -> str:
        """An UPDATE that touches a row only if its column ``fence`` is at most the parameter ``token``, which it then keeps.

        The names and expressions are put in as they are: they are the program's own, never a user's. No row back: stale,
        or not there.
        """
        token = self._parameter.format("token")
        return (
            f"UPDATE {table} SET {assignments}, {fence} = {token} WHERE ({where}) AND {fence} <= {token} "
            f"RETURNING {fence}"
        )


_CREATE: Final = "CREATE TABLE IF NOT EXISTS tauraft_fences (resource TEXT PRIMARY KEY, greatest BIGINT NOT NULL)"


def _admit(resource: str, token: str) -> str:
    return (
        f"INSERT INTO tauraft_fences (resource, greatest) VALUES ({resource}, {token}) "
        "ON CONFLICT (resource) DO UPDATE SET greatest = excluded.greatest "
        "WHERE tauraft_fences.greatest <= excluded.greatest RETURNING greatest"
    )


POSTGRES: Final = FencingSQL(_CREATE, _admit("%(resource)s", "%(token)s"), "%({})s")
"""For psycopg: parameters are named ``%(name)s``. The row's lock makes a second writer wait for the first one's commit."""

DUCKDB: Final = FencingSQL(_CREATE, _admit("$resource", "$token"), "${}")
"""For duckdb: parameters are named ``$name``."""


def _number(token: int) -> int:
    if type(token) is not int:
        raise TypeError(f"token must be int, not {type(token).__name__}")
    if token < 0:
        raise InvalidArgument(f"{token} is no token: they are not negative", option="token")
    return token
