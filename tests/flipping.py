"""One changed bit: damage that is always damage, whatever the bytes were."""

from __future__ import annotations


def flipped(data: bytes, at: int = -1, bit: int = 0) -> bytes:
    """`data` with one bit of the byte at `at` (the last, if not said) changed."""
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)
