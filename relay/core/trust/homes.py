"""Home records: where a user lives, with which devices. Version n follows version n - 1 (DESIGN section 6).

A version that names another cell than the one before moves the user (ADR 21). Beside the user's key and the registrar
of the region that is entered, the registrar of the region that is left signs it, as a release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta
from nacl.signing import SigningKey

from relay.core.codec import Decoder, Struct, digest, encode, pack
from relay.core.shapes import CellName, Hash, Key, MaybeHash, Millis, Name, Signature, UInt
from relay.core.trust.root import Root
from relay.core.trust.statement import RootRegion
from relay.core.trust.signing import sign, verify
from relay.errors import BrokenChain, NotReleased, NotValidNow, Rollback, TrustError
from relay.limits import KIB, MAX_CHAIN, MAX_DEVICES

_HOME: Final = b"posthouse.home\x00"
_RELEASE: Final = b"posthouse.release\x00"


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
    release: Signature = b""  # only of a version that moves the user


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


def sign_home(
    payload: HomePayload, user_key: SigningKey, registrar_key: SigningKey, release_key: SigningKey | None = None
) -> bytes:
    """Sign one version. From version 2 on `user_key` is the key that the version before names; `release_key` is that of
    the registrar of the region that the user leaves."""
    data = encode(payload)
    release = release_home(data, release_key) if release_key is not None else b""
    return join_home(data, ask_home(data, user_key), endorse_home(data, registrar_key), release)


def ask_home(payload: bytes, user_key: SigningKey) -> bytes:
    """The user's signature over a payload, with which the registrars are asked for theirs."""
    return sign(user_key, _HOME, payload)


def endorse_home(payload: bytes, registrar_key: SigningKey) -> bytes:
    """The registrar's signature over a payload that was checked."""
    return sign(registrar_key, _HOME, payload)


def release_home(payload: bytes, registrar_key: SigningKey) -> bytes:
    """The signature with which the registrar of a region lets a user go, where the payload that was checked says."""
    return sign(registrar_key, _RELEASE, payload)


def join_home(payload: bytes, user_signature: bytes, registrar_signature: bytes, release: bytes = b"") -> bytes:
    """A signed home record of its parts. `release` is empty where nobody moves."""
    return pack([payload, user_signature, registrar_signature, *([release] if release else [])])


def read_home(signed: bytes) -> HomeRecord:
    """Parse without verifying: only for bytes that were verified before they were kept (a cell's own log)."""
    outer = _signed_home(signed)
    payload = _home(outer.payload)
    own = digest(outer.payload)
    return HomeRecord(payload.user or own, own, payload, signed)


def verify_home(signed: bytes, root: Root, prev: HomeRecord | None) -> HomeRecord:
    """Verify one version after `prev` (None: it must be version 1), against the root's registrar of its region and, if
    it moves the user, of the region that is left.

    Raises BadSignature, BrokenChain, NotReleased or TrustError (unknown region). Expiry is `check_current`'s business,
    because a chain may contain versions that have run out."""
    outer = _signed_home(signed)
    record = read_home(signed)
    region = root.region(record.payload.region)
    _check_asked(outer, record, region, prev)
    verify(region.registrar_key, _HOME, outer.payload, outer.registrar_signature, "home record, registrar's key")
    _check_release(outer, root, record, prev)
    return record


def verify_asked(
    payload: bytes, user_signature: bytes, root: Root, prev: HomeRecord | None, release: bytes = b""
) -> HomeRecord:
    """A version that no registrar has signed yet: everything that `verify_home` asks, but for the signatures of
    registrars; a `release` that is there must hold. Raises like it."""
    signed = join_home(payload, user_signature, bytes(64), release)
    outer, record = _signed_home(signed), read_home(signed)
    _check_asked(outer, record, root.region(record.payload.region), prev)
    if release:
        _check_release(outer, root, record, prev)
    return record


def moves(record: HomeRecord, prev: HomeRecord | None) -> bool:
    """Does this version bring the user to another cell than the one before it?"""
    return prev is not None and record.cell != prev.cell


def _check_asked(outer: _SignedHome, record: HomeRecord, region: RootRegion, prev: HomeRecord | None) -> None:
    payload = record.payload
    user_key = prev.payload.user_key if prev else payload.user_key
    verify(user_key, _HOME, outer.payload, outer.user_signature, "home record, user's key")
    if payload.version > MAX_CHAIN:
        raise TrustError(f"home record: version {payload.version} is beyond {MAX_CHAIN}", "Enrol the user anew")
    if payload.cell not in region.cell_names or not payload.cell.startswith(payload.region + "/"):
        raise TrustError(f"home record: cell {payload.cell} is not one of region {payload.region}")
    _check_chain(record, prev)


def _check_release(outer: _SignedHome, root: Root, record: HomeRecord, prev: HomeRecord | None) -> None:
    if prev is None or not moves(record, prev):
        if outer.release:
            raise BrokenChain(f"home record version {record.version} carries a release, and moves nobody")
        return
    if not outer.release:
        what = f"home record version {record.version} moves a user from {prev.cell} to {record.cell} without a release"
        raise NotReleased(what, f"The registrar of {prev.payload.region} has to sign it, too")
    left = root.region(prev.payload.region)
    verify(left.registrar_key, _RELEASE, outer.payload, outer.release, f"home record, release by {left.name}")


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
    if payload.move_epoch != (prev.payload.move_epoch + moves(record, prev) if prev else 0):
        raise BrokenChain(f"home record: move_epoch {payload.move_epoch}; it counts the moves")
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


def verify_move(chain: Sequence[bytes], root: Root, known: HomeRecord | None = None) -> list[HomeRecord]:
    """Verify all records of a user, from version 1 on: the records. What `known` says must be among them, if they go as
    far. The newest may have run out: that it was signed is what counts for where mail goes.

    Raises TrustError and its kinds."""
    records: list[HomeRecord] = []
    for signed in chain:
        records.append(verify_home(signed, root, records[-1] if records else None))
    if not records:
        raise TrustError("no home record")
    if known is not None and known.version <= len(records) and records[known.version - 1].digest != known.digest:
        raise BrokenChain(f"two different home records of version {known.version}: a fork")
    return records


def check_current(record: HomeRecord, now_ms: int) -> None:
    """Raises NotValidNow outside not_before … expires."""
    if not record.payload.not_before <= now_ms < record.payload.expires:
        raise NotValidNow(f"home record version {record.version} is not valid now", "Ask the registrar for a newer one")
