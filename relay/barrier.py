"""What a node has not applied yet it may not deny.

A node can be behind the others of its cell. Before it says for good that nobody of an id is at home here, it has a
block of its own written, and applies that: then it has applied everything that was committed when it was asked. (A
linearizable read as in Ongaro's dissertation, section 6.4; by a block, so that it holds over any journal.)
"""

from __future__ import annotations

from collections import defaultdict

import trio

from relay.core import records
from relay.delivery import Delivery
from relay.errors import Overloaded
from relay.intake import Intake
from relay.limits import BARRIER_EVERY_S, BARRIER_S
from relay.ports import Journal

_BLOCK = [records.encode_record(records.Tick())]


class _Turns:
    """Of one other cell: its blocks come one after the other."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.begun = self.applied = 0  # numbers of blocks
        self.next = -float("inf")  # trio's clock: when the next one may begin


class Barrier:
    """Over the log and the fold of a node. Those who ask at the same time share a block."""

    def __init__(self, journal: Journal, intake: Intake, delivery: Delivery) -> None:
        self._journal = journal
        self._intake = intake
        self._delivery = delivery
        self._turns: defaultdict[str, _Turns] = defaultdict(_Turns)  # by cell: as many as the root names

    async def reach(self, asker: str = "") -> None:
        """Return when everything that was committed before this call is applied here. `asker`: the other cell that
        wants to know; it waits for its turn, so that whatever it asks, this cell writes a block for it every
        BARRIER_EVERY_S at most. Raises Overloaded where a block takes more than BARRIER_S: without a majority of the
        cell nothing can be said."""
        with trio.move_on_after(BARRIER_S + (BARRIER_EVERY_S if asker else 0)) as scope:
            await (self._in_turn(self._turns[asker]) if asker else self._write())
        if scope.cancelled_caught:
            raise Overloaded("the cell did not confirm in time what this node knows")

    async def _in_turn(self, turns: _Turns) -> None:
        asked = turns.begun
        async with turns.lock:
            if turns.applied > asked:  # one that was begun since is applied
                return
            await trio.sleep_until(turns.next)
            turns.begun += 1
            turns.next = trio.current_time() + BARRIER_EVERY_S
            number = turns.begun
            await self._write()
            turns.applied = number

    async def _write(self) -> None:
        written = trio.Event()
        self._intake.offer(_BLOCK, written=written.set)
        await written.wait()
        await self._delivery.applied(self._journal.tip)
