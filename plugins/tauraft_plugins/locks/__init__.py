"""Locks, semaphores, and locks for readers and writers: first come, first served, with fencing tokens."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.locks.fsm import Locks
from tauraft_plugins.locks.rwlocks import RwLocks
from tauraft_plugins.locks.semaphores import Semaphores


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Locks, Semaphores, RwLocks]
