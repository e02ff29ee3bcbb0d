"""The state that the fold computes: who waits for what. One Mailroom owns it; only applying a block changes it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from relay.core.block import position
from relay.core.trust import HomeRecord, VerifiedHead
from relay.core.wire import ReceiptItem
from relay.limits import MAX_WAITING, MAX_WAITING_EACH

FOLD_VERSION = 1
GroupId = bytes
WAITING_OVERHEAD = 512  # bytes counted for what the state keeps of a waiting envelope beside its record


@dataclass(slots=True)
class Source:
    """Where the record behind some entries lies now. `key` is (index, ordinal) where it was first written, packed."""

    key: int
    index: int
    ordinal: int
    size: int
    refs: int = 0


@dataclass(slots=True)
class Entry:
    """An envelope at an address. `version` is the home or roster version that it was sealed for."""

    position: int
    source: Source
    id: bytes
    version: int
    expires: int


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
class Box:
    """What waits at one address, by rising position."""

    entries: dict[int, Entry] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    bytes: int = 0

    def add(self, entry: Entry) -> None:
        self.entries[entry.position] = entry
        self.order.append(entry.position)
        self.bytes += entry.source.size

    def remove(self, pos: int) -> Entry | None:
        entry = self.entries.pop(pos, None)
        if entry is not None:
            self.bytes -= entry.source.size
            if len(self.order) > 2 * len(self.entries) + 16:
                self.order = list(self.entries)
        return entry

    def after(self, pos: int) -> Iterator[Entry]:
        """Entries past `pos`, in order. The box must not change while the iterator is used."""
        for place in range(bisect_right(self.order, pos), len(self.order)):
            entry = self.entries.get(self.order[place])
            if entry is not None:
                yield entry


@dataclass(slots=True)
class DeviceState:
    """An enrolled device. `cursor`: everything up to it is acknowledged. `session`: nonce of the session that holds."""

    id: bytes
    user: bytes
    since: int
    cursor: int
    session: bytes = b""
    notices: dict[int, Notice] = field(default_factory=dict)


@dataclass(slots=True)
class UserState:
    """A user at home here."""

    record: HomeRecord
    chain: list[bytes]
    box: Box = field(default_factory=Box)


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

    source: Source
    id: bytes
    device: bytes
    version: int
    expires: int
    position: int


@dataclass(slots=True)
class RosterState:
    """A group, as far as this cell knows it. `head` is the newest; None while only waiting envelopes know of it.
    `resident`: that version lists somebody who is at home here."""

    head: VerifiedHead | None = None
    resident: bool = False
    members: dict[bytes, list[Interval]] = field(default_factory=dict)
    box: Box = field(default_factory=Box)
    waiting: list[Waiting] = field(default_factory=list)
    dirty: bool = False

    @property
    def version(self) -> int:
        return self.head.head.version if self.head else 0

    @property
    def cells(self) -> tuple[str, ...]:
        return self.head.cell_names if self.head else ()


@dataclass(slots=True)
class OutItem:
    """A number of an outbox. `what` as in records.HandIn; a void one has no source. `group` of a roster envelope.
    `waits`: it is parked, or was before: it counts in State.waiting_bytes."""

    what: int
    source: Source | None
    id: bytes
    expires: int
    group: bytes = b""
    waits: bool = False

    @property
    def size(self) -> int:
        return self.source.size if self.source else 0


@dataclass(slots=True)
class Parked:
    """Envelopes of one group that the other cell may not write yet: it does not have the roster version. By source key,
    the order in which they were sent. The oldest is handed over again at `due`."""

    due: int
    tries: int = 0
    items: dict[int, OutItem] = field(default_factory=dict)


@dataclass(slots=True)
class Outbox:
    """What is bound for one other cell, densely numbered from 1. Everything up to `done` is answered. `bytes` counts
    `items` and `parked` (by group)."""

    done: int = 0
    last: int = 0
    bytes: int = 0
    items: dict[int, OutItem] = field(default_factory=dict)
    parked: dict[GroupId, Parked] = field(default_factory=dict)


@dataclass(slots=True)
class Origin:
    """What another cell's outbox (under one log id) has brought here: exactly its numbers up to `vector`."""

    vector: int = 0
    confirmed: int = 0
    outcomes: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Pending:
    """An envelope of ours that other cells have not all answered for yet."""

    device: bytes
    remaining: int
    newest: int = 0
    refused: bool = False


