"""Things done once in the life of the cluster."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.once.fsm import Once


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Once]
