"""Certificates: a region's authority, its nodes, and the TLS contexts that links and gateways are served with.

X.509 v3 (RFC 5280) with Ed25519 keys (RFC 8410). A node's identity is one URI in its subjectAltName,
`posthouse://region/cell-name/node`; host names and addresses stand beside it for the clients' wss. Whom a certificate
may speak for is decided in `admit`, by the authority that the root names for the *claimed* region, and by nothing
else: a context that trusts several authorities must not let one region's vouch for another's node.
"""

from __future__ import annotations

import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.core.linkwire import Peer
from relay.certificates import SCHEME, claimed_node, issued_by, parse_certificate, usable_authorities
from relay.core.receipts import Word, sign_statements
from relay.core.trust import Root
from relay.errors import OperatorError, PeerError, TrustError
from relay.gateway.tls import TlsStream

AUTHORITY_LIFETIME: Final = timedelta(days=3_653)  # ten years: a new one means a new root
NODE_LIFETIME: Final = timedelta(days=365)
_SKEW: Final = timedelta(hours=1)  # certificates start this long ago, for clocks that are behind


# --- making --------------------------------------------------------------------------------------
def make_authority(region: str, *, now_ms: int | None = None) -> tuple[bytes, bytes]:
    """(certificate DER, private key PEM) of a new authority for `region`."""
    key = Ed25519PrivateKey.generate()
    return _authority(_name(f"Posthouse authority of {region}"), key, now_ms), _pem(key)


def renew_authority(authority_cert: bytes, authority_key: bytes, *, now_ms: int | None = None) -> bytes:
    """A new certificate (DER) for an authority (certificate DER, key PEM), expired or not: the same name and key, so
    that what it signed holds under the old one and the new one alike. Raises OperatorError."""
    authority, signer = _pair(authority_cert, authority_key)
    return _authority(authority.subject, signer, now_ms)


def issue_node(
    authority_cert: bytes,
    authority_key: bytes,
    region: str,
    cell: str,
    node: str,
    hosts: list[str] | tuple[str, ...],
    *,
    now_ms: int | None = None,
) -> tuple[bytes, bytes]:
    """(certificate PEM, private key PEM) of a node, by the authority (certificate DER, key PEM). `hosts`: names and IP
    addresses under which clients reach it. Raises OperatorError where the parts do not belong together, or the
    authority has expired."""
    if not cell.startswith(region + "/"):
        raise OperatorError(f"cell {cell} is not one of region {region}", f"Name it {region}/…")
    key = Ed25519PrivateKey.generate()
    subject = _name(f"Posthouse node {cell}/{node}")
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{SCHEME}://{cell}/{node}"), *map(_host, hosts)]
    pair = _pair(authority_cert, authority_key)
    return _node(pair, key.public_key(), subject, x509.SubjectAlternativeName(names), now_ms), _pem(key)


def renew_node(
    certificate: bytes, authority_cert: bytes, authority_key: bytes, peer: Peer, *, now_ms: int | None = None
) -> bytes:
    """A new certificate (PEM) for the node `peer`, whose old one (PEM, expired or not) the authority (certificate DER,
    key PEM) issued: the same names and key, another year. Raises OperatorError, which does not name the files."""
    authority, signer = _pair(authority_cert, authority_key)
    try:
        old = parse_certificate(certificate)
        old.verify_directly_issued_by(authority)
        claimed = Peer(*claimed_node(old))
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except InvalidSignature:
        what = f"the certificate was not issued by the authority of {peer.region}"
        raise OperatorError(what, "Use the one that the node has on its server") from None
    except (ValueError, TypeError) as error:
        what = f"not the certificate of a Posthouse node of {peer.region}"
        raise OperatorError(what, "Use the one that the node has on its server") from error
    if claimed != peer:
        what = f"the certificate is of {claimed.cell}/{claimed.node}, not of {peer.cell}/{peer.node}"
        raise OperatorError(what, "Use the one that the node has on its server")
    key = old.public_key()
    assert isinstance(key, Ed25519PublicKey)  # the authority signs no others
    return _node((authority, signer), key, old.subject, names, now_ms)


