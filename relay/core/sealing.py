"""Suite 1: how the body of an envelope is sealed, and opened again. Pure: the caller draws `entropy`.

    mailbox body = [[wrap …], nonce, ciphertext]        roster body = [key id, nonce, ciphertext]
    wrap         = first 4 bytes of the device id ‖ sealed box (libsodium crypto_box_seal) to the device's X25519 key
                   of: content key (32) ‖ first counter that this device should expect in this stream (8, big-endian)
    ciphertext   = XChaCha20-Poly1305-IETF(content key or sender key, nonce, padded, associated data = header bytes)
    padded       = signed ‖ 0x80 ‖ zeros up to `bucket(len(signed) + 1)`
    signed       = [inner, Ed25519 of the sender device over "posthouse.inner\\0" ‖ BLAKE2b-256(header) ‖ inner]
    inner        = [1, user, device, region, conversation, counter, kind, sent_ms, content]

The signature covers the header, so that a recipient cannot pass an envelope on as if it had been sealed for somebody
else (surreptitious forwarding). That the device is enrolled in the user's home record is for the caller to check.
Padding: never below 512 bytes, above that Padmé (Nikitin et al., PETS 2019): at most 12 % more, and a bucket tells
O(log log n) bits of the size. Sizes of roster envelopes do not depend on the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Literal

from msgspec import Meta
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt, crypto_aead_xchacha20poly1305_ietf_encrypt, crypto_box,
    crypto_box_seal_open, crypto_box_seed_keypair, crypto_scalarmult_base,
)  # fmt: skip
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import SigningKey, VerifyKey

from relay.core.codec import Decoder, Struct, digest, encode
from relay.core.envelope import Header, To, join, read_header, split
from relay.core.shapes import Hash, Key, Millis, Name, UInt
from relay.core.trust import Device
from relay.errors import BadSignature, ProtocolError
from relay.limits import MAX_DEVICES, MAX_ENVELOPE

SUITE = 1
SMALLEST_BUCKET = 512  # bytes; a short text and its acknowledgement look the same
_DOMAIN = b"posthouse.inner\x00"
_TAG = 4  # bytes of the device id before a wrap: the cell knows a user's devices anyway, and 32 trials cost 2 ms
_NONCE = 24
MAX_COUNTER = 2**62  # of an inner message; counting on from it fits a signed 64-bit integer, as stores have them


class Inner(Struct):
    """What a device says, signed: who, from which region, in which conversation, under which counter (from 1)."""

    format: Literal[1]
    user: Hash
    device: Key
    region: Name
    conversation: Hash
    counter: Annotated[int, Meta(ge=1, le=MAX_COUNTER)]
    kind: UInt
    sent_ms: Millis
    content: bytes


class _Signed(Struct):
    inner: bytes
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class _MailboxBody(Struct):
    wraps: Annotated[tuple[bytes, ...], Meta(max_length=MAX_DEVICES)]
    nonce: Annotated[bytes, Meta(min_length=_NONCE, max_length=_NONCE)]
    ciphertext: bytes


class _RosterBody(Struct):
    key_id: Annotated[bytes, Meta(min_length=16, max_length=16)]
    nonce: Annotated[bytes, Meta(min_length=_NONCE, max_length=_NONCE)]
    ciphertext: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened envelope whose inner signature held. `first` is 0 where the envelope does not say (a roster's)."""

    header: Header
    inner: Inner
    raw: bytes  # the inner message's exact bytes
    first: int


_mailbox: Decoder[_MailboxBody] = Decoder(_MailboxBody, "mailbox body", MAX_ENVELOPE)
_roster: Decoder[_RosterBody] = Decoder(_RosterBody, "roster body", MAX_ENVELOPE)
_signed: Decoder[_Signed] = Decoder(_Signed, "signed inner message", MAX_ENVELOPE)
read_inner: Decoder[Inner] = Decoder(Inner, "inner message", MAX_ENVELOPE)


