"""Receipts as nodes and clients hand them on: what the envelopes of a block have in common goes once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Annotated, Final

from msgspec import Meta

from relay.core.codec import Struct
from relay.core.receipts import (
    ROW, TAKEN, Attestations, Certify, Path, Statement, StatementBytes, Verified, check_attestations, check_leaf,
    leaf_head, make_receipt, read_statement,
)
from relay.core.shapes import Hash, UInt
from relay.core.trust import Root
from relay.core.widetree import HASH, Tree, leaf_hash
from relay.errors import NotAReceipt, WrongPath
from relay.limits import MAX_WANTED, SLOT_BITS

TOLD: Final = HASH + 1  # bytes of an envelope's id and of the outcome that its sender was told, as its row begins
Told = Annotated[bytes, Meta(min_length=TOLD, max_length=TOLD)]
_CODES: Final = {code: bytes([code]) for code in TAKEN}


class Wanted(Struct, frozen=True):
    """Envelopes of which receipts are wanted (see `told`), and the index of the block that took them; 0: not known."""

    index: UInt
    told: Annotated[tuple[Told, ...], Meta(min_length=1, max_length=MAX_WANTED)]


Wants = Annotated[tuple[Wanted, ...], Meta(min_length=1, max_length=MAX_WANTED)]


def told(id_: bytes, code: int) -> bytes:
    """An envelope with an outcome (1 or 2), as its row begins. Of others, what no row begins with."""
    return id_ + _CODES.get(code, b"\xff")


def question(ones: Iterable[tuple[int, bytes]]) -> tuple[Wanted, ...]:
    """(index of a block, told) of envelopes, by their blocks. One answer is of PROVE_BLOCKS blocks at most."""
    blocks: dict[int, list[bytes]] = {}
    for index, one in ones:
        blocks.setdefault(index, []).append(one)
    return tuple(Wanted(index, tuple(those)) for index, those in blocks.items())


def all_told(wanted: Iterable[Wanted]) -> list[bytes]:
    """Of a question, in its order."""
    return list(chain.from_iterable(one.told for one in wanted))


class ProvenBlock(Struct, frozen=True):
    """Envelopes of one block, and who stands by it: the `rows` of the leaves number `ordinals`, which rise, joined.
    `paths` has one for each; or, where that is shorter, it is empty, and `hashes` are those of all other leaves of the
    block, in their order, joined."""

    statement: StatementBytes
    attestations: Attestations
    ordinals: Annotated[tuple[UInt, ...], Meta(max_length=1 << SLOT_BITS)]
    rows: Annotated[bytes, Meta(max_length=ROW.size << SLOT_BITS)]
    hashes: Annotated[bytes, Meta(max_length=HASH << SLOT_BITS)]
    paths: Annotated[tuple[Path, ...], Meta(max_length=1 << SLOT_BITS)]


class Missing(Struct, frozen=True):
    """No receipt for this envelope. `code` (relay.core.wire.Code): UNPROVEN for ever, UNREACHABLE just now."""

    id: Hash
    code: UInt


def verify_block(block: ProvenBlock, root: Root, certify: Certify) -> list[tuple[Verified, bytes]]:
    """(what is verified, receipt) of each envelope of a PROOF's block; signatures are looked at once. Raises as
    `verify_receipt`: then nothing of it holds."""
    statement = read_statement(block.statement)
    ordinals, leaves = block.ordinals, _leaves(block, statement)
    paths = block.paths
    if not paths:
        tree = _tree(block, statement, leaves)
        paths = tuple(tree.path(ordinal) for ordinal in ordinals)
    elif len(paths) != len(leaves) or block.hashes:
        raise WrongPath("not one path for each envelope", "Ask for the receipt again")
    found = []
    for leaf, ordinal, path in zip(leaves, ordinals, paths, strict=True):
        proven = check_leaf(leaf, ordinal, path, statement)
        found.append((proven, make_receipt(leaf, ordinal, path, block.statement, block.attestations)))
    if not found:
        return []
    first = check_attestations(found[0][0], block.statement, statement, block.attestations, root, certify)
    return [(replace(first, leaf=leaf), receipt) for leaf, receipt in found]


def _leaves(block: ProvenBlock, statement: Statement) -> list[bytes]:
    rows, ordinals = block.rows, block.ordinals
    if len(rows) != len(ordinals) * ROW.size:
        raise NotAReceipt("not a row for each envelope", "Ask for the receipt again")
    if any(one >= other for one, other in pairwise(ordinals)):
        raise WrongPath("the envelopes are not in the order of the block", "Ask for the receipt again")
    head = leaf_head(statement.cell, statement.time)
    return [head + rows[at : at + ROW.size] for at in range(0, len(rows), ROW.size)]


def _tree(block: ProvenBlock, statement: Statement, leaves: Sequence[bytes]) -> Tree:
    """Of the block's leaves: those that are proven, and the hashes of the others."""
    if len(block.hashes) != (statement.count - len(leaves)) * HASH:
        raise WrongPath("not the hashes of all that the block took", "Ask for the receipt again")
    hashes, at, number = [], 0, 0
    for leaf, ordinal in zip(leaves, block.ordinals, strict=True):
        between = (ordinal - number) * HASH
        hashes += [block.hashes[at : at + between], leaf_hash(leaf)]
        at, number = at + between, ordinal + 1
    return Tree(b"".join([*hashes, block.hashes[at:]]))
