"""Home records for keys that were made elsewhere: what a client asks for is checked whole, and signed by the registrar.

    request  = [payload, signature by the user key, or the recovery key]       docs/PROTOCOL.md, section 5
    released = [payload, signature by the user key, release]    a request to move, with the consent of the region left;
               or [released, staple], where that has a log
    records  = [signed home record, …]                          oldest first: what AUTH takes

The registrar's signature is given only to what every verifier of the federation will take, and no longer than for a
year: then the user asks again.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Final, NamedTuple

from msgspec import structs
from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.signing import SigningKey

from relay.client.identity import LIFETIME
from relay.core.codec import Decoder, Struct, pack
from relay.core.policy import Policies
from relay.core.shapes import Signature
from relay.core.trust import (
    HomePayload, HomeRecord, Root, Spot, check_current, check_stapled, endorse_home, join_home, moves, read_home,
    release_home, released_by, split_home, verify_asked, verify_home,
)
from relay.errors import (
    AlreadyReleased, BadSignature, ClosedBorder, NotReleased, OperatorError, ProtocolError, VersionTaken,
)  # fmt: skip
from relay.limits import DAY, KIB, MAX_CHAIN

_AGAIN: Final = "Make the request again: docs/PROTOCOL.md, section 5, says what is in it"

# The u-coordinates of the points of Curve25519 and its twist whose order divides 8 (RFC 7748 section 6.1): with one of
# them every shared secret is zero, and nobody can seal. The two long ones are points of order 8.
_PRIME: Final = 2**255 - 19
_SMALL: Final = frozenset((
    0, 1, _PRIME - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
))  # fmt: skip

_BEFORE: Final = "Give the file that the registrar made for the version before"


class _Request(Struct, frozen=True):
    payload: bytes
    user_signature: Signature
    release: Signature = b""


_read_request: Decoder[_Request] = Decoder(_Request, "enrolment request", 16 * KIB)
_read_records: Decoder[tuple[bytes, ...]] = Decoder(tuple[bytes, ...], "home records", MAX_CHAIN * 17 * KIB)


def read_records(data: bytes) -> tuple[bytes, ...]:
    """The signed records in a file that `sign_enrolment` made. Raises OperatorError."""
    try:
        return _read_records(data)
    except ProtocolError as error:
        raise OperatorError(error.text, _BEFORE) from None


def asked_region(request: bytes, root: Root) -> str:
    """The region whose registrar has to sign. Raises OperatorError for what is no request, or of no such region."""
    asked = _unsigned(request).payload.region
    known = [region.name for region in root.payload.regions]
    if asked not in known:
        raise OperatorError(f"the federation has no region {asked!r}", f"Its regions are: {', '.join(known)}")
    return asked


class Asked(NamedTuple):
    """A request, parsed and not verified: its bytes, what it asks for, for whom, and the digest of the record to be."""

    request: bytes
    payload: HomePayload
    user: bytes
    digest: bytes


def read_request(request: bytes) -> Asked:
    """Raises OperatorError for what is no request."""
    record = _unsigned(request)
    return Asked(request, record.payload, record.user, record.digest)


def sign_enrolment(
    request: bytes, before: Sequence[bytes], root: Root, registrar: SigningKey, now_ms: int
) -> tuple[HomeRecord, bytes]:
    """Check a request, which follows the records `before` (none for a new user), and sign it: the new record, and all
    records in the form that AUTH takes. `before` has to be everything that this registrar ever signed for the user:
    then no version can be signed twice. What was signed already is given out again.

    Raises OperatorError (not well formed, another region's, keys that are none), VersionTaken (another one of that
    version was signed), TrustError and its kinds (a signature does not hold, it does not follow, or who signed may not
    change that)."""
    asked = read_request(request)
    check_registrar(root, asked.payload.region, registrar)
    last = _last(before, root)
    for number, signed in enumerate(before, 1):
        if read_home(signed).digest == asked.digest:
            return read_home(signed), pack(list(before[:number]))
    record = sign_next(asked, last, root, registrar, now_ms)
    return record, pack([*before, record.signed])


def check_registrar(root: Root, region: str, registrar: SigningKey) -> None:
    """The root names this key for the region. Raises OperatorError."""
    if bytes(registrar.verify_key) != root.region(region).registrar_key:
        what = f"the root document names another registrar for {region} than the one whose key is here"
        raise OperatorError(what, "Restore the key of `posthouse init region`, or take in the newer root")


def sign_next(
    asked: Asked, last: HomeRecord | None, root: Root, registrar: SigningKey, now_ms: int
) -> HomeRecord:
    """The same for a request after a verified record (None: for a new user) by the registrar of its region, which has
    not signed it before. `registrar` is the key that the root names: `check_registrar` is the caller's, once. Nothing
    is verified twice: what `verify_asked` leaves out is the signature that is made here."""
    _check_new(asked, last)
    _check_moves(asked.payload, last)
    _check_border(asked.payload, last, root)
    outer = _read_request(asked.request)
    wanted = _verified(asked, last, root, outer.release)
    if last is not None and moves(wanted, last) and not outer.release:
        raise OperatorError(
            f"the user is at home in {last.cell}, and {last.payload.region} has not released it",
            "Have its registrar release the request first (`posthouse registrar release`, or `posthouse user release`)",
        )
    _check_term(wanted, now_ms)
    signed = join_home(outer.payload, outer.user_signature, endorse_home(outer.payload, registrar), outer.release)
    return structs.replace(wanted, signed=signed)


def _check_new(asked: Asked, last: HomeRecord | None) -> None:
    """Raises VersionTaken."""
    if last is not None and asked.user == last.user and asked.payload.version <= last.version:
        raise VersionTaken(
            f"version {asked.payload.version} of this user was signed already, for another request: another device was "
            "faster", f"Take in the records that the registrar has, and ask for version {last.version + 1}",
        )  # fmt: skip


def change_of(record: HomeRecord, last: HomeRecord | None) -> str:
    """What a version does, for the audit log: "enrol" the first one, "move"; else what is other than before, joined by
    "+": "add" and "revoke" devices, "rotate-device", "rotate-user", "recovery"; "renew" where it is only newer."""
    if last is None:
        return "enrol"
    before, after = ({one.stem: one.id for one in some.devices} for some in (last, record))
    found = {
        "move": moves(record, last),
        "add": bool(after.keys() - before.keys()),
        "revoke": bool(before.keys() - after.keys()),
        "rotate-device": any(before[stem] != after[stem] for stem in before.keys() & after.keys()),
        "rotate-user": record.payload.user_key != last.payload.user_key,
        "recovery": record.payload.recovery_key != last.payload.recovery_key,
    }
    return "+".join(name for name, is_so in found.items() if is_so) or "renew"


def noted(what: str, user: bytes, version: int) -> str:
    """An action of a registrar, as its audit log has it: of the user no more than the logs have."""
    return f"{what} {user[:4].hex()} v{version}"


def release_enrolment(
    request: bytes, before: Sequence[bytes], root: Root, registrar: SigningKey, now_ms: int
) -> tuple[HomeRecord, bytes]:
    """Check a request to move, which follows the records `before`, and let the user go: what is asked for, and the
    request with the release, for the registrar of the region that is entered.

    Raises like `sign_enrolment`."""
    asked, last = read_request(request), _last(before, root)
    if last is None:
        raise OperatorError("a user is released from the home that it has", _BEFORE)
    _check_new(asked, last)
    check_registrar(root, last.payload.region, registrar)
    return release_next(asked, last, root, registrar, now_ms)


def release_next(
    asked: Asked, last: HomeRecord, root: Root, registrar: SigningKey, now_ms: int
) -> tuple[HomeRecord, bytes]:
    """The same for a request after a verified record, by the registrar of its region, which has released nobody with it
    before. `registrar` is the key that the root names: `check_registrar` is the caller's, once."""
    _check_new(asked, last)
    _check_moves(asked.payload, last)
    _check_border(asked.payload, last, root)
    outer = _read_request(asked.request)
    record = _verified(asked, last, root)
    if not moves(record, last):
        raise OperatorError(f"the request keeps the user in {last.cell}", "Only a move is released; sign it instead")
    _check_term(record, now_ms)
    return record, pack([outer.payload, outer.user_signature, release_home(outer.payload, registrar)])


