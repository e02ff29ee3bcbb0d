"""The same log by an implementation that we did not write: aics-tlog, from PyPI. Each verifies what the other made."""

from __future__ import annotations

from collections.abc import Callable

import aics_tlog
import pytest
from aics_tlog import tiles as oracle
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from relay.core.tlog import (
    LogError,
    Malformed,
    Note,
    Signature,
    SignerKey,
    Staple,
    VerifierKey,
    bundles_written,
    consistency_proof,
    consistency_tiles,
    edge,
    frontier,
    grow,
    grow_bundles,
    inclusion_proof,
    inclusion_tiles,
    leaf_hash,
    open_checkpoint,
    parse_note,
    parse_path,
    parse_staple,
    tiles_written,
    verify_consistency,
    verify_inclusion,
    verify_staple,
)
from relay.errors import TrustError
from tests.relay.core.tlog import naive
from tests.relay.core.tlog.logbook import LOG, NOW, ORIGIN, WITNESSES, Book, damaged, trust
from tests.flipping import flipped

ENTRIES = naive.entries(800)
HASHES = [leaf_hash(entry) for entry in ENTRIES]
TREE = aics_tlog.MerkleTree(ENTRIES)
BOOK = Book(ENTRIES)
SIZES = st.integers(1, 800)


def stored(size: int) -> dict[str, bytes]:
    """All tiles and bundles that we write for a log of this size, by path."""
    files = {**grow(0, {}, HASHES[:size]), **grow_bundles(0, b"", ENTRIES[:size])}
    assert set(files) == {*tiles_written(0, size), *bundles_written(0, size)}
    return {name.path: data for name, data in files.items()}


def private(signer: SignerKey) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(signer.seed)


def holds(verify: Callable[..., None], *arguments: object) -> bool:
    try:
        verify(*arguments)
    except LogError:
        return False
    return True


# --- the tree ------------------------------------------------------------------------------------
@given(SIZES)
def test_tiles_and_bundles_are_the_same_files(size: int) -> None:
    assert stored(size) == oracle.materialise_tiles(list(ENTRIES[:size]))


@given(SIZES.flatmap(lambda size: st.tuples(st.integers(0, size - 1), st.integers(1, size), st.just(size))))
def test_proofs_are_the_same_and_each_verifies_the_others(where: tuple[int, int, int]) -> None:
    index, old, size = where
    ours, reader = grow(0, {}, HASHES[:size]), aics_tlog.MemoryTileReader(stored(size))
    root = frontier(size, ours).root()
    assert root == TREE.root(size) == aics_tlog.tree_root_from_tiles(reader, size)

    inclusion = inclusion_proof(index, size, {tile: ours[tile] for tile in inclusion_tiles(index, size)})
    theirs = aics_tlog.inclusion_proof_from_tiles(reader, index, size)
    assert [*inclusion] == theirs == TREE.inclusion_proof(index, size)
    assert aics_tlog.verify_leaf_inclusion(ENTRIES[index], index, size, inclusion, root)
    verify_inclusion(HASHES[index], index, size, theirs, root)

    consistency = consistency_proof(old, size, {tile: ours[tile] for tile in consistency_tiles(old, size)})
    theirs = aics_tlog.consistency_proof_from_tiles(reader, old, size)
    assert [*consistency] == theirs == TREE.consistency_proof(old, size)
    assert aics_tlog.verify_consistency(old, size, TREE.root(old), root, consistency)
    verify_consistency(old, size, TREE.root(old), root, theirs)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(1, 40), st.data())
def test_both_judge_wrong_proofs_alike(one: int, other: int, of: int, size: int, data: st.DataObject) -> None:
    """Proofs, sizes and indexes that do not belong together: some hold all the same, by both."""
    proof = data.draw(
        st.sampled_from([TREE.inclusion_proof(of % size, size), TREE.consistency_proof(of % size + 1, 41)])
    )
    if proof and data.draw(st.booleans()):
        proof = data.draw(st.sampled_from(naive.changes(proof)[::17]))
    arguments = (HASHES[of], one, other, proof, TREE.root(size))
    assert holds(verify_inclusion, *arguments) == aics_tlog.verify_inclusion(*arguments)
    arguments = (one, other, TREE.root(of), TREE.root(size), proof)
    assert holds(verify_consistency, *arguments) == aics_tlog.verify_consistency(*arguments)


