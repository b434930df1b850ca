"""No child of fork keeps this process's connections alive (SAFETY 6).

A descriptor that a child inherited holds its connection open when this process dies: the peer then sees no end, a killed
client's locks wait for their session to run out, a dead leader for an election time-out, and its port stays taken.
So each socket of ours is registered here where it is made, and closed in every child.  (exec closes them by itself.)
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakSet

S = TypeVar("S")  # a socket of the standard library or of trio: what can be detached from its descriptor

_sockets: WeakSet[Any] = WeakSet()


def keep_from_children(sock: S) -> S:
    _sockets.add(sock)
    return sock


def _close_in_child() -> None:
    for sock in list(_sockets):
        # Detached, so that the object, which is the child's copy, closes nothing else by that number later.
        with suppress(OSError):
            descriptor = sock.detach()
            if descriptor >= 0:
                os.close(descriptor)
    _sockets.clear()


os.register_at_fork(after_in_child=_close_in_child)
