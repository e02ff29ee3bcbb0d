"""The fold, rule by rule."""

from __future__ import annotations

import pytest
from nacl.signing import SigningKey

from relay.core import records
from relay.core.block import make_block
from relay.core.codec import digest
from relay.core.envelope import envelope_id
from relay.core.mailroom import Mailroom, reading
from relay.core.mailroom.effects import Answered, DeviceGone, Filed, Noticed, OutboxGrew, SessionStarted
from relay.core.mailroom.state import split_key
from relay.core.trust import Member, RosterCell, RosterHead, make_part, sign_roster
from relay.core.wire import Code
from relay.errors import StoreDamaged
from relay.limits import ADMISSION_WINDOW, MAX_CLOCK_AHEAD, MAX_LIFETIME, MINUTE
from tests.flipping import flipped

ABROAD = "sauda/1"


def device_id(name):
    return bytes(SigningKey(digest(name.encode())).verify_key)


@pytest.fixture
def people(log, make_user):
    alice, bob = make_user("alice", log.cell), make_user("bob", log.cell)
    log.enrol(alice, "a1")
    log.enrol(bob, "b1", "b2")
    return alice, bob


def test_an_envelope_waits_for_every_device_of_its_version(log, people):
    _, bob = people
    sealed = log.seal(bob.id)
    assert log.answers(log.submit("a1", sealed)) == [Code.STORED]
    assert log.ids("b1") == log.ids("b2") == [envelope_id(sealed)]
    log.ack_all("b1")
    assert log.ids("b1") == [] and log.ids("b2") == [envelope_id(sealed)]
    assert len(log.room.state.sources) == 1
    log.ack_all("b2")
    assert not log.room.state.sources and log.room.state.floor() == log.room.state.index + 1


def test_a_repeat_gets_the_first_outcome_and_is_not_filed_again(log, people):
    _, bob = people
    sealed = log.seal(bob.id)
    first = [e.item for e in log.apply(log.submit("a1", sealed)) if isinstance(e, Answered)]
    effects = log.apply(log.submit("a1", sealed), after_ms=ADMISSION_WINDOW - 1)
    again = [e.item for e in effects if isinstance(e, Answered)]
    assert first == again
    assert len(log.pending("b1")) == 1
    # Past created + D the id is forgotten, and then the age says no.
    assert log.answers(log.submit("a1", sealed), after_ms=2 * MINUTE + 2) == [Code.STALE]
    assert len(log.pending("b1")) == 1


@pytest.mark.parametrize(
    ("shift", "life", "code"),
    [
        (-ADMISSION_WINDOW - 1, MAX_LIFETIME, Code.STALE),
        (MAX_CLOCK_AHEAD + 1, MINUTE, Code.STALE),
        (MAX_CLOCK_AHEAD, MINUTE, Code.STORED),
        (-ADMISSION_WINDOW, MAX_LIFETIME, Code.STORED),
        (0, MAX_LIFETIME + 1, Code.LIFETIME),
        (0, 0, Code.LIFETIME),
        (-5, 5, Code.EXPIRED),
    ],
)
def test_age_and_lifetime(log, people, shift, life, code):
    _, bob = people
    now = log.time
    log.time = now + shift
    sealed = log.seal(bob.id, life=life)
    log.time = now
    assert log.answers(log.submit("a1", sealed)) == [code]
    assert len(log.pending("b1")) == (code == Code.STORED)


def test_refusals_of_the_address(log, people):
    _, bob = people
    assert log.answers(log.submit("a1", log.seal(bytes(32)))) == [Code.UNKNOWN_USER]
    assert log.answers(log.submit("a1", log.seal(bob.id, 2))) == [Code.BAD_ENVELOPE]
    assert log.answers(log.submit("a1", b"garbage")) == [Code.BAD_ENVELOPE]
    assert log.answers(log.submit("nobody", log.seal(bob.id))) == []