def test_both_judge_all_small_combinations_alike() -> None:
    """Each proof of trees of up to 10 leaves, for each index and size up to 11. That some hold for another size (and
    index) is in the nature of such proofs: what binds the size is the signature."""
    verdicts = []
    for size in range(1, 11):
        for of in range(size):
            proofs = TREE.inclusion_proof(of, size), TREE.consistency_proof(of + 1, size)
            for one in range(12):
                for other in range(12):
                    inclusion = (HASHES[of], one, other, proofs[0], TREE.root(size))
                    consistency = (one, other, TREE.root(of + 1), TREE.root(size), proofs[1])
                    verdicts.append(holds(verify_inclusion, *inclusion))
                    assert verdicts[-1] == aics_tlog.verify_inclusion(*inclusion)
                    assert not verdicts[-1] or (one == of or other != size)
                    verdicts.append(holds(verify_consistency, *consistency))
                    assert verdicts[-1] == aics_tlog.verify_consistency(*consistency)
    assert 110 < sum(verdicts) < len(verdicts) // 10


@given(st.tuples(st.integers(0, 800), st.integers(0, 800)).map(sorted))
def test_each_goes_on_where_the_other_stopped(sizes: list[int]) -> None:
    old, new = sizes
    theirs = aics_tlog.MemoryTileStore(stored(old))
    result = aics_tlog.IncrementalTileWriter(theirs, old, prune_partials=False).append(ENTRIES[old:new])
    files = {**grow(old, grow(0, {}, HASHES[:old]), HASHES[old:new])}
    last = stored(old)[f"tile/entries/{old >> 8:03}.p/{old % 256}"] if old % 256 else b""
    bundles = grow_bundles(old, last, ENTRIES[old:new])
    assert {name.path: data for name, data in (*files.items(), *bundles.items())} == {
        path: theirs.read(path) for path in result.written
    }
    resumed = {tile: theirs.read_tile(*tile[:2], tile.width) or b"" for tile in edge(new)}
    assert frontier(new, resumed).root() == result.root


@given(st.integers(1, 800))
def test_its_auditor_finds_all_of_it_in_order(size: int) -> None:
    files = stored(size)
    report = aics_tlog.audit_tiles(aics_tlog.MemoryTileReader(files), size, TREE.root(size))
    assert report.tiles + report.bundles == len(files)
    path = min(files)
    with pytest.raises((aics_tlog.TileVerificationError, ValueError)):
        broken = {**files, path: flipped(files[path])}
        aics_tlog.audit_tiles(aics_tlog.MemoryTileReader(broken), size, TREE.root(size))


@given(st.integers(0, 63), st.integers(0, 10**12), st.integers(1, 256))
def test_paths_are_the_same(level: int, number: int, width: int) -> None:
    partial = None if width == 256 else width
    for path in (oracle.tile_path(level, number, partial), oracle.entry_bundle_path(number, partial)):
        assert parse_path(path).path == path


# --- keys, notes, checkpoints --------------------------------------------------------------------
def test_keys_are_the_same_strings() -> None:
    for signer in (LOG, *WITNESSES):
        theirs = aics_tlog.parse_vkey(str(signer.verifier))
        assert (theirs.name, theirs.key_id, theirs.public_key) == (
            signer.name,
            signer.verifier.id,
            signer.verifier.public,
        )
        assert VerifierKey.parse(aics_tlog.format_vkey(theirs)) == signer.verifier


