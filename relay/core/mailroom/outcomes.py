"""Outcomes of envelopes, remembered for as long as their ids may come again (rule 15), packed: there may be millions.

Each minute of `created` has a sheet of its own, which goes as a whole: rows in the order in which they came, as they
go into a checkpoint, and an open-addressed index of them (W. W. Peterson, 1957: linear probing). The index is derived:
it goes by Python's hash, which nobody outside can aim at, and says nothing but where a row is. One that is full gives
way to a larger one a few rows at a time: a million at once would hold a node up for half a second.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from struct import Struct
from typing import Final

from relay.core.wire import ReceiptItem

_ROW: Final = Struct("<32sqqqI")  # id, code, position, newest, which of the sheet's cells answered
_SIZE: Final = _ROW.size
_IDS: Final = Struct("<32s28x")  # the same rows, of which nothing but the id is looked at
_LEAST: Final = 1_024  # places of an index
_FULL: Final = 2  # places of an index for each row at least
_STEP: Final = 8  # rows that go over to a larger index with each new one: all have before that one is full, too
_unpack: Final = _ROW.unpack_from


class _Sheet:
    """The outcomes of one minute. `index`: row numbers, from 1 on; 0 where there is none. While it grows, `before` is
    the smaller one, which has the first `end` rows; those below `moved` are in both."""

    __slots__ = ("before", "cells", "end", "index", "moved", "numbers", "rows")

    def __init__(self, places: int = _LEAST) -> None:
        self.rows = bytearray()
        self.cells: list[str] = []
        self.numbers: dict[str, int] = {}  # of the cells
        self.index = array("I", bytes(4 * places))
        self.before: array[int] | None = None
        self.moved = self.end = 0

    def __len__(self) -> int:
        return len(self.rows) // _SIZE

    def find(self, own: bytes) -> int:
        """Where the row of this id begins; where there is none, ~ the place that it would have in the index."""
        index, rows = self.index, self.rows
        mask = len(index) - 1
        place = hash(own) & mask
        while number := index[place]:
            start = (number - 1) * _SIZE
            if rows.startswith(own, start):
                return start
            place = (place + 1) & mask
        if self.before is not None and (start := self._find_before(own, self.before)) >= 0:
            return start
        return ~place

    def _find_before(self, own: bytes, index: array[int]) -> int:
        mask = len(index) - 1
        place = hash(own) & mask
        while number := index[place]:
            start = (number - 1) * _SIZE
            if self.rows.startswith(own, start):
                return start
            place = (place + 1) & mask
        return -1

    def read(self, start: int) -> ReceiptItem:
        own, code, position, newest, cell = _unpack(self.rows, start)
        return ReceiptItem(own, code, position, newest, self.cells[cell])

    def _cell(self, cell: str) -> int:
        number = self.numbers.get(cell)
        if number is None:
            number = self.numbers[cell] = len(self.cells)
            self.cells.append(cell)
        return number

    def add(self, item: ReceiptItem, place: int) -> None:
        rows = self.rows
        rows += _ROW.pack(item.id, item.code, item.position, item.newest, self._cell(item.cell))
        count = len(rows) // _SIZE
        self.index[place] = count
        if self.before is not None:
            self._move(_STEP)
        elif count * _FULL >= len(self.index):
            self.before, self.moved, self.end = self.index, 0, count
            self.index = array("I", bytes(4 * _places(2 * count)))

    def put(self, start: int, item: ReceiptItem) -> None:
        """Another outcome in the place of one."""
        _ROW.pack_into(self.rows, start, item.id, item.code, item.position, item.newest, self._cell(item.cell))

    def load(self, part: bytes) -> None:
        """More rows, of ids that have none yet."""
        first = len(self)
        self._move(self.end)
        self.rows += part
        if len(self) * _FULL >= len(self.index):
            self.index, first = array("I", bytes(4 * _places(2 * len(self)))), 0
        self._enter(first, len(self))

    def _move(self, count: int) -> None:
        """So many rows more of those that the smaller index has."""
        if self.before is not None:
            last = min(self.moved + count, self.end)
            self._enter(self.moved, last)
            self.moved = last
            if last == self.end:
                self.before = None

    def _enter(self, first: int, last: int) -> None:
        """Put rows into the index, from number `first` to before `last`."""
        index, mask = self.index, len(self.index) - 1
        rows = self.rows[first * _SIZE : last * _SIZE]  # no view: while somebody looks at this frame, none may grow
        for number, (own,) in enumerate(_IDS.iter_unpack(rows), first + 1):
            place = hash(own) & mask
            while index[place]:
                place = (place + 1) & mask
            index[place] = number


def _places(rows: int) -> int:
    """Of an index that takes so many rows."""
    return max(_LEAST, 1 << (_FULL * rows).bit_length())


class Outcomes:
    """By id. A minute is that of the envelope's `created`; who does not know it looks through all of them."""

    def __init__(self) -> None:
        self._sheets: dict[int, _Sheet] = {}

    def __len__(self) -> int:
        return sum(map(len, self._sheets.values()))

    def __contains__(self, own: object) -> bool:
        return isinstance(own, bytes) and self.get(own) is not None

    def get(self, own: bytes, minute: int | None = None) -> ReceiptItem | None:
        """What is remembered of an id, if anything is."""
        if minute is None:
            sheet, start = self._find(own)
        else:
            sheet = self._sheets.get(minute)
            start = sheet.find(own) if sheet is not None else -1
        return sheet.read(start) if sheet is not None and start >= 0 else None

    def _find(self, own: bytes) -> tuple[_Sheet | None, int]:
        """Where it stands, mostly in one of the newest."""
        for sheet in reversed(self._sheets.values()):
            if (start := sheet.find(own)) >= 0:
                return sheet, start
        return None, -1

    def add(self, minute: int, item: ReceiptItem) -> None:
        """Remember the outcome of an id of this minute; nothing where there is one."""
        sheet = self._sheets.get(minute)
        if sheet is None:
            most = max(map(len, self._sheets.values()), default=0)
            sheet = self._sheets[minute] = _Sheet(_places(most))  # most likely there will be as many: no pause to grow
        if (place := sheet.find(item.id)) < 0:
            sheet.add(item, ~place)

    def replace(self, item: ReceiptItem) -> None:
        """A known id has another outcome now; where it stood in the log stays. Nothing where it is not known."""
        sheet, start = self._find(item.id)
        if sheet is not None:
            position = sheet.read(start).position
            sheet.put(start, ReceiptItem(item.id, item.code, position, item.newest, item.cell))

    def forget(self, before: int) -> None:
        """The minutes before this one have gone."""
        for minute in [minute for minute in self._sheets if minute < before]:
            del self._sheets[minute]

    def dump(self, size: int) -> Iterator[tuple[int, list[str], bytes]]:
        """(minute, its cells, packed rows), in parts of about `size` bytes. The same history gives the same parts."""
        size -= size % _SIZE
        for minute, sheet in sorted(self._sheets.items()):
            for start in range(0, len(sheet.rows), size):
                yield minute, [] if start else sheet.cells, bytes(sheet.rows[start : start + size])

    def load(self, minute: int, cells: list[str], part: bytes) -> None:
        """Add what `dump` gave. Raises ValueError where it is no such thing."""
        sheet = self._sheets.setdefault(minute, _Sheet())
        for cell in cells:
            sheet._cell(cell)
        if len(part) % _SIZE or any(row[4] >= len(sheet.cells) for row in _ROW.iter_unpack(part)):
            raise ValueError(f"{len(part)} bytes are no packed outcomes")
        sheet.load(part)
