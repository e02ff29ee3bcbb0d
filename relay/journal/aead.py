"""XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) of many small values under one key, by PyNaCl's libsodium.

It calls what `crypto_aead_xchacha20poly1305_ietf_encrypt` and `_decrypt` of nacl.bindings call, with one buffer for a
whole batch. Those check each argument and take a buffer for each value: twice what the cipher itself costs (ADR 35).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nacl import bindings
from nacl._sodium import ffi, lib

KEY_BYTES: Final = bindings.crypto_aead_xchacha20poly1305_ietf_KEYBYTES
NONCE_BYTES: Final = bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
TAG_BYTES: Final = bindings.crypto_aead_xchacha20poly1305_ietf_ABYTES


def seal_each(values: Sequence[bytes], place: bytes, nonces: bytes, key: bytes) -> list[bytes]:
    """nonce ‖ ciphertext ‖ tag of each, bound to `place` and its ordinal; `nonces`: NONCE_BYTES for each value."""
    if len(key) != KEY_BYTES or len(nonces) != NONCE_BYTES * len(values):
        raise ValueError("a key or nonces of another length")  # libsodium would read on
    encrypt, null = lib.crypto_aead_xchacha20poly1305_ietf_encrypt, ffi.NULL
    out = ffi.new("unsigned char[]", max(map(len, values), default=0) + TAG_BYTES)
    boxed, length = ffi.buffer(out), len(place) + 8
    sealed = []
    for ordinal, value in enumerate(values):
        nonce = nonces[ordinal * NONCE_BYTES : (ordinal + 1) * NONCE_BYTES]
        bound = place + ordinal.to_bytes(8, "big")
        encrypt(out, null, value, len(value), bound, length, null, nonce, key)
        sealed.append(nonce + boxed[: len(value) + TAG_BYTES])
    return sealed


def open_each(sealed: Sequence[bytes], place: bytes, key: bytes) -> list[bytes]:
    """The values of `seal_each`, up to the first that does not open, and without that one."""
    if len(key) != KEY_BYTES:
        raise ValueError("a key of another length")
    decrypt, null = lib.crypto_aead_xchacha20poly1305_ietf_decrypt, ffi.NULL
    out = ffi.new("unsigned char[]", max(map(len, sealed), default=0) + 1)
    plain, length = ffi.buffer(out), len(place) + 8
    values: list[bytes] = []
    for ordinal, item in enumerate(sealed):
        nonce, boxed = item[:NONCE_BYTES], item[NONCE_BYTES:]
        if len(boxed) < TAG_BYTES:
            break
        bound = place + ordinal.to_bytes(8, "big")
        if decrypt(out, null, null, boxed, len(boxed), bound, length, nonce, key):
            break
        values.append(plain[: len(boxed) - TAG_BYTES])
    return values
