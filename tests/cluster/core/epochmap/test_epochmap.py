"""The epoch map against a dictionary, and against another way to the same root."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core import epochmap
from cluster.core.epochmap import (
    EMPTY, Crown, MapProof, Value, bucket_of, change, find, parse_map_proof, place_of, summarise, value_of,
    verify_absent, verify_latest,
)  # fmt: skip
from relay.core.tlog import BadProof
from tests.flipping import flipped

USERS = [bytes([n]) * 32 for n in range(40)]


def digest(user: bytes, version: int) -> bytes:
    return sha256(user + bytes([version])).digest()


def naive_root(rows: dict[bytes, bytes], level: int = 0) -> bytes:
    """From the definition: no buckets, no crown."""
    if not rows:
        return EMPTY
    if len(rows) == 1:
        [(place, value)] = rows.items()
        return sha256(b"\x10" + place + value).digest()
    halves = [
        {place: value for place, value in rows.items() if place[level // 8] >> 7 - level % 8 & 1 == bit}
        for bit in (0, 1)
    ]
    return sha256(b"\x11" + naive_root(halves[0], level + 1) + naive_root(halves[1], level + 1)).digest()


@dataclass
class Book:
    """A map with its buckets in memory."""

    bits: int
    crown: Crown = field(init=False)
    buckets: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.crown = Crown(self.bits)

    def put(self, place: bytes, value: bytes) -> None:
        number = bucket_of(place, self.bits)
        self.buckets[number] = change(self.buckets.get(number, b""), {place: Value(value, 7)})
        self.crown.put(number, summarise(self.buckets[number], self.bits))

    def prove(self, place: bytes) -> MapProof:
        return self.crown.prove(place, self.buckets.get(self.crown.where(place), b""))


def book(versions: dict[bytes, int], bits: int) -> Book:
    made = Book(bits)
    for user, version in versions.items():
        made.put(place_of(user), value_of(version, digest(user, version)))
    return made


CONTENTS = st.dictionaries(st.sampled_from(USERS), st.integers(1, 9))


@given(CONTENTS, st.integers(0, 6))
def test_the_root_is_that_of_the_definition(versions: dict[bytes, int], bits: int) -> None:
    rows = {place_of(user): value_of(version, digest(user, version)) for user, version in versions.items()}
    made = book(versions, bits)
    assert made.crown.root == naive_root(rows)
    loaded = Crown.load(((number, summarise(bucket, bits)) for number, bucket in made.buckets.items()), bits)
    assert loaded.root == made.crown.root


@given(st.lists(st.tuples(st.sampled_from(USERS), st.integers(0, 9)), max_size=30), st.integers(0, 6))
def test_the_root_depends_on_the_contents_alone(changes: list[tuple[bytes, int]], bits: int) -> None:
    """In any order, with others there in between, asked for in between or not. (0 takes a user out.)"""
    made, model = Book(bits), dict[bytes, int]()
    for user, version in changes:
        made.put(place_of(user), value_of(version, digest(user, version)) if version else b"")
        model[user] = version
        if version % 2:
            assert made.crown.root
    model = {user: version for user, version in model.items() if version}
    assert made.crown.root == book(model, 3).crown.root
    for user in USERS:
        bucket = made.buckets.get(bucket_of(place_of(user), bits), b"")
        value = Value(value_of(model[user], digest(user, model[user])), 7) if user in model else None
        assert find(bucket, place_of(user)) == value


@given(CONTENTS, st.integers(0, 6))
def test_everything_true_can_be_proven_and_nothing_else(versions: dict[bytes, int], bits: int) -> None:
    made = book(versions, bits)
    root = made.crown.root
    for user in USERS:
        proof = parse_map_proof(made.prove(place_of(user)).encode())
        if user not in versions:
            verify_absent(user, proof, root)
            with pytest.raises(BadProof):
                verify_latest(user, 1, digest(user, 1), proof, root)
            continue
        version = versions[user]
        verify_latest(user, version, digest(user, version), proof, root)
        for other in (version - 1, version + 1):  # an old record, one that is not there
            with pytest.raises(BadProof):
                verify_latest(user, other, digest(user, other), proof, root)
        with pytest.raises(BadProof):
            verify_latest(user, version, digest(user, version + 1), proof, root)
        with pytest.raises(BadProof):
            verify_absent(user, proof, root)


@given(CONTENTS, CONTENTS, st.integers(0, 6), st.sampled_from(USERS), st.sampled_from(USERS))
def test_proofs_of_others_and_of_other_epochs_prove_nothing(
    versions: dict[bytes, int], later: dict[bytes, int], bits: int, one: bytes, other: bytes
) -> None:
    """No proof for `one`, and none of another epoch, says anything false about `other`."""
    made, then = book(versions, bits), book(later, bits)
    for proof in (made.prove(place_of(one)), then.prove(place_of(one)), then.prove(place_of(other))):
        for version in range(1, 10):
            if versions.get(other) != version:
                with pytest.raises(BadProof):
                    verify_latest(other, version, digest(other, version), proof, made.crown.root)
        if other in versions:
            with pytest.raises(BadProof):
                verify_absent(other, proof, made.crown.root)


@given(CONTENTS, st.sampled_from(USERS), st.data())
def test_no_damaged_proof_holds(versions: dict[bytes, int], user: bytes, data: st.DataObject) -> None:
    made = book(versions, 4)
    good = made.prove(place_of(user)).encode()
    damaged = flipped(good, data.draw(st.integers(0, len(good) - 1)))
    version = versions.get(user)
    with pytest.raises(BadProof):
        proof = parse_map_proof(damaged)
        if version is None:
            verify_absent(user, proof, made.crown.root)
        else:
            verify_latest(user, version, digest(user, version), proof, made.crown.root)


def test_a_proof_has_one_form() -> None:
    made = book(dict.fromkeys(USERS, 1), 4)
    user, root = USERS[3], made.crown.root
    proof = made.prove(place_of(user))
    verify_latest(user, 1, digest(user, 1), proof, root)
    replace = msgspec.structs.replace
    for wrong in (
        replace(proof, present=proof.present + b"\0"),
        replace(proof, present=bytes([proof.present[0], *proof.present[1:-1], proof.present[-1] | 1])),
        replace(proof, siblings=(*proof.siblings, EMPTY)),
        replace(proof, depth=proof.depth + 1),
        replace(proof, other=bytes(64)),
        replace(proof, other=bytes(63)),
        replace(proof, siblings=proof.siblings[1:]),
    ):
        with pytest.raises(BadProof):
            verify_latest(user, 1, digest(user, 1), wrong, root)
        with pytest.raises(BadProof):
            verify_absent(user, wrong, root)
    with pytest.raises(BadProof):
        parse_map_proof(b"\xc1")
    with pytest.raises(BadProof):
        parse_map_proof(bytes(epochmap.MAX_MAP_PROOF + 1))


def test_who_stands_elsewhere_does_not_stand_in_the_way() -> None:
    """A dishonest map has, on the user's side of the root, somebody whose place is on the other side."""
    user = USERS[0]
    place = place_of(user)
    other = next(one for one in map(place_of, USERS) if one[0] >> 7 != place[0] >> 7)
    there, sibling = epochmap.leaf_of(other, bytes(32)), b"s" * 32
    root = epochmap.inner_of(sibling, there) if place[0] >> 7 else epochmap.inner_of(there, sibling)
    with pytest.raises(BadProof):
        verify_absent(user, MapProof(1, b"\x80", (sibling,), other + bytes(32)), root)


