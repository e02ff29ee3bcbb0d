"""Tables of fixed-size rows, packed: what there is a million of must not be a million objects.

Integers are little-endian and signed, 64 bits unless said otherwise, so that the packed rows are the same everywhere.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise
from struct import Struct
from typing import Any, Final, NamedTuple

_CHUNK: Final = 512  # rows kept in one piece: so much is moved when one of them goes
_KEY: Final = Struct("<q")
_NATIVE: Final = sys.byteorder == "little"  # rows can be looked at in place


class Table:
    """Rows by rising key, their first column; rows are whole multiples of its 64 bits. They are added at the end and go
    from anywhere."""

    __slots__ = ("_chunks", "_count", "_firsts", "_full", "_last", "_pack", "_row")

    def __init__(self, row: Struct) -> None:
        self._row, self._pack, self._full = row, row.pack, _CHUNK * row.size
        self._chunks: list[bytearray] = []  # none is empty
        self._firsts: list[int] = []  # of each chunk: at most its first key, above every key of the chunk before
        self._count = 0
        self._last = -1  # the highest key that was ever added

    def __len__(self) -> int:
        return self._count

    def _find(self, key: int) -> tuple[int, int]:
        """(chunk, offset in it) of the first row whose key is `key` or above."""
        chunk, size = max(0, bisect_right(self._firsts, key) - 1), self._row.size
        if chunk == len(self._chunks):
            return chunk, 0
        rows = self._chunks[chunk]
        if _NATIVE:
            place = bisect_left(memoryview(rows).cast("q")[:: size // _KEY.size], key)
        else:
            place = bisect_left(range(len(rows) // size), key, key=lambda n: _KEY.unpack_from(rows, n * size)[0])
        return (chunk, place * size) if place * size < len(rows) else (chunk + 1, 0)

    def _locate(self, key: int) -> tuple[bytearray, int] | None:
        chunk, offset = self._find(key)
        if chunk < len(self._chunks) and _KEY.unpack_from(self._chunks[chunk], offset)[0] == key:
            return self._chunks[chunk], offset
        return None

    def add(self, *row: int) -> None:
        """A row whose key is above all that were added before."""
        key = row[0]
        assert key > self._last, "rows are found by rising key"
        self._last, chunks = key, self._chunks
        if not chunks or len(chunks[-1]) >= self._full:
            chunks.append(bytearray())
            self._firsts.append(key)
        chunks[-1].extend(self._pack(*row))
        self._count += 1

    def get(self, key: int) -> tuple[Any, ...] | None:
        """The row with this key."""
        found = self._locate(key)
        return self._row.unpack_from(*found) if found else None

    def put(self, *row: int) -> None:
        """A row in the place of the one with its key. Raises KeyError where there is none."""
        found = self._locate(row[0])
        if found is None:
            raise KeyError(row[0])
        self._row.pack_into(*found, *row)

    def pop(self, key: int) -> tuple[Any, ...] | None:
        """Take the row with this key out."""
        found = self._locate(key)
        if found is None:
            return None
        row = self._row.unpack_from(*found)
        self._remove(key, *found)
        return row

    def _remove(self, key: int, rows: bytearray, offset: int) -> None:
        del rows[offset : offset + self._row.size]
        self._count -= 1
        if not rows:
            chunk = bisect_right(self._firsts, key) - 1
            del self._chunks[chunk], self._firsts[chunk]

    def since(self, key: int) -> Iterator[tuple[Any, ...]]:
        """The rows whose keys are `key` or above, in order. The table must not change while the iterator is used."""
        chunk, offset = self._find(key)
        for rows in self._chunks[chunk:]:
            yield from self._row.iter_unpack(rows[offset:])
            offset = 0

    def dump(self, size: int) -> Iterator[bytes]:
        """The packed rows in parts of at most `size` bytes. The same rows give the same parts, and most parts stay when
        rows are added or go: each is what has the same first bits in its keys, as many of them as make it small enough
        (a trie, as in D. R. Morrison's PATRICIA, 1968)."""
        before = [0, *accumulate(len(rows) // self._row.size for rows in self._chunks)]  # rows before each chunk
        most, spans = size // self._row.size, [(0, self._count)] if self._count else []
        while spans:
            start, end = spans.pop()
            if end - start <= most:
                yield self._cut(before, start, end)
                continue
            last = self._key_at(before, end - 1)
            bit = (self._key_at(before, start) ^ last).bit_length() - 1
            chunk, offset = self._find(last >> bit << bit)
            middle = before[chunk] + offset // self._row.size
            spans += (middle, end), (start, middle)

    def _key_at(self, before: list[int], number: int) -> int:
        chunk = bisect_right(before, number) - 1
        key: int = _KEY.unpack_from(self._chunks[chunk], (number - before[chunk]) * self._row.size)[0]
        return key

    def _cut(self, before: list[int], start: int, end: int) -> bytes:
        """The rows from number `start` to before `end`."""
        first, last, size = bisect_right(before, start) - 1, bisect_right(before, end - 1) - 1, self._row.size
        pieces = self._chunks[first : last + 1]
        pieces[-1] = pieces[-1][: (end - before[last]) * size]
        pieces[0] = pieces[0][(start - before[first]) * size :]
        return b"".join(pieces)

    def load(self, part: bytes) -> None:
        """Add packed rows. Raises ValueError where they do not follow."""
        if len(part) % self._row.size:
            raise ValueError(f"{len(part)} bytes are no packed rows")
        step = _CHUNK * self._row.size
        for start in range(0, len(part), step):
            self._firsts.append(_KEY.unpack_from(part, start)[0])
            self._chunks.append(bytearray(part[start : start + step]))
        self._count += len(part) // self._row.size
        if part:
            self._last = _KEY.unpack_from(part, len(part) - self._row.size)[0]


class BlockUse(NamedTuple):
    """A block's bytes of records, and how many live sources still lie in it."""

    size: int
    live: int
    live_bytes: int


class Blocks:
    """The use of every block from `first` on, without a gap. `bytes` of records in them, `live_bytes` of live ones."""

    __slots__ = ("_rows", "bytes", "first", "live_bytes")
    _ROW: Final = Struct("<qqq")
    _LIVE: Final = Struct("<qq")  # the last two of them
    _SIZE_BYTES: Final = 8  # of the first

    def __init__(self) -> None:
        self.first = 1
        self.bytes = 0
        self.live_bytes = 0
        self._rows = bytearray()

    def __len__(self) -> int:
        return len(self._rows) // self._ROW.size

    def __getitem__(self, index: int) -> BlockUse:
        return BlockUse(*self._ROW.unpack_from(self._rows, self._offset(index)))

    def _offset(self, index: int) -> int:
        offset = (index - self.first) * self._ROW.size
        if not 0 <= offset < len(self._rows):
            raise KeyError(index)
        return offset

    def add(self, size: int) -> None:
        """The next block."""
        self._rows += self._ROW.pack(size, 0, 0)
        self.bytes += size

    def lies(self, index: int, sign: int, size: int) -> None:
        """A source of `size` bytes lies in the block from now on (+1), or no longer (-1)."""
        offset = self._offset(index) + self._SIZE_BYTES
        live, live_bytes = self._LIVE.unpack_from(self._rows, offset)
        self._LIVE.pack_into(self._rows, offset, live + sign, live_bytes + sign * size)
        self.live_bytes += sign * size

    def __iter__(self) -> Iterator[tuple[int, BlockUse]]:
        """(index, use) of each."""
        for offset in range(0, len(self._rows), self._ROW.size):
            yield self.first + offset // self._ROW.size, BlockUse(*self._ROW.unpack_from(self._rows, offset))

    def forget(self, below: int) -> None:
        """The blocks below index `below` have gone."""
        if below > self.first:
            self.bytes -= sum(self[index].size for index in range(self.first, below))
            del self._rows[: (below - self.first) * self._ROW.size]
            self.first = below

    def dump(self, size: int) -> Iterator[tuple[int, bytes]]:
        """(index of the first, packed rows), in parts of at most `size` bytes, which stay when others go."""
        count, end = size // self._ROW.size, self.first + len(self)
        begins = [self.first, *range((self.first // count + 1) * count, end, count), end]
        for start, upto in pairwise(begins) if self._rows else ():
            yield start, bytes(self._rows[(start - self.first) * self._ROW.size : (upto - self.first) * self._ROW.size])

    def load(self, first: int, part: bytes) -> None:
        """Add packed rows. Raises ValueError where they do not follow."""
        if not self._rows:
            self.first = first
        if first != self.first + len(self) or len(part) % self._ROW.size:
            raise ValueError(f"{len(part)} bytes are no packed blocks from {first} on")
        self._rows += part
        for size, _, live_bytes in self._ROW.iter_unpack(part):
            self.bytes += size
            self.live_bytes += live_bytes