def test_a_full_mailbox_refuses_for_good(log, people, monkeypatch):
    _, bob = people
    monkeypatch.setattr("relay.core.mailroom.admission.MAX_MAILBOX", 1500)
    big = log.seal(bob.id, body=bytes(900))
    other = log.seal(bob.id, body=bytes(901))
    assert log.answers(log.submit("a1", big), log.submit("a1", other)) == [Code.STORED, Code.MAILBOX_FULL]
    log.ack_all("b1"), log.ack_all("b2")
    assert log.answers(log.submit("a1", other)) == [Code.MAILBOX_FULL]  # outcomes are final (rule 16)


def test_a_later_device_gets_what_was_sealed_for_it_and_nothing_older(log, people):
    _, bob = people
    old = log.seal(bob.id, 1)
    log.apply(log.submit("a1", old))
    log.enrol(bob, "b1", "b2", "b3")
    late = log.seal(bob.id, 1, body=b"sealed before the sender knew b3")
    new = log.seal(bob.id, 2)
    answers = [e.item for e in log.apply(log.submit("a1", late), log.submit("a1", new)) if isinstance(e, Answered)]
    assert [item.newest for item in answers] == [2, 2]
    assert log.ids("b3") == [envelope_id(new)]
    assert log.ids("b1") == [envelope_id(old), envelope_id(late), envelope_id(new)]


def test_a_removed_device_no_longer_counts(log, people):
    _, bob = people
    log.apply(log.submit("a1", log.seal(bob.id)))
    log.ack_all("b1")
    effects = log.apply(records.Home(bob.record("b1")))
    assert [e.device for e in effects if isinstance(e, DeviceGone)] == [device_id("b2")]
    assert not log.room.state.sources


def test_expiry_by_block_time(log, people):
    _, bob = people
    log.apply(log.submit("a1", log.seal(bob.id, life=MINUTE)))
    log.apply(records.Tick(), after_ms=MINUTE - 1)
    assert len(log.pending("b1")) == 1
    log.apply(records.Tick(), after_ms=1)
    assert log.pending("b1") == [] and not log.room.state.sources


def test_a_session_fences_and_says_where_it_starts(log, people):
    _, bob = people
    log.apply(log.submit("a1", log.seal(bob.id)))
    where = log.pending("b1")[0]
    effects = log.apply(records.Session(device_id("b1"), "n1", b"n" * 16, where))
    (started,) = [e for e in effects if isinstance(e, SessionStarted)]
    assert started.cursor == where and started.position > where
    assert log.pending("b1") == []  # what the client already has counts as acknowledged
    assert log.apply(records.Session(device_id("nobody"), "n1", b"m" * 16, 0)) == []


def test_an_ack_beyond_the_log_is_no_ack(log, people):
    _, bob = people
    log.apply(log.submit("a1", log.seal(bob.id)))
    log.apply(records.Ack(device_id("b1"), 1 << 60))
    assert len(log.pending("b1")) == 1


def handed(log, upto, *answers):
    return records.Handed(ABROAD, upto, answers, bytes(16), log.room.state.outboxes[ABROAD].log)


def test_abroad_goes_to_a_densely_numbered_outbox_and_back_comes_stored(log, people):
    sealed = log.seal(b"\x07" * 32)
    effects = log.apply(log.submit("a1", sealed, ABROAD), log.submit("a1", log.seal(b"\x08" * 32), ABROAD))
    assert [e.item.code for e in effects if isinstance(e, Answered)] == [Code.ACCEPTED] * 2
    assert {e.cell for e in effects if isinstance(e, OutboxGrew)} == {ABROAD}
    outbox = log.room.state.outboxes[ABROAD]
    assert [number for number, _ in reading.outbox_batch(outbox, 0, 10, 10_000)] == [1, 2]
    good = records.HandedAnswer(1, Code.STORED, 4)
    bad = records.HandedAnswer(2, Code.UNKNOWN_USER, 0)
    effects = log.apply(handed(log, 2, good, bad))
    notices = [e.notice for e in effects if isinstance(e, Noticed)]
    assert [(n.code, n.newest, n.cell) for n in notices] == [(Code.STORED, 4, ABROAD), (Code.UNKNOWN_USER, 0, ABROAD)]
    assert not log.room.state.sources and not log.room.state.pending and outbox.done == 2
    assert log.ids("a1")[0] == bytes([Code.STORED]) + envelope_id(sealed)
    log.ack_all("a1")
    assert log.ids("a1") == []


