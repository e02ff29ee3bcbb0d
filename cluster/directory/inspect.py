"""Checking a directory from outside, for `posthouse directory verify`. Pure; the CLI reads the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cluster.links.secure import split_address
from cluster.pki import identify, renewal_of, renewal_of_authority, valid_until_ms
from relay.certificates import parse_certificate
from relay.core.codec import digest
from relay.core.trust import HomeRecord, Root, RootRegion, read_home, verify_chain, verify_root
from relay.errors import PeerError, ProtocolError, TrustError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: where, what came out, and what to do where it does not hold."""

    where: str
    what: str
    ok: bool
    remedy: str = ""


def verify_bundle(
    signed_root: bytes,
    *,
    now_ms: int,
    pinned: bytes | None = None,
    certificates: Mapping[str, bytes] | None = None,
    chains: Mapping[str, Sequence[bytes]] | None = None,
) -> list[Finding]:
    """Check a root document and what hangs on it: node certificates (PEM) and home-record chains (signed, from version
    1), each under the name that findings shall call it by. Whatever the bytes, it reports and raises nothing."""
    try:
        root = verify_root(signed_root, now_ms, pinned)
    except (TrustError, ProtocolError) as error:
        return [Finding("root", error.text, False, error.remedy or "Fetch the root document again, from its keeper")]
    payload = root.payload
    what = f"version {payload.version} of {payload.federation}, signed by {payload.threshold} of {len(payload.keys)}"
    until = f"valid until {_day(payload.expires)}, fresh until {_day(payload.fresh_until)}"
    findings = [Finding("root", f"{what}, {until}", True), *_unique(root)]
    remedy = "Its operator signs it again: posthouse init statement"
    findings += [Finding(f"region {name}", "its statement has expired", False, remedy) for name in payload.lapsed]
    for region in payload.regions:
        findings += _check_region(region, now_ms)
    findings += [_check_certificate(name, pem, root, now_ms) for name, pem in (certificates or {}).items()]
    findings += [_check_chain(name, chain, root, now_ms) for name, chain in (chains or {}).items()]
    return findings


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(min(ms, 253_402_300_799_000) / 1000, UTC):%Y-%m-%d}"


def _authority(region: RootRegion) -> x509.Certificate | None:
    try:
        return parse_certificate(region.authority, der=True)
    except ValueError:
        return None


def _unique(root: Root) -> Iterator[Finding]:
    """One key, one owner: a shared one would let a region speak for another."""
    regions = root.payload.regions
    named = {
        "authority": [digest(_public(region)).hex()[:16] for region in regions],
        "registrar key": [region.registrar_key.hex()[:16] for region in regions],
    }
    for kind, names in named.items():
        for name, count in Counter(names).items():
            if count > 1:
                yield Finding("root", f"{kind} {name} stands there {count} times", False, "Give each its own")


def _public(region: RootRegion) -> bytes:
    authority = _authority(region)
    if authority is None:
        return region.authority
    return authority.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_region(region: RootRegion, now_ms: int) -> Iterator[Finding]:
    where = f"region {region.name}"
    yield _check_authority(where, _authority(region), now_ms)
    for cell in region.cells:
        for node in cell.nodes:
            try:
                split_address(node.link)
            except PeerError as error:
                yield Finding(f"node {cell.name}/{node.name}", error.text, False, error.remedy)


def _check_authority(where: str, authority: x509.Certificate | None, now_ms: int) -> Finding:
    remedy = "Make a new authority and a new root document"
    if authority is None:
        return Finding(where, "its authority is no X.509 certificate", False, remedy)
    try:
        authority.verify_directly_issued_by(authority)
        may_sign = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        may_sign = False
    if not may_sign:
        return Finding(where, "its authority is no self-signed authority certificate", False, remedy)
    until = valid_until_ms(authority)
    if now_ms >= until:
        return Finding(where, f"its authority expired on {_day(until)}", False, renewal_of_authority())
    return Finding(where, f"authority valid until {_day(until)}", True)


def _check_certificate(name: str, pem: bytes, root: Root, now_ms: int) -> Finding:
    remedy = "Issue the node's certificate again"
    try:
        cert = parse_certificate(pem)
        peer = identify(cert.public_bytes(Encoding.DER), root)
    except ValueError:
        return Finding(name, "not a PEM certificate, or of an unknown kind", False, remedy)
    except PeerError as error:
        return Finding(name, error.text, False, error.remedy or remedy)
    until = valid_until_ms(cert)
    if now_ms >= until:
        return Finding(name, f"expired on {_day(until)}", False, renewal_of(peer.node))
    return Finding(name, f"node {peer.cell}/{peer.node}, valid until {_day(until)}", True)


def _check_chain(name: str, chain: Sequence[bytes], root: Root, now_ms: int) -> Finding:
    try:
        user = read_home(chain[0]).user if chain else b""
        record: HomeRecord = verify_chain(chain, root, now_ms, user)
    except (TrustError, ProtocolError) as error:
        return Finding(name, error.text, False, error.remedy or "Ask the home region for the records again")
    what = f"user {record.user.hex()[:8]}… at home in {record.cell}, version {record.version}"
    return Finding(name, f"{what}, {len(record.devices)} device(s), valid until {_day(record.payload.expires)}", True)
