"""Jobs on a calendar, and a ledger of their ticks."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return []
