"""Group envelopes for a cell that does not have the roster version: nothing rests there, and nothing is lost."""

from __future__ import annotations

import pytest

from relay.core import records
from relay.core.codec import digest
from relay.core.envelope import envelope_id
from relay.core.mailroom import Mailroom
from relay.core.wire import Code
from relay.limits import MINUTE, PARKED_RETRY, PARKED_RETRY_MAX
from tests.relay.core.mailroom.conftest import device_id

ABROAD = "sauda/1"
FAR_MEMBER = b"\x09" * 32


@pytest.fixture
def group(log, make_user, make_group):
    """alice's and bob's group, with a member abroad; its roster version is on its way."""
    alice, bob = make_user("alice", log.cell), make_user("bob", log.cell)
    log.enrol(alice, "a1")
    log.enrol(bob, "b1")
    made = make_group("a1")
    log.apply(made.publish({log.cell: sorted([alice.id, bob.id]), ABROAD: [FAR_MEMBER]}))
    return made


def send(log, group, body, **options):
    sealed = log.seal(group.id, 1, roster=True, body=body, **options)
    assert log.answers(log.submit("b1", sealed)) == [Code.ACCEPTED]
    return envelope_id(sealed)


def answer(log, *codes):
    """The other cell answers for as many numbers."""
    done = log.room.state.outboxes[ABROAD].done
    answers = tuple(records.HandedAnswer(done + n, code, 0) for n, code in enumerate(codes, 1))
    log.apply(records.Handed(ABROAD, done + len(codes), answers, bytes(16), log.room.state.outboxes[ABROAD].log))


def bound(log):
    return [item.id for item in log.room.state.outboxes[ABROAD].items.values()]


def told(log, own):
    """What the sender was told about an envelope after its receipt."""
    return [found[0] for found in log.ids("b1") if found[1:] == own]


def test_what_came_too_early_is_tried_again_in_order_and_then_stored(log, group):
    one, two = send(log, group, b"1"), send(log, group, b"2")
    answer(log, Code.STORED, Code.UNKNOWN_ROSTER, Code.UNKNOWN_ROSTER)  # the roster went by another link, say
    three = send(log, group, b"3")  # queues up behind them
    assert bound(log) == [] and told(log, one) == []
    log.apply(records.Tick(), after_ms=PARKED_RETRY - 1)
    assert bound(log) == []
    log.apply(records.Tick(), after_ms=1)
    assert bound(log) == [one]  # one is enough to ask
    answer(log, Code.STORED)
    assert bound(log) == [two, three]
    answer(log, Code.STORED, Code.STORED)
    assert [told(log, own) for own in (one, two, three)] == [[Code.STORED]] * 3
    outbox = log.room.state.outboxes[ABROAD]
    assert (outbox.parked, outbox.bytes, log.room.state.waiting_bytes) == ({}, 0, {})
    assert log.room.state.pending == {}


def test_an_envelope_under_way_keeps_its_place_before_what_was_parked_later(log, group):
    one, two = send(log, group, b"1"), send(log, group, b"2")
    answer(log, Code.STORED, Code.UNKNOWN_ROSTER)
    three = send(log, group, b"3")
    answer(log, Code.UNKNOWN_ROSTER)
    log.apply(records.Tick(), after_ms=PARKED_RETRY)
    assert bound(log) == [one]
    answer(log, Code.UNKNOWN_ROSTER)
    parked = log.room.state.outboxes[ABROAD].parked[group.id]
    assert [item.id for _, item in sorted(parked.items.items())] == [one, two, three]


def test_tries_become_rare_and_go_on(log, group):
    send(log, group, b"1")
    answer(log, Code.STORED, Code.UNKNOWN_ROSTER)
    gaps, last = [], log.time
    while len(gaps) < 10:
        log.apply(records.Tick(), after_ms=PARKED_RETRY)
        if bound(log):
            gaps.append(log.time - last)
            last = log.time
            answer(log, Code.UNKNOWN_ROSTER)
    assert gaps[:3] == [PARKED_RETRY, 2 * PARKED_RETRY, 4 * PARKED_RETRY]
    assert gaps[-1] == PARKED_RETRY_MAX == max(gaps)


def test_one_that_never_gets_in_expires_and_its_sender_hears_it(log, group):
    own = send(log, group, b"1", life=MINUTE)
    answer(log, Code.STORED, Code.UNKNOWN_ROSTER)
    log.apply(records.Tick(), after_ms=MINUTE)
    assert told(log, own) == [Code.EXPIRED]
    log.apply(records.Tick(), after_ms=2 * MINUTE)
    assert log.room.state.outboxes[ABROAD].parked == {} and log.room.state.waiting_bytes == {}
    assert send(log, group, b"2") == bound(log)[-1]  # asked anew


def test_one_sender_parks_a_bounded_amount(log, group, monkeypatch):
    one, two = send(log, group, b"1"), send(log, group, b"2")
    monkeypatch.setattr("relay.core.mailroom.state.MAX_WAITING_EACH", 1_000)
    answer(log, Code.STORED, Code.UNKNOWN_ROSTER, Code.UNKNOWN_ROSTER)
    assert (told(log, one), told(log, two)) == ([], [Code.UNKNOWN_ROSTER])
    sealed = log.seal(group.id, 1, roster=True, body=b"3")
    assert log.answers(log.submit("b1", sealed)) == [Code.OUTBOX_FULL]  # to be tried again later
    assert log.answers(log.submit("a1", sealed)) == [Code.ACCEPTED]


