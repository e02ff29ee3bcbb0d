"""Rosters, first form: versions, members of this cell, group envelopes and those that wait for a version (rule 17)."""

from __future__ import annotations

from relay.core import records
from relay.core.codec import digest
from relay.core.envelope import Header
from relay.core.mailroom import outboxes
from relay.core.mailroom.effects import Filed, MembershipChanged
from relay.core.mailroom.state import (
    WAITING_OVERHEAD, Entry, Interval, RosterState, Source, State, Waiting,
)
from relay.core.mailroom.turn import EXPIRE_ROSTER, EXPIRE_WAITING, Turn
from relay.core.trust import Member, RosterPart, VerifiedHead, verify_part, verify_roster
from relay.core.wire import Code, ReceiptItem
from relay.errors import ProtocolError, TrustError
from relay.limits import MAX_STAYS, MAX_WAITING, MAX_WAITING_EACH


def publish(turn: Turn, record: records.Roster, size: int) -> None:
    """Apply a roster version from a device of this cell, and send every other cell its part."""
    pos = turn.next_position()
    own = digest(record.head)
    known = turn.state.outcomes.get(own)
    if known is not None:
        turn.answer(record.device, known, None)
        return
    parts = dict(record.parts)
    try:
        head, before = _verify(turn.state, record.head)
        if before is not None and before.signed == head.signed:
            turn.answer(record.device, turn.receipt(own, Code.STORED, head.head.version, pos), None)
            return
        part = _own_part(turn.state, head, parts.get(turn.state.cell, b""))
        for named in head.head.cells:
            verify_part(parts.get(named.cell, b""), head, named.cell)
    except (TrustError, ProtocolError):
        turn.answer(record.device, turn.receipt(own, Code.BAD_RECORD), None)
        return
    elsewhere = [cell for cell in _union(head, before) if cell != turn.state.cell]
    if outboxes.is_full(turn.state, elsewhere, size, record.device):
        turn.answer(record.device, turn.receipt(own, Code.OUTBOX_FULL), None)
        return
    if not _install(turn, head, part):
        turn.answer(record.device, turn.receipt(own, Code.BAD_RECORD), None)
        return
    for cell in elsewhere:
        outboxes.put(turn, cell, records.HANDIN_ROSTER, turn.source(size), own, 0)
    turn.answer(record.device, turn.receipt(own, Code.STORED, head.head.version, pos), turn.time)


def hand_in(turn: Turn, record: records.HandIn) -> tuple[int, int]:
    """Apply a roster version that another cell handed over: (code, newest version)."""
    try:
        head, before = _verify(turn.state, record.item)
        if before is not None and before.signed == head.signed:
            return Code.STORED, head.head.version
        part = _own_part(turn.state, head, record.part)
    except (TrustError, ProtocolError):
        return Code.BAD_RECORD, 0
    return (Code.STORED, head.head.version) if _install(turn, head, part) else (Code.BAD_RECORD, 0)


def _verify(state: State, signed: bytes) -> tuple[VerifiedHead, VerifiedHead | None]:
    head = verify_roster(signed)
    roster = state.rosters.get(head.group)
    before = roster.head if roster else None
    if before is None or before.signed == signed:
        return head, before
    return verify_roster(signed, before), before


def _own_part(state: State, head: VerifiedHead, part: bytes) -> RosterPart:
    if state.cell not in {cell.cell for cell in head.head.cells}:
        return RosterPart(head.head.version, ())
    return verify_part(part, head, state.cell)


def _union(head: VerifiedHead, before: VerifiedHead | None) -> list[str]:
    """Cells of this version, and those of the last one, which must learn that they have no members any more."""
    cells = [cell.cell for cell in head.head.cells]
    return cells + [cell.cell for cell in (before.head.cells if before else ()) if cell.cell not in cells]


def _install(turn: Turn, head: VerifiedHead, part: RosterPart) -> bool:
    """Take the version over. False, and nothing changed, where more stays than MAX_STAYS would have to be kept."""
    roster = turn.state.rosters.get(head.group, RosterState())
    if sum(map(len, roster.members.values())) + len(part.members) > MAX_STAYS:
        return False
    turn.state.rosters[head.group] = roster
    roster.head = head
    pos = turn.next_position()
    now: dict[bytes, Member] = {member.user: member for member in part.members}
    for user, stays in sorted(roster.members.items()):
        if stays[-1].until == 0 and user not in now:
            stays[-1].until, stays[-1].until_position = head.head.version, pos
            turn.effects.append(MembershipChanged(user))
    for user in now:
        stays = roster.members.setdefault(user, [])
        if not stays or stays[-1].until:
            stays.append(Interval(now[user].since, pos))
            turn.state.memberships.setdefault(user, set()).add(head.group)
            turn.effects.append(MembershipChanged(user))
    roster.dirty = True
    due = [entry for entry in roster.waiting if entry.version <= roster.version]
    roster.waiting = [entry for entry in roster.waiting if entry.version > roster.version]
    for entry in due:
        _place_waiting(turn, head.group, roster, entry)
    return True


