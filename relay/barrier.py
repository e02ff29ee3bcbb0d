"""What a node has not applied yet it may not deny.

A node can be behind the others of its cell. Before it says for good that nobody of an id is at home here, it has a
block of its own written, and applies that: then it has applied everything that was committed when it was asked. (A
linearizable read as in Ongaro's dissertation, section 6.4; by a block, so that it holds over any journal.)
"""

from __future__ import annotations

import trio

from relay.core import records
from relay.delivery import Delivery
from relay.errors import Overloaded
from relay.intake import Intake
from relay.limits import BARRIER_S
from relay.ports import Journal

_BLOCK = [records.encode_record(records.Tick())]


class Barrier:
    """Over the log and the fold of a node. Holds no state: those who ask at the same time share a block."""

    def __init__(self, journal: Journal, intake: Intake, delivery: Delivery) -> None:
        self._journal = journal
        self._intake = intake
        self._delivery = delivery

    async def reach(self) -> None:
        """Return when everything that was committed before this call is applied here. Raises Overloaded where that
        takes more than BARRIER_S: without a majority of the cell nothing can be said."""
        written = trio.Event()
        self._intake.offer(_BLOCK, written=written.set)
        with trio.move_on_after(BARRIER_S) as scope:
            await written.wait()
            await self._delivery.applied(self._journal.tip)
        if scope.cancelled_caught:
            raise Overloaded("the cell did not confirm in time what this node knows")
