"""What every `watch` does alike: ``--since``, and lines for what changes in one table, until interrupted.

A *line* is one thing to tell, twice: as an object for ``--json``, and in words.  Those of one revision are written at once, so
that whoever has the last line of a revision has all of it, and goes on with ``--since`` that revision.

Without ``--since`` the state comes first (unless a command wants news alone), so there is a revision to go on from before anything
has changed.  Where changes are gone already the state comes in their place: that one is a *resync*.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import click

from tauraft.cli.main import Target

if TYPE_CHECKING:
    from tauraft.fsm import TableName
    from tauraft.handle import Frame, State

K = TypeVar("K")
V = TypeVar("V")

Line: TypeAlias = tuple[dict[str, Any], str]
RESYNC: Final = " (resync: what changed before is gone)"

since_option = click.option(
    "--since", type=click.IntRange(0), default=None, help="Go on after this revision: the last one printed."
)


def follow(
    target: Target,
    table: TableName[K, V],
    lines_of: Callable[[Frame[K, V] | State[K, V], bool], Iterable[Line]],
    *,
    since: int | None,
    is_state_first: bool = True,
    key: K | None = None,
    low: K | None = None,
    high: K | None = None,
) -> None:
    """Print what ``lines_of(frame or state, is_resync)`` says, until interrupted."""
    begins_with_state = is_state_first and since is None
    with (
        target.client() as client,
        client.watch(table, key=key, low=low, high=high, since_revision=since, with_state=begins_with_state) as watch,
    ):
        try:
            for lines in told(watch, lines_of, begins_with_state=begins_with_state):
                click.echo("\n".join(json.dumps(line) if target.as_json else text for line, text in lines))
        except KeyboardInterrupt:
            pass  # how it is meant to end


def told(
    watch: Iterable[Frame[K, V] | State[K, V]],
    lines_of: Callable[[Frame[K, V] | State[K, V], bool], Iterable[Line]],
    *,
    begins_with_state: bool,
) -> Iterator[list[Line]]:
    """The lines of each revision of which there is something to tell."""
    from tauraft.handle import State

    is_asked_for = begins_with_state
    for frame in watch:
        lines = list(lines_of(frame, isinstance(frame, State) and not is_asked_for))
        is_asked_for = False
        if lines:
            yield lines


def state_line(name: str, revision: int, is_resync: bool, present: dict[str, Any], words: str) -> Line:
    """What there is of ``name``: first of all, or after a gap."""
    line = {"event": "resync" if is_resync else "state", "name": name, "revision": revision}
    return line | present, f"{revision} {name}{RESYNC if is_resync else ''}: {words}"


def one_row(
    line_of: Callable[[int, V | None], Line], is_news: Callable[[V | None, V | None], bool] = operator.ne
) -> Callable[[Frame[K, V] | State[K, V], bool], Iterator[Line]]:
    """For a watch of one key: ``line_of(revision, row)``, None where there is no row. After a gap the row says all there is."""

    def lines(frame: Frame[K, V] | State[K, V], _: bool) -> Iterator[Line]:
        from tauraft.handle import State

        if isinstance(frame, State):
            yield line_of(frame.revision, frame.rows[0][1] if frame.rows else None)
        else:
            for change in frame.changes:
                if is_news(change.old, change.new):
                    yield line_of(frame.revision, change.new)

    return lines
