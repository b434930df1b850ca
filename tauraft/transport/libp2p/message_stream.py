"""Commands over one libp2p stream: complete, both ways, and cancellable.

``run`` is the one task that reads; ``receive`` takes from the inbox, so cancelling it loses nothing.  A receiver that
does not take what arrived is cut off at ``MAX_QUEUED_BYTES``: not reading instead would let the library reset the
stream after five seconds without a word.
"""

from __future__ import annotations

from tauraft.transport.frames import HEADER_BYTES
from tauraft.transport.inbox import FrameInbox
from tauraft.transport.libp2p.streams import PackedStream
from tauraft.transport.transport import MAX_QUEUED_BYTES, StreamClosed, StreamOverloaded, check_frame


class Libp2pMessageStream:
    """The ``MessageStream`` of the libp2p transport."""

    is_local = False

    def __init__(self, stream: PackedStream) -> None:
        self.peer_id = stream.peer_id
        self._stream = stream
        self._inbox = FrameInbox()

    def send(self, frame: bytes) -> None:
        check_frame(frame)
        if self._inbox.has_ended:
            raise StreamClosed(f"the stream with {self.peer_id} has ended")
        if self._stream.queued_bytes + len(frame) + HEADER_BYTES > MAX_QUEUED_BYTES:
            raise StreamOverloaded(f"{self.peer_id} does not read: {MAX_QUEUED_BYTES >> 20} MiB wait for it")
        self._stream.push(frame)

    async def receive(self) -> list[bytes]:
        return await self._inbox.receive()

    async def aclose(self) -> None:
        # The inbox ends first: nothing may be sent behind the end marker.
        self._inbox.end("the stream was closed here")
        await self._stream.finish()

    async def run(self) -> None:
        reason = "this node closed it"
        try:
            reason = await self._stream.run(self._arrived, lambda kind, payload: None)
        finally:
            self._inbox.end(reason)

    def _arrived(self, frames: list[bytes]) -> None:
        self._inbox.put(frames)
        if self._inbox.size_bytes > MAX_QUEUED_BYTES:
            self._stream.end(f"the receiver does not read: {MAX_QUEUED_BYTES >> 20} MiB wait for it")