def test_what_is_tried_keeps_its_place(log, group, monkeypatch):
    """What came first is not refused because something else took its room while it was under way."""
    one, two = send(log, group, b"1"), send(log, group, b"2")
    monkeypatch.setattr("relay.core.mailroom.state.MAX_WAITING_EACH", 1_500)
    answer(log, Code.STORED, Code.UNKNOWN_ROSTER, Code.UNKNOWN_ROSTER)
    log.apply(records.Tick(), after_ms=PARKED_RETRY)
    assert bound(log) == [one]
    log.room = Mailroom.from_checkpoint(list(log.room.checkpoint()))
    assert log.answers(log.submit("b1", log.seal(group.id, 1, roster=True, body=b"3"))) == [Code.OUTBOX_FULL]
    answer(log, Code.UNKNOWN_ROSTER)
    assert told(log, one) == []
    log.apply(records.Tick(), after_ms=2 * PARKED_RETRY)
    answer(log, Code.STORED)
    log.apply(records.Tick(), after_ms=86_400_000)  # the other one runs out under way
    assert (told(log, one), told(log, two)) == ([Code.STORED], [Code.EXPIRED])
    answer(log, Code.EXPIRED)
    assert log.room.state.waiting_bytes == {} and log.room.state.outboxes[ABROAD].bytes == 0


def test_what_is_parked_survives_a_checkpoint(log, group):
    send(log, group, b"1"), send(log, group, b"2")
    answer(log, Code.STORED, Code.UNKNOWN_ROSTER, Code.UNKNOWN_ROSTER)
    again = Mailroom.from_checkpoint(list(log.room.checkpoint()))
    assert again.digest() == log.room.digest() and again.state.waiting_bytes == log.room.state.waiting_bytes
    log.apply(records.Tick(), after_ms=PARKED_RETRY)
    again.apply(log.blocks[-1])
    assert again.digest() == log.room.digest() and len(bound(log)) == 1


# --- the cell at the other end -------------------------------------------------------------------
def handed_in(number, item, what=records.HANDIN_ENVELOPE, part=b""):
    return records.HandIn("norden/1", b"o" * 16, number, 0, what, item, part)


@pytest.fixture
def there(make_log, make_user):
    """Another cell, with carol at home."""
    cell = make_log(ABROAD)
    cell.carol = make_user("carol", ABROAD)
    cell.enrol(cell.carol, "c1")
    return cell


def outcome(cell, number):
    return cell.room.state.origins["norden/1", b"o" * 16].outcomes[number][0]


def test_a_cell_without_the_version_keeps_nothing_and_takes_it_when_it_comes_again(there, make_group):
    group = make_group("a1")
    roster = group.publish({"norden/1": [FAR_MEMBER], ABROAD: [there.carol.id]})
    sealed = there.seal(group.id, 1, roster=True)
    there.apply(handed_in(1, sealed))
    assert outcome(there, 1) == Code.UNKNOWN_ROSTER
    assert not there.room.state.sources and group.id not in there.room.state.rosters
    there.apply(handed_in(2, roster.head, records.HANDIN_ROSTER, dict(roster.parts)[ABROAD]), handed_in(3, sealed))
    assert (outcome(there, 2), outcome(there, 3)) == (Code.STORED, Code.STORED)
    assert there.ids("c1") == [envelope_id(sealed)]


def test_a_group_that_lists_nobody_at_home_gets_a_refusal_and_no_place(there, make_group):
    group = make_group("a1")
    roster = group.publish({"norden/1": [FAR_MEMBER], ABROAD: [b"\x08" * 32]})
    there.apply(handed_in(1, roster.head, records.HANDIN_NOBODY), handed_in(2, there.seal(group.id, 1, roster=True)))
    assert (outcome(there, 1), outcome(there, 2)) == (Code.UNKNOWN_USER, Code.UNKNOWN_USER)
    assert not there.room.state.sources
    second = group.publish({"norden/1": [FAR_MEMBER], ABROAD: [there.carol.id]})
    there.apply(handed_in(3, second.head, records.HANDIN_ROSTER, dict(second.parts)[ABROAD]))
    there.apply(handed_in(4, there.seal(group.id, 2, roster=True)))
    assert outcome(there, 4) == Code.STORED and len(there.pending("c1")) == 1


def test_for_members_who_have_all_left_nothing_rests_and_nothing_is_refused(there, make_group):
    group = make_group("a1")
    first = group.publish({"norden/1": [FAR_MEMBER], ABROAD: [there.carol.id]})
    there.apply(handed_in(1, first.head, records.HANDIN_ROSTER, dict(first.parts)[ABROAD]))
    second = group.publish({"norden/1": [FAR_MEMBER]})
    there.apply(handed_in(2, second.head, records.HANDIN_NOBODY), handed_in(3, there.seal(group.id, 1, roster=True)))
    assert (outcome(there, 2), outcome(there, 3)) == (Code.STORED, Code.STORED)
    assert not there.room.state.sources and there.pending("c1") == []


def test_the_owner_hears_that_a_cell_refused_the_roster(log, group):
    answer(log, Code.UNKNOWN_USER)
    (notice,) = log.room.state.devices[device_id("a1")].notices.values()
    head = log.room.state.rosters[group.id].head.signed
    assert (notice.id, notice.code, notice.cell) == (digest(head), Code.UNKNOWN_USER, ABROAD)
