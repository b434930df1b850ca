"""Elections as a caller holds them: ``AsyncElection`` by name, ``AsyncTerm`` while it leads, and who leads Raft itself.

A campaign is one waiting command; the answer is the term's token.  A term is a hold (``tauraft_primitives.holds``): it lives with the
session and counts itself out before the cluster elects another.  ``leadership`` is its block: the body is cut short (async)
when the term is lost, and the term given back when the body has ended, so that a successor does not start beside it.
Therefore ``resign`` and ``transfer`` from another task or thread than the block's cut the body first; they are said to the
cluster when it has ended.

``AsyncRaftLeadership`` is an election in which only who uses the Raft leader's replica stands (docs/decisions/0033).

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, TypeVar

from tauraft import errors
from tauraft.fsm import Command
from tauraft.handle import (
    AsyncHere,
    AsyncHolder,
    AsyncReturned,
    AsyncSignal,
    AsyncWatch,
    Frame,
    RaftStanding,
    State,
    as_bytes,
    check_name,
    check_patience,
)
from tauraft.types import Bytes, ElectionInfo, Leader, instant
from tauraft_primitives.checks import check_session, check_value
from tauraft_primitives.elections.messages import (
    TERMS,
    AskElection,
    Campaign,
    CampaignStanding,
    GetLeader,
    GiveBackTerm,
    Leads,
    Proclaim,
    Resign,
    TermRow,
    Transfer,
)
from tauraft_primitives.holds.handle import AsyncHold, AsyncOneHeld, next_attempt, reminder_of, take
from tauraft_primitives.locks.messages import Grant, check_priority, check_seconds

R = TypeVar("R")

RAFT: Final = "tauraft.raft"


class AsyncTerm(AsyncHold):
    """Leadership, from election to resignation or loss. ``token`` fences; ``check`` and ``verify`` raise ``LeadershipLost``."""

    value: bytes
    _body: object = None  # the task or thread whose block it is
    _asked: tuple[Command[None], ...] = ()  # to be said when that block has ended

    async def resign(self) -> None:
        """Make way for the next. Raises ``NotHolder`` when the term is over.

        From another task or thread than that of its block: the body is cut first, and the next elected when it has ended.
        """
        await self.release()

    async def release(self) -> None:
        """As ``resign``."""
        if self._is_elsewhere():
            self._cut(self._release)
        elif self._asked and not self._is_released:
            self._end()  # said when the body has ended
        else:
            await super().release()

    async def proclaim(self, value: Bytes) -> None:
        """Change the value that others see. Raises ``NotHolder`` when the term is over."""
        data = as_bytes(value)
        command = Proclaim(self.name, self.token, data)
        self._must_lead()
        await self._holder.submit(command)
        self.value = data

    async def _transfer(self, to: int) -> None:
        command = Transfer(self.name, self.token, to)
        if self._is_elsewhere():
            # The election is left as well if that session is no candidate any more when the body has ended.
            self._cut(command, self._release)
            return
        self._must_lead()
        try:
            await self._holder.submit(command)
        except errors.Refused:
            raise  # nothing changed
        except BaseException:
            # Interrupted or unanswered: the engine goes on saying it, and this process counts itself out.
            self._end()
            for rest in (command, self._release):
                self._holder.submit_soon(rest)
            raise
        self._end()

    def _is_elsewhere(self) -> bool:
        return self._body not in (None, AsyncHere.scope()) and not self._is_released and not self._tenure.is_lost

    def _cut(self, *asked: Command[None]) -> None:
        self._asked = asked
        self._tenure.lose()

    def _body_ended(self) -> None:
        self._body = None
        for command in self._asked:
            self._holder.submit_soon(command)

    def _must_lead(self) -> None:
        if self._is_released or self._tenure.is_lost:
            raise errors.NotHolder(f"token {self.token} does not lead {self.name!r} any more; nothing changed")

    def _lost(self) -> errors.LockLost:
        return errors.LeadershipLost(
            f"the leadership of {self.name!r} with token {self.token} is lost: another may lead now; stop what it stands for",
            token=self.token,
        )


class AsyncLeading(AsyncOneHeld[AsyncTerm]):
    """``async with election.leadership() as term``: waits to be elected, resigns at its end. May be entered again."""

    def __init__(self, campaign: Callable[[], AsyncReturned[AsyncTerm]]) -> None:
        super().__init__()
        self._campaign = campaign

    async def _take(self) -> AsyncTerm:
        return await self._campaign()

    async def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        term = self._mine()[1]
        try:
            return await super()._exit(kind, error, trace)
        finally:
            term._body_ended()


class AsyncElection:
    """An election by name. Made without I/O; may be shared by tasks and threads.

    ``min_tenure``: seconds that must pass from this process's election to the next one, however its term ends: processes that
    come and go do not make leadership flap. ``on_elected(term)`` runs before ``campaign`` returns; ``on_lost(term)`` on a thread of its own.
    """

    def __init__(
        self,
        holder: AsyncHolder,
        name: str,
        *,
        min_tenure: float = 0,
        on_elected: Callable[[AsyncTerm], object] | None = None,
        on_lost: Callable[[AsyncTerm], object] | None = None,
    ) -> None:
        self.name = check_name(name)
        self._holder = holder
        self._min_tenure = check_seconds("min_tenure", min_tenure, 0)
        for option, callback in (("on_elected", on_elected), ("on_lost", on_lost)):
            if callback is not None and not callable(callback):
                raise TypeError(f"{option} must be callable, not {type(callback).__name__}")
        self._on_elected = on_elected
        self._on_lost = on_lost
        self._terms: list[AsyncTerm] = []

    async def campaign(self, value: Bytes = b"", *, priority: int = 0, timeout: float | None = None) -> AsyncTerm:
        """Stand for election, and wait to be elected: higher ``priority`` first, then first come, first served.

        ``value`` is what others see of the leader. Raises ``WaitTimeout``: nobody stands, nothing is held.
        """
        check_value(as_bytes(value))
        check_priority(priority)
        return await self._stand(as_bytes(value), priority, check_patience(timeout), None)

    async def _stand(self, data: bytes, priority: int, patience: float | None, body: object) -> AsyncTerm:
        """``body``: the task or thread whose block it will be."""
        peer_id, host, pid, label = self._holder.whoami()
        attempt = next_attempt()
        command = Campaign(
            self.name, data, priority, self._min_tenure, peer_id=peer_id, host=host, pid=pid, label=label,
            patience=patience, attempt=attempt,
        )  # fmt: skip

        def build(grant: Grant, started: float) -> AsyncTerm:
            term = AsyncTerm(
                self._holder,
                "leadership of",
                self.name,
                grant.token,
                self._holder.tenure(ttl=None, started=started, renewal=None),
                release=Resign(self.name, grant.token),
                holds=Leads(self.name, grant.token),
                ended=self._ended,
            )
            term.value = data
            term._body = body
            self._terms.append(term)
            if self._on_lost is not None:
                on_lost = self._on_lost
                term.lost.add_callback(lambda: on_lost(term))
            if self._on_elected is not None:
                self._on_elected(term)
            return term

        return await take(
            self._holder,
            command,
            GiveBackTerm(self.name, attempt),
            build,
            patience=patience,
            reminder=reminder_of(
                f"the leadership of {self.name!r}", lambda session: CampaignStanding(self.name, session, attempt)
            ),
        )

    def leadership(self, value: Bytes = b"", *, priority: int = 0, timeout: float | None = None) -> AsyncLeading:
        """A block under a term. When it is lost the body is cancelled (blocking: it looks at ``term.lost``) and
        ``LeadershipLost`` comes out, unless the body raised."""
        data = as_bytes(value)
        check_value(data)
        check_priority(priority)
        patience = check_patience(timeout)
        return AsyncLeading(lambda: self._stand(data, priority, patience, AsyncHere.scope()))

    async def run(self, main: Callable[[AsyncTerm], AsyncReturned[R]], value: Bytes = b"", *, priority: int = 0) -> R:
        """Call ``main(term)`` once elected, resign when it has ended, and return what it returned.

        When the term is lost ``main`` is cancelled (blocking: it must look at ``term.lost`` or ``term.check``), and once it has ended
        ``LeadershipLost`` is raised. What it writes elsewhere is safe under ``term.token``.
        """
        if not callable(main):
            raise TypeError(f"main must be callable, not {type(main).__name__}")
        return await _under(self.leadership(value, priority=priority), main)

    async def resign(self) -> None:
        """Give back the term that this handle has. Raises ``NotHolder``. See ``AsyncTerm.resign``."""
        await self._term().resign()

    async def proclaim(self, value: Bytes) -> None:
        """Change the value of the term that this handle has. Raises ``NotHolder``."""
        check_value(as_bytes(value))
        await self._term().proclaim(value)

    async def transfer(self, to: int) -> None:
        """Hand leadership to the candidate of session ``to`` (its public id), whoever stands before it.

        Raises ``NotHolder``, and ``NoCandidate`` when that session does not stand: then this one still leads.
        """
        check_session(to, "to")
        await self._term()._transfer(to)

    async def leader(self) -> Leader | None:
        """Who leads now."""
        return await self._holder.query(GetLeader(self.name))

    async def info(self) -> ElectionInfo:
        """Who leads, and who stands, in order."""
        return await self._holder.query(AskElection(self.name))

    def observe(self, *, since_revision: int | None = None) -> AsyncWatch[Leader | None]:
        """The present leader first, then each one after it, None where there is none, and each value proclaimed; goes on over
        reconnects without missing one. ``since_revision``: all after that revision instead."""
        has_begun = since_revision is not None
        watch = self._holder.watch(TERMS, key=self.name, since_revision=since_revision, with_state=not has_begun)
        return watch.map(_leaders)

    def _term(self) -> AsyncTerm:
        for term in reversed(self._terms):
            return term
        raise errors.NotHolder(f"this handle does not lead {self.name!r}; nothing changed")

    def _ended(self, term: AsyncTerm) -> None:
        if term in self._terms:
            self._terms.remove(term)


class AsyncRaftLeadership(AsyncLeading):
    """Leadership that follows Raft: at most one process leads, one that uses the replica of the Raft leader.

    ``async with cluster.raft_leadership() as term``. The body is cancelled when another replica leads Raft; until one is known to, and at most
    until the session's deadline, the term goes on. Everyone sees who it is: ``leader``, ``observe``.
    """

    def __init__(self, holder: AsyncHolder) -> None:
        super().__init__(self._follow)
        self.name = RAFT
        self._holder = holder
        self._election = AsyncElection(holder, RAFT)

    async def run(self, main: Callable[[AsyncTerm], AsyncReturned[R]]) -> R:
        """As ``AsyncElection.run``."""
        if not callable(main):
            raise TypeError(f"main must be callable, not {type(main).__name__}")
        return await _under(self, main)

    async def leader(self) -> Leader | None:
        """Who leads now; ``leader.owner.peer_id`` is the Raft leader's."""
        return await self._election.leader()

    async def info(self) -> ElectionInfo:
        return await self._election.info()

    def observe(self) -> AsyncWatch[Leader | None]:
        """As ``AsyncElection.observe``."""
        return self._election.observe()

    async def _follow(self) -> AsyncTerm:
        while True:
            standing = self._holder.raft_standing()
            if not standing.leads:
                await AsyncSignal(standing.changed).wait()
                continue
            term = await self._election.campaign()
            try:
                if standing.changed.is_set:  # it moved while this one waited to be elected
                    await term.resign()
                    continue
                return self._following(term, standing)
            except BaseException:
                term._drop()
                raise

    def _following(self, term: AsyncTerm, standing: RaftStanding) -> AsyncTerm:
        """Cut when another replica leads Raft; the next is elected when the body has ended."""

        def cut() -> None:
            term._cut(term._release)

        term._body = AsyncHere.scope()
        term._ended = lambda term: standing.changed.remove_hook(cut)
        standing.changed.add_hook(cut)
        return term


async def _under(leadership: AsyncLeading, main: Callable[[AsyncTerm], AsyncReturned[R]]) -> R:
    results: list[R] = []
    async with leadership as term:
        results.append(await main(term))
    return results[0]


def _leaders(told: Frame[str, TermRow] | State[str, TermRow]) -> Iterator[Leader | None]:
    if isinstance(told, State):
        yield _leader_of(next((row for _, row in told.rows), None))
        return
    for change in told.changes:
        yield _leader_of(change.new)


def _leader_of(row: Any) -> Leader | None:
    return None if row is None else Leader(row.owner, row.value, row.token, instant(row.since_ns))
