"""What is promised, which test shows it, and whether that test can fail.

``tests/promises/required.toml`` lists every line that must be shown, by id.  Each other file there is one room's
answers: a promise, the tests that show it, and *guards*, small mutations of the code that must turn one of them red.

``python -m tools.promises table [--check]``          writes (or compares) tests/scenarios/COVERAGE.md.
``python -m tools.promises guards [WHAT ...] [-j N]``  proves it: WHAT is a room (``locks``: its file) or an id.
    The tests must pass as the tree is; then each guard is applied in a copy of the tree, and its promise's tests must
    fail there.  A test that cannot be imported, or an edit that leaves a name undefined, is a broken guard and shows nothing.

A room's file::

    [[promise]]
    id = "locks.fifo"                     # one id may be answered in several rooms, and need not be a required one
    says = "Waiters are served in the order of the log, higher priority first."
    tests = ["tests/primitives/test_locks.py::test_waiters_are_served_in_order"]
    [promise.guard]                       # or [[promise.guard]], several; none is allowed, and listed by the table
    file = "plugins/tauraft_plugins/locks/fsm.py"
    find = "-command.priority"            # must occur `count` times (1 unless said); all are replaced
    replace = "0"

Well-formedness is checked without running anything (``problems``): the fast suite does so on every run.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Literal

ROOT: Final = Path(__file__).parent.parent
PROMISES: Final = Path("tests/promises")
TABLE: Final = Path("tests/scenarios/COVERAGE.md")
# All that a test needs to run from a copy.
COPIED: Final = (
    "tauraft",
    "plugins",
    "primitives",
    "tests",
    "tools",
    "examples",
    "docs",
    "pyproject.toml",
    "README.md",
)
# What may be mutated: a promise is kept by the code, not by its tests.
MUTABLE: Final = ("tauraft/", "plugins/", "primitives/")
# An edit that ends in one of these did not take a rule out, it broke the module.
BROKEN: Final = (
    "ImportError",
    "ModuleNotFoundError",
    "SyntaxError",
    "IndentationError",
    "NameError",
    "UnboundLocalError",
)


class Malformed(Exception):
    """A file of tests/promises is not what the module's docstring says. ``args[0]`` says where and why."""


@dataclass(frozen=True, slots=True)
class Guard:
    """An edit after which one of the promise's tests must fail."""

    file: str
    find: str
    replace: str
    count: int = 1

    def applied(self, text: str) -> str:
        return text.replace(self.find, self.replace)


