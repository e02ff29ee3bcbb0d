"""Home records travel with the proof that they are logged: each way to do without it, against the real verifiers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from nacl.signing import SigningKey

from relay.core.codec import pack
from relay.core.tlog import (
    ED25519, BadProof, LogError, Malformed, NotLogged, SignerKey, TooFewWitnesses, UnknownKey, UnsoundTrust,
)  # fmt: skip
from relay.core.trust import (
    Device, HomePayload, HomeRecord, Root, check_stapled, read_home, same_home, sign_home, split_home, staple_home,
    verify_chain, verify_home,
)
from relay.errors import BrokenChain, ProtocolError, TrustError
from tests.logged import log_key, logged_region, staple_of, stapled, witness_key
from tests.proofs import proven
from tests.relay.core.tlog.logbook import Book, damaged, key
from tests.roots import verified_root

NOW = 1_800_000_000_000
USER, NORDEN, SAUDA, VIKA = (SigningKey(letter * 32) for letter in (b"u", b"n", b"s", b"v"))


def make_root(quorum: int = 2) -> Root:
    named = (("norden", NORDEN), ("sauda", SAUDA), ("vika", VIKA))
    return verified_root([logged_region(name, registrar, quorum) for name, registrar in named], NOW + 1)


ROOT = make_root()


def payload(mark: int = 0) -> HomePayload:
    device = Device(bytes(USER.verify_key), bytes(32), 1, b"", b"")
    home = ("norden", "norden/1", bytes(USER.verify_key))
    return proven(HomePayload(1, b"", 1, b"", *home, (device,), 0, mark, NOW + 1, b""), [USER])


def following(last: HomeRecord, cell: str = "norden/1", mark: int = 0) -> HomePayload:
    moves = cell != last.cell
    return structs.replace(
        last.payload, user=last.user, version=last.version + 1, prev=last.digest, region=cell.partition("/")[0],
        cell=cell, move_epoch=last.payload.move_epoch + moves, not_before=mark,
    )  # fmt: skip


ONE = sign_home(payload(), USER, NORDEN)
OTHER = sign_home(payload(1), USER, NORDEN)
GOOD = stapled(ONE, "sauda", "vika")


def verify(data: bytes, root: Root = ROOT) -> HomeRecord:
    return verify_chain([data], root, NOW, read_home(data).user)


def test_a_record_with_its_proof_is_the_record() -> None:
    record = verify(GOOD)
    assert record.signed == GOOD and split_home(GOOD) == (ONE, staple_of(ONE, "sauda", "vika"))
    assert (record.user, record.digest) == (read_home(ONE).user, read_home(ONE).digest)
    again = stapled(ONE, "vika", "sauda")
    assert again != GOOD and same_home(again, GOOD) and same_home(ONE, GOOD) and not same_home(OTHER, GOOD)
    assert verify_chain([again], ROOT, NOW, record.user, known=record) == record  # no fork
    assert staple_home(GOOD, staple_of(ONE, "vika")) == stapled(ONE, "vika")
    assert len(GOOD) - len(ONE) < 2_048


def test_the_newest_says_it_for_those_before_it() -> None:
    """It names them by their hashes. A move is in the log of the region that is entered."""
    one = verify_home(ONE, ROOT, None)
    two = verify_home(sign_home(following(one), USER, NORDEN), ROOT, one)
    three = sign_home(following(two, "sauda/1"), USER, SAUDA, NORDEN)
    assert verify_chain([ONE, two.signed, stapled(three, "norden", "vika")], ROOT, NOW, one.user).version == 3
    assert verify_chain([ONE, stapled(two.signed, "sauda", "vika")], ROOT, NOW, one.user).version == 2
    for chain, error in (
        ([GOOD, two.signed], NotLogged),  # an older one's does not do
        ([ONE, two.signed, stapled(three, "norden", "vika", region="norden")], UnknownKey),  # of who was left
    ):
        with pytest.raises(error):
            verify_chain(chain, ROOT, NOW, one.user)


def test_a_region_that_the_root_names_no_log_of_is_exempt() -> None:
    regions = [structs.replace(logged_region("norden", NORDEN), log_key=""), logged_region("sauda", SAUDA)]
    root = verified_root(regions, NOW + 1)
    assert verify(ONE, root).version == 1
    one = verify_home(ONE, root, None)
    away = sign_home(following(one, "sauda/1"), USER, SAUDA, NORDEN)
    with pytest.raises(NotLogged):  # into a region that has one
        verify_chain([ONE, away], root, NOW, one.user)
    assert verify_chain([ONE, stapled(away, "norden")], root, NOW, one.user).cell == "sauda/1"


def secret(book_of: str = "norden") -> bytes:
    """Both keys signed it, and the log never had it."""
    book = Book([b"an epoch", b"somebody else", b"the next"], log_key(book_of))
    return staple_home(OTHER, book.staple(1, 3, (witness_key("sauda"), witness_key("vika"))).encode())


@pytest.mark.parametrize(
    ("forge", "error"),
    [
        (lambda: ONE, NotLogged),  # user and registrar, without the log
        (secret, BadProof),  # a place in the log where something else stands
        (lambda: staple_home(OTHER, staple_of(ONE, "sauda", "vika")), BadProof),  # another record's proof
        (lambda: stapled(ONE), TooFewWitnesses),  # a log of the registrar's own, which nobody saw
        (lambda: stapled(ONE, "sauda"), TooFewWitnesses),  # and one friend
        (lambda: stapled(ONE, "sauda", "sauda"), TooFewWitnesses),  # twice
        (lambda: stapled(ONE, "norden", "sauda"), TooFewWitnesses),  # its own region as a witness
        (lambda: stapled(ONE, "lund", "holm"), TooFewWitnesses),  # whom nobody knows
        (lambda: stapled(ONE, "sauda", "vika", region="sauda"), UnknownKey),  # another region's log
        (lambda: stapled(ONE, "sauda", "vika", log=key("another/log")), UnknownKey),
        (lambda: staple_home(ONE, b"c2sp.org/tlog-proof@v1\n"), Malformed),
    ],
)
def test_without_the_log_and_its_witnesses_a_record_is_refused(
    forge: Callable[[], bytes], error: type[LogError]
) -> None:
    with pytest.raises(error):
        verify(forge())


def test_another_log_under_the_same_name() -> None:
    """A thief of the name, not of the key: the log's own signature does not hold."""
    thief = SignerKey(log_key("norden").name, ED25519, b"t" * 32)
    with pytest.raises(UnknownKey):
        verify(stapled(ONE, "sauda", "vika", log=thief))


