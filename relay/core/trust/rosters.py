"""Rosters: a signed head that says which cells have members, and a member list for each of them (rule 17)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta
from nacl.signing import SigningKey

from relay.core.codec import Decoder, Struct, digest, encode
from relay.core.shapes import CellName, Hash, Key, MaybeHash, Signature, UInt
from relay.core.trust.signing import sign, verify
from relay.errors import BadSignature, BrokenChain, Rollback, TrustError
from relay.limits import KIB, MAX_MEMBERS, MIB

_ROSTER: Final = b"posthouse.roster\x00"


class RosterCell(Struct, frozen=True):
    """A cell with members of the group: how many, and the digest of its member list."""

    cell: CellName
    count: UInt
    part: Hash


class RosterHead(Struct, frozen=True):
    """What the owner signs: which cells (sorted) have members, never who they are. `owner_key` is the owner's device
    key. Every version names it and `seed`, whose digest is the group's id: nobody else can sign a version of the group,
    also where the version before is not known. `prev` is empty in version 1."""

    format: Literal[1]
    seed: Hash
    version: UInt
    prev: MaybeHash
    owner_key: Key
    cells: tuple[RosterCell, ...]


class Member(Struct, frozen=True):
    """A member and the roster version that (last) added it."""

    user: Hash
    since: UInt


class RosterPart(Struct, frozen=True):
    """The members of one cell in one version, sorted by user id. Resident in that cell."""

    version: UInt
    members: Annotated[tuple[Member, ...], Meta(max_length=MAX_MEMBERS)]


class VerifiedHead(Struct, frozen=True):
    """A roster head whose signature held. `group` is the group's id."""

    group: Hash
    digest: Hash
    head: RosterHead
    signed: bytes

    @property
    def cell_names(self) -> tuple[str, ...]:
        """The cells with members, sorted."""
        return tuple(cell.cell for cell in self.head.cells)


class _SignedHead(Struct, frozen=True):
    payload: bytes
    signature: Signature


_signed_head: Decoder[_SignedHead] = Decoder(_SignedHead, "signed roster head", 64 * KIB)
_head: Decoder[RosterHead] = Decoder(RosterHead, "roster head", 64 * KIB)
_part: Decoder[RosterPart] = Decoder(RosterPart, "roster part", MIB)


def group_id(owner_key: bytes, seed: bytes) -> bytes:
    """A group's id: the digest of its owner's device key and 32 random bytes."""
    return digest(owner_key + seed, b"posthouse.group")


def sign_roster(head: RosterHead, owner: SigningKey) -> bytes:
    """Sign a roster head with the owner's device key."""
    data = encode(head)
    return encode(_SignedHead(data, sign(owner, _ROSTER, data)))


def verify_roster(signed: bytes, prev: VerifiedHead | None = None) -> VerifiedHead:
    """Verify a roster head by the owner's key, to which the group's id is bound; with `prev`, also that it follows.
    Raises TrustError and its kinds."""
    outer = _signed_head(signed)
    head = _head(outer.payload)
    verify(head.owner_key, _ROSTER, outer.payload, outer.signature, "roster head")
    own = digest(outer.payload)
    if head.version < 1 or len(head.prev) != (0 if head.version == 1 else 32):
        raise BrokenChain("roster head: prev is empty in version 1, and a digest from then on")
    cells = [entry.cell for entry in head.cells]
    if cells != sorted(set(cells)):
        raise BrokenChain("roster head: its cells are not sorted, or one is named twice")
    verified = VerifiedHead(group_id(head.owner_key, head.seed), own, head, signed)
    if prev is not None:
        if verified.group != prev.group:
            raise BrokenChain("roster head: another group's")
        if head.version <= prev.head.version:
            raise Rollback(f"roster version {head.version} after {prev.head.version}")
        if head.version == prev.head.version + 1 and head.prev != prev.digest:
            raise BrokenChain(f"roster version {head.version} does not follow {prev.head.version}")
    return verified


def verify_part(part: bytes, head: VerifiedHead, cell: str) -> RosterPart:
    """Verify the member list of `cell` against the head. Raises TrustError."""
    named = {entry.cell: entry for entry in head.head.cells}.get(cell)
    if named is None or named.part != digest(part):
        raise BadSignature(f"roster: the member list of {cell} is not the one the head names")
    parsed = _part(part)
    users = [member.user for member in parsed.members]
    if parsed.version != head.head.version or len(users) != named.count or users != sorted(set(users)):
        raise TrustError(f"roster: the member list of {cell} is not well formed")
    return parsed


def make_part(version: int, members: Sequence[Member]) -> bytes:
    """Encode a member list, sorted."""
    return encode(RosterPart(version, tuple(sorted(members, key=lambda member: member.user))))
