from __future__ import annotations

from random import Random

import pytest

from tauraft.codec import CodecError
from tauraft.formation.genesis import (
    AcceptedGenesis,
    Acceptor,
    Ballot,
    Genesis,
    Proposer,
    Voter,
    choose_voters,
    decode_acceptor,
    decode_genesis,
    encode_acceptor,
    encode_genesis,
)

GOLDEN = "920195c41030303030303030303030303030303030a72f726166742f619192a16101a16191c2"


def genesis(author: str) -> Genesis:
    return Genesis(author.encode() * 16, "/raft/a", (Voter(author, 1),), author)


def test_the_encoding_of_a_genesis_is_the_one_of_format_1() -> None:
    one = Genesis(b"0" * 16, "/raft/a", (Voter("a", 1),), "a")
    assert encode_genesis(one).hex() == GOLDEN
    assert decode_genesis(bytes.fromhex(GOLDEN)) == one


@pytest.mark.parametrize("data", ["", "00", "92029590", GOLDEN[:-2], GOLDEN + "00", "92029" + GOLDEN[5:]])
def test_anything_else_is_refused(data: str) -> None:
    with pytest.raises(CodecError):
        decode_genesis(bytes.fromhex(data))


@pytest.mark.parametrize(("up", "limit", "voters"), [(1, 5, 1), (2, 5, 1), (3, 5, 3), (4, 5, 3), (9, 5, 5), (9, 4, 3)])
def test_the_voters_are_the_largest_odd_number_within_the_limit(up: int, limit: int, voters: int) -> None:
    assert len(choose_voters([Voter(f"p{number}", 1) for number in range(up)], limit)) == voters


@pytest.mark.parametrize("seed", range(400))
def test_no_interleaving_of_loss_duplication_and_crashes_chooses_two(seed: int) -> None:
    random = Random(seed)
    names = "abcde"[: random.choice([2, 3, 4, 5])]
    disk = {name: encode_acceptor(Acceptor().record) for name in names}
    chosen: set[bytes] = set()
    proposers: list[Proposer] = []
    queue: list[tuple[str, int, str]] = []  # (kind, proposer, acceptor)
    for _ in range(random.randint(20, 150)):
        if not queue or random.random() < 0.15:
            name = random.choice(names)
            proposers.append(
                Proposer(Ballot(len(proposers) // 2, f"{name}{len(proposers)}"), genesis(name), len(names))
            )
            queue += [("prepare", len(proposers) - 1, other) for other in names]
            continue
        position = random.randrange(len(queue))
        kind, number, name = queue[position]
        if random.random() > 0.1:  # else it is delivered, and comes again
            queue.pop(position)
        if random.random() < 0.15:
            continue  # lost
        proposer, acceptor = proposers[number], Acceptor(decode_acceptor(disk[name]))
        if kind == "prepare":
            answer = acceptor.prepare(proposer.ballot)
            disk[name] = encode_acceptor(acceptor.record)
            if isinstance(answer, Ballot) or random.random() < 0.1:
                continue
            assert answer is None or isinstance(answer, AcceptedGenesis)
            if proposer.promised(name, proposer.ballot, answer):
                queue += [("accept", number, other) for other in names]
        elif proposer.proposal is not None:
            refused = acceptor.accept(proposer.ballot, proposer.proposal)
            disk[name] = encode_acceptor(acceptor.record)
            if refused is None and random.random() > 0.1 and proposer.accepted(name, proposer.ballot):
                assert proposer.chosen is not None
                chosen.add(proposer.chosen.cluster_id)
    assert len(chosen) <= 1
