"""Reads that wait for their index."""

from __future__ import annotations

from functools import partial

from tauraft.node.reads import ReadQuestions


class Callers:
    def __init__(self) -> None:
        self.questions = ReadQuestions(100)
        self.told: list[tuple[str, int | None]] = []

    def read(self, *names: str) -> None:
        for name in names:
            self.questions.add(partial(self._tell, name))

    def _tell(self, name: str, index: int | None) -> None:
        self.told.append((name, index))

    def answer(self, context: int, index: int) -> None:
        for done in self.questions.answered(context):
            done(index)


def test_those_that_come_together_are_one_question() -> None:
    callers = Callers()
    callers.read("a", "b")
    first = callers.questions.ask(0)
    assert not callers.questions.has_waiting
    callers.read("c")
    second = callers.questions.ask(0)
    callers.answer(second, 8)
    callers.answer(first, 7)
    callers.answer(first, 9)  # twice
    assert callers.told == [("c", 8), ("a", 7), ("b", 7)]


def test_a_lost_question_is_asked_again_and_its_late_answer_is_nobodys() -> None:
    callers = Callers()
    callers.read("a")
    lost = callers.questions.ask(10)
    callers.questions.ask_again(10)
    assert not callers.questions.has_waiting, "not as old as that"
    callers.questions.ask_again(11)
    assert callers.questions.has_waiting
    again = callers.questions.ask(20)
    callers.answer(lost, 5)
    assert callers.told == []
    callers.answer(again, 6)
    assert callers.told == [("a", 6)]


def test_giving_up_tells_each_once() -> None:
    callers = Callers()
    callers.read("a")
    asked = callers.questions.ask(0)
    callers.read("b")
    callers.questions.give_up_waiting()
    assert callers.told == [("b", None)]
    callers.read("c")
    callers.questions.give_up()
    callers.answer(asked, 5)
    assert sorted(callers.told) == [("a", None), ("b", None), ("c", None)]
