"""Admission: what becomes of an envelope when the block that carries it is applied (rules 14, 15, 17)."""

from __future__ import annotations

from relay.core import records
from relay.core.envelope import Header, To, envelope_id, read_header
from relay.core.mailroom import moving, outboxes, rosters
from relay.core.mailroom.effects import Filed, PassedOn
from relay.core.mailroom.people import Entry
from relay.core.mailroom.state import Source
from relay.core.mailroom.turn import Turn
from relay.core.wire import Code, ReceiptItem
from relay.errors import ProtocolError
from relay.limits import ADMISSION_WINDOW, MAX_CLOCK_AHEAD, MAX_LIFETIME, MAX_MAILBOX, MAX_UNCONFIRMED, MINUTE


def submit(turn: Turn, record: records.Submit, size: int) -> None:
    """Apply an envelope from a device of this cell."""
    pos = turn.next_position()
    own = envelope_id(record.envelope)
    header = _read(record.envelope)
    known = _known(turn, own, header)
    if known is not None:
        turn.answer(record.device, known, None)
        return
    if record.device not in turn.state.devices:
        return  # its enrolment ended while the record was under way; nobody is left to be told
    if header is None:
        turn.answer(record.device, turn.receipt(own, Code.BAD_ENVELOPE), None)
        return
    code = _age(header, turn.time, window=True)
    if code is not None:
        turn.answer(record.device, turn.receipt(own, code), None)
    elif header.kind is To.ROSTER:
        item = rosters.admit(turn, header, own, turn.source(size), record.device, pos)
        # Who may not send must not be able to spoil the id for who may; and what may be tried again is not final.
        forget = item.code == Code.NOT_MEMBER or not Code(item.code).final
        turn.answer(record.device, item, None if forget else header.created)
        _take(turn, item, header)
    elif record.dest == turn.state.cell:
        item = _to_mailbox(turn, header, own, turn.source(size), pos)
        if item.code == Code.ACCEPTED:
            outboxes.await_answers(turn, own, record.device, 1)
        turn.answer(record.device, item, header.created)
        _take(turn, item, header)
    else:
        _to_outbox(turn, record, header, own, turn.source(size), pos)


def passed(turn: Turn, record: records.Passed, size: int) -> None:
    """Apply an envelope that another cell passed on without keeping it: a first submit, as if its device were here."""
    pos = turn.next_position()
    own = envelope_id(record.envelope)
    header = _read(record.envelope)
    item = _known(turn, own, header) or _passed(turn, header, own, turn.source(size), pos)
    turn.effects.append(PassedOn(item))


def _passed(turn: Turn, header: Header | None, own: bytes, source: Source, pos: int) -> ReceiptItem:
    if header is None:
        return turn.receipt(own, Code.BAD_ENVELOPE)
    code = Code.NOT_PERMITTED if header.kind is To.ROSTER else _age(header, turn.time, window=True)
    if code is None and header.to in turn.state.moved:
        code = Code.UNREACHABLE  # nothing could tell the sender later; by then the new home is known there
    if code is not None:
        return turn.receipt(own, code)
    item = _to_mailbox(turn, header, own, source, pos)
    turn.remember(item, header.created)
    _take(turn, item, header)
    return item


def hand_in(turn: Turn, record: records.HandIn, size: int) -> None:
    """Apply number `record.number` of another cell's outbox: exactly the vector + 1, anything else is ignored."""
    pos = turn.next_position()
    origin = turn.state.origins.get((record.origin, record.origin_log))
    if origin is None:
        origin = outboxes.new_origin(turn.state, record.origin, record.origin_log)
    for number in range(origin.confirmed + 1, min(record.confirmed, origin.vector) + 1):
        origin.outcomes.pop(number, None)
    origin.confirmed = max(origin.confirmed, min(record.confirmed, origin.vector))
    if record.number != origin.vector + 1 or record.number > origin.confirmed + MAX_UNCONFIRMED:
        return
    origin.vector = record.number
    if record.what == records.HANDIN_VOID:
        return
    code: int
    if record.what == records.HANDIN_REFUSED:
        code, newest = record.code, 0
    elif record.what in (records.HANDIN_ROSTER, records.HANDIN_NOBODY):
        code, newest = rosters.hand_in(turn, record)
    elif record.what in _OF_MOVES:
        code, newest = _hand_in_of_a_move(turn, record, size, pos)
    else:
        code, newest = _hand_in_envelope(turn, record, size, pos)
    origin.outcomes[record.number] = (code, newest)


_OF_MOVES = (records.HANDIN_MOVE, records.HANDIN_FORWARD, records.HANDIN_NOTICE, records.HANDIN_TOLD)


