"""Who writes what to whom: letters inside and across regions, groups and their changes, new devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final

import trio

from relay.core.wire import Code
from tests.simulation.devices import SimDevice
from tests.simulation.ledger import CANARY, Ledger, Letter
from tests.simulation.network import Network
from tests.simulation.options import Options
from tests.simulation.people import REGIONS, Group, Person, region_of
from tests.simulation.rules import Rules
from tests.simulation.world import World

LIFE_MS: Final = 86_400_000  # of a letter that must arrive
LONG_SHARE: Final = 0.2  # where there are policies: of letters that live three times as long


class Authors:
    """All people, devices and groups of a world."""

    def __init__(self, world: World, net: Network, ledger: Ledger, options: Options) -> None:
        self.world, self.net, self.ledger, self.options = world, net, ledger, options
        self.random: Random = world.random("authors")
        self.rules = Rules(options.policies)
        self.people: list[Person] = []
        self.devices: list[SimDevice] = []
        self.groups: list[Group] = []
        self.revoked: list[SimDevice] = []
        self.start: Callable[[SimDevice], None] = lambda device: None
        self.leaving: Callable[[bytes, str], None] = lambda user, region: None
        self._counters: dict[tuple[str, bytes], int] = {}
        for region in REGIONS[: options.regions]:
            for number in range(options.people):
                person = Person(f"{region[:2]}{number + 1}", region)
                self.people.append(person)
                self._add(person, self.random.randint(1, options.devices))
                if region == options.liar:
                    self._add(person, 1)  # there is something to fall behind

    def _add(self, person: Person, count: int) -> list[SimDevice]:
        """New devices of a person, in one new version of the home record."""
        names = [f"{person.name}/{person.made + number + 1}" for number in range(count)]
        person.enrol(*names)
        fresh = [
            SimDevice(name, person, self.options.nodes, self.net, self.ledger, self.world.random(f"device {name}"))
            for name in names
        ]
        self.devices += fresh
        return fresh

    def of(self, person: Person) -> list[SimDevice]:
        return [device for device in self.devices if device.person is person]

    def device(self, name: str) -> SimDevice:
        return next(device for device in self.devices if device.name == name)

    # --- tasks -------------------------------------------------------------------------------------
    async def found_groups(self) -> None:
        """Once everybody is at home, owners publish the first versions."""
        while not all(person.known for person in self.people):  # noqa: ASYNC110 - of many at once
            await trio.sleep(0.5)
        for number in range(self.options.groups if len(self.people) > 1 else 0):
            owner = self.random.choice(self.devices)
            group = Group(f"group{number + 1}", owner.name)
            others = [person for person in self.people if person is not owner.person]
            members = [owner.person, *self.random.sample(others, self.random.randint(1, len(others)))]
            if len(self._permitted(owner, members)) < 2:
                continue
            self.groups.append(group)
            self.ledger.owners[group.id] = owner.person.name
            await self._publish(group, owner, members)

    async def _publish(self, group: Group, owner: SimDevice, members: list[Person]) -> None:
        """Bring out a version and wait until the owner's home has answered."""
        members = self._permitted(owner, members)
        before = group.members.get(group.version, [])
        listed = group.cells.get(group.version, {})
        leave = [person for person in before if person not in members or listed[person.id] != person.listed]
        gone = {device.name for person in leave for device in self.of(person)}
        roster = group.publish(members)
        if len(owner.person.homes) > 1:
            self.world.trace("roster of an owner who moved", group.name, group.version)
        self.world.trace("roster", group.name, group.version, len(members), len(gone))
        for letter in self.ledger.letters:
            if letter.target == group.id and letter.stored is None:
                letter.required -= gone  # who has gone before it is admitted does not get it
        own = owner.publish(roster)
        while own in owner.out:  # noqa: ASYNC110 - it is simple, and costs nothing
            await trio.sleep(0.2)
        group.usable = group.version

    def _permitted(self, owner: SimDevice, members: list[Person]) -> list[Person]:
        """Whom the policies let a group have whose owner that is."""
        home = owner.person.region
        return [one for one in members if self.rules.shares(home, [region_of(one.listed)])]

    async def write(self) -> None:
        """Letters at the given rate, until cancelled."""
        while True:
            await trio.sleep(self.random.expovariate(self.options.rate))
            for _ in range(self.random.randint(1, self.options.burst) if self.random.random() < 0.2 else 1):
                self._write_one()

    def _write_one(self) -> None:
        groups = [group for group in self.groups if group.usable]
        if groups and self.random.random() < self.options.group_share:
            self._to_group(self.random.choice(groups))
            return
        sender = self.random.choice(self.devices)
        others = [person for person in self.people if person is not sender.person and person.known]
        if not others or not sender.confirmed:
            return
        person = self.random.choice(others)
        version = person.known
        required = {name for name, since in person.devices.items() if since <= version}
        regions = frozenset((*sender.person.homes, *person.homes))
        doomed = {device.name for device in self.revoked if device.person is person and version < device.revoked_in}
        letter = self._say(sender, person.id, person.homes[0], version, regions, required, frozenset(required | doomed))
        if self.rules:
            letter.may_rest = partial(self.rules.to_one, sender.person, person, letter.lifetime_ms)
            letter.may_be_refused = partial(self.rules.may_refuse, sender.person, person, letter.lifetime_ms)
        if self.random.random() < self.options.lookups and sender.session is not None and sender.ready:
            self.world.agenda.after(0.0, self.look_up, sender, person)

    def look_up(self, sender: SimDevice, person: Person) -> None:
        if sender.session is not None:
            sender.session.wanted.append((person, self.random.choice([0, 0, person.known])))
            sender.wake.unpark_all()

    def _to_group(self, group: Group) -> None:
        members = group.members[group.usable]
        listed = group.cells[group.usable]  # who has moved since writes to each alone (docs/PROTOCOL.md, section 5)
        at_home = [person for person in members if listed[person.id] == person.cell]
        devices = [device for person in at_home for device in self.of(person) if device.at == person.region]
        senders = [device for device in devices if device.confirmed]
        if not senders:
            return
        sender = self.random.choice(senders)
        newest = group.cells[group.version]  # who is listed elsewhere in it gets a copy of its own (rule 17)
        staying = [person for person in members if newest.get(person.id) == listed[person.id]]
        required = {device.name for person in staying for device in self.of(person) if device.confirmed}
        regions = frozenset(region for person in [sender.person, *members] for region in person.homes)
        allowed = frozenset(person.name for person in members)
        letter = self._say(sender, group.id, "", group.usable, regions, required, allowed, group.regions)
        if self.rules:
            about, life = (sender.person, group, group.usable), letter.lifetime_ms
            letter.may_rest = partial(self.rules.to_group, *about, life)
            letter.may_be_refused = partial(self.rules.may_refuse_group, sender.person, group, life)
            out_of_reach = [one for one in members if not self.rules.gets(sender.at, region_of(listed[one.id]), life)]
            letter.required -= {device.name for one in out_of_reach for device in self.of(one)}

    def _say(
        self, sender: SimDevice, target: bytes, hint: str, version: int, regions: frozenset[str], required: set[str],
        allowed: frozenset[str], later: set[str] | None = None,
    ) -> Letter:  # fmt: skip
        short = self.random.random() < self.options.short_lived
        life = LIFE_MS * (3 if self.rules and self.random.random() < LONG_SHARE else 1)
        place = (sender.name, target)
        self._counters[place] = self._counters.get(place, 0) + 1
        letter = Letter(
            len(self.ledger.letters), sender.name, self.random.randbytes(CANARY), target, not hint, hint, version,
            self._counters[place], regions, required, allowed,
            self.random.randint(500, 30_000) if short else life, not short,
            self.random.randint(40, self.options.size), trio.current_time(),
            later=set() if later is None else later,
        )  # fmt: skip
        sender.say(letter)
        return letter

    # --- changes -----------------------------------------------------------------------------------
    def enrol(self) -> None:
        """Somebody gets a new device."""
        person = self.random.choice(self.people)
        if len(person.devices) < 8:
            (device,) = self._add(person, 1)
            self.world.trace("enrolled", device.name)
            self.start(device)

    def revoke(self) -> None:
        """Somebody loses a device, and says so with another one. (Not one that owns a group, which would end.)"""
        owners = {group.owner for group in self.groups}
        lost = [one for one in self.devices if one.name not in owners and len(one.person.devices) > 1]
        if not lost:
            return
        device = self.random.choice(lost)
        self.devices.remove(device)
        self.revoked.append(device)
        device.person.revoke(device.name)
        device.revoked_in = device.person.version
        self.world.trace("revoked", device.name)
        self.ledger.gone(device.name)
        others = self.of(device.person)
        there = [one for one in others if one.at == device.person.region]  # empty where only the lost one knew
        self._tell_home(self.random.choice(there or others))

    def rotate(self) -> None:
        """A device gets new keys; it goes on with them at once."""
        device = self.random.choice(self.devices)
        device.person.rotate(device.name)
        device.key = device.person.keys[device.name]
        self.world.trace("keys rotated", device.name)
        self._tell_home(device)

    def _tell_home(self, device: SimDevice) -> None:
        """The newest home record goes to its home with whichever device of the person comes next, this one at once:
        who signs a version knows the one before it, and with it the newest home."""
        device.settle(device.person.region)
        if device.online:
            device.switch(False)
            device.switch(True)

    def move(self, random: Random) -> None:
        """Somebody moves to another region. One device knows it at once, the others hear of it where they are."""
        ready = [one for one in self.people if one.known and len(one.homes) < 4]
        if not ready or self.options.regions < 2:
            return
        person = random.choice(ready)
        others = [one for one in REGIONS[: self.options.regions] if one != person.region]
        owned = [group for group in self.groups if group.owner.partition("/")[0] == person.name]
        listed = {region_of(cell) for group in owned for cells in group.cells.values() for cell in cells.values()}
        others = [one for one in others if self.rules.may_move(person, one) and self.rules.shares(one, listed)]
        if not others:
            return
        region = random.choice(others)
        self.world.trace("moves", person.name, person.region, region)
        for group in owned:
            self.world.trace("owner moves", group.name, person.name, group.version)
        self.leaving(person.id, person.region)
        person.move(region)
        groups = {group.id for group in self.groups if any(person in some for some in group.members.values())}
        for group in self.groups:
            if group.id in groups:
                group.regions.add(region)
        self.ledger.moved(person.name, person.id, groups, region)
        for device in self.of(person):
            self._give_up_group_letters(device)
        random.choice(self.of(person)).settle(region)

    def _give_up_group_letters(self, device: SimDevice) -> None:
        """What no cell has taken yet would go to each member alone now; here it is not sent at all."""
        for own, out in list(device.out.items()):
            if out.letter is not None and out.letter.group:
                del device.out[own]
                if out.letter.accepted is None:
                    out.letter.refused = Code.NOT_MEMBER

    async def regroup(self) -> None:
        """A group's owner adds or removes somebody."""
        ready = [group for group in self.groups if group.usable == group.version > 0]
        if not ready:
            return
        group = self.random.choice(ready)
        owner = self.device(group.owner)
        members = list(group.members[group.version])
        ever = {person for version in group.members.values() for person in version}
        new = [person for person in self.people if person not in ever]
        leaving = [person for person in members if person is not owner.person]
        if new and (not leaving or self.random.random() < 0.5):
            members.append(self.random.choice(new))
        elif leaving:
            members.remove(self.random.choice(leaving))
        await self._publish(group, owner, members)
