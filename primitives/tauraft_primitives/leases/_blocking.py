# Generated from tauraft_primitives.leases.handle by `python -m tauraft.twin`; change that file, not this one.
"""Leases as a caller holds them: a right that ends by itself unless its holder goes on renewing it, and takes keys along.

A lease belongs to this facade's session and is renewed by the engine (``tauraft.handle.Tenure``), which counts it out
before the cluster ends it.  Its ``token`` fences, as a lock's does; its ``id`` is what keys are attached to
(``kv.put(..., attach=lease)``), and stays when the lease goes to another session, which takes it up with ``adopt``.

A grant that its caller does not get, being cancelled or interrupted, is withdrawn by the engine.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tauraft import errors
from tauraft.handle import Holder, Signal, Tenure
from tauraft.types import LeaseInfo
from tauraft_primitives.kv.messages import (
    AdoptLease,
    DescribeLease,
    GrantLease,
    LeaseGrant,
    RenewLease,
    RevokeLease,
    TransferLease,
    check_lease_ttl,
)


class Lease:
    """Granted by ``cluster.lease(10)``; its ``with`` revokes it. May be shared by tasks and threads."""

    def __init__(self, holder: Holder, grant: LeaseGrant, ttl: float, tenure: Tenure) -> None:
        self.id = grant.id
        self.token = grant.token
        self.ttl = ttl
        self.lost = Signal(tenure.state)
        self._holder = holder
        self._tenure = tenure
        self._is_over = False

    @classmethod
    def grant(cls, holder: Holder, ttl: float, adopt: int | None = None) -> Self:
        """A new lease of this session; or the one of that id, which another session has transferred to this one."""
        ttl = check_lease_ttl(ttl)
        if adopt is not None and (isinstance(adopt, bool) or not isinstance(adopt, int)):
            raise TypeError(f"adopt must be the id of a lease, not {type(adopt).__name__}")
        started = holder.now()
        granted = holder.submit(GrantLease(ttl) if adopt is None else AdoptLease(adopt, ttl))
        tenure = holder.tenure(ttl=ttl, started=started, renewal=RenewLease(granted.id, granted.token))
        return cls(holder, granted, ttl, tenure)

    def info(self) -> LeaseInfo | None:
        """As the cluster has it, whoever's it is by now; None: it has ended."""
        return self._holder.query(DescribeLease(self.id))

    def remaining(self) -> float:
        """Seconds until this process must count itself out; <= 0: lost."""
        return self._tenure.remaining()

    def check(self) -> None:
        """Local, no round trip. Raises ``LockLost``."""
        if self._is_over or self._tenure.is_lost:
            raise self._lost()

    def keep_alive(self) -> float:
        """Renew it now, beside the renewals the engine makes; returns what ``remaining`` is then. Raises ``LockLost``."""
        self.check()
        started = self._holder.now()
        try:
            self._holder.submit(RenewLease(self.id, self.token))
        except errors.NotHolder:
            raise self._lost() from None
        self._tenure.restart(ttl=self.ttl, started=started)
        self.check()
        return self.remaining()

    def transfer(self, session: int) -> None:
        """It is that session's from now on, with its attached keys and a new token; here it is over. Raises ``NotHolder``.

        The other side takes it up with ``cluster.lease(ttl, adopt=lease.id)`` within the ttl.
        """
        if isinstance(session, bool) or not isinstance(session, int):
            raise TypeError(f"session must be the id of a session, not {type(session).__name__}")
        if session <= 0:
            raise errors.InvalidArgument(f"{session} is no session's id; nothing was sent", option="session")
        self._must_be_held()
        self._holder.submit(TransferLease(self.id, self.token, session))
        self._end()

    def revoke(self) -> None:
        """End it; the keys attached to it go in the same revision. Raises ``NotHolder`` when it had ended."""
        self._must_be_held()
        self._end()
        command = RevokeLease(self.id, self.token)
        try:
            self._holder.submit(command)
        except errors.Refused:
            raise
        except BaseException:
            # Interrupted or unanswered: the engine goes on saying it.
            self._holder.submit_soon(command)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_over:
            return
        if not self._tenure.is_lost:
            try:
                self.revoke()
                return
            except errors.NotHolder:
                pass
        self._end()
        if kind is None:
            raise self._lost()

    def _must_be_held(self) -> None:
        if self._is_over or self._tenure.is_lost:
            self._end()
            raise errors.NotHolder(f"lease {self.id} is not held with token {self.token} any more; nothing changed")

    def _end(self) -> None:
        self._is_over = True
        self._tenure.end()

    def _lost(self) -> errors.LockLost:
        return errors.LockLost(
            f"lease {self.id} with token {self.token} is lost, and the keys attached to it are going; stop what it protects",
            token=self.token,
        )
