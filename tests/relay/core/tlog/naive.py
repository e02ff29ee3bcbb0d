"""The tree as RFC 6962 section 2.1 defines it, by recursion over all leaves: slow, and close to the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from tests.flipping import flipped

Leaves = tuple[bytes, ...]


def half(n: int) -> int:
    """The largest power of two smaller than n."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k


@cache
def mth(entries: Leaves) -> bytes:
    """Merkle Tree Hash."""
    if not entries:
        return sha256(b"").digest()
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0]).digest()
    k = half(len(entries))
    return sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


def path(m: int, entries: Leaves) -> Leaves:
    """Merkle audit path (section 2.1.1)."""
    if len(entries) == 1:
        return ()
    k = half(len(entries))
    if m < k:
        return (*path(m, entries[:k]), mth(entries[k:]))
    return (*path(m - k, entries[k:]), mth(entries[:k]))


def proof(m: int, entries: Leaves, whole: bool = True) -> Leaves:
    """Merkle consistency proof (section 2.1.2)."""
    if m == len(entries):
        return () if whole else (mth(entries),)
    k = half(len(entries))
    if m <= k:
        return (*proof(m, entries[:k], whole), mth(entries[k:]))
    return (*proof(m - k, entries[k:], False), mth(entries[:k]))


def entries(n: int, salt: bytes = b"") -> Leaves:
    """n different entries."""
    return tuple(salt + b"entry %d" % number for number in range(n))


def changes(parts: Sequence[bytes]) -> list[Leaves]:
    """All proofs that differ from this one in one bit of one byte, one part more or less, or two swapped parts."""
    found = [
        (*parts[:at], flipped(part, byte, byte % 8), *parts[at + 1 :])
        for at, part in enumerate(parts)
        for byte in range(len(part))
    ]
    found += [(*parts[:at], *parts[at + 1 :]) for at in range(len(parts))]
    found += [(*parts, bytes(32)), (bytes(32), *parts)]
    found += [(*parts[:at], parts[at + 1], parts[at], *parts[at + 2 :]) for at in range(len(parts) - 1)]
    return [change for change in found if change != tuple(parts)]
