"""One question for every kind of hold, so that a transaction can be made conditional on it: ``CheckHold(token)``.

It has no state: it reads the state machines that hand out tokens, which are unique in a namespace.  One that
is not active on this cluster has handed out none.  To add one: give it ``is_held(token)`` and name it in ``HOLDERS``.
"""

from __future__ import annotations

from typing import Protocol, cast

from tauraft.errors import NotHolder, Refused
from tauraft.fsm import FSM, Context, applies
from tauraft_plugins.cron.fsm import Cron
from tauraft_plugins.elections.fsm import Elections
from tauraft_plugins.groups.members import Groups
from tauraft_plugins.groups.partitions import Partitions
from tauraft_plugins.kv.fsm import KeyValue
from tauraft_plugins.locks.fsm import Locks
from tauraft_plugins.locks.rwlocks import RwLocks
from tauraft_plugins.locks.semaphores import Semaphores
from tauraft_plugins.once.fsm import Once
from tauraft_plugins.queues.fsm import Queues
from tauraft_primitives.fencing.messages import FENCING, CheckHold

HOLDERS: tuple[type[FSM], ...] = (
    Locks,
    Semaphores,
    RwLocks,
    Queues,
    Elections,
    Groups,
    Partitions,
    Once,
    Cron,
    KeyValue,
)


class _Holder(Protocol):
    def is_held(self, token: int) -> bool: ...


class Fencing(FSM, name=FENCING, version=1, reads=HOLDERS):
    @applies(CheckHold)
    def check_hold(self, command: CheckHold, context: Context) -> None:
        for kind in HOLDERS:
            try:
                holder = cast(_Holder, context.read(kind))
            except Refused:
                continue  # not active here
            if holder.is_held(command.token):
                return
        raise NotHolder(f"token {command.token} holds nothing any more; nothing changed")
