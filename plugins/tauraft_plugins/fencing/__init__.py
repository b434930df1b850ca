"""Does this hold still hold? Asked inside other commands."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.fencing.fsm import Fencing


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Fencing]