def _hand_in_of_a_move(turn: Turn, record: records.HandIn, size: int, pos: int) -> tuple[int, int]:
    match record.what:
        case records.HANDIN_MOVE:
            return moving.move(turn, records.read_chain(record.item).signed, record.origin)
        case records.HANDIN_FORWARD:
            return moving.hand_in(turn, record, size, pos)
        case records.HANDIN_NOTICE:
            return moving.notice(turn, record)
        case _:
            outboxes.told(turn, record.origin, records.read_told(record.item))
            return Code.STORED, 0


def _hand_in_envelope(turn: Turn, record: records.HandIn, size: int, pos: int) -> tuple[int, int]:
    own = envelope_id(record.item)
    header = _read(record.item)
    known = _known(turn, own, header)
    if known is not None and known.code != Code.ACCEPTED:  # that one, of a sender here, has its outcome elsewhere
        return known.code, known.newest
    if header is None:
        return Code.BAD_ENVELOPE, 0
    code = _age(header, turn.time, window=False)
    if code is not None:
        return code, 0
    if header.kind is To.ROSTER:
        item = rosters.admit_handed(turn, header, own, turn.source(size), record, pos)
    elif header.to in turn.state.moved:
        return moving.take_handed_over(turn, record, header, turn.source(size))
    else:
        item = _to_mailbox(turn, header, own, turn.source(size), pos)
    if item.code not in (Code.UNKNOWN_ROSTER, Code.ACCEPTED):  # that one comes again; this one is told later
        turn.remember(item, header.created)
    _take(turn, item, header)
    return item.code, item.newest


def _read(envelope: bytes) -> Header | None:
    """Its header; None where it is not well formed: no outcome of such a one is remembered."""
    try:
        return read_header(envelope)
    except ProtocolError:
        return None


def _known(turn: Turn, own: bytes, header: Header | None) -> ReceiptItem | None:
    return turn.state.outcomes.get(own, header.created // MINUTE) if header is not None else None


def _take(turn: Turn, item: ReceiptItem, header: Header) -> None:
    turn.take(item.id, item.code, item.newest, item.position, header.to_version, header.expires)


def _age(header: Header, time: int, window: bool) -> Code | None:
    """Rule 15: `created` in [T − D, T + 1 min] for first submits; rule 14: nothing expired is admitted."""
    lifetime = header.expires - header.created
    if not 0 < lifetime <= MAX_LIFETIME:
        return Code.LIFETIME
    if header.expires <= time:
        return Code.EXPIRED
    if header.created > time + ADMISSION_WINDOW:
        return Code.STALE  # also for a hand-over: nobody's clock is as far ahead, and its id would stay here for ever
    if window and not time - ADMISSION_WINDOW <= header.created <= time + MAX_CLOCK_AHEAD:
        return Code.STALE
    return None


def _to_mailbox(turn: Turn, header: Header, own: bytes, source: Source, pos: int) -> ReceiptItem:
    user = turn.state.users.get(header.to)
    if user is None and header.to in turn.state.moved:
        code, newest = moving.take_over(turn, header.to, source, own, header.expires)
        return turn.receipt(own, code, newest, pos if code == Code.ACCEPTED else 0)
    if user is None:
        return turn.receipt(own, Code.UNKNOWN_USER)
    home = user.record
    newest = home.version
    if not 1 <= header.to_version <= newest:
        return turn.receipt(own, Code.BAD_ENVELOPE, newest)
    if user.box.bytes + source.size > MAX_MAILBOX:
        return turn.receipt(own, Code.MAILBOX_FULL, newest)
    for listed in home.devices:
        device = turn.state.devices.get(listed.id)
        if device is not None and device.user == header.to and device.since <= header.to_version:
            entry = Entry(pos, turn.state.hold(source), header.to_version, header.expires)
            turn.state.file(user.box, entry, source.size)
            turn.expire_in_box(user.box, False, header.to, entry)
            turn.effects.append(Filed(False, header.to, entry))
            break
    return turn.receipt(own, Code.STORED, newest, pos)


def _to_outbox(turn: Turn, record: records.Submit, header: Header, own: bytes, source: Source, pos: int) -> None:
    if outboxes.is_full(turn.state, [record.dest], source.size, record.device):
        turn.answer(record.device, turn.receipt(own, Code.OUTBOX_FULL), None)
        return
    outboxes.put(turn, record.dest, records.HANDIN_ENVELOPE, source, own, header.expires)
    outboxes.await_answers(turn, own, record.device, 1)
    item = turn.receipt(own, Code.ACCEPTED, 0, pos)
    turn.answer(record.device, item, header.created)
    _take(turn, item, header)