def test_what_expires_in_the_outbox_goes_out_void_and_the_sender_is_told(log, people):
    log.apply(log.submit("a1", log.seal(b"\x07" * 32, life=MINUTE), ABROAD))
    log.apply(records.Tick(), after_ms=MINUTE)
    outbox = log.room.state.outboxes[ABROAD]
    ((number, item),) = reading.outbox_batch(outbox, 0, 10, 10_000)
    assert (number, item.what, item.source, outbox.bytes) == (1, records.HANDIN_VOID, None, 0)
    assert [code[0] for code in log.ids("a1")] == [Code.EXPIRED]
    log.apply(handed(log, 1))
    assert len(log.pending("a1")) == 1


def handed_in(log, number, item, what=records.HANDIN_ENVELOPE, part=b"", confirmed=0, code=0):
    return records.HandIn(ABROAD, b"o" * 16, number, confirmed, what, item, part, code)


def test_a_hand_over_is_applied_exactly_in_order_and_once(log, people):
    _, bob = people
    one, two = log.seal(bob.id), log.seal(bob.id, body=b"y")
    log.apply(handed_in(log, 2, two))  # too early: ignored
    assert log.pending("b1") == []
    log.apply(handed_in(log, 1, one), handed_in(log, 1, one), handed_in(log, 2, two), handed_in(log, 1, one))
    assert log.ids("b1") == [envelope_id(one), envelope_id(two)]
    origin = log.room.state.origins[ABROAD, b"o" * 16]
    assert origin.vector == 2 and origin.outcomes == {1: (Code.STORED, 1), 2: (Code.STORED, 1)}
    log.apply(handed_in(log, 3, b"", records.HANDIN_REFUSED, confirmed=2, code=Code.UNKNOWN_USER))
    assert origin.outcomes == {3: (Code.UNKNOWN_USER, 0)}  # kept until the origin confirms
    log.apply(handed_in(log, 4, b"", records.HANDIN_VOID))
    assert origin.vector == 4 and 4 not in origin.outcomes


def test_a_group_envelope_is_one_record_here_and_one_copy_a_border(log, make_log, people, make_user, make_group):
    alice, bob = people
    there = make_log(ABROAD)
    carol = make_user("carol", ABROAD)
    there.enrol(carol, "c1")
    group = make_group("a1")
    roster = group.publish({log.cell: sorted([alice.id, bob.id]), ABROAD: [carol.id]})
    assert log.answers(roster) == [Code.ACCEPTED]
    sealed = log.seal(group.id, 1, roster=True)
    assert log.answers(log.submit("a1", sealed)) == [Code.ACCEPTED]
    assert log.ids("b1") == log.ids("a1") == [envelope_id(sealed)]
    assert len(log.room.state.sources) == 2  # the roster version, bound abroad, and the envelope
    there.apply(handed_in(there, 1, roster.head, records.HANDIN_ROSTER, dict(roster.parts)[ABROAD]))
    there.apply(handed_in(there, 2, sealed))
    assert there.ids("c1") == [envelope_id(sealed)]
    log.apply(handed(log, 2, *(records.HandedAnswer(n, Code.STORED, 1) for n in (1, 2))))
    stored = [bytes([Code.STORED]) + own for own in (digest(roster.head), envelope_id(sealed))]
    assert log.ids("a1")[1:] == stored and log.room.state.pending == {}


def test_only_members_send_and_only_members_of_the_version_receive(log, people, make_user, make_group):
    alice, bob = people
    carol = make_user("carol", log.cell)
    log.enrol(carol, "c1")
    group = make_group("a1")
    log.apply(group.publish({log.cell: sorted([alice.id, bob.id])}))
    stolen = log.seal(group.id, 1, roster=True)
    assert log.answers(log.submit("c1", stolen), log.submit("a1", stolen)) == [Code.NOT_MEMBER, Code.STORED]
    log.ack_all("a1"), log.ack_all("b1"), log.ack_all("b2")
    log.apply(group.publish({log.cell: sorted([alice.id, carol.id])}))
    old = log.seal(group.id, 1, roster=True, body=b"old")
    new = log.seal(group.id, 2, roster=True)
    answers = [e.item for e in log.apply(log.submit("a1", old), log.submit("a1", new)) if isinstance(e, Answered)]
    assert [(item.code, item.newest) for item in answers] == [(Code.STORED, 2)] * 2
    assert log.ids("b1") == []  # gone before the old version's envelope was admitted
    assert log.ids("c1") == [envelope_id(new)]
    assert log.ids("a1") == [envelope_id(old), envelope_id(new)]
    assert log.answers(log.submit("b1", log.seal(group.id, 1, roster=True, body=b"z"))) == [Code.NOT_MEMBER]


