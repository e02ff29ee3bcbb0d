"""What a node's certificate says, and whether a region's authority vouches for it: X.509 v3 with Ed25519 keys.

A node's identity is one URI in its subjectAltName, `posthouse://region/cell-name/node`. Whom a certificate may speak
for is decided by the authority that the root names for the *claimed* region, and by nothing else.
"""

from __future__ import annotations

import ssl
from collections import Counter
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl.bindings import crypto_core_ed25519_is_valid_point

from relay.core.receipts import Certified
from relay.core.trust import Root, RootRegion
from relay.errors import NotCertified, TrustError

SCHEME: Final = "posthouse"


def parse_certificate(data: bytes, *, der: bool = False) -> x509.Certificate:
    """A certificate (PEM, or `der`) with a key of a kind that is known here. Raises ValueError, where the parser has
    errors of more kinds: also a key's, when that is asked for."""
    try:
        cert = x509.load_der_x509_certificate(data) if der else x509.load_pem_x509_certificate(data)
        cert.public_key()
    except (x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise ValueError(str(error)) from error
    return cert


def claimed_node(cert: x509.Certificate) -> tuple[str, str, str]:
    """(region, cell, node) of the one posthouse URI. Raises ValueError (x509.ExtensionNotFound is translated)."""
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ValueError("no subjectAltName") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    ours = [uri for uri in uris if uri.startswith(f"{SCHEME}://")]
    if len(ours) != 1 or ours[0].count("/") != 4:
        raise ValueError("not exactly one posthouse URI")
    region, name, node = ours[0].removeprefix(f"{SCHEME}://").split("/")
    return region, f"{region}/{name}", node


def _is_key(cert: x509.Certificate) -> bool:
    """OpenSSL takes Ed25519 keys of small order, for which everybody can sign."""
    key = cert.public_key()
    return not isinstance(key, Ed25519PublicKey) or crypto_core_ed25519_is_valid_point(key.public_bytes_raw())


def issued_by(cert: x509.Certificate, region: RootRegion) -> bool:
    """Did the region's authority, as the root has it, issue it? With keys that are none, anybody could have."""
    try:
        authority = parse_certificate(region.authority, der=True)
        if not (_is_key(authority) and _is_key(cert)):
            return False
        cert.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def usable_authorities(root: Root) -> dict[str, bytes]:
    """The authorities (DER) that TLS can tell apart, by region. What one region says of itself must not cost the others
    their links: left out is what is no certificate, and, where several have one name, what is not marked by its own
    key, since TLS finds an issuer by name and mark, and would take one region's for another's."""
    found, scratch = dict[str, x509.Certificate](), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for region in root.payload.regions:
        try:
            cert = parse_certificate(region.authority, der=True)
            scratch.load_verify_locations(cadata=region.authority)
        except (ValueError, ssl.SSLError):
            continue
        found[region.name] = cert
    names = Counter(cert.subject for cert in found.values())
    told = {region.name: region.authority for region in root.payload.regions}
    return {name: told[name] for name, cert in found.items() if names[cert.subject] == 1 or _is_marked(cert)}


def _is_marked(cert: x509.Certificate) -> bool:
    """Is its subject key identifier the one of its key? (RFC 5280, 4.2.1.2, method 1.)"""
    try:
        said = cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return said == x509.SubjectKeyIdentifier.from_public_key(cert.public_key())


def certify(certificate: bytes, root: Root) -> Certified:
    """relay.core.receipts.Certify: the node that a certificate (DER) proves. It holds as long as itself and its
    authority do. Raises NotCertified."""
    try:
        cert = parse_certificate(certificate, der=True)
        region, cell, node = claimed_node(cert)
        key = cert.public_key()
    except Exception as error:  # the parser has errors of many kinds; foreign bytes must not get past them
        raise NotCertified("not the certificate of a Posthouse node", "Ask the cell for the receipt again") from error
    try:
        named = root.region(region)
    except TrustError as error:
        raise NotCertified(f"a certificate of an unknown region: {error.text}") from error
    if not issued_by(cert, named) or not isinstance(key, Ed25519PublicKey):
        raise NotCertified(f"the certificate of {cell}/{node} was not issued by the authority of {region}")
    authority = parse_certificate(named.authority, der=True)
    start = max(cert.not_valid_before_utc, authority.not_valid_before_utc)
    until = min(cert.not_valid_after_utc, authority.not_valid_after_utc)
    raw = key.public_bytes_raw()
    return Certified(region, cell, node, raw, int(start.timestamp()) * 1000, int(until.timestamp()) * 1000)
