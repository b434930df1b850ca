"""Generates the blocking twin of an async module: ``tauraft twin SRC`` (``tauraft.cli.twin``) for anybody's handles.

Async is the source, because it says where a caller may be suspended; the twin says the same without ``async`` and ``await``.
It works on tokens, so comments, layout and types stay: ``async``/``await`` go, ``AsyncX`` becomes ``X``,
``__aenter__`` becomes ``__enter__``, ``StopAsyncIteration`` ``StopIteration``, and a module that has a twin is imported by its twin.
A handle that awaits only what ``tauraft.handle`` offers needs nothing else.  What it cannot do is refused: an
``asyncio``, ``anyio`` or ``trio`` import has no blocking form.

``python -m tauraft.twin --check`` compares the committed twins with what their sources give now; ``--write`` renews them.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Final

RENAMED: Final = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "StopAsyncIteration": "StopIteration",
    "asynccontextmanager": "contextmanager",
    "aclosing": "closing",
    "AbstractAsyncContextManager": "AbstractContextManager",
}
# The modules of ours that have a twin, and where it is. Third-party twins are named by their importers.
TWINS: Final = (
    ("tauraft.primitives", "tauraft._blocking.primitives"),
    ("tauraft.cluster", "tauraft._blocking.cluster"),
    ("tauraft_primitives.cron.handle", "tauraft_primitives.cron._blocking"),
    ("tauraft_primitives.barriers.handle", "tauraft_primitives.barriers._blocking"),
    ("tauraft_primitives.elections.handle", "tauraft_primitives.elections._blocking"),
    ("tauraft_primitives.fencing.handle", "tauraft_primitives.fencing._blocking"),
    ("tauraft_primitives.groups.handle", "tauraft_primitives.groups._blocking"),
    ("tauraft_primitives.once.handle", "tauraft_primitives.once._blocking"),
    ("tauraft_primitives.partitions.handle", "tauraft_primitives.partitions._blocking"),
    ("tauraft_primitives.rates.handle", "tauraft_primitives.rates._blocking"),
    ("tauraft_primitives.holds.handle", "tauraft_primitives.holds._blocking"),
    ("tauraft_primitives.leases.handle", "tauraft_primitives.leases._blocking"),
    ("tauraft_primitives.kv.handle", "tauraft_primitives.kv._blocking"),
    ("tauraft_primitives.locks.handle", "tauraft_primitives.locks._blocking"),
    ("tauraft_primitives.queues.handle", "tauraft_primitives.queues._blocking"),
    ("tauraft_primitives.counters.handle", "tauraft_primitives.counters._blocking"),
    ("tauraft_primitives.rwlocks.handle", "tauraft_primitives.rwlocks._blocking"),
    ("tauraft_primitives.semaphores.handle", "tauraft_primitives.semaphores._blocking"),
)
_ASYNC_NAME: Final = re.compile(r"\bAsync(?=[A-Z])")
_WORDS: Final = re.compile(r"\b(async|await) +(?=\S)")


class NoTwin(Exception):
    """The source does something that has no blocking form. ``args[0]`` says where."""


def blocking(
    source: str, origin: str, *, command: str = "python -m tauraft.twin", twins: Sequence[tuple[str, str]] = ()
) -> str:
    """The twin's text. ``origin`` and ``command`` are named in its first line; ``twins``: of what it imports, besides ours.

    Raises ``NoTwin``; ``SyntaxError`` for what is no Python.
    """
    edits: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    try:
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type != tokenize.NL]
    except tokenize.TokenError as error:
        raise SyntaxError(f"{origin} is no Python: {error.args[0]}") from error
    for place, token in enumerate(tokens):
        if token.type == tokenize.NAME:
            following = tokens[place + 1]
            if token.string in ("async", "await"):
                # With the space after it; what follows moves left.
                stop = following.start if following.start[0] == token.end[0] else token.end
                edits.append((token.start, stop, ""))
            elif token.string in ("asyncio", "anyio", "trio"):
                raise NoTwin(
                    f"{origin}:{token.start[0]}: {token.string} has no blocking form; await through tauraft.handle"
                )
            elif RENAMED.get(token.string):
                edits.append((token.start, token.end, RENAMED[token.string]))
            elif _ASYNC_NAME.match(token.string):
                edits.append((token.start, token.end, token.string.removeprefix("Async")))
        elif token.type in (tokenize.STRING, tokenize.COMMENT):
            text = _WORDS.sub("", _ASYNC_NAME.sub("", token.string))
            if text != token.string:
                edits.append((token.start, token.end, text))
    text = _edited(source, edits)
    for module, twin in (*TWINS, *twins):
        text = re.sub(rf"\bfrom {re.escape(module)} import\b", f"from {twin} import", text)
    return f"# Generated from {origin} by `{command}`; change that file, not this one.\n{text}"


def _edited(source: str, edits: Sequence[tuple[tuple[int, int], tuple[int, int], str]]) -> str:
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    for (row, column), (end_row, end_column), text in sorted(edits, reverse=True):
        start, stop = starts[row - 1] + column, starts[end_row - 1] + end_column
        source = source[:start] + text + source[stop:]
    return source


def _path_of(module: str) -> Path:
    """Where a module of ours is: in the source tree, or side by side where all of it is installed."""
    root = Path(__file__).parent.parent
    relative = Path(*module.split(".")).with_suffix(".py")
    beside = root / "primitives" / relative
    return beside if beside.parent.is_dir() else root / relative


def drift(*, write: bool) -> list[str]:
    """The committed twins that differ from what their sources give; written anew if asked."""
    stale = []
    for module, twin in TWINS:
        source = _path_of(module)
        if not source.exists():
            stale.append(f"{module} is missing")
            continue
        target = _path_of(twin)
        text = blocking(source.read_text(encoding="utf-8"), module)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            stale.append(f"{twin} differs from {module}")
            if write:
                target.write_text(text, encoding="utf-8")
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tauraft.twin", description="The twins of tauraft's own modules.")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--check", action="store_true", help="fail when a committed twin is not what its source gives")
    chosen.add_argument("--write", action="store_true", help="renew the committed twins")
    writes = parser.parse_args(arguments).write
    stale = drift(write=writes)
    for line in stale:
        print(line, file=sys.stderr)
    return 1 if stale and not writes else 0


if __name__ == "__main__":
    sys.exit(main())