def test_a_forged_or_repeated_roster_changes_nothing(log, people, make_group):
    alice, bob = people
    group = make_group("a1")
    good = group.publish({log.cell: [alice.id]})
    forged = records.Roster(good.device, flipped(good.head), good.parts)
    assert log.answers(forged) == [Code.BAD_RECORD]
    swapped = make_group("a1").publish({log.cell: [bob.id]})
    assert log.answers(records.Roster(good.device, good.head, swapped.parts)) == [Code.BAD_RECORD]
    assert log.answers(good, good) == [Code.STORED, Code.STORED]
    version = log.room.state.rosters[group.id].version
    assert log.answers(good, after_ms=ADMISSION_WINDOW + 2 * MINUTE) == [Code.STORED]  # its outcome was forgotten
    later = group.publish({log.cell: sorted([alice.id, bob.id])})
    assert log.answers(later, good) == [Code.STORED, Code.BAD_RECORD]  # a rollback
    assert log.room.state.rosters[group.id].version == version + 1


def test_a_roster_settles_when_every_member_has_it(log, people, make_group):
    alice, bob = people
    group = make_group("a1")
    log.apply(group.publish({log.cell: sorted([alice.id, bob.id])}))
    log.apply(log.submit("a1", log.seal(group.id, 1, roster=True)))
    for device in ("a1", "b1"):
        log.ack_all(device)
    for _ in range(64):
        log.apply(records.Tick())
    assert len(log.room.state.sources) == 1
    log.ack_all("b2")
    for _ in range(64):
        log.apply(records.Tick())
    assert not log.room.state.sources


def test_a_carry_moves_the_record_and_keeps_the_position(log, people):
    _, bob = people
    log.apply(log.submit("a1", log.seal(bob.id)))
    before, ids = log.pending("b1"), log.ids("b1")
    for _ in range(2):  # a carry may be carried again
        carried = []
        for source in reading.to_carry(log.room.state, log.room.state.index + 1):
            record = reading.record_of(log.blocks[source.index - 1], source)
            carried.append(records.Carried(*split_key(source.key), records.encode_record(record)))
        log.apply(records.Carry(tuple(carried)))
        assert log.room.state.floor() == log.room.state.index
    assert (log.pending("b1"), log.ids("b1")) == (before, ids)
    log.ack_all("b1"), log.ack_all("b2")
    assert not log.room.state.sources


def test_blocks_that_do_not_follow_are_refused(log, people):
    last = log.blocks[-1]
    for log_id, index, time in [(b"q" * 16, 3, last.time), (log.log_id, 2, last.time), (log.log_id, 3, last.time - 1)]:
        with pytest.raises(StoreDamaged):
            log.room.apply(make_block(log_id, index, last.hash, time, [records.encode_record(records.Tick())]))


def test_rows_that_are_no_checkpoint_are_damage():
    for rows in ([b"junk"], [b"\x92\xa4meta\x90", b"\x92\xa4nope\x91\xc4\x01\x90"], [b"\x92\xa5users\x91\xc4\x01\x90"]):
        with pytest.raises(StoreDamaged):
            Mailroom.from_checkpoint(rows)


def test_filed_names_the_address(log, people):
    _, bob = people
    (filed,) = [e for e in log.apply(log.submit("a1", log.seal(bob.id))) if isinstance(e, Filed)]
    assert reading.receives(log.room.state, device_id("b1"), filed.address, filed.roster, filed.entry)
    assert not reading.receives(log.room.state, device_id("a1"), filed.address, filed.roster, filed.entry)


