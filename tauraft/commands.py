"""What the handles send, for ``transaction(...)`` and ``kv.transaction(then=...)``."""

from tauraft_primitives.counters.messages import Add
from tauraft_primitives.fencing.messages import CheckHold
from tauraft_primitives.kv.messages import Delete, Get, Put
from tauraft_primitives.queues.messages import Ack, Enqueue

__all__ = ["Ack", "Add", "CheckHold", "Delete", "Enqueue", "Get", "Put"]
