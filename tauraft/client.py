"""How a session reaches a replica: in this process, through the host's socket, or at an address; and again when that one fails.

A ``Dialer`` makes links; ``Connector`` keeps the session on one of them.  After a failure it waits, twice as long each
time and never in step with others (jitter), at most 2 s.  A client that dials addresses moves to the leader
when its replica says who that is, dialling before it lets go of the old link, so the session hardly notices.
A replica that answers but cannot attach the session in time is left for another one where there is one; so is one that has
known no leader for a while, for one that does: it may be cut off from a majority that the client can reach.

All of it in the engine's loop; random numbers and the clock are injected.  Nothing here looks into a submission.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, Protocol

import trio

from tauraft.command_protocol import (
    Hello,
    LeaderIs,
    Link,
    LinkUser,
    MalformedFrame,
    ToClient,
    ToReplica,
    Welcome,
    decode_to_client,
    encode,
)
from tauraft.session import Session, State
from tauraft.transport.transport import MessageStream, StreamClosed, StreamOverloaded, TransportError

logger = logging.getLogger("tauraft.client")

FIRST_BACKOFF_S: Final = 0.05
LONGEST_BACKOFF_S: Final = 2.0
WELCOME_TIMEOUT_S: Final = 5.0
ATTACH_TIMEOUT_S: Final = 5.0
# An election is over by then, most often; with the time it takes to find out, a session of 10 s is still renewed.
LEADERLESS_TIMEOUT_S: Final = 2.0
MOVE_JITTER_S: Final = 0.2


class LinkFailed(Exception):
    """No replica could be reached this time. ``args[0]`` is one sentence."""


class Dialer(Protocol):
    """Makes links. Called by one ``Connector``, one call at a time."""

    @property
    def has_choice(self) -> bool:
        """Another dial may reach another replica, so leaving a useless one and following the leader make sense."""

    async def dial(self, user: LinkUser, leader: LeaderIs | None, nursery: trio.Nursery) -> Link:
        """A link, to ``leader`` when that can be. Its tasks run in ``nursery``. Raises ``LinkFailed``."""


class LocalDialer:
    """To the replica in this process. ``connect``: ``CommandService.connect_local``."""

    has_choice = False

    def __init__(self, connect: Callable[[LinkUser], Link]) -> None:
        self._connect = connect

    async def dial(self, user: LinkUser, leader: LeaderIs | None, nursery: trio.Nursery) -> Link:
        return self._connect(user)


class StreamDialer:
    """Over a message stream: ``open_stream(leader)`` makes one, to the leader given or to any replica known."""

    def __init__(self, open_stream: Callable[[LeaderIs | None], Awaitable[MessageStream]], *, has_choice: bool) -> None:
        self.has_choice = has_choice
        self._open_stream = open_stream

    async def dial(self, user: LinkUser, leader: LeaderIs | None, nursery: trio.Nursery) -> Link:
        try:
            stream = await self._open_stream(leader)
        except (TransportError, OSError) as error:
            raise LinkFailed(str(error)) from error
        link = StreamLink(stream, user)
        nursery.start_soon(link.receive_all)
        return link


class StreamLink:
    """A link of frames. What the stream does not take ends the link: everything is sent again on the next one."""

    is_local = False

    def __init__(self, stream: MessageStream, user: LinkUser) -> None:
        self.peer_id = stream.peer_id
        self.is_of_host = stream.is_local
        self._stream = stream
        self._user: LinkUser | None = user
        self._scope = trio.CancelScope()

    def send(self, message: ToReplica) -> None:
        try:
            self._stream.send(encode(message))
        except (StreamClosed, StreamOverloaded, ValueError):
            self._scope.cancel()

    def close(self) -> None:
        self._user = None
        self._scope.cancel()

    async def receive_all(self) -> None:
        reason = "the connection could not take more"
        try:
            with self._scope:
                while self._user is not None:
                    for frame in await self._stream.receive():
                        if self._user is not None:
                            self._user.received(decode_to_client(frame))
        except StreamClosed:
            reason = "the connection ended"
        except MalformedFrame as error:
            reason = f"malformed frame: {error}"
        finally:
            user, self._user = self._user, None
            if user is not None:
                user.link_closed(reason)
            with trio.CancelScope(shield=True):
                await self._stream.aclose()


class Seen:
    """What the links of a client have said of the cluster: its own knowledge, without a round trip."""

    def __init__(self) -> None:
        self.peer_id = ""
        self.leader: LeaderIs | None = None
        self.members: dict[str, tuple[str, ...]] = {}

    @property
    def own_addresses(self) -> tuple[str, ...]:
        """Of the replica that was reached."""
        return self.members.get(self.peer_id, ())

    def note(self, message: ToClient) -> None:
        if isinstance(message, Welcome):
            self.peer_id = message.peer_id
            self.members = {member.peer_id: member.addresses for member in message.members}
            self.leader = LeaderIs(message.leader, self.members.get(message.leader, ()))
        elif isinstance(message, LeaderIs):
            self.leader = message
            if message.addresses:
                self.members[message.peer_id] = message.addresses


class Overhearing:
    """A link's user, with what it hears noted on the way."""

    def __init__(self, user: LinkUser, seen: Seen) -> None:
        self._user, self._seen = user, seen

    def received(self, message: ToClient) -> None:
        self._seen.note(message)
        self._user.received(message)

    def link_closed(self, reason: str) -> None:
        self._seen.leader = None
        self._user.link_closed(reason)


