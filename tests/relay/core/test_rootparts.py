"""A root document in parts: what an honest node gives becomes the same bytes, and nothing else goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from relay.core import wire
from relay.core.rootparts import Gathering, part_of
from relay.core.trust import Root, RootRegion
from relay.errors import ProtocolError
from relay.limits import MAX_BUNDLE, ROOT_PART
from tests.roots import verified_root

FIRST = verified_root([RootRegion("norden", b"", bytes(32), ())], 10**13)
HAVE = FIRST.rank


def later(version: int, size: int) -> Root:
    payload = structs.replace(FIRST.payload, version=version)
    return structs.replace(FIRST, payload=payload, signed=bytes(at * 7 % 251 for at in range(size)))


@given(parts=st.integers(0, 3), more=st.integers(-1, 1))
def test_a_document_comes_whole(parts: int, more: int) -> None:
    root = later(2, max(1, parts * ROOT_PART + more))
    gathering, asked = Gathering(HAVE), 0
    while (whole := gathering.take(part_of(root, gathering.question))) is None:
        asked += 1
    assert whole == root.signed and asked == (len(whole) - 1) // ROOT_PART


@pytest.mark.parametrize("rank", [HAVE, (1, 2), (2, 0)])
def test_who_has_it_or_a_newer_one_is_given_nothing(rank: tuple[int, int]) -> None:
    gathering = Gathering(rank)
    part = part_of(FIRST, gathering.question)
    assert part == wire.RootPart(1, 1, 0, 0, b"") and gathering.take(part) == b""


def test_another_root_role_is_newer_whatever_the_timestamp_says() -> None:
    rotated = structs.replace(FIRST, payload=structs.replace(FIRST.payload, root_version=2))
    assert part_of(rotated, wire.AskRoot(1, 999, 0)).size


@pytest.mark.parametrize("ahead", [0, 1, 3 * ROOT_PART, MAX_BUNDLE])
def test_past_the_end_there_is_nothing(ahead: int) -> None:
    root = later(2, 100)
    assert part_of(root, wire.AskRoot(*HAVE, min(100 + ahead, MAX_BUNDLE))).part == b""


def test_a_document_that_comes_meanwhile_is_begun_anew() -> None:
    gathering, second, third = Gathering(HAVE), later(2, 3 * ROOT_PART), later(3, ROOT_PART // 2)
    for _ in range(2):
        assert gathering.take(part_of(second, gathering.question)) is None
    assert gathering.take(part_of(third, gathering.question)) is None
    assert gathering.question.offset == 0
    assert gathering.take(part_of(third, gathering.question)) == third.signed


def test_one_that_comes_anew_at_each_question_is_given_up() -> None:
    gathering = Gathering(HAVE)
    with pytest.raises(ProtocolError, match="at each question"):
        for version in range(2, 20):
            gathering.take(part_of(later(version, 2 * ROOT_PART), gathering.question))


PART = bytes(ROOT_PART)
LIES = {
    "no newer": [wire.RootPart(*HAVE, 5, 0, b"older")],
    "an older one": [wire.RootPart(0, 9, 5, 0, b"older")],
    "empty": [wire.RootPart(1, 2, 5, 0, b"")],
    "a byte at a time": [wire.RootPart(1, 2, 5, 0, b"a")],
    "more than its size": [wire.RootPart(1, 2, 5, 0, b"sixsix")],
    "from elsewhere": [wire.RootPart(1, 2, 5, 1, b"five ")],
    "the same again": [wire.RootPart(1, 2, 3 * ROOT_PART, 0, PART)] * 2,
    "of another size": [
        wire.RootPart(1, 2, 3 * ROOT_PART, 0, PART), wire.RootPart(1, 2, 2 * ROOT_PART, ROOT_PART, PART),
    ],
    "back to one before": [wire.RootPart(1, 3, 3 * ROOT_PART, 0, PART), wire.RootPart(1, 2, 2 * ROOT_PART, 0, PART)],
}  # fmt: skip


@pytest.mark.parametrize("said", LIES.values(), ids=LIES)
def test_what_no_honest_node_says(said: list[wire.RootPart]) -> None:
    gathering = Gathering(HAVE)
    for part in said[:-1]:
        assert gathering.take(part) is None
    with pytest.raises(ProtocolError):
        gathering.take(said[-1])


@given(st.lists(st.builds(
    wire.RootPart, st.integers(0, 3), st.integers(0, 3), st.integers(0, 9), st.integers(0, 9), st.binary(max_size=9)
), max_size=60))  # fmt: skip
def test_whatever_comes_it_ends_with_bytes_of_the_size_that_was_named(said: list[wire.RootPart]) -> None:
    gathering = Gathering(HAVE)
    for part in said:
        try:
            whole = gathering.take(part)
        except ProtocolError:
            return
        if whole is not None:
            assert len(whole) == part.size
            return
        assert gathering.question.offset <= 9


@pytest.mark.parametrize("field", ["size", "offset"])
def test_a_size_past_the_bound_is_refused_before_anything_is_kept(field: str) -> None:
    part = structs.replace(wire.RootPart(1, 2, 5, 0, b"hello"), **{field: MAX_BUNDLE + 1})
    with pytest.raises(ProtocolError, match="wrong shape"):
        wire.decode_server(wire.encode_message(part))
    with pytest.raises(ProtocolError, match="wrong shape"):
        wire.decode_client(wire.encode_message(wire.AskRoot(1, 1, MAX_BUNDLE + 1)))
    with pytest.raises(ProtocolError, match="wrong shape"):
        wire.decode_server(wire.encode_message(wire.RootPart(1, 2, MAX_BUNDLE, 0, bytes(ROOT_PART + 1))))
