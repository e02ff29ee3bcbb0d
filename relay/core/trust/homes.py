"""Home records: where a user lives, with which devices. Version n follows version n - 1 (DESIGN section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta
from nacl.signing import SigningKey

from relay.core.codec import Decoder, Struct, digest, encode
from relay.core.shapes import CellName, Hash, Key, MaybeHash, Millis, Name, Signature, UInt
from relay.core.trust.root import Root
from relay.core.trust.signing import sign, verify
from relay.errors import BrokenChain, NotValidNow, Rollback, TrustError
from relay.limits import KIB, MAX_CHAIN, MAX_DEVICES

_HOME: Final = b"posthouse.home\x00"


class Device(Struct, frozen=True):
    """A device: its Ed25519 key (which is its id), its X25519 key, and the home version that enrolled it."""

    id: Key
    encryption: Key
    since: UInt


class HomePayload(Struct, frozen=True):
    """What is signed. `user` and `prev` are empty in version 1."""

    format: Literal[1]
    user: MaybeHash
    version: UInt
    prev: MaybeHash
    region: Name
    cell: CellName
    user_key: Key
    devices: Annotated[tuple[Device, ...], Meta(max_length=MAX_DEVICES)]
    move_epoch: UInt
    not_before: Millis
    expires: Millis


class _SignedHome(Struct, frozen=True):
    payload: bytes
    user_signature: Signature
    registrar_signature: Signature


class HomeRecord(Struct, frozen=True):
    """A verified home record: `user` is filled in also for version 1, `digest` is what the next one chains to."""

    user: Hash
    digest: Hash
    payload: HomePayload
    signed: bytes

    @property
    def version(self) -> int:
        return self.payload.version

    @property
    def cell(self) -> str:
        return self.payload.cell

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.payload.devices


_signed_home: Decoder[_SignedHome] = Decoder(_SignedHome, "signed home record", 16 * KIB)
_home: Decoder[HomePayload] = Decoder(HomePayload, "home record", 16 * KIB)


def sign_home(payload: HomePayload, user_key: SigningKey, registrar_key: SigningKey) -> bytes:
    """Sign one version. From version 2 on `user_key` is the key that the version before names."""
    data = encode(payload)
    return encode(_SignedHome(data, sign(user_key, _HOME, data), sign(registrar_key, _HOME, data)))


def endorse_home(payload: bytes, registrar_key: SigningKey) -> bytes:
    """The registrar's signature over a payload that was checked."""
    return sign(registrar_key, _HOME, payload)


def read_home(signed: bytes) -> HomeRecord:
    """Parse without verifying: only for bytes that were verified before they were kept (a cell's own log)."""
    outer = _signed_home(signed)
    payload = _home(outer.payload)
    own = digest(outer.payload)
    return HomeRecord(payload.user or own, own, payload, signed)


def verify_home(signed: bytes, root: Root, prev: HomeRecord | None) -> HomeRecord:
    """Verify one version after `prev` (None: it must be version 1), against the root's registrar of its region.

    Raises BadSignature, BrokenChain or TrustError (unknown region). Expiry is `check_current`'s business, because a
    chain may contain versions that have run out."""
    outer = _signed_home(signed)
    record = read_home(signed)
    payload = record.payload
    region = root.region(payload.region)
    user_key = prev.payload.user_key if prev else payload.user_key
    verify(user_key, _HOME, outer.payload, outer.user_signature, "home record, user's key")
    verify(region.registrar_key, _HOME, outer.payload, outer.registrar_signature, "home record, registrar's key")
    if payload.version > MAX_CHAIN:
        raise TrustError(f"home record: version {payload.version} is beyond {MAX_CHAIN}", "Enrol the user anew")
    if payload.cell not in region.cell_names or not payload.cell.startswith(payload.region + "/"):
        raise TrustError(f"home record: cell {payload.cell} is not one of region {payload.region}")
    _check_chain(record, prev)
    return record


def _check_chain(record: HomeRecord, prev: HomeRecord | None) -> None:
    payload = record.payload
    known = {device.id: device for device in prev.devices} if prev else {}
    if prev is None:
        chained = payload.version == 1 and not payload.user and not payload.prev
    else:
        chained = payload.version == prev.version + 1 and payload.user == prev.user and payload.prev == prev.digest
    if not chained:
        last = prev.version if prev else "nothing"
        raise BrokenChain(f"home record version {payload.version} does not follow {last}")
    if len({device.id for device in payload.devices}) != len(payload.devices):
        raise BrokenChain("home record: a device is listed twice")
    for device in payload.devices:
        old = known.get(device.id)
        if device.since != (old.since if old else payload.version) or (old and old != device):
            raise BrokenChain("home record: a device's enrolment was changed")


def verify_chain(
    chain: Sequence[bytes], root: Root, now_ms: int, user: bytes, known: HomeRecord | None = None
) -> HomeRecord:
    """Verify signed records, oldest first, that lead from `known` (or from version 1) to the newest one of `user`.

    Raises TrustError and its kinds; Rollback where the result is older than `known`."""
    record = known
    for signed in chain[:MAX_CHAIN]:
        if known is not None and read_home(signed).version <= known.version:
            if read_home(signed).version == known.version and signed != known.signed:
                raise BrokenChain("two different home records of one version: a fork")
            continue
        record = verify_home(signed, root, record)
    if record is None:
        raise TrustError("no home record")
    if record.user != user:
        raise BrokenChain("the home record is another user's")
    if known is not None and record.version < known.version:
        raise Rollback(f"home record version {record.version} after {known.version}")
    check_current(record, now_ms)
    return record


def check_current(record: HomeRecord, now_ms: int) -> None:
    """Raises NotValidNow outside not_before … expires."""
    if not record.payload.not_before <= now_ms < record.payload.expires:
        raise NotValidNow(f"home record version {record.version} is not valid now", "Ask the registrar for a newer one")
