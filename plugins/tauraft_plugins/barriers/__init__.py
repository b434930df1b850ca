"""Meeting points: gates, double and cyclic barriers, latches."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return []
