"""The bench's reader of a broadcast channel: what it missed it reads on demand, and counts in order."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from nacl.signing import SigningKey

from bench.broadcast import Readers, make_post, open_channel
from bench.cast import make_plan
from bench.pipes import Receive
from bench.receiver import Recipient, Tally
from bench.scenario import Scenario
from bench.session import Enrolled
from relay.core import wire
from relay.core.posts import verify_post
from relay.core.trust.channels import verify_terms
from relay.core.wire import Code
from relay.errors import PeerError

OWNER = Enrolled(bytes(32), b"o" * 32, b"")
CHANNEL, TERMS = open_channel(OWNER, "norden/1", 1)
SCENARIO = Scenario(name="channel", channel=True, floors=False, recipients=1, rate=10.0, seconds=2.0, warm_up=0.0)


def post(number: int, seed: int = 1) -> bytes:
    return make_post(CHANNEL, seed, number - 1, 0, 256, 0, OWNER.key)


def posted(*numbers: int) -> list[bytes]:
    return [wire.encode_message(wire.Posted(post(number))) for number in numbers]


def news(last: int, code: Code = Code.STORED) -> bytes:
    return wire.encode_message(wire.Channel(0, CHANNEL, code, TERMS, 1, last))


def page(after: int, last: int, *numbers: int) -> bytes:
    return wire.encode_message(wire.Page(CHANNEL, after, Code.STORED, 1, last, tuple(map(post, numbers))))


class Seat:
    """A reader without a socket, and what it says."""

    def __init__(self) -> None:
        plan = make_plan(SCENARIO, (), [CHANNEL])
        order = Receive(plan, (Enrolled(bytes(32), b"r" * 32, b""),), (0,))
        self.tally = Tally(plan, Readers(order))
        self.later: list[object] = []
        hub = SimpleNamespace(at=lambda when, what: self.later.append(what))
        net = SimpleNamespace(random=random.Random(1), hub=hub, endpoints=())
        self.recipient = Recipient(net, self.tally)  # type: ignore[arg-type]
        self.reader = self.recipient.client
        self.said: list[wire.ClientMessage] = []
        type(self.reader).send = lambda _, message: self.said.append(message)  # type: ignore[method-assign,assignment]

    def hears(self, *messages: bytes) -> list[wire.ClientMessage]:
        self.said.clear()
        self.reader.messages(list(messages), 1_000)
        return self.said

    def damage(self) -> tuple[int, int, int, int]:
        ledger, total = self.recipient.ledger, self.tally.total
        return len(ledger.absent(total)), ledger.duplicated, ledger.reordered, self.tally.damaged


@pytest.fixture
def seat(monkeypatch: pytest.MonkeyPatch) -> Seat:
    from bench.broadcast import Reader

    monkeypatch.setattr(Reader, "send", Reader.send)  # put back afterwards
    return Seat()


def test_live_posts_and_what_was_missed_between_them(seat: Seat) -> None:
    assert not seat.hears(news(0)) and seat.recipient.caught_up
    seat.hears(*posted(1, 2, 3))
    assert seat.hears(news(5), *posted(6)) == [wire.Read(CHANNEL, 3)]
    assert seat.hears(page(3, 5, 4, 5)) == [wire.Read(CHANNEL, 5)]
    assert not seat.hears(page(5, 6, 6)) and not seat.hears(*posted(*range(7, 21)))
    assert seat.damage() == (0, 0, 0, 0)


def test_damage_is_counted(seat: Seat) -> None:
    seat.hears(news(0), *posted(1, 1, 4, 3), wire.encode_message(wire.Posted(post(5, seed=2))))
    assert seat.damage() == (20 - 3, 1, 1, 1)


def test_who_comes_before_the_channel_asks_again(seat: Seat) -> None:
    seat.hears(news(0, Code.UNKNOWN_CHANNEL))
    assert seat.recipient.caught_up and len(seat.later) == 1
    with pytest.raises(PeerError):
        seat.hears(news(0, Code.NOT_SUBSCRIBER))


def test_terms_and_posts_are_real() -> None:
    assert verify_terms(TERMS).channel == CHANNEL
    assert verify_post(post(7), bytes(SigningKey(b"o" * 32).verify_key)).number == 7
