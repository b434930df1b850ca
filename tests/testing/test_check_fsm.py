"""``check_fsm`` passes what replicates, and names the rule that is broken with the shortest commands that show it."""

from __future__ import annotations

import pytest

from tauraft.fsm import FSM, Context, Table, applies
from tauraft.testing import FSMViolation, check_fsm
from tests.testing import bad_fsms as bad

pytestmark = pytest.mark.middle


def test_a_good_state_machine_passes() -> None:
    check_fsm(bad.Good, examples=60)


@pytest.mark.parametrize(
    ("fsm", "rule"),
    [
        (bad.ReadsTheTime, "clock"),
        (bad.ReadsTheDate, "clock"),
        (bad.Draws, "random"),
        (bad.AsksTheSystemForChance, "random"),
        (bad.Opens, "io"),
        (bad.Prints, "io"),
        (bad.IteratesASet, "hash-order"),
        (bad.RemembersInItself, "state"),
        (bad.RemembersInItsClass, "state"),
        (bad.RemembersInAGlobal, "state"),
        (bad.LeavesGhosts, "undo"),
        (bad.ForgetsOnlyWithTheSession, "undo"),
        (bad.HidesWhatItKnows, "snapshot"),
        (bad.CountsForTheProcess, "determinism"),
    ],
)
def test_each_rule_has_a_machine_that_breaks_it(fsm: type[FSM], rule: str) -> None:
    with pytest.raises(FSMViolation) as violation:
        check_fsm(fsm)
    assert violation.value.rule == rule


def test_the_commands_shown_are_the_shortest() -> None:
    with pytest.raises(FSMViolation) as violation:
        check_fsm(bad.ReadsTheTime)
    (step,) = str(violation.value).splitlines()[1:]
    assert "Add(name=" in step
    with pytest.raises(FSMViolation) as violation:
        check_fsm(bad.IteratesASet)
    assert len(str(violation.value).splitlines()) == 2


def test_a_class_made_in_a_function_is_refused_in_words() -> None:
    class Local(FSM, name="bad.counter"):
        counts: Table[str, int]

        @applies(bad.Add)
        def add(self, command: bad.Add, context: Context) -> int:
            return 0

    with pytest.raises(TypeError, match="define it in a module"):
        check_fsm(Local, examples=2)
