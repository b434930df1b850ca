"""A lock for many readers or one writer, as a caller uses it: ``rwlock.read`` and ``rwlock.write``.

What a hold is, how it is taken and what leaving a block does, is in ``tauraft_primitives.holds``.  Its holds live with the
session.  The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from typing import Literal

from tauraft import errors
from tauraft.handle import AsyncHere, AsyncHolder, check_name, check_patience
from tauraft.types import RwLockInfo
from tauraft_primitives.holds.handle import AsyncHold, AsyncOneHeld, next_attempt, reminder_of, take
from tauraft_primitives.locks.messages import Grant
from tauraft_primitives.rwlocks.messages import AcquireRw, Downgrade, GiveBackRw, HoldsRw, ReleaseRw, RwInfo, RwStanding


class AsyncRwHold(AsyncHold):
    """Held for reading or for writing."""

    async def downgrade(self) -> None:
        """From writer to reader, with nobody in between; the token stays. Raises ``NotHolder`` when it is lost."""
        if self._is_released or self._tenure.is_lost:
            raise errors.NotHolder(f"{self.name!r} is not held with token {self.token} any more; nothing changed")
        await self._holder.submit(Downgrade(self.name, self.token))


class AsyncRwMode(AsyncOneHeld[AsyncRwHold]):
    """One way of holding it. May be shared by tasks and threads."""

    def __init__(
        self, holder: AsyncHolder, name: str, mode: Literal["read", "write"], *, timeout: float | None = None
    ) -> None:
        super().__init__()
        self.name = check_name(name)
        self._mode: Literal["read", "write"] = mode
        self._holder = holder
        self._timeout = check_patience(timeout)

    async def acquire(self, timeout: float | None = None) -> AsyncRwHold:
        """Wait, first come first served. Raises ``WaitTimeout`` with nothing held, and ``UpgradeRefused`` for writing where
        this task or thread reads already: it would wait for itself."""
        patience = check_patience(timeout)
        if patience is None:
            patience = self._timeout
        peer_id, host, pid, label = self._holder.whoami()
        attempt = next_attempt()
        command = AcquireRw(
            self.name, self._mode, peer_id=peer_id, host=host, pid=pid, label=label, patience=patience,
            party=AsyncHere.scope(), attempt=attempt,
        )  # fmt: skip

        def build(grant: Grant, started: float) -> AsyncRwHold:
            return AsyncRwHold(
                self._holder,
                f"{self._mode} lock",
                self.name,
                grant.token,
                self._holder.tenure(ttl=None, started=started, renewal=None),
                release=ReleaseRw(self.name, grant.token),
                holds=HoldsRw(self.name, grant.token),
            )

        return await take(
            self._holder,
            command,
            GiveBackRw(self.name, attempt),
            build,
            patience=patience,
            reminder=reminder_of(
                f"{self._mode} lock {self.name!r}", lambda session: RwStanding(self.name, session, attempt)
            ),
        )

    async def try_acquire(self) -> AsyncRwHold | None:
        """The lock if it can be had, else None, at once."""
        try:
            return await self.acquire(timeout=0)
        except errors.WaitTimeout:
            return None

    async def _take(self) -> AsyncRwHold:
        return await self.acquire()


class AsyncRwLock:
    """Many readers or one writer, by name. Made without I/O."""

    def __init__(self, holder: AsyncHolder, name: str, *, timeout: float | None = None) -> None:
        self.name = check_name(name)
        self._holder = holder
        self.read = AsyncRwMode(holder, name, "read", timeout=timeout)
        self.write = AsyncRwMode(holder, name, "write", timeout=timeout)

    async def info(self) -> RwLockInfo:
        """Who reads, writes and waits."""
        return await self._holder.query(RwInfo(self.name))
