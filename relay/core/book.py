"""The book of a node: what the fold took in the newest blocks, so that receipts can be made when somebody asks.

Filled as blocks are applied, at the price of some packed bytes an envelope; hashed only when a receipt is asked for. It
is memory: after a start it has what was applied since the checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from relay.core.block import Block
from relay.core.codec import encode
from relay.core.proven import ProvenBlock
from relay.core.receipts import ROW, TAKEN, Attestation, Statement, leaf_head
from relay.core.widetree import HASH, Tree, leaf_hashes
from relay.limits import BOOK_BYTES, BOOK_LEAVES

_KEY: Final = 33  # bytes of a row: id and code
_CODES: Final = {code: bytes([code]) for code in TAKEN}
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
    """A page that was asked for: how its leaves begin, the tree over them, and, once it is asked for, where an id with
    an outcome is."""

    statement: bytes
    head: bytes
    tree: Tree
    rows: bytes
    _places: dict[bytes, int] | None = None

    @property
    def places(self) -> dict[bytes, int]:
        if self._places is None:
            rows, size = self.rows, ROW.size
            self._places = {rows[at : at + _KEY]: at // size for at in range(0, len(rows), size)}
        return self._places


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

    def places(self, index: int) -> Mapping[bytes, int]:
        """Under which numbers (ordinals) block `index` took envelopes, by id and outcome (see `key`): nothing where the
        page has gone."""
        hashed = self._hash(index)
        return hashed.places if hashed is not None else {}

    def search(self, key: bytes) -> tuple[int, int] | None:
        """(index of a block, ordinal) where the position is not known: looks at every page, the newest first;
        milliseconds."""
        for index in reversed(self._pages):
            rows = self._pages[index].rows
            at = rows.find(key)
            while at >= 0 and at % ROW.size:
                at = rows.find(key, at + 1)
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
        rows = b"".join(_runs(hashed.rows, ROW.size, chosen))
        # No way is longer than the first leaf's.
        if len(chosen) * len(tree.path(0)) <= len(tree.leaves) - len(chosen) * HASH:
            paths = tuple(map(tree.path, chosen))
            return ProvenBlock(hashed.statement, tuple(words), tuple(chosen), rows, b"", paths)
        others = b"".join(_gaps(tree.leaves, HASH, chosen))
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


def key(id_: bytes, code: int) -> bytes:
    """An envelope with an outcome (1 or 2), as its row begins."""
    return id_ + _CODES.get(code, b"\xff")


def _runs(rows: bytes, size: int, numbers: Sequence[int]) -> Iterator[bytes]:
    """The rows of `size` bytes with these numbers, which rise."""
    if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:
        yield rows[numbers[0] * size : (numbers[-1] + 1) * size]
    else:
        for at in numbers:
            yield rows[at * size : (at + 1) * size]


def _gaps(rows: bytes, size: int, numbers: Iterable[int]) -> Iterator[bytes]:
    """All other rows."""
    end = 0
    for at in numbers:
        if at * size > end:
            yield rows[end : at * size]
        end = (at + 1) * size
    yield rows[end:]
