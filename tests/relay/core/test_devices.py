"""Who may sign which version of a home record, and what may never come back (ADR 24): each attack against real code."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from nacl.signing import SigningKey

from relay.core.codec import digest
from relay.core.trust import (
    REVOKED_GRACE, Device, HomePayload, HomeRecord, Root, RootCell, RootRegion, prove_devices, read_home, sign_home,
    check_current, verify_chain, verify_home,
)  # fmt: skip
from relay.errors import (
    Backdated, BadSignature, BrokenChain, ForeignDevice, NotValidNow, NotYet, Overreach, PosthouseError, ReturnedDevice,
    TrustError,
)  # fmt: skip
from relay.limits import DAY, HOME_CLOCK_AHEAD, MAX_FORMER
from tests.proofs import proven
from tests.roots import verified_root

NOW = 1_800_000_000_000
KEYS: dict[bytes, SigningKey] = {}  # of every device that `device` made


def key(name: str) -> SigningKey:
    return SigningKey(digest(name.encode()))


def public(name: str) -> bytes:
    return bytes(key(name).verify_key)


def device(name: str, since: int = 1, first: str = "") -> Device:
    KEYS[public(name)] = key(name)
    return Device(public(name), digest(name.encode()), since, public(first) if first else b"", b"")


def make_root() -> Root:
    regions = tuple(
        RootRegion(name, b"", public(f"{name} registrar"), (RootCell(f"{name}/1", ()),)) for name in ("norden", "sauda")
    )
    return verified_root(regions, NOW + 400 * DAY)


ROOT = make_root()


def first(**more: Any) -> HomePayload:
    payload = HomePayload(
        1, b"", 1, b"", "norden", "norden/1", public("user"), (device("phone"),), 0, NOW, NOW + DAY, public("paper")
    )
    return prove_devices(structs.replace(payload, **more), KEYS.values())


def sign(payload: HomePayload, signer: str = "user", registrar: str = "norden registrar") -> bytes:
    return sign_home(payload, key(signer), key(registrar))


def start(**more: Any) -> HomeRecord:
    return verify_home(sign(first(**more)), ROOT, None)


def after(record: HomeRecord, **more: Any) -> HomePayload:
    chained = {"user": record.user, "version": record.version + 1, "prev": record.digest}
    return proven(structs.replace(record.payload, **{**chained, **more}), KEYS.values(), record.devices)


def follow(record: HomeRecord, signer: str = "user", **more: Any) -> HomeRecord:
    return verify_home(sign(after(record, **more), signer), ROOT, record)


# --- who signs -----------------------------------------------------------------------------------
def test_one_signature_is_not_enough() -> None:
    """The user key alone, the registrar's alone, a device's, another user's recovery key, another registrar's."""
    record = start()
    payload = after(record, devices=(*record.devices, device("new", 2)))
    for signer, registrar in (
        ("user", "user"), ("norden registrar", "norden registrar"), ("phone", "norden registrar"),
        ("other paper", "norden registrar"), ("user", "sauda registrar"), ("paper", "paper"),
    ):  # fmt: skip
        with pytest.raises(BadSignature):
            verify_home(sign(payload, signer, registrar), ROOT, record)
    with pytest.raises(BadSignature):  # nobody is before version 1 whose recovery key it could be
        verify_home(sign(first(), "paper"), ROOT, None)
    assert verify_home(sign(payload), ROOT, record).version == 2


def test_a_user_without_a_recovery_key_may_get_one_and_then_keeps_it() -> None:
    record = start(recovery_key=b"")
    with pytest.raises(BadSignature):
        follow(record, "paper", user_key=public("thief"))
    second = follow(record, recovery_key=public("paper"))
    assert follow(second, "paper", user_key=public("mine")).payload.user_key == public("mine")


@pytest.mark.parametrize("change", [{"recovery_key": b""}, {"recovery_key": public("thief's paper")}])
@pytest.mark.parametrize("more", [{}, {"user_key": public("thief")}, {"devices": (device("thief's phone", 2),)}])
def test_a_stolen_user_key_cannot_touch_the_recovery_key(change: dict[str, Any], more: dict[str, Any]) -> None:
    record = start()
    with pytest.raises(Overreach, match="recovery key"):
        follow(record, **change, **more)
    # What the thief can do, the recovery key undoes, and the thief's key is worth nothing after that.
    stolen = follow(record, user_key=public("thief"), devices=(device("thief's phone", 2),))
    mine = follow(stolen, "paper", user_key=public("mine"), devices=(device("new phone", 3),))
    for signer in ("thief", "user", "phone", "thief's phone"):
        with pytest.raises(BadSignature):
            follow(mine, signer)
    assert follow(mine, "mine").version == 4


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, "the user key is the old one"),
        ({"user_key": public("mine"), "recovery_key": b""}, "recovery key is gone"),
        ({"user_key": public("mine"), "region": "sauda", "cell": "sauda/1"}, "may not move"),
        ({"user_key": public("mine"), "move_epoch": 1}, "may not move"),
    ],
)
def test_what_the_recovery_key_may_not(change: dict[str, Any], what: str) -> None:
    registrar = f"{change.get('region', 'norden')} registrar"
    record = start()
    with pytest.raises(Overreach, match=what):
        verify_home(sign(after(record, **change), "paper", registrar), ROOT, record)


def test_the_recovery_key_replaces_itself() -> None:
    second = follow(start(), "paper", user_key=public("mine"), recovery_key=public("new paper"))
    with pytest.raises(BadSignature):
        follow(second, "paper", user_key=public("thief"))
    assert follow(second, "new paper", user_key=public("third")).version == 3


@pytest.mark.parametrize("bad", [public("user"), b"short", b"\0" * 31])
def test_what_is_no_recovery_key(bad: bytes) -> None:
    with pytest.raises(BrokenChain, match="recovery key"):
        start(recovery_key=bad)
    with pytest.raises(BrokenChain, match="recovery key"):
        follow(start(recovery_key=b""), recovery_key=bad)


# --- devices -------------------------------------------------------------------------------------
def test_a_revoked_id_never_comes_back() -> None:
    record = start(devices=(device("phone"), device("laptop")))
    revoked = follow(record, devices=(device("laptop"),))
    assert [one.id for one in revoked.former] == [public("phone")]
    for again in (device("phone"), device("phone", 3), device("phone", 1, "laptop")):
        with pytest.raises(ReturnedDevice, match="revoked"):
            follow(revoked, devices=(device("laptop"), again))
        with pytest.raises(ReturnedDevice):  # nor by the recovery key
            follow(revoked, "paper", user_key=public("mine"), devices=(again,))
    later = follow(revoked, devices=(device("laptop"), device("tablet", 3)))
    with pytest.raises(ReturnedDevice):
        follow(later, devices=(device("phone", 4),))


def test_an_older_version_brings_nobody_back() -> None:
    both = start(devices=(device("phone"), device("laptop")))
    revoked = follow(both, devices=(device("laptop"),))
    assert verify_chain([both.signed], ROOT, NOW, both.user, revoked) == revoked
    with pytest.raises(BrokenChain):  # the same again under the next number does not follow
        verify_chain([sign(structs.replace(both.payload, version=3))], ROOT, NOW, both.user, revoked)
    other = sign(after(both, devices=(device("phone"),)))
    with pytest.raises(BrokenChain, match="fork"):
        verify_chain([other], ROOT, NOW, both.user, revoked)


def test_keys_are_rotated_in_the_place_of_the_old() -> None:
    record = start(devices=(device("phone"), device("laptop")))
    second = follow(record, devices=(device("phone 2", 1, "phone"), device("laptop")))
    third = follow(second, devices=(device("phone 3", 1, "phone"), device("laptop")))
    assert third.stem(public("phone 3")) == public("phone") == third.stem(public("phone 2"))
    assert third.stem(public("laptop")) == public("laptop") and third.stem(public("other")) is None
    assert third.stem(public("phone"), NOW + REVOKED_GRACE) == public("phone")
    assert third.stem(public("phone"), NOW + REVOKED_GRACE + 1) is None
    for bad in (
        (device("phone 4", 1, "phone"), *third.devices),  # twice
        (device("phone 4", 4, "phone"), device("laptop")),  # another since
        (device("phone 4", 1, "phone 3"), device("laptop")),  # the id of today is not the stem
        (device("phone 4", 1, "tablet"), device("laptop")),
        (*third.devices, device("x", 4, "x")),
        (structs.replace(third.devices[0], first=b""), device("laptop")),
    ):
        with pytest.raises(BrokenChain):
            follow(third, devices=bad)
    with pytest.raises(ReturnedDevice):
        follow(third, devices=(device("phone", 1), device("laptop")))


def test_what_is_gone_is_bounded() -> None:
    record = start(devices=tuple(device(f"0.{n}") for n in range(32)))
    for version in range(2, MAX_FORMER // 32 + 2):
        record = follow(record, devices=tuple(device(f"{version}.{n}", version) for n in range(32)))
    assert len(record.former) == MAX_FORMER
    with pytest.raises(TrustError, match="256 fit"):
        follow(record, devices=record.devices[1:])


def test_one_version_with_other_signatures_is_no_fork() -> None:
    """A record is what was signed: whether the user key or the recovery key did, who knows it knows the same."""
    record = start()
    payload = after(record, user_key=public("next"))
    by_user, by_paper = (verify_home(sign(payload, signer), ROOT, record) for signer in ("user", "paper"))
    assert by_user.signed != by_paper.signed and by_user.digest == by_paper.digest
    third = follow(by_paper, "next")
    known = verify_chain([by_user.signed], ROOT, NOW, record.user, record)
    assert verify_chain([record.signed, by_paper.signed, third.signed], ROOT, NOW, record.user, known).version == 3


# --- when it holds -------------------------------------------------------------------------------
def test_a_clock_that_is_a_little_ahead_made_no_bad_record() -> None:
    """A phone whose clock is fast rotates its user key: relays and other devices believe it at once."""
    record = start()
    rotated = follow(record, user_key=public("next"), not_before=NOW + HOME_CLOCK_AHEAD)
    assert verify_chain([record.signed, rotated.signed], ROOT, NOW, record.user) == rotated
    with pytest.raises(NotYet, match="version 2 is not valid for another 301 s"):
        verify_chain([record.signed, rotated.signed], ROOT, NOW - 1_000, record.user)
    with pytest.raises(NotYet):
        check_current(follow(record, not_before=NOW + DAY - 1), NOW)
    with pytest.raises(NotValidNow, match="expired"):
        check_current(record, NOW + DAY)


def test_no_version_begins_before_the_one_that_it_follows() -> None:
    """Else whoever has the user key could date somebody's revocation back to before an older version of the chain."""
    record = start(devices=(device("phone"), device("laptop")))
    with pytest.raises(Backdated, match="version 2 begins before version 1"):
        follow(record, devices=(device("laptop"),), not_before=NOW - 1)
    with pytest.raises(BrokenChain, match="ends before it begins"):
        follow(record, not_before=NOW + DAY)
    assert follow(record, devices=(device("laptop"),), not_before=NOW).version == 2


