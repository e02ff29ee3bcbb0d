"""What is signed, and how it is verified: the root document, home records, rosters (DESIGN sections 5 and 6).

Verify the exact bytes first, then parse them. Nothing here signs anything that a relay could sign for a user: the
`sign_*` helpers take the private key from whoever holds it (the device, the registrar, the root's keeper).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from relay.core.codec import Decoder, Struct, digest, encode
from relay.core.shapes import CellName, Hash, Key, MaybeHash, Millis, Name, Signature, Text, UInt
from relay.errors import BadSignature, BrokenChain, NotValidNow, Rollback, TrustError
from relay.limits import KIB, MAX_CHAIN, MAX_DEVICES, MAX_MEMBERS, MIB

_HOME, _ROOT, _ROSTER = b"posthouse.home\x00", b"posthouse.root\x00", b"posthouse.roster\x00"


def _verify(key: bytes, domain: bytes, payload: bytes, signature: bytes, what: str) -> None:
    try:
        VerifyKey(key).verify(domain + payload, signature)
    except (BadSignatureError, ValueError):
        raise BadSignature(f"{what}: the signature does not hold") from None


def _sign(key: SigningKey, domain: bytes, payload: bytes) -> bytes:
    return bytes(key.sign(domain + payload).signature)


# --- home records --------------------------------------------------------------------------------
class Device(Struct, frozen=True):
    """A device: its Ed25519 key (which is its id), its X25519 key, and the home version that enrolled it."""

    id: Key
    encryption: Key
    since: UInt


class HomePayload(Struct, frozen=True):
    """What is signed. `user` and `prev` are empty in version 1."""

    format: Literal[1]
    user: MaybeHash
    version: UInt
    prev: MaybeHash
    region: Name
    cell: CellName
    user_key: Key
    devices: Annotated[tuple[Device, ...], Meta(max_length=MAX_DEVICES)]
    move_epoch: UInt
    not_before: Millis
    expires: Millis


class _SignedHome(Struct, frozen=True):
    payload: bytes
    user_signature: Signature
    registrar_signature: Signature


class HomeRecord(Struct, frozen=True):
    """A verified home record: `user` is filled in also for version 1, `digest` is what the next one chains to."""

    user: Hash
    digest: Hash
    payload: HomePayload
    signed: bytes

    @property
    def version(self) -> int:
        return self.payload.version

    @property
    def cell(self) -> str:
        return self.payload.cell

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.payload.devices


_signed_home: Decoder[_SignedHome] = Decoder(_SignedHome, "signed home record", 16 * KIB)
_home: Decoder[HomePayload] = Decoder(HomePayload, "home record", 16 * KIB)


def sign_home(payload: HomePayload, user_key: SigningKey, registrar_key: SigningKey) -> bytes:
    """Sign one version. From version 2 on `user_key` is the key that the version before names."""
    data = encode(payload)
    return encode(_SignedHome(data, _sign(user_key, _HOME, data), _sign(registrar_key, _HOME, data)))


def endorse_home(payload: bytes, registrar_key: SigningKey) -> bytes:
    """The registrar's signature over a payload that was checked."""
    return _sign(registrar_key, _HOME, payload)


def read_home(signed: bytes) -> HomeRecord:
    """Parse without verifying: only for bytes that were verified before they were kept (a cell's own log)."""
    outer = _signed_home(signed)
    payload = _home(outer.payload)
    own = digest(outer.payload)
    return HomeRecord(payload.user or own, own, payload, signed)


def verify_home(signed: bytes, root: Root, prev: HomeRecord | None) -> HomeRecord:
    """Verify one version after `prev` (None: it must be version 1), against the root's registrar of its region.

    Raises BadSignature, BrokenChain or TrustError (unknown region). Expiry is `check_current`'s business, because a
    chain may contain versions that have run out."""
    outer = _signed_home(signed)
    record = read_home(signed)
    payload = record.payload
    region = root.region(payload.region)
    user_key = prev.payload.user_key if prev else payload.user_key
    _verify(user_key, _HOME, outer.payload, outer.user_signature, "home record, user's key")
    _verify(region.registrar_key, _HOME, outer.payload, outer.registrar_signature, "home record, registrar's key")
    if payload.version > MAX_CHAIN:
        raise TrustError(f"home record: version {payload.version} is beyond {MAX_CHAIN}", "Enrol the user anew")
    if payload.cell not in region.cell_names or not payload.cell.startswith(payload.region + "/"):
        raise TrustError(f"home record: cell {payload.cell} is not one of region {payload.region}")
    _check_chain(record, prev)
    return record


def _check_chain(record: HomeRecord, prev: HomeRecord | None) -> None:
    payload = record.payload
    known = {device.id: device for device in prev.devices} if prev else {}
    if prev is None:
        chained = payload.version == 1 and not payload.user and not payload.prev
    else:
        chained = payload.version == prev.version + 1 and payload.user == prev.user and payload.prev == prev.digest
    if not chained:
        last = prev.version if prev else "nothing"
        raise BrokenChain(f"home record version {payload.version} does not follow {last}")
    if len({device.id for device in payload.devices}) != len(payload.devices):
        raise BrokenChain("home record: a device is listed twice")
    for device in payload.devices:
        old = known.get(device.id)
        if device.since != (old.since if old else payload.version) or (old and old != device):
            raise BrokenChain("home record: a device's enrolment was changed")


