"""Keys by name, the same in every world, and signatures computed once a process: real Ed25519, paid for once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from nacl.signing import SigningKey, VerifyKey

from relay.core.codec import digest
from relay.core.tlog import COSIGNATURE, ED25519, SignerKey

_sign, _verify = SigningKey.sign, VerifyKey.verify


@lru_cache(maxsize=4096)
def key(name: str) -> SigningKey:
    """The signing key of that name."""
    return SigningKey(digest(name.encode()))


@lru_cache(maxsize=4096)
def public(name: str) -> bytes:
    return bytes(key(name).verify_key)


@lru_cache(maxsize=16)
def log_key(region: str) -> SignerKey:
    """What that region's log signs with."""
    return SignerKey(f"{region}.simulated/log", ED25519, digest(f"{region}/log".encode()))


@lru_cache(maxsize=16)
def witness_key(region: str) -> SignerKey:
    """What that region's witness cosigns with."""
    return SignerKey(f"{region}.simulated/witness", COSIGNATURE, digest(f"{region}/witness".encode()))


@lru_cache(maxsize=16_384)
def _signed(seed: bytes, message: bytes) -> Any:
    return _sign(SigningKey(seed), message)


@lru_cache(maxsize=16_384)
def _verified(key: bytes, message: bytes, signature: bytes | None) -> bytes:
    return _verify(VerifyKey(key), message, signature)


@contextmanager
def signatures_once() -> Iterator[None]:
    """Signing and verifying are functions of their bytes: what was computed before is not computed again."""

    def sign(self: SigningKey, message: bytes, encoder: Any = None) -> Any:
        return _signed(bytes(self), bytes(message))

    def verify(self: VerifyKey, smessage: bytes, signature: bytes | None = None, encoder: Any = None) -> bytes:
        return _verified(bytes(self), bytes(smessage), signature)

    SigningKey.sign, VerifyKey.verify = sign, verify  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        SigningKey.sign, VerifyKey.verify = _sign, _verify  # type: ignore[method-assign]
