"""The frames that have arrived on a stream and wait to be taken, in order.

The one place where a reader waits: whoever reads the network puts frames here and is never cancelled, so a
``receive`` that is cancelled leaves everything where it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from tauraft.transport.transport import StreamClosed


class FrameInbox:
    """Bounded by whoever fills it: ``size_bytes`` is what waits here."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._frames: list[bytes] = []
        self._end: str | None = None
        self._changed = anyio.Event()
        self._taken = anyio.Event()

    def put(self, frames: Sequence[bytes]) -> None:
        if self._end is not None:
            return
        self._frames.extend(frames)
        self.size_bytes += sum(map(len, frames))
        self._changed.set()

    def end(self, reason: str) -> None:
        """What has arrived may still be taken; then ``receive`` raises ``StreamClosed(reason)``."""
        if self._end is None:
            self._end = reason
            self._changed.set()
            self._taken.set()

    @property
    def has_ended(self) -> bool:
        return self._end is not None

    async def receive(self) -> list[bytes]:
        while not self._frames:
            if self._end is not None:
                raise StreamClosed(self._end)
            self._changed = anyio.Event()
            await self._changed.wait()
        frames, self._frames = self._frames, []
        self.size_bytes = 0
        self._taken.set()
        return frames

    async def wait_below(self, size_bytes: int) -> None:
        """Until fewer bytes wait, or the end: how a reader leaves the rest in the network's buffers."""
        while self.size_bytes >= size_bytes and self._end is None:
            self._taken = anyio.Event()
            await self._taken.wait()
