"""Users who move between cells (ADR 21): who comes, who goes, and what is sent on to those who have gone.

From the record of a move on, everything for the user belongs to the outbox for the new home: what waits, and what comes
later. A forward goes only from a version of the home record to a higher one, so that it cannot go in circles.
"""

from __future__ import annotations

from contextlib import suppress

from relay.core import records
from relay.core.envelope import Header, To, envelope_id, read_header
from relay.core.mailroom import channels, outboxes, residents, rosters
from relay.core.mailroom.effects import Filed, UserMoved
from relay.core.mailroom.people import Entry, UserState
from relay.core.mailroom.settle import devices_of
from relay.core.mailroom.state import MovedUser, Outbox, OutItem, Source, State
from relay.core.mailroom.turn import EXPIRE_MOVED, Turn
from relay.core.trust import HomeRecord, read_chain
from relay.core.wire import Code
from relay.errors import ProtocolError
from relay.limits import DAY, MAX_MAILBOX


# --- coming and going ----------------------------------------------------------------------------
def move(turn: Turn, chain: tuple[bytes, ...], via: str = "") -> tuple[int, int]:
    """Apply the records of a user who moves; `via` is the cell that said so. They were verified before they were
    appended. (code, the version that is known here now)."""
    state = turn.state
    read = read_chain(chain)
    new = read[-1]
    user, moved = state.users.get(new.user), state.moved.get(new.user)
    known = user.record if user else moved.record if moved else None
    if known is not None and (known.version > new.version or read[known.version - 1].digest != known.digest):
        return (Code.STORED, known.version) if known.version > new.version else (Code.BAD_RECORD, known.version)
    if known is None and state.cell not in [record.cell for record in read]:
        return Code.UNKNOWN_USER, 0
    if known is not None and known.version == new.version:
        if moved is not None and via == new.cell:
            moved.confirmed = True
        return Code.STORED, known.version
    if new.cell == state.cell:
        _arrive(turn, read, list(chain), via)
    elif user is not None:
        _leave(turn, user, new, list(chain), via)
    else:
        _move_on(turn, moved, new, list(chain), via)
    return Code.STORED, new.version


def _arrive(turn: Turn, read: list[HomeRecord], chain: list[bytes], via: str) -> None:
    """HOMED: the user is at home here. Every cell where the user was at home is told."""
    state, new, pos = turn.state, read[-1], turn.next_position()
    moved = state.moved.pop(new.user, None)
    for device in moved.devices if moved else ():
        state.moved_devices.pop(device, None)
    user = state.users.get(new.user)
    before, since = user.record if user else new, pos
    if user is None:
        state.users[new.user] = UserState(chain, new)
    else:  # gone and back before this cell heard of it: what waits here for the groups of a member is for all devices
        since = min((device.cursor for device in devices_of(state, user)), default=pos)
        user.follow(chain, new)
    residents.enrol(turn, before, new, since)
    for cell in dict.fromkeys(record.cell for record in read):
        if cell not in (state.cell, via):
            _tell(turn, cell, new.user, chain)


def _leave(turn: Turn, user: UserState, new: HomeRecord, chain: list[bytes], via: str) -> None:
    """MOVED: the record goes to the new home, then what waits for the user, and the record again: the answer to that
    says that all of it is there."""
    state = turn.state
    devices = list(devices_of(state, user))
    del state.users[new.user]
    names = tuple(dict.fromkeys([*(device.id for device in devices), *(device.id for device in new.devices)]))
    moved = state.moved[new.user] = MovedUser(new, chain, names, turn.index)
    state.moved_devices.update(dict.fromkeys(names, new.user))
    state.learn_former(new)
    _count_what_waits(state, moved)
    for device in devices:
        del state.devices[device.id]
    channels.owner_left(turn, new.user)
    _tell(turn, new.cell, new.user, chain)
    for entry in user.box.after(-1):
        source = state.sources.find(entry.source)
        assert source is not None, "an entry holds its source"
        outboxes.number_forward(turn, moved, source, b"", entry.expires)  # it holds the source from now on
    cursor = min((device.cursor for device in devices), default=0)
    for group in sorted(state.memberships.get(new.user, ())):
        roster = state.rosters[group]
        roster.dirty = True
        for entry in list(roster.box.after(cursor)):
            source = state.sources.find(entry.source)
            if source is not None and rosters.receives(state, roster, new.user, entry):
                outboxes.forward(turn, new.user, source, b"", entry.expires)
    for device in devices:
        for notice in device.notices.values():
            turn.notice(device.id, notice.id, notice.code, notice.newest, notice.cell)
    _settle_in(turn, moved, via)
    turn.effects.append(UserMoved(names, tuple(chain)))


