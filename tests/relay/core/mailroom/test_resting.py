"""Who rests is packed, who has something waiting is awake, and nothing tells them apart from outside."""

from __future__ import annotations

from typing import Any

import pytest

from relay.core import records
from relay.core.mailroom import Mailroom, resting
from tests.relay.core.mailroom.conftest import Log, User, device_id


@pytest.fixture(autouse=True)
def nobody_stays_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "MAX_AWAKE", 0)


def open_cell() -> tuple[Log, User, User]:
    log, alice, bob = Log(), User("alice", "norden/1"), User("bob", "norden/1")
    log.enrol(alice, "a1")
    log.enrol(bob, "b1")
    log.enrol(bob, "b1", "b2")
    return log, alice, bob


def awake(some: Any) -> set[bytes]:
    return {key for key, _ in some.awake()}


def test_who_has_mail_waiting_is_awake_until_it_is_collected() -> None:
    log, _, bob = open_cell()
    state = log.room.state
    assert not awake(state.users) and not awake(state.devices)
    log.apply(log.submit("a1", log.seal(bob.id, 2)))
    assert awake(state.users) == {bob.id} and not awake(state.devices)
    assert len(log.ids("b1")) == len(log.ids("b2")) == 1  # who looks, wakes them: until the next block
    log.ack_all("b1")
    assert awake(state.users) == {bob.id}
    log.ack_all("b2")
    assert not awake(state.users) and not state.sources
    cursors = [state.devices[device_id(name)].cursor for name in ("b1", "b2")]
    assert cursors[1] > 0 and sum(map(len, (state.users, state.devices))) == 5
    assert Mailroom.from_checkpoint(list(log.room.checkpoint())).digest() == log.room.digest()


def test_a_session_and_a_new_version_are_kept() -> None:
    log, _, bob = open_cell()
    state = log.room.state
    log.apply(records.Session(device_id("b1"), "n1", b"n" * 16, 0))
    log.enrol(bob, "b1")
    assert not awake(state.devices) and device_id("b2") not in state.devices
    known = state.devices.peek(device_id("b1"))
    assert known is not None and (known.session, known.since, known.user) == (b"n" * 16, 1, bob.id)
    user = state.users.peek(bob.id)
    assert user is not None and (user.record.version, user.chain) == (3, bob.chain)
    assert user.record.former[0].id == device_id("b2")
    assert not awake(state.users), "a look wakes nobody"


def test_who_looks_sees_what_is_under_way() -> None:
    log, alice, bob = open_cell()
    log.apply(log.submit("a1", log.seal(bob.id, 2)))
    seen = log.room.state.users.peek(bob.id)
    assert seen is log.room.state.users[bob.id] and len(seen.box) == 1
    assert log.room.state.users.peek(bytes(32)) is None and log.room.state.users.get(bytes(32)) is None
    assert {user.chain[0] for user in log.room.state.users.values()} == {alice.chain[0], bob.chain[0]}


def test_a_rest_is_short_however_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    log, _, bob = open_cell()
    log.apply(log.submit("a1", log.seal(bob.id, 2)))
    monkeypatch.setattr(resting, "_TURNS", 1)
    state = log.room.state
    for user in state.users:
        _ = state.users[user]
    assert len(awake(state.users)) == 2
    state.users.rest()
    state.users.rest()  # bob's turn came, or comes: he has mail
    assert awake(state.users) == {bob.id}


def test_who_has_a_notice_waiting_keeps_it() -> None:
    log, _, _ = open_cell()
    state = log.room.state
    log.apply(log.submit("a1", log.seal(b"c" * 32), "sauda/1"))
    log.apply(records.Handed("sauda/1", 1, (records.HandedAnswer(1, 2, 1),), b"a" * 16, b""))
    for _ in range(3):
        log.apply(records.Tick())
        assert awake(state.devices) == {device_id("a1")}
    assert len(log.ids("a1")) == 1
    log.ack_all("a1")
    assert not awake(state.devices)
