"""Devices in home records. A record lists a key only if who holds it has signed for that (proof of possession).

The signature is made once, when the device is enrolled or gets new keys; later records repeat it. It names whose device
it is to be, so that it is worth nothing in another user's record (docs/PROTOCOL.md, section 5).
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, structs
from nacl.signing import SigningKey

from relay.core.codec import Struct, pack
from relay.core.shapes import Key, MaybeKey, Millis, UInt
from relay.core.trust.signing import sign, verify
from relay.errors import BadSignature, ForeignDevice

_DEVICE: Final = b"posthouse.device\x00"


class Device(Struct, frozen=True):
    """A device: its Ed25519 key (which is its id), its X25519 key, the home version that enrolled it, where its keys
    were rotated since the id that it was enrolled with (else empty), and its signature for this (`prove_device`)."""

    id: Key
    encryption: Key
    since: UInt
    first: MaybeKey
    proof: Annotated[bytes, Meta(max_length=64)]

    @property
    def stem(self) -> bytes:
        """What stays when its keys are rotated: the id that it was enrolled with."""
        return self.first or self.id


class Former(Struct, frozen=True):
    """An id that an older version listed: revoked, or rotated. The version without it held from `until` on (ms)."""

    id: Key
    stem: Key
    until: Millis


def prove_device(device: Device, owner: bytes, key: SigningKey) -> Device:
    """The same with its proof. `owner`: the user's id; in version 1 the hash of the payload with all proofs empty."""
    return structs.replace(device, proof=sign(key, _DEVICE, _possession(device, owner)))


def verify_possession(device: Device, owner: bytes) -> None:
    """Raises ForeignDevice where the holder of the device's key has not signed for this entry of this user."""
    try:
        verify(device.id, _DEVICE, _possession(device, owner), device.proof, "home record, device's proof")
    except BadSignature:
        raise ForeignDevice(
            f"home record: nobody who has the key of device {device.id[:4].hex()} has signed that it is this user's",
            "Only the device itself can be enrolled, by a signature for this user",
        ) from None


def _possession(device: Device, owner: bytes) -> bytes:
    return pack([owner, device.encryption, device.first])
