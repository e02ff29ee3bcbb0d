"""Who broadcasts, and who reads: channels are founded, posted to, given other windows and other secrets, and closed;
cards go to readers in every region, new ones to most of them; and now and then somebody tries what is not permitted.

All of it is drawn from a source of its own: a world without channels is what it was before there were any.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from relay.core import wire
from relay.core.codec import digest, encode, pack
from relay.core.posts import PostHeader
from relay.core.trust.channels import sign_terms
from relay.core.trust.signing import sign
from relay.limits import CHANNEL_BYTES_LEAST, DAY
from tests.simulation.authors import Authors
from tests.simulation.channels import Book, SimChannel
from tests.simulation.devices import SimDevice
from tests.simulation.keys import key
from tests.simulation.options import Options
from tests.simulation.readers import STRANGER, Place
from tests.simulation.world import World

_MOST: Final = 8  # things that wait for an owner


class Broadcasters:
    """`run` while there are faults."""

    def __init__(self, world: World, book: Book, authors: Authors, options: Options) -> None:
        self._world, self._book, self._authors, self._options = world, book, authors, options
        self._random = world.random("channels")
        self._made = 0
        book.rules = authors.rules

    async def run(self) -> None:
        """Until cancelled."""
        random = self._random
        kinds = {
            self._post: 60, self._hand_card: 16, self._change: 4, self._renew: 4, self._close: 1, self._pause: 6,
            self._steal: 4, self._intrude: 4,
        }  # fmt: skip
        while True:
            await trio.sleep(random.expovariate(self._options.posts))
            if len(self._open()) < self._options.channels:
                self._found()
            what = random.choices(list(kinds), list(kinds.values()))[0]
            channels = self._open()
            if channels:
                what(random.choice(channels))

    def _open(self) -> list[SimChannel]:
        return [one for one in self._book.channels.values() if not (one.left or one.over)]

    def _found(self) -> None:
        random, authors = self._random, self._authors
        ready = [one for one in authors.devices if one.confirmed and one.at == one.person.region and not one.channels]
        if not ready:
            return
        owner = random.choice(ready)
        self._made += 1
        channel = SimChannel(self._made, owner)
        self._book.channels[channel.id] = channel
        owner.channels.append(channel)
        keep_ms = 3 * DAY if authors.rules and random.random() < 0.2 else self._keep_ms()
        self._wants(channel, "terms", {"keep_ms": keep_ms, **self._window()})
        self._world.trace("channel founded", owner.name, self._made, keep_ms)
        for device in random.sample(authors.devices, min(len(authors.devices), random.randint(1, 4))):
            self._card(channel, device, channel.era)

    def _keep_ms(self) -> int:
        return self._random.choice([2_000, 10_000, 60_000, DAY, DAY])

    def _window(self) -> dict[str, Any]:
        least = self._options.limits.get("CHANNEL_BYTES_LEAST", CHANNEL_BYTES_LEAST)
        return {"keep_posts": self._random.choice([2, 8, 1_000]), "keep_bytes": self._random.choice([1, 4]) * least}

    def _wants(self, channel: SimChannel, kind: str, what: Any) -> None:
        if channel.closing:
            return
        channel.wants.append((kind, what))
        channel.owned_by.wake.unpark_all()

    # --- owners --------------------------------------------------------------------------------------
    def _post(self, channel: SimChannel) -> None:
        for _ in range(self._random.choice([1, 1, 1, 4, _MOST])):
            if len(channel.wants) < _MOST:
                self._wants(channel, "post", self._random.randint(40, self._options.size))

    def _change(self, channel: SimChannel) -> None:
        self._world.trace("other window", channel.owned_by.name)
        self._wants(channel, "terms", {"keep_ms": self._keep_ms(), **self._window()})

    def _renew(self, channel: SimChannel) -> None:
        """Another secret, and new cards for most of those who had one."""
        if channel.newest is None or any("secret" in what for kind, what in channel.wants if kind == "terms"):
            return
        era = channel.era + 1
        self._world.trace("other secret", channel.owned_by.name, era)
        self._wants(channel, "terms", {"secret": digest(channel.id + b"secret %d" % era)})
        after = self._random.uniform(0.0, 10.0)
        for device in self._authors.devices:
            place = self._place(channel, device)
            if place is not None and place.era != STRANGER and self._random.random() < 0.7:
                self._world.agenda.after(after, self._card, channel, device, era)

    def _close(self, channel: SimChannel) -> None:
        self._world.trace("channel closed", channel.owned_by.name)
        self._wants(channel, "terms", {"keep_ms": 0})
        channel.closing = True

    # --- readers -------------------------------------------------------------------------------------
    def _place(self, channel: SimChannel, device: SimDevice) -> Place | None:
        place: Place | None = self._book.places.get(device.name, {}).get(channel.id)
        return place

    def _card(self, channel: SimChannel, device: SimDevice, era: int) -> None:
        """Somebody is given the card of a channel; one with a secret that the owner has not made yet comes later."""
        if era > channel.era:
            if not channel.left and not channel.over:
                self._world.agenda.after(1.0, self._card, channel, device, era)
            return
        place = self._place(channel, device)
        if place is None:
            live = self._random.random() < 0.7
            self._book.places.setdefault(device.name, {})[channel.id] = Place(device, channel, era, live)
        elif place.era < era:
            place.era = era
        self._world.trace("card", device.name, era)
        device.wake.unpark_all()

    def _hand_card(self, channel: SimChannel) -> None:
        self._card(channel, self._random.choice(self._authors.devices), channel.era)

    def _pause(self, channel: SimChannel) -> None:
        """A reader wants no more of it, for a while."""
        places = [one[channel.id] for one in self._book.places.values() if channel.id in one]
        if places:
            place = self._random.choice(places)
            self._reads(place, False)
            self._world.agenda.after(self._random.uniform(1.0, 15.0), self._reads, place, True)

    def _reads(self, place: Place, reads: bool) -> None:
        place.reads = reads
        place.device.wake.unpark_all()

    # --- who may not ---------------------------------------------------------------------------------
    def _steal(self, channel: SimChannel) -> None:
        """Somebody without a card makes a ticket."""
        device = self._random.choice(self._authors.devices)
        if self._place(channel, device) is None:
            self._book.places.setdefault(device.name, {})[channel.id] = Place(device, channel, STRANGER, True)
            device.wake.unpark_all()

    def _intrude(self, channel: SimChannel) -> None:
        """Somebody else posts, signing as himself or with what the owner is about to send, or brings terms."""
        others = [one for one in self._authors.devices if one.person is not channel.person]
        if not others or channel.newest is None:
            return
        device = self._random.choice(others)
        number = len(channel.posts) + self._random.choice([1, 1000])
        head = encode(PostHeader(1, channel.id, channel.version, number, 0, 1))
        forged = pack([head, b"forged", sign(key(device.key), b"posthouse.post\x00", pack([head, b"forged"]))])
        work, choice = channel.work, self._random.random()
        if choice < 0.4 and work is not None:
            device.intrudes.append(wire.Posts((work.data,)) if work.number else wire.Terms(work.data))
        elif choice < 0.8:
            device.intrudes.append(wire.Posts((forged,)))
        else:
            device.intrudes.append(wire.Terms(sign_terms(channel.draft(keep_posts=1), key(device.key))))
        device.wake.unpark_all()