@dataclass(slots=True)
class BlockUse:
    """A block's bytes of records, and how many live sources still lie in it."""

    size: int
    live: int = 0
    live_bytes: int = 0


Expiry = tuple[int, int, bytes, int]  # (when, kind, address, position or number): relay.core.mailroom.expiry


@dataclass(slots=True)
class State:
    """Everything. `index` and `time` are those of the last applied block."""

    cell: str
    log_id: bytes
    index: int = 0
    time: int = 0
    fold_version: int = FOLD_VERSION
    users: dict[bytes, UserState] = field(default_factory=dict)
    devices: dict[bytes, DeviceState] = field(default_factory=dict)
    rosters: dict[bytes, RosterState] = field(default_factory=dict)
    memberships: dict[bytes, set[bytes]] = field(default_factory=dict)
    outboxes: dict[str, Outbox] = field(default_factory=dict)
    origins: dict[tuple[str, bytes], Origin] = field(default_factory=dict)
    pending: dict[bytes, Pending] = field(default_factory=dict)
    outcomes: dict[bytes, ReceiptItem] = field(default_factory=dict)
    outcome_minutes: dict[int, list[bytes]] = field(default_factory=dict)
    waiting_bytes: dict[bytes, int] = field(default_factory=dict)  # by sending device: waiting here, or parked
    sources: dict[int, Source] = field(default_factory=dict)
    blocks: dict[int, BlockUse] = field(default_factory=dict)
    expiries: list[Expiry] = field(default_factory=list)  # a heap; what it names may be settled already
    expiries_live: int = 0  # how many of them named something when the heap was last made anew

    # --- sources -----------------------------------------------------------------------------------
    def hold(self, source: Source) -> Source:
        """One more entry needs this source's record."""
        if source.refs == 0:
            self.sources[source.key] = source
            use = self.blocks[source.index]
            use.live += 1
            use.live_bytes += source.size
        source.refs += 1
        return source

    def drop(self, source: Source | None) -> None:
        """One entry less needs it."""
        if source is None:
            return
        source.refs -= 1
        if source.refs == 0:
            del self.sources[source.key]
            use = self.blocks[source.index]
            use.live -= 1
            use.live_bytes -= source.size

    def relocate(self, key: int, index: int, ordinal: int) -> None:
        """A carry wrote the record of source `key` again, at (index, ordinal)."""
        source = self.sources.get(key)
        if source is None:
            return
        old, new = self.blocks[source.index], self.blocks[index]
        old.live, old.live_bytes = old.live - 1, old.live_bytes - source.size
        new.live, new.live_bytes = new.live + 1, new.live_bytes + source.size
        source.index, source.ordinal = index, ordinal

    def waits(self, source: Source, device: bytes, sign: int) -> None:
        """A roster envelope of `device` begins (+1) or ends (-1) to wait for its version."""
        left = self.waiting_bytes.get(device, 0) + sign * (source.size + WAITING_OVERHEAD)
        if left:
            self.waiting_bytes[device] = left
        else:
            del self.waiting_bytes[device]

    def may_wait(self, source: Source, device: bytes) -> bool:
        """Is there room for one more that waits for its version?"""
        size, waiting = source.size + WAITING_OVERHEAD, self.waiting_bytes
        return waiting.get(device, 0) + size <= MAX_WAITING_EACH and sum(waiting.values()) + size <= MAX_WAITING

    def floor(self) -> int:
        """The lowest block index that somebody still needs; index + 1 when nobody does."""
        for index, use in self.blocks.items():
            if use.live:
                return index
        return self.index + 1


def source_key(index: int, ordinal: int) -> int:
    """(index, ordinal) of a record as one integer."""
    return position(index, ordinal)
