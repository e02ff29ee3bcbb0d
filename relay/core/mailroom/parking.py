"""Group envelopes that another cell may not write yet: they wait here, in the sender's cell, and are tried again.

A cell that does not have the roster version which an envelope names cannot know whether any member is at home with it,
so it writes nothing and answers UNKNOWN_ROSTER (section 5, rule 3; rule 17; ADR 12). The version is on its way from the
owner's cell. From the first such answer on everything of that group for that cell queues up behind the envelope, and
the oldest is handed over again, by block time, until the version is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.core import records
from relay.core.mailroom import outboxes
from relay.core.mailroom.state import Outbox, OutItem, Parked, Source, State
from relay.core.mailroom.turn import EXPIRE_PARKED, TRY_PARKED, Turn
from relay.core.wire import Code
from relay.limits import PARKED_RETRY, PARKED_RETRY_MAX


def forward(turn: Turn, cell: str, group: bytes, source: Source, own: bytes, expires: int) -> None:
    """Send a group envelope to `cell`: by its outbox, or behind what is parked for it."""
    outbox = turn.state.outboxes.setdefault(cell, Outbox())
    if group not in outbox.parked:
        outboxes.put(turn, cell, records.HANDIN_ENVELOPE, source, own, expires, group)
        return
    outbox.bytes += source.size
    item = OutItem(records.HANDIN_ENVELOPE, turn.state.hold(source), source.size, own, expires, group)
    _wait(turn, item)
    _park(turn, cell, outbox.parked[group], item, source.key)


def has_room(state: State, cells: Sequence[str], group: bytes, source: Source, device: bytes) -> bool:
    """May one more envelope of `device` be parked, where it would have to be?"""
    boxes = [state.outboxes[cell] for cell in cells if cell in state.outboxes]
    return not any(group in box.parked for box in boxes) or state.may_wait(source.size, device)


def take(turn: Turn, cell: str, item: OutItem, code: int) -> bool:
    """`cell` has answered for a group envelope. True where the item is parked; False where the answer is final (and
    then the version is there: what was parked goes out, in order)."""
    outbox, source = turn.state.outboxes[cell], item.source
    if code != Code.UNKNOWN_ROSTER:
        if code != Code.EXPIRED:
            _release(turn, cell, outbox, item.group)
        return False
    assert source is not None
    if not item.waits:
        if not turn.state.may_wait(item.size, turn.state.pending[item.id].device):
            return False
        _wait(turn, item)
    if item.group not in outbox.parked:
        outbox.parked[item.group] = Parked(0)
        _plan(turn, cell, item.group, outbox.parked[item.group])
    _park(turn, cell, outbox.parked[item.group], item, source)
    return True


def _wait(turn: Turn, item: OutItem) -> None:
    """It counts as waiting to its end, also while it is tried: nothing else takes its room meanwhile."""
    item.waits = True
    turn.state.waits(item.size, turn.state.pending[item.id].device, 1)


def _park(turn: Turn, cell: str, parked: Parked, item: OutItem, key: int) -> None:
    parked.items[key] = item
    turn.expire_later(item.expires, EXPIRE_PARKED, address(item.group, cell), key)


def _plan(turn: Turn, cell: str, group: bytes, parked: Parked) -> None:
    parked.due = turn.time + min(PARKED_RETRY << min(parked.tries, 16), PARKED_RETRY_MAX)
    turn.expire_later(parked.due, TRY_PARKED, address(group, cell), parked.due)


def _release(turn: Turn, cell: str, outbox: Outbox, group: bytes) -> None:
    parked = outbox.parked.pop(group, None)
    if parked is not None:
        for _, item in sorted(parked.items.items()):
            turn.number(cell, item)


def try_again(turn: Turn, where: bytes, due: int) -> bool:
    """The time has come to hand the oldest over again. False where nothing is parked any more."""
    group, cell = split(where)
    outbox = turn.state.outboxes.get(cell)
    parked = outbox.parked.get(group) if outbox else None
    if outbox is None or parked is None or parked.due != due:
        return False
    if not parked.items:
        del outbox.parked[group]  # what comes from here on goes out behind the one that is under way
        return True
    turn.number(cell, parked.items.pop(min(parked.items)))
    parked.tries += 1
    _plan(turn, cell, group, parked)
    return True


def expire(turn: Turn, where: bytes, key: int) -> bool:
    """A parked envelope ran out: its version never came there. False where it was sent on before."""
    group, cell = split(where)
    outbox = turn.state.outboxes.get(cell)
    parked = outbox.parked.get(group) if outbox else None
    item = parked.items.pop(key, None) if parked else None
    if outbox is None or item is None:
        return False
    outboxes.end(turn, outbox, item, Code.EXPIRED, 0, turn.state.cell)
    return True


def address(group: bytes, cell: str) -> bytes:
    """What an expiry entry names: the group and the cell that it is parked for."""
    return group + cell.encode()


def split(where: bytes) -> tuple[bytes, str]:
    """The reverse of `address`."""
    return where[:32], where[32:].decode()
