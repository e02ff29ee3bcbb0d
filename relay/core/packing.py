"""A map from keys of 32 bytes to bytes for a million keys and more: rows packed in leaves, not objects.

Two levels of a B+ tree (R. Bayer and E. McCreight, 1972; D. Comer, 1979): leaves of some rows each, in the order of the
keys, and one array that says where in that order each begins. A leaf is one bytes object, which lies on a Shelf: in
memory, or on a disk that is no part of the core (relay.journal.shelf). What the map itself keeps in memory is 12 bytes
a leaf. Iteration is in the order of the keys, and takes each leaf down once.

A leaf is split only between keys whose first 8 bytes differ. Keys are hashes and public keys: to find enough of them
that begin alike to fill a leaf takes far more work than a flood of users.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, MutableMapping
from itertools import accumulate
from struct import Struct, unpack_from
from typing import Any, Final, Protocol

KEY: Final = 32  # bytes
LEAF: Final = 4_080  # bytes of a leaf, unless it has one row only: with a seal of 16 bytes, a page of the disk
_COUNT: Final = Struct("<I")
_LENGTH: Final = 4  # bytes, as of the count
_unpack_count: Final = _COUNT.unpack_from  # look-ups are short of time


class Shelf(Protocol):
    """Where leaves lie: bytes, by numbers that it gives. One shelf serves many maps. What lies outside the process may
    raise DiskFailed; then nothing more comes of it."""

    def add(self, leaf: bytes) -> int:
        """Take a new leaf. Its number."""

    def get(self, number: int) -> bytes: ...

    def put(self, number: int, leaf: bytes) -> None:
        """Another leaf takes its place."""

    def drop(self, number: int) -> None:
        """It is not needed any more."""


class Memory:
    """A shelf in memory."""

    def __init__(self) -> None:
        self._leaves: list[bytes] = []
        self._free: list[int] = []

    def add(self, leaf: bytes) -> int:
        if self._free:
            number = self._free.pop()
            self._leaves[number] = leaf
            return number
        self._leaves.append(leaf)
        return len(self._leaves) - 1

    def get(self, number: int) -> bytes:
        return self._leaves[number]

    def put(self, number: int, leaf: bytes) -> None:
        self._leaves[number] = leaf

    def drop(self, number: int) -> None:
        self._leaves[number] = b""
        self._free.append(number)


class PackedMap(MutableMapping[bytes, bytes]):
    """See above. It must not change while it is iterated over: RuntimeError then. Without a `shelf` it has its own in
    memory."""

    __slots__ = ("_changes", "_count", "_firsts", "_numbers", "_shelf")

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._shelf: Shelf = Memory() if shelf is None else shelf
        self._firsts = array("Q", [0])  # from which first 8 bytes on keys are in the leaf
        self._numbers = array("I", [self._shelf.add(_leaf(()))])
        self._count = 0
        self._changes = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: bytes) -> bytes:
        value: bytes | None = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def get(self, key: bytes, default: Any = None) -> Any:
        """As of any map, in one look-up and without an exception."""
        leaf = self._shelf.get(self._numbers[bisect_right(self._firsts, int.from_bytes(key[:8])) - 1])
        at = _find(leaf, key)
        return _value(leaf, at) if at >= 0 else default

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and _find(self._shelf.get(self._numbers[self._place(key)]), key) >= 0

    def __setitem__(self, key: bytes, value: bytes) -> None:
        assert len(key) == KEY, "all keys are hashes or public keys"
        place = self._place(key)
        leaf = self._shelf.get(self._numbers[place])
        at = _find(leaf, key)
        self._changes += 1
        if at >= 0:
            leaf = _spliced(leaf, at, 1, key, value)
        else:
            leaf = _spliced(leaf, _before(leaf, key), 0, key, value)
            self._count += 1
        if len(leaf) <= LEAF or not self._split(place, leaf):
            self._shelf.put(self._numbers[place], leaf)

    def __delitem__(self, key: bytes) -> None:
        place = self._place(key)
        number = self._numbers[place]
        leaf = self._shelf.get(number)
        at = _find(leaf, key)
        if at < 0:
            raise KeyError(key)
        self._changes += 1
        self._count -= 1
        leaf = _spliced(leaf, at, 1)
        if _count(leaf) or len(self._numbers) == 1:
            self._shelf.put(number, leaf)
        else:
            self._shelf.drop(number)
            del self._numbers[place], self._firsts[place]
            self._firsts[0] = 0

    def __iter__(self) -> Iterator[bytes]:
        """The keys, rising."""
        changes = self._changes
        for number in self._numbers:
            for key in _keys(self._shelf.get(number)):
                yield key
                if self._changes != changes:
                    raise RuntimeError("a packed map changed while somebody iterated over it")

    def _place(self, key: bytes) -> int:
        """Which of the leaves has the key, if any."""
        return bisect_right(self._firsts, int.from_bytes(key[:8])) - 1

    def _split(self, place: int, leaf: bytes) -> bool:
        """Leaves that fit take the place of one that has grown too large. False where its keys begin alike."""
        keys = _keys(leaf)
        begins = [at for at in range(1, len(keys)) if keys[at][:8] != keys[at - 1][:8]]
        if not begins:
            return False
        ends = list(accumulate(_lengths(leaf)))
        if place == len(self._numbers) - 1 and begins[-1] == len(keys) - 1:
            cut = begins[-1]  # keys that come in order, as from a checkpoint, fill leaf after leaf
        else:
            cut = min(begins, key=lambda at: abs(2 * ends[at - 1] - ends[-1]))
        values = leaf[_LENGTH + (_LENGTH + KEY) * len(keys) :]
        spans = zip([0, *ends[:-1]], ends, strict=True)
        rows = [(key, values[start:end]) for key, (start, end) in zip(keys, spans, strict=True)]
        low, high = _leaf(rows[:cut]), _leaf(rows[cut:])
        self._firsts.insert(place + 1, int.from_bytes(keys[cut][:8]))
        self._numbers.insert(place + 1, self._shelf.add(high))
        if len(high) > LEAF:
            self._split(place + 1, high)
        if len(low) <= LEAF or not self._split(place, low):
            self._shelf.put(self._numbers[place], low)
        return True


# --- leaves: how many rows, how long each value is, the keys, the values --------------------------
def _leaf(rows: Iterable[tuple[bytes, bytes]]) -> bytes:
    keys, values = [key for key, _ in rows], [value for _, value in rows]
    lengths = [_COUNT.pack(len(value)) for value in values]
    return b"".join((_COUNT.pack(len(keys)), *lengths, *keys, *values))


def _count(leaf: bytes) -> int:
    count: int = _unpack_count(leaf)[0]
    return count


def _lengths(leaf: bytes) -> tuple[int, ...]:
    return unpack_from(f"<{_count(leaf)}I", leaf, _LENGTH)


def _keys(leaf: bytes) -> list[bytes]:
    count = _count(leaf)
    first = _LENGTH * (count + 1)
    return [leaf[at : at + KEY] for at in range(first, first + KEY * count, KEY)]


def _find(leaf: bytes, key: bytes) -> int:
    """Which row has the key; -1 where none has."""
    count: int = _unpack_count(leaf)[0]
    first = _LENGTH * (count + 1)
    end = first + KEY * count
    found = leaf.find(key, first, end)
    while found >= 0 and (found - first) % KEY:  # across two keys
        found = leaf.find(key, found + 1, end)
    return (found - first) // KEY if found >= 0 and len(key) == KEY else -1


def _before(leaf: bytes, key: bytes) -> int:
    """Before which row a new key goes."""
    return bisect_left(_keys(leaf), key)


def _value(leaf: bytes, at: int) -> bytes:
    lengths = unpack_from(f"<{at + 1}I", leaf, _LENGTH)
    end = _LENGTH + (_LENGTH + KEY) * _unpack_count(leaf)[0] + sum(lengths)
    return leaf[end - lengths[at] : end]


def _spliced(leaf: bytes, at: int, gone: int, key: bytes = b"", value: bytes = b"") -> bytes:
    """The leaf without `gone` rows from row `at` on, and with a row for `key`, if one is given, in their place."""
    count = _count(leaf)
    length, keys = _LENGTH * (at + 1), _LENGTH * (count + 1)  # where things begin
    own = keys + KEY * at
    before = unpack_from(f"<{at + gone}I", leaf, _LENGTH)
    start, end = (keys + KEY * count + sum(some) for some in (before[:at], before))
    return b"".join((
        _COUNT.pack(count - gone + bool(key)),
        leaf[_LENGTH:length], _COUNT.pack(len(value)) if key else b"", leaf[length + _LENGTH * gone : keys],
        leaf[keys:own], key, leaf[own + KEY * gone : start], value, leaf[end:],
    ))  # fmt: skip