@dataclass(frozen=True, slots=True)
class Promise:
    id: str
    says: str
    tests: tuple[str, ...]
    guards: tuple[Guard, ...]
    room: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading of the table, with the lines under it that must be shown: id to sentence."""

    title: str
    lines: dict[str, str]


# --- reading ---------------------------------------------------------------------------------------------------------


def required(root: Path = ROOT) -> list[Section]:
    path = root / PROMISES / "required.toml"
    sections = []
    seen: set[str] = set()
    for place, row in enumerate(_rows(path, "section"), 1):
        where = f"{path.name}, section {place}"
        title = _field(row, "title", str, where)
        lines = _field(row, "lines", dict, where)
        _nothing_else(row, {"title", "lines"}, where)
        for identity, says in lines.items():
            if not isinstance(says, str) or not says:
                raise Malformed(f"{where}: {identity!r} must be a sentence")
            if identity in seen:
                raise Malformed(f"{where}: {identity!r} is listed twice")
            seen.add(identity)
        sections.append(Section(title, lines))
    return sections


def promises(root: Path = ROOT) -> list[Promise]:
    """Of every room, in the order of the files."""
    found = []
    for path in sorted((root / PROMISES).glob("*.toml")):
        if path.name != "required.toml":
            ids: set[str] = set()
            for place, row in enumerate(_rows(path, "promise"), 1):
                promise = _promise(row, path.stem, f"{path.name}, promise {place} ({row.get('id', 'no id')})")
                if promise.id in ids:
                    raise Malformed(f"{path.name}: {promise.id!r} is there twice; give one promise all its tests")
                ids.add(promise.id)
                found.append(promise)
    return found


def _rows(path: Path, key: str) -> list[dict[str, Any]]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Malformed(f"{path.name}: {error}") from None
    rows = document.pop(key, [])
    if document or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Malformed(f"{path.name}: holds [[{key}]] tables and nothing else; found {', '.join(document) or key}")
    return rows


def _promise(row: dict[str, Any], room: str, where: str) -> Promise:
    _nothing_else(row, {"id", "says", "tests", "guard"}, where)
    tests = _field(row, "tests", list, where)
    if not tests or not all(isinstance(test, str) for test in tests) or len(set(tests)) != len(tests):
        raise Malformed(f"{where}: `tests` must name different tests, at least one")
    given = row.get("guard", [])
    guards = [given] if isinstance(given, dict) else given
    if not isinstance(guards, list) or not all(isinstance(guard, dict) for guard in guards):
        raise Malformed(f"{where}: `guard` must be a table, or an array of tables")
    return Promise(
        id=_field(row, "id", str, where),
        says=_field(row, "says", str, where),
        tests=tuple(tests),
        guards=tuple(_guard(guard, f"{where}, guard") for guard in guards),
        room=room,
    )


def _guard(row: dict[str, Any], where: str) -> Guard:
    _nothing_else(row, {"file", "find", "replace", "count"}, where)
    guard = Guard(
        file=_field(row, "file", str, where),
        find=_field(row, "find", str, where),
        replace=_field(row, "replace", str, where, empty=True),
        count=_field(row, "count", int, where) if "count" in row else 1,
    )
    if guard.find == guard.replace or guard.count < 1:
        raise Malformed(f"{where}: changes nothing")
    return guard


def _field(row: dict[str, Any], name: str, kind: type, where: str, *, empty: bool = False) -> Any:
    value = row.get(name)
    if type(value) is not kind or (not value and not empty):
        raise Malformed(f"{where}: `{name}` must be {'a' if empty else 'a non-empty'} {kind.__name__}, not {value!r}")
    return value


def _nothing_else(row: dict[str, Any], allowed: set[str], where: str) -> None:
    if unknown := set(row) - allowed:
        raise Malformed(f"{where}: unknown {', '.join(sorted(unknown))}; it may hold {', '.join(sorted(allowed))}")


# --- checking without running ----------------------------------------------------------------------------------------


def problems(found: Sequence[Promise], root: Path = ROOT) -> list[str]:
    """What names a test that is not there, or an edit that cannot be made; one sentence each."""
    return [problem for promise in found for problem in _problems(promise, root)]


def _problems(promise: Promise, root: Path) -> Iterator[str]:
    where = f"{promise.room}.toml, {promise.id}"
    for test in promise.tests:
        file, *names = test.split("[")[0].split("::")
        if not (root / file).is_file():
            yield f"{where}: no file {file}"
        elif "::".join(names) not in _tests_in(root / file):
            yield f"{where}: no test {test}"
    for guard in promise.guards:
        path = root / guard.file
        if not guard.file.startswith(MUTABLE) or ".." in guard.file or not path.is_file():
            yield f"{where}: a guard edits a file under {', '.join(MUTABLE)}; not {guard.file}"
            continue
        text = path.read_text(encoding="utf-8")
        if (occurs := text.count(guard.find)) != guard.count:
            yield f"{where}: {guard.find!r} occurs {occurs} times in {guard.file}, not {guard.count}"
        elif path.suffix == ".py" and not _parses(guard.applied(text)):
            yield f"{where}: {guard.file} is no Python after the edit"


@cache
def _tests_in(path: Path) -> frozenset[str]:
    """``test_x`` and ``TestY::test_x`` of a file, as pytest would find them."""
    return frozenset(_named(ast.parse(path.read_text(encoding="utf-8")), ""))


def _named(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and child.name.startswith("test"):
            yield prefix + child.name
        elif isinstance(child, ast.ClassDef):
            yield from _named(child, f"{prefix}{child.name}::")


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


# --- the table -------------------------------------------------------------------------------------------------------


def table(sections: Sequence[Section], found: Sequence[Promise]) -> str:
    """COVERAGE.md. No totals in it, so that two branches that add to it differ only in the lines they are about."""
    shown: dict[str, list[Promise]] = {}
    for promise in found:
        shown.setdefault(promise.id, []).append(promise)
    listed = {identity for section in sections for identity in section.lines}
    besides: dict[str, str] = {promise.id: promise.says for promise in found if promise.id not in listed}
    text = [
        "# What must be shown, and the tests that show it",
        "",
        "Written by `make coverage-table` from tests/promises; do not edit. `make guards` takes out what keeps each promise,",
        "and its tests must fail: *unguarded* says that nothing was named to take out.",
    ]
    for section in [*sections, Section("Besides", dict(sorted(besides.items())))]:
        text += ["", f"## {section.title}", "", "| id | what | shown by |", "|---|---|---|"]
        text += [
            f"| {identity} | {_cell(says)} | {_by(shown.get(identity, []))} |"
            for identity, says in section.lines.items()
        ]
    return "\n".join(text) + "\n"


def _by(answers: Sequence[Promise]) -> str:
    if not answers:
        return "**missing**"
    tests = [f"`{_cell(test.removeprefix('tests/'))}`" for answer in answers for test in answer.tests]
    unguarded = "" if any(answer.guards for answer in answers) else " (*unguarded*)"
    return "<br>".join(dict.fromkeys(tests)) + unguarded


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- the guards ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one guard: ``found`` is as it should be."""

    verdict: Literal["found", "stays green", "broken guard", "red already"]
    promise: Promise
    guard: Guard
    detail: str = ""

    def __str__(self) -> str:
        edit = f"{self.guard.file}: {' '.join(self.guard.find.split())!r} -> {' '.join(self.guard.replace.split())!r}"
        return f"{self.verdict}: {self.promise.id}: {edit}" + (f"\n    {self.detail}" if self.detail else "")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of pytest: what failed, by the id of the test, with the exception as the summary names it; how long each took."""

    passed: bool
    failed: dict[str, str]
    output: str
    took: dict[str, float]

    def seconds(self, tests: Sequence[str]) -> float:
        return sum(took for name, took in self.took.items() if any(_is_of(name, test) for test in tests))


class Copy:
    """A copy of the tree to run tests in. One worker's; a mutated file is put back before the next."""

    def __init__(self, root: Path, into: Path) -> None:
        self.path = into
        into.mkdir()
        for name in COPIED:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, into / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            elif source.exists():
                shutil.copy2(source, into / name)
        # Compiled once, and checked by their hash: two edits of equal length within one second are told apart.
        command = [
            sys.executable,
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "checked-hash",
            "tauraft",
            "plugins",
            "primitives",
        ]
        subprocess.run([part for part in command if part not in COPIED or (into / part).is_dir()], cwd=into, check=True)

    def mutated(self, guard: Guard, tests: Sequence[str], limit_s: float) -> Run:
        path = self.path / guard.file
        original = path.read_text(encoding="utf-8")
        path.write_text(guard.applied(original), encoding="utf-8")
        try:
            return self.run([*tests, "-x"], limit_s)
        finally:
            path.write_text(original, encoding="utf-8")

    def run(self, arguments: Sequence[str], limit_s: float) -> Run:
        """Of a run past the limit: not passed, and nothing named as failed. All it started is ended with it."""
        paths = [str(self.path), str(self.path / "plugins"), str(self.path / "primitives")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "400"}
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-rfE", *arguments]
        command += ["--durations=0", "--durations-min=0.05"]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                command, cwd=self.path, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            text = output.read()
        # Only what stands under the summary's heading: log records of a failed test begin with ERROR, too.
        summary = text.rpartition("short test summary info")[2]
        failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", summary, flags=re.MULTILINE)
        took: dict[str, float] = {}
        for seconds, name in re.findall(r"^([\d.]+)s (?:setup|call|teardown) +(.+)$", text, flags=re.MULTILINE):
            took[name] = took.get(name, 0) + float(seconds)
        return Run(process.returncode == 0, dict(failed), text, took)


