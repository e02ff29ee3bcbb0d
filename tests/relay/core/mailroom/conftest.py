"""A small world for the fold: signed users, envelopes, rosters, and a log that applies what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from nacl.signing import SigningKey

from relay.core import envelope, records
from relay.core.block import GENESIS, Block, make_block
from relay.core.codec import Struct, digest, encode
from relay.core.mailroom import Mailroom, reading
from relay.core.mailroom.effects import Answered, Effect
from relay.core.mailroom.people import Notice
from relay.core.trust import (
    Device, HomePayload, Member, RosterCell, RosterHead, group_id, make_part, sign_home, sign_roster,
)
from tests.proofs import proven

START = 1_800_000_000_000
FAR = START * 2


def key(name: str) -> SigningKey:
    return SigningKey(digest(name.encode()))


def device_id(name: str) -> bytes:
    return bytes(key(name).verify_key)


class User:
    """A user with signed home records; `chain` grows with each `record`."""

    def __init__(self, name: str, cell: str) -> None:
        self.name, self.cell, self.id, self.last = name, cell, b"", b""
        self.chain: list[bytes] = []
        self.since: dict[str, int] = {}
        self.devices: tuple[Device, ...] = ()
        self.epoch, self.at = 0, cell  # how often the user has moved, and the cell of the last record
        self.first: dict[str, str] = {}  # of devices whose keys were rotated: the name that it was enrolled with

    def move(self, cell: str) -> bytes:
        """The next record, in another cell, with the same devices."""
        self.cell = cell
        return self.record(*self.since)

    def rotate(self, old: str, new: str) -> bytes:
        """The next version, in which the device `old` has new keys and is called `new`."""
        self.first[new] = self.first.get(old, old)
        self.since = {new if name == old else name: since for name, since in self.since.items()}
        return self.record(*self.since)

    def record(self, *devices: str) -> bytes:
        version, moves = len(self.chain) + 1, self.cell != self.at
        self.epoch, self.at = self.epoch + moves, self.cell
        self.since = {name: self.since.get(name, version) for name in devices}
        listed = tuple(
            Device(device_id(name), bytes(32), since, device_id(self.first[name]) if name in self.first else b"", b"")
            for name, since in self.since.items()
        )
        payload = HomePayload(
            1, self.id, version, self.last, self.cell.split("/")[0], self.cell, device_id(self.name), listed,
            self.epoch, 0, FAR, b"",
        )  # fmt: skip
        payload = proven(payload, map(key, devices), self.devices)
        self.devices = payload.devices
        self.last = digest(encode(payload))
        self.id = self.id or self.last
        release = key("registrar") if moves else None
        self.chain.append(sign_home(payload, key(self.name), key("registrar"), release))
        return self.chain[-1]


class Log:
    """A cell's log: every call of `apply` is one block, applied at once."""

    def __init__(self, cell: str = "norden/1") -> None:
        self.cell = cell
        self.log_id = digest(cell.encode())[:16]
        self.room = Mailroom(cell, self.log_id)
        self.blocks: list[Block] = []
        self.time = START

    def apply(self, *items: Struct, after_ms: int = 0) -> list[Effect]:
        self.time += after_ms
        prev = self.blocks[-1].hash if self.blocks else GENESIS
        data = [records.encode_record(item) for item in items]
        block = make_block(self.log_id, len(self.blocks) + 1, prev, self.time, data)
        self.blocks.append(block)
        return self.room.apply(block)

    def answers(self, *items: Struct, after_ms: int = 0) -> list[int]:
        return [e.item.code for e in self.apply(*items, after_ms=after_ms) if isinstance(e, Answered)]

    def enrol(self, user: User, *devices: str) -> None:
        self.apply(records.Home(user.record(*devices)))

    def pending(self, device: str, after: int | None = None) -> list[int]:
        state = self.room.state
        start = state.devices[device_id(device)].cursor if after is None else after
        return [item.position for item in reading.pending(state, device_id(device), start, 1_000_000)]

    def ids(self, device: str) -> list[bytes]:
        """What the device still gets: envelope ids, read back through the log (notices as their id's complement)."""
        state, found = self.room.state, []
        cursor = state.devices[device_id(device)].cursor
        for item in reading.pending(state, device_id(device), cursor, 1_000_000):
            if isinstance(item, Notice):
                found.append(bytes([min(item.code, 255)]) + item.id)
                continue
            source = state.sources.find(item.source)
            record = reading.record_of(self.blocks[source.index - 1], source)
            found.append(envelope.envelope_id(reading.envelope_of(record)))
        return found

    def ack_all(self, device: str) -> None:
        waiting = self.pending(device)
        if waiting:
            self.apply(records.Ack(device_id(device), waiting[-1]))

    def seal(
        self, to: bytes, version: int = 1, *, roster: bool = False, body: bytes = b"x", life: int = 86_400_000
    ) -> bytes:
        kind = envelope.To.ROSTER if roster else envelope.To.MAILBOX
        header = envelope.Header(1, kind, to, version, self.time, self.time + life, 1)
        return envelope.join(encode(header), body)

    def submit(self, device: str, sealed: bytes, dest: str = "") -> records.Submit:
        return records.Submit(device_id(device), dest or self.cell, sealed)


class Group:
    """A group whose owner signs versions. `name`: of an owner's second one."""

    def __init__(self, owner: str, name: str = "") -> None:
        self.owner, self.last, self.version, self.seed = owner, b"", 0, digest((name or owner).encode())
        self.id = group_id(device_id(owner), self.seed)
        self.since: dict[bytes, int] = {}

    def publish(self, members: dict[str, Sequence[bytes]]) -> records.Roster:
        self.version += 1
        everybody = [user for users in members.values() for user in users]
        self.since = {user: self.since.get(user, self.version) for user in everybody}
        parts = {
            cell: make_part(self.version, [Member(user, self.since[user]) for user in users])
            for cell, users in members.items()
        }
        cells = tuple(RosterCell(cell, len(members[cell]), digest(part)) for cell, part in sorted(parts.items()))
        head = RosterHead(1, self.seed, self.version, self.last, device_id(self.owner), cells)
        self.last = digest(encode(head))
        return records.Roster(device_id(self.owner), sign_roster(head, key(self.owner)), tuple(parts.items()))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def make_log() -> Callable[[str], Log]:
    return Log


@pytest.fixture
def make_user() -> Callable[[str, str], User]:
    return User


@pytest.fixture
def make_group() -> Callable[[str], Group]:
    return Group
