"""The keys that sign a root document: Ed25519, one file each, so that each can be kept by another person.

A private key is a PEM file (PKCS 8, without a password), a public one a line of 64 hex digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from relay.errors import OperatorError

HOLDER: Final = "x-posthouse-holder"
_KEPT: Final = "Give the file that `posthouse federation init`, `key` or `init region` wrote"


def new_signer(seed: bytes | None = None) -> CryptoSigner:
    """A fresh key, or the one that 32 bytes make."""
    key = Ed25519PrivateKey.from_private_bytes(seed) if seed else Ed25519PrivateKey.generate()
    return CryptoSigner(key)


def public_bytes(key: SSlibKey) -> bytes:
    """32 bytes."""
    return bytes.fromhex(key.keyval["public"])


def key_of(public: bytes) -> SSlibKey:
    """A public key under the id that follows from it."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(public))


def load_signer(path: Path) -> CryptoSigner:
    """Raises OperatorError."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", _KEPT) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise OperatorError(f"{path} is no private key in PEM without a password", _KEPT) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise OperatorError(f"{path} is no Ed25519 key", _KEPT)
    return CryptoSigner(key)


def named(key: SSlibKey, name: str) -> SSlibKey:
    """The key with its holder's name, which is signed along with it and only shown to people."""
    return SSlibKey(key.keyid, key.keytype, key.scheme, key.keyval, {HOLDER: name})


def key_words(key: Key) -> str:
    """How a key is called to people: its holder's name, if it has one, and how it begins."""
    holder, start = key.unrecognized_fields.get(HOLDER), str(key.keyval["public"])[:16]
    return f"{plain(holder)} ({start})" if isinstance(holder, str) else start


def plain(text: str) -> str:
    """What others wrote, to be shown to somebody who signs: no line break and no escape sequence in it draws lines that
    look like ours, and no more than fits on one."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:256])


def load_public(path: Path) -> SSlibKey:
    """The public key in a .pub file, named as the file. Raises OperatorError."""
    try:
        text = path.read_text("ascii").strip()
        return named(key_of(bytes.fromhex(text)), path.stem)
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Its owner makes it: posthouse federation key") from None
    except ValueError:  # UnicodeDecodeError is one
        remedy = "Give the .pub file that lies beside its owner's key"
        raise OperatorError(f"{path} is no public key of 64 hex digits", remedy) from None
