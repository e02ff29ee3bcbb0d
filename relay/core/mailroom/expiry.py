"""What runs out, and when: a heap over everything in the state that has an expiry (rule 14).

Boxes are large, and most of what waits in one is collected long before it expires. So a box has one entry in the heap,
for what expires in it first. When that is due, the box is swept: what expires within that minute gets an entry of its
own. However the expiries lie, a box is looked through once a minute at most.

The heap is derived: what it names may have been settled long ago. Only what is really dropped counts against the bound
of a block, so that a heap rebuilt from a checkpoint gives the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop

from relay.core.mailroom import channels, moving, outboxes, parking, rosters
from relay.core.mailroom.people import Box, Entry
from relay.core.mailroom.state import Expiry, State
from relay.core.mailroom.turn import (
    EXPIRE_CHANNEL, EXPIRE_MAILBOX, EXPIRE_MOVED, EXPIRE_NOTICE, EXPIRE_OUTBOX, EXPIRE_PARKED, EXPIRE_ROSTER,
    EXPIRE_TAKEN_OVER, EXPIRE_WAITING, SWEEP_MAILBOX, SWEEP_ROSTER, TRY_PARKED, Turn,
)
from relay.limits import MINUTE

MAX_EXPIRIES = 65_536  # dropped in one block; the rest comes with the next one
SLACK = 1_024  # settled entries that the heap may hold beyond as many as there are live ones


def expire_due(turn: Turn) -> None:
    """Drop what has expired by this block's time, a bounded number at a time."""
    heap, left = turn.state.expiries, MAX_EXPIRIES
    while left and heap and heap[0][0] <= turn.time:
        left -= _expire(turn, *heappop(heap)[1:])


def _expire(turn: Turn, kind: int, address: bytes, number: int) -> bool:
    """True if there still was something to drop."""
    state = turn.state
    if kind in (SWEEP_MAILBOX, EXPIRE_MAILBOX):
        user = state.users.get(address)
        return user is not None and _expire_in_box(turn, user.box, kind, address, number)
    if kind in (SWEEP_ROSTER, EXPIRE_ROSTER):
        roster = state.rosters.get(address)
        return roster is not None and _expire_in_box(turn, roster.box, kind, address, number)
    if kind == EXPIRE_OUTBOX:
        return outboxes.expire(turn, address.decode(), number)
    if kind == EXPIRE_WAITING:
        return rosters.expire_waiting(turn, address, number)
    if kind == EXPIRE_PARKED:
        return parking.expire(turn, address, number)
    if kind == TRY_PARKED:
        return parking.try_again(turn, address, number)
    if kind == EXPIRE_MOVED:
        return moving.forget(turn, address)
    if kind == EXPIRE_TAKEN_OVER:
        return outboxes.give_up(turn, address, number)
    if kind == EXPIRE_CHANNEL:
        return channels.expire(turn, address, number)
    device = state.devices.get(address)
    return device is not None and device.notices.pop(number, None) is not None


def _expire_in_box(turn: Turn, box: Box, kind: int, address: bytes, number: int) -> bool:
    if kind in (EXPIRE_MAILBOX, EXPIRE_ROSTER):
        return turn.state.settle(box, number)
    if number == box.due:  # not one that an earlier expiry has replaced
        box.swept, box.due = (box.due // MINUTE + 1) * MINUTE, 0
        later: Entry | None = None
        for entry in box.after(-1):
            if entry.expires < box.swept:
                turn.expire_in_box(box, kind == SWEEP_ROSTER, address, entry)
            elif later is None or entry.expires < later.expires:
                later = entry
        if later is not None:
            turn.expire_in_box(box, kind == SWEEP_ROSTER, address, later)
    return False


def rebuild_if_stale(state: State) -> None:
    """Most entries settle long before they expire: now and then the heap is made anew from what is left."""
    if len(state.expiries) > 2 * state.expiries_live + SLACK:
        rebuild(state)


def rebuild(state: State) -> None:
    """Make the heap from everything that has an expiry."""
    state.expiries = list(_all(state))
    heapify(state.expiries)
    state.expiries_live = len(state.expiries)


def _all(state: State) -> Iterator[Expiry]:
    for key, user in state.users.awake():
        yield from _first_of(user.box, SWEEP_MAILBOX, key)
    for key, roster in state.rosters.items():
        yield from _first_of(roster.box, SWEEP_ROSTER, key)
        yield from ((w.expires, EXPIRE_WAITING, key, w.position) for w in roster.waiting)
    for cell, outbox in state.outboxes.items():
        items = outbox.items.items()
        yield from ((item.expires, EXPIRE_OUTBOX, cell.encode(), n) for n, item in items if item.expires)
        for group, parked in outbox.parked.items():
            where = parking.address(group, cell)
            yield parked.due, TRY_PARKED, where, parked.due
            yield from ((item.expires, EXPIRE_PARKED, where, key) for key, item in parked.items.items())
        for (log, number), (_, until) in outbox.taken_over.items():
            yield until, EXPIRE_TAKEN_OVER, log + cell.encode(), number
    yield from ((moved.record.payload.expires, EXPIRE_MOVED, key, 0) for key, moved in state.moved.items())
    yield from channels.expiries(state)
    for key, device in state.devices.awake():
        yield from ((n.expires, EXPIRE_NOTICE, key, n.position) for n in device.notices.values())


def _first_of(box: Box, kind: int, address: bytes) -> Iterator[Expiry]:
    box.swept, box.due = 0, min((entry.expires for entry in box.after(-1)), default=0)
    if box.due:
        yield box.due, kind, address, box.due
