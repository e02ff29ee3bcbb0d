"""Home records: where a user lives, with which devices. Version n follows version n - 1 (DESIGN section 6, ADR 24).

    signed by                       may change
    the user key of n - 1           user key, devices, home; a recovery key where there was none
    the recovery key of n - 1       user key (it has to), recovery key, devices; never the home

and by the registrar, always. A device signs for its own entry when it is new (relay.core.trust.devices). What a version
no longer lists is revoked, and its id never comes back.

A version that names another cell than the one before moves the user (ADR 21). Beside the user's key and the registrar
of the region that is entered, the registrar of the region that is left signs it, as a release.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta, structs
from nacl.signing import SigningKey

from relay.core.codec import Decoder, Struct, digest, encode, pack
from relay.core.shapes import CellName, Hash, Key, MaybeHash, MaybeKey, Millis, Name, Signature, UInt
from relay.core.trust.devices import Device, Former, prove_device, verify_possession
from relay.core.trust.earlier import Spot, check_spot, spot_of, verify_endorsed
from relay.core.trust.logs import split_home
from relay.core.trust.root import Root
from relay.core.trust.statement import EarlierKey, RootRegion
from relay.core.trust.signing import sign, verify
from relay.errors import (
    Backdated, BadSignature, BrokenChain, NotReleased, Overreach, ReturnedDevice, TrustError,
)
from relay.limits import ADMISSION_WINDOW, KIB, MAX_CHAIN, MAX_DEVICES, MAX_FORMER

_HOME: Final = b"posthouse.home\x00"
_RELEASE: Final = b"posthouse.release\x00"
BY_REGISTRAR: Final = "home record, registrar's key"
REVOKED_GRACE: Final = ADMISSION_WINDOW  # ms: what the cell took before it knew the version without the device


class HomePayload(Struct, frozen=True):
    """What is signed. `user` and `prev` are empty in version 1, `recovery_key` where the user has none."""

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
    recovery_key: MaybeKey


class _SignedHome(Struct, frozen=True):
    payload: bytes
    user_signature: Signature
    registrar_signature: Signature
    release: Signature = b""  # only of a version that moves the user


class HomeRecord(Struct, frozen=True):
    """A verified home record: `user` is filled in also for version 1, `digest` is what the next one chains to, and
    `former` has every id that the versions before listed and this one does not. `signed`: the bytes that travel, with
    the staple where there is one."""

    user: Hash
    digest: Hash
    payload: HomePayload
    signed: bytes
    former: tuple[Former, ...] = ()

    @property
    def version(self) -> int:
        return self.payload.version

    @property
    def cell(self) -> str:
        return self.payload.cell

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.payload.devices

    def stem(self, device: bytes, at_ms: int = 0) -> bytes | None:
        """The stem of a device that this version lists, or that an older one did and that was still enrolled at
        `at_ms`; None for any other."""
        for one in self.payload.devices:
            if one.id == device:
                return one.stem
        for gone in self.former:
            if gone.id == device and at_ms <= gone.until + REVOKED_GRACE:
                return gone.stem
        return None


_request: Decoder[tuple[bytes, bytes]] = Decoder(tuple[bytes, bytes], "enrolment request", 16 * KIB)
_signed_home: Decoder[_SignedHome] = Decoder(_SignedHome, "signed home record", 16 * KIB)
_home: Decoder[HomePayload] = Decoder(HomePayload, "home record", 16 * KIB)


def _outer(data: bytes) -> _SignedHome:
    """What was signed; a staple is another matter."""
    return _signed_home(split_home(data)[0])


def sign_home(
    payload: HomePayload, user_key: SigningKey, registrar_key: SigningKey, release_key: SigningKey | None = None
) -> bytes:
    """Sign one version. From version 2 on `user_key` is the key that the version before names (or its recovery key);
    `release_key` is that of the registrar of the region that the user leaves."""
    data = encode(payload)
    release = release_home(data, release_key) if release_key is not None else b""
    return join_home(data, ask_home(data, user_key), endorse_home(data, registrar_key), release)


def prove_devices(payload: HomePayload, keys: Iterable[SigningKey]) -> HomePayload:
    """The same with the proofs of the devices that have none yet and whose signing keys these are."""
    owner, known = _owner(payload), {bytes(key.verify_key): key for key in keys}
    return structs.replace(payload, devices=tuple(
        device if device.proof or device.id not in known else prove_device(device, owner, known[device.id])
        for device in payload.devices
    ))  # fmt: skip


def ask_home(payload: bytes, user_key: SigningKey) -> bytes:
    """The user's signature over a payload, with which the registrars are asked for theirs."""
    return sign(user_key, _HOME, payload)


