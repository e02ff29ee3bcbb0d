"""Proofs, made from tiles. (RFC 6962 sections 2.1.1 and 2.1.2, RFC 9162 sections 2.1.3.1 and 2.1.4.1.)

Each hash of a proof is the root over a range of leaves: either one complete subtree, or what lies right of the way, up
to the end of the tree, which falls into complete subtrees of falling size. Every complete subtree is within one tile.
So a proof is made in two steps, with the caller's reading in between:

    tiles = {tile: stored bytes for tile in inclusion_tiles(index, size)}
    proof = inclusion_proof(index, size, tiles)

A tree of 1,000,000 leaves needs at most six tiles (of 8 KiB at most) for an inclusion proof: one a level for what is
near the leaf, and one a level at the right edge.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from relay.core.tlog.errors import NotInTree
from relay.core.tlog.tiles import FULL, HEIGHT, Tile, read_tile, split, subtree_root, tile_at
from relay.core.tlog.tree import HASH, fold_right, node_hash
from relay.limits import MAX_TREE


class _Range(NamedTuple):
    """The leaves from `start` up to, not including, `end`."""

    start: int
    end: int


class _Subtree(NamedTuple):
    """2**height leaves that make a complete subtree, number `number` of its height."""

    height: int
    number: int


def inclusion_tiles(index: int, size: int) -> tuple[Tile, ...]:
    """The tiles that `inclusion_proof` reads. Raises NotInTree."""
    return inclusion_tiles_of((index,), size)


def inclusion_tiles_of(indexes: Sequence[int], size: int) -> tuple[Tile, ...]:
    """The tiles that `inclusion_proofs` reads. Raises NotInTree."""
    return _tiles(dict.fromkeys(chain.from_iterable(_inclusions(indexes, size))), size)


def inclusion_proof(index: int, size: int, tiles: Mapping[Tile, bytes]) -> tuple[bytes, ...]:
    """That entry `index` is in the tree of `size` leaves: the siblings on the way, the leaf's first. Raises NotInTree;
    BadTile when `tiles` lacks one of `inclusion_tiles`."""
    return inclusion_proofs((index,), size, tiles)[0]


def inclusion_proofs(indexes: Sequence[int], size: int, tiles: Mapping[Tile, bytes]) -> list[tuple[bytes, ...]]:
    """`inclusion_proof` for each of `indexes`. Those near each other share almost all of the work: of a run of
    neighbours each costs about one hash."""
    roots: dict[_Subtree, bytes] = {}

    def root(subtree: _Subtree) -> bytes:
        known = roots.get(subtree)
        if known is None:
            tile, first, count = _place(subtree, size)
            if count == 1:
                known = read_tile(tile, tiles)[first * HASH : (first + 1) * HASH]
            else:
                halves = (_Subtree(subtree.height - 1, 2 * subtree.number + side) for side in (0, 1))
                known = node_hash(*map(root, halves))
            roots[subtree] = known
        return known

    parts: dict[_Range, bytes] = {}

    def over(part: _Range) -> bytes:
        if part not in parts:
            parts[part] = fold_right([root(subtree) for subtree in _subtrees(part)])
        return parts[part]

    return [tuple(map(over, ranges)) for ranges in _inclusions(indexes, size)]


def consistency_tiles(old: int, new: int) -> tuple[Tile, ...]:
    """The tiles that `consistency_proof` reads, of the tree of `new` leaves. Raises NotInTree."""
    return _tiles(_consistency(old, new), new)


def consistency_proof(old: int, new: int, tiles: Mapping[Tile, bytes]) -> tuple[bytes, ...]:
    """That the tree of `new` leaves begins with the one of `old`. Empty from the empty tree and between equal sizes.
    Raises NotInTree; BadTile when `tiles` lacks one of `consistency_tiles`."""
    return _roots(_consistency(old, new), new, tiles)


def contradiction_tiles(old: int, new: int) -> tuple[Tile, ...]:
    """The tiles that `contradiction_proof` reads, of the tree of `new` leaves. Raises NotInTree."""
    return _tiles(_contradiction(old, new), new)


def contradiction_proof(old: int, new: int, tiles: Mapping[Tile, bytes]) -> tuple[bytes, ...]:
    """What shows to `contradicts` which tree of `old` leaves the tree of `new` ones begins with: the consistency proof,
    and before it that root where it is left out of it. Raises as `consistency_proof`."""
    return _roots(_contradiction(old, new), new, tiles)


# --- which ranges of leaves ----------------------------------------------------------------------
def _inclusions(indexes: Sequence[int], size: int) -> list[list[_Range]]:
    """For each index, from the root down: which half has the leaf? The other one's root is a part of the proof. Those
    that go the same way share what is left of it."""
    found: dict[int, list[_Range]] = {index: [] for index in indexes}
    for index in found:
        if not 0 <= index < size <= MAX_TREE:
            raise NotInTree(f"entry {index} of a tree of {size}: there is none", "Ask for one below the tree's size")

    def walk(start: int, end: int, some: Sequence[int]) -> None:
        middle = _middle(start, end)
        cut = bisect_left(some, middle)
        for first, last, those, other in (
            (start, middle, some[:cut], _Range(middle, end)), (middle, end, some[cut:], _Range(start, middle)),
        ):  # fmt: skip
            if those and last - first > 1:
                walk(first, last, those)
            for index in those:
                found[index].append(other)

    if found and size > 1:
        walk(0, size, sorted(found))
    return [found[index] for index in indexes]


def _consistency(old: int, new: int) -> list[_Range]:
    """From the root down to the last complete subtree of the old tree, which comes first (unless it is all of it)."""
    if not 0 <= old <= new <= MAX_TREE:
        raise NotInTree(f"from {old} to {new} leaves: a log only grows", "Ask between an older and a newer size")
    if old in (0, new):
        return []
    ranges, start, end = [], 0, new
    while end != old:
        middle = _middle(start, end)
        if old <= middle:
            ranges.append(_Range(middle, end))
            end = middle
        else:
            ranges.append(_Range(start, middle))
            start = middle
    if start:
        ranges.append(_Range(start, end))
    return ranges[::-1]


def _contradiction(old: int, new: int) -> list[_Range]:
    whole = 0 < old < new and old & old - 1 == 0
    return [*([_Range(0, old)] if whole else []), *_consistency(old, new)]


def _middle(start: int, end: int) -> int:
    """Where a tree over these leaves divides: the left side has the greatest power of two below their number."""
    return start + (1 << (end - start - 1).bit_length() - 1)


def _subtrees(part: _Range) -> Iterator[_Subtree]:
    """The complete subtrees of a range that a tree divides into, largest first."""
    start, end = part
    while start < end:
        height = (end - start).bit_length() - 1
        yield _Subtree(height, start >> height)
        start += 1 << height


# --- where their roots come from -----------------------------------------------------------------
def _place(subtree: _Subtree, size: int) -> tuple[Tile, int, int]:
    """The tile that a complete subtree lies in, its first hash there, and how many."""
    level, above = divmod(subtree.height, HEIGHT)
    first = subtree.number << above
    return tile_at(level, first >> HEIGHT, size), first % FULL, 1 << above


def _tiles(ranges: Iterable[_Range], size: int) -> tuple[Tile, ...]:
    return tuple(dict.fromkeys(_place(subtree, size)[0] for part in ranges for subtree in _subtrees(part)))


def _roots(ranges: Sequence[_Range], size: int, tiles: Mapping[Tile, bytes]) -> tuple[bytes, ...]:
    def root(subtree: _Subtree) -> bytes:
        tile, first, count = _place(subtree, size)
        return subtree_root(split(read_tile(tile, tiles)[first * HASH : (first + count) * HASH]))

    return tuple(fold_right([root(subtree) for subtree in _subtrees(part)]) for part in ranges)
