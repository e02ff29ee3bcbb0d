"""Outboxes: one per destination cell, densely numbered, and what their answers mean for the senders (rule 16)."""

from __future__ import annotations

from collections.abc import Sequence

from relay.core import records
from relay.core.codec import digest, encode, pack
from relay.core.mailroom.state import MovedUser, Origin, Outbox, OutItem, Pending, Source, State
from relay.core.mailroom.turn import EXPIRE_TAKEN_OVER, Turn
from relay.core.wire import Code
from relay.limits import MAX_LIFETIME, MAX_NOTICES, MAX_OUTBOX

MAX_LOGS = 4  # log ids remembered of another cell: its present one, and a few before repairs


def put(turn: Turn, cell: str, what: int, source: Source, own: bytes, expires: int, group: bytes = b"") -> None:
    """Give the record being applied the next number of the outbox of `cell`."""
    outbox = turn.state.outboxes.setdefault(cell, Outbox())
    outbox.bytes += source.size
    turn.number(cell, OutItem(what, turn.state.hold(source), source.size, own, expires, group))


def forward(turn: Turn, user: bytes, source: Source, key: bytes, expires: int) -> None:
    """Send a record, whose envelope is for somebody who moved, to the new home. `key` of what is pending, or empty."""
    turn.state.hold(source)
    number_forward(turn, turn.state.moved[user], source, key, expires)


def number_forward(turn: Turn, moved: MovedUser, source: Source, key: bytes, expires: int) -> None:
    """The same for a source that is held already."""
    cell, user = moved.record.cell, moved.record.user
    turn.state.outboxes.setdefault(cell, Outbox()).bytes += source.size
    turn.number(cell, OutItem(records.HANDIN_FORWARD, source.key, source.size, key, expires, user=user))
    moved.last = max(moved.last, source.index)


def is_full(state: State, cells: Sequence[str], size: int, device: bytes) -> bool:
    """Would `size` more bytes for each of `cells` pass a bound, or is the sender behind with its outcomes?"""
    boxes = [state.outboxes[cell] for cell in cells if cell in state.outboxes]
    owner = state.devices.get(device)
    behind = owner is not None and bool(cells) and len(owner.notices) >= MAX_NOTICES
    return behind or any(box.bytes + size > MAX_OUTBOX for box in boxes)


def await_answers(turn: Turn, own: bytes, device: bytes, cells: int) -> None:
    """The sender is told *stored* when `cells` other cells have answered for envelope `own`."""
    turn.state.pending[own] = Pending(device, cells)


def expire(turn: Turn, cell: str, number: int) -> bool:
    """An item ran out before it was handed over: its number goes out void, and the sender is told. False where it was
    handed over before."""
    outbox = turn.state.outboxes.get(cell)
    item = outbox.items.get(number) if outbox else None
    if outbox is None or item is None or not item.expires:
        return False
    outbox.items[number] = OutItem(records.HANDIN_VOID, None, 0, item.id, 0)
    end(turn, outbox, item, Code.EXPIRED, 0, turn.state.cell)
    return True


def end(turn: Turn, outbox: Outbox, item: OutItem, code: int, newest: int, cell: str) -> None:
    """An item has run out, or its last answer is here: let go of it, and tell the sender."""
    let_go(turn.state, outbox, item)
    answered(turn, item.id, code, newest, cell)


def let_go(state: State, outbox: Outbox, item: OutItem) -> None:
    """The other cell has it, or nobody wants it any more."""
    if item.source is not None:
        outbox.bytes -= item.size
    if item.waits:
        state.waits(item.size, state.pending[item.id].device, -1)
    moved = state.moved.get(item.user)
    if moved is not None:
        moved.items, moved.bytes = moved.items - 1, moved.bytes - item.size
        source = state.sources.find(item.source) if item.source is not None else None
        moved.last = max(moved.last, source.index if source else 0)
    state.drop(item.source)


def taken_over(turn: Turn, cell: str, number: int, item: OutItem, newest: int) -> None:
    """`cell` has it, for somebody who has moved: it says later what became of it (records.Told)."""
    outbox, pending = turn.state.outboxes[cell], turn.state.pending.get(item.id)
    let_go(turn.state, outbox, item)
    if pending is None:
        return
    pending.newest = max(pending.newest, newest)
    if item.told is not None:
        answered(turn, item.id, *item.told)
        return
    until = max(item.expires, turn.time) + MAX_LIFETIME
    outbox.taken_over[turn.state.log_id, number] = (item.id, until)
    turn.expire_later(until, EXPIRE_TAKEN_OVER, turn.state.log_id + cell.encode(), number)


def told(turn: Turn, cell: str, told: records.Told) -> None:
    """`cell` says what became of something that it had taken over from us."""
    outbox = turn.state.outboxes.get(cell)
    if outbox is None:
        return
    known = outbox.taken_over.pop((told.log, told.number), None)
    item = outbox.items.get(told.number)
    if known is not None:
        answered(turn, known[0], told.code, told.newest, told.cell)
    elif item is not None and told.log == turn.state.log_id:
        item.told = (told.code, told.newest, told.cell)  # its answer is still under way


def give_up(turn: Turn, where: bytes, number: int) -> bool:
    """Nobody has told us what became of something, long after it ran out. False where somebody did."""
    log, cell = where[:16], where[16:].decode()
    outbox = turn.state.outboxes.get(cell)
    known = outbox.taken_over.pop((log, number), None) if outbox else None
    if known is None:
        return False
    answered(turn, known[0], Code.EXPIRED, 0, turn.state.cell)
    return True


def answered(turn: Turn, own: bytes, code: int, newest: int, cell: str) -> None:
    """`cell` has answered for envelope (or roster version) `own`: tell the sender when it matters."""
    pending = turn.state.pending.get(own)
    if pending is None:
        return
    pending.remaining -= 1
    pending.newest = max(pending.newest, newest)
    if code >= Code.STALE:  # by number: another cell may run a release that knows more codes
        pending.refused = pending.refused or code
        if pending.origin is None:
            turn.notice(pending.device, own, code, newest, cell)
    if pending.remaining == 0:
        del turn.state.pending[own]
        if pending.origin is not None:
            _tell(turn, pending, cell)
        elif not pending.refused:
            turn.notice(pending.device, own, Code.STORED, pending.newest, cell)


def _tell(turn: Turn, pending: Pending, cell: str) -> None:
    """The cell that we took it over from is told."""
    assert pending.origin is not None
    origin, log, number = pending.origin
    told = records.Told(log, number, pending.refused or Code.STORED, pending.newest, cell)
    turn.say(origin, records.HANDIN_TOLD, encode(told))


def await_for(turn: Turn, record: records.HandIn, remaining: int) -> bytes:
    """The cell that handed number `record.number` over is told when `remaining` other cells have answered for it.
    The key of what is pending: one id may come by two ways, a number by one only."""
    key = digest(pack([record.origin, record.origin_log, record.number]), b"posthouse.taken")
    turn.state.pending[key] = Pending(b"", remaining, origin=(record.origin, record.origin_log, record.number))
    return key


def new_origin(state: State, cell: str, log_id: bytes) -> Origin:
    """Start counting what `cell` hands over under a log id not seen before."""
    known = [key for key in state.origins if key[0] == cell]
    for key in known[: max(0, len(known) + 1 - MAX_LOGS)]:
        del state.origins[key]
    origin = state.origins[cell, log_id] = Origin()
    return origin
