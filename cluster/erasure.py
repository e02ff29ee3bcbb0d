"""Erasure receipts: a store of a cell that a user has left says, signed by its node, that nothing of the user is left.

    signed  = [payload, Ed25519 signature over "posthouse.erasure\\0" ‖ payload, the node's certificate (X.509, DER)]
    payload = [1, user, home version, cell, log id, index, store id, node, Unix ms]

It says: of the log with that id, this store keeps no block below `index`; above it, no envelope is for the user, unless
one came later. It does not say what copies of the disk were made before, nor what its hardware kept of what was
overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cluster.core.linkwire import Peer
from cluster.pki import identify, load_key_pair
from relay.certificates import parse_certificate
from relay.core.codec import Decoder, Struct, encode
from relay.core.mailroom.state import MovedUser, State
from relay.core.shapes import CellName, Hash, LogId, Millis, Name, Signature, StoreId, UInt
from relay.core.trust import Root
from relay.core.trust.signing import verify
from relay.errors import OperatorError, ProtocolError, TrustError
from relay.limits import KIB, MIB
from relay.ports import Journal

_DOMAIN: Final = b"posthouse.erasure\x00"


class Erasure(Struct, frozen=True):
    """What a receipt says. `version` of the home record by which the user is at home elsewhere, as far as that cell
    knows; `below`: an index of its log."""

    format: Literal[1]
    user: Hash
    version: UInt
    cell: CellName
    log: LogId
    below: UInt
    store: StoreId
    node: Name
    at_ms: Millis


class SignedErasure(Struct, frozen=True):
    """A receipt as it is kept and shown."""

    payload: bytes
    signature: Signature
    certificate: bytes


read_erasure: Decoder[Erasure] = Decoder(Erasure, "erasure receipt", KIB)
read_signed: Decoder[SignedErasure] = Decoder(SignedErasure, "erasure receipt", 16 * KIB)


_read_file: Decoder[tuple[bytes, ...]] = Decoder(tuple[bytes, ...], "erasure receipts", MIB)


def read_receipts(path: Path) -> tuple[bytes, ...]:
    """The receipts in a file of `posthouse cell erasure --out`. Raises OperatorError."""
    try:
        return _read_file(path.read_bytes())
    except (OSError, ProtocolError) as error:
        raise OperatorError(f"{path}: {error}", "Get the receipts again") from None


def sign_erasure(erasure: Erasure, key: Ed25519PrivateKey, certificate: bytes) -> bytes:
    """Sign with a node's key."""
    data = encode(erasure)
    return encode(SignedErasure(data, key.sign(_DOMAIN + data), certificate))


def verify_erasure(signed: bytes, root: Root) -> Erasure:
    """Raises BadSignature, TrustError (another node's word), PeerError (a certificate that proves nothing),
    ProtocolError."""
    outer = read_signed(signed)
    erasure = read_erasure(outer.payload)
    peer: Peer = identify(outer.certificate, root)
    public = parse_certificate(outer.certificate, der=True).public_key()
    raw = public.public_bytes_raw() if isinstance(public, Ed25519PublicKey) else b""
    verify(raw, _DOMAIN, outer.payload, outer.signature, "erasure receipt")
    if (peer.cell, peer.node) != (erasure.cell, erasure.node):
        raise TrustError(f"erasure receipt of {erasure.cell}/{erasure.node}, signed by {peer.cell}/{peer.node}")
    return erasure


@dataclass(frozen=True)
class Erasures:
    """The receipts that a running node can give, for users of whom its store has nothing any more. `erased`: the index
    below which nothing is left of its log."""

    state: Callable[[], State]
    journal: Journal
    erased: Callable[[], int]
    node: str
    certificate: Path
    key: Path
    now_ms: Callable[[], int]

    def receipts(self) -> list[bytes]:
        """One for each such user. Raises OperatorError where the node's key cannot be read."""
        state = self.state()
        clean = [moved for _, moved in sorted(state.moved.items()) if self._is_clean(moved)]
        if not clean:
            return []
        key, certificate = load_key_pair(self.key, self.certificate)
        return [sign_erasure(self._of(moved, state), key, certificate) for moved in clean]

    def _is_clean(self, moved: MovedUser) -> bool:
        """All is handed over, and the blocks in which it lay are gone, from the write-ahead log as well."""
        return moved.confirmed and not moved.items and moved.last < self.erased()

    def _of(self, moved: MovedUser, state: State) -> Erasure:
        record, store = moved.record, _store_of(self.journal)
        return Erasure(
            1, record.user, record.version, state.cell, state.log_id, self.erased(), store, self.node, self.now_ms()
        )


def _store_of(journal: Any) -> bytes:
    store: bytes = journal.disk.store.meta.store
    return store
