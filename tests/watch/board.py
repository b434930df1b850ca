"""A third party's plugin: notes on boards, which its handle's users watch. It has nothing that the public contract does not give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tauraft.fsm import FSM, Command, Context, Query, QueryContext, Table, TableName, answers, applies, session_ended
from tauraft.handle import AsyncSubmitter, AsyncWatch, Frame, State

BOARD: Final = "acme.board"


@dataclass(frozen=True, slots=True)
class Note:
    text: str
    author: int
    revision: int


NOTES: Final = TableName(BOARD, "notes", str, Note)


@dataclass(frozen=True, slots=True)
class Pin(Command[int], fsm=BOARD):
    name: str
    text: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PinMany(Command[int], fsm=BOARD):
    prefix: str
    count: int
    text: str


@dataclass(frozen=True, slots=True)
class Clear(Command[int], fsm=BOARD):
    prefix: str


@dataclass(frozen=True, slots=True)
class Fades(Command[None], fsm=BOARD):
    name: str


@dataclass(frozen=True, slots=True)
class RunAll(Command[tuple[bytes, ...]], fsm=BOARD):
    """Runs the parts; ``forgive``: one that is refused is left out."""

    parts: tuple[bytes, ...]
    forgive: bool = False


@dataclass(frozen=True, slots=True)
class Read(Query[str | None], fsm=BOARD):
    name: str
    at: int | None = None


class Board(FSM, name=BOARD, version=1):
    notes: Table[str, Note]

    @applies(Pin)
    def pin(self, command: Pin, context: Context) -> int:
        self.notes[command.name] = Note(command.text, context.session or 0, context.revision)
        if command.seconds is not None:
            context.schedule(command.name, context.now_ns + int(command.seconds * 1e9), Fades(command.name))
        return context.revision

    @applies(PinMany)
    def pin_many(self, command: PinMany, context: Context) -> int:
        for number in range(command.count):
            self.notes[f"{command.prefix}{number:06}"] = Note(command.text, context.session or 0, context.revision)
        return context.revision

    @applies(Clear)
    def clear(self, command: Clear, context: Context) -> int:
        gone = [name for name, _ in self.notes.range(command.prefix, command.prefix + "\U0010ffff")]
        for name in gone:
            del self.notes[name]
        return len(gone)

    @applies(Fades)
    def fades(self, command: Fades, context: Context) -> None:
        self.notes.pop(command.name, None)

    @applies(RunAll)
    def run_all(self, command: RunAll, context: Context) -> tuple[bytes, ...]:
        from tauraft.errors import Refused

        answers = []
        for part in command.parts:
            try:
                answers.append(context.run(part))
            except Refused:
                if not command.forgive:
                    raise
        return tuple(answers)

    @answers(Read)
    def read(self, query: Read, context: QueryContext) -> str | None:
        note = self.notes.get(query.name) if query.at is None else context.at(self.notes, query.at).get(query.name)
        return None if note is None else note.text

    @session_ended
    def leave(self, session: int, context: Context) -> None:
        for name, note in list(self.notes.items()):
            if note.author == session:
                del self.notes[name]


class AsyncBoard:
    """Its handle. ``watch`` yields (name, text or None)."""

    def __init__(self, cluster: AsyncSubmitter) -> None:
        self._cluster = cluster

    async def pin(self, name: str, text: str) -> int:
        return await self._cluster.submit(Pin(name, text))

    def watch(self, name: str) -> AsyncWatch[tuple[str, str | None]]:
        return self._cluster.watch(NOTES, key=name, with_state=True).map(_texts)


def _texts(found: Frame[str, Note] | State[str, Note]) -> Iterable[tuple[str, str | None]]:
    if isinstance(found, State):
        return [(name, note.text) for name, note in found.rows]
    return [(change.key, None if change.new is None else change.new.text) for change in found.changes]
