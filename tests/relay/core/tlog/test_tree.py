"""The tree and what verifies proofs, against RFC 6962's own recursion and the test data of Certificate Transparency."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.tlog import (
    EMPTY_ROOT,
    BadProof,
    Frontier,
    LogError,
    NotInTree,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from relay.limits import MAX_TREE
from tests.relay.core.tlog import naive
from tests.flipping import flipped

# Leaves, roots and proofs of the Certificate Transparency project (merkle_tree_test.cc, now transparency-dev/merkle).
CT_LEAVES = tuple(map(bytes.fromhex, (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)))  # fmt: skip
CT_ROOTS = tuple(map(bytes.fromhex, (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)))  # fmt: skip
CT_INCLUSION = {  # (index, size): proof
    (0, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (5, 8): (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 3): ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",),
    (1, 5): (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}
CT_CONSISTENCY = {  # (old, new): proof
    (1, 8): CT_INCLUSION[0, 8],
    (6, 8): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 5): (
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}

ENTRIES = naive.entries(300)
HASHES = tuple(map(leaf_hash, ENTRIES))
SMALL = 40


def root(size: int) -> bytes:
    return naive.mth(ENTRIES[:size])


def test_the_published_roots() -> None:
    leaves = list(map(leaf_hash, CT_LEAVES))
    assert tuple(Frontier().extend(leaves[:n]).root() for n in range(9)) == CT_ROOTS
    assert tuple(naive.mth(CT_LEAVES[:n]) for n in range(9)) == CT_ROOTS
    assert CT_ROOTS[0] == EMPTY_ROOT


def test_the_published_proofs() -> None:
    for (index, size), proof in CT_INCLUSION.items():
        verify_inclusion(leaf_hash(CT_LEAVES[index]), index, size, [*map(bytes.fromhex, proof)], CT_ROOTS[size])
    for (old, new), proof in CT_CONSISTENCY.items():
        verify_consistency(old, new, CT_ROOTS[old], CT_ROOTS[new], [*map(bytes.fromhex, proof)])


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6).map(sorted))
def test_the_incremental_root_is_the_naive_one(sizes: list[int]) -> None:
    frontier = Frontier().extend(HASHES[: sizes[0]])
    for old, new in pairwise(sizes):
        assert (frontier.size, frontier.root()) == (old, root(old))
        frontier = frontier.extend(HASHES[old:new])
    assert frontier.root() == root(sizes[-1])
    assert len(frontier.hashes) == frontier.size.bit_count()


def test_every_inclusion_proof_of_small_trees_holds_and_no_other() -> None:
    for size in range(1, SMALL):
        for index in range(size):
            proof = naive.path(index, ENTRIES[:size])
            verify_inclusion(HASHES[index], index, size, proof, root(size))
            for other in set(range(size)) - {index}:  # at another index, and another leaf at this one
                with pytest.raises(BadProof):
                    verify_inclusion(HASHES[index], other, size, proof, root(size))
                with pytest.raises(BadProof):
                    verify_inclusion(HASHES[other], index, size, proof, root(size))


def test_every_consistency_proof_of_small_trees_holds_and_no_other() -> None:
    for new in range(1, SMALL):
        for old in range(1, new + 1):
            proof = naive.proof(old, ENTRIES[:new])
            verify_consistency(old, new, root(old), root(new), proof)
            for other in set(range(1, new)) - {old}:
                with pytest.raises(BadProof):
                    verify_consistency(other, new, root(other), root(new), proof)


@given(st.integers(1, 300).flatmap(lambda size: st.tuples(st.integers(0, size - 1), st.just(size))))
def test_any_changed_byte_of_an_inclusion_proof_fails(where: tuple[int, int]) -> None:
    index, size = where
    proof = naive.path(index, ENTRIES[:size])
    verify_inclusion(HASHES[index], index, size, proof, root(size))
    for change in naive.changes(proof):
        with pytest.raises(BadProof):
            verify_inclusion(HASHES[index], index, size, change, root(size))
    for at in range(32):
        with pytest.raises(BadProof):
            verify_inclusion(HASHES[index], index, size, proof, flipped(root(size), at))
        with pytest.raises(BadProof):
            verify_inclusion(flipped(HASHES[index], at), index, size, proof, root(size))


@given(st.integers(2, 300).flatmap(lambda new: st.tuples(st.integers(1, new - 1), st.just(new))))
def test_any_changed_byte_of_a_consistency_proof_fails(where: tuple[int, int]) -> None:
    old, new = where
    proof = naive.proof(old, ENTRIES[:new])
    verify_consistency(old, new, root(old), root(new), proof)
    for change in naive.changes(proof):
        with pytest.raises(BadProof):
            verify_consistency(old, new, root(old), root(new), change)
    for at in range(32):
        with pytest.raises(BadProof):
            verify_consistency(old, new, flipped(root(old), at), root(new), proof)
        with pytest.raises(BadProof):
            verify_consistency(old, new, root(old), flipped(root(new), at), proof)


@given(st.integers(1, 200), st.integers(0, 199), st.integers(201, 300))
def test_a_rewritten_history_has_no_proof(old: int, changed: int, new: int) -> None:
    entries = (*ENTRIES[: changed % old], b"another", *ENTRIES[changed % old + 1 : new])
    with pytest.raises(BadProof):
        verify_consistency(old, new, root(old), naive.mth(entries), naive.proof(old, entries))


def test_the_empty_tree_and_equal_trees() -> None:
    verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, ())
    verify_consistency(0, 5, EMPTY_ROOT, root(5), ())
    verify_consistency(5, 5, root(5), root(5), ())
    for old, new, first, second, proof in (
        (0, 5, EMPTY_ROOT, root(5), (root(5),)),  # nothing is to be proven
        (0, 5, root(1), root(5), ()),  # the empty tree has one root
        (0, 0, EMPTY_ROOT, root(1), ()),
        (5, 5, root(5), root(4), ()),
        (5, 5, root(5), root(5), (root(5),)),
    ):
        with pytest.raises(BadProof):
            verify_consistency(old, new, first, second, proof)


def test_what_no_tree_has_is_named() -> None:
    for index, size in ((0, 0), (5, 5), (-1, 5), (0, MAX_TREE + 1)):
        with pytest.raises(NotInTree):
            verify_inclusion(HASHES[0], index, size, (), root(1))
    for old, new in ((5, 4), (-1, 4), (4, MAX_TREE + 1)):
        with pytest.raises(NotInTree):
            verify_consistency(old, new, root(4), root(4), ())
    with pytest.raises(NotInTree):
        Frontier(MAX_TREE, (bytes(32),) * 63).extend([HASHES[0]])


@given(
    st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70), st.binary(max_size=40), st.binary(max_size=40),
    st.lists(st.binary(max_size=33), max_size=70),
)  # fmt: skip
def test_nothing_but_named_errors(one: int, other: int, first: bytes, second: bytes, proof: list[bytes]) -> None:
    with pytest.raises(LogError):
        verify_inclusion(first, one, other, proof, second)
        verify_consistency(one, other, first, second, proof)
        raise BadProof("a lucky guess: one leaf that is the root, or two equal trees")
