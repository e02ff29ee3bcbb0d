"""Who lives in a simulated federation: its root, its users with their signed home records, and groups."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from relay.core.codec import digest, encode
from relay.core.trust import (
    Device, HomePayload, Member, Policy, Root, RootCell, RootNode, RootRegion, RosterCell, RosterHead, group_id,
    make_part, sign_home, sign_roster,
)
from relay.core.wire import Roster
from relay.limits import DAY
from tests.proofs import proven
from tests.roots import verified_root
from tests.simulation.keys import key, public
from tests.simulation.world import START_MS

REGIONS = ("norden", "sauda", "quito")
LINKS_PORT, CLIENTS_PORT, ADMIN_PORT = 7000, 8000, 9000
FAR = START_MS + 3650 * DAY


def host_of(region: str, node: str) -> str:
    """The network name of a node."""
    return f"{node}.{region}"


def region_of(cell: str) -> str:
    """The region of a cell, by its name."""
    return cell.partition("/")[0]


@lru_cache(maxsize=32)
def make_root(
    nodes: int, regions: Sequence[str] = REGIONS, policies: tuple[tuple[str, Policy], ...] = ()
) -> Root:  # fmt: skip
    """A root document of regions with one cell of `nodes` nodes each, and a policy for each, or none."""
    entries = []
    for region in regions:
        names = [f"n{number + 1}" for number in range(nodes)]
        listed = tuple(
            RootNode(name, f"{host_of(region, name)}:{LINKS_PORT}", (f"ws://{host_of(region, name)}:{CLIENTS_PORT}",))
            for name in names
        )
        policy, cells = dict(policies).get(region, Policy()), (RootCell(f"{region}/1", listed),)
        entries.append(RootRegion(region, b"", public(f"{region}/registrar"), cells, policy=policy))
    return verified_root(entries, FAR, name="simulated")


class Person:
    """A user: a home, devices, and the chain of signed home records."""

    def __init__(self, name: str, region: str) -> None:
        self.name, self.region, self.cell = name, region, f"{region}/1"
        self.id = b""
        self.homes = [region]  # every region that was home, in order
        self.listed = self.cell  # the newest of them that has welcomed the user: where rosters list them
        self.devices: dict[str, int] = {}  # device name → version that enrolled it
        self.keys: dict[str, str] = {}  # device name → name of its key, where that was rotated
        self.made = 0  # devices, those that were revoked included
        self.chain: list[bytes] = []
        self.known = 0  # the version that its home has said to have
        self.known_at = 0.0  # since when, in virtual time
        self._last = b""
        self._listed: tuple[Device, ...] = ()

    @property
    def version(self) -> int:
        return len(self.chain)

    def enrol(self, *names: str) -> None:
        """The next version of the home record, with these devices besides those that are there."""
        for name in names:
            self.devices[name] = self.version + 1
        self.made += len(names)
        self._sign()

    def revoke(self, name: str) -> None:
        """The next version, without this device."""
        del self.devices[name]
        self._sign()

    def rotate(self, name: str) -> None:
        """The next version, with new keys of this device."""
        self.keys[name] = f"{name} since {self.version + 1}"
        self._sign()

    def move(self, region: str) -> None:
        """The next version, with another home; the registrar of the one before releases."""
        left, self.region, self.cell = self.region, region, f"{region}/1"
        self.homes.append(region)
        self._sign(f"{left}/registrar")

    def _sign(self, release: str | None = None) -> None:
        listed = tuple(
            Device(public(self.keys.get(name, name)), bytes(32), since, public(name) if name in self.keys else b"", b"")
            for name, since in self.devices.items()
        )
        payload = HomePayload(
            1, self.id, self.version + 1, self._last, self.region, self.cell, public(self.name), listed,
            len(self.homes) - 1, START_MS - DAY, FAR, b"",
        )  # fmt: skip
        payload = proven(payload, [key(self.keys.get(name, name)) for name in self.devices], self._listed)
        self._listed = payload.devices
        self._last = digest(encode(payload))
        self.id = self.id or self._last
        released = key(release) if release else None
        self.chain.append(sign_home(payload, key(self.name), key(f"{self.region}/registrar"), released))


class Group:
    """A group whose owner, a device, signs versions of its roster."""

    def __init__(self, name: str, owner: str) -> None:
        self.name, self.owner = name, owner
        self.seed = digest(name.encode())
        self.id = group_id(public(owner), self.seed)
        self.version = 0
        self.usable = 0  # the newest version that the owner's home has taken
        self.members: dict[int, list[Person]] = {}  # by version
        self.regions: set[str] = set()  # where members ever lived
        self.cells: dict[int, dict[bytes, str]] = {}  # by version, where it lists whom
        self.since: dict[bytes, int] = {}
        self._last = b""

    def publish(self, members: Sequence[Person]) -> Roster:
        """The next version, to be sent by the owner."""
        self.version += 1
        self.members[self.version] = list(members)
        self.regions |= {person.listed.partition('/')[0] for person in members}
        before = self.cells.get(self.version - 1, {})
        self.cells[self.version] = {person.id: person.listed for person in members}
        stays = {person.id for person in members if before.get(person.id) == person.listed}
        self.since = {
            person.id: self.since[person.id] if person.id in stays else self.version for person in members
        }
        parts = {}
        for cell in sorted({person.listed for person in members}):
            here = [Member(person.id, self.since[person.id]) for person in members if person.listed == cell]
            parts[cell] = (len(here), make_part(self.version, here))
        cells = tuple(RosterCell(cell, count, digest(part)) for cell, (count, part) in parts.items())
        head = RosterHead(1, self.seed, self.version, self._last, public(self.owner), cells)
        self._last = digest(encode(head))
        return Roster(sign_roster(head, key(self.owner)), tuple((cell, part) for cell, (_, part) in parts.items()))
