"""The terms of a broadcast channel, signed by its owner: where its posts lie, for how long, and who may read (ADR 36).

A channel has no list of members. Whoever was given its secret can prove that (`ticket`), and can open what is posted;
the relay knows the public half of the one key only.
"""

from __future__ import annotations

from typing import Final, Literal

from nacl.signing import SigningKey

from relay.core.codec import Decoder, Struct, digest, encode, pack
from relay.core.shapes import CellName, Hash, Key, MaybeHash, Millis, Signature, UInt
from relay.core.trust.signing import sign, verify
from relay.errors import BrokenChain, Rollback, TrustError
from relay.limits import CHANNEL_BYTES_LEAST, KIB, MAX_CHANNEL_BYTES, MAX_CHANNEL_POSTS, MAX_LIFETIME

_TERMS: Final = b"posthouse.channel\x00"
_TICKET: Final = b"posthouse.ticket\x00"


class ChannelTerms(Struct, frozen=True):
    """What the owner signs. `owner_key` is the owner's device key; it and `seed` make the channel's id, so that nobody
    else can sign a version, as with a group (ADR 9). `cell`: the owner's home, where the posts lie. `reader_key`: who
    proves to have its private half may read. The window: a post is kept until it is `keep_ms` old, or until there are
    more than `keep_posts` newer ones, or more than `keep_bytes` of them; `keep_ms` 0 closes the channel."""

    format: Literal[1]
    seed: Hash
    version: UInt
    prev: MaybeHash
    owner_key: Key
    cell: CellName
    reader_key: Key
    keep_ms: Millis
    keep_posts: UInt
    keep_bytes: UInt


class VerifiedTerms(Struct, frozen=True):
    """Terms whose signature held. `channel` is the channel's id."""

    channel: Hash
    digest: Hash
    terms: ChannelTerms
    signed: bytes

    @property
    def version(self) -> int:
        return self.terms.version


class _Signed(Struct, frozen=True):
    payload: bytes
    signature: Signature


_signed: Decoder[_Signed] = Decoder(_Signed, "signed channel terms", 2 * KIB)
_terms: Decoder[ChannelTerms] = Decoder(ChannelTerms, "channel terms", KIB)


def channel_id(owner_key: bytes, seed: bytes) -> bytes:
    """A channel's id: the digest of its owner's device key and 32 random bytes."""
    return digest(owner_key + seed, b"posthouse.chan")


def sign_terms(terms: ChannelTerms, owner: SigningKey) -> bytes:
    """Sign terms with the owner's device key."""
    data = encode(terms)
    return encode(_Signed(data, sign(owner, _TERMS, data)))


def verify_terms(signed: bytes, prev: VerifiedTerms | None = None) -> VerifiedTerms:
    """Verify terms by the owner's key, to which the channel's id is bound; with `prev`, also that they follow.
    Raises TrustError and its kinds, ProtocolError."""
    outer = _signed(signed)
    terms = _terms(outer.payload)
    verify(terms.owner_key, _TERMS, outer.payload, outer.signature, "channel terms")
    if terms.version < 1 or len(terms.prev) != (0 if terms.version == 1 else 32):
        raise BrokenChain("channel terms: prev is empty in version 1, and a digest from then on")
    if terms.keep_ms > MAX_LIFETIME or not 1 <= terms.keep_posts <= MAX_CHANNEL_POSTS:
        raise TrustError(f"channel terms: at most {MAX_CHANNEL_POSTS} posts are kept, and for {MAX_LIFETIME} ms")
    if not CHANNEL_BYTES_LEAST <= terms.keep_bytes <= MAX_CHANNEL_BYTES:
        raise TrustError(f"channel terms: from {CHANNEL_BYTES_LEAST} to {MAX_CHANNEL_BYTES} bytes are kept")
    verified = VerifiedTerms(channel_id(terms.owner_key, terms.seed), digest(outer.payload), terms, signed)
    if prev is not None:
        _check_follows(verified, prev)
    return verified


def _check_follows(verified: VerifiedTerms, prev: VerifiedTerms) -> None:
    terms = verified.terms
    if verified.channel != prev.channel or terms.cell != prev.terms.cell:
        raise BrokenChain("channel terms: another channel's, or of another cell")
    if terms.version <= prev.version:
        raise Rollback(f"channel terms: version {terms.version} after {prev.version}")
    if terms.version == prev.version + 1 and terms.prev != prev.digest:
        raise BrokenChain(f"channel terms: version {terms.version} does not follow {prev.version}")


# --- who may read --------------------------------------------------------------------------------
def reader_of(secret: bytes) -> SigningKey:
    """The key that subscribers sign tickets with, from the secret of a channel (32 bytes)."""
    return SigningKey(digest(secret, b"posthouse.reader"))


def make_ticket(secret: bytes, channel: bytes, nonce: bytes, device: bytes) -> bytes:
    """What proves, on the one connection whose CHALLENGE had `nonce`, that `device` was given the secret. 64 bytes."""
    return sign(reader_of(secret), _TICKET, _ticket(channel, nonce, device))


def verify_ticket(reader_key: bytes, channel: bytes, nonce: bytes, device: bytes, ticket: bytes) -> None:
    """Raises BadSignature."""
    verify(reader_key, _TICKET, _ticket(channel, nonce, device), ticket, "channel ticket")


def _ticket(channel: bytes, nonce: bytes, device: bytes) -> bytes:
    return digest(pack([channel, nonce, device]), b"posthouse.ticket")
