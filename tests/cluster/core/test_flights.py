"""Batches under way to another cell: what has room, what has landed, and whose record may wait."""

from __future__ import annotations

from cluster.core.flights import Flight, Flights
from cluster.core.linkwire import HandItem, HandOverAnswer
from relay.core.wire import Code
from relay.errors import Refused
from relay.limits import HANDOVERS_AHEAD, MAX_BATCH

WINDOW = 1_000  # bytes
ANSWER = HandOverAnswer(b"1" * 16, 9, ())
BROKE = Refused(Code.UNREACHABLE, "the link broke")


def leave(flights: Flights, count: int = 1, size: int = 10) -> Flight:
    flight = Flight(flights.last + 1, (HandItem(0, bytes(size), b""),) * count, 0, b"", frozenset())
    flights.leave(flight)
    return flight


def test_what_has_landed_makes_room_for_another_before_it_is_recorded():
    flights = Flights(7)
    flying = [leave(flights) for _ in range(HANDOVERS_AHEAD)]
    assert not flights.room(WINDOW)
    flying[1].came = ANSWER  # in whatever order they come
    assert flights.room(WINDOW) == WINDOW - 10 * HANDOVERS_AHEAD and not flights.landed()
    leave(flights)
    assert not flights.room(WINDOW)
    flying[0].came = ANSWER
    assert flights.landed() == flying[:2]


def test_what_is_not_recorded_is_bounded_in_bytes_and_numbers():
    flights = Flights(0)
    leave(flights, size=WINDOW).came = ANSWER
    assert not flights.room(WINDOW) and flights.room(2 * WINDOW) == WINDOW
    flights.settled(1)
    assert flights.room(WINDOW) == WINDOW
    for _ in range(HANDOVERS_AHEAD):
        leave(flights, MAX_BATCH, size=0).came = ANSWER
    assert not flights.room(WINDOW)
    flights.settled(1)
    assert flights.room(WINDOW)


def test_a_record_waits_only_while_more_comes_and_nothing_lacks_room():
    flights = Flights(0)
    first, second = leave(flights), leave(flights)
    first.came = ANSWER
    assert flights.may_wait(WINDOW)
    assert not flights.may_wait(40)  # half of the bytes are taken
    second.came = ANSWER
    assert not flights.may_wait(WINDOW)
    leave(flights, MAX_BATCH, size=0)
    assert not flights.may_wait(WINDOW)  # a record tells of no more


def test_after_a_failure_nothing_leaves_and_no_record_waits():
    flights = Flights(0)
    first, second, _ = (leave(flights) for _ in range(3))
    second.came = BROKE
    assert not flights.room(WINDOW) and not flights.may_wait(WINDOW) and not flights.landed()
    first.came = ANSWER
    assert flights.landed() == [first, second]
