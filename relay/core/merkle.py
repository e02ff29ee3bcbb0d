"""Merkle trees as in RFC 6962 section 2.1, over SHA-256: what receipts and the logs of regions have in common.

A leaf and an inner node hash under different first bytes, so that neither can be passed off as the other. In a tree of
n leaves the way from leaf i to the root has two parts: an inner one, up to where the ways of i and of the last leaf
meet, which has a sibling at each level; and a border, along which i lies on the right edge and only left siblings
exist. i and n give the length of both (compare RFC 9162 section 2.1.3.2, which walks the same way).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

HASH: Final = 32  # bytes of a hash
EMPTY_ROOT: Final = sha256(b"").digest()  # the root of a tree without leaves


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry as a leaf."""
    return sha256(b"\x00" + entry).digest()


def leaf_hashes(head: bytes, rows: bytes, size: int) -> list[bytes]:
    """`leaf_hash(head + row)` of every row of `size` bytes."""
    head = b"\x00" + head
    return [sha256(head + rows[at : at + size]).digest() for at in range(0, len(rows), size)]


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node with two children."""
    return sha256(b"\x01" + left + right).digest()


def way(index: int, size: int) -> tuple[int, int]:
    """How many siblings the way of leaf `index` has in a tree of `size` leaves: in its inner part, along the border."""
    inner = (index ^ (size - 1)).bit_length()
    return inner, (index >> inner).bit_count()


def climb(leaf: bytes, index: int, inner: int, siblings: Sequence[bytes]) -> bytes:
    """The root that these siblings lead to from the leaf hash number `index`. Their count was checked (see `way`)."""
    node = leaf
    for level, sibling in enumerate(siblings):
        left = level >= inner or index >> level & 1
        node = node_hash(sibling, node) if left else node_hash(node, sibling)
    return node


def cut(hashes: bytes) -> list[bytes]:
    """Joined hashes, one by one."""
    return [hashes[at : at + HASH] for at in range(0, len(hashes), HASH)]


class Tree:
    """A whole tree in memory, at least one leaf: 32 bytes a leaf, and about as many above them."""

    def __init__(self, leaves: Iterable[bytes]) -> None:
        """`leaves` are leaf hashes."""
        levels = [list(leaves)]
        while len(level := levels[-1]) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            above = [sha256(b"\x01" + left + right).digest() for left, right in pairs]  # node_hash, for thousands
            if len(level) % 2:
                above.append(level[-1])
            levels.append(above)
        self._levels = levels

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        return self._levels[-1][0]

    @property
    def leaves(self) -> list[bytes]:
        """The leaf hashes."""
        return self._levels[0]

    def path(self, index: int) -> bytes:
        """The siblings on the way of leaf `index`, the leaf's first, joined."""
        siblings = []
        for level in self._levels[:-1]:
            if (beside := index ^ 1) < len(level):
                siblings.append(level[beside])
            index >>= 1
        return b"".join(siblings)
