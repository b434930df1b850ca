"""Jobs on a calendar, and a ledger of their ticks."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.cron.fsm import Cron


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Cron]
