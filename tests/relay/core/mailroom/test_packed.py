"""Packed tables against plain dicts, whatever is done to them."""

from __future__ import annotations

from struct import Struct
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.mailroom import packed
from relay.core.mailroom.packed import Blocks, Table
from relay.core.mailroom.state import Source, Sources

PAIR = Struct("<qq")
doings = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5), st.integers(1, 700)),
        st.tuples(st.just("pop"), st.integers(0, 3_000), st.integers(1, 900)),
        st.tuples(st.just("put"), st.integers(0, 3_000), st.integers(-9, 9)),
    ),
    max_size=20,
)


def check(table: Table, model: dict[int, int]) -> None:
    assert len(table) == len(model) and list(table.since(-1)) == list(model.items())
    for key in (-1, 0, 1, *list(model)[:: max(1, len(model) // 7)], max(model, default=0), max(model, default=0) + 1):
        assert [row[0] for row in table.since(key)] == [known for known in model if known >= key]
        assert table.get(key) == ((key, model[key]) if key in model else None)


@given(doings, st.booleans())
def test_a_table_is_a_dict_by_rising_key(doings, native) -> None:
    with patch.object(packed, "_NATIVE", native):  # how a machine of the other byte order looks rows up
        _is_a_dict_by_rising_key(doings)


def _is_a_dict_by_rising_key(doings) -> None:
    table, model, last = Table(PAIR), dict[int, int](), 0
    for what, at, count in doings:
        if what == "add":
            for _ in range(count):
                last += at
                table.add(last, -last)
                model[last] = -last
        elif what == "pop":
            for key in range(at, at + count):
                value = model.pop(key, None)
                assert table.pop(key) == (None if value is None else (key, value))
        elif at in model:
            table.put(at, count)
            model[at] = count
        else:
            with pytest.raises(KeyError):
                table.put(at, count)
        check(table, model)
    parts = list(table.dump(1_000))
    assert all(len(part) <= 992 for part in parts) and b"".join(parts) == b"".join(
        PAIR.pack(*both) for both in model.items()
    )
    again = Table(PAIR)
    for part in parts:
        again.load(part)
    check(again, model)
    assert list(again.dump(1_000)) == parts
    again.add(last + 1, 0)
    check(again, model | {last + 1: 0})
    with pytest.raises(ValueError):
        again.load(b"123")


def test_most_parts_stay_what_they_were() -> None:
    table = Table(PAIR)
    keys = [block << 20 | slot for block in range(400) for slot in range(50)]
    for key in keys[:18_000]:
        table.add(key, key)
    before = list(table.dump(16_000))
    for key in keys[18_000:]:
        table.add(key, key)
    grown = list(table.dump(16_000))
    assert len(before) < 40 and len(set(before) - set(grown)) <= 1
    for key in keys[:100]:
        table.pop(key)
    table.put(keys[9_000], -1)
    assert len(set(grown) - set(table.dump(16_000))) <= 2


def test_a_source_is_there_as_long_as_it_is_held() -> None:
    sources, one, two = Sources(), Source(5, 0, 5, 300), Source(9, 0, 9, 40)
    assert sources.hold(one) and not sources.hold(one) and sources.hold(two)
    assert sources.find(5) == one and sources.find(6) is None
    assert sources.move(5, 7, 1) == one and sources.move(6, 7, 1) is None
    moved = Source(5, 7, 1, 300)
    assert sources.below(7) == [two] and sources.below(8) == [moved, two]
    assert sources.drop(5) == (moved, False) and sources.drop(5) == (moved, True)
    assert sources.find(5) is None and len(sources) == 1
    again = Sources()
    for part in sources.dump(100):
        again.load(part)
    assert not again.hold(two) and again.hold(Source(10, 0, 10, 1)) and len(again) == 2


def test_blocks_know_what_lies_in_them() -> None:
    blocks = Blocks()
    for size in (100, 200, 300):
        blocks.add(size)
    blocks.lies(2, 1, 50), blocks.lies(3, 1, 60), blocks.lies(3, 1, 7), blocks.lies(2, -1, 50)
    assert list(blocks) == [(1, (100, 0, 0)), (2, (200, 0, 0)), (3, (300, 2, 67))]
    assert (blocks.bytes, blocks.live_bytes) == (600, 67)
    blocks.forget(3)
    assert (blocks.first, len(blocks), blocks.bytes, blocks[3].live) == (3, 1, 300, 2)
    for index in (2, 4):
        with pytest.raises(KeyError):
            blocks[index]
    blocks.add(1)
    again = Blocks()
    for part in blocks.dump(30):
        again.load(*part)
    assert list(again) == list(blocks) and (again.bytes, again.live_bytes, again.first) == (301, 67, 3)
    with pytest.raises(ValueError):
        again.load(9, bytes(24))
