"""Requests of clients that are not ours: signed when they are whole, and told what is wrong when they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs
from nacl.bindings import crypto_scalarmult
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from cluster.enrolment import (
    _SMALL, asked_region, left_region, read_records, release_enrolment, sign_enrolment,
)  # fmt: skip
from relay.core.codec import digest, encode, pack
from relay.core.trust import (
    Device, HomePayload, HomeRecord, Policy, Root, RootCell, RootRegion, prove_devices, verify_chain,
)
from relay.errors import (
    BadSignature, BrokenChain, ClosedBorder, NotValidNow, NotYet, OperatorError, PosthouseError, TrustError,
)  # fmt: skip
from relay.limits import DAY
from tests.points import NO_KEYS, forgeries, mixed, sign_mixed
from tests.roots import verified_root

NOW = 1_800_000_000_000
USER, PHONE, LAPTOP = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
REGISTRAR, OTHER = SigningKey(b"n" * 32), SigningKey(b"o" * 32)


@pytest.fixture(scope="module")
def root() -> Root:
    regions = (
        RootRegion("norden", b"", bytes(REGISTRAR.verify_key), (RootCell("norden/1", ()),)),
        RootRegion("sauda", b"", bytes(OTHER.verify_key), (RootCell("sauda/1", ()),)),
    )
    return verified_root(regions, NOW + 400 * DAY)


def device(key: SigningKey, since: int = 1) -> Device:
    return Device(bytes(key.verify_key), bytes(PrivateKey(bytes(key)).public_key), since, b"", b"")


def first(**more: Any) -> HomePayload:
    payload = HomePayload(
        1, b"", 1, b"", "norden", "norden/1", bytes(USER.verify_key), (device(PHONE),), 0, NOW - 60_000,
        NOW + 365 * DAY, b"",
    )  # fmt: skip
    return prove_devices(structs.replace(payload, **more), [PHONE, LAPTOP])


def ask(payload: HomePayload, key: SigningKey = USER) -> bytes:
    data = encode(payload)
    return pack([data, key.sign(b"posthouse.home\x00" + data).signature])


def following(record: HomeRecord, **more: Any) -> HomePayload:
    devices = (*record.devices, device(LAPTOP, record.version + 1))
    chained = {"user": record.user, "version": record.version + 1, "prev": record.digest, "devices": devices}
    return first(**{**chained, **more})


def test_a_user_a_further_device_and_another_year(root: Root) -> None:
    assert asked_region(ask(first()), root) == "norden"
    record, records = sign_enrolment(ask(first()), (), root, REGISTRAR, NOW)
    assert record.user == digest(encode(first())) and read_records(records) == (record.signed,)
    second, records = sign_enrolment(ask(following(record)), read_records(records), root, REGISTRAR, NOW)
    assert [one.id for one in second.devices] == [bytes(PHONE.verify_key), bytes(LAPTOP.verify_key)]
    later = NOW + 370 * DAY  # both have run out
    asked = following(second, devices=second.devices, not_before=later, expires=later + 10 * DAY)
    third, records = sign_enrolment(ask(asked), read_records(records), root, REGISTRAR, later)
    assert verify_chain(read_records(records), root, later, record.user) == third and third.version == 3


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"cell": "norden/2"}, TrustError, "not one of region norden"),
        ({"cell": "sauda/1"}, TrustError, "not one of region norden"),
        ({"region": "sauda", "cell": "sauda/1"}, OperatorError, "another registrar for sauda"),
        ({"version": 2}, BrokenChain, "does not follow"),
        ({"user": b"u" * 32}, BrokenChain, "does not follow"),
        ({"prev": b"p" * 32}, BrokenChain, "does not follow"),
        ({"devices": ()}, OperatorError, "no device"),
        ({"devices": (device(PHONE), device(PHONE))}, BrokenChain, "listed twice"),
        ({"devices": (device(PHONE, 2),)}, BrokenChain, "enrolment was changed"),
        ({"devices": (structs.replace(device(PHONE), id=bytes(32)),)}, OperatorError, "device 1's id"),
        ({"devices": (structs.replace(device(PHONE), encryption=bytes(32)),)}, OperatorError, "device 1's encryption"),
        ({"user_key": b"\x01" + bytes(31)}, OperatorError, "the user key is no Ed25519"),
        ({"move_epoch": 1}, OperatorError, "move_epoch 1"),
        ({"not_before": NOW + DAY}, NotYet, "not valid for another"),
        ({"expires": NOW}, NotValidNow, "has expired"),
        ({"expires": NOW + 400 * DAY}, OperatorError, "400 days"),
    ],
)
def test_what_is_not_signed(root: Root, change: dict[str, Any], error: type[PosthouseError], what: str) -> None:
    with pytest.raises(error, match=what):
        sign_enrolment(ask(first(**change)), (), root, REGISTRAR, NOW)


def test_what_does_not_follow_is_not_signed(root: Root) -> None:
    record, records = sign_enrolment(ask(first()), (), root, REGISTRAR, NOW)
    before = read_records(records)
    cases: list[tuple[bytes, type[PosthouseError]]] = [
        (ask(following(record), PHONE), BadSignature),  # a device is not the user
        (ask(following(record, prev=bytes(32))), BrokenChain),
        (ask(following(record, user=b"u" * 32)), BrokenChain),
        (ask(following(record, move_epoch=1)), OperatorError),
    ]
    for request, error in cases:
        with pytest.raises(error):
            sign_enrolment(request, before, root, REGISTRAR, NOW)
    with pytest.raises(BrokenChain):
        sign_enrolment(ask(following(record)), (), root, REGISTRAR, NOW)
    with pytest.raises(OperatorError, match="the version before"):
        sign_enrolment(ask(following(record)), (b"\xc1",), root, REGISTRAR, NOW)


@pytest.mark.parametrize(
    "make", [lambda: b"", lambda: b"\xc1", lambda: pack([b"", bytes(64)]), lambda: pack([encode(first()), b"short"]),
             lambda: pack([encode(first()), bytes(64), bytes(63)]), lambda: bytes(20_000),
             lambda: pack([encode(first()), bytes(64), bytes(64), bytes(64)])]
)  # fmt: skip
def test_what_is_no_request(root: Root, make: Callable[[], bytes]) -> None:
    with pytest.raises(OperatorError, match="no enrolment request"):
        asked_region(make(), root)


def test_what_is_of_no_region_or_no_records_file(root: Root) -> None:
    with pytest.raises(OperatorError, match=r"no region 'mars'.*norden, sauda"):
        asked_region(ask(first(region="mars", cell="mars/1")), root)
    with pytest.raises(OperatorError, match="the version before"):
        read_records(b"\xc1")
    with pytest.raises(BadSignature):
        sign_enrolment(ask(first(), PHONE), (), root, REGISTRAR, NOW)


def test_two_registrars_move_a_user_by_files(root: Root) -> None:
    record, records = sign_enrolment(ask(first()), (), root, REGISTRAR, NOW)
    before, away = read_records(records), {"region": "sauda", "cell": "sauda/1", "devices": record.devices}
    request = ask(following(record, **away, move_epoch=1))
    with pytest.raises(OperatorError, match="norden has not released it"):
        sign_enrolment(request, before, root, OTHER, NOW)
    assert left_region(before, root) == "norden"
    with pytest.raises(OperatorError, match="another registrar for norden"):
        release_enrolment(request, before, root, OTHER, NOW)
    asked, released = release_enrolment(request, before, root, REGISTRAR, NOW)
    assert asked.cell == "sauda/1" and asked_region(released, root) == "sauda"
    with pytest.raises(OperatorError, match="another registrar for sauda"):
        sign_enrolment(released, before, root, REGISTRAR, NOW)
    moved, records = sign_enrolment(released, before, root, OTHER, NOW)
    assert verify_chain(read_records(records), root, NOW, record.user) == moved and left_region(
        read_records(records), root
    ) == "sauda"


def test_what_is_not_released(root: Root) -> None:
    record, records = sign_enrolment(ask(first()), (), root, REGISTRAR, NOW)
    before, away = read_records(records), {"region": "sauda", "cell": "sauda/1", "devices": record.devices}
    cases: list[tuple[bytes, type[PosthouseError], str]] = [
        (ask(following(record, **away)), OperatorError, "counts it up by one: 1"),
        (ask(following(record, **away, move_epoch=1), PHONE), BadSignature, "user's key"),
        (ask(following(record)), OperatorError, "keeps the user in norden/1"),
        (ask(following(record, **away, move_epoch=1, expires=NOW + 400 * DAY)), OperatorError, "400 days"),
    ]
    for request, error, what in cases:
        with pytest.raises(error, match=what):
            release_enrolment(request, before, root, REGISTRAR, NOW)
    with pytest.raises(OperatorError, match="the home that it has"):
        release_enrolment(ask(first()), (), root, REGISTRAR, NOW)


@pytest.mark.parametrize("closed", ["norden", "sauda"])
def test_nobody_moves_over_a_border_that_mail_may_not_cross(root: Root, closed: str) -> None:
    """Neither the region that is left lets the user go, nor does the one that is entered take a release of before. The
    other direction stays open."""
    record, records = sign_enrolment(ask(first()), (), root, REGISTRAR, NOW)
    before, away = read_records(records), {"region": "sauda", "cell": "sauda/1", "devices": record.devices}
    request = ask(following(record, **away, move_epoch=1))
    _, released = release_enrolment(request, before, root, REGISTRAR, NOW)
    policy = Policy(send_to=()) if closed == "norden" else Policy(receive_from=())
    shut = verified_root(
        [structs.replace(one, policy=policy) if one.name == closed else one for one in root.payload.regions],
        NOW + 400 * DAY,
    )
    with pytest.raises(ClosedBorder, match=r"norden does not send|sauda does not receive"):
        release_enrolment(request, before, shut, REGISTRAR, NOW)
    with pytest.raises(ClosedBorder, match="would stay behind"):
        sign_enrolment(released, before, shut, OTHER, NOW)
    here = structs.replace(root.payload.regions[0], policy=Policy(receive_from=("sauda",)))
    opened = verified_root([here, root.payload.regions[1]], NOW + 400 * DAY)
    moved, _ = sign_enrolment(released, before, opened, OTHER, NOW)
    assert moved.cell == "sauda/1"


def test_encryption_keys_are_judged_as_the_library_judges_them(root: Root) -> None:
    """A key with which every shared secret is zero is refused in each of its forms, and no other one."""
    prime, good = 2**255 - 19, bytes(PHONE.verify_key.to_curve25519_public_key())
    small = [0, 1, prime - 1, prime, prime + 1, *_SMALL]
    forms = {(u + high * 2**255).to_bytes(32, "little") for u in small for high in (0, 1)}
    for key in (*forms, good, (2).to_bytes(32, "little"), (prime - 2).to_bytes(32, "little")):
        try:
            crypto_scalarmult(b"\x01" * 32, key)
            refused = False
        except CryptoError:
            refused = True
        assert refused == (key in forms)
        asked = first(devices=(structs.replace(device(PHONE), encryption=key),))
        if refused:
            with pytest.raises(OperatorError, match="no X25519 public key"):
                sign_enrolment(ask(asked), (), root, REGISTRAR, NOW)
        else:
            sign_enrolment(ask(asked), (), root, REGISTRAR, NOW)


def test_a_new_user_key_that_signs_nothing_yet_is_a_key(root: Root) -> None:
    record, records = sign_enrolment(ask(first()), (), root, REGISTRAR, NOW)
    asked = ask(following(record, user_key=b"\x01" + bytes(31)))
    with pytest.raises(OperatorError, match="the user key is no Ed25519"):
        sign_enrolment(asked, read_records(records), root, REGISTRAR, NOW)


@pytest.mark.parametrize("key", NO_KEYS, ids=bytes.hex)
@pytest.mark.parametrize("which", ["user", "device", "further device", "next user", "recovery"])
def test_no_key_for_which_everybody_could_sign_is_enrolled(root: Root, which: str, key: bytes) -> None:
    """Nor one that only looks like another's, whoever forges what it would have to sign."""
    record, records = sign_enrolment(ask(first()), (), root, REGISTRAR, NOW)
    for forged in forgeries():
        one, before, user = structs.replace(device(PHONE), id=key, proof=forged), read_records(records), USER
        if which == "user":
            payload, before, user = first(user_key=key), (), None
        elif which == "device":
            payload, before = structs.replace(first(), devices=(one,)), ()
        elif which == "further device":
            payload = following(record)
            payload = structs.replace(payload, devices=(record.devices[0], structs.replace(one, since=2)))
        elif which == "next user":
            payload = following(record, user_key=key)
        else:
            payload, before = first(recovery_key=key), ()
        request = ask(payload) if user else pack([encode(payload), forged])
        with pytest.raises(OperatorError, match="is no Ed25519 public key"):
            sign_enrolment(request, before, root, REGISTRAR, NOW)


def test_a_key_of_mixed_order_is_its_makers_own_harm(root: Root) -> None:
    """It is taken where it has signed, since nobody but its maker can; where it has not, it is asked of the curve."""
    scalar, key = mixed(b"user")
    payload = first(user_key=key)
    data = encode(payload)
    signature = sign_mixed(scalar, key, b"posthouse.home\x00" + data)
    record, _ = sign_enrolment(pack([data, signature]), (), root, REGISTRAR, NOW)
    assert record.payload.user_key == key
    for changed in (first(recovery_key=key), following(sign_enrolment(ask(first()), (), root, REGISTRAR, NOW)[0])):
        asked = changed if changed.recovery_key else structs.replace(changed, user_key=key)
        before = () if changed.recovery_key else read_records(sign_enrolment(ask(first()), (), root, REGISTRAR, NOW)[1])
        with pytest.raises(OperatorError, match="is no Ed25519 public key"):
            sign_enrolment(ask(asked), before, root, REGISTRAR, NOW)
