"""The time of a replicated log: at most the median of the voters' clocks, and a leader with a wild clock is told so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.journal.stamp import CellClock
from relay.limits import MAX_CLOCK_APART, MAX_CLOCK_JUMP
from tests.relay.journal.conftest import FakeClock

HOUR = 3_600_000


def clock_of(ahead: list[int]) -> tuple[CellClock, FakeClock, list[bytes]]:
    """The clock of a leader whose other voters are that much ahead of it (ms)."""
    clock = FakeClock()
    cell, voters = CellClock(clock), [b"%d" % number for number in range(len(ahead))]
    for voter, offset in zip(voters, ahead, strict=True):
        cell.heard(voter, clock.wall_ms() + offset)
    return cell, clock, voters


@pytest.mark.parametrize(
    ("ahead", "stamp", "apart"),
    [
        ([], 0, 0),
        ([0, 0], 0, 0),
        ([5, 7], 0, 0),  # never later than the own clock
        ([-5, 7], 0, 0),
        ([-5, -7], -5, 0),
        ([-5], -5, 0),  # of two the lower
        ([HOUR, -3], 0, 0),  # one wild clock of three moves nothing
        ([-HOUR, 3], 0, 0),
        ([-HOUR, -HOUR], -HOUR, -HOUR),  # the own one is wild: an hour ahead
        ([HOUR, HOUR + 5], 0, HOUR),  # an hour behind
        ([HOUR, HOUR, -3, -3], 0, 0),
        ([-HOUR, -HOUR, -5, 3], -5, 0),
    ],
)
def test_the_median(ahead: list[int], stamp: int, apart: int) -> None:
    cell, clock, voters = clock_of(ahead)
    assert cell.stamp(voters) - clock.wall_ms() == stamp
    assert cell.apart(voters) == apart


@pytest.mark.parametrize(("ahead", "apart"), [(MAX_CLOCK_APART, 0), (MAX_CLOCK_APART + 1, MAX_CLOCK_APART + 1)])
def test_what_is_tolerated(ahead: int, apart: int) -> None:
    cell, _, voters = clock_of([ahead, ahead])
    assert cell.apart(voters) == apart


@given(st.lists(st.integers(-(10**12), 10**12), max_size=8))
def test_a_stamp_is_never_later_than_most_voters_clocks(ahead: list[int]) -> None:
    cell, clock, voters = clock_of(ahead)
    stamp = cell.stamp(voters)
    behind = sum(clock.wall_ms() + offset >= stamp for offset in [0, *ahead])
    assert behind > len(ahead) // 2


def test_the_newest_word_counts_and_who_left_does_not() -> None:
    cell, clock, voters = clock_of([-HOUR, -HOUR])
    cell.heard(voters[0], clock.wall_ms())
    assert cell.apart(voters) == 0
    cell.heard(voters[0], clock.wall_ms() - HOUR)
    assert cell.apart([]) == 0 == cell.apart([b"not heard", b"neither"])
    cell.keep(voters[:1])
    assert cell.apart(voters) == -HOUR  # of two
    cell.keep([])
    assert cell.apart(voters) == 0


def test_a_jump_of_the_own_clock_is_not_followed() -> None:
    cell, clock, voters = clock_of([0, 0])
    clock.pass_ms(10)
    clock.wall += HOUR
    assert cell.stamp(voters) == clock.wall_ms() - HOUR


@pytest.mark.parametrize("jump", [20_000, HOUR])
def test_a_jump_of_the_own_clock_moves_no_stamp_before_the_others_have_spoken_again(jump: int) -> None:
    """Found by the simulator (seeds 103, 144): what the others' clocks showed was remembered by the own wall clock."""
    cell, clock, voters = clock_of([0, 0])
    truth = clock.wall_ms()
    clock.wall += jump
    assert cell.stamp(voters) == truth
    assert cell.apart(voters) == (-jump if jump < MAX_CLOCK_JUMP else 0)  # a greater one is not followed at all
    for voter in voters:
        cell.heard(voter, truth)
    assert cell.stamp(voters) == truth


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_clocks_that_jump_together_are_not_followed(jump: int) -> None:
    """A store tells the others what it believes itself: else a cell's time would stand still after a jump back."""
    cell, clock, voters = clock_of([0, 0])
    clock.wall += jump
    clock.pass_ms(10)
    assert cell.now() == cell.stamp(voters) == clock.wall_ms() - jump
    assert cell.apart(voters) == 0
    cell.mend(voters)
    assert cell.now() == clock.wall_ms() - jump


@pytest.mark.parametrize("wrong", [-HOUR, HOUR])
def test_a_clock_that_was_wrong_at_the_start_and_is_set_right_is_believed_when_most_others_agree(wrong: int) -> None:
    cell, clock, voters = clock_of([-wrong] * 4)
    clock.wall -= wrong
    for others in (voters[:1], [voters[0], b"not heard", b"neither"]):
        cell.mend(others)
        assert cell.now() == clock.wall_ms() + wrong
        assert cell.apart(others) == (-wrong if wrong > 0 else 0)  # of two the lower counts
    cell.mend([*voters[:3], b"not heard"])
    assert cell.now() == cell.stamp(voters) == clock.wall_ms()
    assert cell.apart(voters) == 0


def test_clocks_that_go_wrong_together_in_steps_are_not_followed_further_than_one_jump() -> None:
    """Each step is too small to be refused by itself, and all others show the same."""
    cell, clock, voters = clock_of([0, 0])
    start = clock.wall_ms()
    for _ in range(10):
        clock.wall += MAX_CLOCK_JUMP - 1000
        for voter in voters:
            cell.heard(voter, cell.now())
        cell.mend(voters)
    assert cell.now() - start <= MAX_CLOCK_JUMP


def test_strangers_take_no_room() -> None:
    """Any node of the cell may speak for stores that nobody knows yet."""
    cell, clock, _ = clock_of([])
    for number in range(10_000):
        cell.heard(b"%16d" % number, clock.wall_ms())
    assert len(cell._offsets) <= 128