@given(st.integers(1, 800), st.integers(1, 2**62), st.integers(0, 3))
def test_they_verify_what_we_sign(size: int, time: int, k: int) -> None:
    note = BOOK.checkpoint(size).sign(LOG)
    for witness in WITNESSES[:k]:
        note = note.sign(witness, time)
    log, *witnesses = (aics_tlog.parse_vkey(str(signer.verifier)) for signer in (LOG, *WITNESSES))
    theirs = aics_tlog.parse_note(note.encode())
    result = aics_tlog.verify_checkpoint(theirs, log, witnesses, k, expected_origin=ORIGIN)
    assert result.ok, result.error
    assert (result.origin, result.size, result.root) == (ORIGIN, size, TREE.root(size))
    assert result.timestamps == {witness.name: time for witness in WITNESSES[:k]}
    assert not aics_tlog.verify_checkpoint(theirs, log, witnesses, k + 1).ok


@given(st.integers(1, 800), st.integers(0, 2**62), st.integers(0, 3))
def test_we_verify_what_they_sign(size: int, time: int, k: int) -> None:
    checkpoint = aics_tlog.Checkpoint(ORIGIN, size, TREE.root(size))
    signed = aics_tlog.sign_checkpoint(checkpoint, private(LOG), ORIGIN)
    lines = [
        aics_tlog.sign_cosignature(private(witness), witness.name, time, ORIGIN, size, TREE.root(size))[1]
        for witness in WITNESSES[:k]
    ]
    data = aics_tlog.Note(signed.text, (*signed.signatures, *lines)).to_bytes()
    opened = open_checkpoint(data, trust(k))
    assert opened.checkpoint == BOOK.checkpoint(size)
    assert opened.times == {witness.name: time for witness in WITNESSES[:k]}
    if time:  # Ed25519 is deterministic: the bytes are the same
        note = BOOK.checkpoint(size).sign(LOG)
        for witness in WITNESSES[:k]:
            note = note.sign(witness, time)
        assert note.encode() == data


NOTE = BOOK.note(800, WITNESSES)


def their_verdict(data: bytes, k: int) -> bool:
    log, *witnesses = (aics_tlog.parse_vkey(str(signer.verifier)) for signer in (LOG, *WITNESSES))
    try:
        return aics_tlog.verify_checkpoint(aics_tlog.parse_note(data), log, witnesses, k, expected_origin=ORIGIN).ok
    except ValueError:
        return False


@given(damaged(NOTE.encode()), st.integers(0, 3))
def test_both_judge_damaged_checkpoints_alike(data: bytes, k: int) -> None:
    """But for form, where we are stricter (a note ends with a newline), and a signature that is there twice, which they
    refuse and we count once."""
    theirs = their_verdict(data, k)
    try:
        opened = open_checkpoint(data, trust(k))
    except TrustError as error:
        assert isinstance(error, Malformed) or not theirs
        return
    names = [(line.name, line.id) for line in opened.note.signatures]
    assert theirs or len(names) != len(set(names))


def test_a_signature_that_is_there_twice() -> None:
    twice = Note(NOTE.text, (*NOTE.signatures, NOTE.signatures[0]))
    assert open_checkpoint(twice.encode(), trust(3)).checkpoint.size == 800
    assert not their_verdict(twice.encode(), 3)
    unknown = Signature("stranger.example", b"abcd", b"anything")
    assert their_verdict(Note(NOTE.text, (*NOTE.signatures, unknown, unknown)).encode(), 3)


# --- stapled proofs ------------------------------------------------------------------------------
@given(SIZES.flatmap(lambda size: st.tuples(st.integers(0, size - 1), st.just(size))))
def test_a_staple_is_verified_part_by_part(where: tuple[int, int]) -> None:
    index, size = where
    staple = parse_staple(BOOK.staple(index, size).encode())
    assert their_verdict(staple.note.encode(), 3)
    assert aics_tlog.verify_leaf_inclusion(ENTRIES[index], index, size, staple.proof, TREE.root(size))
    theirs = Staple(index, tuple(TREE.inclusion_proof(index, size)), parse_note(staple.note.encode()))
    assert verify_staple(theirs.encode(), ENTRIES[index], trust(3)).times[WITNESSES[0].name] == NOW
