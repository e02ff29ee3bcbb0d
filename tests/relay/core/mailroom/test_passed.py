"""Envelopes that another cell passed on without keeping them: first submits, for which nobody here is told."""

from __future__ import annotations

from relay.core import records
from relay.core.envelope import envelope_id
from relay.core.mailroom import Mailroom
from relay.core.mailroom.effects import Answered, PassedOn
from relay.core.wire import Code
from relay.limits import MINUTE
from tests.relay.core.mailroom.conftest import Log, User


def passed(sealed: bytes) -> records.Passed:
    return records.Passed("sauda/1", sealed)


def outcomes(log: Log, *sealed: bytes, after_ms: int = 0) -> list[int]:
    effects = log.apply(*map(passed, sealed), after_ms=after_ms)
    assert not any(isinstance(effect, Answered) for effect in effects)
    return [effect.item.code for effect in effects if isinstance(effect, PassedOn)]


def test_it_is_admitted_once_and_keeps_its_first_outcome() -> None:
    log, bob = Log(), User("bob", "norden/1")
    log.enrol(bob, "b1")
    one = log.seal(bob.id)
    assert outcomes(log, one, one) == [Code.STORED, Code.STORED]
    assert outcomes(log, one, after_ms=5 * MINUTE) == [Code.STORED] and log.ids("b1") == [envelope_id(one)]
    again = Mailroom.from_checkpoint(list(log.room.checkpoint()))
    assert again.digest() == log.room.digest()
    log.apply(records.Carry((records.Carried(2, 0, records.encode_record(passed(one))),)))
    assert log.ids("b1") == [envelope_id(one)], "read from the carry"
    log.ack_all("b1")
    assert not log.room.state.sources and not log.room.state.origins


def test_what_is_refused() -> None:
    log, bob = Log(), User("bob", "norden/1")
    log.enrol(bob, "b1")
    old = log.seal(bob.id, body=b"old")
    wanted = {
        log.seal(bytes(32)): Code.UNKNOWN_USER, log.seal(bob.id, 2): Code.BAD_ENVELOPE, b"junk": Code.BAD_ENVELOPE,
        log.seal(bytes(32), roster=True): Code.NOT_PERMITTED, log.seal(bob.id, life=0): Code.LIFETIME,
    }  # fmt: skip
    assert outcomes(log, *wanted) == list(wanted.values())
    assert outcomes(log, old, after_ms=11 * MINUTE) == [Code.STALE]
    assert log.ids("b1") == []
