"""Who takes part: users with one or two devices at home in one cell, made from a seed, and a group of all of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from nacl.signing import SigningKey

from bench.enrol import Group, Home, make_group
from bench.session import Enrolled
from relay.core.codec import digest, pack
from relay.core.trust import Device, HomePayload, prove_devices, read_home, sign_home
from relay.limits import DAY, MINUTE


class Population(msgspec.Struct, frozen=True):
    """`devices[n]` is device n, `owners[n]` its user's number."""

    region: str
    users: tuple[bytes, ...]
    devices: tuple[Enrolled, ...]
    owners: tuple[int, ...]
    group: bytes
    head: bytes
    parts: tuple[tuple[str, bytes], ...]

    def devices_of(self) -> list[list[int]]:
        """For each user the numbers of its devices."""
        return [[n for n, owner in enumerate(self.owners) if owner == user] for user in range(len(self.users))]


class Orders(msgspec.Struct, frozen=True):
    """What the load is told when it starts. `rate`: messages a second."""

    people: Population
    sockets: tuple[Path, ...]
    history: Path
    rate: float
    seed: int


def populate(home: Home, users: int, seed: int, now_ms: int) -> Population:
    """`users` users; every third has two devices."""
    devices: list[Enrolled] = []
    owners: list[int] = []
    people = []
    for number in range(users):
        enrolled = _enrol(home, seed, number, 2 if number % 3 == 2 else 1, now_ms)
        people.append(enrolled[0])
        devices += enrolled
        owners += [number] * len(enrolled)
    group: Group = make_group(people[0], [(home, one.user) for one in people])
    return Population(
        home.region, tuple(one.user for one in people), tuple(devices), tuple(owners), group.id, group.head, group.parts
    )


def _enrol(home: Home, seed: int, number: int, count: int, now_ms: int) -> list[Enrolled]:
    user_key, *seeds = (digest(pack([seed, number, what]), b"posthouse.crash") for what in range(1 + count))
    listed = tuple(Device(bytes(SigningKey(one).verify_key), digest(one), 1, b"", b"") for one in seeds)
    key = SigningKey(user_key)
    payload = HomePayload(
        1, b"", 1, b"", home.region, home.cell, bytes(key.verify_key), listed, 0, now_ms - MINUTE, now_ms + DAY, b"",
    )
    payload = prove_devices(payload, map(SigningKey, seeds))
    signed = sign_home(payload, key, home.registrar)
    return [Enrolled(read_home(signed).user, one, signed) for one in seeds]
