"""The replica's side of the session protocol (docs/decisions/0002): links in, proposals out, answers back.

One service a replica, all of it in the engine's loop.  Links, from the same process or over a stream, only
append to ``_incoming``; the loop of ``run`` takes all that has come, so whatever arrived in one turn
becomes ONE ``propose`` and ONE ``read_index``.  Answers come from the replica's own apply (``applied``) and go to
the link that asked; the service stores none: what it forgets, the client asks again and the applied state answers.

What it keeps, all bounded: the submissions that a link waits for (``_pending``; ``_tickets`` once they are known to
wait), sent again when a leader appears and every 2 s; the opens and closes under way; the keepalives gathered
for 50 ms into one command; the queries that no leader could confirm yet.  A full table is ``Overloaded`` to
the client, never something accepted and dropped.

A client of this host whose stream has closed and whose process is proven dead (pidfd) has its sessions ended at once.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, Final, Protocol

import msgpack
import trio

from tauraft import errors
from tauraft.command_protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    Alive,
    Answer,
    AnswerKind,
    Ask,
    Attach,
    Attached,
    Call,
    Close,
    Closed,
    Credit,
    Failed,
    Gone,
    Hello,
    KeepAlive,
    LeaderIs,
    Link,
    LinkUser,
    MalformedFrame,
    MemberAddress,
    Open,
    Opened,
    RenewNow,
    Submit,
    ToClient,
    Told,
    ToReplica,
    Unwatch,
    Waiting,
    Watch,
    Welcome,
    Withdraw,
    decode_to_replica,
    encode,
)
from tauraft.fsm import Query
from tauraft.node.replica import Item, LeaderInfo, Outcome, Replica, SessionEvent, StoredState
from tauraft.payloads import encode_message
from tauraft.system import messages as system
from tauraft.transport.transport import MessageStream, StreamClosed, StreamOverloaded
from tauraft.watch_service import WatchService

logger = logging.getLogger("tauraft.command_service")

MILLISECOND_NS: Final = 1_000_000
NEVER: Final = 1 << 62
SWEEP_NS: Final = 100 * MILLISECOND_NS  # how often unanswered submissions are looked at
RETRY_NS: Final = 2000 * MILLISECOND_NS  # a forward may have been lost
GATHER_NS: Final = 50 * MILLISECOND_NS  # keepalives within this time share one command
DEFAULT_TTL_NS: Final = 10_000 * MILLISECOND_NS
MAX_PENDING: Final = 65_536
MAX_CALLS: Final = 64
MAX_PART_DEPTH: Final = 8  # of transactions in transactions: what is nested deeper is refused when applied
MAX_SESSIONS_OF_A_LINK: Final = 1024
DEATH_WATCH_S: Final = 10.0

Key = tuple[int, int]


class _ClientEnd(Protocol):
    """A link as the service sees it."""

    hello: Hello
    peer_id: str
    sessions: set[int]
    waited: int
    calls: int
    is_closed: bool
    is_of_host: bool  # it has no other replica to go to

    def deliver(self, message: ToClient) -> None: ...

    def fail(self, why: str) -> None:
        """Close it: its client broke the protocol, or reads too slowly."""


class _Pending:
    """A submission or withdrawal that a link waits for."""

    __slots__ = ("end", "is_proposed", "item", "kind", "next_try_ns", "tries")

    def __init__(self, end: _ClientEnd, item: Item, is_withdrawal: bool, now: int) -> None:
        self.end = end
        self.item = item
        self.kind = Withdraw if is_withdrawal else Submit
        self.is_proposed = False
        self.tries = 0
        self.next_try_ns = now + SWEEP_NS


class _Changing:
    """An open or close of a session under way; repeated until its event comes."""

    __slots__ = ("end", "item", "next_try_ns")

    def __init__(self, end: _ClientEnd | None, item: Item, next_try_ns: int) -> None:
        self.end = end
        self.item = item
        self.next_try_ns = next_try_ns


class CommandService:
    """Serves clients from one replica. ``run`` must be running; ``clock`` is monotonic, in ns.

    ``at_end_of_turn`` (``Engine.at_end_of_turn``) spares what links of this process say a pass of the loop.
    ``authority``: asked about each request, (peer id, action) -> why it is refused.
    """

    def __init__(
        self,
        replica: Replica,
        clock: Callable[[], int],
        *,
        max_pending: int = MAX_PENDING,
        at_end_of_turn: Callable[[Callable[[], object]], object] | None = None,
        authority: Callable[[str, str], errors.Refused | None] | None = None,
    ) -> None:
        self._at_end_of_turn = at_end_of_turn
        self._authority = authority
        self._replica = replica
        self._clock = clock
        self._max_pending = max_pending
        self._incoming: deque[tuple[_ClientEnd, ToReplica]] = deque()
        self._ends: dict[_ClientEnd, None] = {}  # in the order they came: runs of one seed are alike
        self._by_session: dict[int, _ClientEnd] = {}
        self._pending: dict[Key, _Pending] = {}
        self._tickets: dict[Key, _Pending] = {}
        self._opens: dict[bytes, _Changing] = {}
        self._closes: dict[int, _Changing] = {}
        self._asks: list[tuple[_ClientEnd, Ask]] = []
        self._asked = 0
        self._to_propose: list[Item] = []
        self._keepalives: dict[int, int] = {}
        self._keepalive_at = self._sweep_at = self._renew_at = NEVER
        self._shortest_ttl_ns = DEFAULT_TTL_NS
        self._applied = replica.applied_index
        self._wake = trio.Event()
        self._timer = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._watches = WatchService(replica)
        self._failure: Exception | None = None
        self._handlers: dict[type[Any], Callable[[Any, Any], None]] = {
            Hello: self._hello,
            Open: self._open,
            Attach: self._attach,
            Submit: self._submit,
            Withdraw: self._withdraw,
            KeepAlive: self._keep_alive,
            Close: self._close,
            Ask: self._ask,
            Call: self._call,
            Watch: self._watch,
            Credit: self._watches.credit,
            Unwatch: self._watches.unwatch,
        }

    # ---- links ----

    def connect_local(self, user: LinkUser, peer_id: str = "") -> Link:
        """A link within this process: objects, no bytes. ``user`` hears from the engine's loop only."""
        end = _LocalEnd(self, user, peer_id or self._replica.peer_id)
        self._ends[end] = None
        return end.link

    async def serve_stream(self, stream: MessageStream, *, pid: int | None = None) -> None:
        """Serve one remote client until its stream ends; whoever opened the stream closes it.

        ``pid``: of a client of this host, as the kernel says (SO_PEERCRED): its death ends its sessions at once.
        """
        end = _StreamEnd(stream, stream.peer_id)
        watch = _pidfd(pid) if stream.is_local else None
        self._ends[end] = None
        try:
            with end.scope:
                while True:
                    for frame in await stream.receive():
                        self._receive(end, decode_to_replica(frame))
        except StreamClosed:
            pass
        except MalformedFrame as error:
            logger.warning("client %s sent a malformed frame: %s", stream.peer_id, error)
        finally:
            sessions = self._forget(end)
            if watch is not None:
                if sessions and self._nursery is not None:
                    self._nursery.start_soon(self._end_if_dead, watch, sessions)
                else:
                    os.close(watch)

    def _receive(self, end: _ClientEnd, message: ToReplica) -> None:
        self._incoming.append((end, message))
        if self._at_end_of_turn is not None and self._nursery is not None and isinstance(end, _LocalEnd):
            self._at_end_of_turn(self._turn_now)
        else:
            self._wake.set()

    def _forget(self, end: _ClientEnd) -> list[int]:
        """Drop what this link waited for; its client asks again on another."""
        end.is_closed = True
        self._ends.pop(end, None)
        self._watches.forget(end)
        alone = [session for session in end.sessions if self._by_session.get(session) is end]
        for session in alone:
            del self._by_session[session]
        for table in (self._pending, self._tickets):
            for key in [key for key, pending in table.items() if pending.end is end]:
                del table[key]
        for nonce in [nonce for nonce, opening in self._opens.items() if opening.end is end]:
            del self._opens[nonce]
        waiting = [(asker, ask) for asker, ask in self._asks if asker is not end]
        self._asked -= len(self._asks) - len(waiting)
        self._asks = waiting
        return alone

    async def _end_if_dead(self, pidfd: int, sessions: Sequence[int]) -> None:
        try:
            with trio.move_on_after(DEATH_WATCH_S) as scope:
                await trio.lowlevel.wait_readable(pidfd)  # readable once the process has ended
        finally:
            os.close(pidfd)
        if scope.cancelled_caught:
            return
        for session in sessions:
            if session not in self._by_session:
                self._propose_close(None, session)
        self._wake.set()

    # ---- the loop ----

    async def run(self) -> None:
        """Until cancelled. All that came in one turn is handled together."""
        self._replica.add_listener(self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._keep_time)
                nursery.start_soon(self._watches.run)
                while True:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    if self._failure is not None:
                        raise self._failure
                    self._turn()
        finally:
            self._nursery = None
            self._replica.remove_listener(self)
            for end in list(self._ends):
                self._forget(end)
                end.fail("the replica is closing")

    def _turn_now(self) -> None:
        """Called in somebody else's task: what goes wrong is the affair of ``run``."""
        try:
            if self._failure is None:
                self._turn()
        except Exception as error:
            self._failure = error
            self._wake.set()

    def _turn(self) -> None:
        incoming = self._incoming
        for _ in range(len(incoming)):
            end, message = incoming.popleft()
            if end.is_closed:
                continue
            if not end.is_of_host and self._replica.suspension is not None:
                end.fail("this replica takes nothing at present; another one may")
            else:
                self._handlers[type(message)](end, message)
        self._flush()

    def _flush(self) -> None:
        if self._to_propose:
            items, self._to_propose = self._to_propose, []
            self._propose(items)
        if self._asks:
            asks, self._asks = self._asks, []
            self._replica.read_index(lambda index: self._confirmed(asks, index))
        self._watches.confirm()
        if self._watches.is_confirming:
            self._sweep_soon()

    def _propose(self, items: list[Item]) -> None:
        try:
            self._replica.propose(items)
        except (errors.Overloaded, errors.NoLeader, errors.Suspended):
            self._sweep_soon()  # kept in the tables; offered again
        except errors.InvalidCommand as error:
            if len(items) > 1:
                for item in items:  # find whose it is
                    self._propose([item])
                return
            key = (items[0].session, items[0].sequence)
            pending = self._pending.pop(key, None)
            if pending is not None:
                pending.end.waited -= 1
                pending.end.deliver(Failed(0, *key, errors.encode(error)))

    async def _keep_time(self) -> None:
        while True:
            due = min(self._sweep_at, self._keepalive_at, self._renew_at)
            with trio.move_on_after(max(0.0, (due - self._clock()) / 1e9)):
                await self._timer.wait()
            if self._timer.is_set():
                self._timer = trio.Event()
            now = self._clock()
            if now >= self._keepalive_at:
                self._send_keepalives()
            if now >= self._renew_at:
                self._renew_at = now + self._shortest_ttl_ns // 3 if self._by_session else NEVER
                for end in dict.fromkeys(self._by_session.values()):
                    end.deliver(RenewNow())
                self._watches.bookmark()
            if now >= self._sweep_at:
                self._sweep(now)

    def _sweep_soon(self) -> None:
        if self._sweep_at == NEVER:
            self._sweep_at = self._clock() + SWEEP_NS
            self._timer.set()

    def _sweep(self, now: int) -> None:
        """Look again at what is unanswered: it may wait, its answer may be there, its forward may be lost."""
        items = []
        for key, pending in list(self._pending.items()):
            if pending.next_try_ns > now:
                continue
            if not self._look(key, pending):
                continue
            pending.tries += 1
            pending.next_try_ns = now + min(RETRY_NS, SWEEP_NS << min(pending.tries, 8))
            if not pending.is_proposed or pending.tries % 4 == 0:
                items.append(pending.item)
        for changing in [*self._opens.values(), *self._closes.values()]:
            if changing.next_try_ns <= now:
                changing.next_try_ns = now + RETRY_NS
                items.append(changing.item)
        busy = self._pending or self._opens or self._closes or self._asks or self._watches.is_confirming
        self._sweep_at = now + SWEEP_NS if busy else NEVER
        self._to_propose += items
        self._flush()

    # ---- what clients say ----

    def _hello(self, end: _ClientEnd, hello: Hello) -> None:
        end.hello = hello
        if hello.version != PROTOCOL_VERSION:
            end.fail(f"protocol version {hello.version} is not spoken here")
        elif self._nursery is not None:
            self._nursery.start_soon(self._welcome, end)

    async def _welcome(self, end: _ClientEnd) -> None:
        members: tuple[MemberAddress, ...] = ()
        if not isinstance(end, _LocalEnd):
            try:
                told = await self._replica.call("members", {})
                members = tuple(MemberAddress(m["peer_id"], tuple(m["addresses"])) for m in map(_plain, told))
            except errors.TauraftError as error:
                logger.debug("members are not known: %s", error)
        leader = self._replica.leader
        end.deliver(
            Welcome(
                PROTOCOL_VERSION,
                self._replica.peer_id,
                self._replica.cluster_id,
                leader.peer_id if leader else "",
                members,
            )
        )
        if leader is not None:
            end.deliver(LeaderIs(leader.peer_id, leader.addresses))

    def _tell_members(self) -> None:
        """Somebody is elsewhere now: who has been linked for long would look for all of them where they were."""
        if self._nursery is not None:
            for end in self._ends:
                if end.sessions and not end.is_of_host:
                    self._nursery.start_soon(self._welcome, end)

    def _open(self, end: _ClientEnd, message: Open) -> None:
        if len(self._opens) >= MAX_SESSIONS_OF_A_LINK or len(end.sessions) >= MAX_SESSIONS_OF_A_LINK:
            end.fail("too many sessions")
            return
        hello = end.hello
        command = system.Open(
            message.nonce, message.secret_hash, message.ttl_ns, end.peer_id, hello.host, hello.pid, hello.label or None
        )
        item = _system_item(command)
        self._opens[message.nonce] = _Changing(end, item, self._clock() + RETRY_NS)
        self._shortest_ttl_ns = min(self._shortest_ttl_ns, max(message.ttl_ns, 300 * MILLISECOND_NS))
        self._to_propose.append(item)
        self._sweep_soon()

    def _attach(self, end: _ClientEnd, message: Attach) -> None:
        self._replica.when_applied(message.seen_index, lambda: self._attach_now(end, message))

    def _attach_now(self, end: _ClientEnd, message: Attach) -> None:
        if end.is_closed:
            return
        if not self._replica.may_attach(message.session, message.secret, end.peer_id):
            end.deliver(Gone(message.session))
            return
        end.sessions.add(message.session)
        self._by_session[message.session] = end
        if self._renew_at == NEVER:
            self._renew_at = self._clock() + self._shortest_ttl_ns // 3
            self._timer.set()
        end.deliver(Attached(message.session, self._replica.applied_index))

    def _is_attached(self, end: _ClientEnd, session: int) -> bool:
        if session in end.sessions:
            return True
        end.fail("a session is used that is not attached")
        return False

    def _submit(self, end: _ClientEnd, message: Submit) -> None:
        if not self._is_attached(end, message.session):
            return
        refusal = self._refusal(end, "submit", message.payload, message.message)
        if refusal is not None:
            end.deliver(Failed(0, message.session, message.sequence, errors.encode(refusal)))
            return
        item = Item(
            message.session, message.sequence, message.acked_below, message.wait_ns, message.payload, message.message
        )
        self._take(end, item, is_withdrawal=False)

    def _refusal(
        self, end: _ClientEnd, verb: str, payload: bytes, message: Any, depth: int = 0
    ) -> errors.Refused | None:
        """Why plugins forbid it, if they do; of what runs others, they are asked about each of these."""
        if self._authority is None or depth > MAX_PART_DEPTH:  # nested deeper it is not run
            return None
        try:
            message = self._replica.decode(payload) if message is None else message
            parts = [part for field in message.encoded_parts for part in getattr(message, field)]
        except errors.InvalidCommand:
            return None  # refused as that, on its further way
        if message.fsm != system.SYSTEM:
            refusal = self._authority(end.peer_id, f"{verb}:{message.fsm}/{message.tag}")
            if refusal is not None:
                return refusal
        return next(filter(None, (self._refusal(end, verb, part, None, depth + 1) for part in parts)), None)

    def _withdraw(self, end: _ClientEnd, message: Withdraw) -> None:
        if not self._is_attached(end, message.session):
            return
        item = _system_item(system.Withdraw(message.session, message.sequence, message.acked_below))
        self._take(end, item, is_withdrawal=True, key=(message.session, message.sequence))

    def _take(self, end: _ClientEnd, item: Item, *, is_withdrawal: bool, key: Key | None = None) -> None:
        key = key or (item.session, item.sequence)
        replaced = self._pending.pop(key, None) or self._tickets.pop(key, None)
        if replaced is not None:
            replaced.end.waited -= 1
        pending = _Pending(end, item, is_withdrawal, self._clock())
        suspension = self._replica.suspension
        if suspension is not None:
            end.deliver(Failed(0, *key, errors.encode(suspension.error())))
            return
        if len(self._pending) + len(self._tickets) >= self._max_pending:
            full = errors.Overloaded("this replica has too many unanswered commands", retry_after=0.25)
            end.deliver(Failed(0, *key, errors.encode(full)))
            return
        end.waited += 1
        self._pending[key] = pending
        if self._look(key, pending):
            pending.is_proposed = True
            self._to_propose.append(item)
            self._sweep_soon()

    def _look(self, key: Key, pending: _Pending) -> bool:
        """Answer it from the applied state where that is possible. True: it is to be proposed."""
        try:
            stored = self._replica.stored(*key)
        except errors.SessionLost:
            self._drop(key)
            pending.end.deliver(Gone(key[0]))
            return False
        if isinstance(stored, Outcome):
            if pending.kind is Withdraw and stored.kind is AnswerKind.VALUE:
                return True
            self._drop(key)
            pending.end.deliver(Answer(*key, self._replica.applied_index, stored.kind, stored.data))
            return False
        if stored is StoredState.WAITING and pending.kind is Submit:
            del self._pending[key]
            self._tickets[key] = pending
            pending.end.deliver(Waiting(*key, self._replica.applied_index))
            return False
        if stored is StoredState.BELOW_FLOOR:
            self._drop(key)  # its client has said that it does not want it
            return False
        return True

    def _drop(self, key: Key) -> None:
        pending = self._pending.pop(key, None) or self._tickets.pop(key, None)
        if pending is not None:
            pending.end.waited -= 1

    def _keep_alive(self, end: _ClientEnd, message: KeepAlive) -> None:
        if not self._is_attached(end, message.session):
            return
        self._keepalives[message.session] = max(message.serial, self._keepalives.get(message.session, 0))
        if len(self._keepalives) == len(self._by_session):
            self._send_keepalives()  # of all that are attached here
        elif self._keepalive_at == NEVER:
            self._keepalive_at = self._clock() + GATHER_NS
            self._timer.set()

    def _send_keepalives(self) -> None:
        renewed, self._keepalives = self._keepalives, {}
        self._keepalive_at = NEVER
        if renewed:
            keepalive = system.KeepAlive(tuple(sorted(renewed.items())))
            self._to_propose.append(_system_item(keepalive, wait_ns=self._shortest_ttl_ns // 20))
            self._flush()  # lost with its forward: the client says it again

    def _close(self, end: _ClientEnd, message: Close) -> None:
        if self._is_attached(end, message.session):
            self._propose_close(end, message.session)

    def _propose_close(self, end: _ClientEnd | None, session: int) -> None:
        item = _system_item(system.Close(session))
        self._closes[session] = _Changing(end, item, self._clock() + RETRY_NS)
        self._to_propose.append(item)
        self._sweep_soon()

    # ---- queries and calls ----

    def _ask(self, end: _ClientEnd, ask: Ask) -> None:
        if self._asked >= self._max_pending:
            self._fail_request(
                end, ask.request, errors.Overloaded("too many queries are unanswered here", retry_after=0.25)
            )
            return
        suspension = self._replica.suspension
        if suspension is not None and not (suspension.serves_stale and ask.consistency == "stale"):
            self._fail_request(end, ask.request, suspension.error())
            return
        refusal = self._refusal(end, "query", ask.payload, ask.message)
        if refusal is not None:
            self._fail_request(end, ask.request, refusal)
            return
        self._asked += 1
        if ask.consistency == "stale":
            self._replica.when_applied(ask.seen_index, lambda: self._serve(end, ask))
        else:
            # "lease" is served linearizable until the cluster has committed lease reads (SAFETY 19).
            self._asks.append((end, ask))

    def _confirmed(self, asks: list[tuple[_ClientEnd, Ask]], index: int | None) -> None:
        suspension = self._replica.suspension
        if index is None and suspension is not None:
            self._asked -= len(asks)
            for end, ask in asks:
                self._fail_request(end, ask.request, suspension.error())
            return
        if index is None:
            self._asks += [(end, ask) for end, ask in asks if not end.is_closed]
            self._asked -= sum(end.is_closed for end, _ in asks)
            self._sweep_soon()
            return
        for end, ask in asks:
            self._replica.when_applied(ask.seen_index, lambda end=end, ask=ask: self._serve(end, ask))  # type: ignore[misc]

    def _serve(self, end: _ClientEnd, ask: Ask) -> None:
        self._asked -= 1
        if end.is_closed:
            return
        replica = self._replica
        try:
            query = ask.message if ask.message is not None else replica.decode(ask.payload)
            if not isinstance(query, Query):
                raise errors.InvalidCommand(f"{type(query).__name__} is no query; submit it")
            data = replica.encode_answer(query, replica.answer(query))
        except errors.TauraftError as error:
            self._fail_request(end, ask.request, error)
        except Exception as error:  # the edge of a request: a plugin's bug must not end the service
            logger.exception("a query failed")
            self._fail_request(
                end, ask.request, errors.CommandFailed(f"the query's handler raised {type(error).__name__}")
            )
        else:
            end.deliver(Told(ask.request, replica.applied_index, data))

    def _fail_request(self, end: _ClientEnd, request: int, error: errors.TauraftError) -> None:
        end.deliver(Failed(request, 0, 0, errors.encode(error)))

    def _watch(self, end: _ClientEnd, watch: Watch) -> None:
        refusal = None if self._authority is None else self._authority(end.peer_id, f"watch:{watch.table}")
        if refusal is not None:
            self._fail_request(end, watch.watch, refusal)
        else:
            self._watches.watch(end, watch)

    def _call(self, end: _ClientEnd, call: Call) -> None:
        if end.calls >= MAX_CALLS or self._nursery is None:
            self._fail_request(end, call.request, errors.Overloaded("too many calls are under way", retry_after=1.0))
            return
        if self._authority is not None:
            refusal = self._authority(end.peer_id, f"call:{call.method}")
            if refusal is not None:
                self._fail_request(end, call.request, refusal)
                return
        end.calls += 1
        self._nursery.start_soon(self._run_call, end, call)

    async def _run_call(self, end: _ClientEnd, call: Call) -> None:
        try:
            told = await self._replica.call(call.method, dict(call.arguments))
            data = msgpack.packb(told, default=_plain)
        except errors.TauraftError as error:
            self._fail_request(end, call.request, error)
        except Exception as error:  # the edge of a request
            logger.exception("the call %s failed", call.method)
            failed = errors.CommandFailed(f"{call.method} raised {type(error).__name__}", outcome="unknown")
            self._fail_request(end, call.request, failed)
        else:
            if len(data) > MAX_FRAME_BYTES - 1024:
                self._fail_request(end, call.request, errors.TooLarge("the answer is too large for one message"))
            else:
                end.deliver(Told(call.request, self._replica.applied_index, data))
        finally:
            end.calls -= 1

    # ---- what the replica says (ReplicaListener) ----

    def applied(self, index: int, outcomes: Sequence[Outcome], events: Sequence[SessionEvent]) -> None:
        pending_of, tickets = self._pending, self._tickets
        for outcome in outcomes:
            key = (outcome.session, outcome.sequence)
            pending = pending_of.get(key) or tickets.get(key)
            if pending is None:
                continue
            if pending.kind is Withdraw and outcome.kind is AnswerKind.VALUE:
                continue  # the grant that the withdrawal, still on its way, undoes
            pending_of.pop(key, None)
            tickets.pop(key, None)
            pending.end.waited -= 1
            pending.end.deliver(Answer(*key, index, outcome.kind, outcome.data))
        for event in events:
            if event.kind == "announced":
                self._tell_members()
            else:
                self._session_event(index, event)
        self._watches.applied()
        is_gap, self._applied = index > self._applied + 1, index
        if is_gap:
            self._look_again()

    def _look_again(self) -> None:
        """A snapshot took the place of entries: what they answered, and whom they ended, was told to nobody."""
        for session in list(self._by_session):
            try:
                self._replica.stored(session, 0)
            except errors.SessionLost:
                self._session_event(self._applied, SessionEvent("ended", session))
        self._pending |= self._tickets
        self._tickets = {}
        for pending in self._pending.values():
            pending.next_try_ns = 0
        self._sweep_soon()

    def _session_event(self, index: int, event: SessionEvent) -> None:
        end = self._by_session.get(event.session)
        if event.kind == "renewed":
            if end is not None:
                end.deliver(Alive(event.session, event.serial))
        elif event.kind == "opened":
            opening = self._opens.pop(event.nonce, None)
            if opening is not None and opening.end is not None:
                opening.end.deliver(Opened(event.nonce, event.session, index))
        else:
            closing = self._closes.pop(event.session, None)
            if end is not None:
                for table in (self._pending, self._tickets):
                    for key in [key for key in table if key[0] == event.session]:
                        self._drop(key)
                del self._by_session[event.session]
                end.sessions.discard(event.session)
            asker = closing.end if closing is not None else None
            if asker is not None:
                asker.deliver(Closed(event.session))
            elif end is not None:
                end.deliver(Gone(event.session))

    def leader_changed(self, leader: LeaderInfo | None) -> None:
        says = LeaderIs(leader.peer_id, leader.addresses) if leader is not None else LeaderIs("", ())
        for end in list(self._ends):
            end.deliver(says)
        if leader is not None:
            # What was forwarded to the one before may be lost with it.
            for pending in self._pending.values():
                pending.is_proposed = True
                self._to_propose.append(pending.item)
            self._to_propose += [c.item for c in (*self._opens.values(), *self._closes.values())]
            self._wake.set()


class _LocalEnd:
    """The service's end of a link inside the process."""

    def __init__(self, service: CommandService, user: LinkUser, peer_id: str) -> None:
        self.hello = Hello(PROTOCOL_VERSION, "", "", 0)
        self.peer_id = peer_id
        self.sessions: set[int] = set()
        self.waited = self.calls = 0
        self.is_closed = False
        self.is_of_host = True
        self.service = service
        self.link = _LocalLink(self)
        self._user = user

    def deliver(self, message: ToClient) -> None:
        if not self.is_closed:
            self._user.received(message)

    def fail(self, why: str) -> None:
        was_open = not self.is_closed
        self.service._forget(self)
        if was_open or why:
            self._user.link_closed(why)


class _LocalLink:
    is_local = is_of_host = True

    def __init__(self, end: _LocalEnd) -> None:
        self._end = end
        self._service = end.service

    @property
    def peer_id(self) -> str:
        return self._service._replica.peer_id

    def send(self, message: ToReplica) -> None:
        if not self._end.is_closed:
            self._service._receive(self._end, message)

    def close(self) -> None:
        self._service._forget(self._end)


class _StreamEnd:
    """The service's end of a link over a stream. The stream's queue is bounded: who does not read his answers is cut off."""

    def __init__(self, stream: MessageStream, peer_id: str) -> None:
        self.hello = Hello(PROTOCOL_VERSION, "", "", 0)
        self.peer_id = peer_id
        self.sessions: set[int] = set()
        self.waited = self.calls = 0
        self.is_closed = False
        self.is_of_host = stream.is_local
        self.scope = trio.CancelScope()
        self._stream = stream

    def deliver(self, message: ToClient) -> None:
        if self.is_closed:
            return
        try:
            self._stream.send(encode(message))
        except StreamClosed:
            self.is_closed = True
            self.scope.cancel()
        except StreamOverloaded:
            self.fail("it does not read its answers")

    def fail(self, why: str) -> None:
        if not self.is_closed:
            logger.warning("the link of %s is closed: %s", self.peer_id or "a local client", why)
        self.is_closed = True
        self.scope.cancel()


def _system_item(command: Any, wait_ns: int = 0) -> Item:
    return Item(0, 0, 0, wait_ns, encode_message(command), command)


def _plain(value: Any) -> Any:
    """What a call returned, as msgpack takes it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _pidfd(pid: int | None) -> int | None:
    if pid is None or pid == os.getpid() or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # gone already, or not ours to see: it expires
        return None
