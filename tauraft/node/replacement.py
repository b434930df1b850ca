"""Which dead voter's place a learner takes (SAFETY 26).

In:  who was heard when, which learners have caught up, and where every member's machine and disk are.
Out: at most one ``Replacement`` in ``DEAD_AFTER_NS``.  It swaps one vote for another, so the number of voters stays what it
was; the dead one stays a member that does not vote, and is sent what it missed when it comes back.

A leader's judgement, of the time in which it leads: a new leader begins anew.  Since it leads, it hears a majority of the
voters; with a learner that it hears as well, so does it in the new configuration.  Nothing is done where that is in doubt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeAlias

from tauraft.core.messages import Member

DEAD_AFTER_NS: Final = 30_000_000_000

Domain: TypeAlias = tuple[str, str]  # machine, and disk of that machine


@dataclass(frozen=True, slots=True)
class Replacement:
    dead: Member
    by: Member


class DeadVoters:
    """One leadership's."""

    def __init__(self, now_ns: int) -> None:
        self._since_ns = now_ns
        self._heard_ns: dict[Member, int] = {}
        self._replaced_ns: int | None = None

    def heard(self, member: Member, now_ns: int) -> None:
        self._heard_ns[member] = now_ns

    def replaced(self, now_ns: int) -> None:
        self._replaced_ns = now_ns

    def choose(
        self,
        now_ns: int,
        me: Member,
        voters: Collection[Member],
        caught_up: Collection[Member],
        domain_of: Callable[[Member], Domain],
    ) -> Replacement | None:
        """``caught_up``: the learners that have, and that were heard just now."""
        if self._replaced_ns is not None and now_ns - self._replaced_ns < DEAD_AFTER_NS:
            return None
        last = {member: self._heard_ns.get(member, self._since_ns) for member in voters if member != me}
        dead = sorted((heard, member) for member, heard in last.items() if now_ns - heard >= DEAD_AFTER_NS)
        if not dead or not caught_up or len(voters) - len(dead) <= len(voters) // 2:
            return None
        _, victim = dead[0]
        others = [domain_of(member) for member in voters if member != victim]
        disks, machines = Counter(others), Counter(machine for machine, _ in others)

        def company(member: Member) -> tuple[int, int, Member]:
            """How many voters would fall with its disk, and with its machine."""
            domain = domain_of(member)
            return disks[domain], machines[domain[0]], member

        return Replacement(victim, min(caught_up, key=company))
