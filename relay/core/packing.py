"""A map from keys of 32 bytes to bytes for a million keys and more: packed rows in buckets, not objects.

Linear hashing (W. Litwin, VLDB 1980): one bucket is split at a time, so growth never stops anything for long. A row is
the key, the value's length in 32 bits and the value; a bucket is one bytes object of a few rows. What that costs in
memory beside keys and values is about 12 bytes a row.

Keys are found by Python's own keyed hash (SipHash), so nobody can choose keys that share a bucket. It differs between
processes, and so does the order of iteration: whoever needs an order sorts.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from struct import Struct
from typing import Any, Final

KEY: Final = 32  # bytes
_HEAD: Final = Struct(f"<{KEY}sI")
_FILL: Final = 8  # rows of a bucket on average: half of them are walked past in a look-up


class PackedMap(MutableMapping[bytes, bytes]):
    """See above. It must not change while it is iterated over."""

    __slots__ = ("_buckets", "_count", "_mask")

    def __init__(self) -> None:
        self._buckets = [b""]
        self._mask = 0  # the lowest 2**n - 1 that is not below the last bucket's number
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: bytes) -> bytes:
        bucket = self._buckets[self._number(key)]
        start, end = _find(bucket, key)
        if start == end:
            raise KeyError(key)
        return bucket[start + _HEAD.size : end]

    def get(self, key: bytes, default: Any = None) -> Any:
        """As of any map, in one look-up and without an exception."""
        bucket = self._buckets[self._number(key)]
        start, end = _find(bucket, key)
        return bucket[start + _HEAD.size : end] if start < end else default

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, bytes):
            return False
        start, end = _find(self._buckets[self._number(key)], key)
        return start < end

    def __setitem__(self, key: bytes, value: bytes) -> None:
        assert len(key) == KEY, "all keys are hashes or public keys"
        number = self._number(key)
        bucket = self._buckets[number]
        start, end = _find(bucket, key)
        self._buckets[number] = b"".join((bucket[:start], _HEAD.pack(key, len(value)), value, bucket[end:]))
        if start == end:
            self._count += 1
            if self._count > _FILL * len(self._buckets):
                self._split()

    def __delitem__(self, key: bytes) -> None:
        number = self._number(key)
        bucket = self._buckets[number]
        start, end = _find(bucket, key)
        if start == end:
            raise KeyError(key)
        self._buckets[number] = bucket[:start] + bucket[end:]
        self._count -= 1

    def __iter__(self) -> Iterator[bytes]:
        for bucket in self._buckets:
            for key, _ in _rows(bucket):
                yield key

    def _number(self, key: bytes) -> int:
        number = hash(key) & self._mask
        return number if number < len(self._buckets) else number & self._mask >> 1

    def _split(self) -> None:
        """One bucket more: it takes half of the rows of the bucket whose turn it is."""
        new = len(self._buckets)
        self._mask |= new
        old = new & self._mask >> 1
        parts: tuple[list[bytes], list[bytes]] = ([], [])
        for key, row in _rows(self._buckets[old]):
            parts[hash(key) & self._mask == new].append(row)
        self._buckets[old] = b"".join(parts[0])
        self._buckets.append(b"".join(parts[1]))


def _find(bucket: bytes, key: bytes) -> tuple[int, int]:
    """Where the row of `key` begins and ends; the bucket's end twice where there is none."""
    at, size = 0, len(bucket)
    while at < size:
        found, length = _HEAD.unpack_from(bucket, at)
        end: int = at + _HEAD.size + length
        if found == key:
            return at, end
        at = end
    return size, size


def _rows(bucket: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and whole rows."""
    at = 0
    while at < len(bucket):
        key, length = _HEAD.unpack_from(bucket, at)
        end = at + _HEAD.size + length
        yield key, bucket[at:end]
        at = end
