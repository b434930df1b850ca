"""One client's session, as the client keeps it: what is outstanding, what is acknowledged, and how long it may be trusted.

Everything here runs in the engine's loop and nothing here awaits: messages and the passing of time come in as
calls, messages go out through the link of the moment, results through callbacks.  Clock (CLOCK_BOOTTIME, ns) and
random bytes are injected, so a test drives it step by step.  ``client.py`` gives it links and wakes it in time.

A submission is *unsent* (no sequence yet: giving up is certain), *sent* (resent after each attach, same bytes, until
answered), *withdrawing* (its ``Withdraw`` is resent until WITHDRAWN, STANDS or ERROR comes; nobody gives that up),
or *answered*: a wait's value stays unacknowledged until its caller has taken it, so that a
grant which raced with a cancellation can still be undone (SAFETY 4).  ``acked_below`` is the lowest sequence
not done with.

The session is lost when the local deadline passes, which lies before the cluster's (SAFETY 2, 17), or when a replica says it is gone.
Then everything outstanding has an unknown outcome, and nothing is ever sent again (SAFETY 5).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum, auto
from hashlib import sha256
from typing import Any, Final, TypeAlias

from tauraft import errors
from tauraft.command_protocol import (
    TRY_NS,
    Alive,
    Answer,
    AnswerKind,
    Ask,
    Attach,
    Attached,
    Call,
    Close,
    Closed,
    Events,
    Failed,
    Gone,
    KeepAlive,
    LeaderIs,
    Link,
    Open,
    Opened,
    RenewNow,
    Submit,
    ToClient,
    Told,
    Waiting,
    Watching,
    Welcome,
    Withdraw,
)
from tauraft.watch import Subscription, Subscriptions

Done: TypeAlias = Callable[[bytes | None, BaseException | None], object]

SECOND_NS: Final = 1_000_000_000
GRACE_NS: Final = SECOND_NS  # how long the caller of a wait that ran out is kept for a confirmed withdrawal
RETRY_NS: Final = SECOND_NS // 4  # after a replica had no room
NEVER: Final = 1 << 62
SWEEP_DEADLINES: Final = 1_024
IDEMPOTENT_CALLS: Final = frozenset({"status", "members", "sql", "snapshot"})


def margin_ns(ttl_ns: int) -> int:
    """How much earlier than the cluster the holder of a ``ttl_ns`` counts itself out: two clocks at 1 %, and SAFETY 18's 1.01."""
    return max(ttl_ns * 3 // 100, SECOND_NS // 10)


class State(Enum):
    OPENING = auto()
    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()
    LOST = auto()


class Step(Enum):
    UNSENT = auto()
    SENT = auto()
    WITHDRAWING = auto()
    ANSWERED = auto()
    DONE = auto()


class Submission:
    """One command on its way. ``waits``: True, False, or None while nobody has said whether it waits."""

    __slots__ = (
        "deadline_ns", "done", "message", "payload", "remind", "sequence", "step", "times_sent", "wait_ns", "waits",
    )  # fmt: skip

    def __init__(
        self, payload: bytes, message: Any, waits: bool | None, wait_ns: int, deadline_ns: int, done: Done | None
    ) -> None:
        self.payload = payload
        self.message = message
        self.waits = waits
        self.wait_ns = wait_ns
        self.deadline_ns = deadline_ns
        self.done = done
        self.sequence = 0
        self.step = Step.UNSENT
        self.times_sent = 0
        self.remind: tuple[int, Callable[[], object]] | None = None  # after so many ns of waiting

    def finish(self, data: bytes | None, error: BaseException | None) -> None:
        self.step = Step.DONE
        self.tell(data, error)

    def tell(self, data: bytes | None, error: BaseException | None) -> None:
        done, self.done = self.done, None
        if done is not None:
            done(data, error)


class Request:
    """A query or an administrative call: no sequence, no session, asked again on each link."""

    __slots__ = ("deadline_ns", "done", "make", "number", "repeatable", "step")

    def __init__(
        self, number: int, make: Callable[[], Ask | Call], repeatable: bool, deadline_ns: int, done: Done
    ) -> None:
        self.number = number
        self.make = make
        self.repeatable = repeatable
        self.deadline_ns = deadline_ns
        self.done: Done | None = done
        self.step = Step.UNSENT

    def finish(self, data: bytes | None, error: BaseException | None) -> None:
        self.step = Step.DONE
        done, self.done = self.done, None
        if done is not None:
            done(data, error)


class Retry:
    """A submission that a replica had no room for, to be said again."""

    __slots__ = ("deadline_ns", "submission")

    def __init__(self, submission: Submission, deadline_ns: int) -> None:
        self.submission = submission
        self.deadline_ns = deadline_ns

    @property
    def step(self) -> Step:
        return self.submission.step


class Reminding:
    """A submission that waits, and whose caller wants to know what for when it lasts."""

    __slots__ = ("deadline_ns", "remind", "submission")

    def __init__(self, submission: Submission, deadline_ns: int, remind: Callable[[], object]) -> None:
        self.submission = submission
        self.deadline_ns = deadline_ns
        self.remind = remind

    @property
    def step(self) -> Step:
        return self.submission.step


class Session:
    """See the module's theory. ``on_lost``, ``on_open`` are called once; ``reschedule`` when ``next_deadline`` has changed."""

    def __init__(
        self,
        *,
        ttl_ns: int,
        clock: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        on_open: Callable[[], object] = lambda: None,
        on_lost: Callable[[], object] = lambda: None,
        on_leader: Callable[[str, str], object] = lambda leader, here: None,
        reschedule: Callable[[], object] = lambda: None,
        trouble: Callable[[], str] = lambda: "",
        max_outstanding: int = 10_000,
    ) -> None:
        self.id = 0
        self.ttl_ns = ttl_ns
        self.state = State.OPENING
        self.deadline_ns = NEVER  # CLOCK_BOOTTIME; read by other threads
        self.seen_index = 0
        self.leader: LeaderIs | None = None
        self._clock = clock
        self._secret = random_bytes(32)
        self._nonce = random_bytes(16)
        self._on_open = on_open
        self._on_lost = on_lost
        self._on_leader = on_leader  # the Raft leader's peer id, that of the replica in use; while both are known
        self._reschedule = reschedule
        self._trouble = trouble  # why nobody answers, where that is known: part of the errors
        self._max_outstanding = max_outstanding
        self._link: Link | None = None
        self._attached = False
        self._next_sequence = 1
        self._floor = 1
        self._outstanding: dict[int, Submission] = {}
        self._unsent: deque[Submission] = deque()
        self._unsent_count = 0
        self._requests: dict[int, Request] = {}
        self._next_request = 1
        self._watches = Subscriptions()
        self._deadlines: list[tuple[int, int, Submission | Request | Retry | Reminding]] = []
        self._pushed = 0
        self._sweep_at = SWEEP_DEADLINES
        self._armed_ns = 0
        self._open_sent_ns: int | None = None
        self._serial = 0
        self._renewals: dict[int, int] = {}  # serial -> when it was sent; unanswered ones only
        self._renew_at_ns = NEVER
        self._close_done: Callable[[], object] | None = None
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            Answer: self._answer,
            Waiting: self._waiting,
            Told: self._told,
            Failed: self._failed,
            Alive: self._alive,
            RenewNow: self._renew_now,
            Opened: self._opened,
            Attached: self._attach_done,
            Gone: self._gone,
            Closed: self._closed,
            LeaderIs: self._leader_is,
            Welcome: self._welcome,
            Watching: self._watches.watching,
            Events: self._watches.events,
        }

    # ---- the caller's side ----

    def submit(
        self,
        payload: bytes,
        message: Any,
        *,
        waits: bool | None,
        timeout_ns: int | None,
        plain_timeout_ns: int,
        done: Done,
        remind: tuple[int, Callable[[], object]] | None = None,
    ) -> Submission:
        """Take one command. ``timeout_ns`` None: for ever if it waits, else ``plain_timeout_ns``.
        ``remind``: called once when it has waited for so many nanoseconds.

        Raises ``Overloaded``, ``SessionLost`` or ``AlreadyClosed``, all of them certain: nothing was taken.
        """
        now = self._clock()
        self._must_be_usable(now)
        if len(self._outstanding) + self._unsent_count >= self._max_outstanding:
            raise errors.Overloaded(
                f"{self._max_outstanding} commands of this session are unanswered; nothing was sent, try again later",
                retry_after=0.1,
            )
        if timeout_ns == 0 and waits is not False:
            # "Do not wait" still waits for the answer; the entry that finds it would have to wait withdraws it.
            deadline, wait_ns = now + plain_timeout_ns, TRY_NS
        else:
            deadline = now + (timeout_ns if timeout_ns is not None else NEVER if waits else plain_timeout_ns)
            # The log's own patience begins at the entry's stamp and is longer: it acts only where the client cannot.
            wait_ns = 0 if timeout_ns is None or waits is False else timeout_ns + GRACE_NS
        submission = Submission(payload, message, waits, wait_ns, deadline, done)
        submission.remind = remind
        if deadline < NEVER:
            self._push_deadline(deadline, submission)
        if self._attached:
            self._send_first(submission)
        else:
            self._unsent.append(submission)
            self._unsent_count += 1
        return submission

    def taken(self, submission: Submission) -> None:
        """The caller has the value: it need not be kept any longer."""
        if submission.step is Step.ANSWERED:
            del self._outstanding[submission.sequence]
            submission.step = Step.DONE

    def abandon(self, submission: Submission) -> None:
        """The caller is gone (cancelled, interrupted): nothing may be left held on its behalf."""
        submission.done = None
        match submission.step:
            case Step.UNSENT:
                self._unsent_count -= 1
                submission.step = Step.DONE
            case Step.SENT if submission.waits is False:
                del self._outstanding[submission.sequence]
                submission.step = Step.DONE
            case Step.SENT | Step.ANSWERED:
                self._withdraw(submission)
            case Step.DONE if submission.waits is not False and submission.sequence >= self._floor > 0:
                # Taken, and interrupted right after: undone as long as no message has acknowledged it.
                if submission.sequence and self.state is State.OPEN:
                    self._outstanding[submission.sequence] = submission
                    self._withdraw(submission)
            case _:
                pass

    def ask(self, payload: bytes, message: Any, *, consistency: str, timeout_ns: int, done: Done) -> Request:
        """Send a query to the replica of the moment; asked again elsewhere when that one fails."""
        number = self._next_request

        def make() -> Ask:
            # A stale read asks for what is there now, not for what this client has seen elsewhere.
            return Ask(number, consistency, payload, 0 if consistency == "stale" else self.seen_index, message)

        return self._request(make, True, timeout_ns, done)

    def call(self, method: str, arguments: Mapping[str, Any], *, timeout_ns: int, done: Done) -> Request:
        """Administration. What cannot be repeated ends as ``Unavailable(unknown)`` when its link breaks."""
        number = self._next_request
        return self._request(lambda: Call(number, method, arguments), method in IDEMPOTENT_CALLS, timeout_ns, done)

    def forget(self, request: Request) -> None:
        """Nobody waits for this request any more."""
        request.done = None
        request.step = Step.DONE
        self._requests.pop(request.number, None)

    def watch(self, subscription: Subscription, opened: Callable[[BaseException | None], object]) -> None:
        """Begin a watch; it goes on over any number of links until ``unwatch``. Raises as ``submit`` does."""
        self._must_be_usable(self._clock())
        self._watches.open(subscription, self._next_request, opened)
        self._next_request += 1

    def unwatch(self, subscription: Subscription) -> None:
        self._watches.close(subscription)

    def close(self, done: Callable[[], object]) -> None:
        """End the session cleanly, so that all it holds is free at once. ``done`` is called when the cluster has confirmed it."""
        if self.state in (State.CLOSED, State.LOST):
            done()
            return
        self.state = State.CLOSING
        self._renew_at_ns = NEVER
        self._close_done = done
        self._end_all(errors.AlreadyClosed, "the cluster was closed")
        if self.id == 0 and self._open_sent_ns is None:
            self._closed(Closed(0))
        elif self._attached and self._link is not None:
            self._link.send(Close(self.id))

    def stop(self, kind: type[errors.TauraftError] = errors.AlreadyClosed, why: str = "the cluster was closed") -> None:
        """Say no more, confirmed or not; what was opened expires. Whoever still waits is told ``why``."""
        if self.state not in (State.CLOSED, State.LOST):
            self.state = State.CLOSED
        self._end_all(kind, why)
        self._close_done = None

    @property
    def is_attached(self) -> bool:
        return self._attached

    @property
    def replica(self) -> str:
        """The peer id of the replica at hand; empty while there is none."""
        link = self._link
        return "" if link is None else link.peer_id

    @property
    def place(self) -> tuple[str, bool]:
        """Whose data directory this process works on, "" where it is none, and whether it runs that replica itself."""
        link = self._link
        return ("", False) if link is None or not link.is_of_host else (link.peer_id, link.is_local)

    # ---- the link's side ----

    def link_up(self, link: Link) -> None:
        """``link`` has said Welcome: open or attach over it, and repeat what is unanswered."""
        self._link, self._attached = link, False
        if self.state in (State.CLOSED, State.LOST):
            return
        self._tell_leader()
        for request in list(self._requests.values()):
            link.send(request.make())
            request.step = Step.SENT
        self._watches.link_up(link)
        self._open_or_attach()

    def link_down(self) -> None:
        self._link, self._attached = None, False
        self._watches.link_down()
        for request in [r for r in self._requests.values() if r.step is Step.SENT and not r.repeatable]:
            del self._requests[request.number]
            request.finish(
                None,
                errors.Unavailable(
                    "the connection broke while the call was under way; look at the status before calling again",
                    outcome="unknown",
                ),
            )

    def received(self, message: ToClient) -> None:
        self._handlers[type(message)](message)

    # ---- time ----

    def next_deadline(self) -> int:
        """When ``on_time`` wants to be called; ``reschedule`` is called when that moves."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][2].step is Step.DONE:
            heapq.heappop(deadlines)
        # A session that has ended keeps its deadline for its holders to compare, and nothing happens at it any more.
        own = NEVER if self.state in (State.LOST, State.CLOSED) else min(self.deadline_ns, self._renew_at_ns)
        self._armed_ns = min(deadlines[0][0] if deadlines else NEVER, own)
        return self._armed_ns

    def on_time(self) -> None:
        now = self._clock()
        if self.state in (State.OPEN, State.CLOSING) and now >= self.deadline_ns:
            self._lose("it could not be renewed in time")
        if now >= self._renew_at_ns:
            self._renew(now)
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            deadline, _, waiter = heapq.heappop(deadlines)
            if waiter.step is Step.DONE or waiter.deadline_ns != deadline:
                continue
            if isinstance(waiter, Retry):
                self._send(waiter.submission)
            elif isinstance(waiter, Reminding):
                if waiter.step is Step.SENT:
                    waiter.remind()
            elif isinstance(waiter, Request):
                self._requests.pop(waiter.number, None)
                waiter.finish(None, self._unavailable("not-applied" if waiter.repeatable else "unknown"))
            else:
                self._run_out(waiter, now)

    # ---- submissions ----

    def _must_be_usable(self, now: int) -> None:
        # The deadline is compared at every submission: a process that slept must not speak before it knows (SAFETY 17).
        if self.state is State.OPEN and now >= self.deadline_ns:
            self._lose("it could not be renewed in time")
        if self.state is State.LOST:
            raise errors.SessionLost("the session is lost; nothing was sent", outcome="not-applied")
        if self.state in (State.CLOSING, State.CLOSED):
            raise errors.AlreadyClosed("the cluster was closed; nothing was sent")

    def _push_deadline(self, deadline: int, waiter: Submission | Request | Retry | Reminding) -> None:
        self._pushed += 1
        if len(self._deadlines) >= self._sweep_at:
            # What is answered keeps its place, and all it was sent with, until its deadline: 100,000 of them at 10,000 a second.
            self._deadlines[:] = [entry for entry in self._deadlines if entry[2].step is not Step.DONE]
            heapq.heapify(self._deadlines)
            self._sweep_at = max(SWEEP_DEADLINES, 2 * len(self._deadlines))
        heapq.heappush(self._deadlines, (deadline, self._pushed, waiter))
        if deadline < self._armed_ns:
            self._reschedule()

    def _acked_below(self) -> int:
        floor, outstanding, end = self._floor, self._outstanding, self._next_sequence
        while floor < end and floor not in outstanding:
            floor += 1
        self._floor = floor
        return floor

    def _send_first(self, submission: Submission) -> None:
        submission.sequence = self._next_sequence
        self._next_sequence += 1
        submission.step = Step.SENT
        self._outstanding[submission.sequence] = submission
        self._send(submission)

    def _send(self, submission: Submission) -> None:
        if not self._attached or self._link is None:
            return
        sequence = submission.sequence
        if submission.step is Step.WITHDRAWING:
            self._link.send(Withdraw(self.id, sequence, self._acked_below()))
        elif submission.step is Step.SENT:
            submission.times_sent += 1
            self._link.send(
                Submit(
                    self.id, sequence, self._acked_below(), submission.wait_ns, submission.payload, submission.message
                )
            )

    def _withdraw(self, submission: Submission) -> None:
        submission.step = Step.WITHDRAWING
        submission.deadline_ns = NEVER
        self._send(submission)

    def _run_out(self, submission: Submission, now: int) -> None:
        """Its time is over: certain when unsent, withdrawn when it waits, else no longer wanted."""
        match submission.step:
            case Step.UNSENT:
                self._unsent_count -= 1
                submission.finish(None, _wait_timeout() if submission.waits else self._unavailable("not-applied"))
            case Step.SENT if submission.waits is False:
                del self._outstanding[submission.sequence]
                submission.finish(None, self._unavailable("unknown"))
            case Step.SENT:
                self._withdraw(submission)
                if submission.waits is None and (not self._attached or self.leader is None or not self.leader.peer_id):
                    # Most likely a plain command, and nobody there to confirm anything: do not make its caller wait more.
                    submission.tell(None, self._unavailable("unknown"))
                    return
                submission.deadline_ns = now + GRACE_NS
                self._push_deadline(submission.deadline_ns, submission)
            case Step.WITHDRAWING:
                submission.tell(None, self._unavailable("unknown"))  # the withdrawal itself goes on
            case _:
                pass

    def _unavailable(self, outcome: str) -> errors.TauraftError:
        tail = "nothing was applied" if outcome == "not-applied" else "it may have taken effect, once"
        trouble = self._trouble()
        why = f" ({trouble})" if trouble else ""
        if self._link is None or (self.leader is not None and not self.leader.peer_id):
            return errors.NoLeader(f"no leader could be reached in time{why}; {tail}", outcome=outcome)
        return errors.Unavailable(f"there was no answer in time{why}; {tail}", outcome=outcome)

    def _answer(self, answer: Answer) -> None:
        if answer.index > self.seen_index:
            self.seen_index = answer.index
        submission = self._outstanding.get(answer.sequence)
        if submission is None or answer.session != self.id:
            return
        if answer.kind is AnswerKind.VALUE:
            if submission.step is Step.SENT:
                if submission.waits is False:
                    del self._outstanding[answer.sequence]
                    submission.finish(answer.data, None)
                else:
                    submission.step = Step.ANSWERED
                    submission.tell(answer.data, None)
            # While withdrawing it is ignored: the withdrawal undoes this grant (SAFETY 4).
            return
        if submission.step is Step.ANSWERED:
            return
        del self._outstanding[answer.sequence]
        if answer.kind is AnswerKind.ERROR:
            submission.finish(None, _error_of(answer.data))
        elif answer.kind is AnswerKind.STANDS:
            submission.finish(answer.data, None)
        else:
            submission.finish(None, _wait_timeout())

    def _waiting(self, waiting: Waiting) -> None:
        self.seen_index = max(self.seen_index, waiting.index)
        submission = self._outstanding.get(waiting.sequence)
        if submission is not None and submission.remind is not None:
            after_ns, remind = submission.remind
            submission.remind = None  # once, however often it is said again that it waits
            at_ns = self._clock() + after_ns
            self._push_deadline(at_ns, Reminding(submission, at_ns, remind))
        if submission is not None and submission.waits is None:
            submission.waits = True
            # Without a time-out of its own it had the plain one until somebody said that it waits.
            if submission.wait_ns == 0 and submission.step is Step.SENT:
                submission.deadline_ns = NEVER
            elif submission.wait_ns == TRY_NS and submission.step is Step.SENT:
                self._run_out(submission, self._clock())

    def _failed(self, failed: Failed) -> None:
        error = _error_of(failed.error)
        if failed.request:
            if self._watches.failed(failed.request, error):
                return
            request = self._requests.pop(failed.request, None)
            if request is not None:
                request.finish(None, error)
            return
        submission = self._outstanding.get(failed.sequence)
        if submission is None or submission.step not in (Step.SENT, Step.WITHDRAWING):
            return
        is_of_this_copy = isinstance(error, errors.Overloaded | errors.Suspended)
        if is_of_this_copy and (submission.times_sent > 1 or submission.step is Step.WITHDRAWING):
            # Another copy may be on its way, so this is no answer: say it again, a little later.
            self._retry_later(submission)
            return
        del self._outstanding[failed.sequence]
        if error.code == "not-authorized" and submission.times_sent > 1:
            # By this replica, now; one that was asked earlier may have let it pass.
            error = errors.Unavailable(
                f"sent again, it was refused: {error}; it may still take effect", outcome="unknown"
            )
        submission.finish(None, error)

    def _retry_later(self, submission: Submission) -> None:
        retry = Retry(submission, self._clock() + RETRY_NS)
        self._push_deadline(retry.deadline_ns, retry)

    # ---- queries and calls ----

    def _request(self, make: Callable[[], Ask | Call], repeatable: bool, timeout_ns: int, done: Done) -> Request:
        now = self._clock()
        self._must_be_usable(now)
        if len(self._requests) >= self._max_outstanding:
            raise errors.Overloaded(
                "too many queries are unanswered; nothing was sent, try again later", retry_after=0.1
            )
        request = Request(self._next_request, make, repeatable, now + timeout_ns, done)
        self._next_request += 1
        self._requests[request.number] = request
        self._push_deadline(request.deadline_ns, request)
        if self._link is not None:
            self._link.send(make())
            request.step = Step.SENT
        return request

    def _told(self, told: Told) -> None:
        if told.index > self.seen_index:
            self.seen_index = told.index
        request = self._requests.pop(told.request, None)
        if request is not None:
            request.finish(told.data, None)

    # ---- open, attach, renew, end ----

    def _open_or_attach(self) -> None:
        assert self._link is not None
        if self.id:
            self._link.send(Attach(self.id, self._secret, self.seen_index))
            return
        if self._open_sent_ns is None:
            # The first sending counts: an earlier copy may be the one that the cluster stamps (decision 0002).
            self._open_sent_ns = self._clock()
        self._link.send(Open(self._nonce, sha256(self._secret).digest(), self.ttl_ns))

    def _opened(self, opened: Opened) -> None:
        if opened.nonce != self._nonce or self.id or self._open_sent_ns is None:
            return
        self.id = opened.session
        self.seen_index = max(self.seen_index, opened.index)
        self.deadline_ns = self._open_sent_ns + self.ttl_ns - margin_ns(self.ttl_ns)
        now = self._clock()
        if now >= self.deadline_ns:
            # It took a whole ttl to open: nothing was sent in this session, so another one is as good.
            self.id, self._open_sent_ns, self.deadline_ns = 0, None, NEVER
            self._nonce = sha256(self._nonce).digest()[:16]
        elif self.state is State.OPENING:
            self.state = State.OPEN
            self._renew_at_ns = self._open_sent_ns + (
                self.ttl_ns // 10 if now - self._open_sent_ns > self.ttl_ns // 10 else self.ttl_ns // 2
            )
        if self._link is not None:
            self._open_or_attach()
        self._reschedule()

    def _attach_done(self, attached: Attached) -> None:
        if attached.session != self.id or self._link is None:
            return
        now = self._clock()
        if now >= self.deadline_ns:
            self._lose("it could not be renewed in time")
            return
        self.seen_index = max(self.seen_index, attached.index)
        self._attached = True
        if self.state is State.CLOSING:
            self._link.send(Close(self.id))
            return
        if self._renewals or now >= self._renew_at_ns:
            self._renew(now)
        for sequence in sorted(self._outstanding):
            self._send(self._outstanding[sequence])
        unsent, self._unsent, self._unsent_count = self._unsent, deque(), 0
        for submission in unsent:
            if submission.step is Step.UNSENT:
                self._send_first(submission)
        on_open, self._on_open = self._on_open, lambda: None
        on_open()

    def _renew_now(self, message: RenewNow) -> None:
        self._renew(self._clock())

    def _renew(self, now: int) -> None:
        if self.state is not State.OPEN or now >= self.deadline_ns:
            return
        # Unanswered: sooner again than where the last one was answered.
        self._renew_at_ns = now + self.ttl_ns // 6
        if self._attached and self._link is not None:
            self._serial += 1
            self._renewals[self._serial] = now
            self._link.send(KeepAlive(self.id, self._serial))
        self._reschedule()

    def _alive(self, alive: Alive) -> None:
        sent_ns = self._renewals.get(alive.serial)
        if sent_ns is None or alive.session != self.id or self.state is not State.OPEN:
            return
        if self._clock() >= self.deadline_ns:
            # The holders may have counted themselves out already; a session does not come back.
            self._lose("it could not be renewed in time")
            return
        for serial in [serial for serial in self._renewals if serial <= alive.serial]:
            del self._renewals[serial]
        self.deadline_ns = max(self.deadline_ns, sent_ns + self.ttl_ns - margin_ns(self.ttl_ns))
        self._renew_at_ns = sent_ns + self.ttl_ns // 2
        self._reschedule()

    def _gone(self, gone: Gone) -> None:
        if gone.session == self.id and self.state is State.OPEN:
            self._lose("the cluster has ended it")
        elif gone.session == self.id:
            self._closed(Closed(self.id))

    def _closed(self, closed: Closed) -> None:
        if closed.session != self.id or self.state is not State.CLOSING:
            return
        self.state = State.CLOSED
        done, self._close_done = self._close_done, None
        if done is not None:
            done()

    def _lose(self, why: str) -> None:
        self.state = State.LOST
        self.deadline_ns = min(self.deadline_ns, self._clock())
        self._renew_at_ns = NEVER
        self._on_lost()
        self._end_all(errors.SessionLost, f"the session is lost: {why}")
        done, self._close_done = self._close_done, None
        if done is not None:
            done()

    def _end_all(self, kind: type[errors.TauraftError], why: str) -> None:
        outstanding, self._outstanding = self._outstanding, {}
        unsent, self._unsent, self._unsent_count = self._unsent, deque(), 0
        for submission in outstanding.values():
            submission.finish(None, kind(f"{why}; it may have taken effect, once", outcome="unknown"))
        for submission in unsent:
            if submission.step is Step.UNSENT:
                submission.finish(None, kind(f"{why}; it was not sent", outcome="not-applied"))
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.finish(None, kind(f"{why}", outcome="not-applied" if request.repeatable else "unknown"))
        self._watches.end_all(lambda: kind(f"{why}; the watch has ended", outcome="not-applied"))

    def _leader_is(self, leader: LeaderIs) -> None:
        self.leader = leader
        self._tell_leader()

    def _tell_leader(self) -> None:
        if self.leader is not None and self.leader.peer_id and self.replica:
            self._on_leader(self.leader.peer_id, self.replica)

    def _welcome(self, welcome: Welcome) -> None:
        self._leader_is(LeaderIs(welcome.leader, ()))


def _wait_timeout() -> errors.WaitTimeout:
    return errors.WaitTimeout("the wait ran out and was withdrawn; nothing is held")


def _error_of(data: bytes) -> errors.TauraftError:
    try:
        return errors.decode(data)
    except ValueError:
        return errors.Unavailable("the replica's error could not be read; the command may have taken effect, once")
