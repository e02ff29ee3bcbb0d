"""Records whose devices have signed for themselves, made of devices that were named without."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import structs
from nacl.signing import SigningKey

from relay.core.trust import Device, HomePayload, prove_devices


def proven(payload: HomePayload, keys: Iterable[SigningKey], before: Iterable[Device] = ()) -> HomePayload:
    """The payload with its devices as the version `before` listed them, or proven with `keys` where they are new."""
    known = {structs.replace(device, proof=b""): device for device in before}
    devices = tuple(known.get(device, device) for device in payload.devices)
    return prove_devices(structs.replace(payload, devices=devices), keys)