def _pair(authority_cert: bytes, authority_key: bytes) -> tuple[x509.Certificate, Ed25519PrivateKey]:
    try:
        authority = parse_certificate(authority_cert, der=True)
    except ValueError as error:
        what = "the region's authority is no certificate"
        raise OperatorError(what, "Use the region file that `posthouse init` wrote") from error
    signer = _private_key(authority_key, "the authority's key")
    if _raw(signer.public_key()) != _raw(authority.public_key()):
        raise OperatorError("the authority's key does not belong to its certificate", "Use the pair made together")
    return authority, signer


def _authority(name: x509.Name, key: Ed25519PrivateKey, now_ms: int | None) -> bytes:
    until = _time(now_ms) + AUTHORITY_LIFETIME
    builder = _builder(name, name, key.public_key(), key.public_key(), until, now_ms)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
    return builder.sign(key, None).public_bytes(Encoding.DER)


def _node(
    pair: tuple[x509.Certificate, Ed25519PrivateKey],
    key: Ed25519PublicKey,
    subject: x509.Name,
    names: x509.SubjectAlternativeName,
    now_ms: int | None,
) -> bytes:
    """A node's certificate ends with its authority's: nobody believes it for longer."""
    authority, signer = pair
    now, end = _time(now_ms), authority.not_valid_after_utc
    if now >= end:
        remedy = "Renew it first: `posthouse init authority`"
        raise OperatorError(f"the authority's own certificate expired on {end:%Y-%m-%d}", remedy)
    builder = _builder(subject, authority.subject, key, signer.public_key(), min(now + NODE_LIFETIME, end), now_ms)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, None).public_bytes(Encoding.PEM)


def renewal_of(node: str = "NAME") -> str:
    """What to do about a node's certificate before or after its end."""
    return f"Renew it with `posthouse init certificate {node}` where the authority's key is, and copy it here"


def renewal_of_authority() -> str:
    """The same for an authority's."""
    return "Renew it with `posthouse init authority` where its key is, and have the root signed and joined again"


def valid_until_ms(cert: x509.Certificate) -> int:
    """Unix ms from which on nobody believes it."""
    return int(cert.not_valid_after_utc.timestamp()) * 1000


