"""Every hook a plugin may implement (pluggy). A plugin is a module or object found by entry point, or given as ``plugins=[...]``.

    from tauraft import hookimpl

    @hookimpl
    def tauraft_fsms() -> list[type[FSM]]:
        return [Counter]

A hook that is not listed here, or takes an argument that is not, is refused when the plugin is loaded, naming it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

if TYPE_CHECKING:
    from tauraft.fsm import FSM

_F = TypeVar("_F", bound=Callable[..., Any])
hookspec: Callable[[_F], _F] = pluggy.HookspecMarker("tauraft")
hookimpl: Callable[[_F], _F] = pluggy.HookimplMarker("tauraft")


@hookspec
def tauraft_fsms() -> list[type[FSM]]:  # type: ignore[empty-body]
    """The state machines it brings: one class per version it can run.

    Called once, when the process first needs plugins, on the thread that makes the cluster. Must not do I/O.
    """


@hookspec
def tauraft_leadership_changed(namespace: str, leader: str | None, term: int) -> None:
    """A replica of this process learned of another leader (a peer id; None: unknown).

    Called on a thread of its own, never on the engine's; exceptions are logged and counted.
    """


@hookspec
def tauraft_node_started(node: Any) -> None:
    """A node of this process serves. Called on a thread of its own."""


@hookspec
def tauraft_node_stopping(node: Any) -> None:
    """A node of this process is about to close. Called on a thread of its own, and waited for at most 5 s."""