class _Attempt:
    """One link, from dialling to its end."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self.link: Link | None = None
        self.welcomed = trio.Event()
        self.is_closed = False
        self.is_current = False
        self.stirred = trio.Event()  # it closed, the leader is elsewhere, or there is none (any more)
        self.move_to: LeaderIs | None = None
        self.is_leaderless = False

    def received(self, message: ToClient) -> None:
        if isinstance(message, Welcome):
            self.is_leaderless = not message.leader
            self.welcomed.set()
        elif isinstance(message, LeaderIs):
            self._leader_is(message)
        if self.is_current or isinstance(message, Welcome | LeaderIs):
            self._connector.session.received(message)

    def _leader_is(self, leader: LeaderIs) -> None:
        if self.is_leaderless != (not leader.peer_id):
            self.is_leaderless = not leader.peer_id
            self.stirred.set()
        link = self.link
        if link is not None and not link.is_local and self._connector.dialer.has_choice:
            self.move_to = leader if leader.peer_id and leader.peer_id != link.peer_id else None
            if self.move_to is not None:
                self.stirred.set()

    def link_closed(self, reason: str) -> None:
        logger.debug("link closed: %s", reason)
        self.is_closed = True
        self.welcomed.set()
        self.stirred.set()


class Connector:
    """Keeps ``session`` attached to a replica while ``run`` runs, and its deadlines kept."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        make_session: Callable[[Callable[[], None]], Session],
        clock: Callable[[], int],
        random: Random,
        hello: Hello,
    ) -> None:
        self.dialer = dialer
        self._sleep = trio.CancelScope()  # of ``_keep_time``, until the session's next deadline
        self.session = make_session(self._reschedule)
        self._clock = clock
        self._random = random
        self._hello = hello
        self.last_failure = ""

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            nursery.start_soon(self._stay_connected, nursery)

    async def _stay_connected(self, nursery: trio.Nursery) -> None:
        failures = 0
        attempt: _Attempt | None = None
        while True:
            if attempt is None:
                attempt = await self._connect(self.session.leader if failures == 0 else None, nursery)
                if attempt is None:
                    failures += 1
                    longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 10))
                    await trio.sleep(longest * (0.5 + self._random.random() / 2))
                    continue
            failures = 0
            self._use(attempt)
            attempt = await self._until_next(attempt, nursery)

    async def _connect(self, leader: LeaderIs | None, nursery: trio.Nursery) -> _Attempt | None:
        attempt = _Attempt(self)
        if leader is not None and not leader.peer_id:
            leader = None
        try:
            with trio.fail_after(WELCOME_TIMEOUT_S):
                attempt.link = await self.dialer.dial(attempt, leader, nursery)
                attempt.link.send(self._hello)
                await attempt.welcomed.wait()
        except (LinkFailed, trio.TooSlowError) as error:
            self.last_failure = str(error) or "the replica did not answer in time"
            if attempt.link is not None:
                attempt.link.close()
            return None
        return None if attempt.is_closed else attempt

    def _use(self, attempt: _Attempt) -> None:
        assert attempt.link is not None
        attempt.is_current = True
        self.session.link_up(attempt.link)

    def _leave(self, attempt: _Attempt) -> None:
        attempt.is_current = False
        self.session.link_down()
        if attempt.link is not None:
            attempt.link.close()

    async def _until_next(self, attempt: _Attempt, nursery: trio.Nursery) -> _Attempt | None:
        """Wait until this link ends (None), or a better one is ready."""
        while True:
            patience = float("inf")
            if self.dialer.has_choice and not self._is_settled():
                patience = ATTACH_TIMEOUT_S
            elif self.dialer.has_choice and attempt.is_leaderless:
                patience = LEADERLESS_TIMEOUT_S * (0.75 + self._random.random() / 2)
            with trio.move_on_after(patience) as waited:
                await attempt.stirred.wait()
            if attempt.is_closed or (waited.cancelled_caught and not self._is_settled()):
                self._leave(attempt)
                return None
            if not attempt.stirred.is_set():
                if attempt.is_leaderless and (better := await self._with_leader(nursery)) is not None:
                    self._leave(attempt)
                    return better
                continue
            attempt.stirred = trio.Event()
            await trio.sleep(self._random.random() * MOVE_JITTER_S)
            if attempt.move_to is not None and not attempt.is_closed:
                better = await self._connect(attempt.move_to, nursery)
                if better is not None:
                    self._leave(attempt)
                    return better
            if attempt.is_closed:
                attempt.stirred.set()

    async def _with_leader(self, nursery: trio.Nursery) -> _Attempt | None:
        """A link to another replica, if it knows a leader."""
        other = await self._connect(None, nursery)
        if other is not None and other.is_leaderless:
            assert other.link is not None
            other.link.close()
            return None
        return other

    def _is_settled(self) -> bool:
        return self.session.is_attached or self.session.state in (State.LOST, State.CLOSED)

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope() as self._sleep:
                self._reschedule()
                await trio.sleep_forever()
            self.session.on_time()

    def _reschedule(self) -> None:
        """The deadline moves under the sleeping task, which is not woken only to sleep on."""
        left_s = (self.session.next_deadline() - self._clock()) / 1e9
        self._sleep.deadline = trio.current_time() + max(0.0, left_s)
