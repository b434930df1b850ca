"""Who is there, and who has which partition."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return []
