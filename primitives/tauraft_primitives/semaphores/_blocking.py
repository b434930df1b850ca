# Generated from tauraft_primitives.semaphores.handle by `python -m tauraft.twin`; change that file, not this one.
"""A semaphore as a caller uses it: so many permits in all the cluster, first come first served.

What a hold is, how it is taken and what leaving a block does, is in ``tauraft_primitives.holds``.  Permits live with the
session.  The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from tauraft import errors
from tauraft.handle import Holder, check_name, check_patience
from tauraft.types import SemaphoreInfo
from tauraft_primitives.holds._blocking import Hold, OneHeld, next_attempt, reminder_of, take
from tauraft_primitives.locks.messages import Grant
from tauraft_primitives.semaphores.messages import (
    AcquirePermits,
    GiveBackPermits,
    HoldsPermits,
    PermitsInfo,
    PermitsStanding,
    ReleasePermits,
    Resize,
    check_permits,
)


class Semaphore(OneHeld[Hold]):
    """``permits`` in all. Made without I/O; may be shared by tasks and threads."""

    def __init__(self, holder: Holder, name: str, permits: int, *, timeout: float | None = None) -> None:
        super().__init__()
        self.name = check_name(name)
        self._permits = check_permits(permits)
        self._holder = holder
        self._timeout = check_patience(timeout)

    def acquire(self, timeout: float | None = None, *, count: int = 1) -> Hold:
        """Wait for ``count`` permits together, first come first served. Raises ``WaitTimeout`` with nothing held, and
        ``Mismatch`` where the semaphore was made with, and has, another number of permits."""
        patience = check_patience(timeout)
        if patience is None:
            patience = self._timeout
        check_permits(count, "count", self._permits)
        peer_id, host, pid, label = self._holder.whoami()
        attempt = next_attempt()
        command = AcquirePermits(
            self.name, self._permits, count, peer_id=peer_id, host=host, pid=pid, label=label, patience=patience,
            attempt=attempt,
        )  # fmt: skip

        def build(grant: Grant, started: float) -> Hold:
            return Hold(
                self._holder,
                "permit of",
                self.name,
                grant.token,
                self._holder.tenure(ttl=None, started=started, renewal=None),
                release=ReleasePermits(self.name, grant.token),
                holds=HoldsPermits(self.name, grant.token),
            )

        return take(
            self._holder,
            command,
            GiveBackPermits(self.name, attempt),
            build,
            patience=patience,
            reminder=reminder_of(
                f"a permit of {self.name!r}", lambda session: PermitsStanding(self.name, session, attempt)
            ),
        )

    def try_acquire(self, *, count: int = 1) -> Hold | None:
        """The permits if they are free, else None, at once."""
        try:
            return self.acquire(timeout=0, count=count)
        except errors.WaitTimeout:
            return None

    def resize(self, permits: int) -> None:
        """From now on there are ``permits``, for everyone. Takes none from its holder."""
        self._holder.submit(Resize(self.name, check_permits(permits)))
        self._permits = permits

    def info(self) -> SemaphoreInfo:
        """How many permits there are and are left, who holds some, who waits."""
        found = self._holder.query(PermitsInfo(self.name))
        return SemaphoreInfo(self.name, self._permits, self._permits, (), ()) if found is None else found

    def _take(self) -> Hold:
        return self.acquire()
