"""Replicas whose states differ: found at equal indexes, the minority halts for good, without a majority all stop (SAFETY 28)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import trio

from tauraft.core.messages import Member
from tauraft.errors import DataDirectoryError, Suspended
from tauraft.fsm import FSM, Command, Context, Query, Table, answers, applies
from tauraft.node.divergence import ROWS_BETWEEN, Checkpoints, Jury, Verdict
from tauraft.node.opening import load_member
from tauraft.simulator.world import SimulatedNode, World, run_world
from tests.primitives.harness import SECOND_NS, Harness

A, B, C, D, E = (Member(name, 1) for name in "ABCDE")


# ---- when a checkpoint is due ----


def test_a_checkpoint_is_due_when_the_clusters_second_changes_or_enough_rows_have_changed() -> None:
    found = Checkpoints()
    assert [found.is_due(SECOND_NS + n, 1) for n in range(3)] == [True, False, False]
    assert found.is_due(2 * SECOND_NS, 0)
    assert [found.is_due(2 * SECOND_NS, ROWS_BETWEEN // 2) for _ in range(4)] == [False, True, False, True]


def test_after_a_snapshot_a_replica_counts_with_the_others_from_the_next_second_on() -> None:
    always, restarted = Checkpoints(), Checkpoints()
    always.is_due(SECOND_NS, 0)
    always.is_due(SECOND_NS, ROWS_BETWEEN // 2)
    restarted.restart(SECOND_NS)
    dues = [
        (SECOND_NS, ROWS_BETWEEN // 2),
        (SECOND_NS, ROWS_BETWEEN),
        (2 * SECOND_NS, 1),
        (2 * SECOND_NS, ROWS_BETWEEN),
    ]
    assert [always.is_due(*due) for due in dues] == [True, True, True, True]
    assert [restarted.is_due(*due) for due in dues] == [False, False, False, True]


def test_only_so_many_checkpoints_are_kept_and_the_newest_answers_for_one_that_is_gone() -> None:
    found = Checkpoints()
    for index in range(1, 1_000):
        found.add(index, b"%d" % index)
    assert found.get(1) is None
    assert found.answer(998) == (998, b"998")
    assert found.answer(1) == found.answer(0) == (999, b"999")


# ---- the jury ----


def own(**digests: bytes) -> Checkpoints:
    found = Checkpoints()
    for index, digest in digests.items():
        found.add(int(index.strip("i")), digest)
    return found


def test_who_agrees_raises_no_question() -> None:
    jury = Jury(A)
    jury.heard(B, 7, b"x", own(i7=b"x"), {A, B, C})
    jury.heard(C, 8, b"y", own(i7=b"x"), {A, B, C})
    assert jury.asked == 0 and jury.verdict is None


def test_a_difference_is_asked_about_at_its_very_index_until_a_majority_agrees() -> None:
    jury, mine, voters = Jury(A), own(i7=b"x", i9=b"x9"), {A, B, C}
    jury.heard(B, 7, b"other", mine, voters)
    assert jury.asked == 7
    assert jury.verdict == Verdict(7, b""), "two voters, two states: nobody is believed yet"
    jury.heard(C, 9, b"x9", mine, voters)
    assert jury.asked == 7, "another index says nothing of this one"
    jury.heard(C, 7, b"x", mine, voters)
    assert jury.verdict == Verdict(7, b"x") and jury.asked == 0


def test_the_leader_itself_may_be_the_one_that_differs() -> None:
    jury, mine, voters = Jury(A), own(i7=b"x"), {A, B, C}
    jury.heard(B, 7, b"y", mine, voters)
    jury.heard(C, 7, b"y", mine, voters)
    assert jury.verdict == Verdict(7, b"y")


def test_a_learner_is_judged_and_does_not_judge() -> None:
    jury, mine, voters = Jury(A), own(i7=b"x"), {A, B, C}
    jury.heard(D, 7, b"y", mine, voters)
    jury.heard(E, 7, b"y", mine, voters)
    assert jury.verdict is None, "voters do not disagree: the cluster serves on"
    jury.heard(B, 7, b"x", mine, voters)
    assert jury.verdict == Verdict(7, b"x")


def test_half_is_no_majority() -> None:
    jury, mine, voters = Jury(A), own(i7=b"x"), {A, B, C, D}
    for member, digest in ((B, b"x"), (C, b"y"), (D, b"y")):
        jury.heard(member, 7, digest, mine, voters)
    assert jury.verdict == Verdict(7, b"")


def test_a_question_nobody_can_answer_any_more_is_dropped() -> None:
    jury, mine, voters = Jury(A), own(i7=b"x"), {A, B, C}
    jury.heard(D, 7, b"y", mine, voters)
    assert jury.asked == 7
    jury.heard(B, 9, b"x9", own(i9=b"x9"), voters)
    assert jury.asked == 0


# ---- what a checkpoint sees ----


@dataclass(frozen=True, slots=True)
class Write(Command[int], fsm="test.biased"):
    value: int


@dataclass(frozen=True, slots=True)
class Read(Query[int], fsm="test.biased"):
    pass


def biased(bias: int, answer_bias: int = 0) -> type[FSM]:
    """A plugin that is not deterministic: what it does depends on where it runs."""

    class Biased(FSM, name="test.biased", version=1):
        values: Table[str, int]

        @applies(Write)
        def write(self, command: Write, context: Context) -> int:
            self.values["last"] = command.value + (bias if command.value else 0)
            return command.value + answer_bias

        @answers(Read)
        def read(self, query: Read) -> int:
            return self.values.get("last", -1)

    return Biased


@pytest.mark.parametrize(
    ("one", "other", "are_equal"), [((0,), (0,), True), ((0,), (1,), False), ((0,), (0, 1), False)]
)
def test_the_checkpoints_of_equal_entries_are_equal_where_states_and_answers_are(
    one: tuple[int, ...], other: tuple[int, ...], are_equal: bool
) -> None:
    taken = []
    for bias in (one, other):
        replica = Harness(biased(*bias))
        session = replica.open()
        session.run(Write(5))
        replica.advance(2)
        taken.append(replica.machine.checkpoints.answer(0))
    assert taken[0][0] == taken[1][0] > 0
    assert (taken[0][1] == taken[1][1]) is are_equal


# ---- in a cluster ----


def play(biases: Sequence[int], story: object) -> None:
    async def whole(world: World) -> None:
        for node, bias in zip(world.nodes, biases, strict=True):
            node.plugins = (biased(bias),)
        world.may_stop = lambda node, error: True
        world.start_all()
        await story(world)  # type: ignore[operator]

    run_world(3, whole, replicas=len(biases))


def has_halted(node: SimulatedNode) -> bool:
    return not node.is_running and node.disk.exists("/node/halted")


@pytest.mark.parametrize("leads", [False, True])
def test_a_replica_that_differs_from_the_majority_halts_and_stays_halted(leads: bool) -> None:
    async def story(world: World) -> None:
        leader = await world.wait_for_leader()
        if leads != (leader is world.nodes[0]):
            target = world.nodes[0] if leads else world.nodes[1]
            await move_leadership(world, target)
        async with world.client() as client:
            await client.opened()
            await client.submit(Write(5))
            await world.wait_until(lambda: has_halted(world.nodes[0]))
            assert await client.submit(Write(6)) == 6, "the others go on"
            assert await client.query(Read()) == 6
        world.nodes[0].start()
        await world.wait_until(lambda: not world.nodes[0].is_running)
        error = world.nodes[0].stopped_by
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, DataDirectoryError) and "not that of the majority" in str(error)
        assert "Move the namespace's folder in its data directory away" in str(error)
        with pytest.raises(DataDirectoryError, match="halted for good"):
            load_member(world.nodes[0].disk, "/node")
        assert all(node.is_up for node in world.nodes[1:])

    play((1, 0, 0), story)


async def move_leadership(world: World, target: SimulatedNode) -> None:
    await world.wait_until(lambda: target.replica is not None)
    leader = await world.wait_for_leader()
    if leader is not target:
        assert leader.replica is not None
        await leader.replica.call("transfer_leadership", {"to": target.peer_id})
        await world.wait_until(lambda: world.leader is target)


def test_without_a_majority_all_stop_serving_and_nobody_halts() -> None:
    async def story(world: World) -> None:
        await world.wait_for_leader()
        async with world.client() as client:
            await client.opened()
            assert await client.submit(Write(0)) == 0
            await client.submit(Write(5))

            def is_suspended(node: SimulatedNode) -> bool:
                return node.replica is not None and node.replica.suspension is not None

            await world.wait_until(lambda: all(map(is_suspended, world.nodes)))
            for node in world.nodes:
                assert node.replica is not None
                suspension = node.replica.suspension
                assert suspension is not None and not suspension.serves_stale
                with pytest.raises(Suspended, match="no majority"):
                    node.replica.propose([])
            assert not any(map(has_halted, world.nodes))
            applied = [node.replica.applied_index for node in world.nodes if node.replica is not None]
            await trio.sleep(5)
            assert applied == [n.replica.applied_index for n in world.nodes if n.replica is not None]

    play((0, 1, 2), story)


def test_once_a_majority_agrees_again_it_serves_on() -> None:
    async def story(world: World) -> None:
        await world.wait_for_leader()
        await move_leadership(world, world.nodes[1])
        await world.nodes[2].cut_power()
        async with world.client() as client:
            await client.opened()
            with trio.move_on_after(10):
                await client.submit(Write(5))
            leader = world.nodes[1].replica
            assert leader is not None
            await world.wait_until(lambda: leader.suspension is not None)
            world.nodes[2].start()
            await world.wait_until(lambda: has_halted(world.nodes[0]))
            await world.wait_until(lambda: leader.suspension is None)
        async with world.client() as client:
            await client.opened()
            assert await client.submit(Write(7)) == 7

    play((1, 0, 0), story)
