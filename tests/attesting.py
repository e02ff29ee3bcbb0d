"""A federation of two regions with real certificates, whose nodes can be made to sign anything about a receipt."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from nacl.signing import SigningKey

from cluster.pki import issue_node, make_authority
from relay.core.codec import digest
from relay.core.receipts import Attestation, Word, sign_statements
from relay.core.trust import Root, RootCell, RootNode, RootRegion
from tests.roots import verified_root

NOW = 1_800_000_000_000  # Unix ms
DAY = 86_400_000
NODES = ("n1", "n2", "n3")
AUTHORITIES = {region: make_authority(region, now_ms=NOW - DAY) for region in ("norden", "sueden")}


def make_root(nodes: tuple[str, ...] = NODES) -> Root:
    """norden/1 and sueden/1, each with these nodes."""
    public = bytes(SigningKey(bytes(32)).verify_key)
    listed = tuple(RootNode(name, "127.0.0.1:1", ()) for name in nodes)
    regions = [
        RootRegion(name, pair[0], public, (RootCell(f"{name}/1", listed),)) for name, pair in AUTHORITIES.items()
    ]
    return verified_root(regions, NOW + 4_000 * DAY)


class Signer:
    """A node with its key and certificate, and a store."""

    def __init__(self, region: str, node: str, *, now_ms: int = NOW - DAY, by: str = "", cell: str = "") -> None:
        authority, authority_key = AUTHORITIES[by or region]
        name = f"{region}/1"
        pem, private = issue_node(authority, authority_key, region, cell or name, node, ["127.0.0.1"], now_ms=now_ms)
        self.node = node
        self.certificate = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
        self.store = digest(f"{region} {node}".encode())[:16]
        key = load_pem_private_key(private, None)
        assert isinstance(key, Ed25519PrivateKey)
        self.key = key

    def attest(self, statements: Sequence[bytes], store: bytes = b"") -> Word:
        return sign_statements(statements, store or self.store, self.certificate, self.key.sign)

    def attestation(self, statement: bytes) -> Attestation:
        """Of one statement alone."""
        return self.attest([statement]).attestation(0)
