"""Fan-out: what was filed goes to every live seat that it is for, in order, in as few writes as the load allows.

A round gives every seat what it lacks, joined; seats that lack the same share the same bytes. Then each lane rests for
a multiple of the time it took, and of how many lanes have something: so many of them leave others as much as few do. A
quiet node writes at once, and a busy one lets several messages go with each write: natural batching, as of commits,
without a timer to be tuned. A lane of a hundred seats does not wait while one of ten thousand rests, and goes before
it; lanes of few seats do not wait for a round at all.

Seats that are not live read from the journal (relay.delivery); so do those whose line took no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import trio

from relay.core.mailroom import reading
from relay.core.mailroom.people import Entry
from relay.core.mailroom.state import State
from relay.limits import (
    FANOUT_BYTES,
    FANOUT_REST,
    FANOUT_REST_BUSY,
    FANOUT_REST_BUSY_S,
    FANOUT_REST_S,
    UNACKED_BYTES,
)
from relay.observe.metrics import Metrics
from relay.observe.pulse import Pulse
from relay.ports import Clock
from relay.seat import Address, Item, Lane, Piece, Seat

_FEW: Final = 8  # seats of a lane that is emptied at once, when its block is applied
_SLICE: Final = 32  # seats that are written to before others have their turn: below a millisecond
_GIVE_WAY_S: Final = 0.0007  # seconds between two slices where there is mail to few: as long as a slice takes
_BESIDE_S: Final = 0.1  # seconds for which such mail counts


class Fanout:
    """Owns the lanes. `file` and `hurry` while a block is applied; one task runs `run`."""

    def __init__(self, state: State, metrics: Metrics, clock: Clock, pulse: Pulse) -> None:
        self._state = state
        self._pulse = pulse
        self._metrics = metrics
        self._clock = clock
        self._lanes: dict[Address, Lane] = {}
        self._dirty: dict[Lane, None] = {}  # those with items
        self._filed = trio.Event()
        self._few_at = -math.inf  # when mail to few was last given out, by trio's clock
        self._given = 0  # deliveries that are not counted yet
        self._mail: set[bool] = set()  # of the block that is applied: for few, for more

    # --- who listens -----------------------------------------------------------------------------
    def listen(self, seat: Seat) -> None:
        """Where the seat's device is delivered to from now on: a seat that is not live, or is not any more."""
        self.leave(seat)
        for address, since in reading.listens(self._state, seat.line.device):
            lane = self._lanes.get(address)
            if lane is None:
                lane = self._lanes[address] = Lane(address)
            lane.seats[seat] = since
            seat.lanes[lane] = None

    def leave(self, seat: Seat) -> None:
        """The seat listens nowhere."""
        for lane in seat.lanes:
            del lane.seats[seat]
            if not lane.seats:
                del self._lanes[lane.address]
                self._empty(lane)
        seat.lanes = {}

    def seats_at(self, address: Address) -> Iterable[Seat]:
        """Who listens at an address."""
        lane = self._lanes.get(address)
        return list(lane.seats) if lane is not None else ()

    def anyone(self, address: Address) -> bool:
        """Does anybody listen there?"""
        return address in self._lanes

    # --- what is filed ---------------------------------------------------------------------------
    def file(self, address: Address, item: Item, time: int) -> None:
        """For whoever listens there; nothing where nobody does. `time`: of the block, Unix ms."""
        lane = self._lanes.get(address)
        if lane is not None:
            lane.add(item, time)
            self._dirty[lane] = None
            if item.entry is not None:  # a notice that something was settled is for few, whatever that was
                self._mail.add(len(lane.seats) > _FEW)

    def demote(self, seat: Seat, reason: str) -> None:
        """A seat that is live is not any more: it reads on from the journal. `reason`: as in OPERATIONS."""
        if seat.live:
            seat.demote()
            self._metrics.catching_up.inc()
            self._metrics.demoted.labels(reason).inc()

    def reread(self, address: Address, entry: Entry) -> None:
        """Filed, but not to be had without waiting: whom it is for reads on from the journal."""
        lane = self._lanes.get(address)
        if lane is not None:
            for seat in lane.seats:
                if seat.live and self._receives(seat, address, entry):
                    self.demote(seat, "reread")

    def hurry(self) -> None:
        """A block is applied: empty the lanes of few seats, and wake whoever does the rounds."""
        oldest = 0
        if self._mail:
            if True not in self._mail:
                self._pulse.gave(0.0)
            self._mail.clear()
        for lane in [lane for lane in self._dirty if len(lane.seats) <= _FEW]:
            for seat in lane.seats:
                if seat.live:
                    self.give(seat)
            oldest = min(oldest or lane.time, lane.time)
            self._empty(lane)
            self._few_at = trio.current_time()
        self._observe(oldest)
        if self._dirty:
            if sum(lane.size for lane in self._dirty) > FANOUT_BYTES:
                self._overrun()
            self._filed.set()

    def _overrun(self) -> None:
        """More is filed than lines are written to: whoever has not been given it reads from the journal."""
        for lane in list(self._dirty):
            for seat in lane.seats:
                if seat.sent < lane.items[-1].position:
                    self.demote(seat, "overrun")
            self._empty(lane)

    def _empty(self, lane: Lane) -> None:
        lane.empty()
        self._dirty.pop(lane, None)

    # --- giving ----------------------------------------------------------------------------------
    async def run(self) -> None:
        """Rounds, until cancelled."""
        while True:
            now = trio.current_time()
            if due := [lane for lane in self._dirty if lane.due <= now]:
                await self._round(sorted(due, key=lambda lane: len(lane.seats)))
            else:
                self._filed = trio.Event()
                with trio.move_on_at(min((lane.due for lane in self._dirty), default=math.inf)):
                    await self._filed.wait()

    async def _round(self, lanes: list[Lane]) -> None:
        """Everything that these hold now, to everybody whom it is for. What is filed meanwhile goes along where it can;
        it is the next round's."""
        start, number = trio.current_time(), 0
        sharing = len(self._dirty)  # those that rest with something, too: their turn comes in our rests
        for lane in lanes:
            if lane not in self._dirty:
                continue  # everybody has left it meanwhile
            began, tip = trio.current_time(), lane.items[-1].position
            for seat in list(lane.seats):
                if seat.live:
                    self.give(seat)
                number += 1
                if number % _SLICE == 0:
                    await self._give_way()
            self._given_up_to(lane, tip)
            rest, most = (FANOUT_REST_BUSY, FANOUT_REST_BUSY_S) if self._pulse.busy else (FANOUT_REST, FANOUT_REST_S)
            now = trio.current_time()
            lane.due = now + min(most, rest * sharing * (now - began))
        self._pulse.gave(trio.current_time() - start)
        await trio.lowlevel.checkpoint()

    async def _give_way(self) -> None:
        """Others have their turn; beside mail to few, the other processes of this machine, too."""
        if trio.current_time() - self._few_at < _BESIDE_S and not self._pulse.busy:
            await trio.sleep(_GIVE_WAY_S)
        else:
            await trio.lowlevel.checkpoint()

    def _given_up_to(self, lane: Lane, tip: int) -> None:
        if lane in self._dirty:
            oldest = lane.time
            lane.forget(tip)
            if not lane.items:
                del self._dirty[lane]
            self._observe(oldest)

    def give(self, seat: Seat) -> None:
        """Write what its lanes hold for a seat that is live."""
        lanes = tuple(self._dirty.keys() & seat.lanes.keys())
        if len(lanes) == 1 and self._all_for(seat, lanes[0]):
            lane = lanes[0]
            newest = lane.items[-1].position
            while seat.live and seat.sent < newest and (piece := lane.piece(seat.sent)) is not None:
                self._push(seat, piece, at_once=True)
        elif lanes:
            for item in self._gather(seat, lanes):
                if seat.live:
                    self._push(seat, Piece(item.frame, 1, (item.position, len(item.frame))), at_once=False)
            seat.line.flush()

    def _gather(self, seat: Seat, lanes: Iterable[Lane]) -> list[Item]:
        """What is for the seat, in order."""
        items: list[Item] = []
        for lane in lanes:
            lacks, whole = lane.after(seat.sent), self._all_for(seat, lane)
            items += lacks if whole else [item for item in lacks if self._is_for(seat, lane.address, item)]
        return sorted(items)

    def _all_for(self, seat: Seat, lane: Lane) -> bool:
        """Is all that the lane holds for the seat? Where not, each item has to be asked for."""
        return lane.seats[seat] <= lane.lowest and lane.expires > self._state.time

    def _is_for(self, seat: Seat, address: Address, item: Item) -> bool:
        return self._receives(seat, address, item.entry) if item.entry else item.device == seat.line.device

    def _receives(self, seat: Seat, address: Address, entry: Entry) -> bool:
        roster, own = address
        return entry.expires > self._state.time and reading.receives(self._state, seat.line.device, own, roster, entry)

    def _push(self, seat: Seat, piece: Piece, at_once: bool) -> None:
        if seat.unacked_bytes > UNACKED_BYTES:
            self.demote(seat, "unacked")
        elif not (seat.line.give(piece.data) if at_once else seat.line.push((piece.data,))):
            self.demote(seat, "unread")
        else:
            seat.count(piece.sent)
            self._given += piece.frames

    def _observe(self, time: int) -> None:
        """Seats were given what they lacked, of blocks from `time` on; 0: of none."""
        if self._given:
            self._metrics.delivered.inc(self._given)
            self._given = 0
        if time:
            self._metrics.delivery_seconds.observe(max(0, self._clock.wall_ms() - time) / 1000)
