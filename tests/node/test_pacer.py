"""When a replica ticks. Times are in heartbeats of 100 ms, an election in ten of them."""

from __future__ import annotations

import pytest

from tauraft.node.pacer import Pacer, Timing

BEAT = 100_000_000


class Story:
    def __init__(self) -> None:
        self.pacer = Pacer(Timing(0.1, 1.0), 0)
        self.may_idle = False
        assert self.at(0) == 1

    def at(self, beats: float, *, heard: bool = False) -> int:
        """A turn then; returns the ticks taken in it."""
        if heard:
            self.pacer.heard_leader()
        ticks = self.pacer.ticks_due(int(beats * BEAT), lambda: self.may_idle)
        assert self.pacer.has_ticked == (ticks > 0)
        return ticks

    @property
    def next_at(self) -> float:
        return self.pacer.next_tick_ns / BEAT


@pytest.fixture
def story() -> Story:
    return Story()


def test_who_hears_nobody_ticks_once_in_a_heartbeat(story: Story) -> None:
    assert [story.at(beats) for beats in (0.5, 1, 1.2, 2.1, 3)] == [0, 1, 0, 1, 1]


def test_a_stall_owes_one_tick(story: Story) -> None:
    assert story.at(1) == 1
    assert story.at(8.3) == 1
    assert story.next_at == pytest.approx(8.8)
    assert story.at(8.8) == 1


def test_what_an_idle_leader_slept_on_purpose_counts_in_full(story: Story) -> None:
    story.may_idle = True
    assert story.at(1) == 1
    assert story.next_at == 3
    story.may_idle = False
    assert story.at(2) == 0
    assert story.at(3) == 2
    assert story.at(4) == 1


def test_a_follower_ticks_when_its_leader_does(story: Story) -> None:
    for beats in (0.95, 1.97, 2.96):
        assert story.at(beats, heard=True) == 1
        assert story.at(beats + 0.4) == 0
    assert story.next_at > 4.4, "not by itself, just before the leader's next"


def test_a_follower_whose_leader_is_silent_ticks_by_itself(story: Story) -> None:
    assert story.at(0.95, heard=True) == 1
    assert story.at(2) == 0
    assert story.at(2.45) == 1
    assert story.at(3.45) == 1


def test_a_follower_of_an_idle_leader_waits_longer_and_counts_what_it_waited(story: Story) -> None:
    assert story.at(0.95, heard=True) == 1
    assert story.at(2.45) == 1
    assert story.at(2.95, heard=True) == 0, "it ticked just before, and waits for the next"
    assert story.at(4.95, heard=True) == 1
    assert story.next_at == pytest.approx(7.95)
    assert story.at(7.95) == 3


def test_heartbeats_that_come_too_often_are_no_ticks(story: Story) -> None:
    assert story.at(1, heard=True) == 1
    assert [story.at(beats, heard=True) for beats in (1.1, 1.5, 1.8)] == [0, 0, 0]
    assert story.at(1.9, heard=True) == 1


def test_who_is_alone_ticks_twice_in_an_election_and_once_a_peer_is_there_within_a_heartbeat(story: Story) -> None:
    story.pacer.set_alone(True, 0)
    story.may_idle = True
    assert story.at(1) == 1
    assert story.next_at == 6
    assert story.at(6) == 1
    story.pacer.set_alone(False, 7 * BEAT)
    assert story.next_at == 8


def test_a_change_of_role_ends_a_long_sleep(story: Story) -> None:
    story.may_idle = True
    story.at(1)
    story.pacer.role_changed(int(1.5 * BEAT))
    assert story.next_at == 2.5
    assert story.at(2.5) == 1, "it did not sleep for two"
