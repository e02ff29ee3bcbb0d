"""The state that the fold computes: who waits for what. One Mailroom owns it; only applying a block changes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct

import msgspec

from relay.core.block import position
from relay.core.mailroom.channelstate import ChannelState
from relay.core.mailroom.outcomes import Outcomes
from relay.core.mailroom.packed import Blocks, Table
from relay.core.mailroom.people import Box, DeviceState, Entry, UserState, no_devices, no_users
from relay.core.mailroom.resting import Resting
from relay.core.trust import HomeRecord, VerifiedHead
from relay.errors import StoreForeign
from relay.limits import CHECKPOINT_BYTES, MAX_WAITING, MAX_WAITING_EACH, SLOT_BITS

FOLD_VERSION = 9
GroupId = bytes
PendingKey = bytes
Outcome = tuple[int, int, str]  # code, newest, cell
LogId = bytes
WAITING_OVERHEAD = 512  # bytes counted for what the state keeps of a waiting envelope beside its record


def check_fold_version(version: int) -> None:
    """A log, or a checkpoint of it, follows these rules of the fold. Raises StoreForeign where they are others."""
    if version != FOLD_VERSION:
        raise StoreForeign(
            f"the log asks for fold version {version}, this release knows {FOLD_VERSION}",
            "Install a newer release" if version > FOLD_VERSION else "Run the release that wrote it",
        )


class Source(msgspec.Struct, frozen=True, gc=False):
    """Where the record behind some entries lies now. `key` is (index, ordinal) where it was first written, packed."""

    key: int
    index: int
    ordinal: int
    size: int


class Sources(Table):
    """The sources of records that somebody still needs, and by how many entries each is held."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(Struct("<qqii"))  # key, where it lies now as (index, ordinal) packed, size, refs

    def find(self, key: int) -> Source | None:
        """The source with this key, if it is still needed."""
        row = self.get(key)
        return Source(key, *split_key(row[1]), row[2]) if row else None

    def hold(self, source: Source) -> bool:
        """One more entry needs it. True for the first one."""
        if source.key > self._last:
            self.add(source.key, source_key(source.index, source.ordinal), source.size, 1)
            return True
        row = self.get(source.key)
        assert row is not None, "a record that nobody needed any more is needed again"
        self.put(*row[:3], row[3] + 1)
        return False

    def drop(self, key: int) -> tuple[Source, bool]:
        """One entry less needs it. Its source; and was that the last one?"""
        found = self._locate(key)
        assert found is not None, "it was held"
        *row, refs = self._row.unpack_from(*found)
        if refs > 1:
            self._row.pack_into(*found, *row, refs - 1)
        else:
            self._remove(key, *found)
        return Source(key, *split_key(row[1]), row[2]), refs == 1

    def move(self, key: int, index: int, ordinal: int) -> Source | None:
        """The record lies elsewhere from now on. Its source as it was, if it is still needed."""
        row = self.get(key)
        if row is None:
            return None
        self.put(key, source_key(index, ordinal), *row[2:])
        return Source(key, *split_key(row[1]), row[2])

    def below(self, index: int) -> list[Source]:
        """Those that lie below block `index` now, by rising key."""
        bound = source_key(index, 0)
        return [Source(key, *split_key(lies), size) for key, lies, size, _ in self.since(-1) if lies < bound]


@dataclass(slots=True)
class MovedUser:
    """A user who was at home here, and is at home elsewhere by `record` (ADR 21). `devices`: whose notices are sent on.

    `confirmed`: the new home has said that it has the record, and what waited here at the time. `items` and `bytes` of
    what waits in outboxes for the user. `last`: the last block in which an envelope for the user may lie."""

    record: HomeRecord
    chain: list[bytes]
    devices: tuple[bytes, ...]
    last: int
    confirmed: bool = False
    items: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Interval:
    """One stay in a roster: in version `since` up to (not in) `until`; 0 while it lasts. Positions alike."""

    since: int
    since_position: int
    until: int = 0
    until_position: int = 0


@dataclass(slots=True)
class Waiting:
    """A roster envelope from a `device` of this cell whose roster version has not arrived."""

    source: int  # its key
    size: int
    id: bytes
    device: bytes
    version: int
    expires: int
    position: int


