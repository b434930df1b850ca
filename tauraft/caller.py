"""One facade's way into the engine: its life, its session, and each of its calls, for loops and for threads.

``AsyncCaller`` and ``Caller`` differ only in how they wait; what is sent, when, and what is undone is the same code.
Encoding and decoding happen in the caller's frame, so a value that cannot be sent raises there, with nothing sent.

The engine's side of a facade is one task, ``_serve``: it enters the *host* (whatever gives a way to a replica: this
process's own node, the host's socket, addresses), keeps the session on it through a ``Connector``, and at
the end closes the session first, so that all it holds is free at once, then leaves the host.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

import msgpack
import trio

from tauraft import engine, errors
from tauraft.bridge import Bodies, Completions, Feed, Mailbox, Reply, SignalState, mailbox_here, run_apart
from tauraft.client import Connector, Dialer
from tauraft.command_protocol import PROTOCOL_VERSION, Hello
from tauraft.engine import Engine
from tauraft.fsm import Command, Query
from tauraft.handle import RaftStanding, Reminder
from tauraft.payloads import decode_answer, encode_message
from tauraft.session import NEVER, Request, Session, Step, Submission, margin_ns
from tauraft.system.messages import Transaction
from tauraft.watch import WINDOW_BYTES, Subscription, WatchRequest

R = TypeVar("R")

CLOSE_TIMEOUT_S: Final = 5.0
BODIES_TIMEOUT_S: Final = 1.0
_NEW, _STARTING, _RUNNING, _CLOSED = "new", "starting", "running", "closed"


class Host(Protocol):
    """What a started facade stands on."""

    @property
    def dialer(self) -> Dialer: ...

    @property
    def problem(self) -> BaseException | None:
        """Why it will never serve (a wrong key, a lost directory); None as long as there is hope."""

    @property
    def trouble(self) -> str:
        """Why it does not serve at the moment, in a clause for an error; empty while it does, or where nobody knows."""


HostManager: TypeAlias = AbstractAsyncContextManager[Host]
OpenHost: TypeAlias = Callable[[Engine], HostManager]
OpenKept: TypeAlias = Callable[[Engine], "AbstractAsyncContextManager[KeptHost]"]


class EngineTenure:
    """See ``tauraft.handle.Tenure``. Renewed in the engine's loop; looked at from anywhere."""

    def __init__(self, caller: _CallerCore, ttl_ns: int | None, started_ns: int, renewal: Command[Any] | None) -> None:
        self.state = SignalState(caller.completions)
        self._caller = caller
        self._session = caller.session
        self._ttl_ns = ttl_ns
        self._deadline_ns = NEVER if ttl_ns is None else started_ns + ttl_ns - margin_ns(ttl_ns)
        self._renewal = renewal
        self._payload = b"" if renewal is None else encode_message(renewal)
        self._has_ended = False
        self._stirred: trio.Event | None = None
        self._awaits = False
        self._awaited: Submission | None = None  # what ends it when it is answered
        self._end_hook = self._lose
        caller.holds_ended.add_hook(self._end_hook)
        if ttl_ns is not None:
            caller.engine.post(lambda _: caller.engine.spawn(self._watch, lambda result, error: None), None)

    @property
    def deadline_ns(self) -> int:
        return min(self._deadline_ns, self._session.deadline_ns)

    @property
    def deadline(self) -> float:
        return self.deadline_ns / 1e9

    def remaining(self) -> float:
        left = (self.deadline_ns - self._caller.now_ns()) / 1e9
        return min(0.0, left) if self.state.is_set or self._caller.is_forked else left

    @property
    def is_lost(self) -> bool:
        if self.state.is_set or self._caller.is_forked:
            return True
        return not self._has_ended and self._caller.now_ns() >= self.deadline_ns

    def restart(self, *, ttl: float, started: float) -> None:
        assert self._ttl_ns is not None
        self._ttl_ns = int(ttl * 1e9)
        if not self.is_lost:
            self._deadline_ns = int(started * 1e9) + self._ttl_ns - margin_ns(self._ttl_ns)
        self._stir()

    def end(self) -> None:
        self._has_ended = True
        self._caller.holds_ended.remove_hook(self._end_hook)
        if self._ttl_ns is not None:
            self._stir()
        if self._awaits:
            self._caller.post_if_open(self._await_no_more, None)

    def lose(self) -> None:
        self._caller.post_if_open(lambda _: self._lose(), None)  # closed: it is lost

    def lose_when(self, command: Command[Any]) -> None:
        self._awaits = True
        self._caller.post_if_open(self._await, (encode_message(command), command))

    def body_begins(self) -> None:
        self._caller.bodies.begin()

    def body_ended(self) -> None:
        self._caller.bodies.end()

    def _await(self, arguments: tuple[bytes, Command[Any]]) -> None:
        if self._has_ended or self.state.is_set:
            return

        def done(data: bytes | None, error: BaseException | None) -> None:
            self._awaited = None
            if error is None or isinstance(error, errors.Refused):
                self._lose()

        try:
            self._awaited = self._session.submit(*arguments, waits=True, timeout_ns=None, plain_timeout_ns=0, done=done)
        except errors.TauraftError:
            self._lose()  # nobody would tell it: better stopped than left on

    def _await_no_more(self, _: None) -> None:
        if self._awaited is not None:
            self._session.abandon(self._awaited)

    def _stir(self) -> None:
        self._caller.engine.post(lambda _: self._stirred.set() if self._stirred is not None else None, None)

    def _lose(self) -> None:
        if not self._has_ended:
            self.state.set()

    async def _watch(self) -> None:
        """Renew at a third of the ttl, until it has ended or its deadline passes."""
        assert self._ttl_ns is not None
        self._stirred = trio.Event()
        renew_at = self._deadline_ns + margin_ns(self._ttl_ns) - self._ttl_ns * 2 // 3 if self._renewal else NEVER
        while not self._has_ended and not self.state.is_set:
            now = self._caller.now_ns()
            if now >= self._deadline_ns:
                self._lose()
                return
            if now >= renew_at:
                renew_at = now + self._ttl_ns // 3
                self._renew(now)
            with trio.move_on_after((min(renew_at, self._deadline_ns) - now) / 1e9):
                await self._stirred.wait()
            if self._stirred.is_set():
                self._stirred = trio.Event()

    def _renew(self, sent_ns: int) -> None:
        assert self._ttl_ns is not None
        ttl_ns = self._ttl_ns

        def done(data: bytes | None, error: BaseException | None) -> None:
            if error is None:
                if self._caller.now_ns() < self._deadline_ns:  # never renewed past its own deadline (SAFETY 16)
                    self._deadline_ns = max(self._deadline_ns, sent_ns + ttl_ns - margin_ns(ttl_ns))
            elif isinstance(error, errors.Refused):
                self._deadline_ns = min(self._deadline_ns, self._caller.now_ns())
                if self._stirred is not None:
                    self._stirred.set()

        try:
            self._session.submit(
                self._payload, self._renewal, waits=False, timeout_ns=ttl_ns, plain_timeout_ns=ttl_ns, done=done
            )
        except errors.TauraftError:
            pass  # lost, closed or overloaded: the deadline decides