def verify_release(released: bytes, root: Root, last: HomeRecord, spot: Spot | None = None) -> HomeRecord:
    """What a released request asks for after the verified record `last`, whose region let the user go. Offline. `spot`:
    where the release is logged; it may be of the registrar's key of before then.

    Raises OperatorError for what is no request; NotReleased, BadSignature and what else `verify_asked` raises."""
    asked, outer = read_request(released), _read_request(released)
    if not outer.release:
        raise NotReleased(f"version {asked.payload.version} of this user carries no release")
    return verify_asked(outer.payload, outer.user_signature, root, last, outer.release, spot)


def stands(asked: Asked, root: Root, region: str) -> bool:
    """Would the release in a request that `region` let go before be taken now? Not if its registrar has another key
    since."""
    outer, left = _read_request(asked.request), root.region(region)
    return not left.earlier or released_by(left.registrar_key, outer.payload, outer.release)


def split_release(data: bytes) -> tuple[bytes, bytes]:
    """A request, and, of one that a region with a log released, the staple of the release (else empty): such a one
    travels as `[released request, staple]`. (A request that nobody released is a pair, too: its signature is 64 bytes,
    a staple is longer.)"""
    try:
        request, staple = split_home(data)
    except ProtocolError:
        return data, b""  # no request: who reads it says so
    return (request, staple) if len(staple) > 64 else (data, b"")