def _place_waiting(turn: Turn, group: bytes, roster: RosterState, entry: Waiting) -> None:
    turn.state.waits(entry.source, entry.device or entry.origin, -1)
    code = _may_send(turn.state, roster, entry.device, entry.origin, entry.version)
    if code is None:
        pos, ours = turn.next_position(), bool(entry.device)
        cells = _file(turn, group, roster, entry.source, entry.id, entry.version, entry.expires, pos, forward=ours)
        if entry.device and cells:
            outboxes.await_answers(turn, entry.id, entry.device, cells)
        else:
            turn.notice(entry.device, entry.id, Code.STORED, roster.version, turn.state.cell)
    else:
        turn.notice(entry.device, entry.id, code, roster.version, turn.state.cell)
    turn.state.drop(entry.source)


def admit(
    turn: Turn, header: Header, own: bytes, source: Source, device: bytes, pos: int, origin: str = ""
) -> ReceiptItem:
    """Admit a group envelope: from a `device` of this cell (which also sends it to the other cells with members), or
    handed over by `origin` (which has done that)."""
    group, version = header.to, header.to_version
    roster = turn.state.rosters.get(group)
    if roster is None or version > roster.version:
        return _wait(turn, header, own, source, device, pos, origin)
    code = _may_send(turn.state, roster, device, origin, version)
    elsewhere = [cell for cell in roster.cells if cell != turn.state.cell] if device else []
    if code is None and outboxes.is_full(turn.state, elsewhere, source.size, device):
        code = Code.OUTBOX_FULL
    if code is not None:
        return turn.receipt(own, code, roster.version)
    cells = _file(turn, group, roster, source, own, version, header.expires, pos, forward=bool(device))
    if cells:
        outboxes.await_answers(turn, own, device, cells)
    return turn.receipt(own, Code.ACCEPTED if cells else Code.STORED, roster.version, pos)


def _wait(
    turn: Turn, header: Header, own: bytes, source: Source, device: bytes, pos: int, origin: str
) -> ReceiptItem:
    who, size = device or origin, source.size + WAITING_OVERHEAD
    waiting = turn.state.waiting_bytes
    if waiting.get(who, 0) + size > MAX_WAITING_EACH or sum(waiting.values()) + size > MAX_WAITING:
        return turn.receipt(own, Code.UNKNOWN_ROSTER)
    roster = turn.state.rosters.setdefault(header.to, RosterState())
    turn.state.waits(source, who, 1)
    held = turn.state.hold(source)
    roster.waiting.append(Waiting(held, own, device, origin, header.to_version, header.expires, pos))
    turn.expire_later(header.expires, EXPIRE_WAITING, header.to, pos)
    # Durable here. For a sender of this cell it is not *stored* before the members' cells have it.
    return turn.receipt(own, Code.ACCEPTED if device else Code.STORED, roster.version, pos)


def _may_send(state: State, roster: RosterState, device: bytes, origin: str, version: int) -> Code | None:
    """A device of this cell has to be a member's; another cell has to have members, and has checked its device."""
    if not device:
        return None if origin in roster.cells else Code.NOT_MEMBER
    owner = state.devices.get(device)
    stays = roster.members.get(owner.user, []) if owner else []
    if stays and stays[-1].until == 0 and any(_in(stay, version) for stay in stays):
        return None
    return Code.NOT_MEMBER


def _in(stay: Interval, version: int) -> bool:
    return stay.since <= version and (stay.until == 0 or version < stay.until)


def _file(
    turn: Turn, group: bytes, roster: RosterState, source: Source, own: bytes, version: int, expires: int, pos: int,
    forward: bool,
) -> int:
    """File for the members of this cell; with `forward` also for the other cells. Returns how many those are."""
    if turn.state.cell in roster.cells or roster.members:
        entry = Entry(pos, turn.state.hold(source), own, version, expires)
        roster.box.add(entry)
        roster.dirty = True
        turn.expire_later(expires, EXPIRE_ROSTER, group, pos)
        turn.effects.append(Filed(True, group, entry))
    elsewhere = [cell for cell in roster.cells if cell != turn.state.cell] if forward else []
    for cell in elsewhere:
        outboxes.put(turn, cell, records.HANDIN_ENVELOPE, source, own, expires)
    return len(elsewhere)


def expire_waiting(turn: Turn, group: bytes, pos: int) -> bool:
    """A waiting envelope ran out: its version never came. False where it did."""
    roster = turn.state.rosters.get(group)
    place = next((n for n, one in enumerate(roster.waiting) if one.position == pos), None) if roster else None
    if roster is None or place is None:
        return False
    entry = roster.waiting.pop(place)
    turn.state.waits(entry.source, entry.device or entry.origin, -1)
    turn.state.drop(entry.source)
    turn.notice(entry.device, entry.id, Code.EXPIRED, roster.version, turn.state.cell)
    if roster.head is None and not roster.waiting:
        del turn.state.rosters[group]
    return True


def receives(state: State, roster: RosterState, user: bytes, entry: Entry) -> bool:
    """Is `user` a recipient: a member of the version it was sealed for, and not gone when it was admitted?"""
    for stay in roster.members.get(user, ()):
        if _in(stay, entry.version) and (stay.until == 0 or entry.position < stay.until_position):
            return True
    return False