class _CallerCore:
    """What both callers share. Public methods are for any thread but the engine's."""

    def __init__(self, open_host: OpenHost, *, timeout: float, session_ttl: float, label: str | None) -> None:
        self.timeout = timeout
        self.session_ttl = session_ttl
        self.host: Host | None = None
        self.phase = _NEW
        self.failure: BaseException | None = None
        self._is_released = False
        self._open_host = open_host
        self._hello = Hello(PROTOCOL_VERSION, label or "", socket.gethostname(), os.getpid())
        self.own_engine: Engine | None = None  # in place of the process's: whoever gives it stops it
        self._engine: Engine | None = None
        self._session: Session | None = None
        self.connector: Connector | None = None
        self.session_lost = SignalState(None)
        self.holds_ended = SignalState(
            None
        )  # lost with the session, or given back by closing: nothing is held from here on
        self._standing = RaftStanding(False, SignalState(None))
        self.bodies = Bodies(self.post_if_open)
        self._closing: trio.Event | None = None
        self._opened: list[Reply] = []
        self._plain_ns = int(timeout * 1e9)

    # ---- what handles look at ----

    @property
    def engine(self) -> Engine:
        self._must_be_open()
        assert self._engine is not None
        return self._engine

    @property
    def session(self) -> Session:
        self._must_be_open()
        assert self._session is not None
        return self._session

    @property
    def completions(self) -> Completions:
        return self.engine.completions

    @property
    def has_begun(self) -> bool:
        return self.phase != _NEW

    @property
    def is_open(self) -> bool:
        return self.phase in (_STARTING, _RUNNING)

    @property
    def has_ended(self) -> bool:
        return self.phase == _CLOSED

    @property
    def is_forked(self) -> bool:
        """This is a child's copy: what the parent holds is the parent's."""
        return self._engine is not None and self._engine.is_poisoned

    def _must_be_open(self) -> None:
        if self.phase == _CLOSED:
            if self.failure is not None:
                raise errors.Shutdown(f"this object stopped: {self.failure}; nothing was sent") from self.failure
            raise errors.AlreadyClosed("this object was closed; nothing was sent, make a new one")
        if self.phase == _NEW or self._engine is None:
            raise errors.Shutdown("not started yet: use `with`, or call start(); nothing was sent")
        self._engine.must_be_usable()

    @property
    def _trouble(self) -> str:
        return "" if self.host is None else self.host.trouble

    def _no_leader(self, timeout: float | None) -> BaseException:
        if self.host is not None and self.host.problem is not None:
            return self.host.problem
        problem = self._trouble or ("" if self.connector is None else self.connector.last_failure)
        return errors.NoLeader(
            f"no leader and session within {timeout:g} s{': ' + problem if problem else ''}; all is closed again"
        )

    def whoami(self) -> tuple[str, str, int, str | None]:
        self._must_be_open()
        hello = self._hello
        return self.session.replica, hello.host, hello.pid, hello.label or None

    def now_ns(self) -> int:
        assert self._engine is not None
        now: int = self._engine.clock.boottime_ns()
        return now

    def now(self) -> float:
        """Raises Shutdown and its kinds: what begins with a look at the clock goes no further than what begins with a command."""
        self._must_be_open()
        return self.now_ns() / 1e9

    def place(self) -> tuple[str, bool]:
        return self.session.place

    def raft_standing(self) -> RaftStanding:
        self._must_be_open()
        return self._standing

    def tenure(self, *, ttl: float | None, started: float, renewal: Command[Any] | None) -> EngineTenure:
        return EngineTenure(self, None if ttl is None else int(ttl * 1e9), int(started * 1e9), renewal)

    def submit_soon(self, command: Command[Any]) -> None:
        if self.phase == _RUNNING:
            self.engine.post(self._begin_unwatched, (encode_message(command), command))

    # ---- in the engine's loop ----

    def _begin_unwatched(self, arguments: tuple[bytes, Command[Any]]) -> None:
        payload, command = arguments
        if self._session is not None:
            try:
                # No time-out: it is said until the cluster has heard it, or the session ends and frees all the same.
                self._session.submit(
                    payload,
                    command,
                    waits=False,
                    timeout_ns=NEVER // 2,
                    plain_timeout_ns=0,
                    done=lambda data, error: None,
                )
            except errors.TauraftError:
                pass

    def _begin_submit(self, reply: Reply) -> None:
        payload, command, waits, timeout_ns, reminder = reply.arguments
        assert self._session is not None
        remind = None if reminder is None else (int(reminder.after * 1e9), lambda: self._remind(reply, reminder))
        try:
            reply.held = self._session.submit(
                payload,
                command,
                waits=waits,
                timeout_ns=timeout_ns,
                plain_timeout_ns=self._plain_ns,
                done=reply.complete,
                remind=remind,
            )
        except errors.TauraftError as error:
            reply.complete(None, error)

    def _remind(self, reply: Reply, reminder: Reminder) -> None:
        """The wait lasts: ask what its caller wants to know of it, and tell it if it still waits then."""
        session = self._session
        assert session is not None
        query = reminder.ask(session.id)

        def done(data: bytes | None, error: BaseException | None) -> None:
            if data is not None and not reply.is_done and reply.held.step is Step.SENT:
                answer = decode_answer(query, data)
                run_apart([lambda: reminder.tell(answer)])

        try:
            session.ask(encode_message(query), query, consistency="linearizable", timeout_ns=self._plain_ns, done=done)
        except errors.TauraftError:
            pass  # it is about to be told of that itself

    def _begin_query(self, reply: Reply) -> None:
        payload, query, consistency, timeout_ns = reply.arguments
        assert self._session is not None
        try:
            reply.held = self._session.ask(
                payload, query, consistency=consistency, timeout_ns=timeout_ns, done=reply.complete
            )
        except errors.TauraftError as error:
            reply.complete(None, error)

    def _begin_call(self, reply: Reply) -> None:
        method, arguments, timeout_ns = reply.arguments
        assert self._session is not None
        try:
            reply.held = self._session.call(method, arguments, timeout_ns=timeout_ns, done=reply.complete)
        except errors.TauraftError as error:
            reply.complete(None, error)

    def _begin_watch(self, reply: Reply) -> None:
        assert self._session is not None
        try:
            self._session.watch(reply.arguments, lambda error: reply.complete(None, error))
        except errors.TauraftError as error:
            reply.complete(None, error)

    def _end_watch(self, subscription: Subscription) -> None:
        if self._session is not None:
            self._session.unwatch(subscription)

    def _abandon(self, reply: Reply) -> None:
        if self._session is None:
            return
        if isinstance(reply.held, Submission):
            self._session.abandon(reply.held)
        elif isinstance(reply.held, Request):
            self._session.forget(reply.held)

    def _taken(self, reply: Reply) -> None:
        if self._session is not None and isinstance(reply.held, Submission):
            self._session.taken(reply.held)

    def _begin_start(self, reply: Reply) -> None:
        self._opened.append(reply)
        assert self._engine is not None
        self._closing = trio.Event()
        self._engine.spawn(self._serve, self._served)

    def _give_up_start(self, reply: Reply) -> None:
        if self._closing is not None:
            self._closing.set()

    def _begin_close(self, reply: Reply) -> None:
        if self._closing is None or self.phase == _CLOSED:
            reply.complete(None, None)
            return
        self._opened.append(reply)
        # Before the cluster hears of it: whoever still works under a hold must find it gone first.
        self.holds_ended.set()
        self._closing.set()

    def _has_opened(self) -> None:
        self.phase = _RUNNING
        opened, self._opened = self._opened, []
        for reply in opened:
            reply.complete(None, None)

    def _served(self, result: Any, error: BaseException | None) -> None:
        """The task has ended: whoever waits for the start or the end of it is told."""
        self.phase = _CLOSED
        self.failure = error
        waiting, self._opened = self._opened, []
        for reply in waiting:
            reply.complete(None, error)
        self._standing.changed.set()
        # Nothing renews them any more, whatever the session's deadline says.
        self.holds_ended.set()
        if self._session is None:
            return
        if error is None:
            self._session.stop()
        else:
            self._session.stop(errors.Shutdown, f"this object stopped: {error}")

    async def _serve(self) -> None:
        assert self._engine is not None and self._closing is not None
        random = Random(self._engine.entropy(16))
        async with self._open_host(self._engine) as host:
            self.host = host
            self.connector = Connector(
                host.dialer, make_session=self._make_session, clock=self.now_ns, random=random, hello=self._hello
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.connector.run)
                await self._closing.wait()
                # Told already. Whoever does not end in time has its token against it, as when it is asleep.
                with trio.move_on_after(BODIES_TIMEOUT_S):
                    await self.bodies.have_ended()
                await self._end_session()
                nursery.cancel_scope.cancel()

    def _make_session(self, reschedule: Callable[[], None]) -> Session:
        assert self._engine is not None
        self._session = Session(
            ttl_ns=int(self.session_ttl * 1e9),
            clock=self.now_ns,
            random_bytes=self._engine.entropy,
            on_open=self._has_opened,
            on_lost=self._session_was_lost,
            on_leader=self._leader_may_be_another,
            reschedule=reschedule,
            trouble=lambda: self._trouble,
        )
        return self._session

    def _leader_may_be_another(self, leader: str, here: str) -> None:
        if (leader == here) != self._standing.leads:
            before, self._standing = self._standing, RaftStanding(leader == here, SignalState(self.completions))
            before.changed.set()

    def _session_was_lost(self) -> None:
        self.holds_ended.set()
        self.session_lost.set()

    async def _end_session(self) -> None:
        assert self._session is not None
        closed = trio.Event()
        self._session.close(closed.set)
        # One that is not attached has nobody to ask; what it opened expires.
        with trio.move_on_after(CLOSE_TIMEOUT_S / 2 if self._session.is_attached else 0):
            await closed.wait()

    # ---- in the caller's frame ----

    def _reply(self, engine_: Engine, mailbox: Mailbox | None, arguments: Any, *, may_wait: bool = False) -> Reply:
        return Reply(
            mailbox,
            engine_.post,
            engine_.post_lazily,
            engine_.completions,
            self._abandon,
            self._taken if may_wait else None,
            arguments,
        )

    def _submission(
        self,
        engine_: Engine,
        mailbox: Mailbox | None,
        command: Command[Any],
        timeout: float | None,
        reminder: Reminder | None,
    ) -> Reply:
        if not isinstance(command, Command):
            raise TypeError(f"submit takes a Command, not {type(command).__name__}")
        waits: bool | None = getattr(type(command), "waits", None)
        timeout_ns = None if timeout is None else int(timeout * 1e9)
        _check_room(engine_)
        arguments = (encode_message(command), command, waits, timeout_ns, reminder)
        return self._reply(engine_, mailbox, arguments, may_wait=waits is not False)

    def _question(
        self, engine_: Engine, mailbox: Mailbox | None, query: Query[Any], consistency: str, timeout: float | None
    ) -> Reply:
        if not isinstance(query, Query):
            raise TypeError(f"query takes a Query, not {type(query).__name__}")
        if consistency not in ("linearizable", "lease", "stale"):
            raise errors.InvalidArgument(
                f"consistency is {consistency!r}; it is linearizable, lease or stale; nothing was sent",
                option="consistency",
            )
        _check_room(engine_)
        timeout_ns = self._plain_ns if timeout is None else int(timeout * 1e9)
        return self._reply(engine_, mailbox, (encode_message(query), query, consistency, timeout_ns))

    def _administration(
        self, engine_: Engine, mailbox: Mailbox | None, method: str, arguments: Mapping[str, Any], timeout: float | None
    ) -> Reply:
        timeout_ns = self._plain_ns if timeout is None else int(timeout * 1e9)
        return self._reply(engine_, mailbox, (method, dict(arguments), timeout_ns))

    def _subscription(self, engine_: Engine, mailbox: Mailbox | None, request: WatchRequest) -> Reply:
        _check_room(engine_)

        def make_feed(taken: Callable[[int], object]) -> Feed:
            owed = 0

            def tell(size: int) -> None:
                nonlocal owed
                owed += size
                if owed < WINDOW_BYTES // 4:
                    engine_.post_lazily(taken, size)  # the replica has credit left: no need to wake anyone
                else:
                    owed = 0
                    engine_.post(taken, size)

            return Feed(engine_.completions, tell)

        return self._reply(engine_, mailbox, Subscription(request, make_feed))

    def _opened_watch(self, reply: Reply) -> Subscription:
        if not reply.is_done:
            raise errors.NoLeader(f"no leader confirmed the watch within {self.timeout:g} s; it was not begun")
        if reply.error is not None:
            raise reply.error
        subscription: Subscription = reply.arguments
        return subscription

    def close_watch(self, subscription: Subscription) -> None:
        """Any thread. Nothing comes any more; twice is fine."""
        self.post_if_open(self._end_watch, subscription)

    def post_if_open(self, call: Callable[[Any], object], argument: Any) -> None:
        """Any thread: what is moot once this has ended, and never raises."""
        if self._engine is not None and not self._engine.is_poisoned:
            self._engine.post(call, argument)

    def _prepare_start(self) -> None:
        if self.phase == _CLOSED:
            raise errors.AlreadyClosed("this object was closed; it cannot be started again, make a new one")
        if self.phase != _NEW:
            raise errors.Shutdown("this object was started already")
        self.phase = _STARTING
        self._engine = engine.acquire(self) if self.own_engine is None else self.own_engine
        self.session_lost = SignalState(self._engine.completions)
        self.holds_ended = SignalState(self._engine.completions)
        self._standing = RaftStanding(False, SignalState(self._engine.completions))

    def _release(self) -> None:
        self.phase = _CLOSED
        engine_ = self._engine
        if engine_ is not None and not engine_.is_poisoned and not self._is_released:
            self._is_released = True
            if engine_ is not self.own_engine:
                engine.release(self, engine_)

    def close_at_exit(self) -> None:
        """Interpreter exit: leave cleanly, so that what is held goes to the next at once."""
        raise NotImplementedError

    def _start_reply(self, mailbox: Mailbox | None) -> Reply:
        engine_ = self._engine
        assert engine_ is not None
        return Reply(mailbox, engine_.post, engine_.post_lazily, engine_.completions, self._give_up_start, None, None)


