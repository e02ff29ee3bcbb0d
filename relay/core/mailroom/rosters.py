"""Rosters, first form: versions, members of this cell, group envelopes and those that wait for a version (rule 17)."""

from __future__ import annotations

from relay.core import records
from relay.core.codec import digest
from relay.core.envelope import Header
from relay.core.mailroom import outboxes, parking
from relay.core.mailroom.effects import Filed, MembershipChanged
from relay.core.mailroom.people import Entry
from relay.core.mailroom.state import Interval, RosterState, Source, State, Waiting
from relay.core.mailroom.turn import EXPIRE_WAITING, Turn
from relay.core.trust import Member, RosterPart, VerifiedHead, verify_part, verify_roster
from relay.core.wire import Code, ReceiptItem
from relay.errors import ProtocolError, TrustError
from relay.limits import MAX_STAYS


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
    if elsewhere:
        outboxes.await_answers(turn, own, record.device, len(elsewhere))
    code = Code.ACCEPTED if elsewhere else Code.STORED
    turn.answer(record.device, turn.receipt(own, code, head.head.version, pos), turn.time)


def hand_in(turn: Turn, record: records.HandIn) -> tuple[int, int]:
    """Apply a roster version that another cell handed over: (code, newest version). One that lists nobody who is at
    home here is known from then on, so that what is sent to it can be refused at once."""
    try:
        head, before = _verify(turn.state, record.item)
        if before is None or before.signed != head.signed:
            nobody = record.what == records.HANDIN_NOBODY
            part = RosterPart(head.head.version, ()) if nobody else _own_part(turn.state, head, record.part)
            if not _install(turn, head, part):
                return Code.BAD_RECORD, 0
    except (TrustError, ProtocolError):
        return Code.BAD_RECORD, 0
    roster = turn.state.rosters[head.group]
    listed_in_vain = turn.state.cell in roster.cells and not roster.resident
    return Code.UNKNOWN_USER if listed_in_vain else Code.STORED, head.head.version


def _verify(state: State, signed: bytes) -> tuple[VerifiedHead, VerifiedHead | None]:
    head = verify_roster(signed)
    roster = state.rosters.get(head.group)
    before = roster.head if roster else None
    if before is None or before.signed == signed:
        return head, before
    return verify_roster(signed, before), before


def _own_part(state: State, head: VerifiedHead, part: bytes) -> RosterPart:
    if state.cell not in head.cell_names:
        return RosterPart(head.head.version, ())
    return verify_part(part, head, state.cell)


def _union(head: VerifiedHead, before: VerifiedHead | None) -> list[str]:
    """Cells of this version, and those of the last one, which must learn that they have no members any more."""
    cells = head.cell_names
    return [*cells, *(cell for cell in (before.cell_names if before else ()) if cell not in cells)]


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
            roster.left = True
            turn.effects.append(MembershipChanged(user))
    for user in now:
        stays = roster.members.setdefault(user, [])
        if not stays or stays[-1].until:
            stays.append(Interval(now[user].since, pos))
            turn.state.memberships.setdefault(user, set()).add(head.group)
            turn.effects.append(MembershipChanged(user))
    roster.resident = any(user in turn.state.users or user in turn.state.moved for user in now)
    roster.dirty = True
    due = [entry for entry in roster.waiting if entry.version <= roster.version]
    roster.waiting = [entry for entry in roster.waiting if entry.version > roster.version]
    for entry in due:
        _place_waiting(turn, head.group, roster, entry)
    return True


def _place_waiting(turn: Turn, group: bytes, roster: RosterState, entry: Waiting) -> None:
    turn.state.waits(entry.size, entry.device, -1)
    source = turn.state.sources.find(entry.source)
    assert source is not None, "what waits holds its source"
    if _is_member(turn.state, roster, entry.device, entry.version):
        pos = turn.next_position()
        _file(turn, group, roster, source, entry.version, entry.expires, pos)
        movers = _movers(turn.state, roster, entry.version, pos)
        if not _forward(turn, group, roster, source, entry.id, entry.expires, entry.device, movers):
            turn.take(entry.id, Code.STORED, roster.version, pos, entry.version, entry.expires)
            turn.notice(entry.device, entry.id, Code.STORED, roster.version, turn.state.cell)
    else:
        turn.notice(entry.device, entry.id, Code.NOT_MEMBER, roster.version, turn.state.cell)
    turn.state.drop(entry.source)


def admit(turn: Turn, header: Header, own: bytes, source: Source, device: bytes, pos: int) -> ReceiptItem:
    """Admit a group envelope from a `device` of this cell, and send it to the other cells with members."""
    group, version = header.to, header.to_version
    roster = turn.state.rosters.get(group)
    if roster is None or version > roster.version:
        return _wait(turn, header, own, source, device, pos)
    if not _is_member(turn.state, roster, device, version):
        return turn.receipt(own, Code.NOT_MEMBER, roster.version)
    elsewhere = _elsewhere(turn.state, roster)
    if outboxes.is_full(turn.state, elsewhere, source.size, device) or not parking.has_room(
        turn.state, elsewhere, group, source, device
    ):
        return turn.receipt(own, Code.OUTBOX_FULL, roster.version)
    _file(turn, group, roster, source, version, header.expires, pos)
    movers = _movers(turn.state, roster, version, pos)
    forwarded = _forward(turn, group, roster, source, own, header.expires, device, movers)
    return turn.receipt(own, Code.ACCEPTED if forwarded else Code.STORED, roster.version, pos)


