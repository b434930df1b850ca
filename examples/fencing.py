"""A holder that slept through the end of its lock wakes up and writes; its token is stale, and the database refuses it.

    python fencing.py

The ledger is SQLite; the statements are those for DuckDB, and the ones for PostgreSQL (``tauraft.fencing.POSTGRES``) do the same. A row
keeps the greatest token that wrote it, and an UPDATE touches it only with one that is at least as great: one statement, no race.
"""

from __future__ import annotations

import sqlite3

import tauraft
from tauraft.fencing import DUCKDB

ADD = DUCKDB.conditional_update("accounts", "balance = balance + $amount", "name = $name")


class Ledger:
    def __init__(self, path: str = ":memory:") -> None:
        self._db = sqlite3.connect(path)
        self._db.execute("CREATE TABLE accounts (name TEXT PRIMARY KEY, balance INTEGER, fence BIGINT NOT NULL)")
        self._db.execute("INSERT INTO accounts VALUES ('till', 0, 0)")
        self._db.commit()

    def add(self, amount: int, token: int) -> None:
        """Raises ``StaleToken``: another has had the lock since ``token`` was given, and nothing was written."""
        with self._db:
            written = self._db.execute(ADD, {"name": "till", "amount": amount, "token": token}).fetchone()
        if written is None:
            raise tauraft.StaleToken(f"token {token} is stale: another holds the lock now; nothing was written")

    def balance(self) -> int:
        (balance,) = self._db.execute("SELECT balance FROM accounts").fetchone()
        return int(balance)


def story(sleeper: tauraft.Hold, cluster: tauraft.Cluster, ledger: Ledger) -> str:
    """``sleeper``'s lock is over, and it does not know: it was suspended, or its machine was."""
    with cluster.lock("till", ttl=5) as hold:
        ledger.add(100, hold.token)
    try:
        ledger.add(1_000, sleeper.token)
    except tauraft.StaleToken as refused:
        return str(refused)
    return "the late write went through"


def main() -> None:
    import time

    with tauraft.Cluster("/raft/fencing", storage="memory", preset="local") as cluster:
        sleeper = cluster.lock("till", ttl=1, renew=False).acquire()
        time.sleep(1.5)
        ledger = Ledger()
        print(story(sleeper, cluster, ledger))
        print("balance:", ledger.balance())


if __name__ == "__main__":
    main()
