"""The book of a node: what the fold took in the newest blocks, so that receipts can be made when somebody asks.

Filled as blocks are applied, at the price of some packed bytes an envelope; hashed only when a receipt is asked for. It
is memory: after a start it has what was applied since the checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from relay.core.block import Block
from relay.core.codec import encode
from relay.core.merkle import Tree, leaf_hash
from relay.core.receipts import Leaf, Statement
from relay.limits import BOOK_BYTES, BOOK_TREES, SLOT_BITS

_ROW: Final = Struct("<32sBqqqq")
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


class Proof(NamedTuple):
    """A leaf and the way from it to the root of its block's outcomes."""

    leaf: bytes
    ordinal: int
    path: tuple[bytes, ...]


class Book:
    """One page for each block that took something, the newest BOOK_BYTES of them."""

    def __init__(self, cell: str, log_id: bytes, max_bytes: int = BOOK_BYTES) -> None:
        self._cell = cell
        self._log_id = log_id
        self._max_bytes = max_bytes
        self._pages: OrderedDict[int, _Page] = OrderedDict()  # by index, rising
        self._bytes = 0
        self._trees: OrderedDict[int, tuple[Tree, bytes]] = OrderedDict()
        self._leaves = 0

    def keep(self, block: Block, taken: Sequence[Taken]) -> None:
        """The fold has applied `block`, and taken these envelopes."""
        if not taken:
            return
        page = _Page(block.time, block.hash, b"".join([_ROW.pack(*one) for one in taken]))
        self._pages[block.index] = page
        self._bytes += len(page.rows) + _PAGE
        while self._bytes > self._max_bytes:
            index, gone = self._pages.popitem(last=False)
            self._bytes -= len(gone.rows) + _PAGE
            self._forget_tree(index)

    def find(self, id_: bytes, code: int, position: int) -> int | None:
        """The index of the block that took the envelope, with this outcome, at `position`; None where it did not, or
        has gone."""
        index = position >> SLOT_BITS
        page = self._pages.get(index)
        return index if page is not None and _place(page, id_, code) is not None else None

    def has(self, index: int) -> bool:
        """Is what block `index` took remembered?"""
        return index in self._pages

    def search(self, id_: bytes, code: int) -> int | None:
        """The same where the position is not known: looks at every page, the newest first; milliseconds."""
        for index in reversed(self._pages):
            if _place(self._pages[index], id_, code) is not None:
                return index
        return None

    def statement(self, index: int) -> bytes | None:
        """What is to be signed of block `index`: an encoded Statement. None where its page has gone."""
        made = self._tree(index)
        return made[1] if made else None

    def proof(self, index: int, id_: bytes, code: int) -> Proof | None:
        """The way from an envelope's leaf to the root that `statement` has."""
        page, made = self._pages.get(index), self._tree(index)
        ordinal = _place(page, id_, code) if page is not None else None
        if page is None or made is None or ordinal is None:
            return None
        return Proof(self._leaf(page, ordinal), ordinal, made[0].path(ordinal))

    def _tree(self, index: int) -> tuple[Tree, bytes] | None:
        page = self._pages.get(index)
        if page is None or index in self._trees:
            return self._trees.get(index)
        count = len(page.rows) // _ROW.size
        tree = Tree(leaf_hash(self._leaf(page, ordinal)) for ordinal in range(count))
        said = Statement(1, self._cell, self._log_id, index, page.hash, page.time, count, tree.root)
        self._trees[index] = made = (tree, encode(said))
        self._leaves += count
        while self._leaves > BOOK_TREES and len(self._trees) > 1:
            self._forget_tree(next(iter(self._trees)))
        return made

    def _forget_tree(self, index: int) -> None:
        gone = self._trees.pop(index, None)
        if gone is not None:
            self._leaves -= len(gone[0])

    def _leaf(self, page: _Page, ordinal: int) -> bytes:
        id_, code, position, sealed_for, newest, expires = _ROW.unpack_from(page.rows, ordinal * _ROW.size)
        region = self._cell.partition("/")[0]
        return encode(Leaf(1, id_, code, region, self._cell, position, sealed_for, newest, page.time, expires))


def _place(page: _Page, id_: bytes, code: int) -> int | None:
    """The row of an envelope with this outcome."""
    row = id_ + bytes([code])
    at = page.rows.find(row)
    while at >= 0 and at % _ROW.size:
        at = page.rows.find(row, at + 1)
    return at // _ROW.size if at >= 0 else None