def request_home(payload: HomePayload, key: SigningKey) -> bytes:
    """What the registrar is asked to sign: the payload, signed by `key` as in `sign_home`."""
    data = encode(payload)
    return pack([data, ask_home(data, key)])


def endorse_home(payload: bytes, registrar_key: SigningKey) -> bytes:
    """The registrar's signature over a payload: the rules are cluster.enrolment's."""
    return sign(registrar_key, _HOME, payload)


def endorse_request(request: bytes, registrar_key: SigningKey) -> bytes:
    """The signed record of a request that moves nobody, whatever it asks for. Raises ProtocolError."""
    payload, signature = _request(request)
    return join_home(payload, signature, endorse_home(payload, registrar_key))


def release_home(payload: bytes, registrar_key: SigningKey) -> bytes:
    """The signature with which the registrar of a region lets a user go, where the payload that was checked says."""
    return sign(registrar_key, _RELEASE, payload)


def released_by(key: bytes, payload: bytes, release: bytes) -> bool:
    """Is that a release by the registrar's key `key`?"""
    try:
        verify(key, _RELEASE, payload, release, "release")
    except BadSignature:
        return False
    return True


def join_home(payload: bytes, user_signature: bytes, registrar_signature: bytes, release: bytes = b"") -> bytes:
    """A signed home record of its parts. `release` is empty where nobody moves."""
    return pack([payload, user_signature, registrar_signature, *([release] if release else [])])


def read_home(signed: bytes, prev: HomeRecord | None = None) -> HomeRecord:
    """Parse without verifying: only for bytes that were verified before they were kept (a cell's own log). `former` is
    whole only where `prev` is the version before, and was read like this."""
    outer = _outer(signed)
    payload = _home(outer.payload)
    own = digest(outer.payload)
    former = prev.former if prev else ()
    if prev is not None:
        listed = {device.id for device in payload.devices}
        gone = (device for device in prev.devices if device.id not in listed)
        former += tuple(Former(device.id, device.stem, payload.not_before) for device in gone)
    return HomeRecord(payload.user or own, own, payload, signed, former)


def read_chain(chain: Sequence[bytes]) -> list[HomeRecord]:
    """`read_home` for all records of a user, from version 1 on: each knows which ids are gone."""
    read: list[HomeRecord] = []
    for signed in chain:
        read.append(read_home(signed, read[-1] if read else None))
    return read


def verify_home(
    signed: bytes, root: Root, prev: HomeRecord | None, spot: Spot | None = None, *, brought: bool = False
) -> HomeRecord:
    """Verify one version after `prev` (None: it must be version 1), against the root's registrar of its region and, if
    it moves the user, of the region that is left. `spot`: where it is logged; else its staple says so, and only if that
    matters. `brought`: it is an entry of another region's log than its own, whose registrar has asked when it was made.

    Raises BadSignature (ForeignDevice, RetiredKey), BrokenChain (ReturnedDevice), Overreach, NotReleased or TrustError
    (unknown region). Expiry is `check_current`'s business, because a chain may contain versions that have run out; and
    when the newest of a chain was signed is that of `check_stapled` (relay.core.trust.earlier)."""
    outer = _outer(signed)
    record = read_home(signed, prev)
    region = root.region(record.payload.region)
    recovered = _signed_by_recovery(outer, record.payload, prev)
    verify_endorsed(region, _HOME, outer.payload, outer.registrar_signature, BY_REGISTRAR)
    _check_asked(record, region, prev, recovered=recovered)
    _check_release(outer, root, record, prev, spot, brought=brought)
    return record


