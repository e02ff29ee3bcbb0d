"""Outboxes: one per destination cell, densely numbered, and what their answers mean for the senders (rule 16)."""

from __future__ import annotations

from collections.abc import Sequence

from relay.core import records
from relay.core.mailroom.effects import OutboxGrew
from relay.core.mailroom.state import Origin, Outbox, OutItem, Pending, Source, State
from relay.core.mailroom.turn import EXPIRE_OUTBOX, Turn
from relay.core.wire import Code
from relay.limits import MAX_NOTICES, MAX_OUTBOX

MAX_LOGS = 4  # log ids remembered of another cell: its present one, and a few before repairs


def put(turn: Turn, cell: str, what: int, source: Source, own: bytes, expires: int, group: bytes = b"") -> None:
    """Give the record being applied the next number of the outbox of `cell`."""
    outbox = turn.state.outboxes.setdefault(cell, Outbox())
    outbox.bytes += source.size
    number(turn, cell, OutItem(what, turn.state.hold(source), source.size, own, expires, group))


def number(turn: Turn, cell: str, item: OutItem) -> None:
    """Give an item, whose source is held and counted, the next number."""
    outbox = turn.state.outboxes[cell]
    outbox.last += 1
    outbox.items[outbox.last] = item
    if item.expires:
        turn.expire_later(item.expires, EXPIRE_OUTBOX, cell.encode(), outbox.last)
    turn.effects.append(OutboxGrew(cell))


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
    if outbox is None or item is None or item.what == records.HANDIN_VOID:
        return False
    outbox.items[number] = OutItem(records.HANDIN_VOID, None, 0, item.id, 0)
    end(turn, outbox, item, Code.EXPIRED, 0, turn.state.cell)
    return True


def end(turn: Turn, outbox: Outbox, item: OutItem, code: int, newest: int, cell: str) -> None:
    """An item has run out, or its last answer is here: let go of it, and tell the sender."""
    outbox.bytes -= item.size
    if item.waits:
        turn.state.waits(item.size, turn.state.pending[item.id].device, -1)
    turn.state.drop(item.source)
    answered(turn, item.id, code, newest, cell)


def answered(turn: Turn, own: bytes, code: int, newest: int, cell: str) -> None:
    """`cell` has answered for envelope (or roster version) `own`: tell the sender when it matters."""
    pending = turn.state.pending.get(own)
    if pending is None:
        return
    pending.remaining -= 1
    pending.newest = max(pending.newest, newest)
    if code >= Code.STALE:  # by number: another cell may run a release that knows more codes
        pending.refused = True
        turn.notice(pending.device, own, code, newest, cell)
    if pending.remaining == 0:
        del turn.state.pending[own]
        if not pending.refused:
            turn.notice(pending.device, own, Code.STORED, pending.newest, cell)


def new_origin(state: State, cell: str, log_id: bytes) -> Origin:
    """Start counting what `cell` hands over under a log id not seen before."""
    known = [key for key in state.origins if key[0] == cell]
    for key in known[: max(0, len(known) + 1 - MAX_LOGS)]:
        del state.origins[key]
    origin = state.origins[cell, log_id] = Origin()
    return origin
