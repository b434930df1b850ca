"""Answers to those who wait: values, and refusals."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tauraft import errors
from tauraft.errors import Refused
from tauraft.fsm import FSM, Command, Context, Table, Ticket, applies, withdraws
from tests.primitives.harness import Harness


@dataclass(frozen=True, slots=True)
class Queue(Command[int], fsm="tests.turns"):
    """Waits, unless the line is full."""


@dataclass(frozen=True, slots=True)
class TurnAway(Command[None], fsm="tests.turns"):
    pass


class Turns(FSM, name="tests.turns"):
    line: Table[int, Ticket[int]]

    @applies(Queue)
    def queue(self, command: Queue, context: Context) -> Ticket[int]:
        ticket = context.wait(Queue)
        if len(self.line) == 2:
            context.answer(ticket, Refused("full", "the line is full"))
        else:
            self.line[context.revision] = ticket
        return ticket

    @withdraws(Queue)
    def leave(self, command: Queue, ticket: Ticket[int], context: Context) -> None:
        self.line.pop(ticket.revision, None)

    @applies(TurnAway)
    def turn_away(self, command: TurnAway, context: Context) -> None:
        for key, ticket in list(self.line.items()):
            del self.line[key]
            context.answer(ticket, Refused("closed", "come back tomorrow"))


def test_one_who_waits_can_be_refused_by_a_later_command() -> None:
    replica = Harness(Turns)
    alice, bob = replica.open(), replica.open()
    waits = alice.run(Queue())
    bob.run(TurnAway())
    with pytest.raises(Refused) as told:
        _ = waits.value
    assert told.value.code == "closed"


def test_a_handler_may_refuse_the_ticket_it_has_just_taken() -> None:
    replica = Harness(Turns)
    alice = replica.open()
    replies = [alice.run(Queue()) for _ in range(3)]
    assert not replies[0].is_done and not replies[1].is_done
    with pytest.raises(Refused) as told:
        _ = replies[2].value
    assert told.value.code == "full"
    assert len(replica.fsm(Turns).line) == 2


@pytest.mark.parametrize("code", ["too-large", "lock-lost", "unavailable"])
def test_a_refusal_stays_one_whatever_its_code_is_elsewhere(code: str) -> None:
    """``too-large`` is also the code of ``TooLarge``, an ``InvalidArgument``: who waits for a Refused must get one."""
    told = errors.decode(errors.encode(errors.Refused(code, "not that much")))
    assert type(told) is errors.Refused
    assert (told.code, str(told), told.outcome) == (code, "not that much", "not-applied")
    ours = {
        kind.code: kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.TauraftError)
    }
    assert type(errors.decode(errors.encode(ours[code]("of ours")))) is ours[code]
