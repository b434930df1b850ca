"""Does this hold still hold? Asked inside other commands."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return []