def guards(chosen: Sequence[Promise], root: Path = ROOT, jobs: int = 1) -> Iterator[Outcome]:
    """Try each guard of ``chosen``, in their order."""
    with tempfile.TemporaryDirectory(prefix="tauraft-guards-") as scratch:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            copies.put(Copy(root, Path(scratch) / str(number)))
        copy = copies.get()
        tests = dict.fromkeys(test for promise in chosen if promise.guards for test in promise.tests)
        sound = copy.run(list(tests), limit_s=3600) if tests else Run(True, {}, "", {})
        copies.put(copy)
        if not sound.passed and not sound.failed:
            raise Malformed(f"the tests do not run as the tree is:\n{sound.output[-4000:]}")

        def attempt(task: tuple[Promise, Guard]) -> Outcome:
            promise, guard = task
            already = [red for red in sound.failed if any(_is_of(red, test) for test in promise.tests)]
            if already:
                return Outcome("red already", promise, guard, already[0])
            mine = copies.get()
            try:
                # Longer than they took unmutated: only what hangs is cut off.
                limit_s = 60 + 3 * sound.seconds(promise.tests)
                return _judged(promise, guard, mine.mutated(guard, promise.tests, limit_s))
            finally:
                copies.put(mine)

        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(attempt, [(promise, guard) for promise in chosen for guard in promise.guards])


