"""The clock a leader stamps. Covers: SAFETY 15, SAFETY 18, SAFETY 20."""

from __future__ import annotations

from tauraft.core.messages import Member
from tauraft.node.clock import SECOND_NS, SET_BACK_NS, WALL_BOUND_NS, ClusterClock, median
from tauraft.node.heartbeats import WALL_ROUNDS, MemberSays, Rounds

ELECTION_NS = SECOND_NS


class HandClock:
    """Moves when told."""

    def __init__(self) -> None:
        self.monotonic = 1_000 * SECOND_NS
        self.wall = 1_700_000_000 * SECOND_NS

    def monotonic_ns(self) -> int:
        return self.monotonic

    def boottime_ns(self) -> int:
        return self.monotonic

    def wall_ns(self) -> int:
        return self.wall

    def advance(self, seconds: float) -> None:
        self.monotonic += int(seconds * SECOND_NS)
        self.wall += int(seconds * SECOND_NS)


def leading(clock: HandClock) -> ClusterClock:
    cluster_clock = ClusterClock(clock, ELECTION_NS)
    cluster_clock.start_leading()
    return cluster_clock


def test_a_new_leader_goes_on_from_the_greatest_stamp_it_knows() -> None:
    clock = HandClock()
    cluster_clock = ClusterClock(clock, ELECTION_NS)
    cluster_clock.saw(50 * SECOND_NS)
    cluster_clock.saw_in_log(40 * SECOND_NS, 0)
    cluster_clock.start_leading()
    assert cluster_clock.stamp()[0] == 50 * SECOND_NS
    clock.advance(0.3)
    assert cluster_clock.stamp()[0] == int(50.3 * SECOND_NS)


def test_without_a_confirmed_round_now_advances_one_election_timeout_at_most() -> None:
    clock = HandClock()
    cluster_clock = leading(clock)
    clock.advance(3_600)
    assert cluster_clock.stamp()[0] == ELECTION_NS


def test_time_in_which_the_process_was_stopped_is_not_made_up_in_one_leap() -> None:
    clock = HandClock()
    cluster_clock = leading(clock)
    clock.advance(3_600)
    cluster_clock.confirmed([3_600 * SECOND_NS, 3_600 * SECOND_NS], [clock.wall] * 2)
    assert cluster_clock.stamp()[0] == ELECTION_NS
    clock.advance(0.1)
    cluster_clock.confirmed([int(3_600.1 * SECOND_NS)] * 2, [clock.wall] * 2)
    assert cluster_clock.stamp()[0] == ELECTION_NS + SECOND_NS // 10


