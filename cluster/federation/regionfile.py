"""REGION.region: what the operator of a region sends to the federation's keepers. Nothing in it is secret.

The region's statement, signed by its operator, and the public keys that may sign for the region from then on. The
keepers delegate to these keys; whatever the region says later, it signs itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner

from relay.core.tlog import COSIGNATURE, ED25519, VerifierKey
from cluster.federation.keys import key_of, public_bytes
from cluster.federation.making import REGION_LIFETIME, Holders, draft_targets, region_part
from relay.core.codec import Decoder, Struct, digest, encode
from relay.core.shapes import UInt
from relay.core.trust import Delegation, RootRegion
from relay.core.trust.metadata import ends_ms
from relay.core.trust.root import RegionPart, check_region
from relay.core.trust.statement import decode_statement
from relay.errors import OperatorError, ProtocolError, TrustError
from relay.limits import MIB

_FORMAT: Final = 1
_VKEY: Final = "Give the one that `posthouse registrar init` printed"
_AGAIN: Final = "Ask its operator to send it again"


class RegionFile(Struct, frozen=True):
    """The file's content."""

    format: UInt
    delegation: Delegation
    part: RegionPart


@dataclass(frozen=True)
class SignedRegion:
    """A region file that holds together: what it says, in which version, until when (Unix ms)."""

    file: RegionFile
    region: RootRegion
    version: int
    ends_ms: int

    @property
    def holders(self) -> Holders:
        return holders_of_delegation(self.file.delegation)


_read: Decoder[RegionFile] = Decoder(RegionFile, "region file", MIB)


def holders_of_delegation(delegation: Delegation) -> Holders:
    return Holders(tuple(key_of(key) for key in delegation.keys), delegation.threshold)


def fingerprint(delegation: Delegation) -> str:
    """What two people read to each other: 20 hex digits of the digest of a region's name, keys and threshold. It stays
    the same whatever the region says of itself."""
    text = digest(encode(delegation), b"posthouse.region")[:10].hex()
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def sign_region(
    region: RootRegion, signers: Sequence[CryptoSigner], now_ms: int, before: SignedRegion | None = None,
    *, new_keys: bool = False,
) -> bytes:  # fmt: skip
    """The region file that says `region` after `before`, by the same holders; by all of these keys where there is
    nothing before, or with `new_keys`.

    Raises OperatorError where a key is not one of them, and as `log_keys`; TrustError, ProtocolError for what no reader
    takes."""
    log_keys(region)
    keys = tuple(public_bytes(signer.public_key) for signer in signers)
    delegation = Delegation(region.name, keys, len(keys))
    if before is not None and not new_keys:
        delegation = before.file.delegation
    if not set(keys) <= set(delegation.keys):
        raise OperatorError(f"this key does not sign for region {region.name}", "Use the one that was made with it")
    part = region_part(region, signers, before.version + 1 if before else 1, now_ms + REGION_LIFETIME)
    return encode(RegionFile(_FORMAT, delegation, part))


def read_region_file(data: bytes, name: str) -> SignedRegion:
    """Raises OperatorError, which says `name`, for what does not hold together."""
    try:
        file = _read(data)
        if file.format != _FORMAT:
            raise OperatorError(f"{name} is of format {file.format}", "Install the release that fits it")
        if file.delegation.name != file.part.name:
            raise TrustError(f"it is of {file.delegation.name} and of {file.part.name}")
        holders = holders_of_delegation(file.delegation)
        signed = check_region(file.part, draft_targets(1, {file.part.name: holders}, 0).signed)
    except (ProtocolError, TrustError) as error:
        raise OperatorError(f"{name} is no region file: {error.text}", _AGAIN) from None
    except ValueError as error:  # tuf: a reserved name, a threshold of none
        raise OperatorError(f"{name} is no region file: {error}", _AGAIN) from None
    return SignedRegion(file, decode_statement(file.part.statement), signed.version, ends_ms(signed))


def log_keys(region: RootRegion) -> tuple[VerifierKey, ...]:
    """The keys of its log and of its witness, those that it has. Raises OperatorError for what nobody could use."""
    found = []
    for what, text, kind in (("log", region.log_key, ED25519), ("witness", region.witness_key, COSIGNATURE)):
        if not text:
            continue
        try:
            key = VerifierKey.parse(text)
        except TrustError as error:
            raise OperatorError(f"region {region.name}: its {what} key is none: {error.text}", _VKEY) from None
        if key.kind != kind:
            raise OperatorError(f"region {region.name}: its {what} key is of another kind", _VKEY)
        found.append(key)
    return tuple(found)


def load_region_file(path: Path) -> SignedRegion:
    """Raises OperatorError."""
    try:
        return read_region_file(path.read_bytes(), str(path))
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Give the .region file of `posthouse init region`") from None
