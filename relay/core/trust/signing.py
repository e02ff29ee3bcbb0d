"""One signature: a domain, so that what is signed as one thing is never taken for another, and the exact bytes."""

from __future__ import annotations

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from relay.errors import BadSignature


def verify(key: bytes, domain: bytes, payload: bytes, signature: bytes, what: str) -> None:
    """Raises BadSignature, which says `what`."""
    try:
        VerifyKey(key).verify(domain + payload, signature)
    except (BadSignatureError, ValueError):
        raise BadSignature(f"{what}: the signature does not hold") from None


def sign(key: SigningKey, domain: bytes, payload: bytes) -> bytes:
    """64 bytes, Ed25519."""
    return bytes(key.sign(domain + payload).signature)