def test_a_leader_whose_clock_runs_fast_is_held_to_the_voters_median() -> None:
    clock = HandClock()
    cluster_clock = leading(clock)
    for round_number in range(1, 101):
        clock.advance(0.2)  # twice as fast as the others
        cluster_clock.confirmed([round_number * SECOND_NS // 10] * 2, [clock.wall] * 2)
    assert cluster_clock.stamp()[0] <= 10 * SECOND_NS * 101 // 100 + ELECTION_NS


def test_a_delayed_answer_does_not_slow_the_clock_for_good() -> None:
    clock = HandClock()
    cluster_clock = leading(clock)
    for round_number in range(1, 51):
        clock.advance(0.1)
        late_ns = 20_000_000 if round_number % 2 else 0
        cluster_clock.confirmed([round_number * SECOND_NS // 10 - late_ns] * 2, [clock.wall] * 2)
    assert cluster_clock.stamp()[0] == 5 * SECOND_NS


def test_now_and_wall_never_go_back() -> None:
    clock = HandClock()
    cluster_clock = leading(clock)
    clock.advance(0.5)
    before = cluster_clock.stamp()
    clock.wall -= 3_600 * SECOND_NS
    cluster_clock.confirmed([0, 0], [clock.wall, clock.wall])
    after = cluster_clock.stamp()
    assert after[0] >= before[0]
    assert after[1] >= before[1]


def test_wall_is_clamped_to_the_voters_median() -> None:
    clock = HandClock()
    honest = clock.wall
    cluster_clock = leading(clock)
    clock.wall += 10 * 365 * 24 * 3_600 * SECOND_NS
    cluster_clock.confirmed([0, 0], [honest, honest])
    assert cluster_clock.stamp()[1] == honest + WALL_BOUND_NS


def test_the_median_of_an_even_number_is_the_cautious_one() -> None:
    assert median([4, 1, 3, 2]) == 2


def test_a_leader_knows_how_long_it_takes_until_now_reaches_a_deadline() -> None:
    clock = HandClock()
    cluster_clock = leading(clock)
    clock.advance(0.25)
    assert cluster_clock.until_now_ns(SECOND_NS // 2) == SECOND_NS // 4
    cluster_clock.stamp()
    assert cluster_clock.until_now_ns(SECOND_NS // 4) == 0


def test_a_deadline_that_now_cannot_reach_without_a_quorum_is_not_waited_for() -> None:
    """Its distance from a clock that stands still never shrinks: the leader woke every microsecond."""
    clock = HandClock()
    cluster_clock = leading(clock)
    clock.advance(3_600)
    deadline = cluster_clock.stamp()[0] + 1
    assert cluster_clock.until_now_ns(deadline) is None
    cluster_clock.confirmed([3_600 * SECOND_NS] * 2, [clock.wall] * 2)
    assert cluster_clock.until_now_ns(deadline) == 1


def test_now_that_ran_ahead_of_the_voters_is_waited_for_until_they_have_caught_up() -> None:
    clock = HandClock()
    cluster_clock = leading(clock)
    clock.advance(0.5)
    ahead, _ = cluster_clock.stamp()
    cluster_clock.confirmed([SECOND_NS // 4] * 2, [clock.wall] * 2)
    allowed = SECOND_NS // 4 * 101 // 100
    assert cluster_clock.until_now_ns(ahead + 1) == ahead + 1 - allowed
    clock.monotonic += ahead + 1 - allowed
    assert cluster_clock.stamp()[0] == ahead + 1


def test_a_wall_deadline_beyond_what_the_voters_allow_is_not_waited_for() -> None:
    clock = HandClock()
    cluster_clock = leading(clock)
    start = clock.wall
    cluster_clock.confirmed([0, 0], [start] * 2)
    assert cluster_clock.until_wall_ns(start + SECOND_NS) == SECOND_NS
    clock.wall += 3_600 * SECOND_NS
    assert cluster_clock.until_wall_ns(start + WALL_BOUND_NS + 1) is None
    assert cluster_clock.until_wall_ns(start + WALL_BOUND_NS) == 0


def test_the_wall_stands_still_until_a_quorum_has_answered_the_new_leader() -> None:
    clock = HandClock()
    honest = clock.wall
    cluster_clock = ClusterClock(clock, ELECTION_NS)
    cluster_clock.saw_in_log(0, honest)
    clock.wall += 10 * 365 * 24 * 3_600 * SECOND_NS
    cluster_clock.start_leading()
    assert cluster_clock.stamp()[1] == honest
    assert cluster_clock.until_wall_ns(honest + SECOND_NS) is None
    cluster_clock.confirmed([0, 0], [honest + SECOND_NS] * 2)
    assert cluster_clock.stamp()[1] == honest + SECOND_NS + WALL_BOUND_NS


def test_the_wall_is_to_be_set_back_once_the_voters_clocks_are_far_behind_it() -> None:
    clock = HandClock()
    cluster_clock = leading(clock)
    ahead = clock.wall + SET_BACK_NS
    assert cluster_clock.set_wall_back(ahead + 1) is None, "no quorum has answered yet"
    cluster_clock.saw_in_log(0, ahead + 1)
    cluster_clock.confirmed([0, 0], [clock.wall] * 2)
    assert cluster_clock.set_wall_back(ahead) is None, "so little is waited out"
    assert cluster_clock.stamp()[1] == ahead + 1
    assert cluster_clock.set_wall_back(ahead + 1) == clock.wall
    assert cluster_clock.stamp()[1] == clock.wall


def test_a_follower_goes_by_the_wall_of_its_log_also_where_that_went_back() -> None:
    clock = HandClock()
    cluster_clock = ClusterClock(clock, ELECTION_NS)
    cluster_clock.saw_in_log(5, clock.wall + 3_600 * SECOND_NS)
    cluster_clock.saw_in_log(6, clock.wall)
    cluster_clock.start_leading()
    assert cluster_clock.stamp()[1] == clock.wall


def test_one_clock_that_is_off_and_one_that_is_not_heard_do_not_set_the_wall_back() -> None:
    clock = HandClock()
    cluster_clock = leading(clock)
    wall = cluster_clock.stamp()[1]
    off = clock.wall - 7_200 * SECOND_NS
    cluster_clock.confirmed([0], [off], 3)
    assert cluster_clock.set_wall_back(wall) is None
    assert cluster_clock.stamp()[1] == wall
    cluster_clock.confirmed([0, 0], [off, clock.wall], 3)
    assert cluster_clock.set_wall_back(wall) is None
    cluster_clock.confirmed([0], [off, off], 3)
    assert cluster_clock.set_wall_back(wall) == off + WALL_BOUND_NS


def test_the_clocks_of_all_voters_that_answer_count_and_not_what_a_silent_one_said_long_ago() -> None:
    one, other, removed = (Member(name, 1) for name in ("one", "other", "removed"))
    rounds = Rounds()

    def answer(member: Member, wall_ns: int) -> bool:
        return rounds.answered(member, MemberSays(rounds.number, 5, wall_ns, 1, 0, False), 3)

    rounds.start(100)
    assert answer(one, 1_100), "it makes the quorum"
    assert not answer(other, 9_100)
    answer(removed, 7_100)
    rounds.start(200)
    answer(one, 1_200)
    assert rounds.walls([one, other]) == [1_200, 9_200]
    for number in range(WALL_ROUNDS):
        rounds.start(300 + number)
        answer(one, 1_300 + number)
    assert rounds.walls([one, other]) == [1_300 + WALL_ROUNDS - 1]
