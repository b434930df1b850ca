"""Do the same commands give the same rows in a process with other hashes? The rule "hash-order" of ``check_fsm``.

Iterating a set of strings follows their hashes, which differ from process to process.  So the entries of all sequences are run
by this module in two child processes, with different PYTHONHASHSEED, and what comes of them is compared.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from tauraft.fsm import FSM
from tauraft.plugin_manager import Registry

SEEDS = ("1", "2", "3")
ROUNDS = 6  # of shortening; each takes all processes once


def check_hash_order(
    fsm: type[FSM], sequences: Sequence[Sequence[Any]], entries_of: Callable[[Sequence[Any]], list[bytes]]
) -> None:
    """Raises ``FSMViolation``. A class that a fresh process cannot import (one made in a function) is refused."""
    from tauraft.testing.fsm_check import FSMViolation, _story

    differing = _first_difference(fsm, sorted(set(sequences), key=len), entries_of)
    if differing is None:
        return
    for _ in range(ROUNDS):
        shorter = [[*differing[:place], *differing[place + 1 :]] for place in range(len(differing))]
        found = _first_difference(fsm, shorter, entries_of)
        if found is None:
            break
        differing = found
    raise FSMViolation(
        "hash-order",
        f"processes with different hashes hold different rows: something iterates a set.{_story(differing)}",
    )


def _first_difference(
    fsm: type[FSM], sequences: Sequence[Sequence[Any]], entries_of: Callable[[Sequence[Any]], list[bytes]]
) -> Sequence[Any] | None:
    wanted = msgpack.packb([entries_of(steps) for steps in sequences])
    told = [_run_elsewhere(fsm, wanted, seed) for seed in SEEDS]
    for place, steps in enumerate(sequences):
        if len({one[place] for one in told}) > 1:
            return steps
    return None


def _run_elsewhere(fsm: type[FSM], wanted: bytes, seed: str) -> list[str]:
    if "<locals>" in fsm.__qualname__:
        raise TypeError(
            f"{fsm.__qualname__} is made in a function: define it in a module, where another process finds it"
        )
    module = sys.modules[fsm.__module__]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    ran = subprocess.run(
        [sys.executable, "-m", __name__, fsm.__module__, getattr(module, "__file__", "") or "", fsm.__qualname__],
        input=wanted,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
    )
    if ran.returncode:
        raise RuntimeError(f"a process that repeats the commands failed:\n{ran.stderr.decode(errors='replace')}")
    told: list[str] = msgpack.unpackb(ran.stdout)
    return told


def _load(name: str, path: str, qualname: str) -> type[FSM]:
    try:
        found: Any = importlib.import_module(name)
    except ImportError:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        found = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    for part in qualname.split("."):
        found = getattr(found, part)
    kind: type[FSM] = found
    return kind


def main(name: str, path: str, qualname: str) -> None:
    from tauraft.testing.fsm_check import fingerprint

    registry = Registry([_load(name, path, qualname)])
    sequences = msgpack.unpackb(sys.stdin.buffer.read())
    sys.stdout.buffer.write(msgpack.packb([fingerprint(registry, entries) for entries in sequences]))


if __name__ == "__main__":
    main(*sys.argv[1:])