def test_a_quorum_that_cannot_be_had() -> None:
    with pytest.raises(UnsoundTrust):
        verify(GOOD, make_root(quorum=3))


def test_a_forked_version_with_a_proof_of_its_own_is_still_a_fork() -> None:
    one = verify(GOOD)
    two, fork = (stapled(sign_home(following(one, mark=mark), USER, NORDEN), "sauda", "vika") for mark in (0, 1))
    known = verify_chain([GOOD, two], ROOT, NOW, one.user)
    with pytest.raises(BrokenChain, match="fork"):
        verify_chain([GOOD, fork], ROOT, NOW, one.user, known=known)


def test_one_form() -> None:
    signed, staple = split_home(GOOD)
    for data in (pack([GOOD, staple]), pack([signed, b""]), pack([signed, staple, b""]), pack([signed]), b"\x92"):
        with pytest.raises(ProtocolError):
            read_home(data)


@given(st.data())
def test_damaged_in_any_way_it_is_refused_or_the_same(data: st.DataObject) -> None:
    bad = data.draw(damaged(GOOD))
    try:
        record = verify_chain([bad], ROOT, NOW, read_home(GOOD).user)
    except (TrustError, ProtocolError):
        return
    assert record.digest == read_home(GOOD).digest


def test_check_stapled_takes_what_verify_chain_takes() -> None:
    check_stapled(read_home(GOOD), ROOT)
    with pytest.raises(NotLogged):
        check_stapled(read_home(ONE), ROOT)