def _transaction(commands: Sequence[Command[Any]]) -> Transaction:
    for command in commands:
        if not isinstance(command, Command):
            raise TypeError(f"transaction takes Commands, not {type(command).__name__}")
    if not commands:
        raise errors.InvalidArgument("a transaction needs at least one command; nothing was sent", option="commands")
    return Transaction(tuple(encode_message(command) for command in commands))


def _check_room(engine_: Engine) -> None:
    if engine_.is_full:
        raise errors.Overloaded("the engine's queue is full; nothing was sent, try again later", retry_after=0.1)


def _unpacked(data: bytes) -> Any:
    return msgpack.unpackb(data, use_list=False)


class KeptHost(Protocol):
    """What a facade without a session keeps open: a node."""

    @property
    def is_settled(self) -> trio.Event:
        """Set once it can be used."""


class _HostOnly:
    """Mixed into a caller that keeps a host open, and has no session on it."""

    kept: Any = None

    async def _serve(self: Any) -> None:
        async with self._open_host(self._engine) as self.kept:
            await self.kept.is_settled.wait()
            self._has_opened()
            await self._closing.wait()


class AsyncCaller(_CallerCore):
    """For tasks of asyncio and trio."""

    async def start(self, timeout: float | None) -> None:
        self._prepare_start()
        mailbox = mailbox_here()
        reply = self._start_reply(mailbox)
        reply._post(self._begin_start, reply)
        try:
            if timeout is None:
                await reply.result()
            else:
                await mailbox.park_for(reply, timeout)
                if not reply.is_done:
                    raise self._no_leader(timeout)
                if reply.error is not None:
                    raise reply.error
        except BaseException:
            await self._closed_again(reply)
            raise

    async def _closed_again(self, reply: Reply) -> None:
        """Whatever ended the start early, the host is left before the exception goes on."""
        import anyio

        ended = self._start_reply(reply.mailbox)
        ended._post(self._begin_close, ended)
        with anyio.CancelScope(shield=True):
            await mailbox_here().park_for(ended, CLOSE_TIMEOUT_S)
        self._release()

    async def close(self, timeout: float | None = None) -> None:
        if self.phase == _NEW:
            self.phase = _CLOSED
        if self.phase == _CLOSED or self._engine is None or self._engine.is_poisoned:
            self._release()
            return
        mailbox = mailbox_here()
        reply = self._start_reply(mailbox)
        reply._post(self._begin_close, reply)
        try:
            if timeout is None:
                await reply.result()
            else:
                await mailbox.park_for(reply, timeout)
        finally:
            self._release()

    def close_at_exit(self) -> None:
        Caller.close(self)  # type: ignore[arg-type]

    async def submit(self, command: Command[R], timeout: float | None, reminder: Reminder | None = None) -> R:
        mailbox = mailbox_here()
        engine_ = self.engine
        reply = self._submission(engine_, mailbox, command, timeout, reminder)
        engine_.post_from_loop(self._begin_submit, reply, mailbox)
        answer: R = decode_answer(command, await reply.result())
        return answer

    async def query(self, query: Query[R], consistency: str, timeout: float | None) -> R:
        mailbox = mailbox_here()
        engine_ = self.engine
        reply = self._question(engine_, mailbox, query, consistency, timeout)
        engine_.post_from_loop(self._begin_query, reply, mailbox)
        answer: R = decode_answer(query, await reply.result())
        return answer

    async def open_watch(self, request: WatchRequest) -> Subscription:
        """Registered when it returns: what is committed afterwards is seen."""
        mailbox = mailbox_here()
        engine_ = self.engine
        reply = self._subscription(engine_, mailbox, request)
        try:
            engine_.post_from_loop(self._begin_watch, reply, mailbox)
            await mailbox.park_for(reply, self.timeout)
            return self._opened_watch(reply)
        except BaseException:
            self.close_watch(reply.arguments)
            raise

    async def transaction(self, commands: Sequence[Command[Any]], timeout: float | None) -> tuple[Any, ...]:
        answers = await self.submit(_transaction(commands), timeout)
        return tuple(decode_answer(command, data) for command, data in zip(commands, answers, strict=True))

    async def call(self, method: str, arguments: Mapping[str, Any], timeout: float | None) -> Any:
        mailbox = mailbox_here()
        engine_ = self.engine
        reply = self._administration(engine_, mailbox, method, arguments, timeout)
        engine_.post_from_loop(self._begin_call, reply, mailbox)
        return _unpacked(await reply.result())


