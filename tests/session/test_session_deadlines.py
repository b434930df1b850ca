"""When a session wants to be woken, step by step on a clock moved by hand."""

from __future__ import annotations

from tauraft.command_protocol import Attached, Opened
from tauraft.session import NEVER, Session, State

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