def _judged(promise: Promise, guard: Guard, run: Run) -> Outcome:
    if run.passed:
        return Outcome("stays green", promise, guard)
    for test, error in run.failed.items():
        if "::" not in test or error.split(":")[0] in BROKEN:
            return Outcome("broken guard", promise, guard, f"{test}: {error}")
    # A test killed by its time-out, or with its process, has failed: the rule's removal was noticed.
    if not run.failed and re.search(r"no tests ran|not found:|usage:", run.output):
        return Outcome("broken guard", promise, guard, run.output[-400:].strip())
    return Outcome("found", promise, guard)


def _is_of(node: str, test: str) -> bool:
    """Whether the summary's ``node`` is ``test``, one of its parameters, or its whole file."""
    return node == test or node.split("[")[0] == test or node == test.split("::")[0]


# --- commands --------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools.promises", description="What is promised, and what shows it.")
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("table", help=f"write {TABLE}")
    writing.add_argument("--check", action="store_true", help="fail where it is not current, or an entry is wrong")
    proving = commands.add_parser("guards", help="take out each guard; its tests must fail")
    proving.add_argument("what", nargs="*", help="rooms or ids; all, when none is given")
    proving.add_argument("-j", "--jobs", type=int, default=1, help="how many at once (1)")
    given = parser.parse_args(arguments)
    try:
        sections, found = required(), promises()
        wrong = problems(found)
        for problem in wrong:
            print(problem, file=sys.stderr)
        if given.command == "table":
            return max(bool(wrong), _table(sections, found, check=given.check))
        return max(bool(wrong), 0 if wrong else _guards(found, given.what, max(1, given.jobs)))
    except Malformed as error:
        print(error, file=sys.stderr)
        return 1


def _table(sections: Sequence[Section], found: Sequence[Promise], *, check: bool) -> int:
    text, path = table(sections, found), ROOT / TABLE
    lines = [identity for section in sections for identity in section.lines]
    shown = {promise.id for promise in found}
    print(f"{len(shown.intersection(lines))} of {len(lines)} lines shown")
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        if check:
            print(f"{TABLE} is not current: python -m tools.promises table", file=sys.stderr)
            return 1
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


def _guards(found: Sequence[Promise], what: Sequence[str], jobs: int) -> int:
    chosen = [promise for promise in found if not what or promise.room in what or promise.id in what]
    if unknown := set(what) - {promise.room for promise in chosen} - {promise.id for promise in chosen}:
        print(f"no room and no promise: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    outcomes = []
    for outcome in guards(chosen, jobs=jobs):
        outcomes.append(outcome)
        print(outcome, flush=True)
    kept = sum(outcome.verdict == "found" for outcome in outcomes)
    print(f"{kept} of {len(outcomes)} guards are found missing; {sum(not p.guards for p in chosen)} promises have none")
    return 0 if kept == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
