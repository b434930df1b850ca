"""Keys and values, with revisions, conditions and expiry."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.kv.fsm import KeyValue


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [KeyValue]