def verify_chain(
    chain: Sequence[bytes], root: Root, now_ms: int, user: bytes, known: HomeRecord | None = None
) -> HomeRecord:
    """Verify signed records, oldest first, that lead from `known` (or from version 1) to the newest one of `user`.

    Raises TrustError and its kinds; Rollback where the result is older than `known`."""
    record = known
    for signed in chain[:MAX_CHAIN]:
        if known is not None and read_home(signed).version <= known.version:
            if read_home(signed).version == known.version and signed != known.signed:
                raise BrokenChain("two different home records of one version: a fork")
            continue
        record = verify_home(signed, root, record)
    if record is None:
        raise TrustError("no home record")
    if record.user != user:
        raise BrokenChain("the home record is another user's")
    if known is not None and record.version < known.version:
        raise Rollback(f"home record version {record.version} after {known.version}")
    check_current(record, now_ms)
    return record


def check_current(record: HomeRecord, now_ms: int) -> None:
    """Raises NotValidNow outside not_before … expires."""
    if not record.payload.not_before <= now_ms < record.payload.expires:
        raise NotValidNow(f"home record version {record.version} is not valid now", "Ask the registrar for a newer one")


# --- the root ------------------------------------------------------------------------------------
class RootNode(Struct, frozen=True):
    """A node: its name, where other cells reach it (host:port), and the URLs that clients use."""

    name: Name
    link: Text
    clients: tuple[Text, ...]


class RootCell(Struct, frozen=True):
    """A cell: `region/name` and its nodes."""

    name: CellName
    nodes: tuple[RootNode, ...]


class RootRegion(Struct, frozen=True):
    """A region: its X.509 authority (DER), its registrar's Ed25519 key, its cells."""

    name: Name
    authority: bytes
    registrar_key: Key
    cells: tuple[RootCell, ...]

    @property
    def cell_names(self) -> frozenset[str]:
        return frozenset(cell.name for cell in self.cells)


class RootPayload(Struct, frozen=True):
    """What the root keys sign. `prev` is empty in version 1; the federation's id is the digest of version 1."""

    format: Literal[1]
    federation: Text
    version: UInt
    prev: MaybeHash
    expires: Millis
    keys: tuple[Key, ...]
    threshold: UInt
    regions: tuple[RootRegion, ...]


class _SignedRoot(Struct, frozen=True):
    payload: bytes
    signatures: tuple[tuple[Key, Signature], ...]


class Root(Struct, frozen=True):
    """A verified root document."""

    digest: Hash
    payload: RootPayload
    signed: bytes

    def region(self, name: str) -> RootRegion:
        """Raises TrustError for a region that the federation does not have."""
        for region in self.payload.regions:
            if region.name == name:
                return region
        raise TrustError(f"the federation has no region {name!r}")

    def cell(self, name: str) -> RootCell | None:
        for region in self.payload.regions:
            for cell in region.cells:
                if cell.name == name:
                    return cell
        return None

    def cells(self) -> list[str]:
        return [cell.name for region in self.payload.regions for cell in region.cells]


_signed_root: Decoder[_SignedRoot] = Decoder(_SignedRoot, "signed root", MIB)
_root: Decoder[RootPayload] = Decoder(RootPayload, "root", MIB)


def sign_root(payload: RootPayload, keys: Sequence[SigningKey]) -> bytes:
    """Sign a root document with each of `keys`."""
    data = encode(payload)
    return encode(_SignedRoot(data, tuple((bytes(key.verify_key), _sign(key, _ROOT, data)) for key in keys)))


def verify_root(signed: bytes, now_ms: int, pinned: bytes | None = None, prev: Root | None = None) -> Root:
    """Verify a root document: a threshold of the keys that it names itself (`pinned`: the digest it must have) or,
    with `prev`, also a threshold of the keys that version named. Raises TrustError and its kinds."""
    outer = _signed_root(signed)
    payload = _root(outer.payload)
    own = digest(outer.payload)
    if pinned is not None and own != pinned:
        raise TrustError("the root document is not the pinned one")
    if prev is not None:
        if payload.version <= prev.payload.version:
            raise Rollback(f"root version {payload.version} after {prev.payload.version}")
        if payload.version != prev.payload.version + 1 or payload.prev != prev.digest:
            raise BrokenChain(f"root version {payload.version} does not follow {prev.payload.version}")
        _threshold(outer, prev.payload)
    _threshold(outer, payload)
    if now_ms >= payload.expires:
        raise NotValidNow("the root document has expired", "Fetch a newer one from the federation")
    return Root(own, payload, signed)


def _threshold(outer: _SignedRoot, names: RootPayload) -> None:
    good = set()
    for key, signature in outer.signatures:
        if key in names.keys and key not in good:
            _verify(key, _ROOT, outer.payload, signature, "root document")
            good.add(key)
    if names.threshold < 1 or len(good) < names.threshold:
        raise BadSignature(f"root document: {len(good)} of {names.threshold} signatures")


# --- rosters -------------------------------------------------------------------------------------
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
    return encode(_SignedHead(data, _sign(owner, _ROSTER, data)))


def verify_roster(signed: bytes, prev: VerifiedHead | None = None) -> VerifiedHead:
    """Verify a roster head by the owner's key, to which the group's id is bound; with `prev`, also that it follows.
    Raises TrustError and its kinds."""
    outer = _signed_head(signed)
    head = _head(outer.payload)
    _verify(head.owner_key, _ROSTER, outer.payload, outer.signature, "roster head")
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