def _move_on(turn: Turn, moved: MovedUser | None, new: HomeRecord, chain: list[bytes], via: str) -> None:
    """Somebody who is not at home here is at home elsewhere now."""
    if moved is None:
        moved = turn.state.moved[new.user] = MovedUser(new, chain, (), turn.index)
        _count_what_waits(turn.state, moved)
    moved.record, moved.chain, moved.confirmed = new, chain, False
    moved.devices = tuple(dict.fromkeys((*moved.devices, *(device.id for device in new.devices))))
    turn.state.moved_devices.update(
        {device: new.user for device in moved.devices if device not in turn.state.devices}
    )
    turn.state.learn_former(new)
    _settle_in(turn, moved, via)


def _settle_in(turn: Turn, moved: MovedUser, via: str) -> None:
    if via == moved.record.cell and moved.items <= 1:  # what tells it of the move, and nothing behind that
        moved.confirmed = True
    else:
        _tell(turn, moved.record.cell, moved.record.user, moved.chain)
    turn.expire_later(moved.record.payload.expires, EXPIRE_MOVED, moved.record.user, 0)


def _tell(turn: Turn, cell: str, user: bytes, chain: list[bytes]) -> None:
    turn.number(cell, OutItem(records.HANDIN_MOVE, None, sum(map(len, chain)), b"", 0, user=user))


def _count_what_waits(state: State, moved: MovedUser) -> None:
    """What an earlier stay has left in outboxes."""
    for outbox in state.outboxes.values():
        for item in outbox.items.values():
            if item.user == moved.record.user:
                moved.items, moved.bytes = moved.items + 1, moved.bytes + item.size


def confirmed(turn: Turn, cell: str, item: OutItem, code: int, version: int) -> None:
    """`cell` has answered what it was told of a user who moved."""
    moved, items = turn.state.moved.get(item.user), turn.state.outboxes[cell].items.values()
    reached = code == Code.STORED and moved is not None and version >= moved.record.version
    again = any(one.what == records.HANDIN_MOVE and one.user == item.user for one in items)
    if moved is not None and reached and moved.record.cell == cell and not again:
        moved.confirmed = True


def forget(turn: Turn, address: bytes) -> bool:
    """The record of somebody who moved away has run out. False where the user has come back, or has a newer one."""
    state = turn.state
    moved = state.moved.get(address)
    if moved is None or moved.record.payload.expires > turn.time:
        return False
    if moved.items:
        turn.expire_later(turn.time + DAY, EXPIRE_MOVED, address, 0)
        return False
    del state.moved[address]
    for device in moved.devices:
        state.moved_devices.pop(device, None)
    for gone in moved.record.former:
        state.former.pop(gone.id, None)
    return True


def came(turn: Turn, record: records.Record) -> None:
    """The bytes of an envelope for somebody who has left lie in this block, whatever comes of it: also of one that is
    refused or known. (What people here write to the new home is not what was left behind: it waits as all mail abroad.)
    """
    user = b""
    with suppress(ProtocolError):
        match record:
            case records.HandIn(what=records.HANDIN_FORWARD, part=part):
                user = records.read_forward(part).user
            case records.HandIn(what=records.HANDIN_ENVELOPE, item=sealed) | records.Passed(envelope=sealed):
                user = read_header(sealed).to
            case records.Submit(dest=dest, envelope=sealed) if dest == turn.state.cell:
                user = read_header(sealed).to
    moved = turn.state.moved.get(user)
    if moved is not None:
        moved.last = max(moved.last, turn.index)


