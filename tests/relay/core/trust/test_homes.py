"""Home records, and above all moves: which signatures they need, and what an attacker who has some of them gets."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs
from nacl.signing import SigningKey

from relay.core.codec import encode
from relay.core.trust import (
    Device, HomePayload, HomeRecord, Root, RootCell, RootRegion, ask_home, endorse_home, join_home, moves,
    prove_devices, release_home, sign_home, verify_asked, verify_chain, verify_home,
)
from relay.errors import BadSignature, BrokenChain, NotReleased, ProtocolError, TrustError
from tests.roots import verified_root

NOW = 1_800_000_000_000
USER, THIEF = SigningKey(b"u" * 32), SigningKey(b"t" * 32)
NORDEN, SAUDA, OSTLAND = (SigningKey(letter * 32) for letter in (b"n", b"s", b"o"))


def make_root() -> Root:
    regions = tuple(
        RootRegion(name, b"", bytes(key.verify_key), (RootCell(f"{name}/1", ()), RootCell(f"{name}/2", ())))
        for name, key in (("norden", NORDEN), ("ostland", OSTLAND), ("sauda", SAUDA))
    )
    return verified_root(regions, NOW + 1)


ROOT = make_root()


def first() -> HomeRecord:
    device = Device(bytes(USER.verify_key), bytes(32), 1, b"", b"")
    payload = HomePayload(1, b"", 1, b"", "norden", "norden/1", bytes(USER.verify_key), (device,), 0, 0, NOW + 1, b"")
    return verify_home(sign_home(prove_devices(payload, [USER]), USER, NORDEN), ROOT, None)


def after(last: HomeRecord, cell: str, **change: Any) -> HomePayload:
    place: dict[str, Any] = {"region": cell.partition("/")[0], "cell": cell}
    place["move_epoch"] = last.payload.move_epoch + (cell != last.cell)
    chained = {"user": last.user, "version": last.version + 1, "prev": last.digest}
    return structs.replace(last.payload, **{**chained, **place, **change})


def moved(last: HomeRecord, cell: str, entered: SigningKey, left: SigningKey) -> HomeRecord:
    return verify_home(sign_home(after(last, cell), USER, entered, left), ROOT, last)


def test_a_user_moves_away_within_a_region_and_back() -> None:
    one = first()
    two = moved(one, "sauda/1", SAUDA, NORDEN)
    three = moved(two, "sauda/2", SAUDA, SAUDA)
    four = moved(three, "norden/1", NORDEN, SAUDA)
    assert [r.payload.move_epoch for r in (one, two, three, four)] == [0, 1, 2, 3]
    assert moves(two, one) and not moves(one, None)
    stays = verify_home(sign_home(after(four, "norden/1"), USER, NORDEN), ROOT, four)
    assert not moves(stays, four)
    assert verify_chain([r.signed for r in (one, two, three, four, stays)], ROOT, NOW, one.user) == stays


@pytest.mark.parametrize(
    ("user", "entered", "left", "error"),
    [
        (USER, SAUDA, None, NotReleased),  # a stolen user key, and one foreign registrar
        (USER, SAUDA, SAUDA, BadSignature),  # that registrar says that it releases, too
        (USER, SAUDA, OSTLAND, BadSignature),  # two foreign registrars
        (THIEF, SAUDA, NORDEN, BadSignature),  # both registrars, without the user
        (USER, NORDEN, NORDEN, BadSignature),  # the region that is entered does not agree
        (USER, THIEF, NORDEN, BadSignature),
    ],
)
def test_nobody_moves_without_all_three(
    user: SigningKey, entered: SigningKey, left: SigningKey | None, error: type[TrustError]
) -> None:
    one = first()
    signed = sign_home(after(one, "sauda/1"), user, entered, left)
    with pytest.raises(error):
        verify_home(signed, ROOT, one)
    with pytest.raises(error):
        verify_chain([one.signed, signed], ROOT, NOW, one.user)


def test_a_registrars_ordinary_signature_releases_nobody() -> None:
    """The domains differ: what was signed as an enrolment in the region that is left cannot be shown as a release."""
    one = first()
    data = encode(after(one, "sauda/1"))
    signed = join_home(data, ask_home(data, USER), endorse_home(data, SAUDA), endorse_home(data, NORDEN))
    with pytest.raises(BadSignature, match="release by norden"):
        verify_home(signed, ROOT, one)
    crossed = join_home(data, ask_home(data, USER), release_home(data, SAUDA), release_home(data, NORDEN))
    with pytest.raises(BadSignature, match="registrar"):
        verify_home(crossed, ROOT, one)


def test_a_release_is_for_one_move_only() -> None:
    """The release of an earlier move, from the same region, does not hold for another: it is over the exact bytes."""
    one = first()
    away = after(one, "sauda/1")
    back = moved(moved(one, "sauda/1", SAUDA, NORDEN), "norden/1", NORDEN, SAUDA)
    again = encode(after(back, "sauda/1"))
    old = release_home(encode(away), NORDEN)
    with pytest.raises(BadSignature, match="release"):
        verify_home(join_home(again, ask_home(again, USER), endorse_home(again, SAUDA), old), ROOT, back)


@pytest.mark.parametrize(
    ("cell", "change"),
    [
        ("sauda/1", {"move_epoch": 0}), ("sauda/1", {"move_epoch": 2}), ("norden/1", {"move_epoch": 1}),
        ("sauda/1", {"prev": bytes(32)}), ("sauda/1", {"version": 3}),
    ],
)  # fmt: skip
def test_a_move_follows_and_is_counted(cell: str, change: dict[str, Any]) -> None:
    one = first()
    entered, left = (SAUDA, NORDEN) if cell == "sauda/1" else (NORDEN, None)
    with pytest.raises(BrokenChain):
        verify_home(sign_home(after(one, cell, **change), USER, entered, left), ROOT, one)


def test_a_first_record_moves_nobody_and_carries_no_release() -> None:
    one = first()
    for payload, key in ((structs.replace(one.payload, move_epoch=1), None), (one.payload, NORDEN)):
        with pytest.raises(BrokenChain):
            verify_home(sign_home(payload, USER, NORDEN, key), ROOT, None)
    with pytest.raises(BrokenChain, match="moves nobody"):
        verify_home(sign_home(after(one, "norden/1"), USER, NORDEN, NORDEN), ROOT, one)
    data = encode(one.payload)
    with pytest.raises(ProtocolError):  # one record has one form: an empty release is none
        verify_home(join_home(data, bytes(64), bytes(64)).replace(b"\x93", b"\x94", 1) + b"\xc4\x00", ROOT, None)


def test_a_move_is_not_taken_back_by_an_older_record() -> None:
    one = first()
    two = moved(one, "sauda/1", SAUDA, NORDEN)
    stay = verify_home(sign_home(after(one, "norden/1"), USER, NORDEN), ROOT, one)
    with pytest.raises(BrokenChain, match="fork"):  # the region that is left signs another version 2
        verify_chain([one.signed, stay.signed], ROOT, NOW, one.user, known=two)
    assert verify_chain([one.signed], ROOT, NOW, one.user, known=two) == two  # an older one alone changes nothing
    with pytest.raises(BrokenChain):
        verify_home(one.signed, ROOT, two)


def test_what_no_registrar_signed_yet_is_checked_all_the_same() -> None:
    one = first()
    data = encode(after(one, "sauda/1"))
    assert verify_asked(data, ask_home(data, USER), ROOT, one).cell == "sauda/1"
    assert verify_asked(data, ask_home(data, USER), ROOT, one, release_home(data, NORDEN)).cell == "sauda/1"
    for signature, release in ((ask_home(data, THIEF), b""), (ask_home(data, USER), release_home(data, SAUDA))):
        with pytest.raises(BadSignature):
            verify_asked(data, signature, ROOT, one, release)
    wrong = encode(after(one, "sauda/3"))
    with pytest.raises(TrustError, match="not one of region sauda"):
        verify_asked(wrong, ask_home(wrong, USER), ROOT, one)
