"""Order restored, duplicates removed: any permutation, any repeats, any restart in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.core import ordering
from relay.core.ordering import Given, Held, Stream, pack_missing, unpack_missing

Event = tuple[str, int]


def kept(stream: Stream[str]) -> Stream[str]:
    """The stream as a store would bring it back."""
    back: Stream[str] = Stream(stream.next, stream.given, unpack_missing(pack_missing(stream.missing)))
    for counter, held in stream.held.items():
        back.hold(counter, Held(held.since, held.size, held.item))
    assert back == stream
    return back


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[dict[str, int], list[Event | None]]:
    """Streams of 1…n messages each, every message at least once, in any order; None is a restart."""
    sizes = draw(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 12), min_size=1))
    events: list[Event | None] = [(name, n) for name, size in sizes.items() for n in range(1, size + 1)]
    events += draw(st.lists(st.sampled_from(events), max_size=20))
    events += [None] * draw(st.integers(0, 5))
    return sizes, draw(st.permutations(events))


@given(arrivals())
def test_exactly_once_in_order_whatever_comes_how(case: tuple[dict[str, int], list[Event | None]]) -> None:
    sizes, events = case
    streams: dict[str, Stream[str]] = {name: Stream() for name in sizes}
    for stream in streams.values():
        stream.begin(1)
    out: dict[str, list[Given[str]]] = {name: [] for name in sizes}
    for now, event in enumerate(events):
        if event is None:
            streams = {name: kept(stream) for name, stream in streams.items()}
            continue
        name, counter = event
        out[name] += streams[name].offer(counter, f"{name}{counter}", now, 10) or []
        assert streams[name].due(now, 10_000) == []
    for name, size in sizes.items():
        assert out[name] == [Given(n, f"{name}{n}") for n in range(1, size + 1)]
        assert not streams[name].held and not streams[name].missing and streams[name].held_bytes == 0


@given(st.permutations(list(range(1, 15))), st.integers(0, 8), st.integers(0, 14))
def test_nothing_is_lost_or_given_twice_however_impatient(order: list[int], hold: int, start: int) -> None:
    stream: Stream[int] = Stream()
    if start:
        stream.begin(start)
    given: list[Given[int]] = []
    for now, counter in enumerate([*order, *order]):
        given += stream.offer(counter, counter, now) or []
        given += stream.due(now, hold)
    given += stream.due(1_000, hold)
    assert sorted(one.counter for one in given) == list(range(1, 15))
    in_time = [one.counter for one in given if not one.late]
    assert in_time == sorted(in_time)
    for one in given:
        assert one.counter == one.item


def test_a_gap_is_marked_and_what_comes_late_is_flagged() -> None:
    stream: Stream[str] = Stream()
    assert stream.begin(3) == []
    assert stream.offer(5, "five", 0) == []
    assert stream.due(4_999, 5_000) == []
    assert stream.due(5_000, 5_000) == [Given(5, "five", gap=2)]
    assert stream.missing == [(1, 2), (3, 4)]
    assert stream.offer(4, "four", 6_000) == [Given(4, "four", late=True)]
    assert stream.offer(4, "four", 6_000) is None
    assert stream.offer(5, "five", 6_000) is None
    assert stream.offer(6, "six", 6_000) == [Given(6, "six")]


def test_a_stream_without_a_start_begins_with_what_comes_first() -> None:
    stream: Stream[str] = Stream()
    assert stream.offer(9, "nine", 0) == [Given(9, "nine")]
    assert stream.begin(2) == []  # too late to wait for it
    assert stream.offer(8, "eight", 0) == [Given(8, "eight", late=True)]


def test_a_lower_start_that_comes_later_counts_while_nothing_was_given() -> None:
    stream: Stream[str] = Stream()
    stream.begin(40)
    assert stream.offer(2, "two", 0) == [Given(2, "two", late=True)]
    other: Stream[str] = Stream()
    other.begin(40)
    assert other.begin(1) == [] and other.offer(2, "two", 0) == []
    assert other.offer(1, "one", 0) == [Given(1, "one"), Given(2, "two")]


def test_memory_is_bounded() -> None:
    stream: Stream[int] = Stream()
    stream.begin(1)
    for counter in range(2, 2 + 2 * ordering.MAX_HELD, 2):
        assert stream.offer(counter, counter, 0) == []
    assert len(stream.held) == ordering.MAX_HELD
    assert [one.counter for one in stream.offer(100_000, 0, 0) or []] == [2]
    big: Stream[int] = Stream()
    big.begin(1)
    big.offer(2, 2, 0, ordering.MAX_HELD_BYTES)
    assert [one.counter for one in big.offer(3, 3, 0, 1) or []] == [2, 3]
    assert big.held_bytes == 0
    for counter in range(5, 5 + 4 * ordering.MAX_MISSING, 2):
        big.offer(counter, counter, 0)
        big.due(0, 0)
    assert len(big.missing) == ordering.MAX_MISSING


def test_a_wait_counts_anew_after_the_connection_was_away() -> None:
    stream: Stream[int] = Stream()
    stream.begin(1)
    stream.offer(2, 2, 0)
    stream.rearm(4_000)
    assert stream.due(8_999, 5_000) == []
    assert [one.gap for one in stream.due(9_000, 5_000)] == [1]
