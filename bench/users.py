"""Requests for home records, as users' clients make them: keys from the number, one device each."""

from __future__ import annotations

from nacl.bindings import crypto_scalarmult_base
from nacl.signing import SigningKey

from relay.core.codec import digest, pack
from relay.core.trust import Device, HomePayload, prove_devices, request_home
from relay.limits import DAY, MINUTE


def request_of(region: str, number: int, now_ms: int) -> bytes:
    """The request by which user `number` asks for a home in the first cell of `region`, for a day."""
    user, device = (SigningKey(digest(pack([number, what]), b"posthouse.bench")) for what in ("user", "device"))
    devices = (Device(bytes(device.verify_key), crypto_scalarmult_base(bytes(device)), 1, b"", b""),)
    payload = HomePayload(1, b"", 1, b"", region, f"{region}/1", bytes(user.verify_key), devices, 0,
                          now_ms - MINUTE, now_ms + DAY, b"")  # fmt: skip
    return request_home(prove_devices(payload, [device]), user)
