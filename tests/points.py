"""Ed25519 public keys that are none: the eight points of small order, every other way to write them, and keys of mixed
order (a point of the main subgroup plus one of small order), which can sign one in eight messages, or all by trying."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha512
from typing import Final

from nacl.bindings import (
    crypto_core_ed25519_add, crypto_core_ed25519_scalar_add, crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce, crypto_scalarmult_ed25519_base_noclamp,
)

_P: Final = 2**255 - 19
_ORDER_8: Final = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
_OTHER_8: Final = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")


def _written(y: int, sign: int) -> bytes:
    return (y + sign * 2**255).to_bytes(32, "little")


# Of order 1, 2, 4 (two) and 8 (four).
SMALL: Final = (
    _written(1, 0), _written(_P - 1, 0), _written(0, 0), _written(0, 1),
    _ORDER_8, _ORDER_8[:-1] + b"\x85", _OTHER_8, _OTHER_8[:-1] + b"\xfa",
)  # fmt: skip
# The same points where y is not reduced, or x = 0 has a sign.
NOT_CANONICAL: Final = (
    _written(1, 1), _written(_P - 1, 1), _written(_P + 1, 0), _written(_P + 1, 1), _written(_P, 0), _written(_P, 1),
)
NO_KEYS: Final = SMALL + NOT_CANONICAL


def forgeries() -> Iterator[bytes]:
    """What anybody can make without a secret: under a key of small order some of them hold for any message, where only
    the equation is asked."""
    return (point + bytes(32) for point in NO_KEYS)


def mixed(seed: bytes) -> tuple[bytes, bytes]:
    """A key of mixed order: its secret scalar and its bytes."""
    scalar = crypto_core_ed25519_scalar_reduce(sha512(seed).digest())
    return scalar, crypto_core_ed25519_add(crypto_scalarmult_ed25519_base_noclamp(scalar), _ORDER_8)


def sign_mixed(scalar: bytes, key: bytes, message: bytes) -> bytes:
    """A signature under it that holds: R is tried until the part of small order falls away."""
    for number in range(1000):
        r = crypto_core_ed25519_scalar_reduce(sha512(scalar + number.to_bytes(4, "big")).digest())
        point = crypto_scalarmult_ed25519_base_noclamp(r)
        hashed = sha512(point + key + message).digest()
        if int.from_bytes(crypto_core_ed25519_scalar_reduce(hashed), "little") % 8 == 0:
            product = crypto_core_ed25519_scalar_mul(crypto_core_ed25519_scalar_reduce(hashed), scalar)
            return point + crypto_core_ed25519_scalar_add(r, product)
    raise AssertionError("one in eight would do")
