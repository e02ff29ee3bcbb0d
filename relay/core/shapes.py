"""The field types that everything encoded is made of: lengths and ranges checked while decoding."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from relay.limits import MAX_ENVELOPE, MAX_STRING

Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]  # BLAKE2b-256, a user id, a group id
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]  # Ed25519 or X25519 public key; a device id is the former
MaybeKey = Annotated[bytes, Meta(max_length=32)]  # empty where there is none
MaybeHash = Annotated[bytes, Meta(max_length=32)]  # empty where there is none yet
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]  # Ed25519 (RFC 8032)
Nonce = Annotated[bytes, Meta(min_length=16, max_length=32)]
StoreId = Annotated[bytes, Meta(min_length=16, max_length=16)]  # the UUID of a node's disk
LogId = Annotated[bytes, Meta(min_length=16, max_length=16)]
MaybeLogId = Annotated[bytes, Meta(max_length=16)]
Text = Annotated[str, Meta(max_length=MAX_STRING)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9.-]*\Z")]  # a region or node
CellName = Annotated[str, Meta(min_length=3, max_length=96, pattern=r"^[a-z0-9][a-z0-9.-]*/[a-z0-9][a-z0-9.-]*\Z")]
UInt = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Millis = UInt  # Unix time or a span, ms
Position = UInt  # index << SLOT_BITS | slot
EnvelopeBytes = Annotated[bytes, Meta(min_length=1, max_length=MAX_ENVELOPE)]
