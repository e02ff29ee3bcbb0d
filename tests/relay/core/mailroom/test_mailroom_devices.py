"""What the fold makes of devices that are revoked, or whose keys are rotated (ADR 24)."""

from __future__ import annotations

from relay.core import records
from relay.core.envelope import envelope_id
from relay.core.mailroom import Mailroom
from relay.core.mailroom.effects import Answered, DeviceGone, Noticed, SessionStarted
from relay.core.mailroom.settle import SETTLE_EVERY
from relay.core.wire import Code
from relay.limits import DAY
from tests.relay.core.mailroom.conftest import device_id

ABROAD, ABROAD_LOG = "sauda/1", b"a" * 16


def gone(effects) -> list[tuple[bytes, int]]:
    return [(effect.device, effect.waited) for effect in effects if isinstance(effect, DeviceGone)]


def restored(log) -> Mailroom:
    """The same from a checkpoint."""
    again = Mailroom.from_checkpoint(list(log.room.checkpoint()))
    assert again.digest() == log.room.digest()
    return again


def people(log, make_user):
    alice, bob = make_user("alice", log.cell), make_user("bob", log.cell)
    log.enrol(alice, "a1")
    log.enrol(bob, "b1", "b2")
    return alice, bob


def test_what_waits_only_for_a_revoked_device_goes_with_it(log, make_user):
    _, bob = people(log, make_user)
    log.apply(*(log.submit("a1", log.seal(bob.id, body=b"%d" % n)) for n in range(5)))
    log.ack_all("b1")
    assert log.room.state.users[bob.id].box.bytes and len(log.pending("b2")) == 5
    assert gone(log.apply(records.Home(bob.record("b1")))) == [(device_id("b2"), 5)]
    assert log.room.state.user_of(device_id("b2")) == bob.id
    assert log.room.state.users[bob.id].box.bytes == 0 == len(log.room.state.sources)
    assert log.answers(log.submit("b2", log.seal(bob.id, 2))) == []  # it submits no more
    effects = log.apply(records.Session(device_id("b2"), "n1", b"s" * 16, 0))
    assert not [effect for effect in effects if isinstance(effect, SessionStarted)]
    assert log.answers(log.submit("a1", log.seal(bob.id, 1, body=b"late"))) == [Code.STORED]
    assert len(log.pending("b1")) == 1
    restored(log)


def test_new_keys_take_the_place_of_the_old(log, make_user):
    alice, bob = people(log, make_user)
    first = [log.submit("a1", log.seal(bob.id, body=b"%d" % n)) for n in range(4)]
    log.apply(*first)
    log.apply(records.Ack(device_id("b2"), log.pending("b2")[0]))
    assert gone(log.apply(records.Home(bob.rotate("b2", "b2'")))) == [(device_id("b2"), 0)]
    assert log.ids("b2'") == [envelope_id(one.envelope) for one in first[1:]], "its cursor went on"
    assert log.answers(log.submit("a1", log.seal(bob.id, 1, body=b"for the old key"))) == [Code.STORED]
    assert log.answers(log.submit("a1", log.seal(bob.id, 2, body=b"for the new"))) == [Code.STORED]
    assert len(log.pending("b2'")) == 5
    assert gone(log.apply(records.Home(bob.rotate("b2'", "b2''")))) == [(device_id("b2'"), 0)]
    assert len(log.pending("b2''")) == 5
    log.ack_all("b1")
    assert log.room.state.users[bob.id].box.bytes
    log.ack_all("b2''")
    assert log.room.state.users[bob.id].box.bytes == 0
    assert log.answers(log.submit("b2''", log.seal(alice.id))) == [Code.STORED]
    restored(log)


def test_outcomes_that_the_old_keys_awaited_come_to_the_new(log, make_user):
    _, bob = people(log, make_user)
    sent = [log.submit("b2", log.seal(b"c" * 32, body=b"%d" % n), ABROAD) for n in range(3)]
    assert log.answers(*sent) == [Code.ACCEPTED] * 3

    def handed(*numbers: int) -> records.Handed:
        answers = tuple(records.HandedAnswer(number, Code.STORED, 7) for number in numbers)
        return records.Handed(ABROAD, numbers[-1], answers, ABROAD_LOG, ABROAD_LOG if numbers[0] > 1 else b"")

    log.apply(handed(1))
    assert len(log.pending("b2")) == 1
    log.apply(records.Home(bob.rotate("b2", "b2'")))
    effects = log.apply(handed(2, 3))
    assert [e.device for e in effects if isinstance(e, Noticed)] == [device_id("b2'")] * 2
    assert [item[1:] for item in log.ids("b2'")] == [envelope_id(one.envelope) for one in sent]
    effects = log.apply(records.Submit(device_id("b2'"), ABROAD, sent[0].envelope))
    again = [effect for effect in effects if isinstance(effect, Answered)]
    assert [(e.device, e.item.code) for e in again] == [(device_id("b2'"), Code.STORED)]
    other = restored(log)
    log.time += 31 * DAY  # what runs out does so on a node that has the state from a checkpoint, too
    block = log.apply(records.Tick())
    assert block == other.apply(log.blocks[-1]) and other.digest() == log.room.digest()
    assert log.pending("b2'") == []


