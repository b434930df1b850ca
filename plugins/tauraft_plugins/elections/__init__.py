"""Who leads, by name, with a fencing token."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.elections.fsm import Elections


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Elections]