def check_released(gone: Asked | None, version: int, digest: bytes) -> None:
    """The record of the version with which a region let a user go (`gone`, the newest such) is that one and no other.
    Raises AlreadyReleased."""
    if gone is not None and version == gone.payload.version and digest != gone.digest:
        raise AlreadyReleased(
            f"version {version} of this user was released, for the move to {gone.payload.cell}",
            f"Have the registrar of {gone.payload.region} sign that request; what is asked for now comes after it",
        )


def left_region(before: Sequence[bytes], root: Root) -> str:
    """The region in which the records `before` end: its registrar has to release the user. Raises OperatorError."""
    last = _last(before, root)
    if last is None:
        raise OperatorError("no home record", _BEFORE)
    return last.payload.region


def _check_term(record: HomeRecord, now_ms: int) -> None:
    check_current(record, now_ms)
    if record.payload.expires > now_ms + LIFETIME + DAY:
        days = (record.payload.expires - now_ms) // DAY
        raise OperatorError(f"the record would be valid for {days} days", f"At most {LIFETIME // DAY}; then ask again")


def _last(before: Sequence[bytes], root: Root) -> HomeRecord | None:
    """The newest of the records before; it may have run out."""
    last: HomeRecord | None = None
    try:
        for signed in before:
            last = verify_home(signed, root, last)
    except ProtocolError as error:
        raise OperatorError(f"the records before: {error.text}", _BEFORE) from None
    if last is not None and root.region(last.payload.region).earlier:
        check_stapled(last, root)
    return last


def _unsigned(request: bytes) -> HomeRecord:
    try:
        outer = _read_request(request)
        return read_home(join_home(outer.payload, outer.user_signature, bytes(64)))
    except ProtocolError as error:
        raise OperatorError(f"no enrolment request: {error.text}", error.remedy or _AGAIN) from None


def _verified(asked: Asked, last: HomeRecord | None, root: Root, release: bytes = b"") -> HomeRecord:
    """`verify_asked`, and that the keys are keys: with others nobody could reach the user, for good. A key that has
    signed here is one: to ask the curve takes as long as verifying. Where a signature does not hold because its key is
    none, that is what is said."""
    payload, outer = asked.payload, _read_request(asked.request)
    _check_listed(payload)
    signers = {device.id for device in payload.devices} | {(last.payload if last else payload).user_key}
    try:
        record = verify_asked(outer.payload, outer.user_signature, root, last, release)
    except BadSignature:
        _check_points(payload, set())
        raise
    _check_points(payload, signers)
    return record


def _check_listed(payload: HomePayload) -> None:
    if not payload.devices:
        raise OperatorError("the request lists no device", _AGAIN)
    if payload.recovery_key and payload.recovery_key in {payload.user_key, *(one.id for one in payload.devices)}:
        raise OperatorError("the recovery key is another key of the request, too", "Make one that is kept apart")
    for number, device in enumerate(payload.devices, 1):
        if int.from_bytes(device.encryption, "little") % (1 << 255) % _PRIME in _SMALL:
            raise OperatorError(f"device {number}'s encryption key is no X25519 public key", _AGAIN)


def _check_points(payload: HomePayload, known: Set[bytes]) -> None:
    """The keys that are not `known` are points of Ed25519's main subgroup."""
    keys = {"the user key": payload.user_key} | {f"device {n}'s id": one.id for n, one in enumerate(payload.devices, 1)}
    if payload.recovery_key:
        keys["the recovery key"] = payload.recovery_key
    for name, key in keys.items():
        if key not in known and not crypto_core_ed25519_is_valid_point(key):
            raise OperatorError(f"{name} is no Ed25519 public key", _AGAIN)


def _check_border(payload: HomePayload, last: HomeRecord | None, root: Root) -> None:
    """What waits for a user who moves follows, and its senders were told that it is stored: nobody moves over a border
    that mail may not cross."""
    why = Policies(root).forbidden(last.cell, payload.cell) if last is not None else ""
    if last is not None and why:
        raise ClosedBorder(
            f"the user cannot move from {last.cell} to {payload.cell}: {why}, and what waits for the user would stay "
            "behind", "Have the policies of both regions permit it first; or let the user begin there anew",
        )  # fmt: skip


def _check_moves(payload: HomePayload, last: HomeRecord | None) -> None:
    """The same as every verifier asks, in words for who made the request."""
    if last is None:
        if payload.move_epoch:
            raise OperatorError(f"move_epoch {payload.move_epoch} in a first record", "It is 0 there")
        return
    epoch, before = last.payload.move_epoch, last.cell
    if payload.cell == before and payload.move_epoch != epoch:
        what = f"the request keeps the user in {before} with move_epoch {payload.move_epoch}"
        raise OperatorError(what, f"Keep move_epoch {epoch}, too")
    if payload.cell != before and payload.move_epoch != epoch + 1:
        what = f"the request moves the user from {before} to {payload.cell} with move_epoch {payload.move_epoch}"
        raise OperatorError(what, f"A move counts it up by one: {epoch + 1}")
