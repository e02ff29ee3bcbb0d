"""Passes over rosters: what a pass remembers of the one before decides where it looks, and nothing else."""

from __future__ import annotations

from random import Random

import pytest

from relay.core import records
from relay.core.mailroom import Mailroom, settle
from tests.relay.core.mailroom.conftest import Group, User


@pytest.fixture
def club(log, monkeypatch):
    """Members with a device each."""
    monkeypatch.setattr(settle, "SETTLE_EVERY", 2)
    users = [User(f"m{n}", log.cell) for n in range(12)]
    for n, user in enumerate(users):
        log.enrol(user, f"d{n}")
    return users


def looked(monkeypatch) -> list[bytes]:
    """Whom passes look at from now on."""
    real, seen = settle.devices_of, []

    def devices_of(state, user):
        seen.append(user.record.user)
        return real(state, user)

    monkeypatch.setattr(settle, "devices_of", devices_of)
    return seen


def test_as_long_as_one_who_is_away_lacks_the_oldest_nobody_else_is_looked_at(log, club, monkeypatch):
    group = Group("d0")
    log.apply(group.publish({log.cell: sorted(user.id for user in club)}))
    log.apply(log.submit("d0", log.seal(group.id, roster=True)))
    log.apply(records.Tick()), log.apply(records.Tick())
    for n in range(1, 12):
        log.ack_all(f"d{n}")
    log.apply(records.Tick()), log.apply(records.Tick())
    roster, seen = log.room.state.rosters[group.id], looked(monkeypatch)
    for _ in range(10):
        roster.dirty = True  # as if somebody had acknowledged something
        log.apply(records.Tick()), log.apply(records.Tick())
    assert set(seen) == {club[0].id} and len(seen) <= 10
    log.ack_all("d0")
    log.apply(records.Tick()), log.apply(records.Tick())
    assert not log.room.state.sources and roster.left is False


def test_a_large_roster_is_looked_at_less_often(log, club, monkeypatch):
    """Passes are two blocks apart; twelve members and five to a pass: every third."""
    monkeypatch.setattr(settle, "_MEMBERS_A_PASS", 5)
    group = Group("d0")
    log.apply(group.publish({log.cell: sorted(user.id for user in club)}))
    state = log.room.state
    for number in range(3):
        log.apply(log.submit("d0", log.seal(group.id, roster=True, body=b"%d" % number)))
        for n in range(12):
            log.ack_all(f"d{n}")
        began = state.index
        while state.sources:
            log.apply(records.Tick())
        assert state.index % 6 == 0 and state.index - began <= 6


@pytest.mark.parametrize("seed", range(20))
def test_a_room_that_remembers_nothing_settles_the_same(log, club, seed, monkeypatch):
    """Beside each block that is applied, one that was just loaded from a checkpoint applies it, too."""
    monkeypatch.setattr(settle, "_MEMBERS_A_PASS", [5, 1000][seed % 2])
    random, group = Random(seed), Group("d0")
    inside = {club[0].id, *(user.id for user in random.sample(club, 6))}
    log.apply(group.publish({log.cell: sorted(inside)}))
    for number in range(150):
        fresh = Mailroom.from_checkpoint(list(log.room.checkpoint()))
        what = random.random()
        if what < 0.3:
            log.apply(log.submit("d0", log.seal(group.id, group.version, roster=True, body=bytes([number]))))
        elif what < 0.4:
            inside = inside ^ {random.choice(club[1:]).id}
            log.apply(group.publish({log.cell: sorted(inside)}))
        elif what < 0.8:
            log.ack_all(f"d{random.randrange(12)}")
        else:
            log.apply(records.Tick())
        for block in log.blocks[fresh.state.index :]:
            fresh.apply(block)
        assert fresh.digest() == log.room.digest()