def verify_asked(
    payload: bytes, user_signature: bytes, root: Root, prev: HomeRecord | None, release: bytes = b"",
    spot: Spot | None = None,
) -> HomeRecord:  # fmt: skip
    """A version that no registrar has signed yet: everything that `verify_home` asks, but for the signatures of
    registrars; a `release` that is there must hold, with the key of now (or where it is logged: `spot`). Raises like
    it."""
    signed = join_home(payload, user_signature, bytes(64), release)
    outer, record = _signed_home(signed), read_home(signed, prev)
    recovered = _signed_by_recovery(outer, record.payload, prev)
    _check_asked(record, root.region(record.payload.region), prev, recovered=recovered)
    if release:
        _check_release(outer, root, record, prev, spot)
    return record


def key_before(record: HomeRecord, root: Root) -> EarlierKey | None:
    """The registrar's key of before that a verified record is signed with; None where it is the one of now."""
    region = root.region(record.payload.region)
    if not region.earlier:
        return None
    outer = _outer(record.signed)
    return verify_endorsed(region, _HOME, outer.payload, outer.registrar_signature, BY_REGISTRAR)


def let_go_before(record: HomeRecord, prev: HomeRecord, root: Root) -> bool:
    """Is it a move, and the key of the region that is left another one since it was released?"""
    left = root.region(prev.payload.region)
    if not left.earlier or not moves(record, prev):
        return False
    outer = _outer(record.signed)
    return not released_by(left.registrar_key, outer.payload, outer.release)


def moves(record: HomeRecord, prev: HomeRecord | None) -> bool:
    """Does this version bring the user to another cell than the one before it?"""
    return prev is not None and record.cell != prev.cell


def _check_asked(record: HomeRecord, region: RootRegion, prev: HomeRecord | None, *, recovered: bool) -> None:
    """What the record says, whoever signed it."""
    payload = record.payload
    if payload.version > MAX_CHAIN:
        raise TrustError(f"home record: version {payload.version} is beyond {MAX_CHAIN}", "Enrol the user anew")
    if payload.cell not in region.cell_names or not payload.cell.startswith(payload.region + "/"):
        raise TrustError(f"home record: cell {payload.cell} is not one of region {payload.region}")
    _check_chain(record, prev)
    _check_recovery(payload, prev.payload if prev else None, recovered=recovered)
    if payload.move_epoch != (prev.payload.move_epoch + moves(record, prev) if prev else 0):
        raise BrokenChain(f"home record: move_epoch {payload.move_epoch}; it counts the moves")
    _check_devices(record, prev)


def _check_release(
    outer: _SignedHome, root: Root, record: HomeRecord, prev: HomeRecord | None, spot: Spot | None,
    *, brought: bool = False,
) -> None:  # fmt: skip
    if prev is None or not moves(record, prev):
        if outer.release:
            raise BrokenChain(f"home record version {record.version} carries a release, and moves nobody")
        return
    if not outer.release:
        what = f"home record version {record.version} moves a user from {prev.cell} to {record.cell} without a release"
        raise NotReleased(what, f"The registrar of {prev.payload.region} has to sign it, too")
    left = root.region(prev.payload.region)
    what = f"home record, release by {left.name}"
    used = verify_endorsed(left, _RELEASE, outer.payload, outer.release, what)
    if used is not None and not brought:
        check_spot(used, spot or spot_of(record.signed, root, used), what)


def _owner(payload: HomePayload) -> bytes:
    """Whom a new device signs for: the user, or, in version 1, the record itself with no proof in it (its hash is to be
    the user's id, and cannot be in it)."""
    if payload.version > 1:
        return payload.user
    drafts = tuple(structs.replace(device, proof=b"") for device in payload.devices)
    return digest(encode(structs.replace(payload, devices=drafts)))