def test_nobody_but_the_owner_signs_versions_of_a_group(log, make_log, people, make_user, make_group):
    """Also where no version is known yet: the id is bound to the owner's key."""
    there = make_log(ABROAD)
    carol, eve = make_user("carol", ABROAD), make_user("eve", ABROAD)
    there.enrol(carol, "c1")
    there.enrol(eve, "e1")
    genuine, forged = make_group("a1"), make_group("e1")
    forged.seed, forged.version, forged.last = genuine.seed, 1, bytes(32)
    there.apply(forged.publish({ABROAD: [eve.id]}))
    assert genuine.id not in there.room.state.rosters
    made = genuine.publish({log.cell: [people[0].id], ABROAD: [carol.id]})
    there.apply(handed_in(there, 1, made.head, records.HANDIN_ROSTER, dict(made.parts)[ABROAD]))
    assert there.room.state.rosters[genuine.id].version == 1


def test_a_roster_that_names_a_cell_twice_is_refused(log, people):
    alice, _ = people
    part = make_part(1, [Member(alice.id, 1)])
    twice = (RosterCell(log.cell, 1, digest(part)),) * 2
    owner = SigningKey(digest(b"a1"))
    head = sign_roster(RosterHead(1, b"s" * 32, 1, b"", bytes(owner.verify_key), twice), owner)
    assert log.answers(records.Roster(device_id("a1"), head, ((log.cell, part),))) == [Code.BAD_RECORD]


def test_what_waits_for_a_roster_is_bounded_for_each_sender(log, people, monkeypatch):
    monkeypatch.setattr("relay.core.mailroom.state.MAX_WAITING_EACH", 2_000)
    codes = [log.answers(log.submit("a1", log.seal(bytes([n]) * 32, 1, roster=True)))[0] for n in range(5)]
    assert codes[:2] == [Code.ACCEPTED] * 2 and codes[-1] == Code.UNKNOWN_ROSTER
    assert log.answers(log.submit("b1", log.seal(b"\x77" * 32, 1, roster=True))) == [Code.ACCEPTED]


def test_a_full_outbox_is_no_final_answer_for_a_group(log, people, make_group, monkeypatch):
    group = make_group("a1")
    log.apply(group.publish({log.cell: [people[0].id], ABROAD: [b"\x09" * 32]}))
    monkeypatch.setattr("relay.core.mailroom.outboxes.MAX_OUTBOX", 0)
    sealed = log.seal(group.id, 1, roster=True)
    assert log.answers(log.submit("a1", sealed)) == [Code.OUTBOX_FULL]
    monkeypatch.undo()
    assert log.answers(log.submit("a1", sealed)) == [Code.ACCEPTED]


def test_a_handed_in_envelope_from_the_far_future_is_refused(log, people):
    _, bob = people
    log.time += ADMISSION_WINDOW + 1
    sealed = log.seal(bob.id)
    log.time -= ADMISSION_WINDOW + 1
    log.apply(handed_in(log, 1, sealed))
    assert log.pending("b1") == [] and not log.room.state.outcomes


def test_another_users_device_is_not_taken_over(log, people, make_user):
    mallory = make_user("mallory", log.cell)
    log.enrol(mallory, "m1", "b1")
    log.apply(log.submit("a1", log.seal(mallory.id)))
    log.apply(records.Home(people[1].record("b2")))  # bob lets b1 go; mallory's record still lists it
    log.ack_all("m1")
    assert device_id("b1") not in log.room.state.devices


def test_a_checkpoint_row_stays_small_whatever_the_roster(log, people, make_group):
    alice, bob = people
    group = make_group("a1")
    for turn in range(3):
        crowd = sorted({alice.id, bob.id, *(digest(bytes([turn, n // 256, n % 256])) for n in range(9_000))})
        log.apply(group.publish({log.cell: crowd}))
        log.apply(log.submit("a1", log.seal(group.id, turn + 1, roster=True)))
    rows = list(log.room.checkpoint())
    assert max(map(len, rows)) < 512 * 1024
    assert Mailroom.from_checkpoint(rows).digest() == log.room.digest()