@dataclass(slots=True)
class RosterState:
    """A group, as far as this cell knows it. `head` is the newest; None while only waiting envelopes know of it.
    `resident`: that version lists somebody who is at home here. Not compared, as it follows from the rest or is a hint:
    `left`, some stay has ended, and `lagging`, members who lacked the oldest entry when they were looked at."""

    head: VerifiedHead | None = None
    resident: bool = False
    members: dict[bytes, list[Interval]] = field(default_factory=dict)
    box: Box = field(default_factory=Box)
    waiting: list[Waiting] = field(default_factory=list)
    dirty: bool = False
    left: bool = field(default=False, compare=False)
    lagging: list[bytes] = field(default_factory=list, compare=False)

    @property
    def version(self) -> int:
        return self.head.head.version if self.head else 0

    @property
    def cells(self) -> tuple[str, ...]:
        return self.head.cell_names if self.head else ()


@dataclass(slots=True)
class OutItem:
    """A number of an outbox. `what` as in records.HandIn; a void one has no source. `group` of a roster envelope.
    `waits`: it is parked, or was before: it counts in State.waiting_bytes. `user`, who moved, and `beside`, what
    goes out instead of a record. `told`: its outcome (code, newest, cell), which came before the answer that it was
    taken over."""

    what: int
    source: int | None  # its key
    size: int
    id: bytes
    expires: int
    group: bytes = b""
    waits: bool = False
    user: bytes = b""
    beside: bytes = b""
    told: Outcome | None = None


@dataclass(slots=True)
class Parked:
    """Envelopes of one group that the other cell may not write yet: it does not have the roster version. By source key,
    the order in which they were sent. The oldest is handed over again at `due`."""

    due: int
    tries: int = 0
    items: dict[int, OutItem] = field(default_factory=dict)


@dataclass(slots=True)
class Outbox:
    """What is bound for one other cell, densely numbered from 1. Everything up to `done` is answered. `logs`: under
    which log ids that cell answered, the newest last. `bytes` counts `items` and `parked` (by group). `taken_over`:
    what that cell sends on to whoever has moved, by our log id and number: key of the pending outcome, and when to give
    up."""

    done: int = 0
    last: int = 0
    logs: tuple[LogId, ...] = ()
    bytes: int = 0
    items: dict[int, OutItem] = field(default_factory=dict)
    parked: dict[GroupId, Parked] = field(default_factory=dict)
    taken_over: dict[tuple[LogId, int], tuple[PendingKey, int]] = field(default_factory=dict)

    @property
    def log(self) -> LogId:
        """The newest log id of that cell; empty before it answered."""
        return self.logs[-1] if self.logs else b""


@dataclass(slots=True)
class Origin:
    """What another cell's outbox (under one log id) has brought here: exactly its numbers up to `vector`."""

    vector: int = 0
    confirmed: int = 0
    outcomes: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Pending:
    """An envelope that other cells have not all answered for yet: of a `device` of ours, or, where that is empty, one
    that was taken over: number `origin` of another cell's outbox, which is told one outcome for all, `refused` or
    not."""

    device: bytes
    remaining: int
    newest: int = 0
    refused: int = 0  # the first refusal's code
    origin: tuple[str, LogId, int] | None = None


Expiry = tuple[int, int, bytes, int]  # (when, kind, address, position or number): relay.core.mailroom.expiry


