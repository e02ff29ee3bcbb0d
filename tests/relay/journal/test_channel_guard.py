"""The disk writer's own check of broadcast channels: where they rest, and for how long."""

from __future__ import annotations

import pytest

from relay.core import records
from relay.core.records import encode_record
from relay.core.trust import Policy, RootCell, RootRegion
from relay.errors import NotPermitted
from relay.journal.guard import ResidencyGuard
from relay.limits import DAY
from tests.channels import Channel
from tests.flipping import flipped
from tests.relay.journal.test_guard import ABROAD, FAR, HERE, Desk, Person, key, public
from tests.roots import verified_root


@pytest.fixture
def desk() -> Desk:
    made = Desk()
    made.write(Person("anna").home("anna's phone"))
    return made


def test_a_channel_rests_in_its_owners_home(desk: Desk) -> None:
    channel = Channel(key("anna's phone"), HERE)
    early = channel.draft()
    desk.refuses(records.Post(channel.device, channel.seal(b"x", 1, 1)), text="does not rest in")
    desk.refuses(Channel(key("anna's phone"), ABROAD).publish(), text="a channel of cell sud/1")
    stranger = Channel(key("stranger"), HERE)
    taken = records.Channel(public("anna's phone"), stranger.sign(stranger.draft()))
    desk.refuses(taken, text="whose owner is not at home")
    desk.refuses(stranger.publish(), text="not at home")
    desk.refuses(records.Channel(public("stranger"), channel.sign(early)), text="a record of device")
    desk.refuses(records.Channel(channel.device, flipped(channel.sign(early))), text="does not verify")
    desk.write(channel.publish())
    older = channel.publish()
    desk.write(older)
    desk.write(channel.publish())
    assert not desk.guard.check([encode_record(older)]), "what came before changes nothing"
    desk.restart()
    desk.write(channel.post(b"hello"))
    carried = records.Carried(1, 0, encode_record(channel.post(b"again")))
    desk.write(records.Carry((carried,)))
    desk.refuses(records.Post(public("stranger"), channel.seal(b"x")), text="not at home")


def test_a_channel_keeps_posts_no_longer_than_the_region() -> None:
    policy, registrar = Policy(retention_days=2), public("registrar of " + HERE)
    root = verified_root((RootRegion("norden", b"", registrar, (RootCell(HERE, ()),), policy=policy),), FAR)
    guard, channel = ResidencyGuard("norden", HERE, root), Channel(key("anna's phone"), HERE)
    person = Person("anna")
    guard.learn(guard.check([encode_record(person.home("anna's phone"))]))
    long = channel.draft(keep_ms=3 * DAY)
    with pytest.raises(NotPermitted, match="more than 2 days"):
        guard.check([encode_record(records.Channel(channel.device, channel.sign(long)))])
    guard.learn(guard.check([encode_record(channel.publish(keep_ms=2 * DAY))]))
    guard.check([encode_record(channel.post(b"hello"))])
    made = [encode_record(records.Channel(channel.device, channel.sign(channel.draft(keep_ms=3 * DAY))))]
    guard.learn(guard.check(made, made=True))  # by a leader with another root
    with pytest.raises(NotPermitted):
        guard.check([encode_record(channel.post(b"hello"))])
