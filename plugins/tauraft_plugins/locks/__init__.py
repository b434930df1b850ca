"""Exclusive locks: first come, first served, with fencing tokens."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.locks.fsm import Locks


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Locks]
