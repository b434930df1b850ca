"""Counters that never wrap around, and blocks of unique ids."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.counters.fsm import Counters, Ids


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Counters, Ids]
