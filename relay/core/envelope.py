"""An envelope: a header the relay reads and a body it cannot.

    envelope = [header: bin, body: bin]         id = BLAKE2b-256(envelope)
    header   = [1, kind, to, to_version, created, expires, suite]

The header's exact bytes are the associated data of the body's AEAD, so recipients detect a changed one.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

from relay.core.codec import Decoder, Struct, digest, encode
from relay.core.shapes import EnvelopeBytes, Hash, Millis, UInt
from relay.limits import MAX_ENVELOPE


class To(IntEnum):
    """What an address is."""

    MAILBOX = 0  # `to` is a user id, `to_version` the home-record version it was sealed for
    ROSTER = 1  # `to` is a group id, `to_version` the roster version it was sealed for


class Header(Struct, frozen=True):
    """What the relay reads. Times are Unix ms."""

    format: Literal[1]
    kind: To
    to: Hash
    to_version: UInt
    created: Millis
    expires: Millis
    suite: UInt


class _Envelope(Struct, frozen=True):
    header: bytes
    body: bytes


_envelope: Decoder[_Envelope] = Decoder(_Envelope, "envelope", MAX_ENVELOPE, flat=True)
_header: Decoder[Header] = Decoder(Header, "envelope header", 256, flat=True)


def envelope_id(envelope: bytes) -> bytes:
    """The id of an envelope: BLAKE2b-256 of its bytes."""
    return digest(envelope)


def split(envelope: bytes) -> tuple[bytes, bytes]:
    """(header bytes, body bytes). Raises ProtocolError."""
    both = _envelope(envelope)
    return both.header, both.body


def read_header(envelope: EnvelopeBytes) -> Header:
    """Raises ProtocolError where the envelope or its header is not well formed."""
    return _header(_envelope(envelope).header)


def join(header: bytes, body: bytes) -> bytes:
    """Build the envelope's bytes from the exact header bytes and the sealed body."""
    return encode(_Envelope(header, body))