def test_what_waits_for_a_roster_is_the_new_keys_too(log, make_user, make_group):
    alice, bob = people(log, make_user)
    group = make_group("a1")
    sealed = log.seal(group.id, 1, roster=True)
    assert log.answers(log.submit("b2", sealed)) == [Code.ACCEPTED]
    waits = log.room.state.waiting_bytes[device_id("b2")]
    log.apply(records.Home(bob.rotate("b2", "b2'")))
    assert log.room.state.waiting_bytes == {device_id("b2'"): waits}
    restored(log)
    effects = log.apply(group.publish({log.cell: [alice.id, bob.id]}))
    assert [e.device for e in effects if isinstance(e, Noticed)] == [device_id("b2'")]
    assert log.room.state.waiting_bytes == {} and len(log.pending("a1")) == 1


def test_two_devices_change_in_one_version(log, make_user):
    _, bob = people(log, make_user)
    log.apply(log.submit("a1", log.seal(bob.id)))
    bob.first["b1'"] = "b1"
    bob.since = {"b1'": 1}
    effects = log.apply(records.Home(bob.record("b1'", "b3")))
    assert gone(effects) == [(device_id("b1"), 0), (device_id("b2"), 1)]
    assert len(log.pending("b1'")) == 1 and log.pending("b3") == []
    assert log.room.state.users[bob.id].record.stem(device_id("b2")) == device_id("b2")
    assert restored(log).state.users[bob.id].record == log.room.state.users[bob.id].record


def in_a_group(log, make_user, make_group):
    """Three messages to a group of both, which everybody but b2 has collected; and the group's box."""
    alice, bob = people(log, make_user)
    group = make_group("a1")
    log.apply(group.publish({log.cell: sorted([alice.id, bob.id])}))
    log.apply(*(log.submit("a1", log.seal(group.id, 1, roster=True, body=b"%d" % n)) for n in range(3)))
    for device in ("a1", "b1"):
        log.ack_all(device)
    passes(log)
    box = log.room.state.rosters[group.id].box
    assert box.bytes and len(log.pending("b2")) == 3
    return bob, box


def passes(log) -> None:
    """So many blocks that rosters were looked at."""
    for _ in range(SETTLE_EVERY):
        log.apply(records.Tick())


def test_group_mail_that_waits_only_for_a_revoked_device_goes_with_it(log, make_user, make_group):
    bob, box = in_a_group(log, make_user, make_group)
    log.apply(records.Home(bob.record("b1")))
    passes(log)
    assert box.bytes == 0 == len(log.room.state.sources)
    restored(log)


def test_group_mail_goes_when_the_last_device_has_it(log, make_user, make_group):
    _, box = in_a_group(log, make_user, make_group)
    log.ack_all("b2")
    passes(log)
    assert box.bytes == 0 == len(log.room.state.sources)


def test_a_home_record_out_of_turn_changes_nothing(log, make_user):
    bob = make_user("bob", log.cell)
    first, second, third = bob.record("b1"), bob.record("b1", "b2"), bob.record("b1", "b2", "b3")
    state = log.room.state
    log.apply(records.Home(second))
    assert bob.id not in state.users and device_id("b2") not in state.devices
    log.apply(records.Home(first), records.Home(third))
    assert state.users[bob.id].record.version == 1 and device_id("b3") not in state.devices
    log.apply(records.Home(second), records.Home(first))
    assert state.users[bob.id].chain == [first, second]
    bob.move(ABROAD)
    log.apply(records.Move(tuple(bob.chain)))
    log.apply(records.Home(first))  # it would be at home here again
    assert bob.id in state.moved and bob.id not in state.users and device_id("b1") not in state.devices
    restored(log)


def test_who_lists_another_users_device_neither_gets_nor_ends_it(log, make_user):
    alice, bob = people(log, make_user)
    log.apply(records.Home(bob.record("b1", "b2", "a1")))
    assert log.room.state.devices[device_id("a1")].user == alice.id
    assert gone(log.apply(records.Home(bob.record("b1", "b2")))) == []
    assert log.room.state.devices[device_id("a1")].user == alice.id


def test_what_came_to_a_group_before_a_device_is_not_for_it(log, make_user, make_group):
    alice, bob = people(log, make_user)
    group = make_group("a1")
    log.apply(group.publish({log.cell: sorted([alice.id, bob.id])}))
    assert log.answers(log.submit("a1", log.seal(group.id, roster=True))) == [Code.STORED]
    log.apply(records.Home(bob.record("b1", "b2", "b3")))
    assert len(log.pending("b1")) == 1 and not log.pending("b3")


def test_new_keys_begin_without_a_session(log, make_user):
    _, bob = people(log, make_user)
    log.apply(records.Session(device_id("b2"), "n1", b"s" * 16, 0))
    effects = log.apply(records.Home(bob.rotate("b2", "b2'")))
    assert log.room.state.devices[device_id("b2'")].session == b""
    assert [effect.rotated for effect in effects if isinstance(effect, DeviceGone)] == [True]
    effects = log.apply(records.Home(bob.record("b1")))
    assert [effect.rotated for effect in effects if isinstance(effect, DeviceGone)] == [False]
