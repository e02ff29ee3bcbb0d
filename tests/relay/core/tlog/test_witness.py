"""A witness stands by one history of a log, whatever the log shows it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.tlog import (
    EMPTY_ROOT,
    AddCheckpoint,
    BadProof,
    Checkpoint,
    Fork,
    LogError,
    Malformed,
    Seen,
    StaleProof,
    UnknownKey,
    UnsoundTrust,
    consider,
    contradicts,
    open_checkpoint,
    parse_add_checkpoint,
    parse_note,
    parse_signatures,
    verify_consistency,
)
from relay.errors import BadSignature, Rollback, TrustError
from relay.limits import MAX_PROOF
from tests.relay.core.tlog import naive
from tests.relay.core.tlog.logbook import LOG, NOW, ORIGIN, WITNESSES, Book, damaged, key, trust
from tests.flipping import flipped

BOOK = Book(naive.entries(40))
FORKED = Book((*BOOK.entries[:20], *naive.entries(20, b"other ")))  # the same log up to 20
WITNESS = WITNESSES[0]


def seen(size: int, book: Book = BOOK, time: int = NOW) -> Seen:
    return Seen(size, book.root(size), book.note(size).encode(), time)


def ask(state: Seen | None, request: AddCheckpoint, now: int = NOW) -> Seen:
    """What the witness remembers afterwards; its cosignature has to be worth something."""
    after, line = consider(state, request, LOG.verifier, WITNESS, now)
    opened = open_checkpoint(request.note.add([line]).encode(), trust(1))
    assert opened.times == {WITNESS.name: after.time}
    assert (opened.checkpoint.size, opened.checkpoint.root) == (after.size, after.root)
    return after


def test_it_goes_along_with_a_log_that_grows() -> None:
    state = ask(None, BOOK.request(0, 3))
    for size in (3, 4, 17, 17, 40):
        state = ask(state, BOOK.request(state.size, size), NOW + size)
        assert state == seen(size, time=NOW + size)


def test_it_takes_an_empty_log() -> None:
    assert ask(None, BOOK.request(0, 0)).root == EMPTY_ROOT
    wrong = AddCheckpoint(0, (), Checkpoint(ORIGIN, 0, BOOK.root(1)).sign(LOG))
    with pytest.raises(BadProof):
        ask(None, wrong)


def test_its_time_never_goes_back() -> None:
    state = ask(None, BOOK.request(0, 3), NOW)
    assert ask(state, BOOK.request(3, 5), NOW - 100).time == NOW
    assert ask(state, BOOK.request(3, 5), NOW + 1).time == NOW + 1


def test_a_fork_of_the_size_it_saw_is_evidence() -> None:
    for old in (30, 0, 12):  # whatever the log says about the proof
        request = replace(FORKED.request(old, 30), proof=())
        with pytest.raises(Fork) as caught:
            ask(seen(30), request)
        assert parse_note(caught.value.first) == BOOK.note(30)
        assert parse_note(caught.value.second) == FORKED.note(30)


def test_a_fork_of_another_size_is_proven_by_its_own_proof() -> None:
    """A proof that leads to the new root consists of the new tree's hashes: they make another tree of 30."""
    with pytest.raises(Fork, match="two histories") as caught:
        ask(seen(30), FORKED.request(30, 40))
    proof = caught.value.proof
    assert contradicts(30, 40, BOOK.root(30), FORKED.root(40), proof)
    assert (caught.value.first, caught.value.second) == (BOOK.note(30).encode(), FORKED.note(40).encode())
    with pytest.raises(BadProof):  # of another proof nobody can say who is wrong
        ask(seen(30), replace(BOOK.request(30, 40), note=FORKED.note(40)))
    ask(seen(20), FORKED.request(20, 40))  # up to 20 it is the same log


@pytest.mark.parametrize("old", range(1, 40))
def test_no_proof_contradicts_an_honest_log(old: int) -> None:
    honest = BOOK.request(old, 40).proof
    assert not contradicts(old, 40, BOOK.root(old), BOOK.root(40), honest)
    for proof in naive.changes(honest)[::7]:
        assert not contradicts(old, 40, BOOK.root(old), BOOK.root(40), proof)
    forked = old > 20 and old & old - 1 != 0  # of a power of two the old root is a part of the way
    assert contradicts(old, 40, BOOK.root(old), FORKED.root(40), FORKED.request(old, 40).proof) == forked


