"""The Merkle tree of a log: hashes, the incremental root, and what verifies a proof.

RFC 6962 section 2.1 (the same tree as RFC 9162 section 2.1) over SHA-256. Nothing here holds a tree: a `Frontier` has
the at most 63 roots of the complete subtrees that a tree of n leaves consists of.

A leaf and an inner node hash under different first bytes, so that neither can be passed off as the other. In a tree of
n leaves the way from leaf i to the root has two parts: an inner one, up to where the ways of i and of the last leaf
meet, which has a sibling at each level; and a border, along which i lies on the right edge and only left siblings
exist. i and n give the length of both.

A proof is checked by its shape first: index and size give its length, so one that is too long or too short is refused
before anything is hashed (compare RFC 9162 sections 2.1.3.2 and 2.1.4.2, which walk the same way).

A proof alone does not bind the size: some trees of different sizes have the same way to a leaf. The size counts
because the log signs it together with the root.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from relay.core.tlog.errors import BadProof, NotInTree
from relay.limits import MAX_TREE

__all__ = [
    "EMPTY_ROOT", "HASH", "Frontier", "fold_right", "leaf_hash", "node_hash", "root_of_inclusion",
    "verify_consistency", "verify_inclusion",
]  # fmt: skip


HASH: Final = 32  # bytes of a hash
EMPTY_ROOT: Final = sha256(b"").digest()  # the root of a tree without leaves


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry as a leaf."""
    return sha256(b"\x00" + entry).digest()


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


@dataclass(frozen=True, slots=True)
class Frontier:
    """All that is needed of a tree of `size` leaves to append to it and to know its root: the roots of its complete
    subtrees, largest (leftmost) first, one for each 1 in the binary form of `size`."""

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def extend(self, leaves: Iterable[bytes]) -> Frontier:
        """The frontier after these leaf hashes, too. Raises NotInTree past 2**63 - 1 leaves."""
        size, stack = self.size, list(self.hashes)
        for leaf in leaves:
            node, level = leaf, size
            while level & 1:  # a complete subtree of this height stands to the left: both make the next higher one
                node, level = node_hash(stack.pop(), node), level >> 1
            stack.append(node)
            size += 1
        if size > MAX_TREE:
            raise NotInTree(f"a log of {size} leaves is larger than any tree may be", "Start a new log")
        return Frontier(size, tuple(stack))

    def root(self) -> bytes:
        """The root of the tree: 32 bytes."""
        return fold_right(self.hashes) if self.hashes else EMPTY_ROOT


def fold_right(hashes: Sequence[bytes]) -> bytes:
    """The root over subtrees of falling size, as the right edge of a tree has them. At least one."""
    node = hashes[-1]
    for left in reversed(hashes[:-1]):
        node = node_hash(left, node)
    return node


# --- inclusion -----------------------------------------------------------------------------------
def root_of_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that a tree of `size` leaves must have if `leaf` (a leaf hash) is number `index` of it and the proof is
    right. Raises NotInTree when the tree has no such leaf, BadProof when the proof cannot be one of that leaf."""
    _within(index, size)
    inner, border = way(index, size)
    _shape(proof, inner + border, f"inclusion proof of entry {index} of {size}")
    return climb(leaf, index, inner, proof)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Entry number `index` of the tree (size, root) has the leaf hash `leaf`. Raises BadProof or NotInTree."""
    if root_of_inclusion(leaf, index, size, proof) != root:
        raise BadProof(
            f"inclusion proof of entry {index} of {size}: it does not lead to the root",
            "The record is not in this log, or the proof belongs to another checkpoint; ask for both anew",
        )


# --- consistency ---------------------------------------------------------------------------------
def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """The tree (new, new_root) begins with all of (old, old_root). Raises BadProof; NotInTree when old > new.

    From the empty tree, and between equal trees, the proof is empty; the empty tree must have its one root."""
    what = f"consistency proof from {old} to {new}"
    if not 0 <= old <= new <= MAX_TREE:
        raise NotInTree(f"{what}: a log only grows", "Ask for the proof between an older and a newer checkpoint")
    for size, root in ((old, old_root), (new, new_root)):
        if size == 0 and root != EMPTY_ROOT:
            raise BadProof(f"{what}: the empty tree has another root", "The log is wrong; keep its checkpoint")
    if old in (0, new):
        _shape(proof, 0, what)
        if old == new and old_root != new_root:
            raise BadProof(f"{what}: two roots for one size", "The log forked; keep both checkpoints as evidence")
        return
    first, second = _roots_of_consistency(old, new, old_root, proof, what)
    if first != old_root or second != new_root:
        raise BadProof(
            f"{what}: it does not lead to the {'old' if first != old_root else 'new'} root",
            "The proof or the log is wrong; ask for the tiles to tell which",
        )


def contradicts(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """The tree (new, new_root) does not begin with (old, old_root), and this proof shows it: it leads to the new root,
    so that its hashes are those of the new tree, and they make another tree of `old` leaves. Says nothing (False) about
    any other proof.

    Where `old` is a power of two the old root is part of the way, and a consistency proof leaves it out: then the root
    that the new tree has in its place has to stand before it (`proofs.contradiction_proof`)."""
    if not 0 < old < new <= MAX_TREE or not proof:
        return False
    left_out = old & old - 1 == 0
    try:
        seed, way_up = (proof[0], proof[1:]) if left_out else (old_root, proof)
        first, second = _roots_of_consistency(old, new, seed, way_up, "")
    except BadProof:
        return False
    return second == new_root and first != old_root


def _roots_of_consistency(
    old: int, new: int, old_root: bytes, proof: Sequence[bytes], what: str
) -> tuple[bytes, bytes]:
    """Both roots, from the last complete subtree of the old tree upwards; 0 < old < new."""
    height = (old & -old).bit_length() - 1  # of that subtree
    last = (old - 1) >> height  # its number at that height
    inner, border = way(last, ((new - 1) >> height) + 1)
    seeded = last != 0  # when that subtree is the whole old tree, its root is known and left out of the proof
    _shape(proof, seeded + inner + border, what)
    first = second = proof[0] if seeded else old_root
    for level, sibling in enumerate(proof[seeded:]):
        if level >= inner or last >> level & 1:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
        else:
            second = node_hash(second, sibling)
    return first, second


# --- what both ask -------------------------------------------------------------------------------
def _within(index: int, size: int) -> None:
    if not 0 <= index < size <= MAX_TREE:
        raise NotInTree(f"entry {index} of a tree of {size}: there is none", "Ask for an index below the tree's size")


def _shape(proof: Sequence[bytes], count: int, what: str) -> None:
    if len(proof) != count or any(len(part) != HASH for part in proof):
        raise BadProof(f"{what}: {count} hashes of {HASH} bytes belong into it, not {len(proof)} parts", "Ask anew")
