"""Who is at home in a cell, and what waits for them: users, devices, boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import starmap
from struct import Struct
from typing import Final, NamedTuple

from msgpack import unpackb as unpack

from relay.core.codec import pack
from relay.core.mailroom.packed import Table
from relay.core.mailroom.resting import Resting
from relay.core.packing import Shelf
from relay.core.trust import HomeRecord, read_chain

_ENTRY: Final = Struct("<qqqq")
_DEVICE: Final = Struct("<32sIq")  # user, since, cursor


class Entry(NamedTuple):
    """An envelope at an address; `source` is its source's key. `version` is the home or roster version that it was
    sealed for."""

    position: int
    source: int
    version: int
    expires: int


class Box(Table):
    """What waits at one address, by rising position: the rows are entries. `bytes` is their records' size. `due` and
    `swept` are relay.core.mailroom.expiry's."""

    __slots__ = ("bytes", "due", "swept")

    def __init__(self) -> None:
        super().__init__(_ENTRY)
        self.bytes = 0
        self.due = 0
        self.swept = 0

    def after(self, pos: int) -> Iterator[Entry]:
        """Entries past `pos`, in order. The box must not change while the iterator is used."""
        return starmap(Entry, self.since(pos + 1))


@dataclass(slots=True)
class Notice:
    """A durable outcome in the stream of the device that sent envelope `id`."""

    position: int
    id: bytes
    code: int
    newest: int
    cell: str
    expires: int


@dataclass(slots=True)
class DeviceState:
    """An enrolled device. `cursor`: everything up to it is acknowledged. `session`: nonce of the session that holds."""

    id: bytes
    user: bytes
    since: int
    cursor: int
    session: bytes = b""
    notices: dict[int, Notice] = field(default_factory=dict)

    def pack(self) -> bytes:
        """All of it but the id, where there are no notices."""
        return _DEVICE.pack(self.user, self.since, self.cursor) + self.session

    @classmethod
    def unpack(cls, key: bytes, packed: bytes) -> DeviceState:
        user, since, cursor = _DEVICE.unpack_from(packed)
        return cls(key, user, since, cursor, packed[_DEVICE.size :])


class UserState:
    """A user at home here: the signed records from version 1 on, and what waits. The newest is parsed when it is asked
    for."""

    __slots__ = ("_record", "box", "chain")

    def __init__(self, chain: list[bytes], record: HomeRecord | None = None) -> None:
        self.chain = chain
        self.box = Box()
        self._record = record

    @property
    def record(self) -> HomeRecord:
        """The newest home record."""
        if self._record is None:
            self._record = read_chain(self.chain)[-1]
        return self._record

    def follow(self, chain: list[bytes], newest: HomeRecord) -> None:
        """These are the records from now on."""
        self.chain, self._record = chain, newest

    def pack(self) -> bytes:
        """All of it, where nothing waits."""
        return pack(self.chain)

    @classmethod
    def unpack(cls, _: bytes, packed: bytes) -> UserState:
        return cls(unpack(packed))


def no_users(shelf: Shelf | None = None) -> Resting[UserState]:
    """For users at home in a cell."""
    return Resting(UserState.pack, UserState.unpack, lambda user: not len(user.box), shelf)


def no_devices(shelf: Shelf | None = None) -> Resting[DeviceState]:
    """For their devices."""
    return Resting(DeviceState.pack, DeviceState.unpack, lambda device: not device.notices, shelf)
