"""Who the callers are, and what each was answered: the books of exactly once (SAFETY 3 to 5).

A session holds, by sequence, the stored answers its owner has not acknowledged and the tickets that still wait.
A sequence below ``floor`` was acknowledged or given up: it is refused, never run.  Answers are a set, not a high-water
mark, because commands of one session may commit in another order than they were sent.

Written by apply after a command's undo scope has closed, so an undone command leaves its answer all the same.
In memory a session is an object; in snapshots it is one blob.  ``freeze`` starts a copy-on-write view: a
session that changes while the view is open is encoded first, so a snapshot costs the loop nothing at its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgpack

from tauraft.node.replica import AnswerKind

MAX_OUTSTANDING = 16_384


def payload_hash(payload: bytes) -> bytes:
    """Tells a resend from another command under the same sequence."""
    return blake2b(payload, digest_size=8).digest()


@dataclass(slots=True)
class StoredAnswer:
    kind: AnswerKind
    data: bytes
    hash: bytes
    revision: int
    undo: bytes | None  # the payload, where a withdrawal could still undo what was granted


@dataclass(slots=True)
class OpenTicket:
    payload: bytes
    hash: bytes
    revision: int


@dataclass(slots=True)
class Session:
    id: int
    nonce: bytes
    secret_hash: bytes
    ttl_ns: int
    expires_ns: int
    peer_id: str
    host: str
    pid: int
    label: str | None
    floor: int = 1
    answers: dict[int, StoredAnswer] = field(default_factory=dict)
    tickets: dict[int, OpenTicket] = field(default_factory=dict)

    def acknowledge(self, acked_below: int) -> None:
        """Forget the answers of all sequences below; tickets stay until answered or withdrawn."""
        if acked_below <= self.floor:
            return
        self.floor = acked_below
        answers = self.answers
        # Sequences are stored nearly in order, so the acknowledged ones are at the front.
        for sequence in [s for s in answers if s < acked_below]:
            del answers[sequence]

    def encode(self) -> bytes:
        packed: bytes = msgpack.packb(
            [
                self.id,
                self.nonce,
                self.secret_hash,
                self.ttl_ns,
                self.expires_ns,
                self.peer_id,
                self.host,
                self.pid,
                self.label,
                self.floor,
                [[s, int(a.kind), a.data, a.hash, a.revision, a.undo] for s, a in self.answers.items()],
                [[s, t.payload, t.hash, t.revision] for s, t in self.tickets.items()],
            ]
        )
        return packed

    @classmethod
    def decode(cls, data: bytes) -> Session:
        *plain, answers, tickets = msgpack.unpackb(data, strict_map_key=True)
        session = cls(*plain)
        session.answers = {s: StoredAnswer(AnswerKind(kind), *rest) for s, kind, *rest in answers}
        session.tickets = {s: OpenTicket(*rest) for s, *rest in tickets}
        return session


class Sessions:
    """All sessions of one replica, by id."""

    def __init__(self) -> None:
        self._by_id: dict[int, Session] = {}
        self._by_nonce: dict[bytes, int] = {}
        self._views: list[FrozenSessions] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_id.values())

    def get(self, session_id: int) -> Session | None:
        """To look at only. Apply takes ``to_change``."""
        return self._by_id.get(session_id)

    def to_change(self, session_id: int) -> Session | None:
        session = self._by_id.get(session_id)
        if session is not None and self._views:
            for view in self._views:
                view.preserve(session)
        return session

    def opened_by(self, nonce: bytes) -> Session | None:
        found = self._by_nonce.get(nonce)
        return None if found is None else self._by_id[found]

    def add(self, session: Session) -> None:
        self._by_id[session.id] = session
        self._by_nonce[session.nonce] = session.id

    def remove(self, session_id: int) -> None:
        session = self.to_change(session_id)
        if session is not None:
            del self._by_id[session_id]
            del self._by_nonce[session.nonce]

    def freeze(self) -> FrozenSessions:
        view = FrozenSessions(self._by_id, self._views.remove)
        self._views.append(view)
        return view

    def replace(self, sessions: Iterable[Session]) -> None:
        """By these."""
        self._by_id.clear()
        self._by_nonce.clear()
        for session in sessions:
            self.add(session)


class FrozenSessions:
    """The sessions as they were when the view was taken."""

    def __init__(self, by_id: dict[int, Session], closed: Callable[[Any], None]) -> None:
        self._by_id = by_id
        self._ids = list(by_id)
        self._members = set(self._ids)
        self._preserved: dict[int, bytes] = {}
        self._closed = closed

    def preserve(self, session: Session) -> None:
        if session.id in self._members and session.id not in self._preserved:
            self._preserved[session.id] = session.encode()

    def slices(self, max_rows: int) -> Iterator[list[tuple[int, bytes]]]:
        """(id, blob) in the order of opening, a slice at a time; writes may go on between slices."""
        for start in range(0, len(self._ids), max_rows):
            rows = []
            for session_id in self._ids[start : start + max_rows]:
                blob = self._preserved.pop(session_id, None)
                if blob is None:
                    blob = self._by_id[session_id].encode()
                self._members.discard(session_id)
                rows.append((session_id, blob))
            yield rows

    def close(self) -> None:
        self._closed(self)