def test_a_smaller_log_is_a_rollback() -> None:
    for size in (0, 1, 29):
        with pytest.raises(Rollback, match=rf"{size} after one of 30") as caught:
            ask(seen(30), BOOK.request(size, size))
        assert caught.value.remedy


def test_a_proof_from_elsewhere_is_told_where_to_start() -> None:
    for old in (0, 29, 31, 40):
        with pytest.raises(StaleProof) as caught:
            ask(seen(30), replace(BOOK.request(30, 40), old=old))
        assert caught.value.size == 30
    with pytest.raises(StaleProof) as caught:
        ask(None, BOOK.request(30, 40))
    assert caught.value.size == 0


def test_any_change_of_the_proof_is_refused() -> None:
    request = BOOK.request(13, 40)
    for proof in naive.changes(request.proof):
        with pytest.raises(BadProof):
            ask(seen(13), replace(request, proof=proof))
    with pytest.raises(BadProof):
        ask(None, replace(BOOK.request(0, 40), proof=(bytes(32),)))


def test_who_is_not_the_log_is_refused() -> None:
    stranger = Book(BOOK.entries, key(ORIGIN + "2"))
    with pytest.raises(UnknownKey):
        ask(None, stranger.request(0, 5))
    with pytest.raises(UnknownKey, match="no key"):
        consider(None, BOOK.request(0, 5), None, WITNESS, NOW)
    line = BOOK.note(5).signatures[0]
    broken = replace(line, value=flipped(line.value, 7))
    with pytest.raises(BadSignature):
        ask(None, AddCheckpoint(0, (), replace(BOOK.note(5), signatures=(broken,))))
    for itself in (LOG, replace(WITNESS, seed=LOG.seed)):
        with pytest.raises(UnsoundTrust):
            consider(None, BOOK.request(0, 5), LOG.verifier, itself, NOW)


def test_what_it_remembers_is_the_logs_word_alone() -> None:
    request = replace(BOOK.request(0, 5), note=BOOK.note(5, WITNESSES).sign(key("stranger.example")))
    after, _ = consider(None, request, LOG.verifier, WITNESS, NOW)
    assert after.note == BOOK.note(5).encode()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 40), st.booleans()), max_size=25))
def test_all_that_it_cosigns_is_one_history(steps: list[tuple[bool, int, int, bool]]) -> None:
    """The log shows either of two histories, with proofs that are honest or not."""
    state, history = None, [(0, EMPTY_ROOT)]
    books = {(size, book.root(size)): book for book in (FORKED, BOOK) for size in range(41)}
    for forked, old, new, helpful in steps:
        book = FORKED if forked else BOOK
        old = min(state.size if helpful and state else old, new)
        try:
            state = ask(state, book.request(old, new))
        except (LogError, Rollback):
            continue
        history.append((state.size, state.root))
    for (size, root), (later, last) in pairwise(history):
        proof = books[later, last].request(size, later).proof
        verify_consistency(size, later, root, last, proof)


# --- the request ---------------------------------------------------------------------------------
REQUEST = BOOK.request(13, 40).encode()


def test_a_request_gives_itself_again() -> None:
    for old, new in ((0, 0), (0, 40), (13, 40), (40, 40)):
        request = BOOK.request(old, new)
        assert parse_add_checkpoint(request.encode()) == request
    assert REQUEST.startswith(b"old 13\n")
    _, line = consider(seen(13), parse_add_checkpoint(REQUEST), LOG.verifier, WITNESS, NOW)
    assert parse_signatures(str(line).encode()) == (line,)


@pytest.mark.parametrize("head", [
    b"old 01\n", b"old -1\n", b"old\n", b"13\n", b"new 13\n", b"old 13\nAAA\n", b"old 13 \n", b"",
    b"old 13\n" + b"AAAA\n" * (MAX_PROOF + 1), b"old 13\n" + b"AAAA" * 2000 + b"\n",
])  # fmt: skip
def test_what_is_no_request(head: bytes) -> None:
    with pytest.raises(Malformed):
        parse_add_checkpoint(head + b"\n" + BOOK.note(40).encode())


@given(st.binary(max_size=300) | damaged(REQUEST))
def test_any_bytes_are_considered_or_refused_by_name(data: bytes) -> None:
    try:
        request = parse_add_checkpoint(data)
        assert request.encode() == data
        assert ask(seen(13), request) == seen(40)
    except TrustError as error:
        assert isinstance(error, LogError | BadSignature) and error.remedy
