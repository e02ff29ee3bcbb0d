"""What a device still has to get, and where the bytes of it lie. Reads the state, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice
from typing import Final

from relay.core import records
from relay.core.block import Block
from relay.core.mailroom import rosters
from relay.core.mailroom.people import Entry, Notice
from relay.core.mailroom.state import Outbox, OutItem, Source, State, source_key
from relay.errors import StoreDamaged

_NEVER: Final = 1 << 63  # above every version


def _position(item: Entry | Notice) -> int:
    return item.position


def pending(state: State, device_id: bytes, after: int, limit: int) -> list[Entry | Notice]:
    """The next `limit` things for a device past position `after`, in order: its mailbox, its rosters, its notices."""
    device = state.devices.get(device_id)
    if device is None:
        return []
    user = state.users[device.user]
    mail = (entry for entry in user.box.after(after) if device.since <= entry.version)
    notices = (notice for pos, notice in device.notices.items() if pos > after)
    streams: list[Iterator[Entry | Notice]] = [mail, notices]
    streams += [_group_mail(state, group, device.user, after) for group in state.memberships.get(device.user, ())]
    return list(islice(merge(*streams, key=_position), limit))


def _group_mail(state: State, group: bytes, user: bytes, after: int) -> Iterator[Entry]:
    roster = state.rosters[group]
    return (entry for entry in roster.box.after(after) if rosters.receives(state, roster, user, entry))


def receives(state: State, device_id: bytes, address: bytes, roster: bool, entry: Entry) -> bool:
    """Is the device a recipient of an entry that was filed at `address`?"""
    device = state.devices.get(device_id)
    if device is None:
        return False
    if not roster:
        return device.user == address and device.since <= entry.version
    group = state.rosters.get(address)
    return group is not None and rosters.receives(state, group, device.user, entry)


def listens(state: State, device_id: bytes) -> Iterator[tuple[tuple[bool, bytes], int]]:
    """Where a device is delivered to: each address, as (is it a roster, user id or group id), with the version from
    which on all that is sealed is for the device. What is sealed for an older one may be as well."""
    device = state.devices.get(device_id)
    if device is None:
        return
    yield (False, device.user), device.since
    for group in sorted(state.memberships.get(device.user, ())):
        stays = state.rosters[group].members.get(device.user)
        yield (True, group), stays[-1].since if stays and not stays[-1].until else _NEVER


def outbox_batch(outbox: Outbox, after: int, count: int, size: int) -> list[tuple[int, OutItem]]:
    """Numbers past `after`, at most `count` and about `size` bytes, densely from after + 1."""
    batch: list[tuple[int, OutItem]] = []
    for number in range(after + 1, outbox.last + 1):
        item = outbox.items[number]
        size -= item.size
        if len(batch) == count or (batch and size < 0):
            break
        batch.append((number, item))
    return batch


def record_of(block: Block, source: Source) -> records.Record:
    """The record behind an entry, from the block in which it lies now: as written first, or inside a carry."""
    record = records.decode_record(block.records[source.ordinal])
    if not isinstance(record, records.Carry):
        return record
    for item in record.items:
        if source_key(item.index, item.ordinal) == source.key:
            return records.decode_record(item.record)
    raise StoreDamaged(f"block {block.index}: the carry does not hold the record it was made for")


def envelope_of(record: records.Record) -> bytes:
    """The envelope bytes of a record that carries one."""
    if isinstance(record, (records.Submit, records.Passed)):
        return record.envelope
    if isinstance(record, records.HandIn) and record.what in (records.HANDIN_ENVELOPE, records.HANDIN_FORWARD):
        return record.item
    raise StoreDamaged("an entry points to a record that carries no envelope")


def to_carry(state: State, below: int) -> list[Source]:
    """The live sources that lie below block index `below`, oldest first."""
    return state.sources.below(below)


def left_below(state: State) -> int:
    """Below this block index lie envelopes for users who have left, of whom nothing waits any more; 0 for none."""
    return max((moved.last + 1 for moved in state.moved.values() if moved.confirmed and not moved.items), default=0)
