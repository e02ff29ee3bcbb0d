"""Receipts: what a majority of a cell's stores sign about an envelope that their fold has taken (docs/adr/0023).

    receipt      [format, leaf, ordinal, path, statement, [attestation …]]
    leaf         what became of one envelope; the leaves of a block, in the order of the fold, are the leaves of a tree
    statement    log id, index and hash of a block, the size and root of that tree
    attestation  a store's signature over this and other statements' digests, with the certificate of its node

Only what the fold takes gets a leaf: there is none for what is refused, stale or not committed, so no path to it exists
whoever signs. Everything is verified over the exact bytes, then parsed; and it must be the one encoding of what it
says, so that no byte can be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct as Row
from typing import Annotated, Final, Literal, TypeVar

from msgspec import Meta

from relay.core.codec import Decoder, Struct, digest, encode, pack
from relay.core.shapes import CellName, Hash, LogId, Millis, Name, Signature, StoreId, UInt
from relay.core.trust import Root
from relay.core.trust.signing import verify
from relay.core.widetree import HASH, climb, leaf_hash
from relay.errors import (
    NotAReceipt,
    NotCertified,
    NotValidNow,
    OtherLog,
    ProtocolError,
    ReceiptContradicts,
    TooFewStores,
    WrongPath,
)
from relay.limits import KIB, MAX_CELL, MAX_CERTIFICATE, MAX_OUTCOME_PATH, MAX_RECEIPT, SIGNED_TOGETHER, SLOT_BITS

T = TypeVar("T", bound=Struct)
Mark = tuple[str, str | bytes]  # see `marks_of`
# What TLS 1.3 has the same key sign begins with 64 spaces (RFC 8446 section 4.4.3), a certificate (RFC 5280) with 0x30.
_DOMAIN: Final = b"posthouse.receipt\x00"
ROW: Final = Row(">32sBQQQQ")  # of a leaf: id, code, position, sealed_for, newest, expires
TAKEN: Final = (1, 2)  # ACCEPTED and STORED of relay.core.wire.Code, which builds on this file
_Certificate = Annotated[bytes, Meta(min_length=1, max_length=MAX_CERTIFICATE)]
Path = Annotated[bytes, Meta(max_length=MAX_OUTCOME_PATH)]


class _Leaf(Struct, frozen=True):
    """A leaf's bytes: what the leaves of a block have in common, then what is the envelope's own, all of one length."""

    format: Literal[1]
    region: Name
    cell: CellName
    stored_at: Millis
    row: Annotated[bytes, Meta(min_length=ROW.size, max_length=ROW.size)]


@dataclass(frozen=True, slots=True)
class Leaf:
    """What became of envelope `id`. `code`: ACCEPTED or STORED. It was sealed for version `sealed_for` of its address
    (home record or roster); `newest` is the newest one that the cell knew then, 0 for an address of another cell.
    `stored_at` is the block's time, `expires` the envelope's; Unix ms."""

    id: bytes
    code: int
    region: str
    cell: str
    position: int
    sealed_for: int
    newest: int
    stored_at: int
    expires: int


class Statement(Struct, frozen=True):
    """Block `index` of log `log_id` of `cell`, with this hash and time (Unix ms), is committed; what its fold took are
    `count` envelopes, whose leaves have the root `outcomes`."""

    format: Literal[2]
    cell: CellName
    log_id: LogId
    index: UInt
    block: Hash
    time: Millis
    count: Annotated[int, Meta(ge=1, le=2**SLOT_BITS)]
    outcomes: Hash


class Word(Struct, frozen=True):
    """What `store` signed at once: the digests (see `said`) of up to SIGNED_TOGETHER statements, joined. `certificate`:
    DER, of its node. See `signed_bytes`."""

    store: StoreId
    certificate: _Certificate
    digests: Annotated[bytes, Meta(min_length=HASH, max_length=SIGNED_TOGETHER * HASH)]
    signature: Signature

    def attestation(self, place: int) -> Attestation:
        """The part for statement number `place`."""
        own = place * HASH
        others = self.digests[:own] + self.digests[own + HASH :]
        return Attestation(self.store, self.certificate, place, others, self.signature)


class Attestation(Struct, frozen=True):
    """A store's word for one statement, which was number `place` of those that it signed at once: with the digests of
    the `others`, in their order, joined."""

    store: StoreId
    certificate: _Certificate
    place: Annotated[int, Meta(ge=0, lt=SIGNED_TOGETHER)]
    others: Annotated[bytes, Meta(max_length=(SIGNED_TOGETHER - 1) * HASH)]
    signature: Signature

    def word(self, statement: bytes) -> Word:
        """All that was signed. Raises NotAReceipt."""
        own = self.place * HASH
        if len(self.others) % HASH or own > len(self.others):
            raise NotAReceipt("not a receipt: no place for the statement among what was signed", "Ask for it again")
        digests = self.others[:own] + said(statement) + self.others[own:]
        return Word(self.store, self.certificate, digests, self.signature)


Attestations = Annotated[tuple[Attestation, ...], Meta(min_length=1, max_length=MAX_CELL)]
LeafBytes = Annotated[bytes, Meta(max_length=512)]
StatementBytes = Annotated[bytes, Meta(max_length=512)]


class Receipt(Struct, frozen=True):
    """The whole, as it lies in a file: one leaf, its place among the block's, and who stands by the block."""

    format: Literal["posthouse receipt 1"]
    leaf: LeafBytes
    ordinal: UInt
    path: Path
    statement: StatementBytes
    attestations: Attestations


