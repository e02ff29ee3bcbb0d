"""Sessions and acknowledgements: the newest session fences, cursors only rise, and never beyond what was there."""

from __future__ import annotations

import pytest

from relay.core import records
from relay.core.block import position
from relay.core.mailroom import Mailroom
from relay.core.wire import Code
from tests.relay.core.mailroom.conftest import Log, User, device_id

ABROAD, ABROAD_LOG = "sauda/1", b"a" * 16
B1 = device_id("b1")


@pytest.fixture
def waiting(log: Log) -> Log:
    """Three envelopes wait for bob's device."""
    alice, bob = User("alice", log.cell), User("bob", log.cell)
    log.enrol(alice, "a1")
    log.enrol(bob, "b1")
    log.apply(*(log.submit("a1", log.seal(bob.id, body=b"%d" % n)) for n in range(3)))
    return log


def session(cursor: int, nonce: bytes = b"n" * 16) -> records.Session:
    return records.Session(B1, "n1", nonce, cursor)


def ack(cursor: int) -> records.Ack:
    return records.Ack(B1, cursor)


def test_the_newest_session_holds_also_after_a_checkpoint(waiting: Log) -> None:
    for nonce in (b"1" * 16, b"2" * 16):
        waiting.apply(session(0, nonce))
        again = Mailroom.from_checkpoint(list(waiting.room.checkpoint()))
        assert waiting.room.state.devices[B1].session == again.state.devices[B1].session == nonce


@pytest.mark.parametrize("record", [session, ack])
def test_nothing_is_acknowledged_that_was_not_there_yet(waiting: Log, record) -> None:
    """What a client says it has is a number that it chose: beyond the log it would lose what comes there."""
    before = waiting.room.state.devices[B1].cursor
    for beyond in (0, 5, 1 << 60):
        waiting.apply(record(position(len(waiting.blocks) + 1, 0) + beyond))
        assert waiting.room.state.devices[B1].cursor == before and len(waiting.pending("b1")) == 3
    waiting.apply(record(last := position(len(waiting.blocks) + 1, 0) - 1))
    assert waiting.room.state.devices[B1].cursor == last and not waiting.pending("b1")


@pytest.mark.parametrize("record", [session, ack])
def test_a_cursor_does_not_go_back(waiting: Log, record) -> None:
    first, second, third = waiting.pending("b1")
    waiting.apply(ack(second))
    for older in (first, 0, second):
        waiting.apply(record(older))
        assert waiting.room.state.devices[B1].cursor == second and waiting.pending("b1") == [third]


def test_a_notice_goes_with_the_ack_of_its_own_position(waiting: Log) -> None:
    waiting.apply(waiting.submit("a1", waiting.seal(b"c" * 32), ABROAD))
    waiting.apply(records.Handed(ABROAD, 1, (records.HandedAnswer(1, Code.STORED, 1),), ABROAD_LOG, b""))
    [place] = waiting.pending("a1")
    waiting.apply(records.Ack(device_id("a1"), place - 1))
    assert list(waiting.room.state.devices[device_id("a1")].notices) == [place]
    waiting.apply(records.Ack(device_id("a1"), place))
    assert not waiting.room.state.devices[device_id("a1")].notices
