"""A post: what the owner of a broadcast channel says to everybody who was given the channel's secret (ADR 36).

    post    = [header: bin, body: bin, signature]        id = BLAKE2b-256(post)
    header  = [1, channel, version of the terms, number, created, suite]
    body    = nonce (24) ‖ XChaCha20-Poly1305-IETF(key, nonce, padded, associated data = header bytes)
    padded  = content ‖ 0x80 ‖ zeros up to `bucket(len + 1)`; content = [name, data]
    key     = BLAKE2b-256(secret, person "posthouse.posts")

The signature is the owner's over header and body, so that whoever has the secret can read and not write, and so that
relays, too, take nothing but the owner's. `number` is the owner's own count: readers remember it as their place, see by
it what is missing, and need no place in any log. Pure: the caller draws the nonce.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt, crypto_aead_xchacha20poly1305_ietf_encrypt,
)  # fmt: skip
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey

from relay.core.codec import Decoder, Struct, digest, encode, pack
from relay.core.sealing import SUITE, bucket
from relay.core.shapes import EnvelopeBytes, Hash, Millis, Signature, Text, UInt
from relay.core.trust.signing import sign, verify
from relay.errors import BadSignature, ProtocolError
from relay.limits import MAX_ENVELOPE

_POST: Final = b"posthouse.post\x00"
NONCE: Final = 24  # bytes
MAX_NUMBER: Final = 2**62
MAX_TEXT: Final = 96 * 1024  # bytes of one post's content: with header, padding and signature below MAX_ENVELOPE


class PostHeader(Struct, frozen=True):
    """What relays read. `number` counts from 1 in the whole channel, `created` is Unix ms by the owner's clock."""

    format: Literal[1]
    channel: Hash
    version: UInt
    number: Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
    created: Millis
    suite: UInt


class _Post(Struct, frozen=True):
    header: bytes
    body: bytes
    signature: Signature


class Content(Struct, frozen=True):
    """What a post says; `name` for files."""

    name: Text
    data: bytes


_post: Decoder[_Post] = Decoder(_Post, "post", MAX_ENVELOPE)
_header: Decoder[PostHeader] = Decoder(PostHeader, "post header", 256)
_content: Decoder[Content] = Decoder(Content, "post content", MAX_ENVELOPE)


def post_id(post: bytes) -> bytes:
    """The id of a post: BLAKE2b-256 of its bytes."""
    return digest(post)


def read_header(post: EnvelopeBytes) -> PostHeader:
    """Raises ProtocolError where the post or its header is not well formed."""
    return _header(_post(post).header)


def verify_post(post: bytes, owner_key: bytes) -> PostHeader:
    """The header of a post that the owner signed. Raises ProtocolError, BadSignature."""
    read = _post(post)
    verify(owner_key, _POST, pack([read.header, read.body]), read.signature, "post")
    return _header(read.header)


def seal_post(header: PostHeader, content: Content, secret: bytes, nonce: bytes, owner: SigningKey) -> bytes:
    """Seal and sign. `nonce`: 24 fresh random bytes. Raises ProtocolError where it is too large."""
    head, clear = encode(header), encode(content)
    padded = (clear + b"\x80").ljust(bucket(len(clear) + 1), b"\0")
    body = nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(padded, head, nonce, _key(secret))
    post = encode(_Post(head, body, sign(owner, _POST, pack([head, body]))))
    if len(post) > MAX_ENVELOPE:
        raise ProtocolError(f"a post of {len(post)} bytes", f"At most {MAX_ENVELOPE}")
    return post


def open_post(post: bytes, secret: bytes) -> Content:
    """What a post says, to who has the secret that it was sealed with; verify it first. Raises ProtocolError,
    BadSignature (another secret, or bytes that were changed)."""
    read = _post(post)
    if _header(read.header).suite != SUITE:
        raise ProtocolError("a post of another suite", "Only suite 1 is known here: update the software")
    nonce, sealed = read.body[:NONCE], read.body[NONCE:]
    try:
        padded: bytes = crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, read.header, nonce, _key(secret))
    except (CryptoError, ValueError, TypeError):
        raise BadSignature("post: the seal does not hold; it was sealed with another secret, or changed") from None
    clear = padded.rstrip(b"\0")
    if clear[-1:] != b"\x80":
        raise ProtocolError("post: the padding is not well formed")
    return _content(clear[:-1])


def _key(secret: bytes) -> bytes:
    return digest(secret, b"posthouse.posts")
