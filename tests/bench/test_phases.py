"""What a kill did, from receipts that are made up: against plain arithmetic, and at the edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.phases import Acks, describe_kill

MS = 1_000_000


def acks(latencies_ms: list[int | None]) -> Acks:
    """One message every 10 ms."""
    due = [number * 10 * MS for number in range(len(latencies_ms))]
    answered = [None if late is None else at + late * MS for at, late in zip(due, latencies_ms, strict=True)]
    return Acks(due, answered)


def stalled(kill_ms: int, back_ms: int, length_ms: int = 6000) -> Acks:
    """2 ms each, but what is due from the kill on until all is well is answered then."""
    return acks([
        back_ms - at + 2 if kill_ms <= at < back_ms else 2 for at in range(0, length_ms, 10)
    ])  # fmt: skip


def test_a_stall_is_as_long_as_it_was() -> None:
    found = describe_kill(stalled(2000, 2800), 2000 * MS)
    assert found["normal_ms"] == 50 and found["silence_ms"] == 802
    assert 740 <= found["failover_ms"] <= 760, "what was due in the last 50 ms was answered in time"
    before, failover, after = found["phases"]
    assert (before["messages"], before["ack_ms"]["max"]) == (200, 2.0)
    assert failover["ack_ms"]["max"] == 802 and after["ack_ms"]["p50"] == 2.0
    assert before["messages"] + failover["messages"] + after["messages"] == 600


def test_nothing_noticed_is_no_failover() -> None:
    assert describe_kill(acks([2] * 600), 2000 * MS)["failover_ms"] == 0


def test_what_was_on_its_way_at_the_kill_is_no_part_of_before() -> None:
    found = describe_kill(acks([2] * 190 + [900] * 60 + [2] * 350), 2000 * MS)
    assert found["phases"][0]["ack_ms"]["max"] == 2.0 and found["normal_ms"] == 50
    assert found["phases"][1]["ack_ms"]["max"] == 900


@pytest.mark.parametrize("late", [None, 5000])
def test_a_cell_that_never_recovers_has_no_figure(late: int | None) -> None:
    found = describe_kill(acks([2] * 200 + [late] * 400), 2000 * MS)
    assert found["failover_ms"] is None and found["phases"][2]["messages"] == 0


def test_one_late_one_in_a_hundred_is_allowed_and_two_are_not() -> None:
    one = [2] * 200 + [2] * 50 + [500] + [2] * 349
    two = [2] * 200 + [2] * 50 + [500] * 2 + [2] * 348
    assert describe_kill(acks(one), 2000 * MS)["failover_ms"] == 0
    assert describe_kill(acks(two), 2000 * MS)["failover_ms"] > 400


def test_an_empty_run_says_nothing() -> None:
    assert describe_kill(Acks([], []), 0)["failover_ms"] is None


@given(st.lists(st.one_of(st.none(), st.integers(0, 3000)), max_size=400), st.integers(0, 4500))
def test_every_answered_message_is_in_one_phase(latencies_ms: list[int | None], kill_ms: int) -> None:
    made = acks(latencies_ms)
    found = describe_kill(made, kill_ms * MS)
    assert sum(phase["messages"] for phase in found["phases"]) == sum(one is not None for one in made.acked_ns)
