"""The book of a node: what it remembers, and for how long."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.block import make_block, position
from relay.core.book import Book, Taken
from relay.core.codec import digest
from relay.core.proven import told
from relay.core.wire import Code
from tests.attesting import NOW

LOG_ID = bytes(range(16))
_SAME = [bytes([Code.STORED]) * 32, bytes([Code.STORED]) * 31 + b"x"]


def test_the_book_forgets_its_oldest_pages_and_finds_the_others() -> None:
    book = Book("norden/1", LOG_ID, max_bytes=1_000)
    for index in range(1, 20):
        own = digest(b"%d" % index)
        taken = [Taken(own, Code.STORED, position(index, 0), 1, 1, NOW)]
        book.keep(make_block(LOG_ID, index, bytes(32), NOW, [b"record"]), taken)
        assert book.statement(index) is not None  # it is hashed; that goes with its page
    last, stored = digest(b"19"), told(digest(b"19"), Code.STORED)
    assert book.find(1, [stored, stored]) == [-1, -1] and book.statement(1) is None and not book.has(1)
    assert book.search(told(digest(b"1"), Code.STORED)) is None
    assert book.find(19, [stored]) == [0] and book.search(stored) == (19, 0) and book.has(19)
    assert book.search(told(last, Code.ACCEPTED)) is None and book.search(told(last, 77_777)) is None
    proven, gone = (book.prove(index, [0], ()) for index in (19, 1))
    assert proven is not None and proven.ordinals == (0,) and gone is None


def test_the_book_takes_no_numbers_for_an_id() -> None:
    """Between two rows may lie what looks like an id and a code."""
    book, numbers = Book("norden/1", LOG_ID), (position(1, 0), 2, 3, NOW)
    id_ = struct.pack(">4Q", *numbers)
    taken = [Taken(digest(b"1"), Code.STORED, *numbers), Taken(bytes([Code.STORED]) * 32, Code.STORED, *numbers)]
    book.keep(make_block(LOG_ID, 1, bytes(32), NOW, [b"record"]), taken)
    assert book.search(told(id_, Code.STORED)) is None
    book.keep(make_block(LOG_ID, 2, bytes(32), NOW, [b"record"]), [*taken, Taken(id_, Code.STORED, *numbers)])
    assert book.search(told(id_, Code.STORED)) == (2, 2)


def test_pages_that_took_one_envelope_count_twice_when_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.core.book.BOOK_LEAVES", 10)
    book = Book("norden/1", LOG_ID)
    for index in range(1, 21):
        taken = [Taken(digest(b"%d" % index), Code.STORED, position(index, 0), 1, 1, NOW)]
        book.keep(make_block(LOG_ID, index, bytes(32), NOW, [b"record"]), taken)
        assert book.statement(index) and len(book._hashed) == min(index, 5)


@given(st.lists(st.integers(-3, 12), max_size=30))
def test_envelopes_are_found_in_whatever_order_they_are_asked_for(numbers: list[int]) -> None:
    """Also those that are asked for twice, and where an id looks like what lies between two rows."""
    numbers_of_row = (position(1, 0), 2, 3, NOW)
    ids = [digest(b"%d" % number) for number in range(8)] + [struct.pack(">4Q", *numbers_of_row), *_SAME]
    book = Book("norden/1", LOG_ID)
    book.keep(make_block(LOG_ID, 1, bytes(32), NOW, [b"record"]), [Taken(one, 2, *numbers_of_row) for one in ids])
    asked = [told(ids[number], 2) if 0 <= number < len(ids) else told(digest(b"%d" % number), 2) for number in numbers]
    assert book.find(1, asked) == [number if 0 <= number < len(ids) else -1 for number in numbers]