def bucket(size: int) -> int:
    """The padded size, bytes, for `size` bytes: 512, or the next Padmé size."""
    if size <= SMALLEST_BUCKET:
        return SMALLEST_BUCKET
    exponent = size.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (size + mask) & ~mask


def key_id(sender_key: bytes) -> bytes:
    """The 16-byte id under which a sender key is named in the clear."""
    return digest(sender_key, b"posthouse.keyid")[:16]


def make_header(kind: To, to: bytes, to_version: int, created: int, expires: int) -> bytes:
    """The exact header bytes of a suite 1 envelope; times in Unix ms."""
    return encode(Header(1, kind, to, to_version, created, expires, SUITE))


def seal_mailbox(
    header: bytes, inner: Inner, signing: SigningKey, devices: Sequence[tuple[Device, int]], entropy: bytes
) -> bytes:
    """The envelope for `devices`, each with the first counter it should expect in this stream.

    `entropy` is 32 fresh random bytes: content key, nonce and the wraps' ephemeral keys are derived from it."""
    content_key, nonce = _draw(entropy, 0), _draw(entropy, 1)[:_NONCE]
    wraps = tuple(
        device.id[:_TAG] + _sealed_box(content_key + first.to_bytes(8, "big"), device.encryption, _draw(entropy, 2 + i))
        for i, (device, first) in enumerate(devices)
    )
    return _joined(header, _MailboxBody(wraps, nonce, _encrypt(header, inner, signing, nonce, content_key)))


def seal_roster(header: bytes, inner: Inner, signing: SigningKey, sender_key: bytes, entropy: bytes) -> bytes:
    """The envelope for everybody who has `sender_key` (32 bytes). `entropy` is 32 fresh random bytes."""
    nonce = _draw(entropy, 1)[:_NONCE]
    return _joined(header, _RosterBody(key_id(sender_key), nonce, _encrypt(header, inner, signing, nonce, sender_key)))


def open_mailbox(envelope: bytes, device: bytes, private: bytes) -> Opened | None:
    """Open a mailbox envelope with the device's X25519 private key; None where it holds no wrap for this device.

    Raises ProtocolError (not well formed) and BadSignature (changed, or not signed by the device it names)."""
    header, body_bytes = split(envelope)
    body = _mailbox(body_bytes)
    public = _public(private)
    for wrap in body.wraps:
        if wrap[:_TAG] != device[:_TAG]:
            continue
        try:
            opened: bytes = crypto_box_seal_open(wrap[_TAG:], public, private)
        except (CryptoError, ValueError, TypeError):
            continue  # another device whose id begins alike
        first = int.from_bytes(opened[32:], "big")
        if len(opened) != 40 or first > MAX_COUNTER:
            raise ProtocolError("mailbox body: a wrap of the wrong length, or with a counter out of range")
        return _opened(envelope, header, body.nonce, body.ciphertext, opened[:32], first)
    return None


def roster_key_id(envelope: bytes) -> bytes:
    """Which sender key a roster envelope was sealed with. Raises ProtocolError."""
    return _roster(split(envelope)[1]).key_id


def open_roster(envelope: bytes, sender_key: bytes) -> Opened:
    """Open a roster envelope. Raises ProtocolError and BadSignature."""
    header, body_bytes = split(envelope)
    body = _roster(body_bytes)
    if body.key_id != key_id(sender_key):
        raise BadSignature("a group envelope that names another sender key")
    return _opened(envelope, header, body.nonce, body.ciphertext, sender_key, 0)


# --- the parts -----------------------------------------------------------------------------------
def _draw(entropy: bytes, number: int) -> bytes:
    assert len(entropy) == 32
    return blake2b(number.to_bytes(4, "big"), digest_size=32, key=entropy, person=b"posthouse.draw").digest()


@lru_cache(maxsize=64)
def _public(private: bytes) -> bytes:
    public: bytes = crypto_scalarmult_base(private)
    return public


