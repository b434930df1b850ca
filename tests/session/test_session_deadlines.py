"""When a session wants to be woken, step by step on a clock moved by hand."""

from __future__ import annotations

from weakref import ref

import pytest

from tauraft import errors
from tauraft.command_protocol import Attached, Failed, Opened
from tauraft.session import NEVER, SWEEP_DEADLINES, Session, State

S = 1_000_000_000


class Link:
    is_local = True
    peer_id = "replica"

    def send(self, message: object) -> None:
        pass

    def close(self) -> None:
        pass


def opened_session(now: list[int]) -> Session:
    session = Session(ttl_ns=10 * S, clock=lambda: now[0], random_bytes=bytes)
    session.link_up(Link())
    session.received(Opened(bytes(16), 7, 1))
    session.received(Attached(7, 1))
    return session


def test_an_open_session_is_woken_to_renew_before_its_deadline() -> None:
    now = [S]
    session = opened_session(now)
    assert now[0] < session.next_deadline() < session.deadline_ns


def test_a_lost_session_asks_for_no_more_wake_ups() -> None:
    """Its deadline lies in the past for ever: whoever kept its time span at full speed."""
    now = [S]
    session = opened_session(now)
    now[0] = session.deadline_ns
    session.on_time()
    assert session.state is State.LOST
    assert session.deadline_ns <= now[0]
    assert session.next_deadline() == NEVER


def test_a_closed_session_asks_for_no_more_wake_ups() -> None:
    now = [S]
    session = opened_session(now)
    session.stop()
    assert session.next_deadline() == NEVER


@pytest.mark.parametrize("is_sent_again", [False, True])
def test_who_is_refused_when_he_asks_again_may_have_been_let_in_before(is_sent_again: bool) -> None:
    """By another replica, or another policy: then it is not certain that nothing happened."""
    session = opened_session([S])
    told: list[BaseException | None] = []
    session.submit(
        b"", None, waits=False, timeout_ns=None, plain_timeout_ns=10 * S, done=lambda data, error: told.append(error)
    )
    if is_sent_again:
        session.link_down()
        session.link_up(Link())
        session.received(Attached(7, 1))
    session.received(Failed(0, 7, 1, errors.encode(errors.Refused("not-authorized", "you may not"))))
    (error,) = told
    assert isinstance(error, errors.Unavailable if is_sent_again else errors.Refused)
    assert error.outcome == ("unknown" if is_sent_again else "not-applied")
    assert "you may not" in str(error)


class Sent:
    """Stands for a command, and can be seen to go."""


def submit_refused(session: Session, sequence: int) -> ref[Sent]:
    message = Sent()
    session.submit(
        b"", message, waits=False, timeout_ns=None, plain_timeout_ns=10 * S, done=lambda data, error: None
    )  # fmt: skip
    session.received(Failed(0, 7, sequence, errors.encode(errors.Refused("no", "no"))))
    return ref(message)


def test_what_is_answered_does_not_stay_until_its_deadline() -> None:
    """Ten thousand commands a second would leave a hundred thousand of them in memory."""
    session = opened_session([S])
    sent = [submit_refused(session, sequence) for sequence in range(1, 10 * SWEEP_DEADLINES)]
    assert sum(message() is not None for message in sent) <= SWEEP_DEADLINES


def test_who_is_not_answered_is_told_at_its_deadline_however_many_others_were_answered() -> None:
    now = [S]
    session = opened_session(now)
    told: list[BaseException | None] = []
    session.submit(
        b"", None, waits=False, timeout_ns=None, plain_timeout_ns=5 * S, done=lambda data, error: told.append(error)
    )
    for sequence in range(2, 3 * SWEEP_DEADLINES):
        submit_refused(session, sequence)
    now[0] += 5 * S
    session.on_time()
    (error,) = told
    assert isinstance(error, errors.Unavailable)
