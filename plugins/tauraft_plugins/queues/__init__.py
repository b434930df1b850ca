"""Queues whose items are claimed under a token."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.queues.fsm import Queues


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Queues]