def _sealed_box(message: bytes, public: bytes, seed: bytes) -> bytes:
    """libsodium's crypto_box_seal with a given ephemeral seed."""
    ephemeral, secret = crypto_box_seed_keypair(seed)
    nonce = blake2b(ephemeral + public, digest_size=_NONCE).digest()
    sealed: bytes = ephemeral + crypto_box(message, nonce, public, secret)
    return sealed


def _encrypt(header: bytes, inner: Inner, signing: SigningKey, nonce: bytes, key: bytes) -> bytes:
    raw = encode(inner)
    signature = signing.sign(_DOMAIN + digest(header) + raw).signature
    signed = encode(_Signed(raw, signature))
    padded = (signed + b"\x80").ljust(bucket(len(signed) + 1), b"\0")
    sealed: bytes = crypto_aead_xchacha20poly1305_ietf_encrypt(padded, header, nonce, key)
    return sealed


def _joined(header: bytes, body: Struct) -> bytes:
    envelope = join(header, encode(body))
    if len(envelope) > MAX_ENVELOPE:
        raise ProtocolError(f"an envelope of {len(envelope)} bytes", f"At most {MAX_ENVELOPE}: send it in chunks")
    return envelope


def _opened(envelope: bytes, header: bytes, nonce: bytes, ciphertext: bytes, key: bytes, first: int) -> Opened:
    clear = read_header(envelope)
    if clear.suite != SUITE:
        raise ProtocolError(f"an envelope of suite {clear.suite}", "Only suite 1 is known here: update the software")
    try:
        padded: bytes = crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, header, nonce, key)
    except (CryptoError, ValueError, TypeError):
        raise BadSignature("envelope: the seal does not hold; header or body was changed") from None
    signed_bytes = padded.rstrip(b"\0")
    if signed_bytes[-1:] != b"\x80":
        raise ProtocolError("envelope: the padding is not well formed")
    signed = _signed(signed_bytes[:-1])
    inner = read_inner(signed.inner)
    try:
        VerifyKey(inner.device).verify(_DOMAIN + digest(header) + signed.inner, signed.signature)
    except (BadSignatureError, ValueError):
        raise BadSignature("envelope: the sender device's signature does not hold") from None
    return Opened(clear, inner, signed.inner, first)


# --- for the protocol's text ---------------------------------------------------------------------
def test_vectors() -> list[tuple[str, str]]:
    """(name, hex) pairs that an implementation in another language can be checked against."""
    signing = SigningKey(bytes(range(32)))
    pairs = [crypto_box_seed_keypair(bytes([i]) * 32) for i in (1, 2)]
    devices = [Device(bytes([0xD0 + i]) * 32, public, 1, b"", b"") for i, (public, _) in enumerate(pairs)]
    inner = Inner(1, b"\x11" * 32, bytes(signing.verify_key), "norden", b"\x22" * 32, 7, 1, 1_700_000_000_000, b"hello")
    mailbox_header = make_header(To.MAILBOX, b"\x33" * 32, 2, 1_700_000_000_001, 1_700_000_060_001)
    roster_header = make_header(To.ROSTER, b"\x44" * 32, 3, 1_700_000_000_001, 1_700_000_060_001)
    expecting = list(zip(devices, (5, 7), strict=True))
    entropy, sender_key = b"\x55" * 32, b"\x66" * 32
    vectors = [
        ("sender device seed", bytes(signing)),
        ("device 1 id", devices[0].id), ("device 1 X25519 private", pairs[0][1]), ("device 1 first counter", b"\x05"),
        ("device 2 id", devices[1].id), ("device 2 X25519 private", pairs[1][1]), ("device 2 first counter", b"\x07"),
        ("inner", encode(inner)), ("entropy", entropy),
        ("mailbox header", mailbox_header),
        ("mailbox envelope", seal_mailbox(mailbox_header, inner, signing, expecting, entropy)),
        ("sender key", sender_key), ("sender key id", key_id(sender_key)), ("roster header", roster_header),
        ("roster envelope", seal_roster(roster_header, inner, signing, sender_key, entropy)),
    ]  # fmt: skip
    return [(name, value.hex()) for name, value in vectors]
