"""The tree that receipts are proven by, against its definition: by recursion over all leaves."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.core.widetree import HASH, WIDTH, Tree, climb, leaf_hash, leaf_hashes

COUNTS = st.integers(1, WIDTH**3 + WIDTH + 1)


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(b"leaf %d" % number) for number in range(count)]


def naive(level: list[bytes]) -> bytes:
    """The root over the hashes of one level."""
    if len(level) == 1:
        return level[0]
    groups = [level[at : at + WIDTH] for at in range(0, len(level), WIDTH)]
    return naive([sha256(b"\x01" + b"".join(group)).digest() for group in groups])


@given(COUNTS)
@example(1)
@example(WIDTH)
@example(WIDTH + 1)
@example(WIDTH**2 + 1)
def test_every_way_leads_to_the_root_that_the_definition_has(count: int) -> None:
    all_ = leaves(count)
    tree = Tree(b"".join(all_))
    assert (len(tree), tree.root, tree.leaves) == (count, naive(all_), b"".join(all_))
    for ordinal, leaf in enumerate(all_):
        path = tree.path(ordinal)
        assert climb(leaf, ordinal, count, path) == tree.root
        assert len(path) <= len(tree.path(0))


@given(COUNTS, st.data())
def test_a_way_is_of_one_leaf_in_a_tree_of_one_size(count: int, data: st.DataObject) -> None:
    tree = Tree(b"".join(leaves(count)))
    ordinal = data.draw(st.integers(0, count - 1))
    path, leaf = tree.path(ordinal), leaves(count)[ordinal]
    for other in {data.draw(st.integers(0, count - 1)), (ordinal + 1) % count, ordinal ^ 1} - {ordinal}:
        if other < count:
            try:
                assert climb(leaf, other, count, path) != tree.root
            except ValueError:
                assert len(tree.path(other)) != len(path)
    for wrong in (path + bytes(HASH), path[:-HASH], path + b"\0", path[:-1]):
        if wrong != path:
            with pytest.raises(ValueError, match="are needed"):
                climb(leaf, ordinal, count, wrong)


def test_a_node_is_no_leaf() -> None:
    """The children of the root, joined, would have to be a leaf to stand for all of them: it hashes otherwise."""
    all_ = leaves(WIDTH)
    assert leaf_hash(b"".join(all_)) != Tree(b"".join(all_)).root
    assert Tree(leaf_hash(b"only one")).root == leaf_hash(b"only one")


def test_rows_are_hashed_behind_their_common_head() -> None:
    assert leaf_hashes(b"head", b"aabbcc", 2) == b"".join(leaf_hash(b"head" + row) for row in (b"aa", b"bb", b"cc"))
