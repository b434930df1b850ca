"""Something done once in the life of the cluster, as a caller asks for it: ``AsyncOnce`` by name, ``AsyncTurn`` while it runs.

``run`` either runs the work under a turn, which is a hold (``tauraft_primitives.holds``), or waits for the result of who does.
What the work returned is said to the cluster until it has heard it, whatever happens to the caller meanwhile.

The blocking twin, ``_blocking.py``, is generated from this file.
"""

from __future__ import annotations

from collections.abc import Callable

from tauraft import errors
from tauraft.handle import AsyncHolder, AsyncReturned, as_bytes, check_name, check_patience
from tauraft.types import Bytes, OnceInfo, Owner
from tauraft_primitives.checks import check_value
from tauraft_primitives.holds.handle import AsyncHold, AsyncOneHeld, next_attempt, wait_for
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


class AsyncTurn(AsyncHold):
    """The work's turn. ``token`` fences: give it to whatever the work writes to."""

    result: bytes | None = None  # of the work, once it is done

    async def _finish(self, result: bytes) -> None:
        command = Finish(self.name, self.token, result)
        self.check()
        try:
            await self._holder.submit(command)
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


class AsyncOnce:
    """Something by name that is done once. Made without I/O; may be shared by tasks and threads."""

    def __init__(self, holder: AsyncHolder, name: str) -> None:
        self.name = check_name(name)
        self._holder = holder

    async def run(
        self, work: Callable[[AsyncTurn], AsyncReturned[Bytes | None]], *, timeout: float | None = None
    ) -> bytes:
        """What ``work(turn)`` returned: here, now, or wherever it was run. None is kept as no bytes.

        While another runs it this waits (``timeout``: ``WaitTimeout``). If ``work`` raises, or its process is lost, it was not done:
        the next who waits runs it. A work that loses its turn is cancelled (blocking: it looks at ``turn.lost``), and ``LockLost`` raised.
        """
        if not callable(work):
            raise TypeError(f"work must be callable, not {type(work).__name__}")
        patience = check_patience(timeout)
        async with _AsyncOneTurn(self._holder, self.name, patience) as turn:
            if turn.result is None:
                found = await work(turn)
                await turn._finish(check_value(b"" if found is None else as_bytes(found, "result"), "result"))
        assert turn.result is not None
        return turn.result

    async def result(self) -> bytes | None:
        """None: it is not done."""
        return (await self.info()).result

    async def info(self) -> OnceInfo:
        """Whether it is done, by whom and with what result; or who runs it, and who waits."""
        return await self._holder.query(AskOnce(self.name))

    async def forget(self) -> bool:
        """Let it be done again. False: it was not done."""
        return await self._holder.submit(ForgetOnce(self.name))


class _AsyncOneTurn(AsyncOneHeld[AsyncTurn]):
    def __init__(self, holder: AsyncHolder, name: str, patience: float | None) -> None:
        super().__init__()
        self._holder = holder
        self._name = name
        self._patience = patience

    async def _take(self) -> AsyncTurn:
        holder, name, attempt = self._holder, self._name, next_attempt()
        started = holder.now()

        def build(begun: Begun) -> AsyncTurn:
            turn = AsyncTurn(
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
        return await wait_for(holder, command, self._patience, GiveBackTurn(name, attempt), build)
