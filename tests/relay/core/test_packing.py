"""A packed map is a map, in the order of its keys, on whatever shelf its leaves lie."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.codec import digest
from relay.core.packing import LEAF, Memory, PackedMap, Shelf
from relay.journal.shelf import SealedShelf
from tests.scratch import MemoryScratch

KEYS = [digest(bytes([number])) for number in range(60)]
ALIKE = [digest(b"one")[:8] + digest(bytes([number]))[:24] for number in range(8)]  # no leaf ends between them
values = st.one_of(st.binary(max_size=40), st.integers(0, 9_000).map(bytes))
steps = st.tuples(st.sampled_from(["put", "put", "put", "drop"]), st.sampled_from(KEYS + ALIKE), values)
shelves = st.sampled_from([
    Memory, lambda: SealedShelf(MemoryScratch(), bytes(32), keep=0),
    lambda: SealedShelf(MemoryScratch(), bytes(32), keep=9_000), lambda: SealedShelf(MemoryScratch(), bytes(32)),
])  # fmt: skip


@given(played=st.lists(steps, max_size=200), make=shelves)
def test_it_says_what_a_dict_says(played: list[tuple[str, bytes, bytes]], make: Any) -> None:
    shelf: Shelf = make()
    packed, known, beside = PackedMap(shelf), dict[bytes, bytes](), PackedMap(shelf)
    beside.update(dict.fromkeys(KEYS, b"another map's"))
    for what, key, value in played:
        if what == "put":
            packed[key] = known[key] = value
        else:
            assert packed.pop(key, None) == known.pop(key, None)
        assert len(packed) == len(known)
    assert list(packed.items()) == sorted(known.items())
    assert all((key in packed) == (key in known) and packed.get(key) == known.get(key) for key in KEYS + ALIKE)
    for key in set(KEYS) - set(known):
        with pytest.raises(KeyError):
            del packed[key]
    others: list[Any] = [None, 7, "x", b"", b"short", KEYS[0][:8], KEYS[0] + b"more"]
    assert not any(one in packed for one in others)
    assert packed.get(b"") is None and packed.get(KEYS[0][:31]) is None
    assert dict(beside) == dict.fromkeys(KEYS, b"another map's")
    for key in list(packed):
        del packed[key]
    assert not packed and not list(packed) and len(packed._numbers) == 1


def test_a_value_may_hold_any_key() -> None:
    packed = PackedMap()
    for key in KEYS:
        packed[key] = b"".join(KEYS)
    assert packed.get(digest(b"another")) is None and len(packed) == len(KEYS)


def test_a_key_across_two_others_is_none() -> None:
    low, high = bytes([7] * 31 + [8]), bytes([8] * 32)
    packed = PackedMap()
    packed[low] = packed[high] = b"here"
    assert (low + high)[1:33] not in packed and packed.get((low + high)[16:48]) is None


def leaves(packed: PackedMap) -> list[bytes]:
    return [packed._shelf.get(number) for number in packed._numbers]


@pytest.mark.parametrize("size", [2, 60, 400])
def test_leaves_fit_and_are_well_filled(size: int) -> None:
    keys = [digest(number.to_bytes(4)) for number in range(5_000)]
    for some, filled in ((keys, 0.6), (sorted(keys), 0.88)):  # sorted: as a checkpoint is loaded
        packed = PackedMap()
        for key in some:
            packed[key] = key[:1] * size
        lengths = [len(leaf) for leaf in leaves(packed)]
        assert max(lengths) <= LEAF and sum(lengths) > filled * LEAF * len(lengths)
        assert list(packed) == sorted(keys) and all(packed[key] == key[:1] * size for key in keys)


def test_keys_that_begin_alike_share_a_leaf_however_many() -> None:
    packed = PackedMap()
    for number in range(300):
        packed[bytes(8) + digest(number.to_bytes(4))[8:]] = bytes(20)
    assert len(leaves(packed)) == 1 and len(list(packed)) == 300
    packed[b"\xff" * 32] = b""
    assert len(leaves(packed)) == 2


def test_it_shrinks_to_what_is_left() -> None:
    packed, keys = PackedMap(), [digest(number.to_bytes(4)) for number in range(2_000)]
    packed.update(dict.fromkeys(keys, bytes(100)))
    random.Random(1).shuffle(keys)
    for key in keys[5:]:
        del packed[key]
    assert len(leaves(packed)) <= 5 and set(packed) == set(keys[:5])


def test_it_must_not_change_while_somebody_iterates() -> None:
    packed = PackedMap()
    packed.update(dict.fromkeys(KEYS, b"v"))
    with pytest.raises(RuntimeError, match="changed while"):
        for key in packed:
            packed[key] = b"w"
    with pytest.raises(RuntimeError, match="changed while"):
        for key in packed:
            del packed[key]


def test_who_is_lower_than_all_that_are_left_is_in_order() -> None:
    """The first leaf is emptied, and then somebody comes who belongs there."""
    keys = sorted(digest(number.to_bytes(4)) for number in range(400))
    packed = PackedMap()
    for key in keys:
        packed[key] = b"v"
    first = list(packed)[: len(leaves(packed)[0]) // 40]
    for key in first[:-1]:
        del packed[key]
    count = len(leaves(packed))
    while len(leaves(packed)) == count:
        del packed[next(iter(packed))]
    packed[keys[0]] = b"again"
    assert list(packed) == sorted(packed) and packed[keys[0]] == b"again" and next(iter(packed)) == keys[0]