class Caller(_CallerCore):
    """For threads."""

    def start(self, timeout: float | None) -> None:
        self._prepare_start()
        reply = self._start_reply(None)
        reply._post(self._begin_start, reply)
        try:
            if not reply.wait_blocking(timeout):
                raise self._no_leader(timeout)
            if reply.error is not None:
                raise reply.error
        except BaseException:
            ended = self._start_reply(None)
            ended._post(self._begin_close, ended)
            ended.wait_blocking(CLOSE_TIMEOUT_S)
            self._release()
            raise

    def close(self, timeout: float | None = None) -> None:
        if self.phase == _NEW:
            self.phase = _CLOSED
        if self.phase == _CLOSED or self._engine is None or self._engine.is_poisoned:
            self._release()
            return
        reply = self._start_reply(None)
        reply._post(self._begin_close, reply)
        try:
            reply.wait_blocking(timeout)
        finally:
            self._release()

    def close_at_exit(self) -> None:
        self.close(CLOSE_TIMEOUT_S)

    def submit(self, command: Command[R], timeout: float | None, reminder: Reminder | None = None) -> R:
        engine_ = self.engine
        reply = self._submission(engine_, None, command, timeout, reminder)
        engine_.post(self._begin_submit, reply)
        answer: R = decode_answer(command, reply.result_blocking())
        return answer

    def query(self, query: Query[R], consistency: str, timeout: float | None) -> R:
        engine_ = self.engine
        reply = self._question(engine_, None, query, consistency, timeout)
        engine_.post(self._begin_query, reply)
        answer: R = decode_answer(query, reply.result_blocking())
        return answer

    def open_watch(self, request: WatchRequest) -> Subscription:
        """Registered when it returns: what is committed afterwards is seen."""
        engine_ = self.engine
        reply = self._subscription(engine_, None, request)
        try:
            engine_.post(self._begin_watch, reply)
            reply.wait_blocking(self.timeout)
            return self._opened_watch(reply)
        except BaseException:
            self.close_watch(reply.arguments)
            raise

    def transaction(self, commands: Sequence[Command[Any]], timeout: float | None) -> tuple[Any, ...]:
        answers = self.submit(_transaction(commands), timeout)
        return tuple(decode_answer(command, data) for command, data in zip(commands, answers, strict=True))

    def call(self, method: str, arguments: Mapping[str, Any], timeout: float | None) -> Any:
        engine_ = self.engine
        reply = self._administration(engine_, None, method, arguments, timeout)
        engine_.post(self._begin_call, reply)
        return _unpacked(reply.result_blocking())


class AsyncHostKeeper(_HostOnly, AsyncCaller):
    """Keeps a host open, for tasks."""

    def __init__(self, open_kept: OpenKept) -> None:
        super().__init__(cast(OpenHost, open_kept), timeout=10.0, session_ttl=10.0, label=None)


class HostKeeper(_HostOnly, Caller):
    """Keeps a host open, for threads."""

    def __init__(self, open_kept: OpenKept) -> None:
        super().__init__(cast(OpenHost, open_kept), timeout=10.0, session_ttl=10.0, label=None)
