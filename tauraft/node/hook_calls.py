"""What a node tells its plugins, and asks them (``tauraft.hookspecs``).

News (the node started, another leader, samples) is told on a thread for it alone, one call at a time, so that a slow or
broken plugin costs the engine nothing.  What waits for its turn is one piece of news for each thing that may change; the newer
replaces the older: nothing piles up.  Whether a peer may do something is asked in the engine, and an exception is a no.

A node whose plugins implement none of these starts no thread, and pays nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
import trio

from tauraft.core.messages import Role
from tauraft.errors import Refused
from tauraft.hookspecs import NodeInfo, Sample

if TYPE_CHECKING:
    from tauraft.node.host import NodeHost
    from tauraft.node.local_replica import LocalReplica

METRICS_INTERVAL_S: Final = 10.0
STOPPING_TIMEOUT_S: Final = 5.0
_log = logging.getLogger("tauraft.plugins")


class HookCalls:
    """The hooks of one node. ``hooks``: pluggy's relay; None where there are no plugins."""

    def __init__(self, hooks: Any) -> None:
        self._hooks = hooks
        self._news: dict[Hashable, Callable[[], object]] = {}
        self._has_news = trio.Event()
        self._turn = trio.Lock()
        self._sinks: list[Callable[[Sequence[Sample]], None]] = []
        self._started: NodeInfo | None = None
        self.failures = 0

    def is_implemented(self, hook: str) -> bool:
        return self._hooks is not None and bool(getattr(self._hooks, hook).get_hookimpls())

    # May it?

    def may(self, peer_id: str, namespace: str, action: str) -> bool:
        if not self.is_implemented("tauraft_authorize"):
            return True
        try:
            said = self._hooks.tauraft_authorize(peer=peer_id, namespace=namespace, action=action)
        except Exception:  # the edge to a plugin's code: who cannot be asked has not agreed
            self._note_failure("tauraft_authorize")
            return False
        return all(said)

    def authority(self, namespace: str) -> Callable[[str, str], Refused | None] | None:
        """(peer id, action) -> why not; None where nobody wants to be asked."""
        if not self.is_implemented("tauraft_authorize"):
            return None

        def refusal(peer_id: str, action: str) -> Refused | None:
            if self.may(peer_id, namespace, action):
                return None
            return Refused(
                "not-authorized",
                f"a plugin (tauraft_authorize) does not let {peer_id} do {action} in {namespace}; nothing changed",
            )

        return refusal

    # News.

    def node_started(self, node: NodeInfo) -> None:
        self._started = node
        if self.is_implemented("tauraft_node_started"):
            self._tell("started", lambda: self._hooks.tauraft_node_started(node=node))

    async def node_stopping(self, host: NodeHost) -> None:
        """Told and waited for, with the last samples."""
        node, self._started = self._started, None
        if node is None:
            return
        calls: list[Callable[[], object]] = []
        if self._sinks:
            calls.append(self._samples_told(host))
        if self.is_implemented("tauraft_node_stopping"):
            calls.append(lambda: self._hooks.tauraft_node_stopping(node=node))
        with trio.move_on_after(STOPPING_TIMEOUT_S) as patience:
            async with self._turn:
                for call in [*self._news.values(), *calls]:
                    await self._call_apart(call)
                self._news.clear()
        if patience.cancelled_caught:
            _log.warning("a plugin's tauraft_node_stopping took longer than %g s; the node closes", STOPPING_TIMEOUT_S)

    def leadership_listener(self, replica: LocalReplica) -> _Leadership | None:
        if not self.is_implemented("tauraft_leadership_changed"):
            return None
        return _Leadership(self, replica)

    def leadership_changed(self, namespace: str, leader: str | None, term: int) -> None:
        self._tell(
            ("leadership", namespace),
            lambda: self._hooks.tauraft_leadership_changed(namespace=namespace, leader=leader, term=term),
        )

    def _tell(self, about: Hashable, call: Callable[[], object]) -> None:
        self._news.pop(about, None)
        self._news[about] = call
        self._has_news.set()

    # Its tasks.

    async def run(self, host: NodeHost) -> None:
        """Until cancelled."""
        if self._hooks is None:
            return
        self._sinks = [sink for sink in self._hooks.tauraft_metrics() if callable(sink)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_news)
            if self._sinks:
                nursery.start_soon(self._tell_samples, host)

    async def _tell_news(self) -> None:
        while True:
            await self._has_news.wait()
            self._has_news = trio.Event()
            while self._news:
                async with self._turn:
                    if self._news:
                        await self._call_apart(self._news.pop(next(iter(self._news))))

    async def _tell_samples(self, host: NodeHost) -> None:
        while True:
            await trio.sleep(METRICS_INTERVAL_S)
            self._tell("samples", self._samples_told(host))

    def _samples_told(self, host: NodeHost) -> Callable[[], object]:
        told = samples(host)

        def tell() -> None:
            for sink in self._sinks:
                sink(told)

        return tell

    async def _call_apart(self, call: Callable[[], object]) -> None:
        try:
            await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
        except Exception:  # the edge to a plugin's code
            self._note_failure("a hook")

    def _note_failure(self, what: str) -> None:
        self.failures += 1
        _log.exception("%s of a plugin failed", what)


class _Leadership:
    """A ``ReplicaListener``."""

    def __init__(self, calls: HookCalls, replica: LocalReplica) -> None:
        self._calls, self._replica = calls, replica

    def applied(self, index: int, outcomes: Any, events: Any) -> None:
        pass

    def leader_changed(self, leader: Any) -> None:
        replica = self._replica
        term = replica.driver.raft.term
        self._calls.leadership_changed(replica.namespace, None if leader is None else leader.peer_id, term)


def samples(host: NodeHost) -> list[Sample]:
    """What a node says of itself in numbers, now."""
    found = [
        Sample("tauraft_loop_lag_seconds", "gauge", host.engine.lag_s),
        Sample("tauraft_hook_failures_total", "counter", float(host.hook_calls.failures)),
    ]
    for name, namespace in sorted(host.namespaces.items()):
        replica = namespace.replica
        if replica is None:
            continue
        raft, machine, labels = replica.driver.raft, replica.machine, (("namespace", name),)
        membership = raft.membership
        found += [
            Sample("tauraft_term", "counter", float(raft.term), labels),
            Sample("tauraft_is_leader", "gauge", float(raft.role is Role.LEADER), labels),
            Sample("tauraft_has_leader", "gauge", float(replica.driver.leader is not None), labels),
            Sample("tauraft_voters", "gauge", float(len(membership.voters)), labels),
            Sample("tauraft_learners", "gauge", float(len(membership.learners)), labels),
            Sample("tauraft_commit_index", "counter", float(raft.commit), labels),
            Sample("tauraft_applied_index", "counter", float(machine.applied_index), labels),
            Sample("tauraft_revision", "counter", float(machine.revision), labels),
            Sample("tauraft_sessions", "gauge", float(len(machine.sessions)), labels),
            Sample("tauraft_is_suspended", "gauge", float(replica.driver.suspension is not None), labels),
        ]
    return found
