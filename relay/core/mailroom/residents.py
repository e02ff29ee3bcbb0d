"""Home records, sessions and acknowledgements: what devices of this cell do (rules 17, 18)."""

from __future__ import annotations

from itertools import takewhile

from msgspec import structs

from relay.core import records
from relay.core.block import position
from relay.core.mailroom import channels
from relay.core.mailroom.effects import DeviceGone, SessionStarted
from relay.core.mailroom.people import DeviceState, UserState
from relay.core.mailroom.settle import settle_mailbox
from relay.core.mailroom.state import State
from relay.core.mailroom.turn import EXPIRE_NOTICE, Turn
from relay.core.trust import HomeRecord, read_home


def home(turn: Turn, record: records.Home) -> None:
    """Apply the next version of a user's home record. It was verified before it was appended; anything but the next
    version is a repeat and ignored, but that the newest one may come again with another staple, which is kept."""
    pos = turn.next_position()
    new = read_home(record.signed)
    user = turn.state.users.get(new.user)
    if user is not None and user.record.digest == new.digest:
        user.follow([*user.chain[:-1], record.signed], structs.replace(user.record, signed=record.signed))
        return
    follows = new.version == user.record.version + 1 if user else new.version == 1
    if not follows or new.cell != turn.state.cell or new.user in turn.state.moved:
        return
    before = user.record if user else None
    new = read_home(record.signed, before)
    if user is None:
        user = turn.state.users[new.user] = UserState([record.signed], new)
    else:
        user.follow([*user.chain, record.signed], new)
    enrol(turn, before or new, new, pos)
    settle_mailbox(turn.state, user)


def enrol(turn: Turn, before: HomeRecord, new: HomeRecord, pos: int) -> None:
    """The devices of a user of this cell are those of `new` from here on; what comes for a new one begins here."""
    turn.state.learn_former(new)
    named = {device.id for device in new.devices}
    left = [device for device in before.devices if device.id not in named]
    gone = {device.stem: device.id for device in left if _is_of(turn.state, device.id, new.user)}
    for device in new.devices:
        if device.id in turn.state.devices:  # another user's stays with that user
            continue
        if device.first in gone:
            _rename(turn, gone[device.first], device.id)
        else:
            turn.state.devices[device.id] = DeviceState(device.id, new.user, device.since, pos)
    for device_id in gone.values():
        was = turn.state.devices.pop(device_id) if device_id in turn.state.devices else None
        box = turn.state.users[new.user].box
        waited = sum(was.since <= entry.version for entry in box.after(was.cursor)) if was else 0
        turn.effects.append(DeviceGone(device_id, waited, rotated=was is None))
    if gone:
        channels.device_left(turn, new.user)
        for group in turn.state.memberships.get(new.user, ()):
            turn.state.rosters[group].dirty = True


def _rename(turn: Turn, old: bytes, new: bytes) -> None:
    """A device's keys were rotated (ADR 24): what waits for it, and what it waits for, is the new id's."""
    state = turn.state
    was = state.devices.pop(old)
    state.devices[new] = DeviceState(new, was.user, was.since, was.cursor, b"", was.notices)
    for notice in was.notices.values():
        turn.expire_later(notice.expires, EXPIRE_NOTICE, new, notice.position)
    for pending in state.pending.values():
        if pending.device == old:
            pending.device = new
    for waiting in (entry for roster in state.rosters.values() for entry in roster.waiting):
        if waiting.device == old:
            waiting.device = new
    if old in state.waiting_bytes:
        state.waiting_bytes[new] = state.waiting_bytes.pop(old)


def _is_of(state: State, device_id: bytes, user: bytes) -> bool:
    device = state.devices.get(device_id)
    return device is not None and device.user == user


def session(turn: Turn, record: records.Session) -> None:
    """A device's session starts: the older one is fenced. What the client already has counts as acknowledged."""
    pos = turn.next_position()
    device = turn.state.devices.get(record.device)
    if device is None:
        return
    device.session = record.nonce
    if record.cursor < pos:
        _advance(turn.state, device, record.cursor)
    turn.effects.append(SessionStarted(device.id, record.nonce, pos, device.cursor))


def ack(turn: Turn, record: records.Ack) -> None:
    """Everything up to the position is safe with the device."""
    device = turn.state.devices.get(record.device)
    if device is not None and record.position < position(turn.index, 0):
        _advance(turn.state, device, record.position)


def _advance(state: State, device: DeviceState, cursor: int) -> None:
    if cursor <= device.cursor:
        return
    device.cursor = cursor
    for pos in list(takewhile(lambda pos: pos <= cursor, device.notices)):  # they stand in rising order
        del device.notices[pos]
    settle_mailbox(state, state.users[device.user])
    for group in state.memberships.get(device.user, ()):
        state.rosters[group].dirty = True
