"""For tests of applications and plugins: clusters whose time you move, checks of what you plug in.

``check_fsm``, ``check_log_store`` and ``check_transport`` hold a state machine, a log or a transport to what tauraft relies
on. ``MemoryCluster`` (the pytest fixture ``tauraft_cluster``) is a cluster of one in memory, ``SimulatedCluster`` three replicas on a network
and on disks that can be hurt; in both, time moves only when told.  Loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tauraft.testing.fsm_check import FSMViolation as FSMViolation, check_fsm as check_fsm
    from tauraft.testing.log_store_suite import check_log_store as check_log_store
    from tauraft.testing.memory_cluster import MemoryCluster as MemoryCluster
    from tauraft.testing.simulated_cluster import SimulatedCluster as SimulatedCluster
    from tauraft.testing.transport_suite import check_transport as check_transport

_HOMES = {
    "FSMViolation": "fsm_check",
    "MemoryCluster": "memory_cluster",
    "SimulatedCluster": "simulated_cluster",
    "check_fsm": "fsm_check",
    "check_log_store": "log_store_suite",
    "check_transport": "transport_suite",
}

__all__ = [
    "FSMViolation",
    "MemoryCluster",
    "SimulatedCluster",
    "check_fsm",
    "check_log_store",
    "check_transport",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
