"""Sealing at rest: round trips, and nothing that was changed, moved or sealed by another opens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from relay.errors import OperatorError, StoreDamaged, StoreForeign
from relay.journal.aead import KEY_BYTES, NONCE_BYTES, open_each, seal_each
from relay.journal.seal import StorageRing, context

RING = StorageRing([b"k" * 32])
PLACE = context(b"B", bytes(16), 7)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_what_was_sealed_opens(records: list[bytes]) -> None:
    sealed = RING.seal(PLACE, records, os.urandom)
    assert RING.open(PLACE, sealed, "it") == tuple(records)
    assert all(record not in sealed for record in records if len(record) > 4)


@given(st.integers(0), st.integers(0, 7))
def test_no_changed_bit_opens(at: int, bit: int) -> None:
    """It is damage wherever it is: in the id of the key, too, which must not look like a key that is missing."""
    sealed = bytearray(RING.seal(PLACE, [b"one", b"two"], os.urandom))
    sealed[at % len(sealed)] ^= 1 << bit
    with pytest.raises(StoreDamaged, match="it"):
        RING.open(PLACE, bytes(sealed), "it")


@given(st.binary(max_size=200) | st.integers() | st.text() | st.none())
def test_garbage_is_damage(garbage: Any) -> None:
    with pytest.raises(StoreDamaged, match="it"):
        RING.open(PLACE, garbage, "it")


def test_what_was_moved_does_not_open() -> None:
    sealed = RING.seal(PLACE, [b"one"], os.urandom)
    for place in (context(b"B", bytes(16), 8), context(b"C", bytes(16), 7), context(b"B", b"x" * 16, 7)):
        with pytest.raises(StoreDamaged):
            RING.open(place, sealed, "it")


def test_nonces_are_fresh() -> None:
    sealed = {RING.seal(PLACE, [b"same", b"same"], os.urandom) for _ in range(100)}
    assert len(sealed) == 100


def test_another_key_is_foreign() -> None:
    sealed = RING.seal(PLACE, [b"one"], os.urandom)
    with pytest.raises(StoreForeign, match="not in the key file"):
        StorageRing([b"x" * 32]).open(PLACE, sealed, "block 7")
    assert StorageRing([b"x" * 32, b"k" * 32]).open(PLACE, sealed, "block 7") == (b"one",)


# --- the key file --------------------------------------------------------------------------------
def test_a_generated_key_loads(tmp_path: Path) -> None:
    path = tmp_path / "storage.key"
    ring = StorageRing.generate(path)
    assert path.stat().st_mode & 0o777 == 0o600
    sealed = ring.seal(PLACE, [b"one"], os.urandom)
    assert StorageRing.load(path).open(PLACE, sealed, "it") == (b"one",)
    with pytest.raises(OperatorError, match="already there"):
        StorageRing.generate(path)


def test_the_first_line_is_active(tmp_path: Path) -> None:
    path = tmp_path / "storage.key"
    path.touch(0o600)
    path.write_text(f"{bytes(32).hex()}\n{(b'k' * 32).hex()}\n")
    ring = StorageRing.load(path)
    assert ring.active == StorageRing([bytes(32)]).active
    assert ring.open(PLACE, RING.seal(PLACE, [b"old"], os.urandom), "it") == (b"old",)


@pytest.mark.parametrize("text", ["", "zz", "abcd\n", "00" * 31, "ключ"])
def test_a_bad_key_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "storage.key"
    path.touch(0o600)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OperatorError, match="not a storage key file"):
        StorageRing.load(path)


def test_a_key_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "storage.key"
    StorageRing.generate(path)
    path.chmod(0o644)
    with pytest.raises(OperatorError, match="chmod 600"):
        StorageRing.load(path)


def test_a_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"cannot be read: No such file.*storage_key"):
        StorageRing.load(tmp_path / "none")


@given(st.lists(st.binary(max_size=300), max_size=8), st.binary(max_size=60))
def test_batches_are_what_the_library_makes_one_by_one(values: list[bytes], place: bytes) -> None:
    nonces, key = os.urandom(NONCE_BYTES * len(values)), os.urandom(KEY_BYTES)
    sealed = seal_each(values, place, nonces, key)
    for ordinal, (value, one) in enumerate(zip(values, sealed, strict=True)):
        nonce, bound = one[:NONCE_BYTES], place + ordinal.to_bytes(8, "big")
        assert nonce == nonces[ordinal * NONCE_BYTES :][:NONCE_BYTES]
        assert one[NONCE_BYTES:] == crypto_aead_xchacha20poly1305_ietf_encrypt(value, bound, nonce, key)
    assert open_each(sealed, place, key) == values


def test_a_batch_opens_up_to_the_first_that_was_changed() -> None:
    key, nonces = bytes(KEY_BYTES), os.urandom(NONCE_BYTES * 3)
    sealed = seal_each([b"one", b"two", b"three"], b"here", nonces, key)
    changed = sealed[1][:-1] + bytes([sealed[1][-1] ^ 1])
    assert open_each([sealed[0], changed, sealed[2]], b"here", key) == [b"one"]
    assert open_each([sealed[0], sealed[1][: NONCE_BYTES + 3]], b"here", key) == [b"one"], "too short for a tag"
    with pytest.raises(ValueError, match="length"):
        seal_each([b"one"], b"here", nonces[:-1], key)
    with pytest.raises(ValueError, match="length"):
        open_each(sealed, b"here", key[:-1])