# --- verifying -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Certified:
    """Whom a certificate names, and until when it holds (Unix ms, [from, until)). `key`: Ed25519, 32 bytes."""

    region: str
    cell: str
    node: str
    key: bytes
    from_ms: int
    until_ms: int


# (certificate DER, root) → whom the authority of the region that it claims vouches for. Raises NotCertified.
Certify = Callable[[bytes, Root], Certified]


@dataclass(frozen=True, slots=True)
class Verified:
    """A receipt that holds: `nodes` of the `of` nodes of the cell stand by it, `needed` had to."""

    leaf: Leaf
    statement: Statement
    nodes: tuple[str, ...]
    needed: int
    of: int


_receipt: Decoder[Receipt] = Decoder(Receipt, "receipt", MAX_RECEIPT)
_leaf: Decoder[_Leaf] = Decoder(_Leaf, "leaf of a receipt", KIB)
_statement: Decoder[Statement] = Decoder(Statement, "statement of a receipt", KIB)


def majority(nodes: int) -> int:
    """How many nodes of a cell of `nodes` must stand by a receipt."""
    return nodes // 2 + 1


def said(statement: bytes) -> bytes:
    """The digest of a statement, as it is signed."""
    return digest(statement, b"posthouse.said")


def signed_bytes(digests: bytes, store: bytes, certificate: bytes) -> bytes:
    """What a store's node signs: statements' digests (see `said`), for this store, under this certificate."""
    return _DOMAIN + pack([digests, store, digest(certificate, b"posthouse.cert")])


def sign_statements(
    statements: Sequence[bytes], store: bytes, certificate: bytes, sign: Callable[[bytes], bytes]
) -> Word:
    """A store's word for at most SIGNED_TOGETHER statements. `sign`: with its node's key."""
    digests = b"".join(map(said, statements))
    return Word(store, certificate, digests, sign(signed_bytes(digests, store, certificate)))


def make_receipt(
    leaf: bytes, ordinal: int, path: bytes, statement: bytes, attestations: Sequence[Attestation]
) -> bytes:
    """A receipt's bytes, from its parts as a node gives them."""
    return encode(Receipt("posthouse receipt 1", leaf, ordinal, path, statement, tuple(attestations)))


def leaf_head(cell: str, time: int) -> bytes:
    """How all leaves of a block of this time (Unix ms) begin: a leaf is this and a row."""
    return encode(_Leaf(1, cell.partition("/")[0], cell, time, bytes(ROW.size)))[: -ROW.size]


def read_statement(data: bytes) -> Statement:
    """Raises NotAReceipt."""
    return _read(_statement, data)


def read_receipt(data: bytes) -> Statement:
    """What a receipt's bytes say of the block, unverified. Raises NotAReceipt."""
    return read_statement(_read(_receipt, data).statement)


def read_leaf(data: bytes) -> Leaf:
    """Raises NotAReceipt."""
    leaf = _read(_leaf, data)
    own, code, position, sealed_for, newest, expires = ROW.unpack(leaf.row)
    return Leaf(own, code, leaf.region, leaf.cell, position, sealed_for, newest, leaf.stored_at, expires)


def verify_receipt(
    data: bytes, root: Root, certify: Certify, *, envelope_id: bytes | None = None, log_id: bytes | None = None
) -> Verified:
    """Verify a receipt offline, by the root document alone; where given, it must be that envelope's and of that log.

    Raises NotAReceipt, ReceiptContradicts, WrongPath, NotCertified, NotValidNow (at the block's time), BadSignature,
    TooFewStores, OtherLog: all of them TrustErrors."""
    receipt = _read(_receipt, data)
    statement = read_statement(receipt.statement)
    leaf = check_leaf(receipt.leaf, receipt.ordinal, receipt.path, statement)
    if envelope_id is not None and leaf.id != envelope_id:
        raise ReceiptContradicts("the receipt is another envelope's", "Ask for that envelope's own")
    if log_id is not None and statement.log_id != log_id:
        raise OtherLog(
            f"the receipt is of log {statement.log_id.hex()}, not of log {log_id.hex()}",
            "The cell's log was renewed by a repair, which may have lost what the older one held; ask the cell",
        )
    return check_attestations(leaf, receipt.statement, statement, receipt.attestations, root, certify)


