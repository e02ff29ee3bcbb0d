"""Hand-overs to a cell whose log was renewed, and from one (rule 13)."""

from __future__ import annotations

import msgpack
import pytest

from relay.core import records
from relay.core.mailroom import Mailroom
from relay.core.mailroom.outboxes import MAX_LOGS
from relay.core.mailroom.state import FOLD_VERSION
from relay.core.wire import Code
from relay.errors import StoreForeign

ABROAD = "sauda/1"
OLD, NEW = b"1" * 16, b"2" * 16


@pytest.fixture
def outbox(log, make_user):
    """The outbox for another cell, with four envelopes of alice's in it."""
    log.enrol(make_user("alice", log.cell), "a1")
    log.apply(*(log.submit("a1", log.seal(b"\x07" * 32, body=bytes([n])), ABROAD) for n in range(4)))
    return log.room.state.outboxes[ABROAD]


def handed(outbox, upto, log, known):
    answers = tuple(records.HandedAnswer(n, Code.STORED, 1) for n in range(outbox.done + 1, upto + 1))
    return records.Handed(ABROAD, upto, answers, log, known)


def test_an_answer_names_the_log_and_a_checkpoint_keeps_it(log, outbox):
    log.apply(handed(outbox, 1, OLD, b""))
    log.apply(handed(outbox, 2, NEW, OLD))
    assert (outbox.done, outbox.logs, outbox.log) == (2, (OLD, NEW), NEW)
    again = Mailroom.from_checkpoint(list(log.room.checkpoint()))
    assert again.state.outboxes[ABROAD] == outbox and again.digest() == log.room.digest()


@pytest.mark.parametrize("known", [b"", OLD])
def test_a_late_answer_of_a_log_that_was_renewed_since_settles_nothing(log, outbox, known):
    """What that log had taken may be lost there. Also where the old log was never recorded here."""
    if known:
        log.apply(handed(outbox, 1, OLD, b""))
    log.apply(handed(outbox, 2, NEW, known))
    before = log.pending("a1")
    log.apply(handed(outbox, 4, OLD, known))
    assert (outbox.done, outbox.log, sorted(outbox.items)) == (2, NEW, [3, 4])
    assert log.pending("a1") == before
    log.apply(handed(outbox, 4, NEW, known))  # of the log that is there now: whatever was known when it was asked
    assert outbox.done == 4 and not outbox.items


def test_few_logs_are_remembered(log, outbox):
    log.apply(*(log.submit("a1", log.seal(b"\x07" * 32, body=bytes([9, n])), ABROAD) for n in range(9)))
    for n in range(1, 10):
        log.apply(handed(outbox, n, bytes([n]) * 16, outbox.log))
    assert outbox.logs == tuple(bytes([n]) * 16 for n in range(10 - MAX_LOGS, 10))


def test_a_renewed_log_of_the_origin_counts_from_its_own_beginning(log, make_user):
    bob = make_user("bob", log.cell)
    log.enrol(bob, "b1")
    sealed = [log.seal(bob.id, body=bytes([n])) for n in range(4)]
    first = [records.HandIn(ABROAD, OLD, n, 0, records.HANDIN_ENVELOPE, sealed[n - 1], b"") for n in (1, 2, 3)]
    log.apply(*first)
    renewed = [records.HandIn(ABROAD, NEW, n, 0, records.HANDIN_ENVELOPE, sealed[n + 1], b"") for n in (1, 2)]
    log.apply(*renewed, *renewed)  # its first is one that it handed over before: known, and not filed twice
    assert log.room.state.origins[ABROAD, OLD].vector == 3 and log.room.state.origins[ABROAD, NEW].vector == 2
    assert len(log.pending("b1")) == 4


def test_few_logs_of_an_origin_are_remembered(log, make_user):
    bob = make_user("bob", log.cell)
    log.enrol(bob, "b1")
    logs = [bytes([n]) * 16 for n in range(1, 10)]
    for own in logs:
        sealed = log.seal(bob.id, body=own)
        log.apply(records.HandIn(ABROAD, own, 1, 0, records.HANDIN_ENVELOPE, sealed, b""))
    assert list(log.room.state.origins) == [(ABROAD, own) for own in logs[-MAX_LOGS:]]


def test_a_checkpoint_of_another_format_is_refused(log):
    first, *others = log.room.checkpoint()
    section, (packed,) = msgpack.unpackb(first)
    form, *rest = msgpack.unpackb(packed)
    again = msgpack.packb([section, [msgpack.packb([form - 1, *rest])]])
    with pytest.raises(StoreForeign, match=f"format {form - 1}"):
        Mailroom.from_checkpoint([again, *others])


@pytest.mark.parametrize(("version", "says"), [(FOLD_VERSION + 1, "newer"), (FOLD_VERSION - 1, "wrote it")])
def test_other_rules_of_the_fold_are_refused(log, version, says):
    with pytest.raises(StoreForeign) as refused:
        log.apply(records.FoldVersion(version))
    assert says in refused.value.remedy
    log.room.state.fold_version = version  # what a log went on from after its first block is gone
    with pytest.raises(StoreForeign) as refused:
        Mailroom.from_checkpoint(list(log.room.checkpoint()))
    assert says in refused.value.remedy
