"""Linearizable reads that wait for their index: those that come together ask the core one question (thesis 6.4)."""

from __future__ import annotations

from collections.abc import Callable

from tauraft.core.messages import Index

Done = Callable[[Index | None], object]  # None: nobody can say now; ask again


class ReadQuestions:
    """Who waits to be asked about, and which questions are under way. ``context`` names a question."""

    def __init__(self, first_context: int) -> None:
        self._context = first_context
        self._waiting: list[Done] = []
        self._asked: dict[int, tuple[int, list[Done]]] = {}  # context -> when, for whom

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, done: Done) -> None:
        self._waiting.append(done)

    def ask(self, now_ns: int) -> int:
        """All that wait, as one question; returns its context."""
        self._context += 1
        self._asked[self._context] = (now_ns, self._waiting)
        self._waiting = []
        return self._context

    def answered(self, context: int) -> list[Done]:
        """Whose question that was: nobody's, if it was given up meanwhile."""
        _, waiting = self._asked.pop(context, (0, []))
        return waiting

    def ask_again(self, asked_before_ns: int) -> None:
        """Questions as old as that were lost: those who wait for them are to be asked about anew."""
        for context, (asked_ns, waiting) in list(self._asked.items()):
            if asked_ns < asked_before_ns:
                del self._asked[context]
                self._waiting += waiting

    def give_up_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(None)

    def give_up(self) -> None:
        """Also those that are under way."""
        for _, waiting in self._asked.values():
            self._waiting += waiting
        self._asked.clear()
        self.give_up_waiting()
