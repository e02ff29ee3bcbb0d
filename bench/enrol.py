"""Users of a bench, made directly: keys from the seed, home records signed here, no client stores.

A record reaches the node in AUTH, like any that the cell has not seen yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nacl.signing import SigningKey

from bench.session import Enrolled
from relay.core.codec import digest, pack
from relay.core.trust import (
    Device,
    HomePayload,
    Member,
    RosterCell,
    RosterHead,
    make_part,
    prove_devices,
    read_home,
    sign_home,
    sign_roster,
    verify_roster,
)
from relay.limits import DAY, MINUTE


@dataclass(frozen=True, slots=True)
class Home:
    """Where the users live, and who signs for it."""

    region: str
    cell: str
    registrar: SigningKey


def enrol(home: Home, seed: int, number: int, now_ms: int) -> Enrolled:
    """User `number` with one device, at home in `home` for a day from `now_ms` (Unix time)."""
    user_seed, device_seed, encryption = (digest(pack([seed, number, what]), b"posthouse.bench") for what in range(3))
    device = Device(bytes(SigningKey(device_seed).verify_key), encryption, 1, b"", b"")
    payload = HomePayload(
        format=1,
        user=b"",
        version=1,
        prev=b"",
        region=home.region,
        cell=home.cell,
        user_key=bytes(SigningKey(user_seed).verify_key),
        devices=(device,),
        move_epoch=0,
        not_before=now_ms - MINUTE,
        expires=now_ms + DAY,
        recovery_key=b"",
    )
    payload = prove_devices(payload, [SigningKey(device_seed)])
    signed = sign_home(payload, SigningKey(user_seed), home.registrar)
    return Enrolled(read_home(signed).user, device_seed, signed)


@dataclass(frozen=True, slots=True)
class Group:
    """Version 1 of a roster, as it is published."""

    id: bytes
    head: bytes
    parts: tuple[tuple[str, bytes], ...]


def make_group(owner: Enrolled, members: Sequence[tuple[Home, bytes]]) -> Group:
    """A group of users (the owner is one of them), each at home somewhere, signed by the owner's device."""
    cells: dict[str, list[Member]] = {}
    for home, user in members:
        cells.setdefault(home.cell, []).append(Member(user, 1))
    parts = {cell: make_part(1, those) for cell, those in sorted(cells.items())}
    listed = tuple(RosterCell(cell, len(cells[cell]), digest(part)) for cell, part in parts.items())
    head = RosterHead(1, digest(owner.user), 1, b"", bytes(owner.key.verify_key), listed)
    signed = sign_roster(head, owner.key)
    return Group(verify_roster(signed).group, signed, tuple(parts.items()))
