"""Signed notes and keys: the published examples, who counts as a signer, and any bytes."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.tlog import (
    COSIGNATURE,
    ED25519,
    Malformed,
    Note,
    Signature,
    SignerKey,
    UnknownKey,
    VerifierKey,
    new_note,
    open_note,
    parse_checkpoint,
    parse_note,
    parse_signatures,
    signers,
)
from relay.errors import BadSignature, TrustError
from relay.limits import MAX_SIGNATURES, MAX_SIGNED_NOTE, MAX_TREE
from tests.relay.core.tlog.logbook import LOG, NOW, WITNESSES, damaged, key
from tests.flipping import flipped

# The example of golang.org/x/mod/sumdb/note.
GO_SIGNER = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
# c2sp.org/signed-note, "Verifier keys".
C2SP_VERIFIER = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
C2SP_NOTE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
# Two heads of the Go checksum database. The second is the example of c2sp.org/tlog-checkpoint under its true name.
SUMDB_VERIFIER = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
SUMDB_NOTES = (
    "go.sum database tree\n65209736\n5+uGFjx6xBZG8ip1+wi77v+grwbhhukIrxEUS8PXvRo=\n\n— sum.golang.org "
    "Az3grnbssgK7ubgFX36gVETtNv0U23qxyAhAMai2QUfeGa3nB/akvkMdlUErfcZz7l/R3cVtYspg3dxXABkGZZKdsQ8=\n",
    "go.sum database tree\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— sum.golang.org "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n",
)
# A checkpoint that a public witness cosigned on 2026-10-03, from the witness's monitoring address.
WITNESS_VERIFIER = "witness.navigli.sunlight.geomys.org+a3e00fe2+BNy/co4C1Hn1p+INwJrfUlgz7W55dSZReusH/GhUhJ/G"
WITNESSED = (
    "markovianprotocol.com/log\n9266\nQnwPzJywq5AyOk9k1zLqfryh6Ktw1CnaaKplELApoxw=\n\n— markovianprotocol.com/log "
    "AwLGyIvuxLXZM101mKdNCPTsl9GgtiG/wzbd8cGru0pGnWVMXI06twIsEIZho7n8id+w2EO0BZCalxuEm6BauQGNmgo=\n"
    "— witness.navigli.sunlight.geomys.org "
    "o+AP4gAAAABqwX+So8evhUsltetL+QnwUxEYMNrD25pJYOTFHwDCopbgQMl2AEh583AxfFNMDZzE73rdjK62tUN8oUBfd9p6usq+BA==\n"
)
# The cosigned example of c2sp.org/tlog-cosignature; the witness's key is not published.
COSIGNED = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 "
    "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)
TEXT = b"a text\n"
NOTE = new_note(TEXT, LOG).sign(WITNESSES[0], NOW)
VERIFIERS = (LOG.verifier, *(witness.verifier for witness in WITNESSES))


# --- published examples --------------------------------------------------------------------------
def test_the_example_of_go() -> None:
    signer = SignerKey.parse(GO_SIGNER)
    assert new_note(GO_TEXT, signer).encode() == GO_TEXT + b"\n" + GO_LINE.encode()
    assert (str(signer.verifier), signer.export()) == (GO_VERIFIER, GO_SIGNER)
    assert GO_SIGNER[-40:] not in repr(signer)


@pytest.mark.parametrize(("note", "verifier"), [
    (C2SP_NOTE, C2SP_VERIFIER), *((note, SUMDB_VERIFIER) for note in SUMDB_NOTES),
])  # fmt: skip
def test_published_notes_verify(note: str, verifier: str) -> None:
    known = VerifierKey.parse(verifier)
    assert str(known) == verifier
    opened, found = open_note(note.encode(), [known, LOG.verifier])
    assert found == {known: 0}
    assert opened.encode() == note.encode()
    for at in range(len(opened.text)):
        with pytest.raises((BadSignature, Malformed)):
            open_note(flipped(note.encode(), at), [known])


def test_a_published_cosignature_verifies() -> None:
    witness = VerifierKey.parse(WITNESS_VERIFIER)
    note, found = open_note(WITNESSED.encode(), [witness])
    assert found == {witness: 0x6AC17F92}
    assert parse_checkpoint(note.text).size == 9266
    with pytest.raises(BadSignature):
        open_note(WITNESSED.replace("9266", "9267").encode(), [witness])


def test_the_cosigned_example_parses() -> None:
    note = parse_note(COSIGNED.encode())
    assert note.encode() == COSIGNED.encode()
    assert [signature.name for signature in note.signatures] == [
        "example.com/behind-the-sofa",
        "witness.example.com/w1",
    ]
    assert int.from_bytes(note.signatures[1].value[:8]) == 1679315147  # as the specification says
    assert parse_checkpoint(note.text).size == 20852163


# --- who signed ----------------------------------------------------------------------------------
def test_unknown_signatures_are_passed_over() -> None:
    stranger = key("stranger.example")
    namesake = SignerKey(LOG.name, ED25519, bytes(32))  # the log's name, another id
    note = NOTE.sign(stranger).sign(namesake)
    _, found = open_note(note.encode(), VERIFIERS)
    assert found == {LOG.verifier: 0, WITNESSES[0].verifier: NOW}
    same_id = Signature("other.example", LOG.verifier.id, b"anything at all")  # the log's id, another name
    assert signers(note.add([same_id]), VERIFIERS) == found
    with pytest.raises(UnknownKey, match=r"stranger\.example"):
        open_note(new_note(TEXT, stranger).encode(), VERIFIERS)


@pytest.mark.parametrize("value", [b"\x01", bytes(64), bytes(72), bytes(71), bytes(2420), b"\xff" * 72])
def test_a_known_key_that_does_not_hold_spoils_the_note(value: bytes) -> None:
    for signer in (LOG, WITNESSES[1]):
        broken = Signature(signer.name, signer.verifier.id, value)
        for note in (Note(TEXT, (*NOTE.signatures, broken)), Note(TEXT, (broken, *NOTE.signatures))):
            with pytest.raises(BadSignature):
                open_note(note.encode(), VERIFIERS)


def test_who_signs_twice_counts_once_with_the_latest_time() -> None:
    lines = [NOTE.sign(WITNESSES[0], time).signatures[-1] for time in (NOW + 5, NOW + 9, NOW + 7)]
    note = parse_note(Note(TEXT, (*NOTE.signatures, *lines)).encode())
    assert signers(note, VERIFIERS)[WITNESSES[0].verifier] == NOW + 9
    assert NOTE.add(lines).signatures == (NOTE.signatures[0], lines[-1])


def test_a_time_is_signed_and_bounded() -> None:
    value = NOTE.signatures[1].value
    for at in range(len(value)):
        with pytest.raises(BadSignature):
            WITNESSES[0].verifier.verify(TEXT, flipped(value, at))
    for time in (0, -1, MAX_TREE + 1):
        with pytest.raises(Malformed):
            NOTE.sign(WITNESSES[0], time)
    # a log's signature over the cosigned text is no cosignature, and the other way round
    one = SignerKey("one.example", ED25519, bytes(32))
    other = SignerKey("one.example", COSIGNATURE, bytes(32))
    assert one.verifier.id != other.verifier.id
    for signer, verifier in ((one, other.verifier), (other, one.verifier)):
        with pytest.raises(BadSignature):
            verifier.verify(TEXT, signer.sign(TEXT, NOW))


# --- form ----------------------------------------------------------------------------------------
LINE = str(NOTE.signatures[0])


@pytest.mark.parametrize("data", [
    "", "\n", "\n\n", "text\n\n", "text\n" + LINE, "text\n\n" + LINE[:-1], "text\n\n" + LINE + "\n", "text" + LINE,
    "text\n\n" + LINE + "more", "text\r\n\n" + LINE, "te\tt\n\n" + LINE, "text\n\n-- name AAAAAAA=\n",
    "text\n\n—  AAAAAAA=\n", "text\n\n— a+b AAAAAAA=\n", "text\n\n— name\n", "text\n\n— name AAAA\n",
    "text\n\n— name AAAAA\n", "text\n\n— name AAAAAAA\n", "text\n\n— name AAAAAAB=\n",
    "text\n\n— na\u2003me AAAAAAA=\n",
    "text\n\n— name AAAAAAA= AAAA\n", "text\n\n— name AAAA AAA=\n", "text\n\n—name AAAAAAA=\n", "text\n\n" + LINE * 65,
    "text\n\n— " + "n" * 256 + " AAAAAAA=\n", "t" * MAX_SIGNED_NOTE + "\n\n" + LINE,
])  # fmt: skip
def test_what_is_no_note(data: str) -> None:
    with pytest.raises(Malformed):
        parse_note(data.encode())


def test_what_is_one_all_the_same() -> None:
    assert parse_note(b"\n\n" + LINE.encode()).text == b"\n"  # a text of one empty line
    assert parse_note(b"a\n\nb\n\n" + LINE.encode()).text == b"a\n\nb\n"
    assert len(parse_note(("text\n\n" + LINE * MAX_SIGNATURES).encode()).signatures) == MAX_SIGNATURES
    with pytest.raises(Malformed):
        parse_note(b"\xff\n\n" + LINE.encode())
    for text in (b"no newline", b"tab\t\n", b"\xff\n", b""):
        with pytest.raises(Malformed):
            new_note(text, LOG)


@given(st.binary(max_size=300) | damaged(NOTE.encode()) | damaged(COSIGNED.encode()))
def test_any_bytes_are_a_note_or_a_named_error(data: bytes) -> None:
    try:
        note = parse_note(data)
        assert note.encode() == data
        open_note(data, VERIFIERS)
    except TrustError as error:
        assert isinstance(error, Malformed | BadSignature | UnknownKey)
        assert error.text and error.remedy


@given(st.binary(max_size=300) | damaged((LINE * 2).encode()))
def test_any_bytes_are_signature_lines_or_malformed(data: bytes) -> None:
    try:
        assert "".join(map(str, parse_signatures(data))).encode() == data
    except Malformed as error:
        assert error.remedy


# --- keys ----------------------------------------------------------------------------------------
@given(st.text(max_size=80) | st.sampled_from([GO_VERIFIER, C2SP_VERIFIER, GO_SIGNER]).flatmap(
    lambda text: damaged(text.encode()).map(lambda data: data.decode("utf-8", "surrogateescape"))
))  # fmt: skip
def test_any_text_is_a_key_or_malformed(text: str) -> None:
    for parse, show in ((VerifierKey.parse, str), (SignerKey.parse, SignerKey.export)):
        try:
            assert show(parse(text)) == text
        except Malformed as error:
            assert error.remedy and "AYEKFALVFGyN" not in str(error)


def test_keys_of_other_kinds_are_refused() -> None:
    for kind in (0, 2, 5, 6, 0xFA, 0xFF):
        material = b64encode(bytes([kind]) + bytes(32)).decode()
        with pytest.raises(Malformed):
            VerifierKey.parse(f"name+00000000+{material}")
    for seed in (b"", bytes(31), bytes(64)):
        with pytest.raises(Malformed):
            SignerKey("name", ED25519, seed)
    with pytest.raises(Malformed, match="its id is"):
        VerifierKey.parse(GO_VERIFIER.replace("c74f20a3", "C74F20A3"))
    with pytest.raises(Malformed, match="its id is"):
        SignerKey.parse(GO_SIGNER.replace("c74f20a3", "c74f20a4"))


def test_both_kinds_of_key_survive_their_string() -> None:
    for signer in (LOG, *WITNESSES):
        assert SignerKey.parse(signer.export()) == signer
        assert VerifierKey.parse(str(signer.verifier)) == signer.verifier
