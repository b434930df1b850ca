"""What a handler is told by its context: revisions, one a command and more for several tokens, and who withdrew. Covers: SAFETY 1."""

from __future__ import annotations

from dataclasses import dataclass

from tauraft.fsm import FSM, Command, Context, Table, Ticket, applies, withdraws
from tests.primitives.harness import Harness


@dataclass(frozen=True, slots=True)
class Mint(Command[tuple[int, ...]], fsm="tests.mint"):
    """Answers its revision, then ``count`` new ones."""

    count: int


@dataclass(frozen=True, slots=True)
class MintAndWait(Command[int], fsm="tests.mint"):
    """Asks for a revision, then waits."""


class Minting(FSM, name="tests.mint"):
    waiting: Table[int, Ticket[int]]
    withdrawn_by: Table[int, int | None]  # sequence -> context.session

    @applies(Mint)
    def mint(self, command: Mint, context: Context) -> tuple[int, ...]:
        minted = [context.new_revision() for _ in range(command.count)]
        return (context.revision, *minted)

    @applies(MintAndWait)
    def mint_and_wait(self, command: MintAndWait, context: Context) -> Ticket[int]:
        context.new_revision()
        self.waiting[context.revision] = ticket = context.wait(MintAndWait)
        return ticket

    @withdraws(MintAndWait)
    def withdraw(self, command: MintAndWait, ticket: Ticket[int], context: Context) -> None:
        del self.waiting[ticket.revision]
        self.withdrawn_by[ticket.sequence] = context.session


def test_new_revisions_are_greater_than_all_before_and_smaller_than_all_after() -> None:
    alice = Harness(Minting).open()
    first, second = alice.run(Mint(3)).value, alice.run(Mint(0)).value
    assert list(first) == sorted(set(first))
    assert len(first) == 4
    assert second[0] > first[-1]


def test_a_wait_is_withdrawn_with_the_revision_of_its_ticket() -> None:
    replica = Harness(Minting)
    alice = replica.open()
    reply = alice.run(MintAndWait())
    assert len(replica.fsm(Minting).waiting) == 1
    alice.withdraw(reply)
    assert reply.is_withdrawn
    assert len(replica.fsm(Minting).waiting) == 0


def test_a_withdrawal_tells_a_lost_session_from_a_caller_that_gave_up() -> None:
    replica = Harness(Minting)
    alice = replica.open()
    alice.withdraw(alice.run(MintAndWait()))
    alice.run(MintAndWait())
    alice.end()
    assert dict(replica.fsm(Minting).withdrawn_by) == {1: alice.id, 2: None}
