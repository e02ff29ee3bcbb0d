"""The epoch map, pure: who is in a registry, and in which version, under one root; proofs that somebody is or is not.

A compact sparse Merkle tree. A user's place is a hash of the user's id, and the way down to it is that hash's bits. A
subtree without users is EMPTY, one with a single user is that user's leaf wherever it stands, any other is the hash of
its two halves. So the root depends on what is in the map and on nothing else. Leaves, inner nodes, places and values
hash under four different first bytes, none of which the log's tree uses (0x00, 0x01).

A place does not tell the user: a proof that somebody is absent names nobody else, though it shows the place and the
value of who stands in the way. That is also why a value is a hash that is not to be guessed.

Two parts, so that a million users need not be in memory: a `Crown`, the tree down to `bits` levels, which takes 33
bytes a node (4.1 MiB with 16 bits), and the buckets below it, which the caller keeps as bytes: rows of (place, value),
by place, each with a number of the caller's that nothing here hashes. `bits` is about storage only; the root is the
same with any.

    put     bucket = change(bucket, values), for each `bucket_of` whoever changes; crown.put(number, summarise(bucket))
    prove   `crown.prove(place, bucket)`, with bucket number `crown.where(place)`
    verify  `verify_latest`, `verify_absent`: offline
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Annotated, Final, NamedTuple

from msgspec import Meta

from relay.core.tlog.errors import BadProof
from relay.core.codec import Decoder, Struct, encode
from relay.core.shapes import Hash
from relay.errors import ProtocolError
from relay.limits import KIB, MAX_STAPLE

HASH: Final = 32
NUMBER: Final = 8  # bytes of a row's number
ROW: Final = 2 * HASH + NUMBER  # bytes of a bucket's row: place, value and number
LEVELS: Final = 8 * HASH  # bits of a place
BITS: Final = 16  # of a registry's crown: buckets of 15 users at 1,000,000
EMPTY: Final = bytes(HASH)  # the root of a tree without users
_LEAF, _INNER, _PLACE, _VALUE = b"\x10", b"\x11", b"\x12", b"\x13"
MAX_MAP_PROOF: Final = min(MAX_STAPLE, 9 * KIB)  # bytes; 2 KiB is the aim at 1,000,000 users, 256 levels take 8.3


def place_of(user: bytes) -> bytes:
    """Where a user stands: 32 bytes whose bits, the highest of the first byte first, are the way from the root."""
    return sha256(_PLACE + user).digest()


def value_of(version: int, digest: bytes) -> bytes:
    """What the map says of a user: the newest version and the digest of that record, hashed."""
    return sha256(_VALUE + version.to_bytes(8) + digest).digest()


def leaf_of(place: bytes, value: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(_LEAF + place + value).digest()


def inner_of(left: bytes, right: bytes) -> bytes:
    """The hash of a subtree with two users or more."""
    return sha256(_INNER + left + right).digest()


def bucket_of(place: bytes, bits: int = BITS) -> int:
    """The number of the bucket that a place belongs to: its first `bits` (≤ 32) bits."""
    return int.from_bytes(place[:4]) >> 32 - bits


def _bit(place: bytes, level: int) -> int:
    return place[level >> 3] >> 7 - (level & 7) & 1


# --- buckets -------------------------------------------------------------------------------------
class Summary(NamedTuple):
    """What a node knows of its subtree: its hash, and whether that is of 0, 1 or more (2) users."""

    hash: bytes
    users: int


_NOBODY: Final = Summary(EMPTY, 0)


def _join(left: Summary, right: Summary) -> Summary:
    if left.users + right.users <= 1:
        return left if left.users else right
    return Summary(inner_of(left.hash, right.hash), 2)


class Value(NamedTuple):
    """What a bucket has at a place. An empty `value` stands for nobody."""

    value: bytes
    number: int = 0


def _rows(bucket: bytes) -> list[tuple[bytes, bytes]]:
    """Places and values."""
    return [(bucket[at : at + HASH], bucket[at + HASH : at + 2 * HASH]) for at in range(0, len(bucket), ROW)]


def find(bucket: bytes, place: bytes) -> Value | None:
    """What is at a place of this bucket; None where nobody stands."""
    at = bisect_left(range(len(bucket) // ROW), place, key=lambda row: bucket[row * ROW : row * ROW + HASH]) * ROW
    if bucket[at : at + HASH] != place:
        return None
    return Value(bucket[at + HASH : at + 2 * HASH], int.from_bytes(bucket[at + 2 * HASH : at + ROW]))


def change(bucket: bytes, values: Mapping[bytes, Value]) -> bytes:
    """The bucket with these values (by place) put in; an empty one takes its place out."""
    rows = {bucket[at : at + HASH]: bucket[at : at + ROW] for at in range(0, len(bucket), ROW)}
    for place, (value, number) in values.items():
        rows[place] = place + value + number.to_bytes(NUMBER) if value else b""
    return b"".join(rows[place] for place in sorted(rows))


def summarise(bucket: bytes, bits: int = BITS) -> Summary:
    """The node of the crown that this bucket hangs on."""
    rows = _rows(bucket)
    return _summary(rows, 0, len(rows), bits)


def _summary(rows: list[tuple[bytes, bytes]], start: int, end: int, level: int) -> Summary:
    """Of rows[start:end], which have the first `level` bits in common."""
    if end - start < 2:
        return Summary(leaf_of(*rows[start]), 1) if end > start else _NOBODY
    middle = _middle(rows, start, end, level)
    return _join(_summary(rows, start, middle, level + 1), _summary(rows, middle, end, level + 1))


def _middle(rows: list[tuple[bytes, bytes]], start: int, end: int, level: int) -> int:
    while start < end and not _bit(rows[start][0], level):
        start += 1
    return start


# --- proofs --------------------------------------------------------------------------------------
class MapProof(Struct, frozen=True):
    """The way to a place, `depth` levels from the root. Bit n of `present`, the highest of the first byte first, says
    that the sibling at level n + 1 has users; `siblings` has its hash, deepest first. `other`: who stands alone where
    the way ends, as (place, value), if that is not the user in question; else empty."""

    depth: Annotated[int, Meta(ge=0, le=LEVELS)]
    present: Annotated[bytes, Meta(max_length=HASH)]
    siblings: Annotated[tuple[Hash, ...], Meta(max_length=LEVELS)]
    other: Annotated[bytes, Meta(max_length=2 * HASH)]

    def encode(self) -> bytes:
        """The proof's bytes."""
        return encode(self)