# --- whose a key is ------------------------------------------------------------------------------
BOB = structs.replace(first(), user_key=public("bob"), devices=(device("bob's phone"),))


def bob() -> HomeRecord:
    return verify_home(sign(prove_devices(BOB, KEYS.values()), "bob"), ROOT, None)


def test_nobody_lists_a_key_that_he_does_not_have() -> None:
    """Mallory has his own keys, and everything that bob ever published; the registrar signs whatever he asks for."""
    stolen, mine = bob().devices[0], start()
    assert verify_home(bob().signed, ROOT, None).devices == (stolen,)
    bare = structs.replace(stolen, proof=b"")
    for devices in ((stolen,), (bare,), (structs.replace(stolen, proof=mine.devices[0].proof),)):
        with pytest.raises(ForeignDevice, match="nobody who has the key"):
            verify_home(sign(structs.replace(mine.payload, devices=devices)), ROOT, None)
        for claimed in (devices[0], structs.replace(devices[0], since=2)):
            more = structs.replace(after(mine), devices=(*mine.devices, claimed))
            with pytest.raises((ForeignDevice, BrokenChain)) as told:
                verify_home(sign(more), ROOT, mine)
            assert isinstance(told.value, ForeignDevice) or claimed.since == 1
    for encryption, name in ((b"m" * 32, ""), (stolen.encryption, "phone")):  # in the place of a device of his own
        taken = structs.replace(
            stolen, encryption=encryption, since=1 if name else 2, first=public(name) if name else b""
        )
        with pytest.raises(ForeignDevice):
            verify_home(sign(structs.replace(after(mine), devices=(taken,))), ROOT, mine)


