"""A packed map is a map."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.codec import digest
from relay.core.packing import PackedMap

KEYS = [digest(bytes([number])) for number in range(60)]
steps = st.tuples(st.sampled_from(["put", "put", "put", "drop"]), st.sampled_from(KEYS), st.binary(max_size=40))


@given(played=st.lists(steps, max_size=200))
def test_it_says_what_a_dict_says(played: list[tuple[str, bytes, bytes]]) -> None:
    packed, known = PackedMap(), dict[bytes, bytes]()
    for what, key, value in played:
        if what == "put":
            packed[key] = known[key] = value
        else:
            assert packed.pop(key, None) == known.pop(key, None)
        assert len(packed) == len(known)
    assert dict(packed.items()) == known
    assert all((key in packed) == (key in known) and packed.get(key) == known.get(key) for key in KEYS)
    for key in set(KEYS) - set(known):
        with pytest.raises(KeyError):
            del packed[key]
    others: list[Any] = [None, 7, "x", b"short"]
    assert not any(one in packed for one in others)


def test_a_value_may_hold_any_key() -> None:
    packed = PackedMap()
    for key in KEYS:
        packed[key] = b"".join(KEYS)
    assert packed.get(digest(b"another")) is None and len(packed) == len(KEYS)


def test_it_grows_bucket_by_bucket() -> None:
    packed = PackedMap()
    for number in range(5_000):
        packed[digest(number.to_bytes(4))] = number.to_bytes(2)
    buckets = packed._buckets
    assert 5_000 / 9 < len(buckets) <= 5_000 / 8 + 1
    assert max(map(len, buckets)) < 60 * (32 + 4 + 2)  # nobody walks far
    assert all(packed[digest(number.to_bytes(4))] == number.to_bytes(2) for number in range(5_000))
