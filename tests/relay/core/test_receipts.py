"""Receipts against an adversary who may sign with any key but a majority of the cell's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.pki import make_authority
from relay.certificates import certify
from relay.core.block import make_block, position
from relay.core.book import Book, Taken
from relay.core.codec import digest, encode
from relay.core.envelope import envelope_id
from relay.core.proven import ProvenBlock, told, verify_block
from relay.core.receipts import (
    ROW, Receipt, Statement, Verified, _Leaf, _leaf, _receipt, _statement, leaf_head, majority, make_receipt,
    verify_receipt,
)
from relay.core.wire import Code
from relay.errors import (
    BadSignature, NotAReceipt, NotCertified, NotValidNow, OtherLog, ReceiptContradicts, TooFewStores, TrustError,
    WrongPath,
)
from relay.limits import MAX_RECEIPT, SIGNED_TOGETHER
from tests import attesting
from tests.flipping import flipped
from tests.attesting import DAY, NOW, Signer, make_root
from tests.relay.core.mailroom.conftest import Group, Log, User

ROOT = make_root()
N1, N2, N3 = (Signer("norden", name) for name in ("n1", "n2", "n3"))
LOG_ID = bytes(range(16))
INDEX, COUNT = 7, 5


class Page:
    """A block that took five envelopes."""

    def __init__(self, index: int = INDEX, log_id: bytes = LOG_ID, time: int = NOW) -> None:
        self.book = Book("norden/1", log_id)
        self.ids = [digest(b"%d %d" % (index, number)) for number in range(COUNT)]
        taken = [
            Taken(own, Code.ACCEPTED if n % 2 else Code.STORED, position(index, n), 1, 2, time + DAY)
            for n, own in enumerate(self.ids)
        ]
        self.book.keep(make_block(log_id, index, bytes(32), time, [b"record"]), taken)
        statement = self.book.statement(index)
        assert statement is not None
        self.index, self.statement = index, statement

    def block(self, *numbers: int) -> ProvenBlock:
        asked = [told(self.ids[number], Code.ACCEPTED if number % 2 else Code.STORED) for number in numbers]
        ordinals = self.book.find(self.index, asked)
        found = self.book.prove(self.index, ordinals, [one.attestation(self.statement) for one in (N1, N2)])
        assert found is not None and found.ordinals == numbers
        return found

    def parts(self, number: int) -> tuple[bytes, int, bytes]:
        block = self.block(number)
        [path] = block.paths
        said = _statement(self.statement)
        return leaf_head(said.cell, said.time) + block.rows, number, path

    def receipt(self, number: int = 0, *signers: Signer, statement: bytes = b"") -> bytes:
        statement = statement or self.statement
        return make_receipt(*self.parts(number), statement, [one.attestation(statement) for one in signers or (N1, N2)])


PAGE = Page()
GOOD = PAGE.receipt(3)


def check(data: bytes, **more: bytes) -> Verified:
    return verify_receipt(data, ROOT, certify, **more)


def changed(data: bytes, **parts: object) -> bytes:
    return encode(msgspec.structs.replace(_receipt(data), **parts))


def releafed(field: int, value: object) -> bytes:
    """The good leaf with another field of its row."""
    leaf = _leaf(_receipt(GOOD).leaf)
    row = list(ROW.unpack(leaf.row))
    row[field] = value
    return encode(msgspec.structs.replace(leaf, row=ROW.pack(*row)))


def restated(**parts: object) -> bytes:
    return encode(msgspec.structs.replace(_statement(PAGE.statement), **parts))


# --- what holds ------------------------------------------------------------------------------------
def test_a_receipt_of_every_envelope_of_a_block_verifies() -> None:
    for number, own in enumerate(PAGE.ids):
        verified = check(PAGE.receipt(number), envelope_id=own, log_id=LOG_ID)
        leaf = verified.leaf
        assert (leaf.id, leaf.region, leaf.cell) == (own, "norden", "norden/1")
        assert (leaf.position, leaf.sealed_for, leaf.newest) == (position(INDEX, number), 1, 2)
        assert (leaf.stored_at, leaf.expires) == (NOW, NOW + DAY)
        assert leaf.code == (Code.ACCEPTED if number % 2 else Code.STORED)
        assert (verified.nodes, verified.needed, verified.of) == (("n1", "n2"), 2, 3)


def test_all_nodes_may_stand_by_it_and_a_cell_of_one_needs_one() -> None:
    assert check(PAGE.receipt(0, N3, N1, N2)).nodes == ("n1", "n2", "n3")
    alone = verify_receipt(PAGE.receipt(0, N1), make_root(("n1",)), certify)
    assert (alone.nodes, alone.needed, alone.of) == (("n1",), 1, 1)
    assert [majority(nodes) for nodes in (1, 3, 5)] == [1, 2, 3]


def test_what_a_node_hands_on_verifies_as_a_whole_with_paths_and_with_hashes() -> None:
    few, most, all_ = PAGE.block(3), PAGE.block(1, 3, 4), PAGE.block(*range(COUNT))
    assert not few.hashes and len(few.paths) == 1
    assert len(most.hashes) == 2 * 32 and not most.paths and not all_.hashes and not all_.paths
    for block in (few, most, all_):
        for verified, data in verify_block(block, ROOT, certify):
            assert check(data) == verified
        assert [one.leaf.id for one, _ in verify_block(block, ROOT, certify)] == [PAGE.ids[n] for n in block.ordinals]


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ({"hashes": bytes(32)}, WrongPath),
        ({"hashes": bytes(64)}, WrongPath),
        ({"hashes": bytes(63)}, WrongPath),
        ({"paths": (b"", b"", b"")}, WrongPath),
        ({"paths": (bytes(128), bytes(128), bytes(128)), "hashes": b""}, WrongPath),
        ({"paths": (bytes(128),), "hashes": b""}, WrongPath),
        ({"ordinals": (1, 3, COUNT)}, WrongPath),
        ({"ordinals": (3, 1, 4)}, WrongPath),
        ({"ordinals": (1, 1, 4)}, WrongPath),
        ({"ordinals": (0, 3, 4)}, WrongPath),
        ({"ordinals": (1, 3)}, NotAReceipt),
        ({"rows": bytes(3 * ROW.size - 1)}, NotAReceipt),
        ({"ordinals": (), "rows": b""}, WrongPath),
    ],
)
def test_what_a_node_hands_on_holds_as_a_whole_or_not_at_all(parts: dict[str, Any], error: type[TrustError]) -> None:
    most = PAGE.block(1, 3, 4)
    with pytest.raises(error):
        verify_block(msgspec.structs.replace(most, **parts), ROOT, certify)
    assert len(verify_block(most, ROOT, certify)) == 3


def test_paths_need_no_hashes() -> None:
    with pytest.raises(WrongPath):
        verify_block(msgspec.structs.replace(PAGE.block(3), hashes=bytes(32)), ROOT, certify)


def test_paths_come_one_for_each_envelope_in_the_order_of_the_block() -> None:
    one, three = PAGE.block(1), PAGE.block(3)
    for parts in (
        {"paths": three.paths * 2},
        {"ordinals": (3, 3), "rows": three.rows * 2, "paths": three.paths * 2},
        {"ordinals": (3, 1), "rows": three.rows + one.rows, "paths": three.paths + one.paths},
    ):
        with pytest.raises(WrongPath):
            verify_block(msgspec.structs.replace(three, **parts), ROOT, certify)


# --- who signs -------------------------------------------------------------------------------------
def attack(data: bytes, error: type[TrustError], **more: bytes) -> None:
    with pytest.raises(error) as caught:
        check(data, **more)
    assert caught.type is error and caught.value.text


def test_a_minority_of_signatures() -> None:
    attack(PAGE.receipt(0, N1), TooFewStores)
    with pytest.raises(TooFewStores):
        verify_receipt(GOOD, make_root(("n1", "n2", "n3", "n4", "n5")), certify)


def test_one_node_that_signs_twice() -> None:
    same = Signer("norden", "n1")  # another key and certificate of the same node
    same.store = digest(b"another store")[:16]
    attack(PAGE.receipt(0, N1, N1), TooFewStores)
    attack(PAGE.receipt(0, N1, same), TooFewStores)


def test_one_store_or_one_key_under_two_names() -> None:
    store, key = Signer("norden", "n2"), Signer("norden", "n2")
    store.store = N1.store
    attack(PAGE.receipt(0, N1, store), TooFewStores)
    key.key = N1.key  # a certificate of n2 over a key that n1 uses: the signature is n1's
    attack(PAGE.receipt(0, N1, key), BadSignature)


def test_a_node_of_another_region() -> None:
    attack(PAGE.receipt(0, N1, Signer("sueden", "n2")), NotCertified)


def test_another_regions_authority_vouches_for_a_node_of_this_one() -> None:
    attack(PAGE.receipt(0, N1, Signer("norden", "n2", by="sueden")), NotCertified)


def test_a_node_that_the_root_does_not_list() -> None:
    attack(PAGE.receipt(0, N1, Signer("norden", "n9")), NotCertified)


def test_a_node_of_another_cell_of_the_region() -> None:
    attack(PAGE.receipt(0, N1, Signer("norden", "n2", cell="norden/2")), NotCertified)


def test_a_cell_that_the_root_does_not_list() -> None:
    page = Page()
    page.book._cell = "norden/9"
    page.book._hashed.clear()
    page.statement = page.book.statement(INDEX) or b""
    attack(page.receipt(0), NotCertified)


@pytest.mark.parametrize("issued", [NOW - 500 * DAY, NOW + DAY], ids=["expired", "not yet valid"])
def test_a_certificate_out_of_its_time(issued: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attesting.AUTHORITIES, "norden", make_authority("norden", now_ms=NOW - 600 * DAY))
    good, bad = Signer("norden", "n1"), Signer("norden", "n2", now_ms=issued)
    with pytest.raises(NotValidNow):
        verify_receipt(PAGE.receipt(0, good, bad), make_root(), certify)


def test_no_certificate_at_all() -> None:
    junk = Signer("norden", "n2")
    junk.certificate = b"junk"
    attack(PAGE.receipt(0, N1, junk), NotCertified)


# --- what is signed --------------------------------------------------------------------------------
def test_signatures_over_another_log() -> None:
    other = restated(log_id=bytes(16))
    attestations = tuple(one.attestation(other) for one in (N1, N2))
    attack(changed(GOOD, attestations=attestations), BadSignature)
    attack(changed(GOOD, statement=other), BadSignature)


def test_a_receipt_of_the_log_before_a_repair() -> None:
    attack(GOOD, OtherLog, log_id=bytes(16))


def test_a_store_that_another_nodes_signature_is_claimed_for() -> None:
    first, second = _receipt(GOOD).attestations
    moved = msgspec.structs.replace(second, store=digest(b"elsewhere")[:16])
    attack(changed(GOOD, attestations=(first, moved)), BadSignature)


def test_statements_that_are_signed_together_hold_one_by_one() -> None:
    pages = [Page(INDEX + number) for number in range(SIGNED_TOGETHER)]
    words = [signer.attest([page.statement for page in pages]) for signer in (N1, N2)]
    for place, page in enumerate(pages):
        attestations = [word.attestation(place) for word in words]
        data = make_receipt(*page.parts(3), page.statement, attestations)
        assert check(data).leaf.id == page.ids[3]
        first = attestations[0]
        for field, value in (("place", (place + 1) % SIGNED_TOGETHER), ("others", flipped(first.others))):
            other = msgspec.structs.replace(first, **{field: value})
            attack(changed(data, attestations=(other, attestations[1])), BadSignature)
        uneven = msgspec.structs.replace(first, others=first.others[1:])
        attack(changed(data, attestations=(uneven, attestations[1])), NotAReceipt)
    alone = msgspec.structs.replace(N1.attestation(PAGE.statement), place=1)
    attack(changed(GOOD, attestations=(alone, N2.attestation(PAGE.statement))), NotAReceipt)


# --- what is proven --------------------------------------------------------------------------------
def test_a_refused_envelope_that_claims_the_path_of_a_taken_one() -> None:
    leaf = releafed(0, digest(b"refused"))
    attack(changed(GOOD, leaf=leaf), WrongPath)


def test_an_outcome_that_is_none_of_a_taken_envelope() -> None:
    leaf = releafed(1, Code.MAILBOX_FULL)
    attack(changed(GOOD, leaf=leaf), ReceiptContradicts)


def test_accepted_that_claims_to_be_stored() -> None:
    leaf = releafed(1, Code.STORED)
    attack(changed(GOOD, leaf=leaf), WrongPath)


def test_the_path_of_another_block() -> None:
    other = Page(INDEX + 1)
    leaf, ordinal, path = other.parts(3)
    attack(changed(GOOD, path=path), WrongPath)
    attack(changed(GOOD, leaf=leaf, ordinal=ordinal, path=path), ReceiptContradicts)
    attack(changed(GOOD, statement=other.statement), ReceiptContradicts)


def test_another_place_in_the_block_or_another_length() -> None:
    for ordinal in (*set(range(COUNT)) - {3}, COUNT, 1 << 40):
        attack(changed(GOOD, ordinal=ordinal), WrongPath)
    attack(changed(GOOD, path=_receipt(GOOD).path[:-32]), WrongPath)
    attack(changed(GOOD, path=_receipt(GOOD).path + bytes(32)), WrongPath)
    attack(changed(GOOD, path=_receipt(GOOD).path[:-1]), WrongPath)


def test_another_envelopes_receipt() -> None:
    attack(GOOD, ReceiptContradicts, envelope_id=PAGE.ids[0])


@pytest.mark.parametrize("part", [{"time": NOW + 1}, {"index": INDEX + 1}, {"cell": "sueden/1"}])
def test_a_statement_that_says_other_than_the_leaf(part: dict[str, object]) -> None:
    attack(PAGE.receipt(3, statement=restated(**part)), ReceiptContradicts)


# --- bytes -----------------------------------------------------------------------------------------
@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD) * 8 - 1))
def test_a_flipped_bit_anywhere_is_refused(bit: int) -> None:
    data = bytearray(GOOD)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TrustError):
        check(bytes(data))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_bytes_put_in_left_out_or_replaced_are_refused(at: int, put: bytes, drop: int) -> None:
    data = GOOD[:at] + put + GOOD[at + drop :]
    if data != GOOD:
        with pytest.raises(TrustError):
            check(data)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    attack(data, NotAReceipt)


def test_too_large_to_be_looked_at() -> None:
    attack(GOOD + bytes(MAX_RECEIPT), NotAReceipt)


def test_what_is_not_the_one_encoding() -> None:
    longer = GOOD.replace(b"\x95", b"", 1) if GOOD[:1] == b"\x95" else GOOD
    attack(b"\xdc\x00\x06" + GOOD[1:], NotAReceipt)
    attack(longer[1:], NotAReceipt)


# --- the fold --------------------------------------------------------------------------------------
@pytest.fixture
def house() -> tuple[Log, User, User]:
    log = Log("norden/1")
    alice, bob = User("alice", log.cell), User("bob", log.cell)
    log.enrol(alice, "a1")
    log.enrol(bob, "b1")
    return log, alice, bob


def test_only_what_is_taken_is_in_the_book(house: tuple[Log, User, User]) -> None:
    log, _, bob = house
    good, abroad = log.seal(bob.id), log.seal(bytes(32), body=b"abroad")
    expired, unknown = log.seal(bob.id, life=-1), log.seal(bytes(32), body=b"unknown")
    log.apply(
        log.submit("a1", expired), log.submit("a1", good), log.submit("a1", unknown),
        log.submit("a1", abroad, "sueden/1"), log.submit("a1", b"no envelope"), log.submit("nobody", log.seal(bob.id)),
    )  # fmt: skip
    assert [(one.id, one.code) for one in log.room.taken] == [
        (envelope_id(good), Code.STORED), (envelope_id(abroad), Code.ACCEPTED),
    ]  # fmt: skip
    assert all(one.position >> 20 == log.room.state.index for one in log.room.taken)
    log.apply(log.submit("a1", good))  # a repeat: its receipt is that of the first time
    assert log.room.taken == []
    log.apply(log.submit("a1", good), after_ms=DAY)
    assert log.room.taken == []


def test_what_waits_for_a_roster_has_its_receipt_when_it_takes_its_place(house: tuple[Log, User, User]) -> None:
    log, alice, bob = house
    group = Group("a1")
    sealed = log.seal(group.id, 1, roster=True)
    log.apply(log.submit("b1", sealed))
    assert [(one.id, one.code) for one in log.room.taken] == [(envelope_id(sealed), Code.ACCEPTED)]
    log.apply(group.publish({log.cell: [alice.id, bob.id]}))
    [taken] = log.room.taken
    assert (taken.id, taken.code, taken.sealed_for, taken.newest) == (envelope_id(sealed), Code.STORED, 1, 1)
    assert taken.position >> 20 == log.room.state.index


@pytest.mark.parametrize(("nodes", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_a_majority_is_more_than_half(nodes: int, needed: int) -> None:
    assert majority(nodes) == needed


def test_leaf_and_statement_have_exact_shapes() -> None:
    assert _Leaf.__struct_fields__[1:] == ("region", "cell", "stored_at", "row")
    assert Statement.__struct_fields__[1:] == ("cell", "log_id", "index", "block", "time", "count", "outcomes")
    assert Receipt.__struct_fields__[1:] == ("leaf", "ordinal", "path", "statement", "attestations")