def test_a_proof_is_for_one_record_only() -> None:
    """Neither the victim's user key, named or stolen, nor another first record carries a proof over."""
    victim = bob()
    named = structs.replace(after(start()), user_key=public("bob"))
    named = structs.replace(named, devices=(structs.replace(victim.devices[0], since=2),))
    with pytest.raises(ForeignDevice):
        verify_home(sign(named), ROOT, start())
    for change in ({"region": "sauda", "cell": "sauda/1"}, {"not_before": NOW + 1}, {"recovery_key": b""}):
        twin = structs.replace(victim.payload, **change)  # signed with bob's stolen user key: another user, his device
        with pytest.raises(ForeignDevice):
            verify_home(sign(twin, "bob", f"{twin.region} registrar"), ROOT, None)
    wrong = structs.replace(victim.payload, devices=(structs.replace(victim.devices[0], encryption=b"m" * 32),))
    with pytest.raises(ForeignDevice):  # nor an encryption key that is not the device's
        verify_home(sign(wrong, "bob"), ROOT, None)


def test_a_proof_is_for_the_entry_as_it_is() -> None:
    """Who has stolen the user key changes nothing of what a new device has signed: not where mail to it is sealed for,
    and not whose place it takes."""
    record = start(devices=(device("phone"), device("laptop")))
    for asked, change in (
        ((*record.devices, device("tablet", 2)), {"encryption": b"m" * 32}),
        ((device("phone 2", 1, "phone"), device("laptop")), {"first": b"", "since": 2}),
    ):
        payload = after(record, devices=asked)
        assert verify_home(sign(payload), ROOT, record).version == 2
        changed = tuple(one if one in record.devices else structs.replace(one, **change) for one in payload.devices)
        with pytest.raises(ForeignDevice):
            verify_home(sign(structs.replace(payload, devices=changed)), ROOT, record)


