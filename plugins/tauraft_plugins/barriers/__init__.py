"""Meeting points: gates, double and cyclic barriers, latches."""

from tauraft.fsm import FSM
from tauraft.hookspecs import hookimpl
from tauraft_plugins.barriers.cyclics import CyclicBarriers
from tauraft_plugins.barriers.doubles import DoubleBarriers
from tauraft_plugins.barriers.gates import Gates
from tauraft_plugins.barriers.latches import Latches


@hookimpl
def tauraft_fsms() -> list[type[FSM]]:
    return [Gates, Latches, DoubleBarriers, CyclicBarriers]