def admit_handed(
    turn: Turn, header: Header, own: bytes, source: Source, record: records.HandIn, pos: int
) -> ReceiptItem:
    """Admit a group envelope that another cell handed over; it has checked the device and serves the other cells."""
    code = refusal(turn.state, header.to, header.to_version)
    if code is not None:
        return turn.receipt(own, code)
    roster = turn.state.rosters[header.to]
    movers = _movers(turn.state, roster, header.to_version, pos)
    if record.origin not in roster.cells and not movers:
        return turn.receipt(own, Code.NOT_MEMBER, roster.version)
    _file(turn, header.to, roster, source, header.to_version, header.expires, pos)
    key = outboxes.await_for(turn, record, len(movers)) if movers else b""
    for user in movers:
        outboxes.forward(turn, user, source, key, header.expires)
    return turn.receipt(own, Code.ACCEPTED if movers else Code.STORED, roster.version, pos)


def refusal(state: State, group: bytes, version: int) -> Code | None:
    """Why an envelope from another cell, for `version` of a group, must not rest here; None if it may: somebody whom
    the group lists is at home here (section 5, rule 3). UNKNOWN_ROSTER: it may come again."""
    roster = state.rosters.get(group)
    if roster is None or version > roster.version:
        return Code.UNKNOWN_ROSTER
    if roster.resident:
        return None
    return Code.UNKNOWN_USER if state.cell in roster.cells else Code.STORED  # all members have left: none misses it


def _wait(turn: Turn, header: Header, own: bytes, source: Source, device: bytes, pos: int) -> ReceiptItem:
    if not turn.state.may_wait(source.size, device):
        return turn.receipt(own, Code.UNKNOWN_ROSTER)
    roster = turn.state.rosters.setdefault(header.to, RosterState())
    turn.state.waits(source.size, device, 1)
    key = turn.state.hold(source)
    roster.waiting.append(Waiting(key, source.size, own, device, header.to_version, header.expires, pos))
    turn.expire_later(header.expires, EXPIRE_WAITING, header.to, pos)
    return turn.receipt(own, Code.ACCEPTED, roster.version, pos)


def _is_member(state: State, roster: RosterState, device: bytes, version: int) -> bool:
    """Only a member's device may send to a group."""
    user = state.user_of(device)
    stays = roster.members.get(user, []) if user else []
    return bool(stays) and stays[-1].until == 0 and any(_in(stay, version) for stay in stays)


def _elsewhere(state: State, roster: RosterState) -> list[str]:
    return [cell for cell in roster.cells if cell != state.cell]


def _in(stay: Interval, version: int) -> bool:
    return stay.since <= version and (stay.until == 0 or version < stay.until)


def _file(
    turn: Turn, group: bytes, roster: RosterState, source: Source, version: int, expires: int, pos: int
) -> None:
    """File for the members of this cell."""
    if turn.state.cell in roster.cells or roster.members:
        entry = Entry(pos, turn.state.hold(source), version, expires)
        turn.state.file(roster.box, entry, source.size)
        roster.dirty = True
        turn.expire_in_box(roster.box, True, group, entry)
        turn.effects.append(Filed(True, group, entry))


def _forward(
    turn: Turn, group: bytes, roster: RosterState, source: Source, own: bytes, expires: int, device: bytes,
    movers: list[bytes],
) -> bool:  # fmt: skip
    """Send to the other cells with members, and to members of this one who have moved. False where there are none."""
    elsewhere = _elsewhere(turn.state, roster)
    if elsewhere or movers:
        outboxes.await_answers(turn, own, device, len(elsewhere) + len(movers))
    for cell in elsewhere:
        parking.forward(turn, cell, group, source, own, expires)
    for user in movers:
        outboxes.forward(turn, user, source, own, expires)
    return bool(elsewhere or movers)


def _movers(state: State, roster: RosterState, version: int, pos: int) -> list[bytes]:
    """Who of the recipients that this cell lists has moved away: each gets a copy at the new home (rule 17)."""
    gone = sorted(state.moved.keys() & roster.members.keys()) if state.moved else []
    return [user for user in gone if receives_at(roster, user, version, pos)]


def expire_waiting(turn: Turn, group: bytes, pos: int) -> bool:
    """A waiting envelope ran out: its version never came. False where it did."""
    roster = turn.state.rosters.get(group)
    place = next((n for n, one in enumerate(roster.waiting) if one.position == pos), None) if roster else None
    if roster is None or place is None:
        return False
    entry = roster.waiting.pop(place)
    turn.state.waits(entry.size, entry.device, -1)
    turn.state.drop(entry.source)
    turn.notice(entry.device, entry.id, Code.EXPIRED, roster.version, turn.state.cell)
    if roster.head is None and not roster.waiting:
        del turn.state.rosters[group]
    return True


def receives(state: State, roster: RosterState, user: bytes, entry: Entry) -> bool:
    """Is `user` a recipient: a member of the version it was sealed for, and not gone when it was admitted?"""
    return receives_at(roster, user, entry.version, entry.position)


def receives_at(roster: RosterState, user: bytes, version: int, pos: int) -> bool:
    """The same for what was sealed for `version` and admitted at `pos`."""
    return any(
        _in(stay, version) and (stay.until == 0 or pos < stay.until_position) for stay in roster.members.get(user, ())
    )
