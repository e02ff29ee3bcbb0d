"""A bench envelope: a real header, and a body in clear that says which message it is and when it was due.

    body = msgpack [sequence, scheduled_ns, padding]

The relay cannot tell it from a sealed one, since it never reads a body. The padding depends on seed and sequence, so
that a receiver knows every byte that it should get.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import shake_128

import msgpack

from relay.core.codec import encode, pack
from relay.core.envelope import Header, To, join, read_header, split
from relay.errors import ProtocolError
from relay.limits import MINUTE

SUITE = 0  # nothing is sealed
_LIFETIME = 60 * MINUTE  # ms between created and expires


def body(seed: int, sequence: int, scheduled_ns: int, size: int) -> bytes:
    """Exactly `size` bytes of body (at least 32); the padding's length is always written in four bytes (bin 32)."""
    head = b"\x93" + pack(sequence) + pack(scheduled_ns) + b"\xc6"
    length = size - len(head) - 4
    if length < 0:
        raise ValueError(f"no body of {size} bytes")
    return head + length.to_bytes(4, "big") + shake_128(f"{seed}/{sequence}".encode()).digest(length)


def make_envelope(
    to: bytes, seed: int, sequence: int, scheduled_ns: int, size: int, now_ms: int, kind: To = To.ROSTER
) -> bytes:
    """The envelope of message `sequence` to version 1 of a group, or of a user; `now_ms` is Unix time."""
    header = Header(1, kind, to, 1, now_ms, now_ms + _LIFETIME, SUITE)
    return join(encode(header), body(seed, sequence, scheduled_ns, size))


def read_body(data: bytes, seed: int) -> tuple[int, int]:
    """(sequence, scheduled_ns). Raises ProtocolError where a byte is not what was sent."""
    try:
        sequence, scheduled_ns, _ = msgpack.unpackb(data)
        right = data == body(seed, sequence, scheduled_ns, len(data))
    except (ValueError, TypeError, msgpack.UnpackException):
        right = False
    if not right:
        raise ProtocolError("a message that the bench did not send")
    return sequence, scheduled_ns


def read_envelope(envelope: bytes, addresses: Sequence[bytes], seed: int) -> tuple[int, int]:
    """(sequence, scheduled_ns) of a message to the address whose turn it is. Raises ProtocolError where a byte is not
    what was sent."""
    _, data = split(envelope)
    sequence, scheduled_ns = read_body(data, seed)
    if read_header(envelope).to != addresses[sequence % len(addresses)]:
        raise ProtocolError("an envelope that the bench did not send")
    return sequence, scheduled_ns