@dataclass(slots=True)
class State:
    """Everything. `index` and `time` are those of the last applied block."""

    cell: str
    log_id: bytes
    index: int = 0
    time: int = 0
    fold_version: int = FOLD_VERSION
    users: Resting[UserState] = field(default_factory=no_users)
    devices: Resting[DeviceState] = field(default_factory=no_devices)
    moved: dict[bytes, MovedUser] = field(default_factory=dict)
    moved_devices: dict[bytes, bytes] = field(default_factory=dict)  # device → user
    former: dict[bytes, bytes] = field(default_factory=dict)  # id that was revoked or rotated → user, of both kinds
    rosters: dict[bytes, RosterState] = field(default_factory=dict)
    memberships: dict[bytes, set[bytes]] = field(default_factory=dict)
    channels: dict[bytes, ChannelState] = field(default_factory=dict)
    outboxes: dict[str, Outbox] = field(default_factory=dict)
    origins: dict[tuple[str, bytes], Origin] = field(default_factory=dict)
    pending: dict[bytes, Pending] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=Outcomes)
    waiting_bytes: dict[bytes, int] = field(default_factory=dict)  # by sending device: waiting here, or parked
    sources: Sources = field(default_factory=Sources)
    blocks: Blocks = field(default_factory=Blocks)
    expiries: list[Expiry] = field(default_factory=list)  # a heap; what it names may be settled already
    expiries_live: int = 0  # how many of them named something when the heap was last made anew
    log_bytes: int = 0  # of records, in all blocks so far
    checkpoint_due: int = CHECKPOINT_BYTES  # so many of them, at which the next checkpoint is taken

    def user_of(self, device: bytes) -> bytes | None:
        """Whose a device is, or was, also of one who has moved away."""
        known = self.devices.get(device)
        return known.user if known else self.moved_devices.get(device, self.former.get(device))

    def heir(self, device: bytes) -> DeviceState | None:
        """The device at home here that has this id, or had it before its keys were rotated (ADR 24)."""
        if (user := self.users.get(self.former.get(device, b""))) is not None:
            listed = {one.stem: one.id for one in user.record.devices}
            device = listed.get(user.record.stem(device) or b"", device)
        return self.devices.get(device)

    def learn_former(self, record: HomeRecord) -> None:
        """Ids that a user's newest record lists no more."""
        self.former.update((gone.id, record.user) for gone in record.former)

    # --- sources -----------------------------------------------------------------------------------
    def hold(self, source: Source) -> int:
        """One more entry needs this source's record. Its key."""
        if self.sources.hold(source):
            self.blocks.lies(source.index, 1, source.size)
        return source.key

    def drop(self, key: int | None) -> int:
        """One entry less needs it. The bytes of its record; 0 for None."""
        if key is None:
            return 0
        source, gone = self.sources.drop(key)
        if gone:
            self.blocks.lies(source.index, -1, source.size)
        return source.size

    def relocate(self, key: int, index: int, ordinal: int) -> None:
        """A carry wrote the record of source `key` again, at (index, ordinal)."""
        before = self.sources.move(key, index, ordinal)
        if before is not None:
            self.blocks.lies(before.index, -1, before.size)
            self.blocks.lies(index, 1, before.size)

    # --- boxes -------------------------------------------------------------------------------------
    def file(self, box: Box, entry: Entry, size: int) -> None:
        """An entry, whose source is held, waits in a box from now on."""
        box.add(*entry)
        box.bytes += size

    def settle(self, box: Box, pos: int) -> bool:
        """Nobody waits for the entry at `pos` any more. False where there is none."""
        row = box.pop(pos)
        if row is None:
            return False
        box.bytes -= self.drop(row[1])
        return True

    # --- waiting for a roster version --------------------------------------------------------------
    def waits(self, size: int, device: bytes, sign: int) -> None:
        """A roster envelope of `device` begins (+1) or ends (-1) to wait for its version."""
        left = self.waiting_bytes.get(device, 0) + sign * (size + WAITING_OVERHEAD)
        if left:
            self.waiting_bytes[device] = left
        else:
            del self.waiting_bytes[device]

    def may_wait(self, size: int, device: bytes) -> bool:
        """Is there room for one more that waits for its version?"""
        size, waiting = size + WAITING_OVERHEAD, self.waiting_bytes
        return waiting.get(device, 0) + size <= MAX_WAITING_EACH and sum(waiting.values()) + size <= MAX_WAITING

    def floor(self) -> int:
        """The lowest block index that somebody still needs; index + 1 when nobody does."""
        for index, use in self.blocks:
            if use.live:
                return index
        return self.index + 1


def source_key(index: int, ordinal: int) -> int:
    """(index, ordinal) of a record as one integer."""
    return position(index, ordinal)


def split_key(key: int) -> tuple[int, int]:
    """(index, ordinal) of a source key."""
    return key >> SLOT_BITS, key & (1 << SLOT_BITS) - 1