_read: Decoder[MapProof] = Decoder(MapProof, "map proof", MAX_MAP_PROOF)


def parse_map_proof(data: bytes) -> MapProof:
    """From its bytes, verified by nobody. Raises BadProof."""
    try:
        return _read(data)
    except ProtocolError as error:
        raise BadProof(error.text, "Ask for the proof anew") from None


def _fold(place: bytes, start: bytes, proof: MapProof) -> bytes:
    """The root that this proof leads to from `start`, what stands where the way ends. Raises BadProof."""
    present = int.from_bytes(proof.present) >> -proof.depth % 8
    one_form = len(proof.present) == proof.depth + 7 >> 3 and present.bit_count() == len(proof.siblings)
    if not one_form or int.from_bytes(proof.present) & (1 << -proof.depth % 8) - 1 or EMPTY in proof.siblings:
        raise BadProof("a map proof whose parts do not belong together", "Ask for the proof anew")
    node, rest = start, iter(proof.siblings)
    for level in reversed(range(proof.depth)):
        sibling = next(rest) if present & 1 else EMPTY
        node = inner_of(sibling, node) if _bit(place, level) else inner_of(node, sibling)
        present >>= 1
    return node


def verify_latest(user: bytes, version: int, digest: bytes, proof: MapProof, root: bytes) -> None:
    """In the map with this root the newest record of `user` is `version`, with that digest. Raises BadProof."""
    place = place_of(user)
    start = leaf_of(place, value_of(version, digest))
    if proof.other or _fold(place, start, proof) != root:
        raise BadProof(
            f"map proof for version {version}: it does not lead to the root",
            "There is a newer record, or the proof belongs to another epoch; ask the region for both",
        )


