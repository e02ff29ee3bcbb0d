"""The root document: the regions of the federation, with what each signs with and where it is reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from nacl.signing import SigningKey

from relay.core.codec import Decoder, Struct, digest, encode
from relay.core.shapes import CellName, Hash, Key, MaybeHash, Millis, Name, Signature, Text, UInt
from relay.core.trust.signing import sign, verify
from relay.errors import BadSignature, BrokenChain, NotValidNow, Rollback, TrustError
from relay.limits import MIB

_ROOT: Final = b"posthouse.root\x00"


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
    return encode(_SignedRoot(data, tuple((bytes(key.verify_key), sign(key, _ROOT, data)) for key in keys)))


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
            verify(key, _ROOT, outer.payload, signature, "root document")
            good.add(key)
    if names.threshold < 1 or len(good) < names.threshold:
        raise BadSignature(f"root document: {len(good)} of {names.threshold} signatures")
