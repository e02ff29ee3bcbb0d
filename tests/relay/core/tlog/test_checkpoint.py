"""Checkpoints, and whom to believe about a log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.tlog import (
    COSIGNATURE,
    ED25519,
    EMPTY_ROOT,
    Checkpoint,
    Fork,
    LogError,
    Malformed,
    Note,
    SignerKey,
    TooFewWitnesses,
    Trust,
    UnknownKey,
    UnsoundTrust,
    check_same_log,
    new_note,
    open_checkpoint,
    parse_checkpoint,
    parse_note,
)
from relay.errors import BadSignature, TrustError
from relay.limits import MAX_TREE
from tests.relay.core.tlog import naive
from tests.relay.core.tlog.logbook import LOG, NOW, ORIGIN, WITNESSES, Book, damaged, key, trust
from tests.flipping import flipped

BOOK = Book(naive.entries(20))


# --- the text ------------------------------------------------------------------------------------
def test_a_checkpoint_gives_itself_again() -> None:
    for checkpoint in (
        Checkpoint(ORIGIN, 0, EMPTY_ROOT),
        BOOK.checkpoint(20),
        Checkpoint("with spaces + more", MAX_TREE, bytes(32), ("an extension", "— another")),
    ):
        assert parse_checkpoint(checkpoint.text()) == checkpoint
    assert BOOK.checkpoint(1).text().startswith(b"norden.posthouse.example/log\n1\n")


ROOT = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="


@pytest.mark.parametrize("text", [
    "", "\n", f"origin\n1\n{ROOT}", f"\n1\n{ROOT}\n", f"origin\n\n{ROOT}\n", "origin\n1\n\n", f"origin\n01\n{ROOT}\n",
    f"origin\n-1\n{ROOT}\n", f"origin\n+1\n{ROOT}\n", f"origin\n１\n{ROOT}\n", f"origin\n 1\n{ROOT}\n",
    f"origin\n{2**63}\n{ROOT}\n", f"origin\n{'9' * 5000}\n{ROOT}\n", "origin\n1\nAAAA\n", f"origin\n1\n{ROOT[:-1]}\n",
    f"origin\n1\n{ROOT.replace('I=', 'J=')}\n", f"origin\n1\n{ROOT}\n\nextension\n", f"origin\r\n1\n{ROOT}\n",
    f"{'o' * 256}\n1\n{ROOT}\n",
])  # fmt: skip
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_checkpoint(text.encode())
    assert caught.value.remedy


@given(st.binary(max_size=200) | damaged(BOOK.checkpoint(20).text()))
def test_any_bytes_are_a_checkpoint_or_malformed(data: bytes) -> None:
    try:
        assert parse_checkpoint(data).text() == data
    except LogError as error:
        assert isinstance(error, Malformed) and error.remedy


def test_none_can_be_built_that_could_not_be_read() -> None:
    for origin, size, root, extensions in (
        ("", 1, bytes(32), ()),
        ("two\nlines", 1, bytes(32), ()),
        ("\udc80", 1, bytes(32), ()),
        (ORIGIN, -1, bytes(32), ()),
        (ORIGIN, 2**63, bytes(32), ()),
        (ORIGIN, 1, bytes(31), ()),
        (ORIGIN, 1, bytes(32), ("",)),
        (ORIGIN, 1, bytes(32), ("two\nlines",)),
    ):
        with pytest.raises(Malformed):
            Checkpoint(origin, size, root, extensions)


# --- whom to believe -----------------------------------------------------------------------------
def test_k_witnesses_are_enough_and_fewer_are_not() -> None:
    for have in range(4):
        data = BOOK.note(20, WITNESSES[:have]).encode()
        for k in range(4):
            if k <= have:
                opened = open_checkpoint(data, trust(k))
                assert opened.checkpoint == BOOK.checkpoint(20)
                assert opened.times == {witness.name: NOW + n for n, witness in enumerate(WITNESSES[:have])}
            else:
                with pytest.raises(TooFewWitnesses, match=f"{have} of {k}"):
                    open_checkpoint(data, trust(k))


def test_cosignatures_without_the_log_are_nothing() -> None:
    note = BOOK.note(20, WITNESSES)
    with pytest.raises(UnknownKey):
        open_checkpoint(Note(note.text, note.signatures[1:]).encode(), trust(0))


def test_another_log_under_the_same_key_is_refused() -> None:
    other = Checkpoint("sauda.posthouse.example/log", 20, BOOK.root(20))
    with pytest.raises(UnknownKey, match="another log"):
        open_checkpoint(new_note(other.text(), LOG).encode(), trust(0))
    with pytest.raises(UnsoundTrust):
        other.sign(LOG)
    with pytest.raises(UnsoundTrust):
        BOOK.checkpoint(20).sign(SignerKey(ORIGIN, COSIGNATURE, bytes(32)))


def test_a_signed_text_that_is_no_checkpoint() -> None:
    with pytest.raises(Malformed):
        open_checkpoint(new_note(b"norden.posthouse.example/log\nlots\n", LOG).encode(), trust(0))


def test_a_witness_that_rotates_counts_once() -> None:
    fresh = SignerKey(WITNESSES[0].name, COSIGNATURE, bytes(32))
    keys = (WITNESSES[0], fresh, WITNESSES[1])
    data = BOOK.note(20, (WITNESSES[0], fresh)).encode()
    assert open_checkpoint(data, trust(1, LOG, keys)).times == {fresh.name: NOW + 1}
    with pytest.raises(TooFewWitnesses, match="1 of 2"):
        open_checkpoint(data, trust(2, LOG, keys))
    with pytest.raises(UnsoundTrust):
        trust(3, LOG, keys)


def test_a_trust_that_means_less_than_it_says() -> None:
    twin = SignerKey("twin.example", COSIGNATURE, WITNESSES[0].seed)
    itself = SignerKey("itself.example", COSIGNATURE, LOG.seed)
    namesake = SignerKey(ORIGIN, COSIGNATURE, bytes(32))
    plain = key("plain.example")
    for witnesses, k in (
        (WITNESSES, 4), (WITNESSES, -1), ((), 1), ((WITNESSES[0], WITNESSES[0]), 1), ((WITNESSES[0], twin), 1),
        ((itself,), 1), ((namesake,), 1), ((plain,), 1),
    ):  # fmt: skip
        with pytest.raises(UnsoundTrust) as caught:
            trust(k, LOG, tuple(witnesses))
        assert caught.value.remedy
    with pytest.raises(UnsoundTrust):
        Trust(WITNESSES[0].verifier, (), 0)


NOTE = BOOK.note(20, WITNESSES).encode()


def test_any_changed_byte_of_a_checkpoint_fails() -> None:
    """With all three witnesses asked for, no byte of the note is free."""
    open_checkpoint(NOTE, trust(3))
    for at in range(len(NOTE)):
        for bit in range(8):
            with pytest.raises((Malformed, UnknownKey, BadSignature, TooFewWitnesses)):
                open_checkpoint(flipped(NOTE, at, bit), trust(3))


@given(st.binary(max_size=300) | damaged(NOTE))
def test_any_bytes_verify_or_fail_by_name(data: bytes) -> None:
    try:
        assert open_checkpoint(data, trust(1)).checkpoint == BOOK.checkpoint(20)
    except TrustError as error:
        assert isinstance(error, LogError | BadSignature) and error.remedy


# --- forks ---------------------------------------------------------------------------------------
def test_two_roots_of_one_size_are_evidence() -> None:
    other = Book((*BOOK.entries[:9], b"another", *BOOK.entries[10:]))
    with pytest.raises(Fork) as caught:
        check_same_log(BOOK.note(20), other.note(20), LOG.verifier)
    assert (parse_note(caught.value.first), parse_note(caught.value.second)) == (BOOK.note(20), other.note(20))
    check_same_log(BOOK.note(9), other.note(9), LOG.verifier)
    check_same_log(BOOK.note(20, WITNESSES), BOOK.note(20), LOG.verifier)
    check_same_log(BOOK.note(20), other.note(19), LOG.verifier)  # only a proof can tell
    with pytest.raises(UnknownKey):
        check_same_log(BOOK.note(20), Book(BOOK.entries, key("sauda.example/log")).note(20), LOG.verifier)
    assert LOG.kind == ED25519