def _time(now_ms: int | None) -> datetime:
    return datetime.now(UTC) if now_ms is None else datetime.fromtimestamp(now_ms / 1000, UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # RFC 5280 ub-common-name


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Ed25519PublicKey,
    issuer_key: Ed25519PublicKey,
    until: datetime,
    now_ms: int | None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), _time(now_ms) - _SKEW, until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates, key_cert_sign=sign_certificates, crl_sign=sign_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _raw(key: object) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw) if isinstance(key, Ed25519PublicKey) else b""


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _private_key(pem: bytes, what: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise OperatorError(f"{what} is not an unencrypted PEM private key", "Issue the node's pair again") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise OperatorError(f"{what} is not an Ed25519 key", "Issue the node's pair again")
    return key


# --- whom a certificate speaks for ---------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Claim:
    """Who somebody says to be, and the region whose authority vouches for it ("": none that the root names), by the
    certificate (DER; empty where there is none)."""

    peer: Peer
    vouched_by: str
    certificate: bytes = b""


def read_claim(certificate: bytes, root: Root) -> Claim:
    """What a certificate (DER) claims: its URI. Dates are the TLS layer's to check. Raises PeerError."""
    try:
        cert = x509.load_der_x509_certificate(certificate)
        peer = Peer(*claimed_node(cert))
    except Exception as error:  # the parser has errors of many kinds; a peer's bytes must not get past them
        raise PeerError("not the certificate of a Posthouse node", "Issue it with posthouse init") from error
    own_first = sorted(root.payload.regions, key=lambda region: region.name != peer.region)
    return Claim(peer, next((region.name for region in own_first if issued_by(cert, region)), ""), certificate)


def admit_again(claim: Claim, root: Root) -> Peer:
    """`admit`, where the claim was read by another root document, or may have been. Raises PeerError."""
    return admit(read_claim(claim.certificate, root) if claim.certificate else claim, root)


def admit(claim: Claim, root: Root) -> Peer:
    """The node that a claim proves: vouched for by the claimed region's own authority, listed in the root. Raises
    PeerError."""
    peer = claim.peer
    try:
        root.region(peer.region)
    except TrustError as error:
        raise PeerError(f"a certificate of an unknown region: {error.text}") from error
    if claim.vouched_by != peer.region:
        by = f"region {claim.vouched_by}" if claim.vouched_by else "nobody in this federation"
        raise PeerError(f"a certificate for {peer.cell}/{peer.node} was issued by the authority of {by}")
    cell = root.cell(peer.cell)
    if cell is None or not peer.cell.startswith(f"{peer.region}/") or peer.node not in {n.name for n in cell.nodes}:
        raise PeerError(f"the root does not list {peer.cell}/{peer.node}", "Compare the root documents of both sides")
    return peer


def identify(certificate: bytes, root: Root) -> Peer:
    """The node that a certificate (DER) proves: `admit` of what it claims. Raises PeerError."""
    return admit(read_claim(certificate, root), root)


# --- a node's own --------------------------------------------------------------------------------
@dataclass(frozen=True)
class NodeCredentials:
    """A node's certificate and key, checked against the root, as the TLS contexts that it needs (TLS 1.3 only)."""

    peer: Peer
    root: Root = field(repr=False)
    until_ms: int  # Unix ms: the certificate's end
    authority_until_ms: int  # that of the region's authority, as the root has it
    certificate: bytes = field(repr=False)  # DER
    links_server: ssl.SSLContext = field(repr=False)  # for inbound links: a client certificate is required
    clients_server: ssl.SSLContext = field(repr=False)  # for clients' wss: they prove device keys, not certificates
    _links_client: dict[str, ssl.SSLContext] = field(repr=False)
    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def load(cls, cert_path: Path, key_path: Path, root: Root, *, now_ms: int | None = None) -> NodeCredentials:
        """Raises OperatorError where a file is missing, damaged, expired, readable by everybody, or of another node."""
        cert = _load_certificate(cert_path, now_ms)
        key = _private_key(_read(key_path, private=True), str(key_path))
        if _raw(key.public_key()) != _raw(cert.public_key()):
            raise OperatorError(f"{key_path} is not the key of {cert_path}", "Use the pair that was issued together")
        try:
            peer = identify(cert.public_bytes(Encoding.DER), root)
        except PeerError as error:
            remedy = error.remedy or "Use the certificate that this federation's region issued for this node"
            raise OperatorError(f"{cert_path}: {error.text}", remedy) from error
        pair, authorities = (cert_path, key_path), usable_authorities(root)
        return cls(
            peer=peer,
            root=root,
            until_ms=valid_until_ms(cert),
            authority_until_ms=valid_until_ms(x509.load_der_x509_certificate(root.region(peer.region).authority)),
            certificate=cert.public_bytes(Encoding.DER),
            links_server=_context(ssl.PROTOCOL_TLS_SERVER, pair, list(authorities.values())),
            clients_server=_context(ssl.PROTOCOL_TLS_SERVER, pair, []),
            _links_client={
                name: _context(ssl.PROTOCOL_TLS_CLIENT, pair, [authority]) for name, authority in authorities.items()
            },
            _key=key,
        )

    @property
    def strangers(self) -> list[str]:
        """The regions whose nodes cannot be met: what the root has as their authority cannot be used."""
        return [one.name for one in self.root.payload.regions if one.name not in self._links_client]

    def attest(self, statements: Sequence[bytes], store: bytes) -> Word:
        """This node's word for statements of receipts (relay.core.receipts). The key signs nothing else but TLS."""
        return sign_statements(statements, store, self.certificate, self._key.sign)

    def links_client(self, region: str) -> ssl.SSLContext:
        """For dialling a cell of `region`: trusts that region's authority and no other. Raises PeerError."""
        try:
            return self._links_client[region]
        except KeyError:
            raise PeerError(f"the root has no authority for region {region!r}", "Check the root document") from None

    async def secure_client(self, transport: trio.abc.Stream, region: str) -> tuple[trio.abc.Stream, Claim]:
        """TLS towards a cell of `region`, and who is there. See cluster.links.secure.Security."""
        return await self._shake(TlsStream(transport, self.links_client(region), server_side=False))

    async def secure_server(self, transport: trio.abc.Stream) -> tuple[trio.abc.Stream, Claim]:
        """TLS towards who dialled, and who that is. See cluster.links.secure.Security."""
        return await self._shake(TlsStream(transport, self.links_server))

    async def _shake(self, stream: TlsStream) -> tuple[trio.abc.Stream, Claim]:
        await stream.do_handshake()
        return stream, read_claim(stream.peer_certificate() or b"", self.root)


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        if private and stat.S_IMODE(path.stat().st_mode) & 0o007:
            raise OperatorError(f"{path} may be read by everybody on this machine", f"Run: chmod 600 {path}")
        return path.read_bytes()
    except OSError as error:
        remedy = "Check [paths] in the config, or issue it again with posthouse init"
        raise OperatorError(f"cannot read {path}: {error.strerror}", remedy) from error


def _load_certificate(path: Path, now_ms: int | None) -> x509.Certificate:
    try:
        cert = parse_certificate(_read(path))
    except ValueError as error:
        what = f"{path} is not a PEM certificate, or of an unknown kind"
        raise OperatorError(what, "Issue it again with posthouse init") from error
    now = _time(now_ms)
    if now >= cert.not_valid_after_utc:
        raise OperatorError(f"{path} expired on {cert.not_valid_after_utc:%Y-%m-%d}", renewal_of())
    if now < cert.not_valid_before_utc:
        raise OperatorError(f"{path} is valid from {cert.not_valid_before_utc:%Y-%m-%d} on", "Set this machine's clock")
    return cert


def load_key_pair(key_path: Path, certificate_path: Path) -> tuple[Ed25519PrivateKey, bytes]:
    """A node's key, and its certificate (DER), to sign its own word with. Raises OperatorError."""
    try:
        key = load_pem_private_key(key_path.read_bytes(), None)
        certificate = parse_certificate(certificate_path.read_bytes()).public_bytes(Encoding.DER)
    except (OSError, ValueError) as error:
        raise OperatorError(f"{key_path}: {error}", "The node's own key is needed to sign") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise OperatorError(f"{key_path} is no Ed25519 key", "Issue it with posthouse init")
    return key, certificate


def asking_context(authority: bytes) -> ssl.SSLContext:
    """For asking a server of one region: trusts its authority (DER) only; no certificate of one's own."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, None, [authority])


def serving_context(cert_path: Path, key_path: Path) -> ssl.SSLContext:
    """For a server that asks nobody for a certificate. Raises OperatorError."""
    _load_certificate(cert_path, None), _private_key(_read(key_path, private=True), str(key_path))
    return _context(ssl.PROTOCOL_TLS_SERVER, (cert_path, key_path), [])


def _context(protocol: int, pair: tuple[Path, Path] | None, authorities: list[bytes]) -> ssl.SSLContext:
    """Peers are known by the URI in their certificates (`identify`), not by the address that they are dialled at."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if pair is not None:
        context.load_cert_chain(*pair)
    if authorities:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        for authority in authorities:
            try:
                context.load_verify_locations(cadata=authority)
            except (ssl.SSLError, ValueError) as error:
                remedy = "Look with posthouse directory verify"
                raise OperatorError("the root names an authority that is no certificate", remedy) from error
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # every link shows its certificate anew; a ticket would outlive a changed root
    return context
