# Generated from tauraft_primitives.rates.handle by `python -m tauraft.twin`; change that file, not this one.
"""A rate limit as a caller holds it: so many in a second for the whole cluster, with bursts.

Time is the cluster's: it does not jump, and stands still while there is no quorum. A wait that ends early takes nothing.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tauraft.handle import Holder, check_name, check_patience
from tauraft.types import Owner, RateInfo
from tauraft_primitives.checks import check_count
from tauraft_primitives.holds._blocking import wait_for
from tauraft_primitives.rates.messages import AskRate, Retune, TakeTokens, TryTokens, check_bucket


class RateLimit:
    """``rate`` tokens a second, at most ``burst`` at once, in all the cluster. Made without I/O; may be shared by tasks and threads.

    ``with limit:`` takes one token, waiting for it. A full bucket is kept nowhere: have one a user, if you like.
    """

    def __init__(self, holder: Holder, name: str, rate: float, burst: int) -> None:
        self.name = check_name(name)
        check_bucket(rate, burst)
        self._rate = float(rate)
        self._burst = burst
        self._holder = holder

    def acquire(self, n: int = 1, *, timeout: float | None = None) -> None:
        """Take ``n`` tokens, waiting for them: first come, first served. Raises ``WaitTimeout`` with nothing taken, and
        ``Mismatch`` where the limit is in use with another rate or burst."""
        patience = check_patience(timeout)
        check_count(n, "n", self._burst)
        who = Owner(0, *self._holder.whoami())
        wait_for(self._holder, TakeTokens(self.name, self._rate, self._burst, n, who, patience), patience)

    def try_acquire(self, n: int = 1) -> bool:
        """Take ``n`` tokens if they are there, at once. False: nothing was taken."""
        check_count(n, "n", self._burst)
        return self._holder.submit(TryTokens(self.name, self._rate, self._burst, n))

    def retune(self, rate: float, burst: int) -> None:
        """From now on it has this rate and burst, for everyone; handles that name the old ones go on."""
        check_bucket(rate, burst)
        self._holder.submit(Retune(self.name, float(rate), burst, self._rate, self._burst))
        self._rate, self._burst = float(rate), burst

    def info(self) -> RateInfo:
        """What can be taken now, when the bucket is full again, and how many wait."""
        found = self._holder.query(AskRate(self.name))
        return RateInfo(self.name, self._rate, self._burst, self._burst, 0.0, 0) if found is None else found

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
