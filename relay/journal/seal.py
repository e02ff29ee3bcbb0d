"""Sealing at rest: XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) under a region's storage keys (section 5, rule 7).

A sealed value is the msgpack array [key id, [nonce ‖ ciphertext ‖ tag, …]], one element a record. The associated data
of an element is its context and its ordinal, so that nothing can be moved to another log, block, place or purpose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from relay.core.codec import Decoder, Struct, digest, pack
from relay.errors import OperatorError, ProtocolError, StoreDamaged, StoreForeign
from relay.journal.aead import KEY_BYTES, NONCE_BYTES, TAG_BYTES, open_each, seal_each
from relay.limits import MAX_BLOCK, MAX_BLOCK_RECORDS

KEY_ID_BYTES = 8
_OVERHEAD = NONCE_BYTES + TAG_BYTES + 5  # bytes that sealing adds to a record: nonce, tag, msgpack
MAX_SEALED = MAX_BLOCK + MAX_BLOCK_RECORDS * _OVERHEAD + 64  # bytes of a sealed block

RandomBytes = Callable[[int], bytes]


class _Sealed(Struct):
    key_id: Annotated[bytes, Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
    items: tuple[Annotated[bytes, Meta(min_length=NONCE_BYTES + TAG_BYTES)], ...]


_sealed: Decoder[_Sealed] = Decoder(_Sealed, "sealed value", MAX_SEALED)


def context(purpose: bytes, log_id: bytes, *place: int) -> bytes:
    """Associated data of a place: what it is for, in which log, and where (indexes, ordinals)."""
    return purpose + log_id + b"".join(number.to_bytes(8, "big") for number in place)


def _key_id(key: bytes) -> bytes:
    return digest(key, b"posthouse.keyid")[:KEY_ID_BYTES]


class StorageRing:
    """The storage keys of a region: the first seals, all of them open. To rotate, put a new line on top of the file
    and keep the old ones as long as blocks sealed with them are kept."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        assert keys and all(len(key) == KEY_BYTES for key in keys)
        self._keys = {_key_id(key): key for key in keys}
        self.active = _key_id(keys[0])

    @classmethod
    def generate(cls, path: Path) -> StorageRing:
        """A new key, in a new file with mode 0600. Raises OperatorError where the file exists or cannot be written."""
        key = os.urandom(KEY_BYTES)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "w", encoding="ascii") as file:
                file.write(key.hex() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise OperatorError(f"{path}: a storage key is already there", "Keep it: old blocks need it") from None
        except OSError as error:
            raise OperatorError(f"{path}: the storage key cannot be written: {error.strerror}") from None
        return cls([key])

    @classmethod
    def load(cls, path: Path) -> StorageRing:
        """Keys from a file: one line of 64 hex digits each, the active one first. Raises OperatorError."""
        try:
            mode = path.stat().st_mode & 0o777
            lines = path.read_text(encoding="ascii").split()
            keys = [bytes.fromhex(line) for line in lines]
        except OSError as error:
            raise OperatorError(
                f"{path}: the storage key cannot be read: {error.strerror}", "Check storage_key under [paths]"
            ) from None
        except ValueError:
            keys = []
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise OperatorError(f"{path}: not a storage key file", "It has one line of 64 hex digits for each key")
        if mode & 0o077:
            raise OperatorError(f"{path}: others can read the storage key (mode {mode:04o})", f"chmod 600 {path}")
        return cls(keys)

    def seal(self, place: bytes, records: Sequence[bytes], random_bytes: RandomBytes) -> bytes:
        """Seal records for `place` (see `context`) with the active key; a fresh random nonce each."""
        nonces = random_bytes(NONCE_BYTES * len(records))
        return pack([self.active, seal_each(records, place, nonces, self._keys[self.active])])

    def open(self, place: bytes, sealed: bytes, what: str) -> tuple[bytes, ...]:
        """Open what was sealed for `place`; `what` names it in errors.

        Raises StoreForeign where its key is not in the ring, StoreDamaged where it does not verify."""
        if not isinstance(sealed, bytes):  # the disk may say anything
            raise StoreDamaged(f"{what}: no sealed value")
        try:
            value = _sealed(sealed)
        except ProtocolError as error:
            raise StoreDamaged(f"{what}: {error.text}") from None
        key = self._keys.get(value.key_id)
        if key is None:
            if any(_opens(value.items, place, other) for other in self._keys.values()):
                raise StoreDamaged(f"{what}: it names another key than the one it was sealed with")
            raise StoreForeign(
                f"{what} is sealed with the storage key {value.key_id.hex()}, which is not in the key file",
                "Put that key's line back below the active one",
            )
        records = open_each(value.items, place, key)
        if len(records) < len(value.items):
            raise StoreDamaged(f"{what}: record {len(records)} does not open: its bytes were changed")
        return tuple(records)


def _opens(items: Sequence[bytes], place: bytes, key: bytes) -> bool:
    """Does this key open a sealed value, by its first record?"""
    return bool(open_each(items[:1], place, key))
