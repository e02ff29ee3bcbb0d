"""What expires, and when; and at which blocks a checkpoint is due."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.core import records
from relay.core.mailroom import Mailroom
from relay.core.mailroom.effects import CheckpointDue
from relay.core.mailroom.expiry import SLACK
from relay.limits import MINUTE


@pytest.fixture
def bob(log, make_user):
    user = make_user("bob", log.cell)
    log.enrol(make_user("alice", log.cell), "a1")
    log.enrol(user, "b1")
    return user


lives = st.one_of(st.integers(1, 200), st.integers(1, 3 * MINUTE), st.sampled_from((MINUTE, MINUTE - 1, MINUTE + 1)))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])  # they are classes
@given(
    played=st.lists(st.tuples(lives, st.sampled_from((0, 1, 50, 999, MINUTE // 2, MINUTE))), max_size=40),
    at=st.integers(0, 40),
)
def test_mail_waits_exactly_until_it_expires(played, at, make_log, make_user):
    """Whatever order it expires in, however the blocks lie in time, and from a checkpoint as well."""
    log = make_log("norden/1")
    bob = make_user("bob", log.cell)
    log.enrol(make_user("alice", log.cell), "a1")
    log.enrol(bob, "b1")
    waiting = {}
    for number, (life, pause) in enumerate(played):
        if number == at:
            log.room = Mailroom.from_checkpoint(list(log.room.checkpoint()))
        expires = log.time + life
        log.apply(log.submit("a1", log.seal(bob.id, body=number.to_bytes(2), life=life)), after_ms=pause)
        if expires > log.time:
            waiting[log.pending("b1")[-1]] = expires
        assert log.pending("b1") == [pos for pos, expires in waiting.items() if expires > log.time]
    for expires in sorted(waiting.values()):
        if expires > log.time:
            log.apply(records.Tick(), after_ms=expires - log.time - 1)
            assert log.pending("b1") == [pos for pos, until in waiting.items() if until > log.time]
            log.apply(records.Tick(), after_ms=1)
            assert log.pending("b1") == [pos for pos, until in waiting.items() if until > log.time]
    assert not log.room.state.sources and not log.room.state.users[bob.id].box.bytes


def test_a_box_takes_one_place_in_the_heap_however_much_waits_in_it(log, bob):
    for number in range(50):
        log.apply(log.submit("a1", log.seal(bob.id, body=bytes([number]))), after_ms=MINUTE)
    assert len(log.room.state.expiries) == 1
    log.ack_all("b1")
    for number in range(2 * SLACK):  # what expires earlier and earlier leaves stale places; they do not pile up
        log.apply(log.submit("a1", log.seal(bob.id, body=number.to_bytes(3), life=86_400_000 - number)))
    assert len(log.room.state.expiries) <= 2 + SLACK + 64


def test_a_checkpoint_is_due_at_the_same_blocks_everywhere(log, bob, monkeypatch):
    monkeypatch.setattr("relay.core.mailroom.fold.CHECKPOINT_BYTES", 5_000)
    monkeypatch.setattr("relay.core.mailroom.checkpoint.CHECKPOINT_BYTES", 5_000)
    rooms, due = [Mailroom(log.cell, log.log_id) for _ in range(2)], ([], [])
    for number in range(120):
        log.apply(log.submit("a1", log.seal(bob.id, body=bytes([number]) * 200)))
    for block in log.blocks:
        for room, found in zip(rooms, due, strict=True):
            if CheckpointDue() in room.apply(block):
                found.append(block.index)
        if block.index % 40 == 0:
            rooms[1] = Mailroom.from_checkpoint(list(rooms[1].checkpoint()))
    assert due[0] == due[1] and len(due[0]) > 3
    gaps = [sum(block.size for block in log.blocks[a:b]) for a, b in zip(due[0], due[0][1:], strict=False)]
    assert all(5_000 <= gap < 5_600 for gap in gaps)


def test_a_large_state_is_saved_more_rarely(log, bob, monkeypatch):
    monkeypatch.setattr("relay.core.mailroom.checkpoint.CHECKPOINT_BYTES", 1)
    monkeypatch.setattr("relay.core.mailroom.checkpoint.CHECKPOINT_SHARE", 1)
    log.room.state.checkpoint_due = 0
    log.apply(records.Tick())
    rows = sum(map(len, log.room.checkpoint()))
    for number in range(500):
        log.apply(log.submit("a1", log.seal(bob.id, body=number.to_bytes(2))))
    log.room.state.checkpoint_due = 0
    log.apply(records.Tick())
    state = log.room.state
    grown = sum(map(len, log.room.checkpoint())) - rows
    assert state.checkpoint_due - state.log_bytes == pytest.approx(rows + grown, rel=0.3)  # what the rows take
