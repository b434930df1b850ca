"""Who is there, and who has which partition."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.groups.members import Groups
from tauraft_plugins.groups.partitions import Partitions


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Groups, Partitions]
