"""A proof that travels with a record: small, verified offline, and without a byte to spare."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.tlog import (
    BadProof,
    Checkpoint,
    LogError,
    Malformed,
    NotInTree,
    Proven,
    Staple,
    TooFewWitnesses,
    UnknownKey,
    consistency_proof,
    frontier,
    grow,
    inclusion_proof,
    leaf_hash,
    parse_staple,
    verify_staple,
)
from relay.errors import BadSignature, TrustError
from relay.limits import KIB, MAX_STAPLE
from tests.relay.core.tlog import naive
from tests.relay.core.tlog.logbook import NOW, ORIGIN, WITNESSES, Book, damaged, key, trust
from tests.flipping import flipped

BOOK = Book(naive.entries(1000))
STAPLE = BOOK.staple(700, 1000)
DATA = STAPLE.encode()
TIMES = {witness.name: NOW + number for number, witness in enumerate(WITNESSES)}


def test_it_proves_its_entry_and_no_other() -> None:
    for k in range(4):
        assert verify_staple(DATA, BOOK.entries[700], trust(k)) == Proven(700, BOOK.checkpoint(1000), TIMES)
    for entry in (BOOK.entries[699], b"", leaf_hash(BOOK.entries[700])):
        with pytest.raises(BadProof):
            verify_staple(DATA, entry, trust(3))
    with pytest.raises(TooFewWitnesses):
        verify_staple(BOOK.staple(700, 1000, WITNESSES[:1]).encode(), BOOK.entries[700], trust(2))


def test_any_changed_byte_fails() -> None:
    """Of proof, root, size, index, signatures: with all three witnesses asked for, no bit of it is free."""
    for at in range(len(DATA)):
        for bit in range(8):
            with pytest.raises((LogError, BadSignature)):
                verify_staple(flipped(DATA, at, bit), BOOK.entries[700], trust(3))


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_any_other_index_size_or_root_fails(index: int, size: int, root: bytes) -> None:
    if index != 700:
        with pytest.raises((BadProof, NotInTree)):
            verify_staple(replace(STAPLE, index=index).encode(), BOOK.entries[700], trust(3))
    if size != 1000:  # the way to an entry may be the same in a tree of another size; the signatures are not
        text = Checkpoint(ORIGIN, size, BOOK.root(1000)).text()
        with pytest.raises(BadSignature):
            verify_staple(replace(STAPLE, note=replace(STAPLE.note, text=text)).encode(), BOOK.entries[700], trust(3))
    text = Checkpoint(ORIGIN, 1000, root).text()
    with pytest.raises(BadSignature):
        verify_staple(replace(STAPLE, note=replace(STAPLE.note, text=text)).encode(), BOOK.entries[700], trust(3))


def test_an_index_beyond_the_tree_is_named() -> None:
    for index in (1000, 1700, 700 + 2**32):
        with pytest.raises(NotInTree):
            verify_staple(replace(STAPLE, index=index).encode(), BOOK.entries[700], trust(3))


@given(st.integers(1, 1000).flatmap(lambda size: st.tuples(st.integers(0, size - 1), st.just(size))))
def test_every_entry_can_be_proven(where: tuple[int, int]) -> None:
    index, size = where
    assert verify_staple(BOOK.staple(index, size).encode(), BOOK.entries[index], trust(3)).index == index


def test_parts_of_two_staples_do_not_mix() -> None:
    other = BOOK.staple(700, 999)
    for mixed in (replace(STAPLE, note=other.note), replace(other, note=STAPLE.note)):
        with pytest.raises(BadProof):
            verify_staple(mixed.encode(), BOOK.entries[700], trust(3))
    foreign = Book(BOOK.entries, key("sauda.posthouse.example/log")).staple(700, 1000)
    with pytest.raises(UnknownKey):
        verify_staple(foreign.encode(), BOOK.entries[700], trust(0))
    mixed = replace(
        STAPLE, note=replace(STAPLE.note, signatures=STAPLE.note.signatures[:1]).add(other.note.signatures[1:])
    )
    with pytest.raises(BadSignature):
        verify_staple(mixed.encode(), BOOK.entries[700], trust(3))


@pytest.mark.parametrize(("old", "new"), [
    (b"@v1", b"@v2"), (b"index 700", b"index 0700"), (b"index 700", b"extra AAAA\nindex 700"), (b"index 700\n", b""),
    (b"index 700\n", b"index 700\nAAAA\n"), (b"index ", b"index  "),
    (b"\n\n", b"\n"), (b"index 700\n", b"index 700\n" + b"A" * 43 + b"=\n" * 64), (b"index", b"Index"),
])  # fmt: skip
def test_what_is_no_staple(old: bytes, new: bytes) -> None:
    assert old in DATA
    with pytest.raises(Malformed):
        parse_staple(DATA.replace(old, new, 1))


def test_hashes_do_not_slip_into_the_note() -> None:
    data = DATA.replace(b"index 700\n", b"index 700\n\n", 1)
    assert parse_staple(data).proof == ()
    with pytest.raises(BadSignature):
        verify_staple(data, BOOK.entries[700], trust(0))


@given(st.binary(max_size=400) | damaged(DATA))
def test_any_bytes_are_proven_or_refused_by_name(data: bytes) -> None:
    try:
        staple = parse_staple(data)
        assert staple.encode() == data
        assert verify_staple(data, BOOK.entries[700], trust(1)).index == 700
    except TrustError as error:
        assert isinstance(error, LogError | BadSignature) and error.remedy


def test_it_has_a_bound() -> None:
    crowd = tuple(replace(witness, name=f"{n}.{witness.name}") for n in range(20) for witness in WITNESSES)
    with pytest.raises(Malformed, match="Leave out"):
        BOOK.staple(700, 1000, crowd).encode()
    with pytest.raises(Malformed):
        parse_staple(DATA + DATA[-200:] * 50)
    assert len(DATA) < MAX_STAPLE


def test_its_size_in_a_log_of_a_million() -> None:
    """At most 2 KiB with three cosignatures (issue 4), with names of 60 bytes, whichever the entry."""
    size = 1_000_000
    hashes = [leaf_hash(b"%d" % number) for number in range(size)]
    tiles = grow(0, {}, hashes)
    log = key("norden.region.federation.posthouse.example/registrar/log-0001")
    note = Checkpoint(log.name, size, frontier(size, tiles).root()).sign(log)
    witnesses = tuple(replace(witness, name=f"{witness.name:-<60}") for witness in WITNESSES)
    for witness in witnesses:
        note = note.sign(witness, NOW)
    assert {len(signature.name) for signature in note.signatures} == {60, 61}
    for index in (0, 524_287, 524_288, 999_424, size - 1):
        data = Staple(index, inclusion_proof(index, size, tiles), note).encode()
        assert len(data) <= 2 * KIB
        assert verify_staple(data, b"%d" % index, trust(3, log, witnesses)).index == index
    assert len(consistency_proof(999_000, size, tiles)) <= 40