def test_an_empty_sibling_is_not_spelt_out() -> None:
    one = place_of(USERS[0])
    other = next(place for place in map(place_of, USERS) if (place[0] ^ one[0]) >> 6 == 1)
    user = next(user for user in USERS if place_of(user) == other)
    made = Book(4)
    for who in (USERS[0], user):
        made.put(place_of(who), value_of(1, digest(who, 1)))
    proof, root = made.prove(one), made.crown.root
    verify_latest(USERS[0], 1, digest(USERS[0], 1), proof, root)
    assert (proof.depth, proof.present) == (2, b"\x40")
    longer = msgspec.structs.replace(proof, present=b"\xc0", siblings=(*proof.siblings, EMPTY))
    with pytest.raises(BadProof):
        verify_latest(USERS[0], 1, digest(USERS[0], 1), longer, root)


@pytest.mark.parametrize("alike", [1, 16, 17, 100, 255])
def test_places_that_are_alike_for_long(alike: int) -> None:
    """Nobody finds two users whose places share more than some 80 bits; the map would hold them all the same."""
    one = bytes(32)
    other = (1 << 255 - alike).to_bytes(32)
    made = Book(16)
    for place in (one, other):
        made.put(place, sha256(place).digest())
    assert made.crown.root == naive_root({place: sha256(place).digest() for place in (one, other)})
    proof = made.prove(one)
    assert proof.depth == alike + 1 and len(proof.siblings) == 1
    start = epochmap.leaf_of(one, sha256(one).digest())
    assert epochmap._fold(one, start, parse_map_proof(proof.encode())) == made.crown.root


def test_proofs_among_many_users_are_short() -> None:
    made = Book(8)
    users = [sha256(b"%d" % n).digest() for n in range(4096)]
    fresh = dict[int, dict[bytes, Value]]()
    for user in users:
        fresh.setdefault(bucket_of(place_of(user), 8), {})[place_of(user)] = Value(value_of(1, user))
    for number, values in fresh.items():
        made.buckets[number] = change(b"", values)
        made.crown.put(number, summarise(made.buckets[number], 8))
    sizes = [len(made.prove(place_of(user)).encode()) for user in users]
    assert sum(sizes) / len(sizes) < 34 * (12 + 2) + 10  # 2**12 users, a level or two more than 12
    assert max(sizes) < 34 * 32 + 75  # at 2**20 users 8 more levels: well below 2 KiB
