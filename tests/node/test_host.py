"""The namespaces of one process: opened by its own users and for other processes of the host, ended, and opened again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from tauraft.config import cluster_options
from tauraft.node.host import NodeHost
from tauraft.node.namespace import Namespace
from tauraft.plugin_manager import load_plugins

OPTIONS = cluster_options("/raft/host", {"storage": "memory"})


class Lives:
    """In place of what a namespace does while it runs: who is at work on its files, and that leaving them takes a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_work = 0
        self.most_at_work = 0
        self.served: list[object] = []
        lives = self

        async def take_part(namespace: Namespace, transport: object) -> None:
            lives.at_work += 1
            lives.most_at_work = max(lives.most_at_work, lives.at_work)
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.01)
                lives.at_work -= 1

        async def serve_local(namespace: Namespace, stream: object) -> None:
            lives.served.append(stream)

        monkeypatch.setattr(Namespace, "_take_part", take_part)
        monkeypatch.setattr(Namespace, "serve_local", serve_local)


@asynccontextmanager
async def a_node() -> AsyncIterator[Any]:
    clock = SimpleNamespace(monotonic_ns=lambda: int(trio.current_time() * 1e9))
    node: Any = NodeHost(OPTIONS.node(), load_plugins(()), clock, Random(1), SimpleNamespace())  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        await node.is_settled.wait()
        await trio.testing.wait_all_tasks_blocked()
        yield node
        with trio.fail_after(5):
            await node.close()
        nursery.cancel_scope.cancel()


def test_a_namespace_that_is_ended_before_its_first_step_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives(monkeypatch)

    async def story() -> None:
        async with a_node() as node:
            opened = node.enter(OPTIONS)
            with trio.fail_after(5):
                await node.leave(opened)
            assert not lives.at_work

    trio.run(story)


def test_one_that_is_opened_again_waits_until_the_earlier_one_has_left_the_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lives = Lives(monkeypatch)

    async def story() -> None:
        async with a_node() as node, trio.open_nursery() as nursery:
            opened = node.enter(OPTIONS)
            await trio.testing.wait_all_tasks_blocked()
            for turn in range(3):
                nursery.start_soon(node.leave, opened)
                await trio.sleep(0.005 * turn)
                opened = node.enter(OPTIONS)
            await trio.sleep(0.1)
            assert (lives.at_work, lives.most_at_work) == (1, 1)
            await node.leave(opened)
            assert not lives.at_work

    trio.run(story)


def test_one_that_failed_makes_way_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives(monkeypatch)

    async def story() -> None:
        async with a_node() as node:
            await node._open_for_another("a stream", OPTIONS.namespace, {})
            await trio.testing.wait_all_tasks_blocked()
            node.namespaces[OPTIONS.namespace].fail(ValueError("another key"))
            opened = node.enter(OPTIONS)
            await trio.sleep(0.1)
            assert (lives.at_work, lives.most_at_work) == (1, 1)
            await node.leave(opened)

    trio.run(story)


def test_a_node_that_closes_opens_nothing_for_others_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-by comes back as soon as it is cut off: served once more, it would keep the process it waits for from ending."""
    lives = Lives(monkeypatch)

    async def story() -> None:
        async with a_node() as node, trio.open_nursery() as nursery:
            opened = node.enter(OPTIONS)
            await trio.testing.wait_all_tasks_blocked()
            node.is_closing = True
            nursery.start_soon(node.leave, opened)
            await trio.testing.wait_all_tasks_blocked()
            await node._open_for_another("a stream", OPTIONS.namespace, {})
            assert lives.served == [] and not node.namespaces

    trio.run(story)
