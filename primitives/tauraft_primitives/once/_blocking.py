# Generated from tauraft_primitives.once.handle by `python -m tauraft.twin`; change that file, not this one.
"""Something done once in the life of the cluster, as a caller asks for it: ``Once`` by name, ``Turn`` while it runs.

``run`` either runs the work under a turn, which is a hold (``tauraft_primitives.holds``), or waits for the result of who does.
What the work returned is said to the cluster until it has heard it, whatever happens to the caller meanwhile.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from collections.abc import Callable

from tauraft import errors
from tauraft.handle import Holder, Returned, as_bytes, check_name, check_patience
from tauraft.types import Bytes, OnceInfo, Owner
from tauraft_primitives.checks import check_value
from tauraft_primitives.holds._blocking import Hold, OneHeld, next_attempt, wait_for
from tauraft_primitives.once.messages import (
    AskOnce,
    Begin,
    Begun,
    Finish,
    ForgetOnce,
    GiveBackTurn,
    GiveUpTurn,
    HasTurn,
)


class Turn(Hold):
    """The work's turn. ``token`` fences: give it to whatever the work writes to."""

    result: bytes | None = None  # of the work, once it is done

    def _finish(self, result: bytes) -> None:
        command = Finish(self.name, self.token, result)
        self.check()
        try:
            self._holder.submit(command)
        except errors.NotHolder:
            raise self._lost() from None
        except errors.Refused:
            raise
        except BaseException:
            # Interrupted or unanswered: the work is done, so the engine goes on saying it.
            self._end()
            self._holder.submit_soon(command)
            raise
        self.result = result
        self._end()


class Once:
    """Something by name that is done once. Made without I/O; may be shared by tasks and threads."""

    def __init__(self, holder: Holder, name: str) -> None:
        self.name = check_name(name)
        self._holder = holder

    def run(
        self, work: Callable[[Turn], Returned[Bytes | None]], *, timeout: float | None = None
    ) -> bytes:
        """What ``work(turn)`` returned: here, now, or wherever it was run. None is kept as no bytes.

        While another runs it this waits (``timeout``: ``WaitTimeout``). If ``work`` raises, or its process is lost, it was not done:
        the next who waits runs it. A work that loses its turn is cancelled (blocking: it looks at ``turn.lost``), and ``LockLost`` raised.
        """
        if not callable(work):
            raise TypeError(f"work must be callable, not {type(work).__name__}")
        patience = check_patience(timeout)
        with _AsyncOneTurn(self._holder, self.name, patience) as turn:
            if turn.result is None:
                found = work(turn)
                turn._finish(check_value(b"" if found is None else as_bytes(found, "result"), "result"))
        assert turn.result is not None
        return turn.result

    def result(self) -> bytes | None:
        """None: it is not done."""
        return (self.info()).result

    def info(self) -> OnceInfo:
        """Whether it is done, by whom and with what result; or who runs it, and who waits."""
        return self._holder.query(AskOnce(self.name))

    def forget(self) -> bool:
        """Let it be done again. False: it was not done."""
        return self._holder.submit(ForgetOnce(self.name))


class _AsyncOneTurn(OneHeld[Turn]):
    def __init__(self, holder: Holder, name: str, patience: float | None) -> None:
        super().__init__()
        self._holder = holder
        self._name = name
        self._patience = patience

    def _take(self) -> Turn:
        holder, name, attempt = self._holder, self._name, next_attempt()
        started = holder.now()

        def build(begun: Begun) -> Turn:
            turn = Turn(
                holder,
                "turn of",
                name,
                begun.token,
                holder.tenure(ttl=None, started=started, renewal=None),
                release=GiveUpTurn(name, begun.token),
                holds=HasTurn(name, begun.token),
            )
            if not begun.token:  # there is nothing to hold
                turn.result = begun.result
                turn._end()
            return turn

        command = Begin(name, Owner(0, *holder.whoami()), self._patience, attempt)
        return wait_for(holder, command, self._patience, GiveBackTurn(name, attempt), build)