def verify_absent(user: bytes, proof: MapProof, root: bytes) -> None:
    """In the map with this root `user` is not. Raises BadProof."""
    place, start, wrong = place_of(user), EMPTY, False
    if proof.other:
        other = proof.other[:HASH]
        apart = LEVELS - (int.from_bytes(place) ^ int.from_bytes(other)).bit_length()  # the first level where they part
        wrong = len(proof.other) != 2 * HASH or other == place or apart < proof.depth
        start = leaf_of(other, proof.other[HASH:])
    if wrong or _fold(place, start, proof) != root:
        raise BadProof("map proof of absence: it does not lead to the root", "The user may be there; ask anew")


# --- the crown -----------------------------------------------------------------------------------
class Crown:
    """The upper `bits` levels of a map. Node 1 is the root, nodes 2n and 2n + 1 are below node n, and bucket b hangs on
    node 2**bits + b. Changes reach the root when it is asked for."""

    def __init__(self, bits: int = BITS) -> None:
        self.bits = bits
        self._hashes = bytearray(HASH << bits + 1)
        self._users = bytearray(1 << bits + 1)
        self._stale: set[int] = set()  # nodes of the lowest level whose way to the root is to be hashed anew

    @classmethod
    def load(cls, summaries: Iterable[tuple[int, Summary]], bits: int = BITS) -> Crown:
        """From the summaries of its buckets; those that are not named are empty."""
        crown = cls(bits)
        for number, summary in summaries:
            crown.put(number, summary)
        return crown

    def put(self, number: int, summary: Summary) -> None:
        """Bucket `number` is now this."""
        node = (1 << self.bits) + number
        self._set(node, summary)
        self._stale.add(node)

    def summary(self, number: int) -> Summary:
        """What bucket `number` was last said to be."""
        return self._get((1 << self.bits) + number)

    @property
    def root(self) -> bytes:
        """The map's root: 32 bytes. Costs a hash for each node above what changed since it was asked for."""
        level = self._stale
        for _ in range(self.bits):
            level = {node >> 1 for node in level}
            for node in level:
                self._set(node, _join(self._get(2 * node), self._get(2 * node + 1)))
        self._stale = set()
        return self._get(1).hash

    def where(self, place: bytes) -> int:
        """The number of the bucket that `prove` needs: the one of that place, or of who stands alone in its way."""
        node = self._end(place)
        while node >> self.bits == 0:
            node = 2 * node + (self._users[2 * node] == 0)
        return node - (1 << self.bits)

    def prove(self, place: bytes, bucket: bytes) -> MapProof:
        """What the map has at `place`, as `verify_latest` or `verify_absent` takes it. `bucket`: number `where(place)`,
        as it was put."""
        node = self._end(place)
        siblings = [self._get(node >> up ^ 1).hash for up in reversed(range(node.bit_length() - 1))]  # from the root
        rows = _rows(bucket)
        start, end, level = 0, len(rows), len(siblings)
        if level == self.bits:
            while end - start > 1:
                middle = _middle(rows, start, end, level)
                left = _summary(rows, start, middle, level + 1)
                right = _summary(rows, middle, end, level + 1)
                siblings.append((left if _bit(place, level) else right).hash)
                start, end = (middle, end) if _bit(place, level) else (start, middle)
                level += 1
        return _proof(place, siblings, rows[start:end])

    def _end(self, place: bytes) -> int:
        """The node where the way to `place` leaves the crown: the first below which fewer than two users are."""
        _ = self.root
        node = 1
        while node >> self.bits == 0 and self._users[node] > 1:
            node = 2 * node + _bit(place, node.bit_length() - 1)
        return node

    def _get(self, node: int) -> Summary:
        return Summary(bytes(self._hashes[node * HASH : (node + 1) * HASH]), self._users[node])

    def _set(self, node: int, summary: Summary) -> None:
        self._hashes[node * HASH : (node + 1) * HASH], self._users[node] = summary


def _proof(place: bytes, siblings: list[bytes], there: list[tuple[bytes, bytes]]) -> MapProof:
    depth, present = len(siblings), 0
    for sibling in siblings:
        present = present << 1 | (sibling != EMPTY)
    other = b"".join(there[0]) if there and there[0][0] != place else b""
    packed = (present << -depth % 8).to_bytes(depth + 7 >> 3)
    return MapProof(depth, packed, tuple(sibling for sibling in reversed(siblings) if sibling != EMPTY), other)
