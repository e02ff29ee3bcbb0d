"""Suite 1: what is sealed opens, for whom it was meant, unchanged; nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_box_seed_keypair
from nacl.public import PrivateKey, SealedBox
from nacl.signing import SigningKey

from relay.core import sealing
from relay.core.codec import encode
from relay.core.envelope import To, join, split
from relay.core.sealing import (
    MAX_COUNTER, Inner, bucket, make_header, open_mailbox, open_roster, seal_mailbox, seal_roster,
)  # fmt: skip
from relay.core.trust import Device
from relay.errors import BadSignature, PosthouseError, ProtocolError
from relay.limits import CHUNK, MAX_DEVICES, MAX_ENVELOPE

SIGNER = SigningKey(b"\x07" * 32)
HEADER = make_header(To.MAILBOX, b"u" * 32, 3, 1_000, 2_000)
ROSTER = make_header(To.ROSTER, b"g" * 32, 3, 1_000, 2_000)
KEYS = [crypto_box_seed_keypair(bytes([i]) * 32) for i in range(MAX_DEVICES)]
DEVICES = [Device(bytes([i]) * 32, public, 1, b"", b"") for i, (public, _) in enumerate(KEYS)]


def inner(content: bytes = b"hello", signer: SigningKey = SIGNER) -> Inner:
    return Inner(1, b"s" * 32, bytes(signer.verify_key), "norden", b"c" * 32, 4, 1, 1_000, content)


@given(st.binary(max_size=3_000), st.integers(1, 5), st.binary(min_size=32, max_size=32), st.integers(0, MAX_COUNTER))
def test_every_device_opens_what_was_sealed(content: bytes, count: int, entropy: bytes, first: int) -> None:
    said = inner(content)
    envelope = seal_mailbox(HEADER, said, SIGNER, [(device, first) for device in DEVICES[:count]], entropy)
    for device, (_, private) in list(zip(DEVICES, KEYS, strict=True))[:count]:
        opened = open_mailbox(envelope, device.id, private)
        assert opened is not None and opened.inner == said and opened.first == first and opened.raw == encode(said)
    assert open_mailbox(envelope, DEVICES[count].id, KEYS[count][1]) is None


def test_a_wrap_is_a_sealed_box_of_libsodium() -> None:
    body = sealing._mailbox(split(seal_mailbox(HEADER, inner(), SIGNER, [(DEVICES[0], 9)], b"e" * 32))[1])
    assert SealedBox(PrivateKey(KEYS[0][1])).decrypt(body.wraps[0][4:])[32:] == (9).to_bytes(8, "big")


def test_ids_that_begin_alike_do_not_disturb() -> None:
    twin = Device(DEVICES[0].id[:4] + b"z" * 28, KEYS[1][0], 1, b"", b"")
    envelope = seal_mailbox(HEADER, inner(), SIGNER, [(twin, 1), (DEVICES[0], 2)], b"e" * 32)
    opened = open_mailbox(envelope, DEVICES[0].id, KEYS[0][1])
    assert opened is not None and opened.first == 2


@pytest.mark.parametrize("roster", [False, True])
def test_a_changed_envelope_never_opens(roster: bool) -> None:
    """Every single bit of it."""
    if roster:
        envelope = seal_roster(ROSTER, inner(), SIGNER, b"k" * 32, b"e" * 32)
    else:
        envelope = seal_mailbox(HEADER, inner(), SIGNER, [(DEVICES[0], 1)], b"e" * 32)
    for bit in range(8 * len(envelope)):
        changed = bytearray(envelope)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PosthouseError):
            if roster:
                open_roster(bytes(changed), b"k" * 32)
            elif open_mailbox(bytes(changed), DEVICES[0].id, KEYS[0][1]) is None:
                raise ProtocolError("no wrap for this device")


@given(st.binary(max_size=300))
def test_garbage_is_refused_with_a_typed_error(garbage: bytes) -> None:
    for envelope in (garbage, join(HEADER, garbage)):
        with pytest.raises(ProtocolError):
            open_mailbox(envelope, DEVICES[0].id, KEYS[0][1])
        with pytest.raises(ProtocolError):
            sealing.roster_key_id(envelope)


def test_a_header_cannot_be_swapped() -> None:
    _, body = split(seal_mailbox(HEADER, inner(), SIGNER, [(DEVICES[0], 1)], b"e" * 32))
    other = make_header(To.MAILBOX, b"u" * 32, 3, 1_000, 2_001)
    with pytest.raises(BadSignature):
        open_mailbox(join(other, body), DEVICES[0].id, KEYS[0][1])


def test_a_recipient_cannot_pass_it_on_in_the_senders_name() -> None:
    """The signature covers the header: the same signed words under a new header do not verify."""
    said, other = inner(), make_header(To.MAILBOX, b"v" * 32, 3, 1_000, 2_000)
    signature = SIGNER.sign(sealing._DOMAIN + sealing.digest(HEADER) + encode(said)).signature
    signed = sealing._Signed(encode(said), signature)
    clear = encode(signed)
    padded = (clear + b"\x80").ljust(bucket(len(clear) + 1), b"\0")
    sealed = sealing.crypto_aead_xchacha20poly1305_ietf_encrypt(padded, other, b"n" * 24, b"k" * 32)
    wrap = DEVICES[0].id[:4] + sealing._sealed_box(b"k" * 32 + bytes(8), DEVICES[0].encryption, b"x" * 32)
    with pytest.raises(BadSignature, match="signature"):
        open_mailbox(join(other, encode(sealing._MailboxBody((wrap,), b"n" * 24, sealed))), DEVICES[0].id, KEYS[0][1])


def test_a_device_cannot_speak_as_another() -> None:
    forged = inner(signer=SigningKey(b"\x08" * 32))
    with pytest.raises(BadSignature, match="signature"):
        envelope = seal_mailbox(HEADER, forged, SIGNER, [(DEVICES[0], 1)], b"e" * 32)
        open_mailbox(envelope, DEVICES[0].id, KEYS[0][1])


@given(st.integers(0, 200_000))
def test_buckets(size: int) -> None:
    assert bucket(size) >= max(size, 512)
    assert bucket(size) <= max(512, size * 1.12 + 1)
    assert bucket(bucket(size)) == bucket(size)


def test_lengths_hide_in_buckets_and_groups_do_not_show() -> None:
    sizes = {len(seal_roster(ROSTER, inner(b"x" * n), SIGNER, b"k" * 32, b"e" * 32)) for n in range(100)}
    assert len(sizes) == 1


def test_a_full_chunk_for_the_most_devices_fits() -> None:
    envelope = seal_mailbox(HEADER, inner(b"x" * (CHUNK + 400)), SIGNER, [(d, 1) for d in DEVICES], b"e" * 32)
    assert len(envelope) <= MAX_ENVELOPE
    with pytest.raises(ProtocolError):
        seal_mailbox(HEADER, inner(b"x" * MAX_ENVELOPE), SIGNER, [(DEVICES[0], 1)], b"e" * 32)


def test_vectors_open() -> None:
    vectors = {name: bytes.fromhex(value) for name, value in sealing.test_vectors()}
    assert vectors == {name: bytes.fromhex(value) for name, value in sealing.test_vectors()}
    for number, first in ((1, 5), (2, 7)):
        device = (vectors[f"device {number} id"], vectors[f"device {number} X25519 private"])
        opened = open_mailbox(vectors["mailbox envelope"], *device)
        assert opened is not None and opened.first == first and opened.raw == vectors["inner"]
    assert open_roster(vectors["roster envelope"], vectors["sender key"]).raw == vectors["inner"]
    assert sealing.roster_key_id(vectors["roster envelope"]) == vectors["sender key id"]
