"""Merkle trees with up to eight children under a node, over SHA-256: what receipts are proven by (docs/adr/0023).

A leaf hashes under a first byte 00 and a node under 01, so that neither can be passed off as the other. Nodes are made
from the hashes of eight neighbours each, the last one of a level from what is left, until one hash is left: the count
of leaves alone says what the tree looks like. A call of the hash function costs Python more than the bytes in it, so
eight children instead of two save six of seven of the calls above the leaves; a way has up to seven siblings a level.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

HASH: Final = 32  # bytes of a hash
WIDTH: Final = 8  # children of a node
_GROUP: Final = WIDTH * HASH


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(b"\x00" + leaf).digest()


def leaf_hashes(head: bytes, rows: bytes, size: int) -> bytes:
    """`leaf_hash(head + row)` of every row of `size` bytes, joined."""
    head = b"\x00" + head
    return b"".join([sha256(head + rows[at : at + size]).digest() for at in range(0, len(rows), size)])


def climb(leaf: bytes, ordinal: int, count: int, path: bytes) -> bytes:
    """The root that `path` leads to from leaf number `ordinal` (below `count`), whose hash is `leaf`. Raises ValueError
    where the path is of another length than the way of that leaf."""
    node, at = leaf, 0
    while count > 1:
        place = ordinal % WIDTH
        own = at + place * HASH
        end = at + (min(WIDTH, count - ordinal + place) - 1) * HASH
        node = sha256(b"\x01" + path[at:own] + node + path[own:end]).digest()
        ordinal, count, at = ordinal // WIDTH, -(-count // WIDTH), end
    if at != len(path):
        raise ValueError(f"a path of {len(path)} bytes where {at} are needed")
    return node


class Tree:
    """A whole tree in memory, at least one leaf: 32 bytes a leaf, and a seventh of it above them."""

    def __init__(self, leaves: bytes) -> None:
        """`leaves` are leaf hashes, joined."""
        levels = [leaves]
        while len(level := levels[-1]) > HASH:
            levels.append(
                b"".join([sha256(b"\x01" + level[at : at + _GROUP]).digest() for at in range(0, len(level), _GROUP)])
            )
        self._levels = levels

    def __len__(self) -> int:
        return len(self._levels[0]) // HASH

    @property
    def root(self) -> bytes:
        return self._levels[-1]

    @property
    def leaves(self) -> bytes:
        """The leaf hashes, joined."""
        return self._levels[0]

    def path(self, ordinal: int) -> bytes:
        """The siblings on the way of leaf number `ordinal`, the leaf's first, in their order, joined."""
        siblings = []
        for level in self._levels[:-1]:
            own = ordinal * HASH
            first = own - own % _GROUP
            siblings += [level[first:own], level[own + HASH : first + _GROUP]]
            ordinal //= WIDTH
        return b"".join(siblings)