def test_a_proof_is_made_once_and_never_changes() -> None:
    record = start()
    assert follow(record).devices == record.devices
    with pytest.raises(BrokenChain, match="enrolment was changed"):
        follow(record, devices=(structs.replace(record.devices[0], proof=bytes(64)),))


# --- whatever happens ----------------------------------------------------------------------------
steps = st.lists(
    st.tuples(st.sampled_from(("add", "revoke", "rotate device", "rotate user", "recover", "return", "steal")),
              st.integers(0, 5)),
    max_size=25,
)  # fmt: skip


class Life:
    """A user whose devices come and go as `steps` say."""

    def __init__(self) -> None:
        self.record = start()
        self.chain = [self.record.signed]
        self.user, self.paper, self.made = "user", "paper", 0
        self.names = {public("phone"): "phone"}

    def new(self) -> str:
        self.made += 1
        self.names[public(f"key {self.made}")] = f"key {self.made}"
        return f"key {self.made}"

    def step(self, what: str, which: int) -> None:
        devices, version = self.record.devices, self.record.version + 1
        one = devices[which % len(devices)]
        if what == "add":
            self.sign(devices=(*devices, device(self.new(), version)))
        elif what == "revoke" and len(devices) > 1:
            self.sign(devices=tuple(other for other in devices if other is not one))
        elif what == "rotate device":
            fresh = structs.replace(device(self.new(), one.since), first=one.stem)
            self.sign(devices=tuple(fresh if other is one else other for other in devices))
        elif what == "rotate user":
            new = self.new()
            self.sign(user_key=public(new))
            self.user = new
        elif what == "recover":
            new, paper = self.new(), self.new()
            self.sign(self.paper, user_key=public(new), recovery_key=public(paper), devices=(device(new, version),))
            self.user, self.paper = new, paper
        elif what == "return" and self.record.former:
            gone = self.record.former[which % len(self.record.former)]
            self.refused(ReturnedDevice, devices=(*devices, Device(gone.id, b"e" * 32, version, b"", b"")))
        elif what == "steal":
            self.refused(Overreach, recovery_key=public("thief"))

    def sign(self, signer: str = "", **more: Any) -> None:
        self.record = follow(self.record, signer or self.user, **more)
        self.chain.append(self.record.signed)

    def refused(self, error: type[PosthouseError], **more: Any) -> None:
        with pytest.raises(error):
            follow(self.record, self.user, **more)


@settings(max_examples=40, deadline=None)
@given(steps, st.integers(0, 30))
def test_any_life_verifies_from_any_point_and_gives_the_same(taken: list[tuple[str, int]], cut: int) -> None:
    life = Life()
    for what, which in taken:
        life.step(what, which)
    chain, user = life.chain, life.record.user
    whole = verify_chain(chain, ROOT, NOW, user)
    assert whole == life.record
    known = verify_chain(chain[: cut % len(chain) + 1], ROOT, NOW, user)  # a prefix first, then the rest, or all again
    assert verify_chain(chain[known.version :] or chain, ROOT, NOW, user, known) == whole
    assert verify_chain(chain, ROOT, NOW, user, known) == whole
    read: HomeRecord | None = None
    for signed in chain:
        read = read_home(signed, read)
    assert read == whole
    listed = [one.id for signed in chain for one in read_home(signed).devices]
    runs = [one for n, one in enumerate(listed) if one not in listed[:n]]
    spans = [[read_home(s).version for s in chain if one in {d.id for d in read_home(s).devices}] for one in runs]
    assert all(span == list(range(span[0], span[-1] + 1)) for span in spans), "an id came back"
