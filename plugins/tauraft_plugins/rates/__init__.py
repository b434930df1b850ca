"""Token buckets in cluster time."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.rates.fsm import Rates


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Rates]