def _signed_by_recovery(outer: _SignedHome, payload: HomePayload, prev: HomeRecord | None) -> bool:
    """Did the recovery key sign, and not the user key? Raises BadSignature where neither did."""
    before = prev.payload if prev else payload
    try:
        verify(before.user_key, _HOME, outer.payload, outer.user_signature, "home record, user's key")
    except BadSignature:
        if prev is None or not before.recovery_key:
            raise
        what = "home record, neither the user's key nor the recovery key"
        verify(before.recovery_key, _HOME, outer.payload, outer.user_signature, what)
        return True
    return False


def _check_chain(record: HomeRecord, prev: HomeRecord | None) -> None:
    payload = record.payload
    if prev is None:
        chained = payload.version == 1 and not payload.user and not payload.prev
    else:
        chained = payload.version == prev.version + 1 and payload.user == prev.user and payload.prev == prev.digest
    if not chained:
        last = prev.version if prev else "nothing"
        raise BrokenChain(f"home record version {payload.version} does not follow {last}")
    if prev is not None and payload.not_before < prev.payload.not_before:
        raise Backdated(f"home record version {payload.version} begins before version {prev.version}",
                        "Make it with a `not_before` that is not earlier")  # fmt: skip
    if payload.expires <= payload.not_before:
        raise BrokenChain(f"home record version {payload.version} ends before it begins")


def _check_devices(record: HomeRecord, prev: HomeRecord | None) -> None:
    """A device stays as it is, is new, or takes the place of one (by its stem) that this version no longer lists."""
    devices = record.devices
    known = {device.id: device for device in prev.devices} if prev else {}
    owner = _owner(record.payload)
    left = {device.stem: device for device in known.values() if device.id not in {one.id for one in devices}}
    gone = {former.id for former in record.former}
    for device in devices:
        if device.id in gone:
            raise ReturnedDevice(
                f"home record version {record.version} lists device {device.id[:4].hex()}, which was revoked",
                "A revoked id never comes back: make new keys for the device",
            )
    if len({one.id for one in devices}) != len(devices) or len({one.stem for one in devices}) != len(devices):
        raise BrokenChain("home record: a device is listed twice")
    for device in devices:
        old = known.get(device.id)
        if old is not None:
            good = old == device
        elif device.first:
            good = device.first != device.id and device.first in left and left[device.first].since == device.since
        else:
            good = device.since == record.version
        if not good:
            raise BrokenChain("home record: a device's enrolment was changed")
        if old is None:
            verify_possession(device, owner)
    if len(record.former) > MAX_FORMER:
        raise TrustError(f"home record: {len(record.former)} revoked devices, {MAX_FORMER} fit", "Enrol the user anew")


def _check_recovery(payload: HomePayload, before: HomePayload | None, *, recovered: bool) -> None:
    """Who signed may not change more than the table at the top says."""
    if len(payload.recovery_key) not in (0, 32):
        raise BrokenChain("home record: the recovery key is no key")
    if payload.recovery_key == payload.user_key:
        raise BrokenChain("home record: the recovery key is the user key", "Make another one, and keep it apart")
    if before is None:
        return
    if before.recovery_key and not payload.recovery_key:
        raise Overreach("home record: the recovery key is gone", "It can only be replaced, and by itself")
    if not recovered and before.recovery_key and payload.recovery_key != before.recovery_key:
        raise Overreach("home record: the user key may not change the recovery key", "Sign with the recovery key")
    if recovered and payload.user_key == before.user_key:
        raise Overreach("home record: the recovery key signed, and the user key is the old one", "Make a new user key")
    if recovered and (payload.region, payload.cell, payload.move_epoch) != (
        before.region, before.cell, before.move_epoch,
    ):  # fmt: skip
        raise Overreach("home record: the recovery key may not move the user", "Move with the user key")
