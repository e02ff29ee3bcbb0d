"""The book of a node: what the fold took in the newest blocks, so that receipts can be made when somebody asks.

Filled as blocks are applied, at the price of some packed bytes an envelope; hashed only when a receipt is asked for. It
is memory: after a start it has what was applied since the checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from relay.core.block import Block
from relay.core.codec import encode
from relay.core.proven import TOLD, ProvenBlock
from relay.core.receipts import ROW, Attestation, Statement, leaf_head
from relay.core.widetree import HASH, Tree, leaf_hashes
from relay.limits import BOOK_BYTES, BOOK_LEAVES

_PAGE: Final = 256  # bytes counted for a page beside its rows


class Taken(NamedTuple):
    """An envelope that the fold took: see relay.core.receipts.Leaf."""

    id: bytes
    code: int
    position: int
    sealed_for: int
    newest: int
    expires: int


class _Page(NamedTuple):
    time: int
    hash: bytes
    rows: bytes


@dataclass(slots=True)
class _Hashed:
    """A page that was asked for: how its leaves begin, and the tree over them."""

    statement: bytes
    head: bytes
    tree: Tree
    rows: bytes

    def find(self, told: Sequence[bytes]) -> list[int]:
        """See Book.find. Senders ask in the order of the rows: the next one is at hand, or not far behind; all rows are
        looked up once that is not so."""
        rows, size, at, found = self.rows, ROW.size, 0, list[int]()
        places: dict[bytes, int] | None = None
        for one in told:
            if rows[at : at + TOLD] != one:
                ahead = rows.find(one, at) if places is None else -1
                if places is None and (ahead < 0 or ahead % size):
                    places = {rows[place : place + TOLD]: place for place in range(0, len(rows), size)}
                at = ahead if places is None else places.get(one, -size)
            found.append(at // size)
            at += size
        return found


class Book:
    """One page for each block that took something, the newest BOOK_BYTES of them."""

    def __init__(self, cell: str, log_id: bytes, max_bytes: int = BOOK_BYTES) -> None:
        self._cell = cell
        self._log_id = log_id
        self._max_bytes = max_bytes
        self._pages: OrderedDict[int, _Page] = OrderedDict()  # by index, rising
        self._bytes = 0
        self._hashed: OrderedDict[int, _Hashed] = OrderedDict()
        self._leaves = 0  # of hashed pages, and one more for each of them: what lies around a leaf that is alone

    def keep(self, block: Block, taken: Sequence[Taken]) -> None:
        """The fold has applied `block`, and taken these envelopes."""
        if not taken:
            return
        page = _Page(block.time, block.hash, b"".join([ROW.pack(*one) for one in taken]))
        self._pages[block.index] = page
        self._bytes += len(page.rows) + _PAGE
        while self._bytes > self._max_bytes:
            index, gone = self._pages.popitem(last=False)
            self._bytes -= len(gone.rows) + _PAGE
            self._forget(index)

    def has(self, index: int) -> bool:
        """Is what block `index` took remembered?"""
        return index in self._pages

    def find(self, index: int, told: Sequence[bytes]) -> list[int]:
        """Under which numbers (ordinals) block `index` took these envelopes (see relay.core.proven.told); -1 for one
        that it did not take so, and for all where the page has gone."""
        hashed = self._hash(index)
        return hashed.find(told) if hashed is not None else [-1] * len(told)

    def search(self, told: bytes) -> tuple[int, int] | None:
        """(index of a block, ordinal) where the position is not known: looks at every page, the newest first;
        milliseconds."""
        for index in reversed(self._pages):
            rows = self._pages[index].rows
            at = rows.find(told)
            while at >= 0 and at % ROW.size:
                at = rows.find(told, at + 1)
            if at >= 0:
                return index, at // ROW.size
        return None

    def statement(self, index: int) -> bytes | None:
        """What is to be signed of block `index`: an encoded Statement. None where its page has gone."""
        hashed = self._hash(index)
        return hashed.statement if hashed else None

    def prove(self, index: int, ordinals: Iterable[int], words: Sequence[Attestation]) -> ProvenBlock | None:
        """The way from these leaves (see `places`) to the root that `statement` has, and who stands by it. None where
        the page has gone."""
        hashed = self._hash(index)
        if hashed is None:
            return None
        tree, chosen = hashed.tree, sorted(set(ordinals))
        runs = _runs(chosen)
        rows = b"".join([hashed.rows[first * ROW.size : end * ROW.size] for first, end in runs])
        # No way is longer than the first leaf's.
        if len(chosen) * len(tree.path(0)) <= len(tree.leaves) - len(chosen) * HASH:
            paths = tuple(map(tree.path, chosen))
            return ProvenBlock(hashed.statement, tuple(words), tuple(chosen), rows, b"", paths)
        ends = [0, *(end for _, end in runs)]
        starts = [*(first for first, _ in runs), len(tree)]
        others = b"".join([tree.leaves[a * HASH : b * HASH] for a, b in zip(ends, starts, strict=True)])
        return ProvenBlock(hashed.statement, tuple(words), tuple(chosen), rows, others, ())

    def _hash(self, index: int) -> _Hashed | None:
        hashed = self._hashed.get(index)
        page = self._pages.get(index) if hashed is None else None
        if page is None:
            return hashed
        head = leaf_head(self._cell, page.time)
        tree = Tree(leaf_hashes(head, page.rows, ROW.size))
        said = Statement(2, self._cell, self._log_id, index, page.hash, page.time, len(tree), tree.root)
        hashed = self._hashed[index] = _Hashed(encode(said), head, tree, page.rows)
        self._leaves += len(tree) + 1
        while self._leaves > BOOK_LEAVES and len(self._hashed) > 1:
            self._forget(next(iter(self._hashed)))
        return hashed

    def _forget(self, index: int) -> None:
        gone = self._hashed.pop(index, None)
        if gone is not None:
            self._leaves -= len(gone.tree) + 1


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """(first, end) of neighbours among numbers that rise."""
    breaks = [at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1]
    starts, ends = [0, *breaks], [*breaks, len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in zip(starts, ends, strict=True)] if numbers else []