# --- sending on ----------------------------------------------------------------------------------
def take_over(turn: Turn, user: bytes, source: Source, key: bytes, expires: int) -> tuple[Code, int]:
    """An envelope came for somebody who has moved: (ACCEPTED or MAILBOX_FULL, the version known here)."""
    moved = turn.state.moved[user]
    if moved.bytes + source.size > MAX_MAILBOX:
        return Code.MAILBOX_FULL, moved.record.version
    outboxes.forward(turn, user, source, key, expires)
    return Code.ACCEPTED, moved.record.version


def go_round(turn: Turn, outbox: Outbox, dest: str, item: OutItem) -> bool:
    """Mail may not go from here to `dest`, though the user came there: from home to home, over borders that were open.
    What is sent on goes the same way then. False where there was no home between."""
    state = turn.state
    known = state.users.peek(item.user) or state.moved.get(item.user)
    source = state.sources.find(item.source) if item.source is not None else None
    if item.what != records.HANDIN_FORWARD or known is None or source is None:
        return False
    via = home_before(dest, [record.cell for record in read_chain(known.chain)])
    if via in ("", state.cell):
        return False
    state.hold(source)
    outboxes.let_go(state, outbox, item)
    state.outboxes.setdefault(via, Outbox()).bytes += item.size
    turn.number(via, OutItem(item.what, item.source, item.size, item.id, item.expires, user=item.user))
    return True


def home_before(dest: str, homes: list[str]) -> str:
    """Of all homes, each where it comes last, the one before `dest`: so nothing goes round twice. Empty: none."""
    order = list(dict.fromkeys(reversed(homes)))
    place = order.index(dest) + 1 if dest in order else len(order)
    return order[place] if place < len(order) else ""


def take_handed_over(turn: Turn, record: records.HandIn, header: Header, source: Source) -> tuple[int, int]:
    """The same from another cell, which is told later what became of it."""
    key = outboxes.await_for(turn, record, 1)
    code, newest = take_over(turn, header.to, source, key, header.expires)
    if code != Code.ACCEPTED:
        del turn.state.pending[key]
    return code, newest


def hand_in(turn: Turn, record: records.HandIn, size: int, pos: int) -> tuple[int, int]:
    """An envelope that another cell sent on to the home of a user who moved. It was admitted once: neither its age nor
    a full mailbox counts, and its id may be known from an earlier stay."""
    forwarded = records.read_forward(record.part)
    user, moved = turn.state.users.get(forwarded.user), turn.state.moved.get(forwarded.user)
    known = user.record.version if user else moved.record.version if moved else 0
    if known < forwarded.version:
        return Code.UNKNOWN_USER, 0
    try:
        header = read_header(record.item)
    except ProtocolError:
        return Code.BAD_ENVELOPE, 0
    if header.expires <= turn.time:
        return Code.EXPIRED, 0
    mailbox = header.kind is To.MAILBOX
    version, newest = (header.to_version, known) if mailbox else (known, 0)  # a group's is for all devices of a member
    if (mailbox and header.to != forwarded.user) or not 1 <= version <= known:
        return Code.BAD_ENVELOPE, newest
    source = turn.source(size)
    if user is None:
        outboxes.forward(turn, forwarded.user, source, outboxes.await_for(turn, record, 1), header.expires)
        return Code.ACCEPTED, newest
    if any(device.since <= version for device in devices_of(turn.state, user)):
        entry = Entry(pos, turn.state.hold(source), version, header.expires)
        turn.state.file(user.box, entry, source.size)
        turn.expire_in_box(user.box, False, forwarded.user, entry)
        turn.effects.append(Filed(False, forwarded.user, entry))
    turn.take(envelope_id(record.item), Code.STORED, newest, pos, header.to_version, header.expires)
    return Code.STORED, newest


def notice(turn: Turn, record: records.HandIn) -> tuple[int, int]:
    """A notice for a device that came here."""
    told = records.read_for_device(record.item)
    turn.notice(told.device, told.id, told.code, told.newest, told.cell)
    return Code.STORED, 0
