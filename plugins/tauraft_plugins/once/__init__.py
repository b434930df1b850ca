"""Things done once in the life of the cluster."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return []