def check_attestations(
    leaf: Leaf, signed: bytes, statement: Statement, words: Sequence[Attestation], root: Root, certify: Certify
) -> Verified:
    """The stores of a majority of the nodes that the root lists for the cell stand by the statement."""
    nodes = cell_nodes(root, statement.cell)
    seen: set[Mark] = set()
    names = []
    for one in words:
        who = check_attestation(one, signed, statement, root, certify)
        marks = marks_of(who, one.store)
        if seen & marks:
            raise TooFewStores(f"{who.node}, its store or its key stands by this receipt twice", "Ask for another one")
        seen |= marks
        names.append(who.node)
    needed = majority(len(nodes))
    if len(names) < needed:
        raise TooFewStores(
            f"{len(names)} of the {len(nodes)} nodes of {statement.cell} stand by this receipt, {needed} must",
            "Ask the cell again when more of its nodes are up",
        )
    return Verified(leaf, statement, tuple(sorted(names)), needed, len(nodes))


def marks_of(who: Certified, store: bytes) -> set[Mark]:
    """By what one is known who may not stand by a block twice: a node, its store, its key."""
    return {("node", who.node), ("store", store), ("key", who.key)}


def check_attestation(
    one: Attestation, statement: bytes, read: Statement, root: Root, certify: Certify
) -> Certified:
    """Whose word it is for a statement (`read`, too). Raises as `check_certificate`; NotAReceipt, BadSignature."""
    who = check_certificate(one.certificate, read, root, certify)
    check_word(one.word(statement), who)
    return who


def check_word(word: Word, who: Certified) -> None:
    """Raises BadSignature where the node did not sign this."""
    signed = signed_bytes(word.digests, word.store, word.certificate)
    verify(who.key, b"", signed, word.signature, f"receipt, {who.node}")


def check_certificate(certificate: bytes, read: Statement, root: Root, certify: Certify) -> Certified:
    """A node that the root lists for the cell of the statement, certified by the region's authority at the block's
    time. Raises NotCertified, NotValidNow."""
    who = certify(certificate, root)
    if who.cell != read.cell:
        raise NotCertified(f"a node of {who.cell} stands by a receipt of {read.cell}", "Ask that cell for it")
    if who.node not in cell_nodes(root, read.cell):
        raise NotCertified(
            f"the root does not list {who.cell}/{who.node}", "Verify with the root document of the time of the receipt"
        )
    if not who.from_ms <= read.time < who.until_ms:
        raise NotValidNow(f"the certificate of {who.cell}/{who.node} was not valid when the block was made")
    return who


def cell_nodes(root: Root, cell: str) -> tuple[str, ...]:
    """The nodes that the root lists for a cell. Raises NotCertified where it does not know the cell."""
    listed = root.cell(cell)
    if listed is None:
        raise NotCertified(f"the root does not list the cell {cell}", "Verify with its federation's root document")
    return tuple(node.name for node in listed.nodes)


def _read(decoder: Decoder[T], data: bytes) -> T:
    try:
        found = decoder(data)
    except ProtocolError as error:
        raise NotAReceipt(f"not a receipt: {error.text}", "Give a file that `posthouse send --receipt` wrote") from None
    if encode(found) != data:
        raise NotAReceipt("not a receipt: not the one encoding of what it says", "Ask for the receipt again")
    return found


def check_leaf(data: bytes, ordinal: int, path: bytes, statement: Statement) -> Leaf:
    """A leaf of that block, which says nothing that the block does not say."""
    leaf = read_leaf(data)
    place = (leaf.cell, leaf.region, leaf.position >> SLOT_BITS, leaf.stored_at)
    block = (statement.cell, statement.cell.partition("/")[0], statement.index, statement.time)
    if place != block:
        raise ReceiptContradicts("the envelope's place and time are not those of the block", "Ask for it again")
    if leaf.code not in TAKEN:
        raise ReceiptContradicts(f"outcome {leaf.code} is not that of an envelope that was taken")
    if ordinal >= statement.count:
        raise WrongPath(f"leaf {ordinal} of a block that took {statement.count} envelopes")
    try:
        root = climb(leaf_hash(data), ordinal, statement.count, path)
    except ValueError:
        raise WrongPath(
            "the path is of another length than the way to that leaf", "Ask for the receipt again"
        ) from None
    if root != statement.outcomes:
        raise WrongPath(
            "the path does not lead from the envelope to what the block took",
            "The outcome, or the path, is not that of this block; ask for the receipt again",
        )
    return leaf
