"""A command that runs while a lock is held, and not longer: what `tauraft lock run` does once it has the lock.

The command gets a process group of its own, and signals that come here go to that group.  When the lock is lost (its
session, its ttl, an operator's `lock break`) the group is ended: SIGTERM, and SIGKILL after a grace; it counts as ended only when
nobody of it is left, whoever of it was started by whom.

If this process itself is killed the lock goes to the next within milliseconds, so the command must go too: a *guard*,
a small process that holds the other end of a pipe, sees it close and kills the group at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Final

FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
LOOK_AGAIN_S: Final = 0.02  # the end of somebody else's child can only be looked for
NOT_FOUND, NOT_EXECUTABLE = 127, 126

# In a process of its own: a thread of this one would die with it.
_GUARD: Final = """
import os, signal, sys
if not sys.stdin.buffer.read():
    try:
        os.killpg(int(sys.argv[1]), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class CommandUnderLock:
    """``run`` is called once, in the main thread; ``lose`` from any thread."""

    def __init__(self, command: Sequence[str], token: int, grace_s: float) -> None:
        self.is_lost = False
        self._command = command
        self._token = token
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._came_early: list[int] = []
        self._ender: threading.Thread | None = None
        self._lock = threading.Lock()

    def run(self) -> int:
        """The command's exit code, 128 + n where signal n ended it. Raises ``OSError`` where it cannot be started."""
        # Before the command is there: a signal that ended us now would leave it running without its lock.
        before = {number: signal.signal(number, self._forward) for number in FORWARDED}
        try:
            environment = {**os.environ, "TAURAFT_TOKEN": str(self._token)}
            process = subprocess.Popen(self._command, env=environment, start_new_session=True)
            guard = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD, str(process.pid)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            with self._lock:
                self._process = process
                if self.is_lost:
                    self._start_ending()
            for number in self._came_early:
                self._signal_group(number)
            code = process.wait()
            if self._ender is not None:
                self._ender.join()
            guard.communicate(b"done")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return code if code >= 0 else 128 - code

    def lose(self) -> None:
        """The lock is lost: the group is ended."""
        with self._lock:
            if not self.is_lost:
                self.is_lost = True
                if self._process is not None:
                    self._start_ending()

    def _start_ending(self) -> None:
        self._ender = threading.Thread(target=self._end_group, name="tauraft-end-command")
        self._ender.start()

    def _end_group(self) -> None:
        self._signal_group(signal.SIGTERM)
        pause = threading.Event()
        left_s = self._grace_s
        while left_s > 0 and self._is_there():
            pause.wait(LOOK_AGAIN_S)
            left_s -= LOOK_AGAIN_S
        self._signal_group(signal.SIGKILL)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if self._process is None:
            self._came_early.append(number)
        else:
            self._signal_group(number)

    def _is_there(self) -> bool:
        return self._signal_group(0)

    def _signal_group(self, number: int) -> bool:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False  # it ended by itself
        return True
