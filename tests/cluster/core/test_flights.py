"""Batches that are under way: how much room there is, and what one record may tell of them."""

from __future__ import annotations

from cluster.core.flights import Flight, Flights
from cluster.core.linkwire import HandItem, HandOverAnswer
from relay.core import records
from relay.errors import Overloaded
from relay.limits import HANDOVERS_AHEAD, MAX_BATCH

ANSWER = HandOverAnswer(bytes(16), 0, ())


def flight(first: int, count: int = 1, size: int = 10) -> Flight:
    items = (HandItem(records.HANDIN_ENVELOPE, bytes(size - 1), b"x"),) * count
    return Flight(first, items, 0, b"", frozenset())


def flying(*counts: int) -> tuple[Flights, list[Flight]]:
    flights, all_of_them = Flights(0), list[Flight]()
    for count in counts:
        all_of_them.append(flight(flights.last + 1, count))
        flights.leave(all_of_them[-1])
    return flights, all_of_them


def test_room_is_what_the_line_carries_less_what_is_under_way_and_for_so_many_at_most() -> None:
    flights, (one, _) = flying(3, 2)
    assert flights.last == 5 and one.last == 3 and one.size == 30
    assert flights.room(100) == 50 and flights.room(51) == 1 and flights.room(50) == flights.room(20) == 0
    flights.settled(1)
    assert flights.room(100) == 80 and flights.last == 5
    for _ in range(HANDOVERS_AHEAD - 1):
        assert flights.room(100)
        flights.leave(flight(flights.last + 1))
    assert flights.room(1 << 30) == 0
    flights.settled(HANDOVERS_AHEAD)
    assert flights.room(100) == 100


def test_what_has_landed_is_told_in_order_and_up_to_what_failed() -> None:
    flights, (one, two, three) = flying(1, 1, 1)
    two.came = three.came = ANSWER
    assert flights.landed() == []
    one.came = ANSWER
    assert flights.landed() == [one, two, three]
    two.came = Overloaded("not now")
    assert flights.landed() == [one, two]


def test_one_record_tells_of_as_many_numbers_as_it_may_and_of_one_batch_in_any_case() -> None:
    flights, all_of_them = flying(MAX_BATCH - 1, 1, 1)
    for each in all_of_them:
        each.came = ANSWER
    assert flights.landed() == all_of_them[:2]
    flights.settled(2)
    assert flights.landed() == all_of_them[2:]
    flights, (large, small) = flying(MAX_BATCH, 1)
    large.came = small.came = ANSWER
    assert flights.landed() == [large]


def test_what_has_landed_makes_room_for_another_before_it_is_recorded() -> None:
    flights, all_of_them = flying(*[1] * HANDOVERS_AHEAD)
    assert not flights.room(1_000)
    all_of_them[1].came = ANSWER  # in whatever order they come
    assert flights.room(1_000) == 1_000 - 10 * HANDOVERS_AHEAD
    flights.leave(flight(flights.last + 1))
    assert not flights.room(1_000)


def test_what_is_not_recorded_is_bounded_in_bytes_and_numbers() -> None:
    flights, (one,) = flying(100)
    one.came = ANSWER
    assert not flights.room(1_000) and flights.room(2_000) == 1_000
    flights, all_of_them = flying(*[MAX_BATCH] * HANDOVERS_AHEAD)
    for each in all_of_them:
        each.came = ANSWER
    assert not flights.room(1 << 30)
    flights.settled(1)
    assert flights.room(1 << 30)


def test_a_record_waits_only_while_more_comes_and_nothing_lacks_room() -> None:
    flights, (one, two) = flying(1, 1)
    one.came = ANSWER
    assert flights.may_wait(1_000) and not flights.may_wait(40)  # half of the bytes are taken
    two.came = ANSWER
    assert not flights.may_wait(1_000)
    flights.leave(flight(flights.last + 1, MAX_BATCH))
    assert not flights.may_wait(1 << 30)  # a record tells of no more


def test_after_a_failure_nothing_leaves_and_no_record_waits() -> None:
    flights, (_, two, _) = flying(1, 1, 1)
    two.came = Overloaded("not now")
    assert not flights.room(1_000) and not flights.may_wait(1_000)
