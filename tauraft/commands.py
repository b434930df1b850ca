"""What the handles send, for ``transaction(...)`` and ``kv.transaction(then=...)``."""

from tauraft_primitives.kv.messages import Delete, Get, Put
from tauraft_primitives.locks.messages import CheckHold

__all__ = ["CheckHold", "Delete", "Get", "Put"]
